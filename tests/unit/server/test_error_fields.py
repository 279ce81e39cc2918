"""A request that the library refuses names the field of the request in ``error.param``."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any

import pytest

import phi3ov
from phi3ov.answer.options import Sampling
from phi3ov.answer.token_stream import TokenRequest
from phi3ov.engine.sampling import check_request
from phi3ov.errors import OptionError
from phi3ov.server.errors import translate_error


@pytest.mark.parametrize(
    ("field", "changed"),
    [
        ("logprobs", {"logprobs": True}),
        ("top_logprobs", {"top_logprobs": 2}),
        ("logit_bias", {"sampling": Sampling(logit_bias={5: 100.0})}),
        ("presence_penalty", {"sampling": Sampling(presence_penalty=1.0)}),
    ],
)
def test_an_option_that_the_engine_refuses_is_the_param(
    field: str, changed: dict[str, Any]
) -> None:
    """The error names the option, so clients learn which field to leave out."""
    request = TokenRequest(prompt_ids=(1,), max_new_tokens=1, stop_ids=frozenset(), **changed)
    with pytest.raises(OptionError) as refused:
        check_request(request, "transformers")
    error = translate_error(refused.value)
    assert (error.status, error.body()["error"]["param"]) == (400, field)


@pytest.mark.parametrize(
    ("error", "param", "message"),
    [
        (OptionError("top_p=2 is too large", option="top_p"), "top_p", "top_p=2 is too large"),
        (
            OptionError("max_new_tokens=0 must be at least 1", option="max_new_tokens"),
            "max_tokens",
            "max_tokens=0 must be at least 1",
        ),
        (
            OptionError("An answer has one shape: drop regex", option="regex"),
            "regex",
            "An answer has one shape: drop regex",
        ),
        (OptionError("top_p=2 and more"), None, "top_p=2 and more"),
    ],
)
def test_the_param_is_the_errors_option(
    error: OptionError, param: str | None, message: str
) -> None:
    """Wherever it stands in the text; the text has the protocol's name of the field."""
    body = translate_error(error).body()["error"]
    assert (body["param"], body["message"]) == (param, message)


def begins_with_option(message: ast.expr) -> bool:
    """Whether the text of an error is that of an option: ``name=value`` or ``name: ...``."""
    if isinstance(message, ast.Constant):
        return re.match(r"\w+[=:]", str(message.value)) is not None
    if not isinstance(message, ast.JoinedStr):
        return False
    first, *others = message.values
    if isinstance(first, ast.Constant):
        return re.match(r"\w+[=:\[]", str(first.value)) is not None
    is_name = isinstance(first, ast.FormattedValue) and not isinstance(first.value, ast.BinOp)
    after = others[0].value if others and isinstance(others[0], ast.Constant) else ""
    return is_name and str(after).startswith(("=", ":"))


def test_every_error_that_begins_with_an_option_holds_it() -> None:
    """Nothing reads the option from the text, so each place that raises says it."""
    package = Path(phi3ov.__file__).parent
    seen, missing = 0, []
    for path in sorted(package.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not (isinstance(node, ast.Call) and ast.unparse(node.func) == "OptionError"):
                continue
            seen += 1
            named = any(keyword.arg == "option" for keyword in node.keywords)
            if begins_with_option(node.args[0]) and not named:
                missing.append(f"{path.relative_to(package)}:{node.lineno}")
    assert seen > 150
    assert missing == []
