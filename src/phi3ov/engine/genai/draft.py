"""Speculative decoding in openvino-genai, for both engines that use it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...artifact.folder import MODEL_BIN, Artifact
from ...errors import OptionError
from ...prompt.tokenizer_files import parse_definition
from ...runtime.processor import read_processor
from ...runtime.rope import ContextChoice, RopeFactors, choose_context
from ...runtime.speculation import DraftModel, PromptLookup, candidate_cost
from .npu import is_npu

if TYPE_CHECKING:
    from ...answer.token_stream import TokenRequest
    from ..protocol import EngineSetup


_COMPARED_BY_GENAI = "openvino_tokenizer.xml"

_DRAFT_STEP_COST = 0.05
"""Overhead of a draft model's pass besides reading its weights, relative to the model's pass."""

_ROW_COST = 0.17
"""Minimum cost of one more token in a pass over the tokens of several requests, relative to a pass
over one token (decision 86). The first few tokens cost less: see `candidate_cost`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SpeculationPlan:
    """Speculation settings of an engine, as plain values that can be sent to a child process.

    Attributes:
        candidate_tokens: Draft tokens per forward pass; 0 disables speculation.
        ngram_tokens: Longest n-gram of prompt lookup; 0 disables prompt lookup.
        draft_folder: The draft model's folder; empty without a draft model.
        draft_factors: The LongRoPE factors of the draft model.
        adaptive: Whether to adapt the number of draft tokens to acceptance (``pace.py``).
        candidate_cost: Additional cost of a pass per draft token; see `candidate_cost`.
        draft_cost: Cost of the draft model's pass relative to the model's.
    """

    candidate_tokens: int = 0
    ngram_tokens: int = 0
    draft_folder: str = ""
    draft_factors: RopeFactors = "none"
    adaptive: bool = True
    candidate_cost: float = 0.0
    draft_cost: float = 0.0

    def pass_cost(self, candidates: int, *, together: int = 1) -> float:
        """Return the cost of a pass relative to a pass without draft tokens.

        Args:
            candidates: Draft tokens that the pass checks for each request.
            together: Number of requests in the pass. The weights are read once for all, so the
                more requests there are, the more of the cost is arithmetic.

        Example:
            >>> plan = SpeculationPlan(candidate_tokens=5, ngram_tokens=3, candidate_cost=0.05)
            >>> [round(plan.pass_cost(1, together=number), 2) for number in (1, 8, 32)]
            [1.05, 1.62, 1.87]
        """
        if together == 1:
            return 1 + candidates * (self.candidate_cost + self.draft_cost)
        row = max(self.candidate_cost, _ROW_COST)
        share = together * row / (1 + (together - 1) * row)
        return 1 + candidates * (share + self.draft_cost)

    @property
    def spare_tokens(self) -> int:
        """KV cache places that a sequence may need beyond its tokens: draft tokens plus one."""
        return self.candidate_tokens + 1 if self.candidate_tokens else 0

    def configure(self, config: Any, candidates: int) -> None:
        """Set the speculation fields of a request's ``GenerationConfig``."""
        if candidates:
            config.num_assistant_tokens = candidates
        if self.ngram_tokens:
            config.max_ngram_size = self.ngram_tokens

    def check(self, request: TokenRequest) -> None:
        """Refuse options that genai does not support with speculation.

        Raises:
            OptionError: The request has an option that depends on every previous token; or it
                samples with a draft model, for which genai draws other tokens than without a
                draft, and fails if the whole prompt is cached.
        """
        for name in ("grammar", "logprobs", "presence_penalty", "frequency_penalty"):
            if self.candidate_tokens and name in request.asked():
                given = "json_schema, regex or choices" if name == "grammar" else name
                raise OptionError(
                    f"{given} cannot be combined with speculation, because genai may not undo the "
                    "effect of rejected draft tokens on it. Load the model without speculation.",
                    option="json_schema" if name == "grammar" else name,
                )
        if self.draft_folder and not request.sampling.greedy:
            raise OptionError(
                f"temperature={request.sampling.temperature}: with a draft model only greedy "
                "decoding (temperature=0) is right. Load the model without DraftModel; "
                "PromptLookup takes any temperature.",
                option="temperature",
            )

    @contextmanager
    def properties(
        self,
        device: str,
        properties: Mapping[str, str | int],
        *,
        context_tokens: int,
        model_folder: Path,
        inside: str | None = None,
    ) -> Iterator[dict[str, Any]]:
        """Provide the properties that enable speculation in genai's pipeline.

        The rope factors of the draft model are pinned like those of the model.

        genai compares the two folders' tokenizers by the number of ids of one text and the ids of
        three control tokens. phi3ov has already compared all token ids, so the draft model gets
        the model's own tokenizer files.

        Args:
            device: Device of the model and the draft model.
            properties: OpenVINO's properties.
            context_tokens: The context in tokens.
            model_folder: The model's folder.
            inside: Parent of a temporary folder; None for the system's default.
        """
        if self.draft_folder:
            import openvino_genai

            from ..pinned import pinned_folder

            context = ContextChoice(tokens=context_tokens, factors=self.draft_factors)
            draft = Artifact.open(self.draft_folder, needs_chat=False)
            with pinned_folder(draft, context, inside=inside, tokenizer_of=model_folder) as folder:
                yield {"draft_model": openvino_genai.draft_model(str(folder), device, **properties)}
        elif self.ngram_tokens:
            yield {"prompt_lookup": True}
        else:
            yield {}


