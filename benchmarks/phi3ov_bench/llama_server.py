"""llama.cpp's server as a peer: llama-cpp-python's, on the benchmark's own GGUF with a tokenizer.

The files that `models` makes hold no tokenizer, because the other cases give token ids. A server
takes text, so `with_tokenizer` writes a copy that has one.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .peers import install, python_of

ENVIRONMENT = "llama-server"
_NORMAL, _CONTROL, _UNUSED = 1, 3, 5


def with_tokenizer(model: Path, checkpoint: Path, target: Path) -> Path:
    """Write a copy of a GGUF with the tokenizer and the chat template of a checkpoint.

    Args:
        model: The GGUF.
        checkpoint: A folder whose ``tokenizer.json`` is byte-level BPE, such as the reference's.
        target: The copy; kept if it is there.
    """
    if target.exists():
        return target
    import gguf
    from gguf.scripts.gguf_new_metadata import MetadataDetails, copy_with_new_metadata

    reader = gguf.GGUFReader(model)
    architecture = str(reader.fields["general.architecture"].contents())
    size = int(reader.fields[f"{architecture}.vocab_size"].contents())
    tokens, kinds, merges, ending = _read_tokenizer(checkpoint, size)
    template = (checkpoint / "chat_template.jinja").read_text(encoding="utf-8")
    kind = gguf.GGUFValueType
    details = {
        # llama.cpp takes a name with "phi3" in it for a vocabulary with "</s>", which is not here
        "general.name": MetadataDetails(kind.STRING, "benchmark"),
        "tokenizer.ggml.model": MetadataDetails(kind.STRING, "gpt2"),
        "tokenizer.ggml.pre": MetadataDetails(kind.STRING, "smollm"),
        "tokenizer.ggml.eos_token_id": MetadataDetails(kind.UINT32, ending),
        "tokenizer.chat_template": MetadataDetails(kind.STRING, template),
    }
    partial = target.with_suffix(".partial")
    writer = gguf.GGUFWriter(partial, architecture)
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    writer.add_token_merges(merges)
    copy_with_new_metadata(reader, writer, details, [])
    os.replace(partial, target)
    return target


def _read_tokenizer(checkpoint: Path, size: int) -> tuple[list[str], list[int], list[str], int]:
    """Return every token's text and kind, the merges, and the id that ends an answer."""
    definition = json.loads((checkpoint / "tokenizer.json").read_text(encoding="utf-8"))
    settings = json.loads((checkpoint / "generation_config.json").read_text(encoding="utf-8"))
    tokens = [f"[unused {number}]" for number in range(size)]
    kinds = [_UNUSED] * size
    for text, number in definition["model"]["vocab"].items():
        tokens[number], kinds[number] = text, _NORMAL
    for token in definition["added_tokens"]:
        tokens[token["id"]], kinds[token["id"]] = token["content"], _CONTROL
    ending = settings["eos_token_id"]
    last = ending if isinstance(ending, int) else ending[-1]
    return tokens, kinds, [" ".join(pair) for pair in definition["model"]["merges"]], last


@contextmanager
def serving(model: Path, *, threads: int, context_tokens: int, log: Path) -> Iterator[str]:
    """Install and run the server on a free port; give its address once it answers.

    It answers one request after the other: `interrupt_requests` would otherwise end an answer
    when the next request comes.
    """
    install(ENVIRONMENT)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options: dict[str, Any] = {
        "model": model,
        "host": "127.0.0.1",
        "port": port,
        "n_ctx": context_tokens,
        "n_threads": threads,
        "n_threads_batch": threads,
        "interrupt_requests": False,
    }
    command = [str(python_of(ENVIRONMENT)), "-m", "llama_cpp.server"]
    for name, value in options.items():
        command += [f"--{name}", str(value)]
    url = f"http://127.0.0.1:{port}"
    with log.open("w", encoding="utf-8") as said:
        process = subprocess.Popen(command, stdout=said, stderr=subprocess.STDOUT)
    try:
        deadline = time.monotonic() + 120
        while not _answers(url):
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(log.read_text(encoding="utf-8")[-2000:])
            time.sleep(0.5)
        yield url
    finally:
        process.terminate()
        process.wait()


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/v1/models", timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False
