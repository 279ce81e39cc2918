"""Dataclasses and pydantic models as the shapes of answers: rare annotations, and what has none."""

from __future__ import annotations

import dataclasses
import enum
import json
import math
import random
import re
import typing
from collections.abc import Callable
from dataclasses import InitVar, dataclass, field, make_dataclass
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from typing import (
    Annotated,
    Any,
    ClassVar,
    Literal,
    NamedTuple,
    NotRequired,
    Required,
    TypedDict,
)
from uuid import UUID

import annotated_types
import msgspec
import pydantic
import pytest

from phi3ov.answer.options import GenerationOptions
from phi3ov.errors import OptionError
from phi3ov.structured.json_schema import json_grammar
from phi3ov.structured.shape import AnswerShape
from phi3ov.structured.types import build_value, read_class

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
    schema = read_class(Started)[0]["$defs"]["Started"]
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
    sampler = GrammarSampler(json_grammar(read_class(both)[0]))
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
        set[int], frozenset[str], bytes, typing.Annotated[int, range(3)],
        "no.such.thing", "1 +", complex, Callable[[], int],
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


class Everyday(pydantic.BaseModel):
    """Fields that a grammar holds, each in the form that pydantic has for it."""

    share: float = pydantic.Field(ge=0, le=1)
    above: float = pydantic.Field(gt=0)
    fives: int = pydantic.Field(multiple_of=5, ge=0, lt=100)
    price: Decimal = pydantic.Field(decimal_places=2, max_digits=6)
    plain: Decimal
    tags: set[Literal["a", "b", "c"]] = pydantic.Field(min_length=1)
    day: date
    when: datetime
    url: pydantic.AnyUrl
    web: pydantic.HttpUrl
    mail: str = pydantic.Field(json_schema_extra={"format": "email"})
    span: timedelta
    aliased: int = pydantic.Field(alias="Aliased")
    code: str = pydantic.Field(pattern="^[A-Z]{2}[0-9]+$", max_length=6)


def test_everyday_fields_of_pydantic_are_enforced() -> None:
    """Every text validates, so bounds, formats and lengths hold in the grammar."""
    shape = shape_of(Everyday)
    sampler = GrammarSampler(shape.grammar)
    for seed in range(150):
        text = sampler.draw(random.Random(seed), fuel=30)
        value = shape.parse(text)
        assert "Aliased" in json.loads(text)
        assert re.fullmatch(r"[A-Z]{2}[0-9]{1,4}", value.code)
        assert re.fullmatch(r"[\w+.]+@[\w.-]+\.[A-Za-z]+", value.mail, re.ASCII)


class Unenforceable(pydantic.BaseModel):
    """What no grammar of a sensible size holds."""

    words: set[str] = pydantic.Field(min_length=2)
    name: str = pydantic.Field(pattern="^(a+b+)+$", max_length=5)


@pytest.mark.parametrize(
    "fields",
    [
        {"words": (set[str], ...)},
        {"words": (frozenset[int], ...)},
        {"name": (str, pydantic.Field(pattern="^(a+b+)+$", max_length=5))},
        {"name": (str, pydantic.Field(json_schema_extra={"pattern": "^(?=a)b"}))},
        {"some": (dict[str, int], pydantic.Field(min_length=1))},
        {"digits": (Decimal, pydantic.Field(max_digits=5))},
        {"secret": (bytes, pydantic.Field(max_length=3, json_schema_extra={"format": "bin"}))},
    ],
    ids=str,
)
def test_what_a_grammar_cannot_hold_is_refused_unless_it_is_checked_after(
    fields: dict[str, Any],
) -> None:
    """The error names the way out, and that takes it."""
    model = pydantic.create_model("Model", **fields)
    with pytest.raises(OptionError, match="validate='after'"):
        GenerationOptions(json_schema=model)
    assert GenerationOptions(json_schema=model, validate="after").shape() is not None


def test_a_class_checks_the_finished_answer() -> None:
    """What fits becomes an instance, what does not is an error that names the field."""
    shape = GenerationOptions(json_schema=Unenforceable, validate="after").shape()
    assert shape is not None
    assert shape.parse('{"words": ["x", "y"], "name": "aab"}').words == {"x", "y"}
    with pytest.raises(pydantic.ValidationError, match="words"):
        shape.parse('{"words": ["x", "x"], "name": "ab"}')
    drawn = [GrammarSampler(shape.grammar).draw(random.Random(seed)) for seed in range(20)]
    assert all(json.loads(text).keys() == {"words", "name"} for text in drawn)


@pydantic.dataclasses.dataclass
class Bounded:
    """pydantic's dataclass."""

    amount: Annotated[int, pydantic.Field(ge=10, le=12)]


