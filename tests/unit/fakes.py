"""A scripted engine, small tokenizers of both kinds, and the family's official templates.

Nothing here looks at phi3ov's own rendering: the templates are rendered by jinja2, the
tokenizers are made by the tokenizers library, so both can be held against phi3ov.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from phi3ov.answer.token_stream import TokenRequest, TokenStream
from phi3ov.artifact.folder import Artifact, FileRecord, Manifest
from phi3ov.engine.serial import SerialEngine
from phi3ov.family import Phi3Config
from phi3ov.model import Phi3Model
from phi3ov.prompt.chat_tokenizer import ChatTokenizer
from phi3ov.prompt.formats import FORMATS, ChatFormat
from phi3ov.runtime.config import RuntimeConfig
from phi3ov.runtime.devices import DeviceChoice
from phi3ov.runtime.limits import RequestLimits
from phi3ov.runtime.rope import ContextChoice

# --------------------------------------------------------------------------- templates
# Copied from the checkpoints' tokenizer_config.json ("chat_template") on the hub.

_PHI3_USER_AND_ASSISTANT = (
    r"{% elif message['role'] == 'user' %}{{'<|user|>\n' + message['content'] + '<|end|>\n'}}"
    r"{% elif message['role'] == 'assistant' %}{{'<|assistant|>\n' + message['content'] + "
    r"'<|end|>\n'}}{% endif %}{% endfor %}"
    r"{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}"
)
PHI3_MINI = (
    r"{% for message in messages %}{% if message['role'] == 'system' %}"
    r"{{'<|system|>\n' + message['content'] + '<|end|>\n'}}" + _PHI3_USER_AND_ASSISTANT
)
"""microsoft/Phi-3-mini-4k-instruct."""
PHI3_5_MINI = (
    r"{% for message in messages %}{% if message['role'] == 'system' and message['content'] %}"
    r"{{'<|system|>\n' + message['content'] + '<|end|>\n'}}" + _PHI3_USER_AND_ASSISTANT
)
"""microsoft/Phi-3.5-mini-instruct."""
PHI3_MEDIUM = (
    r"{% for message in messages %}{% if (message['role'] == 'user') %}"
    r"{{'<|user|>' + '\n' + message['content'] + '<|end|>' + '\n' + '<|assistant|>' + '\n'}}"
    r"{% elif (message['role'] == 'assistant') %}{{message['content'] + '<|end|>' + '\n'}}"
    r"{% endif %}{% endfor %}"
)
"""microsoft/Phi-3-medium-4k-instruct."""
PHI4_MINI = (
    r"{% for message in messages %}"
    r"{% if message['role'] == 'system' and 'tools' in message and message['tools'] is not none %}"
    r"{{ '<|' + message['role'] + '|>' + message['content'] + '<|tool|>' + message['tools'] + "
    r"'<|/tool|>' + '<|end|>' }}"
    r"{% else %}{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}{% endif %}"
    r"{% endfor %}"
    r"{% if add_generation_prompt %}{{ '<|assistant|>' }}{% else %}{{ eos_token }}{% endif %}"
)
"""microsoft/Phi-4-mini-instruct."""
PHI4 = (
    r"{% for message in messages %}{% if (message['role'] == 'system') %}"
    r"{{'<|im_start|>system<|im_sep|>' + message['content'] + '<|im_end|>'}}"
    r"{% elif (message['role'] == 'user') %}"
    r"{{'<|im_start|>user<|im_sep|>' + message['content'] + '<|im_end|>'}}"
    r"{% elif (message['role'] == 'assistant') %}"
    r"{{'<|im_start|>assistant<|im_sep|>' + message['content'] + '<|im_end|>'}}{% endif %}"
    r"{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant<|im_sep|>' }}{% endif %}"
)
"""microsoft/phi-4."""
PHI3_MINI_FIRST = (
    r"{{ bos_token }}{% for message in messages %}{% if (message['role'] == 'user') %}"
    r"{{'<|user|>' + '\n' + message['content'] + '<|end|>' + '\n' + '<|assistant|>' + '\n'}}"
    r"{% elif (message['role'] == 'assistant') %}{{message['content'] + '<|end|>' + '\n'}}"
    r"{% endif %}{% endfor %}"
)
"""microsoft/Phi-3-mini-4k-instruct in its first revisions."""
TRIMMING = PHI3_MINI.replace("message['content']", "message['content'] | trim")
"""As fine-tunes have it: not official; white space of contents is lost."""
LLAMA_2 = (
    r"{% for message in messages %}{% if message['role'] == 'user' %}"
    r"{{ '[INST] ' + message['content'] + ' [/INST]' }}"
    r"{% else %}{{ ' ' + message['content'] + ' ' }}{% endif %}{% endfor %}"
)
"""Another family's shape."""


