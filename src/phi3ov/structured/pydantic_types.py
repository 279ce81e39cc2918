"""Reads classes with pydantic: its models, its dataclasses, and types with its constraints.

A caller with such a class has pydantic installed; phi3ov does not depend on it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

from ..errors import MissingDependencyError, OptionError


def read_pydantic(cls: type[Any]) -> tuple[dict[str, Any], Callable[[str], Any]]:
    """Return the JSON schema of a class, and a function that parses a JSON text into an instance.

    Raises:
        OptionError: pydantic cannot make a schema of the class.
        MissingDependencyError: The class has constraints of annotated_types, and pydantic is not
            installed.
    """
    try:
        import pydantic
    except ImportError as error:
        raise MissingDependencyError(
            "pydantic",
            purpose=f"json_schema={cls.__name__}, whose annotations are of annotated_types,",
            command="pip install pydantic",
        ) from error
    try:
        adapter = pydantic.TypeAdapter(cls)
        schema = adapter.json_schema(schema_generator=_schema_generator())
    except Exception as error:  # pydantic's errors, and those of the class's own hooks
        raise OptionError(
            f"json_schema={cls.__name__}: pydantic makes no schema of it: {error}",
            option="json_schema",
        ) from error
    return schema, adapter.validate_json


@cache
def _schema_generator() -> Any:
    from pydantic.json_schema import GenerateJsonSchema

    class NumbersForDecimal(GenerateJsonSchema):
        """Generates a number for Decimal; pydantic's pattern for its text uses lookahead."""

        def decimal_schema(self, schema: Any) -> dict[str, Any]:
            found = super().decimal_schema(schema)
            members = found.get("anyOf", [found])
            number: dict[str, Any] = dict(
                next(member for member in members if member["type"] == "number")
            )
            digits, places = schema.get("max_digits"), schema.get("decimal_places")
            if places is not None:
                known = number.setdefault("multipleOf", 10**-places)
                if known != 10**-places:
                    number["decimalPlaces"] = places  # not a JSON schema keyword, so refused
            if digits is not None and places is not None:
                most = 10 ** (digits - places) - 10**-places
                number["maximum"] = min(number.get("maximum", most), most)
                number["minimum"] = max(number.get("minimum", -most), -most)
            elif digits is not None:
                number["maxDigits"] = digits  # not a JSON schema keyword, so refused
            return number

    return NumbersForDecimal
