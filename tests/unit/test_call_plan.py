"""What `tool_choice` means for an answer: its first ids, its grammar, what ends it."""

from __future__ import annotations

import json
import logging
import random
from typing import Any

import pytest

from phi3ov.answer.call_plan import MOST_CALLS, CallPlan, call_grammar, plan_calls
from phi3ov.errors import OptionError, PromptError
from phi3ov.prompt.call_parser import parse_tool_calls
from phi3ov.prompt.tool_choice import ToolChoice
from phi3ov.prompt.tools import Tool, describe_calls

from .fakes import KITS, PHI4_MINI_KIT
from .grammar_sampler import GrammarSampler

WEATHER = Tool(
    name="get_weather",
    description="Weather of a city",
    parameters={
        "type": "object",
        "properties": {
            "city": {"enum": ["Paris", "Rome"]},
            "near": {"$ref": "#/$defs/place"},
            "days": {"type": "integer", "minimum": 1, "maximum": 14},
        },
        "required": ["city"],
        "additionalProperties": False,
        "$defs": {
            "place": {
                "type": "object",
                "properties": {"near": {"$ref": "#/$defs/place"}, "n": {"type": "integer"}},
                "additionalProperties": False,
            }
        },
    },
)
NOW = Tool(name="now", description="Time")
ADD = Tool(name='a "dd"\\', description="", parameters={"é": {"type": "int"}})
TOOLS = (WEATHER, NOW, ADD)
LOOSE = Tool(
    name="loose",
    description="",
    parameters={"type": "object", "patternProperties": {"a": {"type": "string"}}},
)
CHAT = PHI4_MINI_KIT.chat
OPENING: int = PHI4_MINI_KIT.official.token_to_id("<|tool_call|>")


def test_no_tools_need_no_plan() -> None:
    """Nothing is enforced, read or forbidden, on every model."""
    choices: list[ToolChoice | None] = [None, "auto", "none"]
    for kit in KITS:
        for choice in choices:
            assert plan_calls(kit.chat, (), choice) == CallPlan()


def test_auto_guides_from_the_opening_token_on() -> None:
    """The grammar is there, and it waits for the token; it is the default where tools are."""
    plan = plan_calls(CHAT, TOOLS)
    assert plan == plan_calls(CHAT, TOOLS, "auto")
    assert (plan.grammar_after, plan.opening_ids, plan.stop_ids) == (OPENING, (), frozenset())
    assert plan.grammar == call_grammar(TOOLS)
    assert plan.offered == tuple(tool.name for tool in TOOLS)
    unguided = plan_calls(CHAT, TOOLS, guide=False)
    assert unguided == CallPlan(offered=plan.offered)


def test_a_required_call_begins_with_its_token() -> None:
    """The grammar applies from the beginning, and by name it has one call of one tool."""
    plan = plan_calls(CHAT, TOOLS, "required")
    assert (plan.opening_ids, plan.grammar_after) == ((OPENING,), None)
    assert plan.grammar == call_grammar(TOOLS)
    openai: Any = {"type": "function", "function": {"name": "now"}}
    named = plan_calls(CHAT, TOOLS, {"name": "now"})
    plain: Any = "now"
    assert named == plan_calls(CHAT, TOOLS, openai) == plan_calls(CHAT, TOOLS, plain)
    assert named.grammar == call_grammar([NOW], most_calls=1)
    assert named.offered == plan.offered


def test_none_ends_the_answer_where_a_call_would_begin() -> None:
    """The tools stay in the prompt, so that its cached prefix does; no call is read."""
    assert plan_calls(CHAT, TOOLS, "none") == CallPlan(stop_ids=frozenset({OPENING}))