@functools.cache
def _compile(template: str) -> Any:
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(template)


def render_template(template: str, messages: Sequence[Mapping[str, str]]) -> str:
    """Render as transformers' ``apply_chat_template(tokenize=False)`` does."""
    rendered: str = _compile(template).render(
        messages=list(messages),
        add_generation_prompt=True,
        bos_token="<s>",
        eos_token="<|endoftext|>",
    )
    return rendered


# --------------------------------------------------------------------------- tokenizers
PHI3_CONTROL = (
    "<|endoftext|>",
    "<|assistant|>",
    "<|placeholder1|>",
    "<|placeholder2|>",
    "<|placeholder3|>",
    "<|placeholder4|>",
    "<|system|>",
    "<|end|>",
    "<|placeholder5|>",
    "<|placeholder6|>",
    "<|user|>",
)
PHI4_MINI_CONTROL = ("<|endoftext|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>")
PHI4_MINI_TOOLS = (
    "<|tool|>",
    "<|/tool|>",
    "<|tool_call|>",
    "<|/tool_call|>",
    "<|tool_response|>",
)
PHI4_CONTROL = (
    "<|endoftext|>",
    "<|fim_prefix|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|im_sep|>",
    "<|endofprompt|>",
)
_CL100K = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""How Phi-4's tokenizer cuts text before merging."""


def _training_lines() -> list[str]:
    source = Path(argparse.__file__).read_text(encoding="utf-8")[:60_000]
    rare = (
        "héllo wörld naïve 你好世界 你好 😀😃😄 😀😀 éàü \ufffd the user's system; assistant: end\n"
    )
    return [*source.splitlines(keepends=True), *([rare] * 20)]


def _added(token_id: int, content: str, *, special: bool, rstrip: bool) -> dict[str, Any]:
    return {
        "id": token_id,
        "content": content,
        "single_word": False,
        "lstrip": False,
        "rstrip": rstrip,
        "normalized": False,
        "special": special,
    }


@functools.cache
def llama_like(*, rstrip: bool = True, nfkc: bool = False) -> str:
    """Make a ``tokenizer.json`` built as Phi-3-mini's.

    Args:
        rstrip: Whether control tokens swallow the white space after them; early revisions
            of Phi-3-mini had it off.
        nfkc: Whether the normalizer begins with NFKC, as some fine-tunes' does.
    """
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.BpeTrainer(vocab_size=900, show_progress=False)
    trained.train_from_iterator(_training_lines(), trainer)
    learned = json.loads(trained.to_str())["model"]
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    pieces += [piece for piece in learned["vocab"] if piece not in pieces]
    vocab = {piece: index for index, piece in enumerate(pieces)}
    prepend = {"type": "Prepend", "prepend": "▁"}
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
    steps = [{"type": "NFKC"}] if nfkc else []
    added = [
        _added(0, "<unk>", special=True, rstrip=False),
        _added(1, "<s>", special=True, rstrip=False),
        _added(2, "</s>", special=False, rstrip=rstrip),
    ]
    for index, content in enumerate(PHI3_CONTROL, start=len(pieces)):
        swallows = rstrip and content != "<|endoftext|>"
        added.append(_added(index, content, special=True, rstrip=swallows))
    definition = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": {"type": "Sequence", "normalizers": [*steps, prepend, replace]},
        "pre_tokenizer": None,
        "post_processor": None,
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
                {"type": "Strip", "content": " ", "start": 1, "stop": 0},
            ],
        },
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": "<unk>",
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": True,
            "byte_fallback": True,
            "vocab": vocab,
            "merges": learned["merges"],
        },
    }
    return json.dumps(definition)


