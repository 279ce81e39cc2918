"""``phi3ov ovms``: a model's folder for OpenVINO Model Server, run as that server runs it.

OVMS itself is not a Python package. What it does with the folder is done here: protobuf parses
the graph, and openvino-genai loads the folder with the graph's settings, in the same call
(``ContinuousBatchingPipeline(models_path, scheduler, device, plugin_config, tokenizer_config)``).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import openvino
import openvino_genai
import pytest

from phi3ov import Artifact, ArtifactError, Message, OptionError
from phi3ov.integrations.ovms import graph_text, write_ovms_model
from phi3ov.prompt.chat_tokenizer import ChatTokenizer
from tests.ovms_graph import parse_graph

from .checkpoints import BORDER, LONGEST
from .conftest import Zoo
from .test_longrope import PROPERTIES, ROW, prompt_ids_of
from .truth import greedy, prompt_text

PLAIN = "phi-3-mini-4k"
TOOL_TEMPLATE = "{{ messages }} answer with functools[...]<|assistant|>"


def serve_as_ovms_does(folder: Path) -> Any:
    """Load a model's folder as OVMS's continuous-batching servable does."""
    _, options = parse_graph((folder / "graph.pbtxt").read_text(encoding="utf-8"))
    scheduler = openvino_genai.SchedulerConfig()
    scheduler.max_num_batched_tokens = options.max_num_batched_tokens
    scheduler.max_num_seqs = options.max_num_seqs
    scheduler.cache_size = options.cache_size
    scheduler.enable_prefix_caching = options.enable_prefix_caching
    scheduler.dynamic_split_fuse = True  # OVMS's default
    return openvino_genai.ContinuousBatchingPipeline(
        str((folder / options.models_path).resolve()),
        scheduler,
        options.device,
        json.loads(options.plugin_config),
        {"PERFORMANCE_HINT": "THROUGHPUT"},
    )


def answers(pipeline: Any, prompts: list[list[int]], new_tokens: int) -> list[tuple[int, ...]]:
    """Answer prompts together, greedily."""
    config = openvino_genai.GenerationConfig()
    config.max_new_tokens = new_tokens
    config.ignore_eos = True
    tensors = [openvino.Tensor(np.array([prompt], dtype=np.int64)) for prompt in prompts]
    results = pipeline.generate(tensors, [config] * len(prompts))
    return [tuple(result.m_generation_ids[0]) for result in results]


@pytest.mark.parametrize("length", [20, BORDER - 10, 3 * BORDER, 700])
def test_a_longrope_model_is_right_at_every_length(length: int, zoo: Zoo, tmp_path: Path) -> None:
    """In chunks of 256 tokens, beside a short request, and across the border."""
    made = write_ovms_model(
        zoo.artifact(ROW), tmp_path / "served", context_tokens=LONGEST, properties=PROPERTIES
    )
    assert (made.context.tokens, made.context.factors) == (LONGEST, "long")
    prompts = [prompt_ids_of(prompt_text(length, seed=3)), prompt_ids_of(prompt_text(9, seed=4))]
    pipeline = serve_as_ovms_does(made.folder)
    truths = [greedy(zoo.checkpoint(ROW), prompt, 24, pin="long") for prompt in prompts]
    assert answers(pipeline, prompts, 24) == truths
    assert answers(pipeline, prompts, 24) == truths, "with the prefix cache"


def test_the_original_context_has_short_factors_and_says_so(zoo: Zoo, tmp_path: Path) -> None:
    """OVMS refuses longer prompts by the config.json beside the graph."""
    made = write_ovms_model(zoo.artifact(ROW), tmp_path / "served", properties=PROPERTIES)
    config = json.loads((made.folder / "config.json").read_text(encoding="utf-8"))
    assert config["max_position_embeddings"] == made.context.tokens == BORDER
    assert any("short factors are pinned" in note for note in made.notes)
    prompt = prompt_ids_of(prompt_text(20, seed=1))
    truth = greedy(zoo.checkpoint(ROW), prompt, 24, pin="short")
    assert answers(serve_as_ovms_does(made.folder), [prompt], 24) == [truth]


def test_the_chat_template_writes_our_prompt(zoo: Zoo, tmp_path: Path) -> None:
    """The template that OVMS renders gives the ids that phi3ov encodes."""
    artifact = Artifact.open(zoo.artifact(PLAIN))
    made = write_ovms_model(artifact.path, tmp_path / "served")
    tokenizer = serve_as_ovms_does(made.folder).get_tokenizer()
    tokenizer.set_chat_template(
        (made.folder / "chat_template.jinja").read_text(encoding="utf-8")
    )  # as OVMS does
    messages = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "hello"}]
    text = tokenizer.apply_chat_template(messages, add_generation_prompt=True)
    ids = tokenizer.encode(text, add_special_tokens=False).input_ids.data[0].tolist()
    ours = ChatTokenizer.from_folder(artifact.path, artifact.chat_format)
    assert ids == ours.encode_prompt([Message("system", "be brief"), Message("user", "hello")])


def test_weights_are_linked_and_small_files_copied(zoo: Zoo, tmp_path: Path) -> None:
    """So the server's folder takes no space, and an edit in it leaves the export whole."""
    source = zoo.artifact(PLAIN)
    made = write_ovms_model(source, tmp_path / "served", name="phi3")
    assert "openvino_model.bin" in made.linked
    for name in made.linked:
        assert (made.folder / name).samefile(source / name)
    for name in made.copied:
        assert not (made.folder / name).samefile(source / name)
        assert (made.folder / name).read_bytes() == (source / name).read_bytes()
    (made.folder / "generation_config.json").write_text("{}", encoding="utf-8")
    Artifact.open(source).verify()
    assert {path.name for path in made.folder.iterdir()} == {
        *made.linked,
        *made.copied,
        "graph.pbtxt",
        "config.json",
    }


