"""Options that OpenVINO ignores or answers wrongly: what happens upstream, and that it is refused.

When one of the upstream tests fails, the other side has changed: look whether the option can be
offered, and take its row off the table in docs/guides/load.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import openvino
import openvino_genai
import pytest

import phi3ov
from phi3ov import OptionError, RuntimeConfig
from phi3ov.integrations.ovms import write_ovms_model
from phi3ov.prompt.chat_tokenizer import ChatTokenizer

from .conftest import Zoo
from .truth import prompt_text

ROW = "phi-4"
TOKENS = 20
EXACT = {
    "INFERENCE_PRECISION_HINT": "f32",
    "KV_CACHE_PRECISION": "f32",
    "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0",
}
WHOLE, CHUNK = 4096, 256
"""Prompt tokens per step: all at once, and openvino-genai's own default."""
Ids = tuple[int, ...]


@pytest.fixture(scope="module")
def folder(zoo: Zoo) -> Path:
    """A tiny export without sliding window and LongRoPE, so that nothing else plays a part."""
    return zoo.artifact(ROW)


@pytest.fixture(scope="module")
def prompts(folder: Path) -> list[list[int]]:
    """Two prompts of 700 tokens."""
    tokenizer = ChatTokenizer.from_folder(folder, phi3ov.Artifact.open(folder).chat_format)
    return [tokenizer.encode_text(prompt_text(700, seed)) for seed in (3, 4)]


def generate(
    folder: Path,
    prompts: Sequence[list[int]],
    *,
    chunk: int = WHOLE,
    properties: dict[str, str] = EXACT,
    **scheduler: Any,
) -> list[Ids]:
    """Return the greedy answers of openvino-genai to prompts that are read together."""
    config = openvino_genai.SchedulerConfig()
    config.num_kv_blocks = 300
    config.max_num_batched_tokens = chunk
    for name, value in scheduler.items():
        setattr(config, name, value)
    pipeline = openvino_genai.ContinuousBatchingPipeline(str(folder), config, "CPU", properties)
    greedy = openvino_genai.GenerationConfig(max_new_tokens=TOKENS, ignore_eos=True)
    greedy.apply_chat_template = False
    handles = [
        pipeline.add_request(number, openvino.Tensor(np.array([ids], dtype=np.int64)), greedy)
        for number, ids in enumerate(prompts)
    ]
    while pipeline.has_non_finished_requests():
        pipeline.step()
    return [tuple(handle.read_all()[0].generated_ids) for handle in handles]


@pytest.fixture(scope="module")
def truth(folder: Path, prompts: list[list[int]]) -> list[Ids]:
    """The answers with the whole cache and dense attention, which a batch does not change."""
    together = generate(folder, prompts)
    assert together == [generate(folder, [ids])[0] for ids in prompts]
    assert together == [generate(folder, [ids], chunk=CHUNK)[0] for ids in prompts]
    return together


def right(found: Sequence[Ids], truth: Sequence[Ids]) -> int:
    """Return how many tokens are those of the truth, of the answer that has the fewest."""
    pairs = zip(found, truth, strict=True)
    return min(sum(a == b for a, b in zip(*pair, strict=True)) for pair in pairs)


def xattention(threshold: float) -> dict[str, Any]:
    """Return the scheduler's fields for XAttention."""
    config = openvino_genai.SparseAttentionConfig(
        mode=openvino_genai.SparseAttentionMode.XATTENTION,
        xattention_threshold=threshold,
        xattention_block_size=64,
        xattention_stride=8,
    )
    return {"use_sparse_attention": True, "sparse_attention_config": config}


def trishape() -> dict[str, Any]:
    """Return the scheduler's fields for TRISHAPE."""
    config = openvino_genai.SparseAttentionConfig(
        mode=openvino_genai.SparseAttentionMode.TRISHAPE,
        num_last_dense_tokens_in_prefill=10,
        num_retained_start_tokens_in_cache=32,
        num_retained_recent_tokens_in_cache=64,
    )
    return {"use_sparse_attention": True, "sparse_attention_config": config}


def test_upstream_sparse_attention_is_ignored_or_wrong(
    folder: Path, prompts: list[list[int]], truth: list[Ids]
) -> None:
    """XAttention: nothing in a batch, else other answers; TRISHAPE: nothing without chunks."""
    alone = [generate(folder, [ids], **xattention(0.5))[0] for ids in prompts]
    assert right(alone, truth) < 4  # it does something to a single prompt
    assert generate(folder, prompts, **xattention(0.5)) == truth  # and nothing to two
    cautious = [generate(folder, [ids], chunk=CHUNK, **xattention(0.99))[0] for ids in prompts]
    assert right(cautious, truth) < 4  # chunks make it wrong even where hardly anything is left out
    assert [generate(folder, [ids], **trishape())[0] for ids in prompts] == truth
    chunked = [generate(folder, [ids], chunk=CHUNK, **trishape())[0] for ids in prompts]
    assert right(chunked, truth) < 8