@functools.cache
def byte_level(control: tuple[str, ...], ordinary: tuple[str, ...] = (), *, rstrip: bool) -> str:
    """Make a ``tokenizer.json`` built as Phi-4's: byte-level BPE with ``control`` tokens.

    Args:
        control: Control tokens that are marked special.
        ordinary: Control tokens that are not, as Phi-4-mini's tool tokens.
        rstrip: Whether they swallow the white space after them.
    """
    trained = Tokenizer(models.BPE())
    trained.normalizer = normalizers.Sequence([])
    trained.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_CL100K), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    trained.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=1200,
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    trained.train_from_iterator(_training_lines(), trainer)
    definition = json.loads(trained.to_str())
    size = len(definition["model"]["vocab"])
    definition["added_tokens"] = [
        _added(size + index, content, special=content in control, rstrip=rstrip)
        for index, content in enumerate((*control, *ordinary))
    ]
    return json.dumps(definition)


@dataclass(frozen=True)
class Kit:
    """A tokenizer with the template that goes with it."""

    name: str
    make_tokenizer: Callable[[], str]
    template: str
    format_name: str
    system_messages: str

    @property
    def tokenizer_json(self) -> str:
        """The unmodified ``tokenizer.json``."""
        return self.make_tokenizer()

    @property
    def chat_format(self) -> ChatFormat:
        """The format by its name, found without `recognize_format`."""
        wanted = (self.format_name, self.system_messages)
        return next(one for one in FORMATS if (one.name, one.system_messages) == wanted)

    @property
    def chat(self) -> ChatTokenizer:
        """The tokenizer under test."""
        return _chat_tokenizer(self)

    @property
    def official(self) -> Any:
        """The unmodified tokenizer."""
        return _official_tokenizer(self)


@functools.cache
def _chat_tokenizer(kit: Kit) -> ChatTokenizer:
    return ChatTokenizer(kit.tokenizer_json, kit.chat_format)


@functools.cache
def _official_tokenizer(kit: Kit) -> Any:
    return Tokenizer.from_str(kit.tokenizer_json)


def _phi4_mini_json() -> str:
    return byte_level(PHI4_MINI_CONTROL, PHI4_MINI_TOOLS, rstrip=False)


def _reference_json() -> str:
    return byte_level(PHI4_MINI_CONTROL, rstrip=True)


MINI = Kit("phi3-mini", llama_like, PHI3_MINI, "phi3", "kept")
MINI_EARLY = Kit("phi3-mini-early", lambda: llama_like(rstrip=False), PHI3_MINI, "phi3", "kept")
MINI_FIRST = Kit(
    "phi3-mini-first",
    lambda: llama_like(rstrip=False),
    PHI3_MINI_FIRST,
    "phi3 after <s>",
    "dropped",
)
MINI_NFKC = Kit("phi3-mini-nfkc", lambda: llama_like(nfkc=True), PHI3_MINI, "phi3", "kept")
PHI3_5 = Kit("phi3.5-mini", llama_like, PHI3_5_MINI, "phi3", "kept unless empty")
MEDIUM = Kit("phi3-medium", llama_like, PHI3_MEDIUM, "phi3", "dropped")
PHI4_MINI_KIT = Kit("phi4-mini", _phi4_mini_json, PHI4_MINI, "phi4-mini", "kept")
PHI4_KIT = Kit("phi4", lambda: byte_level(PHI4_CONTROL, rstrip=False), PHI4, "phi4", "kept")
REFERENCE = Kit("reference", _reference_json, PHI3_MINI, "phi3", "kept")
KITS = (
    MINI,
    MINI_EARLY,
    MINI_FIRST,
    MINI_NFKC,
    PHI3_5,
    MEDIUM,
    PHI4_MINI_KIT,
    PHI4_KIT,
    REFERENCE,
)


# --------------------------------------------------------------------------- engine
@dataclass(frozen=True)
class Answer:
    """What the fake engine does for one request.

    Attributes:
        token_ids: Put into the stream one by one, up to the request's limit or a stop id.
        error: Raised after them.
        endless: After them, wait until the request is cancelled.
        cached_tokens: What the stream reports.
        chunk_tokens: How many ids come at once.
        gate: Waited for before the first id.
    """

    token_ids: Sequence[int] = ()
    error: BaseException | None = None
    endless: bool = False
    cached_tokens: int = 0
    chunk_tokens: int = 1
    gate: threading.Event | None = None


