"""LongRoPE factors are chosen once, from the config, and pinned in the graph."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from typing import Any

import pytest

from phi3ov.errors import OptionError, UnsupportedModelError
from phi3ov.family import Phi3Config
from phi3ov.runtime.rope import (
    ContextChoice,
    RopeFactors,
    choose_context,
    pin_factors,
)

from .fakes import make_config

PLAIN = make_config(rope_scaling=None)
LONG_4 = make_config(
    max_position_embeddings=131072,
    original_max_position_embeddings=4096,
    rope_scaling={"type": "longrope", "short_factor": [1.0], "long_factor": [2.0]},
)
LONG_5 = make_config(
    max_position_embeddings=131072,
    rope_parameters={"rope_type": "longrope", "original_max_position_embeddings": 4096},
)
LONG_SU = make_config(
    max_position_embeddings=131072,
    original_max_position_embeddings=4096,
    rope_scaling={"type": "su"},
)
ALL_LONG = [LONG_4, LONG_5, LONG_SU]


@pytest.mark.parametrize("config", ALL_LONG)
@pytest.mark.parametrize(
    ("asked", "tokens", "factors"),
    [
        (None, 4096, "short"),
        (1, 1, "short"),
        (4096, 4096, "short"),
        (4097, 4097, "long"),
        (131072, 131072, "long"),
    ],
)
def test_context_decides_the_factors(
    config: Phi3Config, asked: int | None, tokens: int, factors: RopeFactors
) -> None:
    """Up to the original context short factors, above it long ones, in every config style."""
    assert choose_context(config, asked) == ContextChoice(tokens=tokens, factors=factors)
    assert config.original_max_position_embeddings == 4096
    assert config.has_longrope


@pytest.mark.parametrize(("asked", "tokens"), [(None, 4096), (100, 100), (4096, 4096)])
def test_plain_rope_has_no_factors(asked: int | None, tokens: int) -> None:
    """A 4k model has one set, whatever is asked."""
    assert choose_context(PLAIN, asked) == ContextChoice(tokens=tokens, factors="none")
    default_5 = make_config(rope_parameters={"rope_type": "default"})
    assert choose_context(default_5, asked) == ContextChoice(tokens=tokens, factors="none")


def test_plain_rope_ignores_an_original_context() -> None:
    """Without LongRoPE the whole context is the original one."""
    config = make_config(max_position_embeddings=8192, original_max_position_embeddings=4096)
    assert config.original_max_position_embeddings == 8192


@pytest.mark.parametrize("asked", [0, -1, 131073, True, 4096.0, "4096"])
def test_context_out_of_range_is_refused(asked: Any) -> None:
    """The error names the value and the model's limit."""
    with pytest.raises(OptionError, match=f"context_tokens={asked!r}.*131072"):
        choose_context(LONG_4, asked)


def graph(*names: str, kind: str = "Greater") -> str:
    """Write a small IR with a comparison of each name: 10 (length) against 11 (border)."""
    layers = "".join(
        f'<layer id="{20 + index}" name="{name}" type="{kind}" version="opset1"/>'
        for index, name in enumerate(names)
    )
    edges = "".join(
        f'<edge from-layer="11" from-port="3" to-layer="{20 + index}" to-port="1"/>'
        f'<edge from-layer="10" from-port="2" to-layer="{20 + index}" to-port="0"/>'
        f'<edge from-layer="{20 + index}" from-port="2" to-layer="30" to-port="0"/>'
        for index in range(len(names))
    )
    return (
        '<?xml version="1.0"?><net name="m" version="11"><layers>'
        '<layer id="10" name="length" type="Add"/><layer id="11" name="border" type="Const"/>'
        f'{layers}<layer id="30" name="select" type="Select"/></layers><edges>{edges}</edges></net>'
    )


NODE = "__module.model.rotary_emb/aten::gt/Greater"
SHORT = ContextChoice(tokens=4096, factors="short")
LONG = ContextChoice(tokens=8192, factors="long")


@pytest.mark.parametrize(("choice", "kind"), [(SHORT, "Greater"), (LONG, "GreaterEqual")])
def test_pinned_comparison_compares_a_value_with_itself(choice: ContextChoice, kind: str) -> None:
    """Both inputs come from one source: x > x is never true, x >= x always; the rest stays."""
    before = graph(NODE, "other/Greater")
    root = ET.fromstring(pin_factors(before, choice, original_tokens=4096))
    layers = {layer.attrib["name"]: layer for layer in root.iter("layer")}
    assert layers[NODE].attrib["type"] == kind
    assert layers["other/Greater"].attrib["type"] == "Greater"
    sources = {
        layer: [
            (edge.attrib["from-layer"], edge.attrib["from-port"])
            for edge in root.iter("edge")
            if edge.attrib["to-layer"] == layer
        ]
        for layer in ("20", "21", "30")
    }
    assert sources["20"] == [("10", "2"), ("10", "2")]
    assert sources["21"] == [("11", "3"), ("10", "2")]
    assert sources["30"] == [("20", "2"), ("21", "2")]


def test_model_without_longrope_is_left_alone() -> None:
    """Nothing is parsed or changed where there is nothing to choose."""
    choice = ContextChoice(tokens=4096, factors="none")
    assert pin_factors("not even xml", choice, original_tokens=4096) == "not even xml"


def test_export_with_one_set_is_good_up_to_the_original_context() -> None:
    """An export without the comparison is taken as it is for short contexts."""
    assert pin_factors(graph(), SHORT, original_tokens=4096) == graph()


@pytest.mark.parametrize("choice", [LONG, ContextChoice(tokens=4097, factors="short")])
def test_export_with_one_set_is_refused_above_it(choice: ContextChoice) -> None:
    """It would answer garbage: the message says what to do."""
    with pytest.raises(UnsupportedModelError, match=r"one factor set only.*context_tokens=4096"):
        pin_factors(graph(), choice, original_tokens=4096)


def test_two_comparisons_are_refused() -> None:
    """A graph that phi3ov does not know is not touched."""
    with pytest.raises(UnsupportedModelError, match="in 2 places"):
        pin_factors(graph(NODE, NODE + "_1"), SHORT, original_tokens=4096)


def test_other_nodes_of_the_rotary_embedding_are_no_comparison() -> None:
    """Only a Greater inside rotary_emb is the border's comparison."""
    assert pin_factors(graph(NODE, kind="Less"), SHORT, original_tokens=4096) == graph(
        NODE, kind="Less"
    )
