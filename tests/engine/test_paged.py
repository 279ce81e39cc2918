"""The engine with a KV cache of its own: saved, restored and refused, against transformers.

That it answers as transformers does is tested where the other engines are (``test_parity.py``,
``test_longrope.py``, ``test_sliding_window.py``, ``test_cancel.py``).
"""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import openvino
import pytest
import torch
import transformers

import phi3ov
from phi3ov import Phi3Chat, Phi3Model, RestoreError, RuntimeConfig
from phi3ov.answer.options import Sampling
from phi3ov.answer.token_stream import TokenRequest
from phi3ov.artifact.folder import MODEL_XML
from phi3ov.engine.paged.model import BLOCK_TOKENS
from phi3ov.engine.paged.sampling import Sampler, distribution
from tests.inside import runner_of

from .checkpoints import FAMILY, LONGEST, LONGROPE_ROWS, WINDOW
from .conftest import EXACT, LoadModel, Zoo
from .truth import Pin, greedy, prompt_text

ROW = "phi-4"
PREFIX = prompt_text(3 * BLOCK_TOKENS + 7, seed=21)
"""Whole blocks and a begun one; longer than the sliding window and than LongRoPE's border."""
QUESTION = prompt_text(20, seed=22)


def load_paged(load: LoadModel, artifact: Path, **options: Any) -> Phi3Model:
    """Load with the engine under test."""
    return load(artifact, engine="paged", **options)


def save(model: Phi3Model, text: str, path: Path) -> list[int]:
    """Save the cache of a raw text; return its ids."""
    ids = model.tokenizer.encode_raw(text)
    model.save_kv_cache(ids, path)
    return ids


@pytest.mark.parametrize("row", FAMILY)
def test_a_restored_cache_answers_as_if_everything_had_been_read(
    row: str, zoo: Zoo, load: LoadModel, tmp_path: Path
) -> None:
    """Another model object that restores the prefix gives transformers' tokens in float32."""
    assert len(PREFIX) > max(WINDOW, 64)
    context, pin = (LONGEST, "long") if row in LONGROPE_ROWS else (None, None)
    path = tmp_path / "prefix.kv"
    first = load_paged(load, zoo.artifact(row), context_tokens=context)
    ids = save(first, PREFIX, path)
    truth = greedy(
        zoo.checkpoint(row), [*ids, *first.tokenizer.encode_raw(QUESTION)], 32, pin=_pin(pin)
    )
    first.close()
    model = load_paged(load, zoo.artifact(row), context_tokens=context)
    assert model.restore_kv_cache(path) == len(ids)
    reply = model.complete(PREFIX + QUESTION, max_new_tokens=32)
    assert reply.token_ids == truth
    assert reply.usage.cached_tokens == len(ids)


def _pin(pin: str | None) -> Pin | None:
    return "long" if pin == "long" else None


