"""Plans the tool calls of one answer: `plan_calls`.

A required call is *guided*: the answer begins with the checkpoint's own token that opens calls,
and a grammar enforces the rest, a JSON list in which each call names an offered tool and has
arguments that fit its schema. With ``tool_choice="auto"`` the same grammar applies once the model
generates that token.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from ..errors import OptionError, PromptError
from ..prompt.chat_tokenizer import ChatTokenizer
from ..prompt.tool_choice import ToolChoice, read_tool_choice
from ..prompt.tools import Tool
from ..structured.json_schema import schema_part
from ..structured.parts import grammar, one_of, repeated, sequence, text

_LOGGER = logging.getLogger("phi3ov")

MOST_CALLS = 16
"""Maximum number of calls in one answer; a tool chosen by name is called once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CallPlan:
    """Tool handling of one answer.

    Attributes:
        offered: Names of the tools whose calls are parsed from the answer.
        opening_ids: Ids that the answer is forced to begin with, after the thoughts of a reasoning
            model.
        grammar: Grammar of the calls; None if calls are not guided.
        grammar_after: Id after which the grammar applies; None for the whole answer.
        stop_ids: Additional ids that end the answer.
    """

    offered: tuple[str, ...] = ()
    opening_ids: tuple[int, ...] = ()
    grammar: str | None = None
    grammar_after: int | None = None
    stop_ids: frozenset[int] = frozenset()

    @property
    def is_guided(self) -> bool:
        """Whether the answer is calls, from its beginning or from the end of its thoughts on."""
        return self.grammar is not None and self.grammar_after is None


def plan_calls(
    tokenizer: ChatTokenizer,
    tools: Sequence[Tool],
    choice: ToolChoice | None = None,
    *,
    guide: bool = True,
    shaped: bool = False,
) -> CallPlan:
    """Return the plan for ``choice``.

    Args:
        tokenizer: The checkpoint's tokenizer.
        tools: Tools that the model may call, described in the prompt.
        choice: The tool choice; None for ``"auto"`` if there are tools. With ``"none"`` the token
            that opens calls ends the answer.
        guide: Whether the engine supports grammars. Otherwise ``"auto"`` is not guided, and a
            required call is refused.
        shaped: Whether the answer is structured (``json_schema``, ``regex``, ``choices``). Then
            it has no calls.

    Raises:
        OptionError: The choice needs tools but none are given, names an unknown tool, or
            contradicts a structured answer; or a call is required, and the engine does not
            support grammars or no grammar can enforce a tool's schema.
        PromptError: The model was trained without tools.
    """
    if shaped and tools:
        if choice is None:
            return CallPlan()
        if choice != "none":
            raise OptionError(
                f"tool_choice={choice!r:.80} contradicts json_schema, regex and choices: an answer "
                "has a shape or calls. Leave one of them out, or choose 'none'.",
                option="tool_choice",
            )
    choice = "auto" if choice is None else read_tool_choice(choice)
    name = None if isinstance(choice, str) else choice["name"]
    if not tools:
        if choice in ("none", "auto"):
            return CallPlan()
        raise OptionError(
            f"tool_choice={choice!r:.80} needs tools, and there are none.", option="tool_choice"
        )
    if tokenizer.tool_call_ids is None:
        raise PromptError(
            f"tools were given, but the chat format {tokenizer.format.name!r} has none: of the "
            "family only Phi-4-mini was trained to call tools."
        )
    opening_id, _ = tokenizer.tool_call_ids
    offered = tuple(tool.name for tool in tools)
    if choice == "none":
        return CallPlan(stop_ids=frozenset({opening_id}))
    if choice == "auto":
        calls = call_grammar(tools, loosen=True) if guide else None
        after = None if calls is None else opening_id
        return CallPlan(offered=offered, grammar=calls, grammar_after=after)
    if name is not None and name not in offered:
        raise OptionError(
            f"tool_choice={choice!r:.80} names none of the tools: {', '.join(offered)}.",
            option="tool_choice",
        )
    if not guide:
        raise OptionError(
            f"tool_choice={choice!r:.80} needs an engine that takes grammars. Load the model with "
            "engine='pipeline' or 'worker', or choose 'auto'.",
            option="tool_choice",
        )
    chosen = [tool for tool in tools if name in (None, tool.name)]
    calls = call_grammar(chosen, most_calls=MOST_CALLS if name is None else 1)
    return CallPlan(offered=offered, opening_ids=(opening_id,), grammar=calls)


def call_grammar(
    tools: Sequence[Tool], *, most_calls: int = MOST_CALLS, loosen: bool = False
) -> str:
    """Return the grammar of calls as the model writes them, without the tokens around them.

    Args:
        tools: The tools that may be called.
        most_calls: Maximum number of calls; the minimum is 1.
        loosen: Allow any arguments for a tool whose schema no grammar can enforce, and log a
            warning.

    Raises:
        OptionError: No grammar can enforce a tool's schema, and ``loosen`` is not set.
    """
    schemas = tuple((tool.name, _schema_text(tool, loosen=loosen)) for tool in tools)
    return _remembered_grammar(schemas, most_calls)


@lru_cache(maxsize=16)
def _remembered_grammar(schemas: tuple[tuple[str, str], ...], most_calls: int) -> str:
    calls = [
        sequence(
            text(f'{{"name": {json.dumps(name, ensure_ascii=False)}, "arguments": '),
            schema_part(json.loads(schema), f"tool{number}"),
            text("}"),
        )
        for number, (name, schema) in enumerate(schemas)
    ]
    listed = repeated(one_of(*calls), least=1, most=most_calls, separator=", ")
    return grammar(sequence(text("["), listed, text("]")))


def _schema_text(tool: Tool, *, loosen: bool) -> str:
    """Return a tool's schema as JSON text, after checking that a grammar can enforce it."""
    try:
        schema = json.dumps(tool.schema)
        _remembered_grammar(((tool.name, schema),), 1)
    except OptionError as error:
        message = f"tools: the arguments of {tool.name!r:.80} cannot be enforced: {error}"
        if not loosen:
            raise OptionError(
                f"{message} Simplify the schema, or choose tool_choice='auto', where any "
                "arguments of this tool are let through.",
                option="tools",
            ) from error
        _log_once(message)
        return '{"type": "object"}'
    return schema


@lru_cache(maxsize=256)
def _log_once(message: str) -> None:
    _LOGGER.warning("%s Any arguments of this tool are let through.", message)
