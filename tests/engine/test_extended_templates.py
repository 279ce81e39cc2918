"""A tiny model whose template opens the thoughts itself, on every engine."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import get_args

import pytest
from transformers import AutoTokenizer

import phi3ov
from phi3ov import Message, Phi3Chat
from phi3ov.engine.protocol import EngineName
from phi3ov.prompt.chat_tokenizer import ChatTokenizer
from phi3ov.prompt.extension import Extension
from phi3ov.prompt.formats import FORMATS

from ..conftest import MadeOnce
from .checkpoints import MINI_REASONING, build_checkpoint
from .conftest import LoadModel
from .test_reasoning import CONTEXT, QUESTION, SHAPE, train

EXTENSION = Extension(answer_start="<think>\n", answer_end="<|endoftext|>")
ROW = replace(
    MINI_REASONING,
    template=MINI_REASONING.template.replace(
        "<|end|>{% endif %}{% endfor %}{% if add_generation_prompt %}<|assistant|>",
        "<|end|>{% if message['role'] == 'assistant' %}<|endoftext|>{% endif %}{% endif %}"
        "{% endfor %}{% if add_generation_prompt %}<|assistant|>{{ '<think>\\n' }}",
    ),
)
FORMAT = next(each for each in FORMATS if each.name == "phi4-mini-reasoning").extended(EXTENSION)
SPOKEN = "one two\n</think>\n\nfour"


@pytest.fixture(scope="session")
def artifact(made_once: MadeOnce) -> Path:
    """Train the model on one answer and export it, once."""

    def build(folder: Path) -> None:
        build_checkpoint(
            folder,
            ROW,
            dtype="float32",
            hidden_size=64,
            intermediate_size=128,
            sliding_window=None,
            max_position_embeddings=CONTEXT,
            original_max_position_embeddings=CONTEXT,
        )
        tokenizer = ChatTokenizer.from_folder(folder, FORMAT)
        end = tokenizer.control["<|end|>"]["id"]
        train(folder, tokenizer, [([*tokenizer.encode_text(SPOKEN), end], 0)])

    def export(folder: Path) -> None:
        checkpoint = made_once("opened-thoughts", build)
        phi3ov.export_model(checkpoint, folder, compression="fp16", progress=False)

    return made_once("opened-thoughts-fp16", export)


@pytest.mark.parametrize("engine", get_args(EngineName))
def test_every_engine_starts_the_answer_within_the_thoughts(
    artifact: Path, load: LoadModel, engine: EngineName
) -> None:
    """The prompt is transformers' own, and thoughts and answer come apart."""
    model = load(artifact, engine=engine)
    chat = Phi3Chat(model)
    reply = chat.generate("?", max_new_tokens=100)
    assert (reply.text, reply.reasoning, reply.finish_reason) == ("four", "one two\n", "stop")
    said = [{"role": "user", "content": "?"}]
    official = AutoTokenizer.from_pretrained(artifact)
    expected = official.apply_chat_template(
        said, add_generation_prompt=True, tokenize=True, return_dict=False
    )
    assert list(reply.prompt_ids) == expected
    said += [{"role": "assistant", "content": "four"}, {"role": "user", "content": "!"}]
    expected = official.apply_chat_template(
        said, add_generation_prompt=True, tokenize=True, return_dict=False
    )
    more = chat.generate("!", max_new_tokens=1)
    assert list(more.prompt_ids) == expected


@pytest.mark.parametrize("engine", ["pipeline", "worker"])
def test_a_shape_begins_behind_the_thoughts(
    artifact: Path, load: LoadModel, engine: EngineName
) -> None:
    """The grammar applies behind the tag that closes them."""
    reply = load(artifact, engine=engine).generate(QUESTION, json_schema=SHAPE, max_new_tokens=100)
    assert (reply.reasoning, reply.parsed in ({"n": 2}, {"n": 3})) == ("one two\n", True)


def test_the_manifest_and_the_folder_itself_say_the_same(
    artifact: Path, load: LoadModel, tmp_path: Path
) -> None:
    """Without a manifest, openvino-genai renders the template, and the texts are found again."""
    values = json.loads((artifact / "phi3ov.json").read_text(encoding="utf-8"))
    assert values["chat_extension"] == EXTENSION.to_values()
    foreign = tmp_path / "foreign"
    shutil.copytree(artifact, foreign)
    (foreign / "phi3ov.json").unlink()
    model = load(foreign)
    assert model.tokenizer.format == FORMAT
    assert model.generate([Message("user", "?")], max_new_tokens=100).text == "four"
