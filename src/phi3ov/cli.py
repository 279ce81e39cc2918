"""The command ``phi3ov``: a thin layer of arguments and printing over the library.

Results go to stdout, everything else to stderr. Exit codes: 0 success, 1 an error that the
library names (one line, no traceback unless ``--debug``), 2 wrong usage, 130 Ctrl-C.
"""

from __future__ import annotations

import argparse
import json
import logging
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from . import __version__
from .artifact import Artifact
from .engine import EngineName
from .errors import OptionError, Phi3OVError
from .rope import has_longrope, original_context
from .runtime import RuntimeConfig, list_devices

if TYPE_CHECKING:
    from .chat import Phi3Chat
    from .generation import Reply
    from .stream import ReplyStream

_SEED_MODEL = "microsoft/Phi-3-mini-4k-instruct"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code.

    Args:
        arguments: The command line without the program's name; None takes ``sys.argv``.
    """
    parser = _build_parser()
    options = parser.parse_args(arguments)
    if options.debug:
        logging.basicConfig(level=logging.DEBUG)
    run: Callable[[argparse.Namespace], None] = options.run
    try:
        run(options)
    except Phi3OVError as error:
        if options.debug:
            raise
        print(f"phi3ov: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(file=sys.stderr)
        return 130
    return 0


def _build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="phi3ov",
        description="Export Phi-3 checkpoints to OpenVINO and chat with them, locally.",
        epilog=f"Example: phi3ov export {_SEED_MODEL} phi3-int4 && phi3ov chat phi3-int4",
    )
    parser.add_argument("--version", action="version", version=f"phi3ov {__version__}")
    parser.add_argument("--debug", action="store_true", help="log everything and show tracebacks")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for add in (
        _add_export,
        _add_chat,
        _add_info,
        _add_verify,
        _add_quality,
        _add_devices,
        _add_reference,
    ):
        add(commands)
    return parser


def _add_export(commands: Any) -> None:
    parser = commands.add_parser("export", help="checkpoint to an exported folder")
    parser.add_argument("source", help="a checkpoint folder or a hub id")
    parser.add_argument("output", help="the folder to make")
    parser.add_argument("--precision", choices=("int4", "int8", "fp16"), default="int4")
    parser.add_argument(
        "--preset", choices=("accurate", "small", "npu"), help="int4: a named recipe to start from"
    )
    parser.add_argument(
        "--calibrate", type=Path, action="append", help="accurate: a text file; repeat for more"
    )
    parser.add_argument("--group-size", type=int, help="int4: values per scale (128)")
    parser.add_argument("--ratio", type=float, help="int4: share of int4 parameters (0.6)")
    parser.add_argument("--asymmetric", action="store_true", help="int4: with zero points")
    parser.add_argument(
        "--adjust", action="store_true", help="int4: smaller groups where the size does not divide"
    )
    parser.add_argument("--revision", help="branch, tag or commit of a hub id")
    parser.add_argument("--overwrite", action="store_true", help="replace an exported folder")
    parser.add_argument("--quiet", action="store_true", help="print no progress")
    parser.set_defaults(run=_export, parser=parser)


def _export(options: argparse.Namespace) -> None:
    from .compression import Compression, Int4Compression
    from .exporter import export_model

    texts = tuple(_read_text(path) for path in options.calibrate or ())
    chosen: dict[str, Any] = {
        "texts": texts or None,
        "group_size": options.group_size,
        "ratio": options.ratio,
        "symmetric": False if options.asymmetric else None,
        "on_indivisible": "adjust" if options.adjust else None,
    }
    chosen = {name: value for name, value in chosen.items() if value is not None}
    compression: Compression = options.precision
    if options.precision == "int4":
        start = getattr(Int4Compression, options.preset)() if options.preset else Int4Compression()
        compression = replace(start, **chosen)
    elif chosen or options.preset:
        names = ", ".join([*chosen, *(["preset"] if options.preset else [])])
        options.parser.error(f"{names} go with --precision int4 only")
    report = export_model(
        options.source,
        options.output,
        compression=compression,
        revision=options.revision,
        overwrite=options.overwrite,
        progress=not options.quiet,
    )
    print(
        f"{report.artifact.path}: {_gigabytes(report.source_bytes)} of weights became "
        f"{_gigabytes(report.artifact_bytes)} ({report.artifact.bits_per_weight:.2f} bits per "
        "weight)"
    )


def _add_chat(commands: Any) -> None:
    parser = commands.add_parser("chat", help="talk to an exported model")
    parser.add_argument("model", help="an exported folder")
    parser.add_argument("message", nargs="?", help="answer this and end; without it: interactive")
    parser.add_argument("--system", help="the system message")
    parser.add_argument("--device", action="append", help="OpenVINO device; repeat for preferences")
    parser.add_argument("--engine", choices=get_args(EngineName), default="pipeline")
    parser.add_argument("--context-tokens", type=int, help="tokens of prompt and answer together")
    parser.add_argument("--max-new-tokens", type=int, default=1024)
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument("--threads", type=int)
    parser.set_defaults(run=_chat)


def _chat(options: argparse.Namespace) -> None:
    from .chat import Phi3Chat
    from .generation import GenerationOptions
    from .model import load_model

    model = load_model(
        options.model,
        device=tuple(options.device or ("GPU", "CPU")),
        config=RuntimeConfig(threads=options.threads),
        engine=options.engine,
        context_tokens=options.context_tokens,
    )
    with model:
        chat = Phi3Chat(
            model,
            system=options.system,
            options=GenerationOptions(
                max_new_tokens=options.max_new_tokens,
                temperature=options.temperature,
                on_overflow="drop_oldest",
            ),
        )
        if options.message is not None:
            _answer(chat, options.message)
            return
        print(f"{model.device.selected}: {model.device.reason}", file=sys.stderr)
        print("Ctrl-C stops an answer, /reset forgets, /exit or Ctrl-D ends.", file=sys.stderr)
        _converse(chat)


def _converse(chat: Phi3Chat) -> None:
    """Read messages and answer them until the input ends."""
    while True:
        try:
            message = input("\nyou> ").strip()
        except EOFError:
            return
        if message == "/exit":
            return
        if message == "/reset":
            chat.reset()
            print("(forgotten)", file=sys.stderr)
        elif message:
            try:
                reply = _answer(chat, message)
            except Phi3OVError as error:
                print(f"phi3ov: {error}", file=sys.stderr)
                continue
            print(_describe_reply(reply), file=sys.stderr)


def _answer(chat: Phi3Chat, message: str) -> Reply:
    """Stream one answer to stdout; Ctrl-C ends the answer and keeps what there is of it."""
    stream = chat.stream(message)
    with _ctrl_c_cancels(stream):
        for piece in stream:
            print(piece, end="", flush=True)
    print()
    return stream.reply


@contextmanager
def _ctrl_c_cancels(stream: ReplyStream) -> Iterator[None]:
    before = signal.signal(signal.SIGINT, lambda *_: stream.cancel(keep=True))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _describe_reply(reply: Reply) -> str:
    dropped = f", {reply.dropped_turns} oldest turns dropped" if reply.dropped_turns else ""
    return (
        f"({reply.finish_reason}; {reply.usage.prompt_tokens} tokens in, "
        f"{reply.usage.cached_tokens} of them cached, {reply.usage.completion_tokens} out; "
        f"first token after {reply.timings.first_token_seconds:.2f} s, "
        f"{reply.timings.tokens_per_second:.1f} tokens/s{dropped})"
    )


def _add_info(commands: Any) -> None:
    parser = commands.add_parser("info", help="what an exported folder holds")
    parser.add_argument("model", help="an exported folder")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=_info)


def _info(options: argparse.Namespace) -> None:
    facts = _gather_info(Artifact.open(options.model))
    if options.json:
        print(json.dumps(facts, indent=2))
        return
    weights = facts.pop("weights")
    for name, value in facts.items():
        print(f"{name.replace('_', ' '):18} {_flat(value)}")
    print(f"\n{'weights':10} {'group':>6} {'zero points':>12} {'layers':>7} {'parameters':>14}")
    for one in weights:
        group = one["group_size"] or "row"
        zero_points = "no" if one["symmetric"] else "yes"
        if one["precision"] not in ("int4", "int8"):
            group = zero_points = "-"
        print(
            f"{one['precision']:10} {group!s:>6} {zero_points:>12} {one['layers']:>7} "
            f"{one['parameters']:>14,}"
        )


def _gather_info(artifact: Artifact) -> dict[str, Any]:
    from .prompt import ChatTokenizer

    tokenizer = ChatTokenizer.from_folder(artifact.path, artifact.chat_format)
    manifest = artifact.manifest
    return {
        "source": manifest.source,
        "revision": manifest.revision,
        "commit": manifest.commit,
        "recipe": dict(manifest.recipe),
        "bits_per_weight": round(artifact.bits_per_weight, 3),
        "source_bytes": manifest.source_bytes,
        "artifact_bytes": artifact.size_bytes,
        "chat_format": manifest.chat_format,
        "system_messages": manifest.system_messages,
        "stop_tokens": {str(token_id): text for token_id, text in tokenizer.stop_tokens.items()},
        "context_tokens": original_context(artifact.config),
        "most_context_tokens": artifact.config["max_position_embeddings"],
        "longrope": _describe_longrope(artifact),
        "versions": dict(manifest.versions),
        "weights": [asdict(one) for one in manifest.weights],
    }


def _describe_longrope(artifact: Artifact) -> str:
    if not has_longrope(artifact.config):
        return "no"
    return (
        f"short factors up to {original_context(artifact.config)} context tokens, long factors "
        "above (load_model(context_tokens=...))"
    )


def _add_verify(commands: Any) -> None:
    parser = commands.add_parser("verify", help="compare an exported folder with its checksums")
    parser.add_argument("model", help="an exported folder")
    parser.set_defaults(run=_verify)


def _verify(options: argparse.Namespace) -> None:
    artifact = Artifact.open(options.model)
    artifact.verify()
    print(f"{artifact.path}: all {len(artifact.manifest.files)} files are as they were exported")


def _add_quality(commands: Any) -> None:
    parser = commands.add_parser("quality", help="how much an export lost against its source")
    parser.add_argument("source", help="the checkpoint: a folder or a hub id")
    parser.add_argument("artifact", help="the folder exported from it")
    parser.add_argument("--text", type=Path, help="read this file; without it: Python's manual")
    parser.add_argument("--window-tokens", type=int, default=512)
    parser.add_argument("--max-tokens", type=int, default=8192)
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--svg", type=Path, help="draw the divergence's histogram into this file")
    parser.add_argument("--quiet", action="store_true", help="print no progress")
    parser.set_defaults(run=_quality)


def _quality(options: argparse.Namespace) -> None:
    from .quality import compare
    from .quality_plot import draw_histogram

    report = compare(
        options.source,
        options.artifact,
        text=None if options.text is None else _read_text(options.text),
        window_tokens=options.window_tokens,
        max_tokens=options.max_tokens,
        progress=not options.quiet,
    )
    if options.svg is not None:
        _write_text(options.svg, draw_histogram(report))
    print(json.dumps(report.to_dict(), indent=2) if options.json else report)


def _write_text(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8", newline="\n")
    except OSError as error:
        raise OptionError(f"{path} cannot be written: {error}.") from error


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise OptionError(f"{path} cannot be read as UTF-8 text: {error}.") from error


def _add_devices(commands: Any) -> None:
    parser = commands.add_parser("devices", help="the OpenVINO devices of this machine")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=_devices)


def _devices(options: argparse.Namespace) -> None:
    devices = list_devices()
    if options.json:
        print(json.dumps(devices, indent=2))
        return
    for name, full_name in devices.items():
        print(f"{name:8} {full_name}")


def _add_reference(commands: Any) -> None:
    parser = commands.add_parser("reference", help="build the small reference checkpoint, offline")
    parser.add_argument("output", type=Path, help="the folder to make")
    parser.add_argument("--overwrite", action="store_true", help="replace a reference checkpoint")
    parser.set_defaults(run=_reference)


def _reference(options: argparse.Namespace) -> None:
    from .reference import build_reference

    print(build_reference(options.output, overwrite=options.overwrite))


def _flat(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {one}" for name, one in value.items())
    return "-" if value is None else str(value)


def _gigabytes(size_bytes: int) -> str:
    return f"{size_bytes / 1e9:.2f} GB"