def test_a_prefix_of_many_chunks(
    zoo: Zoo, load: LoadModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Read in chunks of any size, saved, restored and continued: always the same answer."""
    prefix = prompt_text(200, seed=23)
    truth: tuple[int, ...] | None = None
    for chunk in (512, 33, 16):
        monkeypatch.setattr("phi3ov.engine.paged.engine.PREFILL_CHUNK_TOKENS", chunk)
        model = load_paged(load, zoo.artifact(ROW))
        ids = save(model, prefix, tmp_path / "prefix.kv")
        model.complete(QUESTION, max_new_tokens=2)  # puts something else into the cache
        model.restore_kv_cache(tmp_path / "prefix.kv")
        truth = truth or greedy(
            zoo.checkpoint(ROW), [*ids, *model.tokenizer.encode_raw(QUESTION)], 24
        )
        assert model.complete(prefix + QUESTION, max_new_tokens=24).token_ids == truth
        model.close()


@pytest.mark.parametrize("precision", ["f32", "f16", "u8"])
def test_the_bytes_come_back(precision: Any, zoo: Zoo, load: LoadModel, tmp_path: Path) -> None:
    """In every precision a restored cache is bit for bit the saved one, and continues as it."""
    config = replace(EXACT, kv_cache_precision=precision)
    model = load_paged(load, zoo.artifact(ROW), config=config)
    ids = save(model, PREFIX, tmp_path / "one.kv")
    live = model.complete(PREFIX + QUESTION, max_new_tokens=40)
    model.complete(QUESTION, max_new_tokens=4)
    model.restore_kv_cache(tmp_path / "one.kv")
    restored = model.complete(PREFIX + QUESTION, max_new_tokens=40)
    assert live.usage.cached_tokens == restored.usage.cached_tokens == len(ids)
    assert restored.token_ids == live.token_ids
    model.restore_kv_cache(tmp_path / "one.kv")
    whole = len(ids) - len(ids) % BLOCK_TOKENS
    one, two = (
        [buffer[: whole // BLOCK_TOKENS].copy() for buffer in runner_of(model).model.buffers]
        for _ in range(2)
    )
    assert all(np.array_equal(a, b) for a, b in zip(one, two, strict=True))
    model.save_kv_cache(ids, tmp_path / "two.kv")  # the begun block is read again
    assert _data(tmp_path / "two.kv") == _data(tmp_path / "one.kv")


def _data(path: Path) -> bytes:
    """Return what follows the header of a cache file."""
    content = path.read_bytes()
    return content[8 + int.from_bytes(content[:8], "little") :]


def test_a_chat_saves_what_it_has_read(zoo: Zoo, load: LoadModel, tmp_path: Path) -> None:
    """Saved with its history, a chat goes on in another model without reading that again."""
    model = load_paged(load, zoo.artifact("phi-3.5-mini"), context_tokens=LONGEST)
    chat = Phi3Chat(model, system="You speak in riddles. " + PREFIX)
    chat.generate("What walks on four legs?", max_new_tokens=30)
    chat.save_kv_cache(tmp_path / "chat.kv")
    chat.save(tmp_path / "chat.json")
    known = len(chat.token_ids)
    expected = chat.generate("And in the evening?", max_new_tokens=30)
    model.close()
    other = load_paged(load, zoo.artifact("phi-3.5-mini"), context_tokens=LONGEST)
    assert other.restore_kv_cache(tmp_path / "chat.kv") == known
    again = Phi3Chat.restore(other, tmp_path / "chat.json")
    reply = again.generate("And in the evening?", max_new_tokens=30)
    assert (reply.token_ids, reply.usage.cached_tokens) == (expected.token_ids, known)


@pytest.mark.parametrize("shorter", [1, 31, 32, 33, 70])
def test_the_cache_is_reused_to_the_token(shorter: int, zoo: Zoo, load: LoadModel) -> None:
    """A prompt keeps all that it begins with, and its last token is read at least."""
    model = load_paged(load, zoo.artifact(ROW))
    whole = prompt_text(100, seed=24)
    model.complete(whole, max_new_tokens=8)
    reply = model.complete(whole, max_new_tokens=8)
    assert reply.usage.cached_tokens == 99
    prompt = whole[:shorter] + "!" + QUESTION  # no letter, so it differs from what was there
    reply = model.complete(prompt, max_new_tokens=24)
    assert reply.usage.cached_tokens == shorter
    ids = model.tokenizer.encode_raw(prompt)
    assert reply.token_ids == greedy(zoo.checkpoint(ROW), ids, 24)


def test_a_cleared_cache_takes_no_memory(zoo: Zoo, load: LoadModel) -> None:
    """Its buffers are given back, and the next answer reads everything and is right."""
    model = load_paged(load, zoo.artifact(ROW))
    first = model.complete(PREFIX, max_new_tokens=16)
    taken = sum(buffer.nbytes for buffer in runner_of(model).model.buffers)
    model.clear_cache()
    assert 4 * sum(buffer.nbytes for buffer in runner_of(model).model.buffers) <= taken
    again = model.complete(PREFIX, max_new_tokens=16)
    assert again.usage.cached_tokens == 0
    assert again.token_ids == first.token_ids


def test_a_saved_cache_holds_nothing_of_other_texts(
    zoo: Zoo, load: LoadModel, tmp_path: Path
) -> None:
    """Rows of the last block that the prefix does not fill are zero, whatever was there before."""
    model = load_paged(load, zoo.artifact(ROW))
    model.complete(PREFIX + prompt_text(40, seed=25), max_new_tokens=10)
    ids = save(model, PREFIX, tmp_path / "prefix.kv")
    filled = len(ids) % BLOCK_TOKENS
    for tensor, buffer in zip(
        runner_of(model).model.layout, runner_of(model).model.buffers, strict=True
    ):
        last = buffer[len(ids) // BLOCK_TOKENS].view(np.float32).reshape(tensor.block_shape)
        assert np.all(last[:, :filled] != 0)
        assert np.all(last[:, filled:] == 0)


# ------------------------------------------------------------------------------ refusals
@pytest.fixture(scope="module")
def saved(zoo: Zoo, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A prefix of a LongRoPE model with its short factors, in float32."""
    path = tmp_path_factory.mktemp("saved") / "prefix.kv"
    with _load(zoo) as model:
        save(model, PREFIX[:50], path)
    return path


def _load(zoo: Zoo, **options: Any) -> Phi3Model:
    defaults: dict[str, Any] = {"device": "CPU", "config": EXACT, "engine": "paged"}
    return phi3ov.load_model(zoo.artifact("phi-3.5-mini"), **defaults | options)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"context_tokens": LONGEST}, "rope_factors was 'short', is 'long'"),
        (
            {"config": replace(RuntimeConfig.exact(), kv_cache_precision="f16")},
            "KEY_CACHE_PRECISION was",
        ),
        ({"context_tokens": 49}, "holds 50 tokens, and the context has 49"),
    ],
)
def test_other_settings_are_refused(
    options: dict[str, Any], reason: str, saved: Path, zoo: Zoo
) -> None:
    """What would not have computed the same numbers does not get them."""
    with _load(zoo, **options) as model:
        with pytest.raises(RestoreError, match=reason):
            model.restore_kv_cache(saved)