@pytest.mark.parametrize("row", [ROW, "phi-3-mini-128k"])
@pytest.mark.parametrize("rotates", [False, True])
def test_upstream_cache_eviction_changes_answers(zoo: Zoo, row: str, rotates: bool) -> None:
    """With LongRoPE and without, with its correction of positions and without."""
    folder = zoo.artifact(row)
    tokenizer = ChatTokenizer.from_folder(folder, phi3ov.Artifact.open(folder).chat_format)
    prompts = [tokenizer.encode_text(prompt_text(700, 3))]
    mode = openvino_genai.AggregationMode.SUM
    evict = openvino_genai.CacheEvictionConfig(32, 64, 256, mode, rotates)
    found = generate(
        folder,
        prompts,
        use_cache_eviction=True,
        cache_eviction_config=evict,
        enable_prefix_caching=False,
    )
    assert right(found, generate(folder, prompts)) < 8


def test_upstream_adaptive_eviction_fails(folder: Path, prompts: list[list[int]]) -> None:
    """Openvino-genai offers a mode for which its CPU kernels compute nothing."""
    mode = openvino_genai.AggregationMode.ADAPTIVE_RKV
    evict = openvino_genai.CacheEvictionConfig(32, 64, 256, mode, False)
    with pytest.raises(RuntimeError, match="diversity"):
        generate(folder, prompts, use_cache_eviction=True, cache_eviction_config=evict)


@pytest.mark.parametrize("precision", ["f32", "u8"])
def test_upstream_paged_attention_ignores_turbo(
    folder: Path, prompts: list[list[int]], precision: str
) -> None:
    """TurboQuant's codes of keys and values: not one token differs from the plain cache."""
    plain = EXACT | {"KV_CACHE_PRECISION": precision}
    turbo = plain | {"KEY_CACHE_QUANT_ALG": "TURBO", "VALUE_CACHE_QUANT_ALG": "TURBO"}
    found = generate(folder, prompts, properties=turbo)
    assert found == generate(folder, prompts, properties=plain)


def ask(folder: Path, properties: dict[str, str], name: str) -> str:
    """Return a property of the compiled model."""
    core = openvino.Core()
    model = core.compile_model(folder / "openvino_model.xml", "CPU", properties)
    return str(model.get_property(name))


def test_upstream_accuracy_mode_changes_other_settings(folder: Path) -> None:
    """Cache and activations, although the precision of the arithmetic is given."""
    given = {"INFERENCE_PRECISION_HINT": "f32", "NUM_STREAMS": "1"}
    hinted = given | {"EXECUTION_MODE_HINT": "ACCURACY"}
    group = "DYNAMIC_QUANTIZATION_GROUP_SIZE"
    assert ask(folder, hinted, group) == "0" != ask(folder, given, group)


REFUSED = (
    *("use_sparse_attention", "sparse_attention_config", "scheduler_config"),
    *("use_cache_eviction", "cache_eviction_config", "enable_prefix_caching", "cache_size"),
    *("num_kv_blocks", "max_num_seqs", "max_num_batched_tokens", "dynamic_split_fuse"),
    *("KEY_CACHE_QUANT_ALG", "VALUE_CACHE_QUANT_ALG", "VALUE_CACHE_QUANT_MODE"),
    *("EXECUTION_MODE_HINT", "ATTENTION_BACKEND"),
)


@pytest.mark.trap(
    "An option that OpenVINO or openvino-genai ignores or answers wrongly (sparse attention, cache "
    "eviction, TurboQuant, execution mode) is refused by name, in Python and for OpenVINO Model "
    "Server.",
    about="Answers",
)
@pytest.mark.parametrize("name", REFUSED)
def test_an_option_that_would_be_ignored_or_wrong_is_refused(folder: Path, name: str) -> None:
    """With the reason, before anything is loaded or written."""
    with pytest.raises(OptionError, match="is refused: ") as refused:
        RuntimeConfig(properties={name: "x"})
    assert refused.value.option == "properties"
    with pytest.raises(OptionError, match="is refused: "):
        write_ovms_model(folder, folder.parent / "never", properties={name: "x"})
    assert not (folder.parent / "never").exists()


def test_the_guide_lists_each_refused_option() -> None:
    """Its table and the code name the same options."""
    guide = Path(__file__).parents[2] / "docs" / "guides" / "load.md"
    text = guide.read_text(encoding="utf-8")
    assert [name for name in REFUSED if f"`{name}`" not in text] == []
