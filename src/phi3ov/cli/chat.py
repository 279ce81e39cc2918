"""``phi3ov chat``: one answer, or a conversation."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..engine.protocol import EngineName
from ..errors import OptionError
from ..runtime.speculation import DraftModel, PromptLookup, Speculation
from .conversation import answer, converse, describe_reply, is_interactive
from .files import read_stdin, read_text
from .options import (
    AnswerOptions,
    LoadingOptions,
    engine_option,
    gigabytes_to_bytes,
    json_option,
    refuse_together,
)
from .printing import busy, print_json, write_line

if TYPE_CHECKING:
    from ..answer.reply import LoadTimings
    from ..chat import Phi3Chat
    from ..model import Phi3Model

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
    sampling: AnswerOptions,
    message: Annotated[
        str | None,
        typer.Argument(help="answer this and end; - is all of stdin; without it: a conversation"),
    ] = None,
    *,
    engine: Annotated[EngineName, engine_option()] = "pipeline",
    file: Annotated[
        Path | None,
        typer.Option(help="a text file that is the message, or its end; - is stdin"),
    ] = None,
    system: Annotated[str | None, typer.Option(help="the system message")] = None,
    cache_gb: Annotated[
        float | None, typer.Option(help="the most GB that the KV cache takes")
    ] = None,
    prompt_lookup: Annotated[
        bool, typer.Option("--prompt-lookup", help="several tokens per pass, from the prompt")
    ] = False,
    draft: Annotated[
        str | None,
        typer.Option(help="several tokens per pass, from this smaller model (folder or hub id)"),
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
    no_history: Annotated[
        bool, typer.Option("--no-history", help="do not save typed messages for the next time")
    ] = False,
    verbose: Annotated[
        bool, typer.Option("--verbose", help="print how the model runs, and figures")
    ] = False,
    as_json: Annotated[bool, json_option("the answer to MESSAGE, with its figures")] = False,
) -> None:
    """Talk to an exported model: one answer, or a conversation.

    Without MESSAGE and --file it reads messages from the terminal, or one from each line of a
    pipe.
    """
    from ..chat import Phi3Chat
    from ..loading import load_model

    if as_json and message is None and file is None:
        raise typer.BadParameter("--json goes with a MESSAGE only")
    refuse_together(prompt_lookup=prompt_lookup, draft=draft)
    refuse_together(json_schema=json_schema, regex=regex, choice=choice)
    options = sampling.to_generation_options(  # before the model is loaded
        on_overflow="drop_oldest",
        json_schema=_read_schema(json_schema),
        regex=regex,
        choices=tuple(choice) if choice else None,
    )
    question = _read_message(message, file)
    loaded: dict[str, Any] = {
        "engine": engine,
        "cache_bytes": gigabytes_to_bytes("--cache-gb", cache_gb),
        "speculation": _choose_speculation(prompt_lookup=prompt_lookup, draft=draft),
        **loading.to_arguments(),
    }
    with busy(f"Loading {loading.model}"):
        model = load_model(loading.model, **loaded)
    with model:
        chat = Phi3Chat(model, system=system, options=options)
        if verbose or question is None:
            _introduce(model, verbose=verbose)
        if question is not None:
            _answer_once(chat, question, as_json=as_json, verbose=verbose)
        else:
            _hold_conversation(chat, keep_history=not no_history)


def _read_message(message: str | None, file: Path | None) -> str | None:
    """Return the message from the command line; None for a conversation.

    Raises:
        OptionError: A file or stdin cannot be read as text.
        typer.BadParameter: Both message and file are to come from stdin.
    """
    if message == "-" and file == Path("-"):
        raise typer.BadParameter("MESSAGE and --file cannot both be -")
    parts = [read_stdin() if message == "-" else message]
    if file is not None:
        parts.append(read_stdin() if file == Path("-") else read_text(file))
    given = [part for part in parts if part is not None]
    return "\n\n".join(given).rstrip("\r\n") if given else None


def _introduce(model: Phi3Model, *, verbose: bool) -> None:
    device = f"{model.device.selected}: {model.device.reason}"
    settings = map(str, model.settings) if verbose else ()
    for line in (device, _describe_loading(model.load_timings), *settings):
        write_line(line, style="dim", stream=sys.stderr)


def _hold_conversation(chat: Phi3Chat, *, keep_history: bool) -> None:
    editor = None
    if is_interactive():
        from .line_editor import LineEditor, default_history_path

        path, problem = None, None
        if keep_history:
            try:
                path = default_history_path()
            except OptionError as error:
                problem = str(error)
        editor = LineEditor(history_path=path)
        problem = problem or editor.problem
        if problem is not None:
            write_line(f"History is not kept: {problem}", style="dim", stream=sys.stderr)
    write_line(
        "Ctrl-C stops an answer, /reset forgets, /exit or Ctrl-D ends, /help says more.",
        style="dim",
        stream=sys.stderr,
    )
    converse(chat, editor)


def _choose_speculation(*, prompt_lookup: bool, draft: str | None) -> Speculation | None:
    if prompt_lookup:
        return PromptLookup()
    return None if draft is None else DraftModel(path=draft)


def _answer_once(chat: Phi3Chat, message: str, *, as_json: bool, verbose: bool) -> None:
    from ..batch.records import describe_reply as describe_record

    reply = answer(chat, message, show=not as_json)
    if as_json:
        print_json(describe_record(reply))
    if verbose:
        write_line(describe_reply(reply), style="dim", stream=sys.stderr)
    if reply.finish_reason == "cancelled":
        raise KeyboardInterrupt


def _describe_loading(timings: LoadTimings) -> str:
    return (
        f"Loaded in {timings.total_seconds:.1f} s: compiled in {timings.compile_seconds:.1f} s, "
        f"warmed up in {timings.warm_up_seconds:.1f} s."
    )