def test_another_model_is_refused(saved: Path, zoo: Zoo, load: LoadModel) -> None:
    """A cache belongs to the weights that computed it."""
    model = load_paged(load, zoo.artifact("phi-4"))
    with pytest.raises(RestoreError, match="another model: weights and tokenizer and chat_format"):
        model.restore_kv_cache(saved)


def test_damage_is_found_and_the_engine_goes_on(saved: Path, zoo: Zoo, tmp_path: Path) -> None:
    """A changed byte is refused; the answer afterwards is right, because nothing was kept."""
    path = tmp_path / "damaged.kv"
    shutil.copy(saved, path)
    content = bytearray(saved.read_bytes())
    content[-100] ^= 1
    path.write_bytes(content)
    with _load(zoo) as model:
        prompt = PREFIX[:50]
        ids = model.tokenizer.encode_raw(prompt)
        truth = greedy(zoo.checkpoint("phi-3.5-mini"), ids, 10, pin="short")
        assert model.complete(prompt, max_new_tokens=10).token_ids == truth
        with pytest.raises(RestoreError, match="1 of 4 tensors do not match"):
            model.restore_kv_cache(path)
        reply = model.complete(prompt, max_new_tokens=10)
        assert (reply.token_ids, reply.usage.cached_tokens) == (truth, 0)
        assert model.restore_kv_cache(path, verify=False) == 50


def test_a_file_that_is_not_there_is_an_os_error(zoo: Zoo, tmp_path: Path) -> None:
    """As everywhere in Python."""
    with _load(zoo) as model:
        with pytest.raises(FileNotFoundError):
            model.restore_kv_cache(tmp_path / "nothing.kv")


def test_what_cannot_be_saved_is_refused(zoo: Zoo, tmp_path: Path) -> None:
    """Nothing, too much, and after the end."""
    with _load(zoo, context_tokens=60) as model:
        with pytest.raises(phi3ov.PromptError, match="no KV cache to save"):
            Phi3Chat(model).save_kv_cache(tmp_path / "x.kv")
        with pytest.raises(phi3ov.ContextLengthError):
            model.save_kv_cache([65] * 60, tmp_path / "x.kv")
    with pytest.raises(phi3ov.StateError, match="closed"):
        model.save_kv_cache([65], tmp_path / "x.kv")
    assert not list(tmp_path.iterdir())


def test_an_engine_that_keeps_its_cache_to_itself_says_so(
    zoo: Zoo, load: LoadModel, tmp_path: Path
) -> None:
    """The message names the engine that can."""
    model = load(zoo.artifact(ROW))
    with pytest.raises(phi3ov.OptionError, match="engine='paged'"):
        Phi3Chat(model, system="x").save_kv_cache(tmp_path / "x.kv")
    with pytest.raises(phi3ov.OptionError, match="engine='paged'"):
        model.restore_kv_cache(tmp_path / "x.kv")


