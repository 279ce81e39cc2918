"""Speculative decoding in openvino-genai, for both engines that use it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...artifact.folder import Artifact
from ...errors import OptionError
from ...runtime.rope import ContextChoice, RopeFactors, choose_context
from ...runtime.speculation import DraftModel, PromptLookup

if TYPE_CHECKING:
    from ...answer.token_stream import TokenRequest
    from ..protocol import EngineSetup


_COMPARED_BY_GENAI = "openvino_tokenizer.xml"


@dataclass(frozen=True, slots=True, kw_only=True)
class SpeculationPlan:
    """Speculation settings of an engine, as plain values that can be sent to a child process.

    Attributes:
        candidate_tokens: Draft tokens per forward pass; 0 disables speculation.
        ngram_tokens: Longest n-gram of prompt lookup; 0 disables prompt lookup.
        draft_folder: The draft model's folder; empty without a draft model.
        draft_factors: The LongRoPE factors of the draft model.
    """

    candidate_tokens: int = 0
    ngram_tokens: int = 0
    draft_folder: str = ""
    draft_factors: RopeFactors = "none"

    @property
    def spare_tokens(self) -> int:
        """KV cache places that a sequence may need beyond its tokens: draft tokens plus one."""
        return self.candidate_tokens + 1 if self.candidate_tokens else 0

    def configure(self, config: Any) -> None:
        """Set the speculation fields of a request's ``GenerationConfig``."""
        if self.candidate_tokens:
            config.num_assistant_tokens = self.candidate_tokens
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
                    f"{given} cannot be had together with speculation: whether genai takes back "
                    "what rejected tokens did to it has not been shown. Load the model without."
                )
        if self.draft_folder and not request.sampling.greedy:
            raise OptionError(
                f"temperature={request.sampling.temperature}: with a draft model only greedy "
                "decoding (temperature=0) is right. Load the model without DraftModel; "
                "PromptLookup takes any temperature."
            )

    @contextmanager
    def properties(
        self,
        device: str,
        properties: Mapping[str, str],
        *,
        context_tokens: int,
        inside: str | None = None,
    ) -> Iterator[dict[str, Any]]:
        """Provide the properties that enable speculation in genai's pipeline.

        The rope factors of the draft model are pinned like those of the model.

        Args:
            device: Device of the model and the draft model.
            properties: OpenVINO's properties.
            context_tokens: The context in tokens.
            inside: Parent of a temporary folder; None for the system's default.
        """
        if self.draft_folder:
            import openvino_genai

            from ..pinned import pinned_folder

            context = ContextChoice(tokens=context_tokens, factors=self.draft_factors)
            with pinned_folder(Artifact.open(self.draft_folder), context, inside=inside) as folder:
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
    if isinstance(chosen, PromptLookup):
        return SpeculationPlan(
            candidate_tokens=chosen.candidate_tokens, ngram_tokens=chosen.ngram_tokens
        )
    if isinstance(chosen, DraftModel):
        draft = Artifact.open(chosen.path)  # `load_model` verifies its checksums
        _require_same_tokens(setup.artifact, draft)
        try:
            context = choose_context(draft.config, setup.context.tokens)
        except OptionError as error:
            raise OptionError(f"The draft model {draft.path}: {error}") from error
        return SpeculationPlan(
            candidate_tokens=chosen.candidate_tokens,
            draft_folder=str(draft.path.resolve()),
            draft_factors=context.factors,
        )
    return SpeculationPlan()


def _require_same_tokens(model: Artifact, draft: Artifact) -> None:
    """Check that both models map every id to the same token; genai compares one text's length."""
    for artifact in (model, draft):
        if not (artifact.path / _COMPARED_BY_GENAI).is_file():
            raise OptionError(
                f"A draft model needs {_COMPARED_BY_GENAI} in both folders, and {artifact.path} "
                "has none: openvino-tokenizers cannot convert its tokenizer. Load the model "
                "without DraftModel, or with PromptLookup."
            )
    ours, theirs = model.config.vocab_size, draft.config.vocab_size
    if ours != theirs:
        raise OptionError(
            f"The draft model {draft.path} has vocab_size={theirs}, the model has {ours}. "
            "A draft model needs the model's own tokenizer."
        )
    ours, theirs = (_read_tokens(artifact.path) for artifact in (model, draft))
    if ours != theirs:
        raise OptionError(
            f"The draft model {draft.path} has another tokenizer than {model.path}. A draft model "
            "needs the model's own tokenizer."
        )


def _read_tokens(folder: Path) -> Any:
    definition = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    return {name: definition.get(name) for name in ("model", "added_tokens", "normalizer")}