@dataclass
class _Script:
    """What the engine's thread needs; it must not hold the engine itself."""

    answer: Callable[[TokenRequest], Answer]
    requests: list[TokenRequest] = field(default_factory=list)

    def run(self, stream: TokenStream) -> None:
        request = stream.request
        self.requests.append(request)
        answer = self.answer(request)
        stream.cached_tokens = answer.cached_tokens
        while answer.gate is not None and not answer.gate.is_set() and not stream.cancelled:
            time.sleep(0.001)
        remaining = iter(_until_stop(request, answer.token_ids))
        while chunk := list(itertools.islice(remaining, answer.chunk_tokens)):
            if stream.cancelled:
                return
            stream.put(chunk)
        while answer.endless and not stream.cancelled:
            time.sleep(0.001)
        if answer.error is not None:
            raise answer.error


def _until_stop(request: TokenRequest, token_ids: Iterable[int]) -> Iterable[int]:
    for token_id in itertools.islice(token_ids, request.max_new_tokens):
        yield token_id
        if token_id in request.stop_ids:
            return


class FakeEngine(SerialEngine):
    """Answers from a script instead of a model, on the real engine's thread.

    Attributes:
        requests: What it was asked, in the order in which it began to answer.
    """

    def __init__(
        self,
        answers: Iterable[Answer] | Callable[[TokenRequest], Answer],
        limits: RequestLimits = RequestLimits(),  # noqa: B008 - immutable
    ) -> None:
        """Take the answers in turn, or a function that makes one for each request."""
        if callable(answers):
            script = _Script(answers)
        else:
            queue = iter(answers)
            script = _Script(lambda _request: next(queue))
        self.requests = script.requests
        super().__init__(script.run, name="fake", limits=limits)


def make_artifact(
    path: Path = Path("no-such-folder"), checksums: Mapping[str, str] | None = None
) -> Artifact:
    """Return an artifact that was never read from a disk; ``checksums`` are its manifest's."""
    manifest = Manifest(
        source="fake",
        revision=None,
        commit=None,
        source_bytes=1,
        recipe={"mode": "fp16"},
        weights=(),
        chat_format="phi3",
        system_messages="kept",
        versions={},
        files={
            name: FileRecord(size_bytes=1, sha256=checksum)
            for name, checksum in (checksums or {}).items()
        },
    )
    return Artifact(path=path, manifest=manifest, config=make_config(vocab_size=2048))


def make_config(**changes: Any) -> Phi3Config:
    """Return the dimensions that a small ``config.json`` with some fields changed describes."""
    return Phi3Config.parse(SMALL_CONFIG | changes)


SMALL_CONFIG: dict[str, Any] = {
    "model_type": "phi3",
    "hidden_size": 64,
    "intermediate_size": 128,
    "max_position_embeddings": 4096,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
}


SMALL_MIXTURE: dict[str, Any] = SMALL_CONFIG | {
    "model_type": "phimoe",
    "attention_bias": True,
    "intermediate_size": 32,
    "lm_head_bias": True,
    "num_experts_per_tok": 2,
    "num_key_value_heads": 2,
    "num_local_experts": 4,
}


def make_model(
    engine: SerialEngine,
    *,
    kit: Kit = MINI,
    context_tokens: int = 4096,
    artifact: Artifact | None = None,
) -> Phi3Model:
    """Put a model together around a fake engine."""
    return Phi3Model(
        artifact=make_artifact() if artifact is None else artifact,
        device=DeviceChoice(requested=("CPU",), selected="CPU", full_name="fake", reason="fake"),
        context=ContextChoice(tokens=context_tokens, factors="none"),
        tokenizer=kit.chat,
        engine=engine,
        config=RuntimeConfig(),
    )


def answer_ids(text: str, *, kit: Kit = MINI, stop: str | None = "<|end|>") -> tuple[int, ...]:
    """Return the ids of an answer's text, with the token that ends it."""
    ids = tuple(kit.chat.encode_text(text))
    return ids if stop is None else (*ids, kit.official.token_to_id(stop))
