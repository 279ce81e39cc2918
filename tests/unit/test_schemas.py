"""Schemas as a whole: each is refused, or every text that its grammar allows fits it.

Texts are drawn by ``grammar_sampler.py``, the standard is read by the jsonschema package.
"""

from __future__ import annotations

import json
import random
import re
from typing import Any

import jsonschema  # type: ignore[import-untyped]
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from phi3ov.answer.options import GenerationOptions
from phi3ov.errors import OptionError
from phi3ov.structured.json_schema import json_grammar

from .grammar_sampler import GrammarSampler

CHECKER = jsonschema.FormatChecker(["date", "uuid", "email", "ipv4"])
"""The formats that the jsonschema package checks by itself."""
NAMES = st.sampled_from(["a", "b", 'q"', "é", "$id", "x/y~%20"])
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.floats(-9, 9) | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=5,
)


def fits(value: Any, schema: Any) -> bool:
    """Whether the standard's validator accepts ``value``."""
    validator = jsonschema.Draft202012Validator(schema, format_checker=CHECKER)
    return bool(validator.is_valid(value))


def refused_or_fitting(schema: Any, chance: random.Random) -> bool:
    """Check what is drawn from the grammar of ``schema``; return whether there is one."""
    try:
        shape = GenerationOptions(json_schema=schema).shape()
    except OptionError:
        return False
    assert shape is not None
    sampler = GrammarSampler(shape.grammar)
    for fuel in (4, 12):
        text = sampler.draw(chance, fuel=fuel)
        value = shape.parse(text)
        assert fits(value, schema), text
    return True


def bounded(kind: str, low: int, width: int, keywords: list[str]) -> dict[str, Any]:
    """Return the schema of numbers from ``low`` on, with some of the bounds."""
    bounds = {
        "minimum": low, "exclusiveMinimum": low - 1, "maximum": low + width,
        "exclusiveMaximum": float(low + width + 1),
    }  # fmt: skip
    return {"type": kind} | {one: bounds[one] for one in keywords}


TYPES = st.sampled_from(["object", "array", "string", "integer", "number", "boolean", "null"])
BOUNDS = st.sampled_from(["minimum", "exclusiveMinimum", "maximum", "exclusiveMaximum"])
LEAVES = st.one_of(
    st.just({}),
    st.integers(0, 3).map(lambda n: {"type": "string", "minLength": n, "maxLength": n + 2}),
    st.sampled_from(["^[a-c]{1,3}$", 'x"|\\\\n?', "[^a-y]+"]).map(lambda one: {"pattern": one}),
    st.sampled_from(["date", "time", "date-time", "uuid", "email", "duration", "ipv4", "uri"]).map(
        lambda one: {"format": one}
    ),
    st.lists(TYPES, min_size=1, max_size=3, unique=True).map(lambda some: {"type": some}),
    st.builds(
        bounded,
        st.sampled_from(["integer", "number"]),
        st.integers(-1200, 1200),
        st.integers(0, 1500),
        st.lists(BOUNDS, unique=True),
    ),
    st.integers(1, 60).map(lambda n: {"type": "integer", "multipleOf": n, "minimum": -n}),
    st.lists(JSON.filter(lambda value: not isinstance(value, dict | list)), min_size=1).map(
        lambda some: {"type": "array", "items": {"enum": some}, "uniqueItems": True}
    ),
    st.integers(3, 6).map(lambda n: {"pattern": "xx[yz]*", "minLength": 2, "maxLength": n}),
    st.builds(
        lambda kinds, some: {"type": kinds, "enum": some},
        st.lists(TYPES, min_size=4, unique=True),
        st.lists(JSON, min_size=1, max_size=4),
    ),
    JSON.map(lambda value: {"const": value, "title": "A constant", "default": 3}),
)
"""Schemas without another in them."""


