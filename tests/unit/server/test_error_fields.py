"""A request that the library refuses names the field of the request in ``error.param``."""

from __future__ import annotations

from typing import Any

import pytest

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
    """The error's text begins with the option, so clients learn which field to leave out."""
    request = TokenRequest(prompt_ids=(1,), max_new_tokens=1, stop_ids=frozenset(), **changed)
    with pytest.raises(OptionError) as refused:
        check_request(request, "transformers")
    error = translate_error(refused.value)
    assert (error.status, error.body()["error"]["param"]) == (400, field)
