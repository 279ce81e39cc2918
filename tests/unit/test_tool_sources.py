"""Functions, classes and dictionaries as tools, and a call's arguments as their types."""

from __future__ import annotations

import enum
import functools
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import pydantic
import pytest

from phi3ov.errors import GenerationError, OptionError
from phi3ov.prompt.tools import Tool, ToolCall, describe_tools, read_tools


class Unit(enum.Enum):
    """A unit of temperature."""

    CELSIUS = "c"
    FAHRENHEIT = "f"


@dataclass
class Place:
    """A place on earth."""

    city: str
    country: str | None = None


def get_weather(  # noqa: D417 - a tool need not describe every parameter
    place: Place,
    days: Annotated[int, "at least 1"] = 1,
    *,
    unit: Unit = Unit.CELSIUS,
    detail: Literal["low", "high"] = "low",
    tags: list[str] | None = None,
) -> str:
    """Return the weather
    of a place.

    It may be wrong.

    Args:
        place: Where, a city
            and its country.
        days (int): How far ahead: in days.
        nothing: Not a parameter.

    Returns:
        Words.
    """
    return f"{place.city} {days} {unit.name} {detail} {tags}"


class Weather(pydantic.BaseModel):
    """Weather of a city."""

    city: str = pydantic.Field(description="Its name")
    days: int = pydantic.Field(default=1, ge=1)


def test_a_function_is_a_tool() -> None:
    """Signature, hints and docstring become name, description and JSON Schema."""
    tool = Tool.of(get_weather)
    assert tool.name == "get_weather"
    assert tool.description == "Return the weather of a place.\nIt may be wrong."
    properties = tool.parameters["properties"]
    assert tool.parameters["required"] == ["place"]
    assert list(properties) == ["place", "days", "unit", "detail", "tags"]
    assert properties["place"] == {
        "description": "Where, a city and its country.",
        "$ref": "#/$defs/Place",
    }
    assert properties["days"] == {"description": "How far ahead: in days.", "type": "integer"}
    assert properties["detail"] == {"enum": ["high", "low"]}
    assert "Place" in tool.parameters["$defs"]
    assert tool.parameters["additionalProperties"] is False
    assert tool.schema == tool.parameters
    assert Tool.of(tool) is tool