def branches(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """Draw a schema that holds others."""
    properties, names = st.dictionaries(NAMES, inner, max_size=4), st.sets(NAMES)
    return st.one_of(
        st.builds(
            lambda some, needed: {"properties": some, "required": [n for n in some if n in needed]},
            properties,
            names,
        ),
        properties.map(
            lambda some: {"properties": some, "type": "object", "additionalProperties": False}
        ),
        properties.map(lambda some: {"properties": some, "type": ["array", "object", "null"]}),
        inner.map(lambda one: {"additionalProperties": one}),
        inner.map(lambda one: {"type": "array", "items": one}),
        st.builds(
            lambda one, n: {"items": one, "minItems": n, "maxItems": n + 2},
            inner,
            st.integers(0, 2),
        ),
        st.lists(inner, min_size=1, max_size=3).map(lambda some: {"prefixItems": some}),
        st.lists(inner, min_size=1, max_size=3).map(lambda some: {"anyOf": some}),
        inner.map(lambda one: {"allOf": [one]}),
        st.builds(
            lambda tags, some: {
                "oneOf": [{"properties": {"tag": {"const": tag}} | some} for tag in tags],
                "discriminator": {"propertyName": "tag"},
            },
            st.lists(st.sampled_from(["x", "y", 1, None]), min_size=1, max_size=3, unique=True),
            properties,
        ),
    )


REFERENCES = st.sampled_from(
    ["#", "#/$defs/one", "#/$defs/one", "#/$defs/x~1y~0%25", "#/$defs/two/anyOf/0", "#/$defs/two"]
).map(lambda pointer: {"$ref": pointer})
SCHEMAS = st.recursive(LEAVES | REFERENCES, branches, max_leaves=5)


def test_what_a_grammar_allows_fits_its_schema() -> None:
    """What is drawn parses, and the standard's validator accepts it; recursion included.

    And most schemas have a grammar: the others hold only references that no finite value
    follows, or constants without one of the type.
    """
    made: list[bool] = []

    @settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
    @given(data=st.data(), chance=st.randoms(use_true_random=False))
    def check(data: st.DataObject, chance: random.Random) -> None:
        schema = data.draw(SCHEMAS) | {
            "$defs": {
                "one": data.draw(SCHEMAS),
                "x/y~%": data.draw(LEAVES),
                "two": {"anyOf": [data.draw(SCHEMAS), {"type": "null"}]},
            }
        }
        made.append(refused_or_fitting(schema, chance))

    check()
    assert sum(made) > 0.6 * len(made), f"{sum(made)} of {len(made)} schemas have a grammar"


NO_VALUE = r"no value of type|has no number between|no multiple of"


@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(schema=st.recursive(LEAVES, branches, max_leaves=5))
def test_only_a_schema_without_a_value_is_refused(schema: Any) -> None:
    """Where all keywords are supported, and no reference is followed."""
    refusal = ""
    try:
        GenerationOptions(json_schema=schema)
    except OptionError as error:
        refusal = str(error)
    assert not refusal or re.search(NO_VALUE, refusal)


KEYWORDS = [
    "$ref", "$anchor", "$dynamicRef", "$dynamicAnchor", "$vocabulary", "$id", "type", "enum",
    "const", "multipleOf", "maximum", "exclusiveMaximum", "minimum", "exclusiveMinimum",
    "maxLength", "minLength", "pattern", "maxItems", "minItems", "uniqueItems", "maxContains",
    "minContains", "maxProperties", "minProperties", "required", "dependentRequired", "format",
    "prefixItems", "items", "contains", "properties", "patternProperties", "additionalProperties",
    "propertyNames", "dependentSchemas", "if", "then", "else", "allOf", "anyOf", "oneOf", "not",
    "unevaluatedItems", "unevaluatedProperties", "contentSchema", "discriminator", "nullable",
    "dependencies", "additionalItems", "$recursiveRef", "id", "extends", "divisibleBy",
]  # fmt: skip
"""Those of JSON Schema 2020-12, and what older drafts and OpenAPI have besides."""


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    given=st.dictionaries(st.sampled_from(KEYWORDS), JSON, min_size=1, max_size=3),
    kind=st.sampled_from([None, "object", "array", "string", "integer", "number"]),
    where=st.sampled_from(["root", "items", "property", "definition"]),
    chance=st.randoms(use_true_random=False),
)
def test_keywords_of_any_value_are_refused_or_enforced(
    given: dict[str, Any], kind: str | None, where: str, chance: random.Random
) -> None:
    """Never another error, nothing ignored, and what the metaschema forbids is refused."""
    schema: Any = given if kind is None else {"type": kind} | given
    schema = {
        "root": schema,
        "items": {"items": schema},
        "property": {"properties": {"a": schema}, "required": ["a"]},
        "definition": {"$ref": "#/$defs/a", "$defs": {"a": schema}},
    }[where]
    try:
        jsonschema.Draft202012Validator.check_schema(schema)
    except jsonschema.SchemaError as error:
        if "$id" not in error.absolute_path:  # of the root: names it, and says nothing of values
            with pytest.raises(OptionError):
                GenerationOptions(json_schema=schema)
        return
    refused_or_fitting(schema, chance)


