"""Shapes of answers: what no grammar can follow is refused by its name, before any model is asked.

That the grammars let through what they should, and nothing else, is tested with openvino-genai's
own matcher in ``tests/engine/test_structured.py``.
"""

from __future__ import annotations

import enum
import json
import re
from dataclasses import dataclass
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from phi3ov.answer.options import GenerationOptions, Sampling
from phi3ov.answer.token_stream import TokenRequest
from phi3ov.chat import Phi3Chat
from phi3ov.engine.genai.draft import SpeculationPlan
from phi3ov.errors import GenerationError, OptionError
from phi3ov.structured.character_sets import ANY, Ranges, common, unite, without
from phi3ov.structured.ebnf import characters
from phi3ov.structured.json_schema import json_grammar
from phi3ov.structured.types import build_value, read_class

from .fakes import Answer, FakeEngine, answer_ids, make_model


class Colour(enum.Enum):
    """An enumeration in a dataclass."""

    RED = "red"
    BLUE = 2


@dataclass
class Tree:
    """Every kind of field, and itself."""

    name: str
    size: int | None
    share: float
    colour: Colour
    mode: Literal["a", 1]
    flags: list[bool]
    pair: tuple[int, str]
    many: tuple[int, ...]
    notes: dict[str, float]
    children: list[Tree]


LEAF: dict[str, Any] = {
    "name": "x", "size": None, "share": 1, "colour": 2, "mode": 1, "flags": [True],
    "pair": [1, "b"], "many": [1, 2, 3], "notes": {"k": 2}, "children": [],
}  # fmt: skip

BAD_SCHEMAS: list[tuple[Any, str]] = [
    (3, "json_schema=3 must be a dictionary"),
    (int, "json_schema=int is neither a dataclass, a TypedDict"),
    ({"type": "strin"}, "type='strin'"),
    ({"type": 3}, "type=3"),
    ({"type": []}, r"type=\[\]"),
    ({"not": {}}, "'not', which cannot be enforced"),
    ({"type": "array", "uniqueItems": True}, "uniqueItems, which can be enforced only for"),
    ({"type": "array", "uniqueItems": 1, "items": {"const": 1}}, "uniqueItems=1, which must be"),
    ({"type": "integer", "multipleOf": 0}, "multipleOf=0, which must be a number above 0"),
    ({"type": "integer", "multipleOf": 1001}, "multipleOf=1001; at most 1000"),
    ({"type": "integer", "multipleOf": 7, "minimum": 1, "maximum": 6}, "no multiple of multipleOf"),
    ({"type": "number", "minimum": 0, "exclusiveMaximum": 0}, "no number between its bounds"),
    ({"type": "number", "minimum": "0"}, "minimum='0', which must be a number"),
    ({"type": "object", "minProperties": 1}, "'minProperties'"),
    ({"type": "object", "required": ["a"]}, "requires 'a'"),
    ({"enum": []}, r"enum=\[\]"),
    ({"anyOf": []}, r"anyOf=\[\]"),
    ({"oneOf": [{"type": "null"}]}, "Use anyOf"),
    ({"allOf": [{}, {}]}, "allOf with several members"),
    ({"anyOf": [{}], "type": "string"}, "has type beside anyOf"),
    ({"properties": {"a": False}}, "schema.a is False"),
    ({"$ref": "http://x/y"}, "not within the schema"),
    ({"$ref": "#/$defs/x"}, "there is nothing"),
    ({"$ref": "#"}, "no finite value"),
    ({"$ref": "#/$defs/a", "$defs": {"a": {"anyOf": [{"$ref": "#/$defs/a"}]}}}, "no finite value"),
    ({"anyOf": [{"$ref": "#"}, {"type": "null"}]}, "leads back to itself"),
    (
        {
            "$ref": "#/$defs/a",
            "$defs": {
                "a": {"anyOf": [{"allOf": [{"$ref": "#/$defs/b"}]}, {"type": "null"}]},
                "b": {"anyOf": [{"type": "string"}, {"$ref": "#/$defs/a"}]},
            },
        },
        "leads back to itself",
    ),
    (
        {"type": "object", "properties": {"c": {"$ref": "#"}}, "required": ["c"]},
        "no finite value",
    ),
    ({"type": "array", "items": {"$ref": "#"}, "minItems": 1}, "no finite value"),
    ({"type": "integer", "minimum": 5, "maximum": 4}, "no number between its bounds"),
    ({"type": "integer", "minimum": 0.5, "maximum": 0.9}, "no number between its bounds"),
    ({"type": "string", "minLength": -1}, "minLength=-1"),
    ({"type": "string", "minLength": 3, "maxLength": 2}, "minLength=3 above maxLength=2"),
    ({"type": "string", "maxLength": 10**9}, "more than 20000 repetitions"),
    ({"type": "string", "pattern": "(a"}, r"schema\.pattern='\(a'"),
    ({"type": "string", "pattern": "\x00"}, "without any character that can be written"),
    ({"type": "string", "format": "iri"}, "format='iri'; known: date"),
    ({"type": "string", "format": "date", "pattern": "a"}, "both format and pattern"),
    ({"type": "string", "format": "date", "maxLength": 9}, "no text of the length"),
    ({"type": "string", "pattern": "a+b+", "maxLength": 9}, "share the length"),
    ({"type": "string", "pattern": "(ab|c)+", "maxLength": 9}, "share the length"),
    ({"type": "string", "pattern": "a{3}", "minLength": 4}, "no text of the length"),
    ({"type": "array", "prefixItems": [{}], "items": {}}, "prefixItems"),
    ({"type": "array", "minItems": 2, "maxItems": 1}, "minItems=2 above maxItems=1"),
    ({"const": "\ud800"}, "lone surrogate"),
    ({"const": float("nan")}, "nothing that JSON can hold"),
    ({"const": {1, 2}}, "nothing that JSON can hold"),
    ({"properties": {str(n): {} for n in range(2000)}}, "too large"),
]


