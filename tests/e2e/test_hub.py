"""Checkpoints from a hub, over real HTTP on this machine."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.engine.checkpoints import FAMILY, build_checkpoint

from .conftest import RunPython
from .local_hub import COMMIT, LocalHub, serve_hub

PUBLISH = """
import sys
import phi3ov
phi3ov.export_model(sys.argv[1], "exported", progress=False)
artifact = phi3ov.Artifact.open("exported")
print(phi3ov.push_to_hub(artifact, "me/tiny-ov"))
"""

FETCH = """
import sys
import phi3ov
artifact = phi3ov.fetch_artifact(sys.argv[1])
with phi3ov.load_model(artifact.path, device="CPU") as model:
    reply = phi3ov.Phi3Chat(model).generate("Hello", max_new_tokens=4)
print(artifact.manifest.source, artifact.manifest.chat_format, reply.usage.completion_tokens)
"""

RESOLVE = """
import json, sys
from phi3ov.exporter.checkpoint import Checkpoint
from phi3ov.errors import Phi3OVError
try:
    found = Checkpoint.resolve(sys.argv[1], revision=sys.argv[2] if len(sys.argv) > 2 else None)
except Phi3OVError as error:
    print(json.dumps({"error": type(error).__name__, "message": str(error)}))
else:
    names = sorted(path.name for path in found.path.iterdir())
    print(json.dumps({"commit": found.commit, "revision": found.revision, "files": names}))
"""


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[LocalHub]:
    """A hub with one tiny checkpoint, beside files that nobody needs."""
    folder = build_checkpoint(tmp_path / "checkpoint", FAMILY["phi-3-mini-4k"])
    (folder / "pytorch_model.bin").write_bytes(b"a pickle")
    (folder / "modeling_phi3.py").write_text("raise SystemExit")
    with serve_hub(LocalHub({"owner/tiny": folder, "owner/gated": folder})) as hub:
        hub.gated.add("owner/gated")
        yield hub


def _resolve(
    run_python: RunPython, *arguments: str, cache: Path, **environment: str
) -> dict[str, object]:
    done = run_python("-c", RESOLVE, *arguments, HF_HOME=str(cache), **environment)
    assert done.returncode == 0, done.stderr[-2000:]
    answer: dict[str, object] = json.loads(done.stdout)
    return answer


def test_only_what_is_needed_is_downloaded_and_the_commit_is_known(
    hub: LocalHub, run_python: RunPython, tmp_path: Path
) -> None:
    """No pickle and no code is fetched, and the branch's commit is recorded."""
    found = _resolve(run_python, "owner/tiny", cache=tmp_path / "hf", HF_ENDPOINT=hub.url)
    assert found["commit"] == COMMIT
    assert found["revision"] == "main"
    asked = {path.rpartition("/")[2] for _, path, _ in hub.requests}
    assert "model.safetensors" in asked
    assert not asked & {"pytorch_model.bin", "modeling_phi3.py"}


def test_a_download_that_was_cut_off_resumes(
    hub: LocalHub, run_python: RunPython, tmp_path: Path
) -> None:
    """After a broken connection only the rest of the file is asked for."""
    weights = hub.models["owner/tiny"] / "model.safetensors"
    hub.break_after_bytes = weights.stat().st_size // 2
    _resolve(
        run_python, "owner/tiny", cache=tmp_path / "hf", HF_ENDPOINT=hub.url,
        HF_HUB_DOWNLOAD_CHUNK_SIZE="65536",
    )  # fmt: skip
    assert hub.break_after_bytes is None, "the connection did break"
    [local] = (tmp_path / "hf").rglob("snapshots/*/model.safetensors")
    assert local.read_bytes() == weights.read_bytes()


def test_a_downloaded_checkpoint_is_found_offline(
    hub: LocalHub, run_python: RunPython, tmp_path: Path
) -> None:
    """Once downloaded, a checkpoint needs no connection."""
    online = _resolve(run_python, "owner/tiny", cache=tmp_path / "hf", HF_ENDPOINT=hub.url)
    offline = _resolve(
        run_python, "owner/tiny", cache=tmp_path / "hf", HF_ENDPOINT=hub.url, HF_HUB_OFFLINE="1"
    )
    assert offline == online


@pytest.mark.parametrize(
    ("arguments", "environment", "said"),
    [
        (("owner/tiny", "v9"), {}, "has no revision='v9'"),
        (("owner/missing",), {}, "no such model on the hub"),
        (("owner/gated",), {}, "is gated"),
        (("owner/tiny",), {"HF_HUB_OFFLINE": "1"}, "not in the local cache"),
        (("owner/tiny",), {"HF_ENDPOINT": "http://127.0.0.1:9"}, "could not be downloaded"),
    ],
)
def test_each_failure_says_what_to_do(
    hub: LocalHub,
    run_python: RunPython,
    tmp_path: Path,
    arguments: tuple[str, ...],
    environment: dict[str, str],
    *,
    said: str,
) -> None:
    """Wrong revision, unknown, gated, offline and unreachable are told apart."""
    environment = {"HF_ENDPOINT": hub.url, **environment}
    answer = _resolve(run_python, *arguments, cache=tmp_path / "hf", **environment)
    assert answer["error"] == "ExportError"
    assert said in str(answer["message"])


def test_an_artifact_is_published_and_fetched(
    hub: LocalHub, run_python: RunPython, tmp_path: Path
) -> None:
    """What push_to_hub sends is what fetch_artifact gets, to the byte, with a model card."""
    environment = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "hf"), "HF_TOKEN": "hf_test"}
    done = run_python("-c", PUBLISH, hub.models["owner/tiny"], **environment)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.strip() == f"{hub.url}/me/tiny-ov/commit/{COMMIT}"
    hub.models["me/tiny-ov"] = tmp_path / "published"
    for name, content in hub.pushed.items():
        path = tmp_path / "published" / name.removeprefix("me/tiny-ov/")
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)
    exported = tmp_path / "exported"
    for path in exported.iterdir():
        assert (tmp_path / "published" / path.name).read_bytes() == path.read_bytes()
    card = (tmp_path / "published" / "README.md").read_text(encoding="utf-8")
    assert 'fetch_artifact("me/tiny-ov")' in card
    assert "| int4 | 128 |" in card
    done = run_python("-c", FETCH, "me/tiny-ov", **environment)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.split()[1:] == ["phi3", "4"]
    assert not done.stderr


def test_a_foreign_export_is_loaded_and_called_unknown(
    hub: LocalHub, run_python: RunPython, tmp_path: Path
) -> None:
    """A repository without our manifest loads, and what nobody knows is called unknown."""
    environment = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "hf"), "HF_TOKEN": "hf_test"}
    run_python("-c", PUBLISH.replace("print(", "0 and print("), hub.models["owner/tiny"])
    (tmp_path / "exported" / "phi3ov.json").unlink()
    hub.models["OpenVINO/tiny"] = tmp_path / "exported"
    done = run_python("-c", FETCH, "OpenVINO/tiny", **environment)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.split() == ["unknown", "phi3", "4"]
    assert "was not exported by phi3ov" in done.stderr
