"""Checks a finished answer against its schema with the jsonschema package."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..errors import MissingDependencyError, OptionError


def schema_check(schema: dict[str, Any]) -> Callable[[Any], Any]:
    """Return a function that returns a value if it fits ``schema``, else raises ValueError.

    Raises:
        OptionError: ``schema`` is not a JSON schema.
        MissingDependencyError: jsonschema is not installed.
    """
    try:
        import jsonschema  # type: ignore[import-untyped]
    except ImportError as error:
        raise MissingDependencyError(
            "jsonschema",
            purpose="validate='after' with a dictionary",
            command="pip install jsonschema",
        ) from error
    kind = jsonschema.validators.validator_for(schema, default=jsonschema.Draft202012Validator)
    try:
        kind.check_schema(schema)
    except jsonschema.SchemaError as error:
        raise OptionError(
            f"json_schema is not a JSON schema: {error.message}.", option="json_schema"
        ) from error
    validator = kind(schema, format_checker=kind.FORMAT_CHECKER)

    def check(value: Any) -> Any:
        error = jsonschema.exceptions.best_match(validator.iter_errors(value))
        if error is not None:
            raise ValueError(f"{error.json_path}: {error.message}")
        return value

    return check