TAGGED = {"properties": {"k": {"const": "a"}}, "required": ["k"]}
UNENFORCED: list[tuple[Any, str]] = [
    ({"type": "string", "minimum": 3}, "'minimum', which cannot be enforced"),
    ({"type": ["string", "null"], "multipleOf": 3}, "'multipleOf', which cannot be enforced"),
    ({"type": "string", "enum": [1, None]}, "no value of type='string'"),
    ({"type": "integer", "const": True}, "no value of type='integer'"),
    ({"type": "strin", "const": "a"}, "type='strin'"),
    ({"type": None, "minLength": 3}, "type=None"),
    ({"$ref": "#node", "$defs": {"a": {"$anchor": "node", "type": "null"}}}, "ref='#node'"),
    ({"$ref": "#x/$defs/a", "$defs": {"a": {"type": "null"}}}, "ref='#x/"),
    ({"items": {"$ref": "#/$defs/a"}, "$defs": {"a": {"$id": "b", "$ref": "#"}}}, r"an \$id"),
    ({"oneOf": [TAGGED], "discriminator": None}, "oneOf without a discriminator"),
    ({"oneOf": [TAGGED, TAGGED], "discriminator": {"propertyName": "k"}}, "distinguished from"),
    ({"oneOf": [{}, TAGGED], "discriminator": {"propertyName": "k"}}, "distinguished from"),
    ({"oneOf": [{"type": "null"}], "discriminator": {"propertyName": "k"}}, "distinguished from"),
    ({"type": "array", "minItems": None}, "minItems=None"),
    ({"type": "array", "prefixItems": None}, "prefixItems=None"),
    ({"properties": {"a": {}}, "additionalProperties": None}, "additionalProperties=None"),
    ({"properties": {1: {}}}, "the key 1 is not a string"),
    ({"properties": {"a": {}}, "required": [["a"]]}, "required="),
    ({"format": []}, r"format=\[\]"),
]


@pytest.mark.parametrize(("schema", "message"), UNENFORCED, ids=str)
def test_a_keyword_that_would_have_no_effect_is_refused(schema: Any, message: str) -> None:
    """Each of these was accepted once, and answers did not fit; or it raised a bare TypeError."""
    with pytest.raises(OptionError, match=message):
        GenerationOptions(json_schema=schema)


TEXT = st.text(st.characters(exclude_categories=["Cs"], min_codepoint=32), max_size=6)
PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**14), 10**14) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=5,
)
"""Values that lose nothing: JSON's numbers of up to 15 digits, and no control characters."""


@st.composite
def number_pairs(draw: st.DrawFn) -> tuple[Any, Any]:
    """Draw the schema of a number, and a number that fits it."""
    if draw(st.booleans()):
        step = draw(st.integers(1, 40))
        value = step * draw(st.integers(-900, 900))
        return {
            "type": "integer",
            "multipleOf": step,
            "minimum": value - draw(st.integers(0, 99)),
            "maximum": value + draw(st.integers(0, 99)),
        }, value
    low, high = sorted(draw(st.tuples(*[st.decimals(-999, 999, places=3)] * 2)))
    within = float(draw(st.decimals(low, high, places=3)))
    return {"type": "number", "minimum": float(low), "maximum": float(high)}, within + 0.0