def plan_speculation(setup: EngineSetup) -> SpeculationPlan:
    """Return the plan for ``setup``.

    Raises:
        OptionError: The draft model has another tokenizer, or a shorter context.
        ArtifactError: The draft model's folder is incomplete.
    """
    chosen = setup.speculation
    if chosen is None:
        return SpeculationPlan()
    model_bytes = _weight_bytes(setup.artifact)
    # The cost on other devices is unknown; the CPU's cost is a conservative estimate.
    cost = candidate_cost(read_processor(setup.device).features, model_bytes)
    if isinstance(chosen, PromptLookup):
        return SpeculationPlan(
            candidate_tokens=chosen.candidate_tokens,
            ngram_tokens=chosen.ngram_tokens,
            adaptive=chosen.adaptive,
            candidate_cost=cost,
        )
    if isinstance(chosen, DraftModel):
        # `load_model` has downloaded it and verifies its checksums
        draft = Artifact.open(chosen.path, needs_chat=False)
        _require_same_tokens(setup.artifact, draft, setup.device)
        try:
            context = choose_context(draft.config, setup.context.tokens)
        except OptionError as error:
            raise OptionError(f"The draft model {draft.path}: {error}") from error
        return SpeculationPlan(
            candidate_tokens=chosen.candidate_tokens,
            draft_folder=str(draft.path.resolve()),
            draft_factors=context.factors,
            adaptive=chosen.adaptive,
            candidate_cost=cost,
            draft_cost=_DRAFT_STEP_COST + _weight_bytes(draft) / model_bytes,
        )
    raise AssertionError(f"{chosen!r} is not a Speculation")


def _weight_bytes(artifact: Artifact) -> int:
    return (artifact.path / MODEL_BIN).stat().st_size


def _require_same_tokens(model: Artifact, draft: Artifact, device: str) -> None:
    """Check that both models map every id of the model's tokenizer to the same token.

    The draft's way of splitting text does not matter, because both models read and write ids.
    """
    if not (model.path / _COMPARED_BY_GENAI).is_file():
        raise OptionError(
            f"A draft model needs {_COMPARED_BY_GENAI} in the model's folder, and {model.path} "
            "has none: openvino-tokenizers cannot convert its tokenizer. Load the model "
            "without DraftModel, or with PromptLookup."
        )
    ours, theirs = _read_token_ids(model.path), _read_token_ids(draft.path)
    different = sorted(number for number in ours if theirs.get(number) != ours[number])
    if different:
        first = different[0]
        raise OptionError(
            f"The draft model {draft.path} has another tokenizer than {model.path}: "
            f"{len(different)} ids differ, and the first, {first}, is {theirs.get(first)!r} there "
            f"and {ours[first]!r} here. A draft model needs the model's own token ids."
        )
    if is_npu(device) and draft.config.vocab_size != model.config.vocab_size:
        raise OptionError(
            f"The draft model {draft.path} has vocab_size={draft.config.vocab_size}, and "
            f"{model.path} has {model.config.vocab_size}: on an NPU openvino-genai wants both to "
            "be equal. Load them on the CPU, or without DraftModel."
        )
    if draft.config.vocab_size <= max(ours):
        raise OptionError(
            f"The draft model {draft.path} has vocab_size={draft.config.vocab_size}, and the "
            f"model's tokenizer has the id {max(ours)}. A draft model must read each of them."
        )


def _read_token_ids(folder: Path) -> dict[int, str]:
    """Return the text of each id in a folder's ``tokenizer.json``."""
    definition = parse_definition((folder / "tokenizer.json").read_text(encoding="utf-8"))
    vocabulary: dict[str, int] = definition["model"]["vocab"]
    texts = {number: text for text, number in vocabulary.items()}
    return texts | {token["id"]: token["content"] for token in definition["added_tokens"]}