@dataclass
class WithField:
    """A plain dataclass with a constraint of pydantic's, and one of annotated_types."""

    amount: Annotated[int, pydantic.Field(ge=10, le=12)]
    less: Annotated[int, annotated_types.Interval(ge=10, le=12)]


@dataclass
class Holder:
    """A dataclass that holds another."""

    bounded: Bounded


@dataclass
class WithMeta:
    """A plain dataclass with constraints of msgspec's."""

    amount: Annotated[
        int, "how much", msgspec.Meta(ge=10, description="of it"), msgspec.Meta(le=12)
    ]
    word: Annotated[str, msgspec.Meta(pattern="^a{2,5}$", max_length=3)]
    some: Annotated[list[Number], msgspec.Meta(min_length=1, max_length=2)]
    steps: list[Annotated[float, msgspec.Meta(multiple_of=0.5, gt=0)]]


@pytest.mark.parametrize("kind", [Bounded, WithField, Holder, WithMeta])
def test_constraints_of_annotated_are_enforced(kind: Any) -> None:
    """Constraints of every kind of class count, those of pydantic's dataclasses included."""
    shape = shape_of(kind)
    sampler = GrammarSampler(shape.grammar)
    for seed in range(40):
        text = sampler.draw(random.Random(seed))
        for found in re.findall(r'"(?:amount|less)": (\d+)', text):
            assert 10 <= int(found) <= 12
        assert type(shape.parse(text)) is kind
    if kind is WithMeta:
        values = [shape.parse(sampler.draw(random.Random(seed))) for seed in range(30)]
        assert {len(value.word) for value in values} == {2, 3}
        assert {len(value.some) for value in values} == {1, 2}


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"amount": 9}, ">= 10"), ({"word": "b"}, "regex"), ({"some": []}, "length"),
        ({"steps": [0.3]}, "multiple"),
    ],
)  # fmt: skip
def test_a_checked_answer_is_checked_against_msgspecs_constraints(
    value: dict[str, Any], message: str
) -> None:
    """With validate="after" the grammar may have dropped one."""
    good: dict[str, Any] = {"amount": 10, "word": "aa", "some": [{"value": 1}], "steps": [0.5]}
    assert build_value(WithMeta, good) == WithMeta(10, "aa", [Number(1.0)], [0.5])
    with pytest.raises(ValueError, match=message):
        build_value(WithMeta, good | value)


def test_bounds_that_pydantic_would_ignore_are_refused() -> None:
    """And those that fit no type, or that only another library knows."""
    mixed = pydantic.create_model("Mixed", x=(Annotated[int, msgspec.Meta(ge=3)], ...))
    with pytest.raises(OptionError, match=r"msgspec\.Meta beside pydantic"):
        GenerationOptions(json_schema=mixed)
    for kind, message in (
        (Annotated[str, msgspec.Meta(ge=3)], "Odd.x: Can only set `ge` on a numeric type"),
        (Annotated[int, range(3)], r"has the annotation range\(0, 3\)"),
        (Annotated[datetime, msgspec.Meta(tz=False)], "timezone"),
        (Annotated[dict[str, int], msgspec.Meta(min_length=1)], "minProperties"),
    ):
        with pytest.raises(OptionError, match=message):
            GenerationOptions(json_schema=make_dataclass("Odd", [("x", kind)]))


class Address(TypedDict):
    """A dictionary, one key of which may be missing."""

    street: str
    number: NotRequired[int]


class Loose(TypedDict, total=False):
    """A dictionary, one key of which is required."""

    street: Required[str]
    number: int


class Pair(NamedTuple):
    """An array of two."""

    address: Address
    number: Number | None = None


@dataclass
class Dates:
    """What msgspec makes of texts and numbers."""

    day: date
    at: time
    when: datetime
    span: timedelta
    key: UUID
    price: Decimal
    flags: set[bool]


@pytest.mark.parametrize("kind", [Dates, Pair, Address, Loose])
def test_texts_of_other_structures_become_instances(kind: Any) -> None:
    """Of the types that the annotations name."""
    shape = shape_of(kind)
    sampler = GrammarSampler(shape.grammar)
    for seed in range(40):
        value = shape.parse(sampler.draw(random.Random(seed), fuel=12))
        if kind is Dates:
            for name, found in typing.get_type_hints(Dates).items():
                assert isinstance(getattr(value, name), typing.get_origin(found) or found)
        elif kind is Pair:
            assert isinstance(value, Pair)
            assert value.number is None or isinstance(value.number, Number)
            assert set(value.address) in ({"street"}, {"street", "number"})
        else:
            assert set(value) in ({"street"}, {"street", "number"})
