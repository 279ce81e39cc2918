"""What is saved goes on in another process as if nothing had happened."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest

import phi3ov

from .conftest import RunPython

GO_ON = """
import json, sys
import phi3ov
with phi3ov.load_model(sys.argv[1]) as model:
    chat = phi3ov.Phi3Chat.restore(model, sys.argv[2])
    print(json.dumps(chat.generate(sys.argv[3]).token_ids))
"""


START_BEHIND = """
import json, sys
from dataclasses import replace
from pathlib import Path
import phi3ov
config = replace(phi3ov.RuntimeConfig.exact(), kv_cache_precision=sys.argv[5])
with phi3ov.load_model(sys.argv[1], device="CPU", engine="paged", config=config) as model:
    tokens = model.restore_kv_cache(sys.argv[2])
    chat = phi3ov.Phi3Chat(model, system=Path(sys.argv[3]).read_text(encoding="utf-8"))
    reply = chat.generate(sys.argv[4], max_new_tokens=48)
    print(json.dumps([tokens, reply.usage.cached_tokens, reply.token_ids]))
"""


def test_a_chat_goes_on_in_another_process(
    reference_export: Path, run_python: RunPython, tmp_path: Path
) -> None:
    """The restored chat gives the greedy continuation of the one that was saved, to the token."""
    question = "Name a city in the north of that country."
    options = phi3ov.GenerationOptions(max_new_tokens=48)
    with phi3ov.load_model(reference_export) as model:
        chat = phi3ov.Phi3Chat(model, system="You are a helpful AI assistant.", options=options)
        chat.generate("What is the capital of France?")
        chat.save(tmp_path / "chat.json")
        expected = chat.generate(question).token_ids
    script = tmp_path / "go_on.py"
    script.write_text(GO_ON, encoding="utf-8")
    done = run_python(script, reference_export, tmp_path / "chat.json", question)
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads(done.stdout) == list(expected)


@pytest.mark.parametrize("precision", ["f16", "f32"])
def test_a_prefix_is_restored_in_another_process(
    precision: Literal["f16", "f32"], reference_export: Path, run_python: RunPython, tmp_path: Path
) -> None:
    """Behind a restored prefix the greedy tokens are those behind the same prefix, read again."""
    question = "What is the capital of France?"
    system = "You are a helpful AI assistant. " + "The green button starts the machine. " * 30
    config = replace(phi3ov.RuntimeConfig.exact(), kv_cache_precision=precision)
    with phi3ov.load_model(reference_export, device="CPU", engine="paged", config=config) as model:
        expected = phi3ov.Phi3Chat(model, system=system).generate(question, max_new_tokens=48)
        assert expected.usage.cached_tokens == 0
        prefix = phi3ov.Phi3Chat(model, system=system)
        prefix.save_kv_cache(tmp_path / "prefix.kv")
    (tmp_path / "system.txt").write_text(system, encoding="utf-8")
    script = tmp_path / "start_behind.py"
    script.write_text(START_BEHIND, encoding="utf-8")
    done = run_python(
        script,
        reference_export,
        tmp_path / "prefix.kv",
        tmp_path / "system.txt",
        question,
        precision,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    known = len(prefix.token_ids)
    assert known > 200
    assert json.loads(done.stdout) == [known, known, list(expected.token_ids)]
