"""Parsers for ``with_structured_output`` that refuse an answer that was cut off.

LangChain's own parsers complete the braces of truncated JSON, and return a partial value as if it
were complete.
"""

from __future__ import annotations

from operator import itemgetter
from typing import Any

from langchain_core.exceptions import OutputParserException
from langchain_core.output_parsers import JsonOutputParser, PydanticOutputParser
from langchain_core.outputs import Generation
from langchain_core.runnables import Runnable, RunnableMap, RunnablePassthrough
from langchain_core.utils.pydantic import is_basemodel_subclass

_CUT_OFF = {"length", "timeout", "cancelled"}


class WholeJsonParser(JsonOutputParser):
    """Parses the JSON of a complete answer to plain values; streams yield partial values first."""

    def parse_result(self, result: list[Generation], *, partial: bool = False) -> Any:
        """Parse an answer.

        Raises:
            OutputParserException: The answer was cut off, or is not JSON.
        """
        _require_whole(result)
        return super().parse_result(result, partial=partial)


class WholePydanticParser(PydanticOutputParser[Any]):
    """Parses the JSON of a complete answer to a pydantic model."""

    def parse_result(self, result: list[Generation], *, partial: bool = False) -> Any:
        """Parse an answer.

        Raises:
            OutputParserException: The answer was cut off, or does not fit the class.
        """
        _require_whole(result)
        return super().parse_result(result, partial=partial)


def _require_whole(result: list[Generation]) -> None:
    message = getattr(result[0], "message", None)
    reason = getattr(message, "response_metadata", {}).get("finish_reason")
    if reason in _CUT_OFF:
        raise OutputParserException(
            f"The answer was cut off (finish_reason={reason!r}), so its value is incomplete: "
            f"{result[0].text!r:.200}. Raise max_tokens or timeout, or bound the lengths in the "
            "schema.",
            llm_output=result[0].text,
        )


def parsed_output(
    answering: Runnable[Any, Any], schema: dict[str, Any] | type, *, include_raw: bool
) -> Runnable[Any, Any]:
    """Return a chain that parses the answers of ``answering``.

    Args:
        answering: The model, bound to the schema.
        schema: The schema. A pydantic class yields instances, any other schema dictionaries.
        include_raw: Return ``{"raw", "parsed", "parsing_error"}`` and raise no parsing error.
    """
    parser: Runnable[Any, Any]
    if isinstance(schema, type) and is_basemodel_subclass(schema):
        parser = WholePydanticParser(pydantic_object=schema)
    else:
        parser = WholeJsonParser()
    if not include_raw:
        return answering | parser
    parsed = RunnablePassthrough.assign(
        parsed=itemgetter("raw") | parser, parsing_error=lambda _: None
    )
    unparsed = RunnablePassthrough.assign(parsed=lambda _: None)
    return RunnableMap(raw=answering) | parsed.with_fallbacks(
        [unparsed], exception_key="parsing_error"
    )