def test_another_device_is_refused(zoo: Zoo, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its cache lies in this process's memory, so the CPU it must be."""
    monkeypatch.setattr("phi3ov.loading.find_devices", lambda _requested: {"GPU": "a GPU"})
    with pytest.raises(phi3ov.DeviceError, match=r"engine='paged' runs on the CPU only.*'GPU'"):
        phi3ov.load_model(zoo.artifact(ROW), device="GPU", engine="paged")


# ------------------------------------------------------------------------------ sampling
@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p"),
    [(1.0, None, 1.0), (0.5, None, 1.0), (2.0, 7, 1.0), (1.0, None, 0.6), (0.7, 20, 0.9)],
)
def test_the_distribution_is_transformers(
    temperature: float, top_k: int | None, top_p: float
) -> None:
    """Temperature, top-k and top-p give the probabilities that transformers draws from."""
    scores = (
        torch.randn(1, 300, generator=torch.Generator().manual_seed(3), dtype=torch.float64) * 2
    )
    steps: list[Any] = [transformers.TemperatureLogitsWarper(temperature)]
    if top_k is not None:
        steps.append(transformers.TopKLogitsWarper(top_k))
    if top_p < 1:
        steps.append(transformers.TopPLogitsWarper(top_p))
    warped = scores.clone()
    for step in steps:
        warped = step(None, warped)
    expected = torch.softmax(warped, dim=-1)[0].numpy()
    request = _request(temperature=temperature, top_k=top_k, top_p=top_p)
    found = np.zeros(len(expected))
    ids, found[ids] = distribution(scores[0].numpy(), request)
    np.testing.assert_allclose(found, expected, atol=1e-12)


def test_the_repetition_penalty_is_transformers() -> None:
    """Greedy decoding under a penalty picks the token that transformers' scores put first."""
    generator = torch.Generator().manual_seed(4)
    for _ in range(20):
        scores = torch.randn(1, 50, generator=generator)
        seen = scores[0].topk(5).indices.tolist()
        penalized = transformers.RepetitionPenaltyLogitsProcessor(1.8)(
            torch.tensor([seen]), scores.clone()
        )
        request = replace(_request(repetition_penalty=1.8), prompt_ids=tuple(seen))
        token = Sampler(request).choose(scores[0].numpy())
        assert token == int(penalized.argmax())


def test_a_seed_draws_the_same_text(zoo: Zoo, load: LoadModel) -> None:
    """Equal seeds, equal answers; other seeds, others."""
    model = load_paged(load, zoo.artifact(ROW))
    answers = [
        model.complete(PREFIX, max_new_tokens=20, temperature=1.5, seed=seed).token_ids
        for seed in (1, 1, 2)
    ]
    assert answers[0] == answers[1] != answers[2]


def _request(**options: Any) -> TokenRequest:
    sampling = Sampling(**options)
    return TokenRequest(prompt_ids=(1,), max_new_tokens=1, stop_ids=frozenset(), sampling=sampling)


# What a stateful model offers instead.


@pytest.mark.parametrize("precision", ["f32", "f16", "u8"])
def test_upstream_states_are_float32_and_quantized_ones_do_not_come_back(
    precision: str, zoo: Zoo
) -> None:
    """``query_state()`` gives float32 whatever the cache holds, so a u8 cache is rounded twice."""
    properties = {"KV_CACHE_PRECISION": precision, "INFERENCE_PRECISION_HINT": "f32"}
    model = openvino.Core().compile_model(zoo.artifact(ROW) / MODEL_XML, "CPU", properties)
    request = model.create_infer_request()
    ids = np.array([list(PREFIX.encode())])
    request.infer(
        {
            "input_ids": ids,
            "attention_mask": np.ones_like(ids),
            "position_ids": np.arange(len(PREFIX))[None],
            "beam_idx": np.zeros(1, np.int32),
        }
    )
    before = {state.name: np.array(state.state.data) for state in request.query_state()}
    assert {data.dtype for data in before.values()} == {np.dtype(np.float32)}
    request.reset_state()
    for state in request.query_state():
        state.state = openvino.Tensor(before[state.name])
    equal = all(np.array_equal(one.state.data, before[one.name]) for one in request.query_state())
    assert equal == (precision != "u8"), (
        "A quantized state comes back as it was: look whether the stateful model is enough for "
        "engine/paged.py's purpose now."
    )