def test_without_links_the_weights_are_copied_and_it_is_said(
    zoo: Zoo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on another volume."""

    def refuse(_self: Path, _target: Path) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(Path, "hardlink_to", refuse)
    source = zoo.artifact(PLAIN)
    made = write_ovms_model(source, tmp_path / "served")
    assert made.linked == ()
    assert any("weights are a copy" in note for note in made.notes)
    copied = (made.folder / "openvino_model.bin").read_bytes()
    assert copied == (source / "openvino_model.bin").read_bytes()


def test_several_models_share_a_list(zoo: Zoo, tmp_path: Path) -> None:
    """Each has an entry; a second of the same name is refused, and nothing changes."""
    target = tmp_path / "served"
    for name in ("one", "two"):
        write_ovms_model(zoo.artifact(PLAIN), target, name=name)
    listed = (target / "config.json").read_text(encoding="utf-8")
    assert json.loads(listed) == {
        "model_config_list": [
            {"config": {"name": name, "base_path": name}} for name in ("one", "two")
        ]
    }
    with pytest.raises(OptionError, match="has a model 'two'"):
        write_ovms_model(zoo.artifact(PLAIN), target, name="two")
    assert (target / "config.json").read_text(encoding="utf-8") == listed
    assert sorted(path.name for path in target.iterdir()) == ["config.json", "one", "two"]


def test_a_folder_that_is_not_a_list_of_models_is_left_alone(zoo: Zoo, tmp_path: Path) -> None:
    """Such as an export, whose config.json is the checkpoint's."""
    (tmp_path / "config.json").write_text('{"model_config_list": [5]}', encoding="utf-8")
    with pytest.raises(OptionError, match="not OVMS's list of models"):
        write_ovms_model(zoo.artifact(PLAIN), tmp_path, name="new")
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]


def test_missing_files_are_named(zoo: Zoo, tmp_path: Path) -> None:
    """OVMS needs OpenVINO's tokenizer pair, which phi3ov itself does not."""
    folder = tmp_path / "export"
    folder.mkdir()
    for path in zoo.artifact(PLAIN).iterdir():
        if path.name not in ("openvino_detokenizer.xml", "phi3ov.json"):
            (folder / path.name).write_bytes(path.read_bytes())
    with pytest.raises(ArtifactError, match=r"lacks openvino_detokenizer\.xml"):
        write_ovms_model(folder, tmp_path / "served")
    assert not (tmp_path / "served").exists()


@pytest.mark.parametrize("name", ["", "a/b", "../a", ".hidden", "a b"])
def test_a_name_that_is_no_folder_is_refused(name: str, zoo: Zoo, tmp_path: Path) -> None:
    """It is part of the address as well."""
    with pytest.raises(OptionError, match="must consist of letters"):
        write_ovms_model(zoo.artifact(PLAIN), tmp_path, name=name)


def test_tools_need_a_template_that_ovms_reads(zoo: Zoo, tmp_path: Path) -> None:
    """Without it a note says that tools do not work; with it the parser is named in the graph."""
    without = write_ovms_model(zoo.artifact("phi-4-mini"), tmp_path, name="without")
    assert any("can call tools" in note for note in without.notes)
    template = tmp_path / "tools.jinja"
    template.write_text(TOOL_TEMPLATE, encoding="utf-8")
    made = write_ovms_model(
        zoo.artifact("phi-4-mini"), tmp_path, name="with", tool_template=template
    )
    _, options = parse_graph((made.folder / "graph.pbtxt").read_text(encoding="utf-8"))
    assert (options.tool_parser, options.enable_tool_guided_generation) == ("phi4", True)
    written = (made.folder / "chat_template.jinja").read_text(encoding="utf-8")
    assert written == TOOL_TEMPLATE
    assert not any("can call tools" in note for note in made.notes)
    with pytest.raises(OptionError, match="has no tools"):
        write_ovms_model(zoo.artifact(PLAIN), tmp_path, name="other", tool_template=template)
    template.write_text("{{ messages }}", encoding="utf-8")
    with pytest.raises(OptionError, match="does not contain the word 'functools'"):
        write_ovms_model(zoo.artifact("phi-4-mini"), tmp_path, name="other", tool_template=template)


def test_the_graph_is_the_one_of_ovms() -> None:
    """Every name is a field of OVMS's or mediapipe's messages, and values survive quoting."""
    properties: dict[str, str | int | bool] = {"CACHE_DIR": 'a "b" \\ é', "NUM_STREAMS": 1}
    graph, options = parse_graph(
        graph_text(device="GPU", properties=properties, cache_gigabytes=3, reasoning_parser="qwen3")
    )
    assert list(graph.input_stream) == ["HTTP_REQUEST_PAYLOAD:input"]
    assert list(graph.output_stream) == ["HTTP_RESPONSE_PAYLOAD:output"]
    (node,) = graph.node
    assert (node.calculator, node.name) == ("HttpLLMCalculator", "LLMExecutor")
    assert "LLM_NODE_RESOURCES:llm" in node.input_side_packet
    assert [(info.tag_index, info.back_edge) for info in node.input_stream_info] == [
        ("LOOPBACK:0", True)
    ]
    assert json.loads(options.plugin_config) == properties
    assert (options.models_path, options.device, options.cache_size) == ("./", "GPU", 3)
    assert options.reasoning_parser == "qwen3"
