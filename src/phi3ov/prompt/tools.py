"""Tools that a model may call, `Tool`, and the calls that it makes, `ToolCall`.

Only Phi-4-mini was trained with a tool format: the system message holds the descriptions as JSON,
and the model answers with ``<|tool_call|>[{"name": ..., "arguments": {...}}]``. ``formats.py``
defines their place in a prompt, ``call_parser.py`` parses calls, and ``signatures.py`` derives
schemas from functions and classes. phi3ov never runs a tool.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar, overload

from ..errors import OptionError, PromptError
from ..plain_json import plain_json
from .signatures import describe_signature, parse_arguments

_T = TypeVar("_T")

_SHORT_TYPES = {
    "str": "string",
    "int": "integer",
    "float": "number",
    "bool": "boolean",
    "list": "array",
    "dict": "object",
}
"""JSON Schema type of each Python type name, as used in the short form of parameters."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tool:
    """A function that the model may ask to be called.

    Attributes:
        name: Name by which the model calls the tool.
        description: Description for the model.
        parameters: JSON Schema of the arguments, an object; or the short form that Phi-4-mini was
            trained with, which maps each parameter's name to its description, such as
            ``{"city": {"description": "Name of the city", "type": "str"}}``. In the short form a
            parameter with a ``default`` is optional. The prompt holds the parameters exactly as
            given. Any mapping is accepted; the tool keeps a copy in plain dictionaries and lists.

    Raises:
        OptionError: The name is empty, name or description is not text, or JSON cannot represent
            the parameters.

    Example:
        >>> Tool(
        ...     name="get_weather",
        ...     description="Current weather of a city",
        ...     parameters={
        ...         "type": "object",
        ...         "properties": {"city": {"type": "string"}},
        ...         "required": ["city"],
        ...     },
        ... ).name
        'get_weather'
    """

    name: str
    description: str
    parameters: Mapping[str, Any] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        if self.name == "":
            raise OptionError(f"name={self.name!r} of a tool is empty.", option="name")
        for field_name, kind in (("name", str), ("description", str), ("parameters", Mapping)):
            value = getattr(self, field_name)
            if not isinstance(value, kind):
                raise OptionError(
                    f"{field_name}={value!r:.80} of a tool is of type {type(value).__name__}, not "
                    f"{kind.__name__}.",
                    option=field_name,
                )
            try:
                object.__setattr__(self, field_name, plain_json(value))
            except ValueError as error:
                raise OptionError(
                    f"{field_name}={value!r:.80} of the tool {self.name!r:.80} is not JSON: "
                    f"{error}.",
                    option=field_name,
                ) from error

    @classmethod
    def of(cls, source: Callable[..., Any] | Mapping[str, Any] | Tool) -> Tool:
        """Create a tool from a function, a class, or a dictionary of OpenAI's protocol.

        Args:
            source: A function with type hints, whose docstring describes it and, under ``Args:``,
                its parameters; a pydantic model or a dataclass, whose fields are the parameters;
                ``{"type": "function", "function": {"name": ..., "parameters": ...}}``; or a
                `Tool`, which is returned unchanged.

        Raises:
            OptionError: ``source`` cannot be a tool; says why.

        Example:
            >>> def add(a: int, b: int = 1) -> int:
            ...     \"\"\"Add two numbers.\"\"\"
            ...     return a + b
            >>> tool = Tool.of(add)
            >>> tool.name, tool.description, tool.parameters["required"]
            ('add', 'Add two numbers.', ['a'])
        """
        if isinstance(source, Tool):
            return source
        if isinstance(source, Mapping):
            return cls(**_read_function(source))
        name = getattr(source, "__name__", "")
        if not callable(source) or not name.isidentifier():
            raise OptionError(
                f"tools holds {source!r:.80} of type {type(source).__name__}. Make a Tool of it: "
                "Tool(name=..., description=..., parameters=...). A function, a pydantic model and "
                "a dataclass are tools as they are.",
                option="tools",
            )
        description, schema = describe_signature(source)
        return cls(name=name, description=description, parameters=schema)

    @property
    def schema(self) -> dict[str, Any]:
        """JSON Schema of the arguments: ``parameters``, with the short form expanded.

        Raises:
            OptionError: The short form has an unknown type.
        """
        given = dict(self.parameters)
        if given.get("type") == "object" or "$ref" in given:
            return given
        properties, required = {}, []
        for name, parameter in given.items():
            properties[name] = _long_form(self.name, name, parameter)
            if "default" not in parameter:
                required.append(name)
        return {
            "type": "object",
            "properties": properties,
            "required": required,
            "additionalProperties": False,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolCall:
    """A tool call of the model.

    Attributes:
        name: The tool's name, as the model wrote it: check that you offered this tool.
        arguments: The arguments, as the model wrote them: check them before use. Any mapping is
            accepted; the call keeps a copy in plain dictionaries and lists.
        id: A label for the caller that ties a result to its call, as in OpenAI's protocol. The
            model neither reads nor writes it.

    Raises:
        PromptError: The name or the id is empty or not text, or JSON cannot represent the
            arguments.
    """

    name: str
    arguments: Mapping[str, Any] = field(hash=False)
    id: str | None = None

    def __post_init__(self) -> None:
        for field_name in ("name", "id"):
            label = getattr(self, field_name)
            if label is None and field_name == "id":
                continue
            if not isinstance(label, str) or not label:
                raise PromptError(
                    f"{field_name}={label!r:.80} of a call must be a string that is not empty."
                )
        if not isinstance(self.arguments, Mapping):
            raise PromptError(
                f"arguments={self.arguments!r:.80} of a call is of type "
                f"{type(self.arguments).__name__}, not a mapping."
            )
        try:
            plain_json([self.name, self.id])
            object.__setattr__(self, "arguments", plain_json(self.arguments))
        except ValueError as error:
            raise PromptError(f"The call of {self.name!r:.80} cannot be JSON: {error}.") from error

    @overload
    def parse(self, source: type[_T]) -> _T: ...  # type: ignore[overload-overlap]  # a class first
    @overload
    def parse(self, source: Callable[..., Any]) -> dict[str, Any]: ...
    def parse(self, source: Callable[..., Any]) -> Any:
        """Validate the arguments and convert them to the types of ``source``.

        Args:
            source: The function, pydantic model or dataclass that was passed to `Tool.of`.

        Returns:
            Keyword arguments for a function; an instance of a class.

        Raises:
            GenerationError: The arguments that the model wrote do not fit.
            OptionError: The source cannot be a tool.

        Example:
            >>> def add(a: int, b: int = 1) -> int:
            ...     return a + b
            >>> call = ToolCall(name="add", arguments={"a": 2})
            >>> add(**call.parse(add))
            3
        """
        return parse_arguments(self.arguments, source)


def describe_tools(tools: Sequence[Tool]) -> str:
    """Return the descriptions of ``tools`` as JSON in the form of Phi-4-mini's model card.

    Example:
        >>> describe_tools([Tool(name="now", description="Current time")])
        '[{"name": "now", "description": "Current time", "parameters": {}}]'

    Raises:
        OptionError: A value is not a `Tool`.
    """
    for tool in tools:
        if not isinstance(tool, Tool):
            raise OptionError(
                f"tools holds {tool!r:.80} of type {type(tool).__name__}. Make a Tool of it: "
                "Tool.of(...), or Tool(name=..., description=..., parameters=...).",
                option="tools",
            )
    values = [
        {"name": tool.name, "description": tool.description, "parameters": tool.parameters}
        for tool in tools
    ]
    return json.dumps(values, ensure_ascii=False)


ToolSource = Tool | Callable[..., Any] | Mapping[str, Any]
"""Source of a tool for `Tool.of`: a function, a class, or a dictionary of OpenAI's protocol."""


def read_tools(tools: Sequence[ToolSource]) -> tuple[Tool, ...]:
    """Return each of ``tools`` as a `Tool`.

    Raises:
        OptionError: A value cannot be a tool, or two tools have the same name.
    """
    if isinstance(tools, str | Mapping) or not isinstance(tools, Sequence):
        raise OptionError(
            f"tools={tools!r:.80} is of type {type(tools).__name__}, not a list of tools.",
            option="tools",
        )
    made = tuple(Tool.of(tool) for tool in tools)
    names = [tool.name for tool in made]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise OptionError(
            f"tools holds {twice[0]!r:.80} twice. Give each tool a unique name.", option="tools"
        )
    return made


def describe_calls(calls: Sequence[ToolCall]) -> str:
    """Return calls as the JSON that Phi-4-mini writes between its tool-call tokens.

    Example:
        >>> describe_calls([ToolCall(name="now", arguments={"zone": "UTC"})])
        '[{"name": "now", "arguments": {"zone": "UTC"}}]'
    """
    values = [{"name": call.name, "arguments": call.arguments} for call in calls]
    return json.dumps(values, ensure_ascii=False)


def refuse_constant(name: str) -> None:
    """Refuse NaN and infinities, as the ``parse_constant`` of ``json.loads``.

    Raises:
        ValueError: Always.
    """
    raise ValueError(f"{name} is not JSON, although Python reads it")


def _read_function(source: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of a tool from a dictionary of OpenAI's protocol."""
    given = {name: value for name, value in source.items() if value is not None}
    if given.get("type", "function") != "function":
        raise OptionError(f"type={given['type']!r:.80} of a tool is not 'function'.", option="type")
    function = given.get("function", given)
    if not isinstance(function, Mapping):
        raise OptionError(
            f"function={function!r:.80} of a tool is not a dictionary.", option="function"
        )
    fields = {name: value for name, value in function.items() if value is not None}
    unknown = fields.keys() - {"name", "description", "parameters", "strict", "type"}
    unknown |= given.keys() - {"type", "function"} if "function" in given else set()
    if unknown:
        raise OptionError(
            f"{sorted(map(str, unknown))[0]} is not a field of a tool.", option="tools"
        )
    if "name" not in fields:
        raise OptionError(f"{source!r:.80} is a tool without a name.", option="tools")
    return {
        "name": fields["name"],
        "description": fields.get("description", ""),
        "parameters": fields.get("parameters", {}),
    }


def _long_form(tool: str, name: str, parameter: Any) -> dict[str, Any]:
    """Return the JSON schema of a parameter in the short form."""
    if not isinstance(parameter, Mapping):
        raise OptionError(
            f"parameters of the tool {tool!r:.80}: {name!r:.80} is {parameter!r:.80}, not a "
            "description such as {'description': 'Name of the city', 'type': 'str'}.",
            option="tools",
        )
    schema = dict(parameter)
    kind = schema.get("type")
    if isinstance(kind, str):
        schema["type"] = _SHORT_TYPES.get(kind, kind)
        if schema["type"] not in (*_SHORT_TYPES.values(), "null"):
            raise OptionError(
                f"parameters of the tool {tool!r:.80}: {name!r:.80} has type={kind!r:.80}, not one "
                f"of {', '.join(_SHORT_TYPES)}. Give JSON Schema for others.",
                option="tools",
            )
    return schema
