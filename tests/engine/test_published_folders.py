"""OpenVINO folders of the family as others publish them: no manifest, several layouts.

They are made as the published ones are, with optimum-intel and openvino-tokenizers, and get the
files that lie beside the model there.
"""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from typing import Any, get_args

import openvino
import pytest

from phi3ov import Artifact, ArtifactError, DeviceError, DraftModel, RuntimeConfig
from phi3ov.artifact.ir import chooses_factors
from phi3ov.cli import main
from phi3ov.engine.genai.npu import plan_static
from phi3ov.engine.protocol import EngineName, EngineSetup
from phi3ov.errors import UnsupportedModelError
from phi3ov.runtime.rope import choose_context
from phi3ov.thirdparty.tool_output import quiet_tools
from tests.conftest import MadeOnce

from .checkpoints import BORDER
from .conftest import LoadModel, Zoo
from .truth import greedy, prompt_text

ROW, LONGROPE = "phi-4", "phi-3.5-mini"
LAYOUTS: dict[str, dict[str, Any]] = {
    "int4": {"bits": 4, "sym": True, "group_size": 128, "ratio": 0.5},
    "int4-cw": {"bits": 4, "sym": True, "group_size": -1, "ratio": 1.0},
    "int4-gq": {"bits": 4, "sym": True, "group_size": 128, "ratio": 1.0},
    "int8": {"bits": 8, "sym": False},
}
"""The names on the hub, and what optimum-intel was asked for."""
BESIDE = {
    "README.md": "# A model",
    ".gitattributes": "*.bin filter=lfs diff=lfs merge=lfs -text\n",
    "configuration_phi3.py": "raise SystemExit('code of a checkpoint runs')\n",
    "added_tokens.json": "{}",
    "special_tokens_map.json": "{}",
    "tokenizer.model": "not read",
    "openvino_config.json": '{"dtype": "int4", "optimum_version": "1.23.0"}',
}
"""Files that such a repository also holds."""


def publish(checkpoint: Path, folder: Path, quantization: dict[str, Any] | None) -> None:
    """Export a checkpoint with optimum-intel alone."""
    from openvino_tokenizers import convert_tokenizer
    from optimum.intel import OVModelForCausalLM, OVWeightQuantizationConfig
    from transformers import AutoTokenizer

    with quiet_tools():
        recipe = None if quantization is None else OVWeightQuantizationConfig(**quantization)
        options: dict[str, Any] = {"load_in_8bit": False} if recipe is None else {}
        model = OVModelForCausalLM.from_pretrained(
            checkpoint, export=True, compile=False, quantization_config=recipe, **options
        )
        model.save_pretrained(folder)
        tokenizer = AutoTokenizer.from_pretrained(checkpoint)
        tokenizer.save_pretrained(folder)
        pair = convert_tokenizer(tokenizer, with_detokenizer=True)
        for name, graph in zip(("tokenizer", "detokenizer"), pair, strict=True):
            openvino.save_model(graph, folder / f"openvino_{name}.xml")
    for name, text in BESIDE.items():
        (folder / name).write_text(text, encoding="utf-8")
    shutil.copyfile(checkpoint / "config.json", folder / "config.json")


@pytest.fixture
def published(zoo: Zoo, made_once: MadeOnce) -> Any:
    """Return a folder in one of the layouts."""

    def get(layout: str, row: str = ROW) -> Path:
        return made_once(
            f"published-{row}-{layout}",
            lambda folder: publish(zoo.checkpoint(row), folder, LAYOUTS.get(layout)),
        )

    return get


@pytest.mark.parametrize("layout", list(LAYOUTS))
def test_each_layout_loads_and_says_what_is_unknown(
    layout: str, published: Any, load: LoadModel, caplog: pytest.LogCaptureFixture
) -> None:
    """Every engine answers alike; recipe and versions are what the IR says of them."""
    folder = published(layout)
    with caplog.at_level(logging.WARNING, "phi3ov"):
        artifact = Artifact.open(folder)
    (warning,) = [record.getMessage() for record in caplog.records]
    assert "its source, and whether a file has changed are unknown" in warning
    manifest = artifact.manifest
    assert (manifest.source, manifest.files, manifest.notes) == ("unknown", {}, ())
    asked = LAYOUTS[layout]
    mode = f"int{asked['bits']}_{'sym' if asked['sym'] else 'asym'}"
    assert manifest.recipe["mode"] == mode
    assert manifest.recipe.get("ratio", 1) == asked.get("ratio", 1)
    assert {"openvino", "nncf", "optimum-intel", "transformers", "torch"} <= set(manifest.versions)
    kinds = {(kind.precision, kind.group_size) for kind in manifest.weights}
    if asked["bits"] == 8:
        assert {precision for precision, _ in kinds} == {"int8"}
    else:
        assert ("int4", max(asked["group_size"], 0)) in kinds
    answers = {
        load(folder, engine=engine).complete(prompt_text(40), max_new_tokens=12).token_ids
        for engine in get_args(EngineName)
    }
    assert len(answers) == 1
    model = load(folder, engine="pipeline")
    assert model.generate([{"role": "user", "content": "hi"}], max_new_tokens=4).token_ids


