"""Dataclasses and pydantic models as the shapes of answers: rare annotations, and what has none."""

from __future__ import annotations

import dataclasses
import enum
import json
import math
import random
import typing
from collections.abc import Callable
from dataclasses import InitVar, dataclass, field, make_dataclass
from typing import Any, ClassVar, Literal

import pydantic
import pytest

from phi3ov.answer.options import GenerationOptions
from phi3ov.errors import OptionError
from phi3ov.structured.json_schema import json_grammar
from phi3ov.structured.shape import AnswerShape
from phi3ov.structured.types import build_value, dataclass_schema

from .grammar_sampler import GrammarSampler


@dataclass
class Number:
    """One end of `Sum`."""

    value: float


@dataclass
class Sum:
    """A union in itself; its tag comes last."""

    left: Number | Sum | Product
    right: Number | Sum | Product
    kind: Literal["sum"]


@dataclass
class Product:
    """The same names as `Sum`."""

    left: Number | Sum | Product
    right: Number | Sum | Product
    kind: Literal["product"]


@dataclass
class Empty:
    """Without a field."""


@dataclass
class Started:
    """What ``__init__`` takes and what it does not."""

    given: int
    start: InitVar[int]
    shared: ClassVar[int] = 3
    total: int = field(default=0, init=False)

    def __post_init__(self, start: int) -> None:
        """Use what is no field."""
        self.total = self.given + start


def shape_of(kind: Any) -> AnswerShape:
    """Return the shape of answers that are of a class."""
    shape = GenerationOptions(json_schema=kind).shape()
    assert shape is not None
    return shape


@pytest.mark.parametrize("kind", [Sum, Empty, Started, Number])
def test_every_text_of_a_dataclass_becomes_an_instance(kind: type) -> None:
    """Whatever the grammar allows."""
    shape = shape_of(kind)
    sampler = GrammarSampler(shape.grammar)
    for seed in range(40):
        value = shape.parse(sampler.draw(random.Random(seed), fuel=12))
        assert type(value) is kind


def test_a_union_of_dataclasses_takes_the_one_that_fits() -> None:
    """By the names of its fields, or by what they may be."""
    number, tree = {"value": 1}, {"left": {"value": 1}, "right": {"value": 2}, "kind": "product"}
    built = build_value(Sum, {"left": tree, "right": number, "kind": "sum"})
    assert built == Sum(Product(Number(1.0), Number(2.0), "product"), Number(1.0), "sum")
    with pytest.raises(ValueError, match="none of the types"):
        build_value(Sum, {"left": {}, "right": number, "kind": "sum"})


def test_a_deep_union_is_not_tried_again_at_each_level() -> None:
    """Its tag decides before what it holds is built: else this would take 2 to the power of 60."""
    value: Any = {"value": 0}
    for _ in range(60):
        value = {"left": value, "right": {"value": 1}, "kind": "product"}
    assert build_value(Sum | Product, value).kind == "product"


def test_an_init_variable_is_asked_for_and_handed_over() -> None:
    """A field that ``__init__`` does not take is left out."""
    schema = dataclass_schema(Started)["$defs"]["Started"]
    assert list(schema["properties"]) == ["given", "start"]
    assert shape_of(Started).parse('{"given": 1, "start": 2}').total == 3


def test_a_dataclass_without_fields_is_an_empty_object() -> None:
    """Not any object."""
    sampler = GrammarSampler(shape_of(Empty).grammar)
    assert {sampler.draw(random.Random(seed)) for seed in range(9)} == {"{}"}


def test_classes_of_the_same_name_are_told_apart() -> None:
    """Each keeps its own schema."""
    twins = [make_dataclass("Twin", [(name, int)]) for name in ("one", "other")]
    both = make_dataclass("Both", [("a", twins[0]), ("b", twins[1]), ("c", twins[0])])
    values = {"a": {"one": 1}, "b": {"other": 2}, "c": {"one": 3}}
    text = json.dumps(values)
    assert dataclasses.asdict(shape_of(both).parse(text)) == values
    sampler = GrammarSampler(json_grammar(dataclass_schema(both)))
    drawn = json.loads(sampler.draw(random.Random(0)))
    assert [list(one) for one in drawn.values()] == [["one"], ["other"], ["one"]]


class Odd(enum.Enum):
    """A value that JSON gives back as a list."""

    PAIR = (1, 2)


class Nan(enum.Enum):
    """A value that JSON has not."""

    NAN = math.nan


class Count(enum.IntEnum):
    """A member is an integer, and JSON gives another one back."""

    ONE = 1


BARE: list[Any] = [getattr(typing, name) for name in ("List", "Dict", "Tuple", "Union", "Literal")]
LITERALS: list[Any] = [typing.Literal[one] for one in (b"x", Odd.PAIR, Count.ONE, (1.5, math.inf))]


@pytest.mark.parametrize(
    "kind",
    [
        *BARE, *LITERALS, list, dict, tuple, BARE[0] | None, tuple[()], dict[int, str], Odd, Nan,
        set[int], "no.such.thing", "1 +", complex, Callable[[], int],
    ],
    ids=str,
)  # fmt: skip
def test_an_annotation_without_a_json_form_is_refused(kind: Any) -> None:
    """By an error of the library, which names the class."""
    with pytest.raises(OptionError, match="Holder"):
        GenerationOptions(json_schema=make_dataclass("Holder", [("x", kind)]))


def test_what_pydantic_has_no_schema_for_is_refused() -> None:
    """Its own error is the cause."""

    class Model(pydantic.BaseModel):
        call: Callable[[], int]

    with pytest.raises(OptionError, match="json_schema=Model: pydantic makes no schema") as caught:
        GenerationOptions(json_schema=Model)
    assert type(caught.value.__cause__).__module__.startswith("pydantic")


class Cat(pydantic.BaseModel):
    """A tag with a default, which pydantic does not call required."""

    kind: Literal["cat"] = "cat"
    lives: int = 9


class Dog(pydantic.BaseModel):
    """The other."""

    kind: Literal["dog"] = "dog"


class Home(pydantic.BaseModel):
    """A union that its tag tells apart."""

    pets: list[Cat | Dog] = pydantic.Field(max_length=3)
    favourite: Cat | Dog = pydantic.Field(discriminator="kind")


def test_every_text_of_a_pydantic_model_validates() -> None:
    """A discriminated union's tag is always there."""
    shape = shape_of(Home)
    sampler = GrammarSampler(shape.grammar)
    homes = [shape.parse(sampler.draw(random.Random(seed), fuel=20)) for seed in range(40)]
    assert {type(one.favourite) for one in homes} == {Cat, Dog}
