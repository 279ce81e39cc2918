"""Request types: msgspec converts a checked body to them, and /openapi.json describes them."""

from __future__ import annotations

from typing import Any, Literal

import msgspec


class StreamOptions(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """``stream_options``.

    Attributes:
        include_usage: Whether a last chunk holds the token counts.
        include_obfuscation: Only false is accepted: chunks are not padded.
    """

    include_usage: bool | None = None
    include_obfuscation: Literal[False] | None = None


class NamedSchema(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """A JSON schema with its name.

    Attributes:
        name: Ignored.
        schema: The schema; any object is allowed without it.
        description: Ignored.
        strict: Ignored: the schema is always enforced.
    """

    name: str
    schema: dict[str, Any] | None = None
    description: str | None = None
    strict: bool | None = None


class TextFormat(msgspec.Struct, kw_only=True, tag="text", forbid_unknown_fields=True):
    """``{"type": "text"}``: unstructured text."""


class ObjectFormat(msgspec.Struct, kw_only=True, tag="json_object", forbid_unknown_fields=True):
    """``{"type": "json_object"}``: any JSON object."""


class SchemaFormat(msgspec.Struct, kw_only=True, tag="json_schema", forbid_unknown_fields=True):
    """``{"type": "json_schema"}``: JSON that fits a schema.

    Attributes:
        json_schema: The schema.
    """

    json_schema: NamedSchema


ResponseFormat = TextFormat | ObjectFormat | SchemaFormat
"""``response_format`` of a chat request."""


class FlatSchemaFormat(msgspec.Struct, kw_only=True, tag="json_schema", forbid_unknown_fields=True):
    """``json_schema`` format of a Responses request, with the schema's fields beside the type.

    Attributes:
        name: Ignored.
        schema: The schema.
        description: Ignored.
        strict: Ignored: the schema is always enforced.
    """

    name: str
    schema: dict[str, Any]
    description: str | None = None
    strict: bool | None = None


class TextConfig(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """``text`` of a Responses request.

    Attributes:
        format: Format of the answer.
        verbosity: Only ``"medium"``, the default.
    """

    format: TextFormat | ObjectFormat | FlatSchemaFormat | None = None
    verbosity: Literal["medium"] | None = None


class FunctionTool(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """A function that the model may call.

    Attributes:
        name: Its name.
        description: What it does, for the model to read.
        parameters: JSON schema of its arguments.
        strict: Accepted; a required call is always enforced.
    """

    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class ChatTool(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """A tool of a chat request.

    Attributes:
        function: The function.
        type: Only ``"function"``.
    """

    function: FunctionTool
    type: Literal["function"] = "function"


class ResponseTool(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """A tool of a Responses request.

    Attributes:
        name: Its name.
        type: Only ``"function"``.
        description: What it does, for the model to read.
        parameters: JSON schema of its arguments.
        strict: Accepted; a required call is always enforced.
    """

    name: str
    type: Literal["function"] = "function"
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class NamedFunction(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """The name of a function.

    Attributes:
        name: The name.
    """

    name: str


class ChatToolChoice(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """The tool that the model must call, in a chat request.

    Attributes:
        function: The function.
        type: Only ``"function"``.
    """

    function: NamedFunction
    type: Literal["function"] = "function"


class ResponseToolChoice(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """The tool that the model must call, in a Responses request.

    Attributes:
        name: The function.
        type: Only ``"function"``.
    """

    name: str
    type: Literal["function"] = "function"


ToolMode = Literal["none", "auto", "required"]
"""Whether the model must not, may or must call tools."""


class AnswerRequest(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Fields of every request for an answer; see the field table."""

    model: str = ""
    stream: bool = False
    stream_options: StreamOptions | None = None
    temperature: float | None = None
    top_p: float | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    timeout_seconds: float | None = None


class ChatRequest(AnswerRequest, kw_only=True, forbid_unknown_fields=True):
    """``POST /v1/chat/completions``."""

    messages: list[dict[str, Any]]
    max_completion_tokens: int | None = None
    max_tokens: int | None = None
    n: int = 1
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logprobs: bool = False
    top_logprobs: int = 0
    logit_bias: dict[str, float] | None = None
    response_format: ResponseFormat | None = None
    tools: list[ChatTool] = []
    tool_choice: ToolMode | ChatToolChoice | None = None
    parallel_tool_calls: bool = True
    max_reasoning_tokens: int | None = None
    regex: str | None = None
    choices: list[str] | None = None


class CompletionRequest(AnswerRequest, kw_only=True, forbid_unknown_fields=True):
    """``POST /v1/completions``."""

    prompt: str | list[str | int | list[int]]
    max_tokens: int | None = None
    n: int = 1
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logprobs: int | None = None
    logit_bias: dict[str, float] | None = None
    echo: bool = False
    best_of: int | None = None
    regex: str | None = None
    choices: list[str] | None = None


class ResponsesRequest(AnswerRequest, kw_only=True, forbid_unknown_fields=True):
    """``POST /v1/responses``."""

    input: str | list[dict[str, Any]]
    instructions: str | None = None
    max_output_tokens: int | None = None
    text: TextConfig | None = None
    tools: list[ResponseTool] = []
    tool_choice: ToolMode | ResponseToolChoice | None = None
    parallel_tool_calls: bool = True
    truncation: Literal["auto", "disabled"] = "disabled"
    metadata: dict[str, str] | None = None


class TokenizeRequest(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """``POST /tokenize``: either a prompt or messages."""

    model: str = ""
    prompt: str | None = None
    messages: list[dict[str, Any]] | None = None


class DetokenizeRequest(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """``POST /detokenize``."""

    tokens: list[int]
    model: str = ""