def test_an_npu_takes_the_layouts_that_were_made_for_it(published: Any) -> None:
    """The ratio is read from the IR, so a mixed export is refused before it is compiled."""

    def plan(layout: str) -> dict[str, int]:
        artifact = Artifact.open(published(layout))
        setup = EngineSetup(
            artifact=artifact,
            device="NPU",
            config=RuntimeConfig(),
            context=choose_context(artifact.config, None),
        )
        return plan_static(setup)

    for layout in ("int4-cw", "int4-gq"):
        assert plan(layout)["MAX_PROMPT_LEN"] > 0
    with pytest.raises(DeviceError, match=r"ratio=1.0, not 0.5"):
        plan("int4")
    with pytest.raises(DeviceError, match="has none"):
        plan("int8")


def test_a_draft_without_a_chat_template_drafts(
    published: Any, load: LoadModel, tmp_path: Path
) -> None:
    """As FastDraft models are published; the answer stays the same."""
    draft = shutil.copytree(published("int8"), tmp_path / "fastdraft")
    _remove_template(draft)
    for name in ("openvino_tokenizer", "openvino_detokenizer"):
        for end in ("xml", "bin"):
            (draft / f"{name}.{end}").unlink()
    alone = load(published("int4")).complete(prompt_text(40), max_new_tokens=12).token_ids
    drafted = load(published("int4"), speculation=DraftModel(draft))
    assert drafted.complete(prompt_text(40), max_new_tokens=12).token_ids == alone
    with pytest.raises(ArtifactError, match=r"A draft model needs none: DraftModel\(path="):
        load(draft)


def _remove_template(folder: Path) -> None:
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    path = folder / "tokenizer_config.json"
    values = json.loads(path.read_text(encoding="utf-8"))
    values.pop("chat_template", None)
    path.write_text(json.dumps(values), encoding="utf-8")
    for name in ("openvino_tokenizer.xml", "openvino_detokenizer.xml"):  # genai reads it there, too
        if (folder / name).is_file():
            core = openvino.Core()
            core.add_extension(_tokenizers_library())
            graph = core.read_model(folder / name)
            info = graph.get_rt_info()
            if "chat_template" in info:
                graph.set_rt_info("", "chat_template")
                openvino.save_model(graph, folder / f"new-{name}")
                del graph
                for end in ("xml", "bin"):
                    stem = name.removesuffix(".xml")
                    (folder / f"new-{stem}.{end}").replace(folder / f"{stem}.{end}")


def _tokenizers_library() -> str:
    import openvino_tokenizers

    return str(openvino_tokenizers._ext_path)


@pytest.mark.parametrize(
    ("missing", "said"),
    [
        ("tokenizer.json", r"hf download me/my-phi tokenizer\.json --local-dir"),
        ("openvino_model.bin", "Download or export it again"),
    ],
)
def test_what_is_missing_is_named_with_the_way_to_it(
    missing: str, said: str, published: Any, tmp_path: Path
) -> None:
    """The hub id of the original model is in config.json."""
    folder = shutil.copytree(published("int8"), tmp_path / "copy")
    values = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    values["_name_or_path"] = "me/my-phi"
    (folder / "config.json").write_text(json.dumps(values), encoding="utf-8")
    (folder / missing).unlink()
    with pytest.raises(ArtifactError, match=said):
        Artifact.open(folder)