def text_pair(text: str, less: int, more: int) -> tuple[Any, Any]:
    """Return the schema of texts of about a length, and a text that fits it."""
    least = max(0, len(text) - less)
    return {"type": "string", "minLength": least, "maxLength": len(text) + more}, text


LEAF_PAIRS = st.one_of(
    number_pairs(),
    PLAIN.map(lambda value: ({}, value)),
    PLAIN.map(lambda value: ({"enum": [None, value, "z"]}, value)),
    st.builds(text_pair, TEXT, st.integers(0, 2), st.integers(0, 2)),
    st.sampled_from([r"[a-f]{2,4}-\d+", "(a|bc)*", r"[a-z_][^a-z]?"]).flatmap(
        lambda pattern: (
            st.from_regex(re.compile(pattern, re.ASCII), fullmatch=True)
            .filter(lambda text: not re.search(r"[\x00-\x1f]", text))
            .map(lambda text: ({"type": "string", "pattern": f"^({pattern})$"}, text))
        )
    ),
    st.dates()
    .filter(lambda day: 1000 <= day.year < 3000)
    .map(lambda day: ({"type": "string", "format": "date"}, day.isoformat())),
    st.uuids().map(lambda key: ({"type": "string", "format": "uuid"}, str(key))),
)
"""Schemas, each with a value that fits it."""


@st.composite
def branch_pairs(draw: st.DrawFn, inner: st.SearchStrategy[tuple[Any, Any]]) -> tuple[Any, Any]:
    """Draw a schema that holds others, and a value that fits it."""
    parts = draw(st.lists(inner, min_size=1, max_size=3))
    kind = draw(st.sampled_from(["object", "array", "tuple", "union", "map"]))
    if kind == "object":
        named = dict(zip(draw(st.permutations(["a", 'q"', "é"])), parts, strict=False))
        needed = [name for name in named if draw(st.booleans())]
        left = {
            name: value
            for name, (_, value) in named.items()
            if name in needed or draw(st.booleans())
        }
        properties = {name: schema for name, (schema, _) in named.items()}
        return {"type": "object", "properties": properties, "required": needed}, left
    schema, value = parts[0]
    if kind == "array":
        count = draw(st.integers(0, 3))
        limits = {"minItems": draw(st.integers(0, count)), "maxItems": count + 1}
        return {"type": "array", "items": schema} | limits, [value] * count
    if kind == "tuple":
        return {"type": "array", "prefixItems": [one for one, _ in parts]}, [v for _, v in parts]
    if kind == "map":
        keys = draw(st.lists(TEXT, unique=True, max_size=2))
        return {"type": "object", "additionalProperties": schema}, dict.fromkeys(keys, value)
    return {"anyOf": [one for one, _ in parts]}, value


@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(pair=st.recursive(LEAF_PAIRS, branch_pairs, max_leaves=5))
def test_a_value_that_fits_is_allowed(pair: tuple[Any, Any]) -> None:
    """Written as ``json.dumps`` does, with the members in the schema's order: nothing is lost."""
    schema, value = pair
    assert fits(value, schema)
    text = json.dumps(value, ensure_ascii=False)
    assert GrammarSampler(json_grammar(schema)).accepts(text), (schema, text)


@pytest.mark.parametrize(
    ("schema", "text"),
    [
        ({"type": "number"}, "1e100"),
        ({"type": "number"}, "0.1234567890123456"),
        ({"type": "number"}, "1e-07"),
        ({"type": "number", "minimum": 0}, "1e5"),
        ({"type": "integer"}, "1000000000000000"),
        ({"type": "integer"}, "1.0"),
        ({"type": "string"}, '"\\u0001"'),
        ({"type": "string"}, '"\\u0041"'),
        ({"type": "string", "format": "date-time"}, '"2000-01-01T00:00:00+14:00"'),
        ({"properties": {"a": {}, "b": {}}}, '{"b": null, "a": null}'),
        ({"properties": {"a": {}}}, '{"a": null, "b": null}'),
        ({"type": "array"}, "[1,2]"),
        ({"uniqueItems": True, "items": {"enum": [1, 2]}}, "[2, 1]"),
        ({}, "[" * 7 + "]" * 7),
    ],
)
def test_what_is_lost_of_a_schemas_language(schema: Any, text: str) -> None:
    """All of it, so that the guide can say it; what is won back is taken off this list."""
    assert fits(json.loads(text), schema)
    assert not GrammarSampler(json_grammar(schema)).accepts(text)


