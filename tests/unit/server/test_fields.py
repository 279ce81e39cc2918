"""The field table: complete, free of contradictions, and what requests are checked with."""

from __future__ import annotations

import typing
from pathlib import Path
from typing import Any

import msgspec
import pytest

from phi3ov.server.errors import ApiError
from phi3ov.server.fields import (
    ENDPOINTS,
    FIELDS,
    Endpoint,
    check_fields,
    describe_fields,
    fields_of,
)
from phi3ov.server.openapi import describe_api
from phi3ov.server.schemas import (
    ChatRequest,
    CompletionRequest,
    DetokenizeRequest,
    ResponsesRequest,
    TokenizeRequest,
)

KINDS: dict[Endpoint, type[msgspec.Struct]] = {
    "chat": ChatRequest,
    "completions": CompletionRequest,
    "responses": ResponsesRequest,
    "tokenize": TokenizeRequest,
    "detokenize": DetokenizeRequest,
}
DOCS = Path(__file__).parents[3] / "docs" / "server"


@pytest.mark.parametrize("endpoint", KINDS)
def test_the_honoured_fields_are_those_of_the_type(endpoint: Endpoint) -> None:
    """A field that the table calls honoured reaches the code, and the code reads no other."""
    honoured = {name for name, row in fields_of(endpoint).items() if row.policy == "honoured"}
    assert honoured == set(KINDS[endpoint].__struct_fields__)


def test_no_field_stands_in_two_rows() -> None:
    """Each endpoint has one row for each field."""
    for endpoint in ENDPOINTS:
        names = [row.name for row in FIELDS if endpoint in row.endpoints]
        assert sorted(names) == sorted(set(names))


def test_every_row_says_what_it_means() -> None:
    """Policies are the three that exist, and each row has a note that ends like a sentence."""
    policies = typing.get_args(typing.get_type_hints(type(FIELDS[0]))["policy"])
    assert {row.policy for row in FIELDS} == set(policies)
    assert all(row.note.endswith((".", "medium.")) for row in FIELDS)


@pytest.mark.parametrize(
    ("body", "param", "code"),
    [
        ({"frequency_penalt": 1}, "frequency_penalt", "unknown_parameter"),
        ({"audio": {"voice": "a"}}, "audio", "unsupported_parameter"),
        ({"store": True}, "store", "unsupported_value"),
        ({"store": 0}, "store", "unsupported_value"),  # 0 is not false
        ({"service_tier": "priority"}, "service_tier", "unsupported_value"),
    ],
)
def test_what_has_no_effect_here_is_refused_by_name(
    body: dict[str, Any], param: str, code: str
) -> None:
    """A field is never accepted and ignored when its value asks for something."""
    with pytest.raises(ApiError) as caught:
        check_fields("chat", body, ignore_unknown=False)
    assert (caught.value.status, caught.value.param, caught.value.code) == (400, param, code)
    assert param in caught.value.message


def test_neutral_values_and_nulls_are_accepted() -> None:
    """What clients send without wanting anything passes, and does not reach the code."""
    body = {
        "model": "m",
        "user": "u",
        "metadata": {"a": "b"},
        "store": False,
        "service_tier": "auto",
        "modalities": ["text"],
        "audio": None,
        "prediction": None,
        "n": None,
    }
    assert check_fields("chat", body, ignore_unknown=False) == ({"model": "m"}, [])


def test_an_unknown_field_names_the_nearest() -> None:
    """A misspelt field is not ignored; unless the server says so, and then it is named."""
    with pytest.raises(ApiError, match="Did you mean temperature"):
        check_fields("chat", {"temprature": 1}, ignore_unknown=False)
    assert check_fields("chat", {"odd": 1, "n": 2}, ignore_unknown=True) == ({"n": 2}, ["odd"])


def test_the_description_names_every_field() -> None:
    """/openapi.json and the documentation are made of the table."""
    api = describe_api("m", with_key=True)
    pages = "\n".join(describe_fields())
    for endpoint, path in ENDPOINTS.items():
        described = api["paths"][path]["post"]["description"]
        for name in fields_of(endpoint):
            assert f"`{name}`" in described
            if endpoint not in ("tokenize", "detokenize"):
                assert f"| `{name}` |" in pages
    assert api["security"] == [{"key": []}]


def test_the_page_of_fields_is_the_table() -> None:
    """docs/server/fields.md holds the table as the code has it."""
    page = (DOCS / "fields.md").read_text(encoding="utf-8")
    assert "\n".join(describe_fields()).strip() in page