def test_a_folder_without_openvinos_tokenizer_loads(
    published: Any, tmp_path: Path, load: LoadModel
) -> None:
    """phi3ov reads tokenizer.json; genai renders the template without its own tokenizer."""
    folder = shutil.copytree(published("int8"), tmp_path / "copy")
    for path in folder.glob("openvino_*tokenizer.*"):
        path.unlink()
    hello = [{"role": "user", "content": "hello"}]
    whole = load(published("int8")).generate(hello, max_new_tokens=8).token_ids
    assert load(folder).generate(hello, max_new_tokens=8).token_ids == whole


def test_a_missing_chat_template_is_named_with_the_way_to_it(
    published: Any, tmp_path: Path
) -> None:
    """A folder that names no origin gets a placeholder."""
    folder = shutil.copytree(published("int8"), tmp_path / "copy")
    _remove_template(folder)
    with pytest.raises(ArtifactError, match=r"no chat template.*hf download OWNER/MODEL chat_temp"):
        Artifact.open(folder)


def test_a_model_in_several_parts_is_told(published: Any, tmp_path: Path) -> None:
    """As multimodal Phis are published."""
    folder = shutil.copytree(published("int8"), tmp_path / "copy")
    for end in ("xml", "bin"):
        (folder / f"openvino_model.{end}").rename(folder / f"openvino_language_model.{end}")
    with pytest.raises(ArtifactError, match=r"several parts \(openvino_language_model\.xml\)"):
        Artifact.open(folder)


def fold_short_factors(folder: Path) -> None:
    """Leave the short factors alone in a graph, as exporters before mid-2026 wrote it."""
    path = folder / "openvino_model.xml"
    graph = openvino.Core().read_model(path)
    (comparison,) = [
        node
        for node in graph.get_ordered_ops()
        if node.get_type_name() == "Greater" and "rotary_emb" in node.get_friendly_name()
    ]
    never = openvino.opset13.constant(False, dtype=bool)
    for reader in comparison.output(0).get_target_inputs():
        reader.replace_source_output(never.output(0))
    graph.validate_nodes_and_infer_types()
    openvino.save_model(graph, folder / "short.xml", compress_to_fp16=False)
    del graph
    for end in ("xml", "bin"):
        (folder / f"short.{end}").replace(folder / f"openvino_model.{end}")


@pytest.mark.trap(
    "An OpenVINO folder of a LongRoPE model that holds the short factors alone, as exporters "
    "before mid-2026 wrote it, loads with a warning, is right up to the original context, and is "
    "refused beyond it.",
    about="Checkpoints",
)
def test_one_set_of_longrope_factors(
    published: Any,
    zoo: Zoo,
    load: LoadModel,
    tmp_path: Path,
    *,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Warned about when it is opened, and shown by ``phi3ov info``."""
    whole = published("fp32", LONGROPE)
    assert Artifact.open(whole).manifest.notes == ()
    folder = shutil.copytree(whole, tmp_path / "old")
    fold_short_factors(folder)
    assert chooses_factors(whole / "openvino_model.xml")
    assert not chooses_factors(folder / "openvino_model.xml")
    caplog.clear()
    with caplog.at_level(logging.WARNING, "phi3ov"):
        model = load(folder)
    assert "one set of LongRoPE factors" in caplog.text
    assert f"right up to {BORDER} tokens" in caplog.text
    prompt = prompt_text(30)
    expected = greedy(zoo.checkpoint(LONGROPE), model.tokenizer.encode_raw(prompt), 20)
    assert model.complete(prompt, max_new_tokens=20).token_ids == tuple(expected)
    with pytest.raises(UnsupportedModelError, match=f"context_tokens={BORDER + 1} needs LongRoPE"):
        load(folder, context_tokens=BORDER + 1)
    capsys.readouterr()
    assert main(["info", str(folder), "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["longrope"] == f"one set of factors, right up to {BORDER} tokens"
    assert "one set of LongRoPE factors" in shown["notes"][0]


def test_weights_of_an_unknown_type_are_told(
    published: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """They are left out of what is reported, which the folder's notes say."""
    folder = shutil.copytree(published("int8"), tmp_path / "copy")
    path = folder / "openvino_model.xml"
    text = path.read_text(encoding="utf-8")
    path.write_text(
        text.replace('element_type="i8"', 'element_type="nf4"', 1).replace(
            'element_type="u8"', 'element_type="nf4"', 1
        ),
        encoding="utf-8",
    )
    with caplog.at_level(logging.WARNING, "phi3ov"):
        notes = Artifact.open(folder).manifest.notes
    assert "1 in nf4" in notes[0]
    assert notes[0] in caplog.text