@pytest.mark.parametrize(("schema", "message"), BAD_SCHEMAS, ids=str)
def test_a_schema_that_cannot_be_enforced_is_refused(schema: Any, message: str) -> None:
    """The message names the place; nothing is ignored."""
    with pytest.raises(OptionError, match=message):
        GenerationOptions(json_schema=schema)


def test_hostile_depth_and_doubling_do_no_harm() -> None:
    """Without a stack overflow, be it ours or the parser's."""
    deep: Any = {"type": "string"}
    for _ in range(500):
        deep = {"type": "array", "items": deep}
    with pytest.raises(OptionError, match="too large"):
        GenerationOptions(json_schema=deep)
    for _ in range(100_000):
        deep = {"type": "array", "items": deep}
    with pytest.raises(OptionError, match="nothing that JSON can hold"):
        GenerationOptions(json_schema=deep)
    wide: dict[str, Any] = {"n0": {"type": "null"}}
    for number in range(1, 15):  # each twice the one before, if references were unrolled
        before = {"$ref": f"#/$defs/n{number - 1}"}
        wide[f"n{number}"] = {"type": "array", "items": {"anyOf": [before, before]}}
    assert len(json_grammar({"$ref": "#/$defs/n14", "$defs": wide})) < 20_000


BAD_PATTERNS = [
    "(a", "a)", "[a", "a**", "*a", "a{2,1}", "a{", "a{,}", "(?=a)b", "(?i)a", "(?P<x>a)", r"(a)\1",
    r"\bx", r"\p{L}", r"a\Z", "a^b", "(^a)", "a$b", r"\x4", r"\ud", "a++", "[b-a]", "[]",
    "[^\\d\\D]", "((a{100}){100}){100}", "a{999999999}", "(" * 60 + "a" + ")" * 60,
    "a" * 30_000, "\\", r"\07",
]  # fmt: skip


@pytest.mark.parametrize("pattern", BAD_PATTERNS, ids=lambda pattern: pattern[:20])
def test_a_pattern_that_no_grammar_can_follow_is_refused(pattern: str) -> None:
    """Broken ones, those that look around or back, and those that would take for ever."""
    with pytest.raises(OptionError, match="regex"):
        GenerationOptions(regex=pattern)


GOOD_PATTERNS = [
    "", "a|", "^ab$|c", r"\d{2,}-[\w.]+?", r"[]\]^-]", "(?:a|b)*c{0,3}", r"\{a\}", "é😀",
    r"[^\s]", ".",
]  # fmt: skip


@pytest.mark.parametrize("pattern", GOOD_PATTERNS)
def test_what_python_reads_is_read(pattern: str) -> None:
    """Each is a pattern of Python's, too."""
    re.compile(pattern)
    assert GenerationOptions(regex=pattern).shape() is not None


CODES = st.integers(0, 0x10FFFF)
RANGES = st.lists(st.tuples(CODES, CODES).map(lambda two: (min(two), max(two))), max_size=4).map(
    lambda some: unite(tuple(some))
)


@given(one=RANGES, other=RANGES, code=CODES)
def test_ranges_are_sets(one: Ranges, other: Ranges, code: int) -> None:
    """Union, difference and intersection, compared at one character."""

    def has(ranges: Ranges) -> bool:
        return any(low <= code <= high for low, high in ranges)

    assert has(unite(one, other)) == (has(one) or has(other))
    assert has(without(one, other)) == (has(one) and not has(other))
    assert has(common(one, other)) == (has(one) and has(other))


@given(low=CODES, high=CODES)
def test_pieces_of_a_range_are_products_of_byte_ranges(low: int, high: int) -> None:
    """Together they are the range; in each, the first and the last character say everything."""
    low, high = min(low, high), max(low, high)
    if not common(((low, high),), ANY):
        return
    pieces = re.findall(r"\\[uU]([0-9a-f]+)(?:-\\[uU]([0-9a-f]+))?", characters(((low, high),)))
    covered: Ranges = ()
    for first, last in pieces:
        begin, end = int(first, 16), int(last or first, 16)
        covered = unite(covered, ((begin, end),))
        bytes_of = [chr(code).encode() for code in (begin, end)]
        assert len(bytes_of[0]) == len(bytes_of[1])
        count = 1
        for one, other in zip(*bytes_of, strict=True):
            count *= other - one + 1
        assert count == end - begin + 1
    assert covered == common(((low, high),), ANY)