@pytest.mark.parametrize(
    ("tools", "choice", "said"),
    [
        ((), "required", "tool_choice='required' needs tools"),
        ((), {"name": "now"}, "needs tools"),
        (TOOLS, {"name": "then"}, r"names none of the tools: get_weather, now"),
        (TOOLS, "any", "names none of the tools: get_weather, now"),
        (TOOLS, "", "tool_choice='' is not one of none, auto, required"),
        (TOOLS, 5, "tool_choice=5 is not one of"),
        (TOOLS, {"name": 5}, "is not one of"),
        (TOOLS, {"name": "now", "strict": True}, "is not one of"),
        (TOOLS, {"type": "function", "function": 5}, "is not one of"),
        ((LOOSE,), "required", r"arguments of 'loose' cannot be enforced: .*patternProperties"),
    ],
)
def test_choices_that_cannot_be_are_refused(
    tools: tuple[Tool, ...], choice: Any, said: str
) -> None:
    """The error names the choice and the way out."""
    with pytest.raises(OptionError, match=said):
        plan_calls(CHAT, tools, choice)


def test_an_answer_has_a_shape_or_calls() -> None:
    """With a shape of its own it has no calls, and one that must come contradicts it."""
    assert plan_calls(CHAT, TOOLS, shaped=True) == CallPlan()
    assert plan_calls(CHAT, TOOLS, "none", shaped=True) == plan_calls(CHAT, TOOLS, "none")
    choices: list[ToolChoice] = ["auto", "required", {"name": "now"}]
    for choice in choices:
        with pytest.raises(OptionError, match="contradicts json_schema, regex and choices"):
            plan_calls(CHAT, TOOLS, choice, shaped=True)


def test_a_required_call_needs_an_engine_with_grammars() -> None:
    """Else nothing would enforce it."""
    with pytest.raises(OptionError, match="needs an engine that takes grammars"):
        plan_calls(CHAT, TOOLS, "required", guide=False)


def test_models_without_tools_refuse_them() -> None:
    """Whatever the choice: their formats have no place for tools."""
    choices: list[ToolChoice] = ["none", "auto", "required"]
    for kit in KITS:
        for choice in choices:
            if kit is not PHI4_MINI_KIT:
                with pytest.raises(PromptError, match="tools were given"):
                    plan_calls(kit.chat, TOOLS, choice)


def test_a_schema_that_no_grammar_holds_is_loosened_and_said(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """In auto mode, for that tool alone, once in the log."""
    with caplog.at_level(logging.WARNING, logger="phi3ov"):
        plan = plan_calls(CHAT, (LOOSE, NOW))
        plan_calls(CHAT, (LOOSE, NOW))
    assert [record.message for record in caplog.records if "'loose'" in record.message] == [
        "tools: the arguments of 'loose' cannot be enforced: json_schema: schema has "
        "'patternProperties', which cannot be enforced for type='object'. Leave it out and check "
        "the answer yourself. Any arguments of this tool are let through."
    ]
    anything = Tool(name="loose", description="", parameters={"type": "object"})
    assert plan.grammar == call_grammar((anything, NOW))


def test_every_text_of_the_grammar_is_calls_of_the_tools() -> None:
    """Texts drawn from the grammar parse, are laid out as history is, and fit the schemas."""
    generator = random.Random(0)
    names = {tool.name for tool in TOOLS}
    seen: set[str] = set()
    counts: set[int] = set()
    sampler = GrammarSampler(call_grammar(TOOLS, most_calls=3))
    for _ in range(1000):
        text = sampler.draw(generator)
        calls = parse_tool_calls(text)
        assert calls is not None, text
        assert describe_calls(calls) == text
        counts.add(len(calls))
        for call in calls:
            seen.add(call.name)
            if call.name == "now":
                assert call.arguments == {}
            elif call.name == "get_weather":
                assert call.arguments["city"] in ("Paris", "Rome")
                assert call.arguments.keys() <= {"city", "near", "days"}
                assert 1 <= call.arguments.get("days", 1) <= 14
            else:
                assert list(call.arguments) == ["é"]
                assert type(call.arguments["é"]) is int
    assert (seen, counts) == (names, {1, 2, 3})
    assert json.loads(GrammarSampler(call_grammar([NOW], most_calls=1)).draw(generator)) == [
        {"name": "now", "arguments": {}}
    ]
    assert MOST_CALLS == 16
