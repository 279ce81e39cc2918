"""``phi3ov chat``: one answer, or a conversation."""

from __future__ import annotations

import argparse
import json
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import OptionError, Phi3OVError
from ..runtime.speculation import DraftModel, PromptLookup, Speculation
from .arguments import add_json, add_model, gigabytes_to_bytes, loading_options
from .printing import bold, dim, print_json

if TYPE_CHECKING:
    from ..answer.reply import LoadTimings, Reply
    from ..answer.stream import ReplyStream
    from ..chat import Phi3Chat
    from . import Commands

EXAMPLE = 'phi3ov chat phi3-int4 "What is the capital of France?"'


def add(commands: Commands) -> None:
    """Declare the command and its arguments."""
    parser = commands.add_parser("chat", help="talk to an exported model")
    add_model(parser, engine="pipeline")
    parser.add_argument("message", nargs="?", help="answer this and end; without it: interactive")
    parser.add_argument("--system", help="the system message")
    parser.add_argument("--cache-gb", type=float, help="the most GB that the KV cache takes")
    proposer = parser.add_mutually_exclusive_group()
    proposer.add_argument(
        "--prompt-lookup", action="store_true", help="several tokens per pass, from the prompt"
    )
    proposer.add_argument("--draft", help="several tokens per pass, from this smaller model")
    shape = parser.add_mutually_exclusive_group()
    shape.add_argument("--json-schema", type=Path, help="a file: the answer is JSON that fits it")
    shape.add_argument("--regex", help="the answer matches this regular expression")
    shape.add_argument("--choice", action="append", help="the answer is one of these; repeat")
    add_json(parser, "the answer to MESSAGE, with its figures")
    parser.set_defaults(run=run, parser=parser)


def _read_schema(path: Path | None) -> Any:
    """Return the JSON in a file; None without one."""
    if path is None:
        return None
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise OptionError(f"--json-schema {path} cannot be read: {error}") from error


def run(options: argparse.Namespace) -> None:
    """Run the command."""
    from ..answer.options import GenerationOptions
    from ..chat import Phi3Chat
    from ..loading import load_model

    if options.json and options.message is None:
        options.parser.error("--json goes with a MESSAGE only")
    answer = GenerationOptions(  # first: what is wrong here is known before the model is loaded
        max_new_tokens=options.max_new_tokens,
        temperature=options.temperature,
        on_overflow="drop_oldest",
        json_schema=_read_schema(options.json_schema),
        regex=options.regex,
        choices=tuple(options.choice) if options.choice else None,
    )
    model = load_model(
        options.model,
        cache_bytes=gigabytes_to_bytes("--cache-gb", options.cache_gb),
        speculation=_choose_speculation(options),
        **loading_options(options),
    )
    with model:
        chat = Phi3Chat(model, system=options.system, options=answer)
        if options.message is not None:
            _answer_once(chat, options.message, as_json=options.json)
            return
        print(f"{bold(model.device.selected, sys.stderr)}: {model.device.reason}", file=sys.stderr)
        print(dim(_describe_loading(model.load_timings), sys.stderr), file=sys.stderr)
        help_line = "Ctrl-C stops an answer, /reset forgets, /exit or Ctrl-D ends."
        print(dim(help_line, sys.stderr), file=sys.stderr)
        _converse(chat)


def _choose_speculation(options: argparse.Namespace) -> Speculation | None:
    if options.prompt_lookup:
        return PromptLookup()
    return None if options.draft is None else DraftModel(path=options.draft)


def _converse(chat: Phi3Chat) -> None:
    """Read messages and answer them until the input ends."""
    while True:
        try:
            message = _read_message().strip()
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
            print(dim(_describe_reply(reply), sys.stderr), file=sys.stderr)


def _read_message() -> str:
    """Ask for a message; where stdout is not for people, the question goes to stderr."""
    question = "\nyou> "
    if sys.stdin.isatty() and sys.stdout.isatty():
        return input(question)
    print(question, end="", file=sys.stderr, flush=True)
    return input()


def _answer(chat: Phi3Chat, message: str, *, show: bool = True) -> Reply:
    """Stream one answer to stdout; Ctrl-C ends the answer and keeps what there is of it."""
    stream = chat.stream(message)
    with _ctrl_c_cancels(stream):
        for piece in stream:
            if show:
                print(piece, end="", flush=True)
    if show:
        print()
    return stream.reply


def _answer_once(chat: Phi3Chat, message: str, *, as_json: bool) -> None:
    from ..batch.records import describe_reply

    reply = _answer(chat, message, show=not as_json)
    if as_json:
        print_json(describe_reply(reply))
    if reply.finish_reason == "cancelled":
        raise KeyboardInterrupt


@contextmanager
def _ctrl_c_cancels(stream: ReplyStream) -> Iterator[None]:
    before = signal.signal(signal.SIGINT, lambda *_: stream.cancel(keep=True))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _describe_loading(timings: LoadTimings) -> str:
    return (
        f"Loaded in {timings.total_seconds:.1f} s: compiled in {timings.compile_seconds:.1f} s, "
        f"warmed up in {timings.warm_up_seconds:.1f} s."
    )


def _describe_reply(reply: Reply) -> str:
    dropped = f", {reply.dropped_turns} oldest turns dropped" if reply.dropped_turns else ""
    accepted = ""
    if reply.usage.accepted_tokens:
        accepted = f", {reply.usage.tokens_per_pass:.2f} tokens per pass"
    return (
        f"({reply.finish_reason}; {reply.usage.prompt_tokens} tokens in, "
        f"{reply.usage.cached_tokens} of them cached, {reply.usage.completion_tokens} out; "
        f"first token after {reply.timings.first_token_seconds:.2f} s, "
        f"{reply.timings.tokens_per_second:.1f} tokens/s{accepted}{dropped})"
    )
