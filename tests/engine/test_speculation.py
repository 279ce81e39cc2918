"""Several tokens per pass: the same text as without, from fewer passes, on both genai engines."""

from __future__ import annotations

import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import phi3ov
from phi3ov import DraftModel, GenerationOptions, OptionError, Phi3Chat, PromptLookup
from phi3ov.engine.protocol import EngineName

from .checkpoints import BORDER, FAMILY, build_checkpoint
from .conftest import LoadModel, Zoo
from .truth import greedy, prompt_text

ROW = "phi-4"
GENAI: tuple[EngineName, ...] = ("pipeline", "worker")


@pytest.fixture(scope="session")
def stranger(zoo: Zoo, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with the tokenizer of `ROW` and other weights: almost all it proposes is wrong."""
    folder = tmp_path_factory.mktemp("stranger")
    source = build_checkpoint(folder / "source", FAMILY[ROW], num_hidden_layers=1)
    phi3ov.export_model(source, folder / "fp16", compression="fp16", progress=False)
    return folder / "fp16"


def speculations(zoo: Zoo, stranger: Path) -> list[Any]:
    """Return every kind of proposer: one that is always right, one that is not, and none.

    The first costs as much as the model itself, so it never pays: it must not be adaptive for its
    candidates to be counted.
    """
    return [
        DraftModel(path=zoo.artifact(ROW), adaptive=False),
        DraftModel(path=stranger, candidate_tokens=3),
        PromptLookup(),
        DraftModel(path=zoo.artifact(ROW)),
        PromptLookup(adaptive=False),
    ]


@pytest.mark.parametrize("engine", GENAI)
@pytest.mark.parametrize("which", range(5))
def test_greedy_text_is_that_of_transformers(
    which: int, engine: EngineName, zoo: Zoo, stranger: Path, load: LoadModel
) -> None:
    """Turn after turn, with prefixes from the cache, in float32, whoever proposes."""
    speculation = speculations(zoo, stranger)[which]
    model = load(zoo.artifact(ROW), engine=engine, speculation=speculation, cache_bytes=2**22)
    chat = Phi3Chat(model)
    for turn, length in enumerate((40, 9, 30, 1)):
        before = chat.token_ids
        question = prompt_text(length, seed=turn) + "ab" * 10
        reply = chat.generate(question, max_new_tokens=21)
        plain = [*before, *model.tokenizer.encode_message(phi3ov.Message("user", question))]
        truth = greedy(zoo.checkpoint(ROW), [*plain, *model.tokenizer.opening], 21)
        assert reply.token_ids == truth, f"turn {turn}"
        assert (reply.usage.cached_tokens > 0) == (turn > 0)
        if which == 0:
            assert reply.usage.accepted_tokens == 16  # 1 + 4 * (4 + 1) = 21 tokens, 5 passes
            assert reply.usage.tokens_per_pass == 21 / 5
            assert reply.usage.checked_tokens == 16


def test_a_long_answer_changes_the_number_of_candidates(stranger: Path, load: LoadModel) -> None:
    """Rewarded for repetitions, the text repeats itself: lookup turns up, the ids stay."""
    model, plain = (
        load(stranger, speculation=speculation) for speculation in (PromptLookup(), None)
    )
    truth, first, second = (
        each.complete(prompt_text(5), max_new_tokens=200, repetition_penalty=0.01)
        for each in (plain, model, model)
    )
    assert first.token_ids == second.token_ids == truth.token_ids
    passes = 200 - first.usage.accepted_tokens
    assert passes < first.usage.checked_tokens, "some passes checked more than one candidate"
    assert first.usage.accepted_tokens > 0


@pytest.mark.parametrize("engine", GENAI)
def test_a_draft_that_is_wrong_is_given_up(
    engine: EngineName, stranger: Path, zoo: Zoo, load: LoadModel
) -> None:
    """From the second answer on its passes check one candidate; the text stays the model's."""
    model = load(zoo.artifact(ROW), engine=engine, speculation=DraftModel(path=stranger))
    prompt = prompt_text(30, seed=4)
    truth = greedy(zoo.checkpoint(ROW), model.tokenizer.encode_raw(prompt), 40)
    first, second = (model.complete(prompt, max_new_tokens=40) for _ in range(2))
    assert first.token_ids == second.token_ids == truth
    assert first.usage.checked_tokens > 2 * second.usage.checked_tokens > 0


@pytest.mark.parametrize("engine", GENAI)
def test_a_draft_needs_no_chat_template(
    engine: EngineName, zoo: Zoo, load: LoadModel, tmp_path: Path
) -> None:
    """As FastDraft models are published: no manifest, no template, another tokenizer file."""
    draft = tmp_path / "draft"
    shutil.copytree(zoo.artifact(ROW), draft)
    (draft / "phi3ov.json").unlink()
    (draft / "chat_template.jinja").unlink(missing_ok=True)
    for name in ("openvino_tokenizer", "openvino_detokenizer"):
        for ending in (".xml", ".bin"):
            (draft / f"{name}{ending}").unlink()
    config = json.loads((draft / "tokenizer_config.json").read_text(encoding="utf-8"))
    config.pop("chat_template", None)
    (draft / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    definition = json.loads((draft / "tokenizer.json").read_text(encoding="utf-8"))
    definition["normalizer"] = {"type": "NFC"}
    for token in definition["added_tokens"]:
        token["rstrip"] = not token["rstrip"]
    (draft / "tokenizer.json").write_text(json.dumps(definition), encoding="utf-8")
    speculation = DraftModel(draft, adaptive=False)
    model = load(zoo.artifact(ROW), engine=engine, speculation=speculation)
    prompt = prompt_text(40)
    reply = model.complete(prompt, max_new_tokens=21)
    assert reply.token_ids == greedy(zoo.checkpoint(ROW), model.tokenizer.encode_raw(prompt), 21)
    assert reply.usage.accepted_tokens == 16


def test_a_draft_is_fetched_by_its_hub_id(
    zoo: Zoo, load: LoadModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With its revision, as a model is."""
    asked: list[tuple[str, str | None]] = []

    def fetch(repo_id: str, *, revision: str | None, needs_chat: bool) -> phi3ov.Artifact:
        asked.append((repo_id, revision))
        return phi3ov.Artifact.open(zoo.artifact(ROW), needs_chat=needs_chat)

    monkeypatch.setattr("phi3ov.loading.fetch_artifact", fetch)
    draft = DraftModel("OpenVINO/fast-draft", revision="v1", adaptive=False)
    model = load(zoo.artifact(ROW), speculation=draft)
    assert model.complete(prompt_text(40), max_new_tokens=21).usage.accepted_tokens == 16
    assert asked == [("OpenVINO/fast-draft", "v1")]


@pytest.mark.parametrize("engine", GENAI)
def test_a_draft_of_a_longrope_model_is_pinned_too(
    engine: EngineName, zoo: Zoo, load: LoadModel
) -> None:
    """Across the border the draft proposes with the long factors: each candidate is right."""
    row = "phi-3.5-mini"
    draft = DraftModel(path=zoo.artifact(row))
    model = load(zoo.artifact(row), engine=engine, speculation=draft, context_tokens=512)
    prompt = prompt_text(BORDER - 10)
    truth = greedy(zoo.checkpoint(row), model.tokenizer.encode_raw(prompt), 26, pin="long")
    reply = model.complete(prompt, max_new_tokens=26)
    assert reply.token_ids == truth
    assert reply.usage.accepted_tokens == 20


def test_many_at_once_speculate_and_cancel(zoo: Zoo, stranger: Path, load: LoadModel) -> None:
    """In one batch, each answer is that of the request alone."""
    draft = DraftModel(path=stranger)
    model = load(zoo.artifact(ROW), engine="worker", speculation=draft)
    prompts = [prompt_text(20 + 7 * seed, seed) for seed in range(6)]
    ids = [model.tokenizer.encode_raw(prompt) for prompt in prompts]
    truths = [greedy(zoo.checkpoint(ROW), one, 16) for one in ids]
    options = GenerationOptions(max_new_tokens=16)
    streams = [model.stream_ids(one, options=options) for one in ids]
    streams[2].cancel()
    with ThreadPoolExecutor(6) as threads:
        replies = list(threads.map(lambda stream: stream.drain(), streams))
    for index, (reply, truth) in enumerate(zip(replies, truths, strict=True)):
        assert reply.token_ids == (truth if index != 2 else truth[: len(reply.token_ids)])


def test_a_seed_draws_the_same_with_prompt_lookup(zoo: Zoo, load: LoadModel) -> None:
    """Candidates do not change what is drawn; a draft model would, so that is refused."""
    prompt = prompt_text(12) * 4
    drawn = [
        load(zoo.artifact(ROW), speculation=speculation)
        .complete(prompt, max_new_tokens=20, temperature=0.8, seed=3)
        .token_ids
        for speculation in (None, PromptLookup())
    ]
    assert drawn[0] == drawn[1]


def test_a_damaged_draft_is_found_unless_verify_is_off(
    zoo: Zoo, load: LoadModel, tmp_path: Path
) -> None:
    """`verify` is about both models. The damage keeps the size, so nothing else finds it."""
    shutil.copytree(zoo.artifact(ROW), tmp_path / "draft")
    weights = tmp_path / "draft" / "openvino_model.bin"
    content = bytearray(weights.read_bytes())
    content[len(content) // 2] ^= 1
    weights.write_bytes(content)
    draft = DraftModel(path=tmp_path / "draft")
    with pytest.raises(phi3ov.ArtifactError, match="its content has changed"):
        load(zoo.artifact(ROW), speculation=draft)
    model = load(zoo.artifact(ROW), speculation=draft, verify=False)
    assert len(model.complete("abc", max_new_tokens=4).token_ids) == 4


@pytest.mark.parametrize("engine", GENAI)
def test_drawing_with_a_draft_is_refused(engine: EngineName, zoo: Zoo, load: LoadModel) -> None:
    """Before it is submitted; the chat goes on."""
    draft = DraftModel(path=zoo.artifact(ROW))
    chat = Phi3Chat(load(zoo.artifact(ROW), engine=engine, speculation=draft))
    with pytest.raises(OptionError, match=r"temperature=0\.5: with a draft model only greedy"):
        chat.generate("Hello", max_new_tokens=3, temperature=0.5)
    assert chat.generate("Hello", max_new_tokens=3).usage.completion_tokens == 3


def test_a_draft_with_another_tokenizer_is_refused(zoo: Zoo, load: LoadModel) -> None:
    """The same size of vocabulary is not enough."""
    draft = DraftModel(path=zoo.artifact("phi-3-mini-4k"))
    with pytest.raises(OptionError, match="has another tokenizer than"):
        load(zoo.artifact(ROW), speculation=draft)


def test_a_draft_with_less_context_is_refused(zoo: Zoo, load: LoadModel, tmp_path: Path) -> None:
    """It would propose from positions that it does not have."""
    source = build_checkpoint(
        tmp_path / "source", FAMILY[ROW], num_hidden_layers=1, max_position_embeddings=64
    )
    phi3ov.export_model(source, tmp_path / "fp16", compression="fp16", progress=False)
    with pytest.raises(OptionError, match=r"The draft model .*context_tokens=1024"):
        load(zoo.artifact(ROW), speculation=DraftModel(path=tmp_path / "fp16"))


@pytest.mark.parametrize("engine", ["paged", "transformers"])
def test_engines_that_cannot_speculate_say_so(
    engine: EngineName, zoo: Zoo, load: LoadModel
) -> None:
    """The option is not accepted and ignored."""
    with pytest.raises(OptionError, match=f"engine='{engine}' reads one token per pass"):
        load(zoo.artifact(ROW), engine=engine, speculation=PromptLookup())


@pytest.mark.parametrize("value", [0, -1, 65, True, 2.0, "3"])
def test_counts_are_checked(value: Any) -> None:
    """Each by its name."""
    with pytest.raises(OptionError, match="candidate_tokens="):
        PromptLookup(candidate_tokens=value)
    with pytest.raises(OptionError, match="ngram_tokens="):
        PromptLookup(ngram_tokens=value)
    with pytest.raises(OptionError, match="candidate_tokens="):
        DraftModel(path="x", candidate_tokens=value)


@pytest.mark.parametrize("value", [1, None, "yes"])
def test_adaptive_is_a_bool(value: Any) -> None:
    """Of both kinds."""
    for make in (PromptLookup, partial(DraftModel, "x")):
        with pytest.raises(OptionError, match=r"adaptive=.* must be True or False"):
            make(adaptive=value)
