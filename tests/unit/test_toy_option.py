"""Adding a sampling option: one field travels from the caller to the engine by itself."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import msgspec
import pytest

from phi3ov.answer.options import GenerationOptions, Sampling
from phi3ov.answer.token_stream import TokenRequest
from phi3ov.engine import sampling as engine_sampling
from phi3ov.engine.sampling import check_request
from phi3ov.errors import OptionError


@dataclass(frozen=True, slots=True, kw_only=True)
class ToySampling(Sampling):
    """`Sampling` with one more option, as a change of ``answer/options.py`` would add it."""

    toy: float = 0.0


def request(**options: Any) -> TokenRequest:
    """Return a request with the toy option."""
    return TokenRequest(
        prompt_ids=(1,), max_new_tokens=1, stop_ids=frozenset(), sampling=ToySampling(**options)
    )


def test_an_option_needs_no_change_on_its_way() -> None:
    """The request carries it, knows whether it is asked for, and sends it between processes."""
    asked = request(toy=0.5)
    assert asked.asked() == {"toy": 0.5}
    assert request().asked() == {}
    sent = msgspec.json.decode(msgspec.json.encode(asked.sampling), type=ToySampling)
    assert sent == asked.sampling


def test_an_engine_refuses_it_until_its_table_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """No engine ignores an option that it does not know."""
    with pytest.raises(
        OptionError, match=r"toy=0.5 is not supported by engine='worker'. Leave toy"
    ):
        check_request(request(toy=0.5), "worker")
    takes = {"worker": engine_sampling.TAKES["worker"] | {"toy"}}
    monkeypatch.setattr(engine_sampling, "TAKES", engine_sampling.TAKES | takes)
    check_request(request(toy=0.5), "worker")
    with pytest.raises(OptionError, match="engine='worker', or leave toy out"):
        check_request(request(toy=0.5), "paged")


def test_every_sampling_field_is_an_option_of_the_caller() -> None:
    """`GenerationOptions` inherits them, and its ``sampling`` holds them all."""
    chosen = GenerationOptions(temperature=0.5, top_p=0.25, top_k=3, min_p=0.125, seed=7)
    for field in fields(Sampling):
        assert getattr(chosen.sampling, field.name) == getattr(chosen, field.name)
