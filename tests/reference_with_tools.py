"""The reference checkpoint with Phi-4-mini's tool format, for tests of guided calls on real text.

SmolLM2 was not trained to call tools, and five of its control tokens are never used. They get the
names of Phi-4-mini's tool tokens here, and the checkpoint gets Phi-4-mini's template. Which tool
is called with which types of arguments, a grammar enforces; the values are the model's.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

TOOL_TOKENS = {
    "<repo_name>": "<|tool|>",
    "<reponame>": "<|/tool|>",
    "<file_sep>": "<|tool_call|>",
    "<filename>": "<|/tool_call|>",
    "<gh_stars>": "<|tool_response|>",
}
TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'system' and 'tools' in message and message['tools'] is not none %}"
    "{{ '<|' + message['role'] + '|>' + message['content'] + '<|tool|>' + message['tools'] + "
    "'<|/tool|>' + '<|end|>' }}"
    "{% else %}{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% else %}{{ eos_token }}{% endif %}"
)


def add_tools(checkpoint: Path, folder: Path) -> None:
    """Copy the reference checkpoint to ``folder`` and give the copy the tool format."""
    shutil.copytree(checkpoint, folder)
    tokenizer = folder / "tokenizer.json"
    text = tokenizer.read_text(encoding="utf-8")
    for unused, name in TOOL_TOKENS.items():
        assert text.count(json.dumps(unused)) == 2, f"{unused} stands in the vocabulary and above"
        text = text.replace(json.dumps(unused), json.dumps(name))
    tokenizer.write_text(text, encoding="utf-8")
    config = folder / "tokenizer_config.json"
    fields = json.loads(config.read_text(encoding="utf-8"))
    config.write_text(json.dumps(fields | {"chat_template": TEMPLATE}), encoding="utf-8")
    (folder / "chat_template.jinja").write_text(TEMPLATE, encoding="utf-8")
