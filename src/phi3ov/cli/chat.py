"""``phi3ov chat``: one answer, or a conversation."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..engine.protocol import EngineName
from ..errors import OptionError, Phi3OVError
from ..runtime.speculation import DraftModel, PromptLookup, Speculation
from .options import (
    AnswerOptions,
    LoadingOptions,
    engine_option,
    gigabytes_to_bytes,
    json_option,
    refuse_together,
)
from .printing import print_json, write_line

if TYPE_CHECKING:
    from ..answer.reply import LoadTimings, Reply
    from ..answer.stream import ReplyStream
    from ..chat import Phi3Chat

EXAMPLE = 'phi3ov chat phi3-int4 "What is the capital of France?"'


def _read_schema(path: Path | None) -> Any:
    """Return the JSON in a file; None without one."""
    if path is None:
        return None
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise OptionError(f"--json-schema {path} cannot be read: {error}") from error


def run(
    loading: LoadingOptions,
    answer: AnswerOptions,
    message: Annotated[
        str | None, typer.Argument(help="answer this and end; without it: interactive")
    ] = None,
    *,
    engine: Annotated[EngineName, engine_option()] = "pipeline",
    system: Annotated[str | None, typer.Option(help="the system message")] = None,
    cache_gb: Annotated[
        float | None, typer.Option(help="the most GB that the KV cache takes")
    ] = None,
    prompt_lookup: Annotated[
        bool, typer.Option("--prompt-lookup", help="several tokens per pass, from the prompt")
    ] = False,
    draft: Annotated[
        str | None, typer.Option(help="several tokens per pass, from this smaller model")
    ] = None,
    json_schema: Annotated[
        Path | None, typer.Option(help="a file: the answer is JSON that fits it")
    ] = None,
    regex: Annotated[
        str | None, typer.Option(help="the answer matches this regular expression")
    ] = None,
    choice: Annotated[
        list[str] | None, typer.Option(help="the answer is one of these; repeat")
    ] = None,
    as_json: Annotated[bool, json_option("the answer to MESSAGE, with its figures")] = False,
) -> None:
    """Talk to an exported model: one answer, or a conversation."""
    from ..chat import Phi3Chat
    from ..loading import load_model

    if as_json and message is None:
        raise typer.BadParameter("--json goes with a MESSAGE only")
    refuse_together(prompt_lookup=prompt_lookup, draft=draft)
    refuse_together(json_schema=json_schema, regex=regex, choice=choice)
    options = answer.to_generation_options(  # before the model is loaded
        on_overflow="drop_oldest",
        json_schema=_read_schema(json_schema),
        regex=regex,
        choices=tuple(choice) if choice else None,
    )
    model = load_model(
        loading.model,
        engine=engine,
        cache_bytes=gigabytes_to_bytes("--cache-gb", cache_gb),
        speculation=_choose_speculation(prompt_lookup=prompt_lookup, draft=draft),
        **loading.to_arguments(),
    )
    with model:
        chat = Phi3Chat(model, system=system, options=options)
        if message is not None:
            _answer_once(chat, message, as_json=as_json)
            return
        device = f"{model.device.selected}: {model.device.reason}"
        for line in (device, _describe_loading(model.load_timings), _HELP):
            write_line(line, style="dim", stream=sys.stderr)
        _converse(chat)


_HELP = "Ctrl-C stops an answer, /reset forgets, /exit or Ctrl-D ends."


def _choose_speculation(*, prompt_lookup: bool, draft: str | None) -> Speculation | None:
    if prompt_lookup:
        return PromptLookup()
    return None if draft is None else DraftModel(path=draft)


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
            write_line(_describe_reply(reply), style="dim", stream=sys.stderr)


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