def test_members_of_another_type_are_left_out() -> None:
    """``type`` beside ``enum`` counts, and 2.0 is an integer."""
    sampler = GrammarSampler(json_grammar({"type": "integer", "enum": ["a", True, 1, 2.0, 2.5]}))
    drawn = {sampler.draw(random.Random(seed)) for seed in range(60)}
    assert drawn == {"1", "2.0"}


def test_the_property_that_tells_the_others_apart_is_always_there() -> None:
    """As a pydantic tag with a default: without it, an object would fit each of ``oneOf``."""
    animal = {
        "oneOf": [{"$ref": "#/$defs/cat"}, {"$ref": "#/$defs/dog"}],
        "discriminator": {"propertyName": "kind"},
    }
    schema: Any = {
        "$defs": {
            name: {"type": "object", "properties": {"kind": {"const": name}, "friend": animal}}
            for name in ("cat", "dog")
        }
    } | animal
    sampler = GrammarSampler(json_grammar(schema))
    drawn = [json.loads(sampler.draw(random.Random(seed))) for seed in range(60)]
    assert {one["kind"] for one in drawn} == {"cat", "dog"}
    assert any("friend" in one for one in drawn)
    assert all(fits(one, schema) for one in drawn)
    inline = {"oneOf": list(schema["$defs"].values()), "discriminator": animal["discriminator"]}
    sampler = GrammarSampler(json_grammar(inline | {"$defs": schema["$defs"]}))
    assert all("kind" in json.loads(sampler.draw(random.Random(seed))) for seed in range(60))


@pytest.mark.parametrize("keyword", ["items", "additionalProperties", "properties", "anyOf"])
def test_a_grammar_grows_with_the_depth_of_its_schema_only(keyword: str) -> None:
    """It doubled with each level: 30 levels would be gigabytes."""
    sizes = []
    for depth in (10, 20, 30):
        schema: Any = {"type": "boolean"}
        for _ in range(depth):
            inner: Any = {"a": schema} if keyword == "properties" else schema
            schema = {keyword: [inner] if keyword == "anyOf" else inner}
        sizes.append(len(json_grammar(schema)))
    assert sizes[2] - sizes[1] <= 2 * (sizes[1] - sizes[0])


@pytest.mark.parametrize(
    "schema",
    [
        {"enum": list(range(50_000))},
        {"enum": ["x" * 100] * 2000},
        {"const": "x" * 200_000},
        {"properties": {"x" * 200_000: {}}},
        {"anyOf": [{"pattern": f"{number}{'a' * 500}"} for number in range(100)]},
        {"anyOf": [{"type": "integer", "minimum": 10**14 + n} for n in range(900)]},
        {"anyOf": [{"type": "string", "maxLength": 15_000 + n} for n in range(2)]},
    ],
    ids=lambda schema: str(schema)[:30],
)
def test_everything_that_is_written_out_counts(schema: Any) -> None:
    """Members, names, patterns and bounds fill the same budget as repetitions do."""
    with pytest.raises(OptionError, match="more than 20000 repetitions"):
        GenerationOptions(json_schema=schema)


def test_the_same_part_counts_once() -> None:
    """A hundred fields of one pattern are one rule."""
    text = {"type": "string", "maxLength": 5000}
    grammar = json_grammar({"properties": {f"p{number}": text for number in range(100)}})
    assert grammar.count(" json_character_to5000 ") == 1


def test_a_shape_is_made_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Options are checked and used, in every turn and for every line of a batch."""
    options = GenerationOptions(json_schema={"const": "made once"})
    assert options.shape() is options.changed({"seed": None}).shape()
    again = GenerationOptions(json_schema={"properties": {"b": {}, "a": {}}}).shape()
    other = GenerationOptions(json_schema={"properties": {"a": {}, "b": {}}}).shape()
    assert again is not other, "the order of members is part of the shape"