def test_a_call_gives_the_function_its_arguments() -> None:
    """With its own types; what is left out is the function's own default."""
    call = ToolCall(name="get_weather", arguments={"place": {"city": "Rome"}, "unit": "f"})
    assert get_weather(**call.parse(get_weather)) == "Rome 1 FAHRENHEIT low None"
    assert call.parse(get_weather) == {"place": Place("Rome"), "unit": Unit.FAHRENHEIT}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({}, "missing required field `place`"),
        ({"place": {}}, "missing required field `city`"),
        ({"place": {"city": 5}}, r"Expected `str`, got `int` - at `\$.place.city`"),
        ({"place": {"city": "a"}, "days": "1"}, "Expected `int`"),
        ({"place": {"city": "a"}, "hours": 1}, "unknown field `hours`"),
        ({"place": {"city": "a"}, "unit": "k"}, "Invalid enum value 'k'"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(arguments: dict[str, Any], said: str) -> None:
    """The error holds the arguments, the tool's name and where they differ."""
    call = ToolCall(name="get_weather", arguments=arguments)
    with pytest.raises(
        GenerationError, match=rf"(?s)arguments=.* do not fit get_weather: .*{said}"
    ):
        call.parse(get_weather)


def test_classes_are_tools() -> None:
    """A pydantic model and a dataclass; a call gives an instance."""
    tool = Tool.of(Weather)
    assert (tool.name, tool.description) == ("Weather", "Weather of a city.")
    assert tool.parameters["properties"] == {
        "city": {"description": "Its name", "type": "string"},
        "days": {"default": 1, "minimum": 1, "type": "integer"},
    }
    call = ToolCall(name="Weather", arguments={"city": "Rome"})
    assert call.parse(Weather) == Weather(city="Rome", days=1)
    with pytest.raises(GenerationError, match=r"(?s)do not fit Weather: .*greater than or equal"):
        ToolCall(name="Weather", arguments={"city": "Rome", "days": 0}).parse(Weather)
    assert Tool.of(Place).parameters["required"] == ["city"]
    assert ToolCall(name="Place", arguments={"city": "Rome"}).parse(Place) == Place("Rome")


def test_a_parameter_called_title_keeps_its_place() -> None:
    """Only titles that pydantic makes are left out of the prompt."""

    class Book(pydantic.BaseModel):
        title: str

    assert Tool.of(Book).parameters == {
        "type": "object",
        "properties": {"title": {"type": "string"}},
        "required": ["title"],
    }


def test_a_function_without_parameters_is_a_tool() -> None:
    """It takes an empty object."""

    def now() -> str:
        return "noon"

    tool = Tool.of(now)
    assert (tool.description, tool.schema["properties"]) == ("", {})
    assert ToolCall(name="now", arguments={}).parse(now) == {}
    with pytest.raises(GenerationError, match="unknown field `a`"):
        ToolCall(name="now", arguments={"a": 1}).parse(now)


def _no_hint(a) -> None:  # type: ignore[no-untyped-def]  # noqa: ANN001
    """Lack a hint."""


def _unknown_hint(a: Nowhere) -> None:  # type: ignore[name-defined]  # noqa: F821
    """Have a hint of a name that there is not."""


def _strange_hint(a: type[int]) -> None:
    """Have a hint without a form in JSON."""


@pytest.mark.parametrize(
    ("source", "said"),
    [
        (5, "tools holds 5 of type int. Make a Tool of it"),
        ("now", "tools holds 'now' of type str"),
        (functools.partial(get_weather, days=2), "Make a Tool of it"),
        (lambda a: a, "Make a Tool of it"),
        (_no_hint, "'a' has no type hint"),
        (_unknown_hint, "name 'Nowhere' is not defined"),
        (_strange_hint, "JSON has no form for a type hint"),
        (eval("lambda *a: a"), "Make a Tool of it"),
        ({"type": "retrieval"}, "type='retrieval' of a tool is not 'function'"),
        ({"type": "function", "function": 5}, "function=5 of a tool is not a dictionary"),
        ({"type": "function", "function": {}}, "without a name"),
        ({"name": "a", "cost": 5}, "cost is not a field of a tool"),
        ({"function": {"name": "a"}, "cost": 5}, "cost is not a field of a tool"),
        ({"name": "a", "parameters": 5}, "parameters=5"),
    ],
)
def test_what_cannot_be_a_tool_is_refused(source: Any, said: str) -> None:
    """With what it is and what to give instead."""
    with pytest.raises(OptionError, match=said):
        Tool.of(source)


def test_parameters_without_a_name_are_refused() -> None:
    """A model gives arguments by name."""

    def variadic(*a: int) -> None: ...
    def keywords(**a: int) -> None: ...
    def positional(a: int, /) -> None: ...

    for function in (variadic, keywords, positional):
        with pytest.raises(OptionError, match=f"{function.__name__}: the parameter 'a' is"):
            Tool.of(function)


def test_openai_dictionaries_are_tools() -> None:
    """Nulls are absent, and the outer dictionary may be left out."""
    schema = {"type": "object", "properties": {"city": {"type": "string"}}}
    function = {"name": "a", "description": None, "parameters": schema, "strict": None}
    expected = Tool(name="a", description="", parameters=schema)
    assert Tool.of({"type": "function", "function": function}) == Tool.of(function) == expected


def test_tools_are_read_one_by_one() -> None:
    """Each kind, in order; two of a name, or no list, are refused."""
    now = Tool(name="now", description="Time")
    tools = read_tools([now, get_weather, Weather, {"name": "a"}])
    assert [tool.name for tool in tools] == ["now", "get_weather", "Weather", "a"]
    with pytest.raises(OptionError, match="tools holds 'now' twice"):
        read_tools([now, now])
    for bad in ({"name": "a"}, "a", 5, get_weather):
        with pytest.raises(OptionError, match="not a list of tools"):
            read_tools(bad)  # type: ignore[arg-type]


def test_the_short_form_stands_for_a_schema() -> None:
    """Python's names of types are JSON's; a parameter with a default may be left out."""
    short = {
        "city": {"description": "Name", "type": "str"},
        "days": {"type": "int", "default": 1},
        "type": {"type": "str", "default": "a"},
        "any": {"description": "Anything", "default": None},
    }
    tool = Tool(name="x", description="", parameters=short)
    assert tool.schema == {
        "type": "object",
        "properties": {
            "city": {"description": "Name", "type": "string"},
            "days": {"type": "integer", "default": 1},
            "type": {"type": "string", "default": "a"},
            "any": {"description": "Anything", "default": None},
        },
        "required": ["city"],
        "additionalProperties": False,
    }
    assert '"type": "str"' in describe_tools([tool])
    assert Tool(name="x", description="").schema["properties"] == {}


@pytest.mark.parametrize(
    ("parameters", "said"),
    [({"a": "int"}, "'a' is 'int', not a description"), ({"a": {"type": "City"}}, "type='City'")],
)
def test_a_short_form_that_stands_for_no_schema_is_refused(
    parameters: dict[str, Any], said: str
) -> None:
    """When its schema is needed: the prompt holds it as it is."""
    with pytest.raises(OptionError, match=said):
        _ = Tool(name="x", description="", parameters=parameters).schema