def test_one_shape_at_a_time_and_no_stop_string() -> None:
    """Contradictions name both sides."""
    with pytest.raises(OptionError, match="regex contradicts json_schema"):
        GenerationOptions(json_schema={}, regex="a")
    with pytest.raises(OptionError, match=r"stop=\('x',\) contradicts"):
        GenerationOptions(regex="a", stop=("x",))


@pytest.mark.parametrize("choices", [(), "yes", ("",), (1,), 5, ("\ud800",), ("a",) * 2000])
def test_bad_choices_are_refused(choices: Any) -> None:
    """Among them the string that was meant to be a tuple."""
    with pytest.raises(OptionError, match="choices"):
        GenerationOptions(choices=choices)


def test_a_dataclass_becomes_a_schema_and_back() -> None:
    """Each kind of field, nested in itself, arrives as what the annotations say."""
    json_grammar(read_class(Tree)[0])
    tree = build_value(Tree, LEAF | {"children": [LEAF]})
    child = tree.children[0]
    assert tree.name == "x"
    assert (child.size, child.colour, child.mode, child.pair) == (None, Colour.BLUE, 1, (1, "b"))
    assert (type(child.share), child.many, child.notes) == (float, (1, 2, 3), {"k": 2.0})


def test_a_field_without_a_json_form_is_refused() -> None:
    """By the field's name."""

    @dataclass
    class Odd:
        when: complex

    with pytest.raises(OptionError, match=r"Odd\.when is of type .*complex"):
        GenerationOptions(json_schema=Odd)


class PydanticLike:
    """What phi3ov knows of a pydantic model: two methods."""

    def __init__(self, name: str) -> None:
        self.name = name

    @classmethod
    def model_json_schema(cls) -> dict[str, Any]:
        """Return the schema."""
        return {"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]}

    @classmethod
    def model_validate_json(cls, text: str) -> PydanticLike:
        """Make an instance, unless the name is bad."""
        values = json.loads(text)
        if values["name"] == "bad":
            raise ValueError("bad name")
        return cls(**values)


def ask(text: str, *, stop: str | None = "<|end|>", **options: Any) -> Any:
    """Return the reply of a model that answers ``text``."""
    engine = FakeEngine([Answer(answer_ids(text, stop=stop))])
    chat = Phi3Chat(make_model(engine))
    if stop is None:
        options["max_new_tokens"] = len(answer_ids(text, stop=None))
    reply = chat.generate("hi", **options)
    assert engine.requests[0].grammar is not None
    return reply


def test_a_finished_answer_is_parsed() -> None:
    """To a dictionary, to an instance, to a text."""
    name = {"type": "object", "properties": {"name": {"type": "string"}}}
    assert ask('{"name": "Ann"}', json_schema=name).parsed == {"name": "Ann"}
    parsed = ask('{"name": "Ann"}', json_schema=PydanticLike).parsed
    assert isinstance(parsed, PydanticLike)
    assert parsed.name == "Ann"
    assert ask("yes", choices=("yes", "no")).parsed == "yes"
    assert ask("aa", regex="a+").parsed == "aa"


def test_an_answer_that_was_cut_off_is_not_parsed() -> None:
    """Even where its beginning would be a value by itself."""
    reply = ask("12", stop=None, json_schema={"type": "integer"})
    assert (reply.finish_reason, reply.parsed, reply.text) == ("length", None, "12")


def test_a_type_that_refuses_the_value_fails_the_turn() -> None:
    """With the text, and with the type's own error as its cause."""
    with pytest.raises(GenerationError, match="does not fit json_schema: bad name") as caught:
        ask('{"name": "bad"}', json_schema=PydanticLike)
    assert caught.value.partial_text == '{"name": "bad"}'
    assert isinstance(caught.value.__cause__, ValueError)


def test_options_keep_a_copy_of_the_schema() -> None:
    """Nobody changes the options of a running turn; and options stay hashable."""
    schema = {"type": "integer"}
    options = GenerationOptions(json_schema=schema)
    schema["type"] = "string"
    assert options.json_schema == {"type": "integer"}
    assert hash(options)
    assert options == GenerationOptions(json_schema={"type": "integer"})


@pytest.mark.parametrize(
    "asked",
    [{"grammar": "answer ::= x"}, {"logprobs": True}, {"sampling": Sampling(presence_penalty=1.0)}],
    ids=str,
)
def test_speculation_refuses_what_depends_on_each_token(asked: dict[str, Any]) -> None:
    """Nothing is known of what genai does with the rejected tokens; without it, all is well."""
    request = TokenRequest(prompt_ids=(1,), max_new_tokens=1, stop_ids=frozenset(), **asked)
    SpeculationPlan().check(request)
    with pytest.raises(OptionError, match="combined with speculation"):
        SpeculationPlan(candidate_tokens=4, ngram_tokens=2).check(request)
