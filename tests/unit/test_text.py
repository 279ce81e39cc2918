"""Ids to text while they arrive: the pieces joined are the text of the whole."""

from __future__ import annotations

import json
from collections.abc import Sequence

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from phi3ov.prompt.chat_tokenizer import ChatTokenizer
from phi3ov.prompt.detokenizer import AnswerText, Detokenizer, StopStrings
from phi3ov.prompt.messages import Message

from .fakes import MINI, MINI_NFKC, PHI4_KIT, PHI4_MINI_KIT, REFERENCE, Kit

KITS = [MINI, MINI_NFKC, PHI4_KIT, PHI4_MINI_KIT, REFERENCE]


def ordinary_ids(kit: Kit) -> list[int]:
    """Return every id of the kit that is no control token."""
    return [
        one for one in range(kit.official.get_vocab_size()) if one not in kit.chat.control_tokens
    ]


@st.composite
def id_sequences(draw: st.DrawFn, kit: Kit) -> list[int]:
    """Draw ids of every kind: any piece, single bytes, parts of characters, real text."""
    single = sorted(kit.chat.byte_tokens) or [
        token_id for token_id in ordinary_ids(kit) if len(kit.official.id_to_token(token_id)) == 1
    ]
    text = st.text(st.characters(exclude_categories=["Cs"]), max_size=6)
    chunk = st.one_of(
        st.lists(st.sampled_from(ordinary_ids(kit)), max_size=4),
        st.lists(st.sampled_from(single), max_size=4),
        text.map(kit.chat.encode_text),
        st.sampled_from(["\ufffd", "😀", "你好", "e\u0301", " ", "  ", "\n"]).map(
            kit.chat.encode_text
        ),
        text.map(lambda one: kit.chat.encode_text(one)[:-1]),
        text.map(lambda one: kit.chat.encode_text(one)[1:]),
    )
    chunks = draw(st.lists(chunk, max_size=6))
    return [token_id for chunk in chunks for token_id in chunk]


def whole_text(kit: Kit, token_ids: Sequence[int]) -> str:
    """Return the slow, obvious text: the unmodified tokenizer decodes all ordinary ids at once.

    Before, each byte that is not part of a character is spelled as the bytes of U+FFFD: the
    tokenizer itself would replace every byte that stands in one run with it.
    """
    plain = [one for one in token_ids if one not in kit.chat.control_tokens]
    text: str = kit.official.decode(with_valid_bytes(kit, plain), skip_special_tokens=False)
    return text


def with_valid_bytes(kit: Kit, token_ids: Sequence[int]) -> list[int]:
    """Return ids of a byte fallback vocabulary whose bytes are valid UTF-8."""
    names = {f"<0x{byte:02X}>": byte for byte in range(256)}
    ids = {name: kit.official.token_to_id(name) for name in names}
    values = {ids[name]: byte for name, byte in names.items() if ids[name] is not None}
    valid: list[int] = []
    position = 0
    while position < len(token_ids):
        for length in range(1, 5):
            chunk = token_ids[position : position + length]
            if chunk[0] not in values or _is_character([values.get(one) for one in chunk]):
                valid += chunk
                position += length
                break
        else:
            valid += [ids[f"<0x{byte:02X}>"] for byte in "\ufffd".encode()]
            position += 1
    return valid


def _is_character(values: Sequence[int | None]) -> bool:
    try:
        return len(bytes(value for value in values if value is not None).decode()) == 1 and (
            None not in values
        )
    except UnicodeDecodeError:
        return False


def pieces_of(kit: Kit, token_ids: Sequence[int]) -> list[str]:
    """Return what a `Detokenizer` gives, one piece per id and one for the end."""
    detokenizer = Detokenizer(kit.chat)
    return [*map(detokenizer.add, token_ids), detokenizer.finish()]


@pytest.mark.parametrize("kit", KITS, ids=lambda kit: kit.name)
@given(data=st.data())
@settings(max_examples=150)
def test_pieces_joined_are_the_text_of_the_whole(kit: Kit, data: st.DataObject) -> None:
    """For any ids, whole or broken characters: the pieces joined equal decode(all ids)."""
    token_ids = data.draw(id_sequences(kit))
    assert "".join(pieces_of(kit, token_ids)) == whole_text(kit, token_ids)


@pytest.mark.parametrize("kit", KITS, ids=lambda kit: kit.name)
@given(text=st.text(st.characters(exclude_categories=["Cs", "Co"]), max_size=20))
@settings(max_examples=150)
def test_no_character_is_ever_split(kit: Kit, text: str) -> None:
    """Whatever real text arrives token by token, no piece holds half a character."""
    token_ids = kit.chat.encode_text(text)
    whole = whole_text(kit, token_ids)
    pieces = pieces_of(kit, token_ids)
    assert "".join(pieces) == whole
    assert sum(piece.count("\ufffd") for piece in pieces) == whole.count("\ufffd")


@pytest.mark.parametrize("kit", [MINI, PHI4_KIT], ids=lambda kit: kit.name)
@pytest.mark.parametrize("broken", [b"\xff", b"\xe2\x82", b"\xf0\x9f\x98", b"\x80\x80", b"\xc3("])
def test_broken_bytes_come_out_once_they_are_certain(kit: Kit, broken: bytes) -> None:
    """Bytes that are no UTF-8 become the same U+FFFD as in the whole, before, amid and after."""
    before, after = kit.chat.encode_text("ab"), kit.chat.encode_text("cd")
    names = kit.official.get_vocab()
    if kit is MINI:
        ids = [names[f"<0x{byte:02X}>"] for byte in broken]
    else:
        from tokenizers.pre_tokenizers import ByteLevel

        shown = dict(zip(_byte_order(), sorted(ByteLevel.alphabet()), strict=True))
        ids = [names[shown[byte]] for byte in broken]
    for token_ids in (ids, before + ids, ids + after, before + ids + after, ids * 2 + after):
        whole = whole_text(kit, token_ids)
        assert "\ufffd" in whole
        assert "".join(pieces_of(kit, token_ids)) == whole


def _byte_order() -> list[int]:
    """Return bytes in the order of the characters that GPT-2's alphabet shows them as."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in printable]
    return [*printable, *hidden]


@pytest.mark.trap(
    "A character that is spelt in bytes, such as an emoji, appears with its last byte, however "
    "many such characters follow each other.",
    about="Answers",
)
@pytest.mark.parametrize("kit", [MINI, MINI_NFKC], ids=lambda kit: kit.name)
@given(text=st.text(st.characters(min_codepoint=0x80, exclude_categories=["Cs"]), max_size=8))
@example(text="🎉🎉 ありがとう 👨‍👩‍👧")
def test_a_character_appears_with_its_last_byte(kit: Kit, text: str) -> None:
    """Of emoji and scripts without spaces at most three bytes are held back, however many come."""
    names = kit.official.get_vocab()
    detokenizer = Detokenizer(kit.chat)
    for char in text:
        *before, last = [names[f"<0x{byte:02X}>"] for byte in char.encode()]
        assert [detokenizer.add(token_id) for token_id in before] == [""] * len(before)
        assert detokenizer.add(last) == char
    assert detokenizer.finish() == ""


@pytest.mark.trap(
    "A stop string that is spelt in bytes ends the answer at once.",
    about="Answers",
)
def test_a_stop_string_of_bytes_ends_the_answer_at_once() -> None:
    """Also within a run of byte tokens that goes on."""
    names = MINI.official.get_vocab()
    answer = AnswerText(MINI.chat, ["終"])
    shown = ""
    for byte in "🎉終🎉".encode():
        shown += answer.add(names[f"<0x{byte:02X}>"])
        if answer.stopped_by is not None:
            break
    assert (shown, answer.stopped_by) == ("🎉", "終")
    assert len(answer.token_ids) == len("🎉終".encode())


WORDS = ("<think>", "</think>", "<SQL>", "<b>")
"""Added tokens that fine-tunes use as words, not marked as special."""


def with_words(kit: Kit) -> tuple[ChatTokenizer, dict[str, int]]:
    """Return the kit's tokenizer with `WORDS` added, and their ids."""
    definition = json.loads(kit.tokenizer_json)
    first = max(token["id"] for token in definition["added_tokens"]) + 1
    ids = {word: first + index for index, word in enumerate(WORDS)}
    like = {**definition["added_tokens"][-1], "special": False, "rstrip": False}
    definition["added_tokens"] += [{**like, "id": ids[word], "content": word} for word in WORDS]
    return ChatTokenizer(json.dumps(definition), kit.chat_format), ids


@pytest.mark.trap(
    "Added tokens that are not special (`<think>`, `<SQL>`, `<b>` of fine-tunes) are text, in "
    "answers, streams, histories and prompts.",
    about="Answers",
)
@pytest.mark.parametrize("kit", KITS, ids=lambda kit: kit.name)
def test_added_tokens_that_are_not_special_are_text(kit: Kit) -> None:
    """In answers, piece by piece, in prompts, and back."""
    tokenizer, ids = with_words(kit)
    user, word = tokenizer.encode_text("the user"), tokenizer.encode_text("x")
    answer_ids = [ids["<think>"], *user, ids["</think>"], ids["<b>"], *word]
    answer = AnswerText(tokenizer)
    shown = "".join(map(answer.add, answer_ids)) + answer.finish()
    assert shown == answer.text == tokenizer.decode(answer_ids)
    assert shown.replace(" ", "") == "<think>theuser</think><b>x"
    text = "a<think>b</think><SQL>"
    prompt = tokenizer.encode_prompt([Message("user", text)])
    assert [one for one in prompt if one in ids.values()] == [
        ids["<think>"], ids["</think>"], ids["<SQL>"]
    ]  # fmt: skip
    assert text in tokenizer.decode(prompt).replace(" ", "")


@pytest.mark.parametrize("kit", KITS, ids=lambda kit: kit.name)
def test_an_added_token_that_ends_an_answer_is_a_control_token(kit: Kit) -> None:
    """Whether the configs name it by id or the tokenizer by text: content cannot write it."""
    tokenizer, ids = with_words(kit)
    definition = json.loads(kit.tokenizer_json)
    like = {**definition["added_tokens"][-1], "special": False}
    definition["added_tokens"].append({**like, "id": ids["<think>"], "content": "<END>"})
    text = json.dumps(definition)
    for named in ({"stop_ids": [ids["<think>"]]}, {"eos_token": "<END>"}):
        ending = ChatTokenizer(text, kit.chat_format, **named)
        assert ending.stop_tokens[ids["<think>"]] == "<END>"
        assert ids["<think>"] not in ending.encode_prompt([Message("user", "a<END>b")])
    assert tokenizer.stop_tokens == kit.chat.stop_tokens


@pytest.mark.parametrize("kit", KITS, ids=lambda kit: kit.name)
def test_control_tokens_can_be_shown(kit: Kit) -> None:
    """With ``skip_special_tokens=False`` each that does not end the answer gives its name."""
    one, two = kit.chat.encode_text("hello"), kit.chat.encode_text("world")
    calls = kit.chat.tool_call_ids or ()
    for token_id in kit.chat.control_tokens.keys() - kit.chat.stop_tokens.keys() - set(calls):
        token_ids = [*one, token_id, *two]
        answer = AnswerText(kit.chat, skip_special_tokens=False)
        shown = "".join(map(answer.add, token_ids)) + answer.finish()
        assert shown == kit.chat.decode(token_ids, skip_special_tokens=False)
        assert shown == kit.official.decode(token_ids, skip_special_tokens=False)
        assert kit.chat.control_tokens[token_id] in shown


def test_text_is_shown_as_soon_as_it_is_certain() -> None:
    """Text is not held back to the end: each word shows with its own token."""
    token_ids = MINI.chat.encode_text("the user the user")
    pieces = pieces_of(MINI, token_ids)
    assert pieces[-1] == ""
    assert all(pieces[:-1])


# ----------------------------------------------------------------------- stop strings
def cut_slowly(text: str, stops: Sequence[str]) -> tuple[str, str | None]:
    """Read character by character; cut where the first stop is complete, at its beginning."""
    for end in range(1, len(text) + 1):
        hits = [stop for stop in stops if text[:end].endswith(stop)]
        if hits:
            longest = max(hits, key=len)
            return text[: end - len(longest)], longest
    return text, None


def run_stops(pieces: Sequence[str], stops: Sequence[str]) -> tuple[list[str], str | None]:
    """Feed pieces to `StopStrings`; return what it showed and what it found."""
    finder = StopStrings(stops)
    shown = [finder.add(piece) for piece in pieces]
    shown.append(finder.finish())
    return shown, finder.found


SHORT = st.text("ab<\n", min_size=1, max_size=4)


@given(pieces=st.lists(st.text("ab<\n", max_size=5), max_size=8), stops=st.lists(SHORT, max_size=3))
@example(pieces=["abc"], stops=["abc", "b"])
@example(pieces=["ab", "c"], stops=["abc", "b"])
@example(pieces=["aab"], stops=["aab", "ab"])
@example(pieces=["ab", "ab", "ac"], stops=["abac"])
@example(pieces=["x", "stop"], stops=["stop"])
@settings(max_examples=300)
def test_stop_strings_cut_as_the_slow_reference(pieces: list[str], stops: list[str]) -> None:
    """However the text is cut into pieces, it ends before the stop string that completes first."""
    shown, found = run_stops(pieces, stops)
    expected, expected_stop = cut_slowly("".join(pieces), stops)
    assert "".join(shown) == expected
    assert found == expected_stop


@given(text=st.text("ab<", max_size=12), stops=st.lists(SHORT, min_size=1, max_size=3))
def test_no_part_of_a_stop_string_is_shown_early(text: str, stops: list[str]) -> None:
    """At every moment, what was shown stays right whatever comes next, and no more is held back."""
    finder = StopStrings(stops)
    shown = ""
    for index, char in enumerate(text):
        shown += finder.add(char)
        so_far = text[: index + 1]
        if finder.found is not None:
            assert shown == cut_slowly(so_far, stops)[0]
            return
        held = so_far[len(shown) :]
        assert so_far.startswith(shown)
        assert held == "" or any(stop.startswith(held) for stop in stops)
        for length in range(len(held) + 1, len(so_far) + 1):
            assert not any(stop.startswith(so_far[-length:]) for stop in stops)


def test_unfinished_stop_string_is_shown_at_the_end() -> None:
    """The beginning of a stop string that never came belongs to the answer."""
    assert run_stops(["hello <", "st"], ["<stop>"]) == (["hello ", "", "<st"], None)


def test_nothing_is_shown_after_a_stop_string() -> None:
    """Once found, neither more text nor the end shows anything."""
    assert run_stops(["ab", "cd", "ef"], ["bc"]) == (["a", "", "", ""], "bc")


# ----------------------------------------------------------------------- answers
def feed(kit: Kit, token_ids: Sequence[int], stops: Sequence[str] = ()) -> tuple[AnswerText, str]:
    """Feed ids until something stops the answer; return it and all that it showed."""
    answer = AnswerText(kit.chat, stops)
    shown = []
    for token_id in token_ids:
        shown.append(answer.add(token_id))
        if answer.stopped_by is not None:
            break
    shown.append(answer.finish())
    return answer, "".join(shown)


@pytest.mark.parametrize("kit", KITS, ids=lambda kit: kit.name)
def test_stop_tokens_end_the_answer_and_name_themselves(kit: Kit) -> None:
    """Each stop token ends the answer, is not among its ids and gives no text."""
    text_ids = kit.chat.encode_text("hello")
    for token_id, name in kit.chat.stop_tokens.items():
        answer, shown = feed(kit, [*text_ids, token_id, *text_ids])
        assert (shown, answer.text, answer.stopped_by) == ("hello", "hello", name)
        assert answer.token_ids == text_ids


@pytest.mark.parametrize("kit", KITS, ids=lambda kit: kit.name)
def test_other_control_tokens_give_no_text_but_stay_in_the_ids(kit: Kit) -> None:
    """A control token in the middle is invisible, and kept for the history."""
    one, two = kit.chat.encode_text("hello"), kit.chat.encode_text("world")
    calls = kit.chat.tool_call_ids or ()
    for token_id in kit.chat.control_tokens.keys() - kit.chat.stop_tokens.keys() - set(calls):
        token_ids = [*one, token_id, *two]
        answer, shown = feed(kit, token_ids)
        assert shown == answer.text == kit.official.decode(one + two)
        assert answer.token_ids == token_ids
        assert answer.stopped_by is None


@pytest.mark.parametrize("kit", KITS, ids=lambda kit: kit.name)
@given(
    data=st.data(),
    stops=st.lists(st.sampled_from(["e", "th", "he u", "\n", "é", "user "]), max_size=3),
)
@settings(max_examples=100)
def test_answer_text_is_the_whole_text_cut_at_the_stop(
    kit: Kit, data: st.DataObject, stops: list[str]
) -> None:
    """For any ids and stop strings that span tokens, what is shown is the slow reference's."""
    token_ids = data.draw(id_sequences(kit))
    answer, shown = feed(kit, token_ids, stops)
    expected, stop = cut_slowly(whole_text(kit, token_ids), stops)
    assert shown == answer.text == expected
    assert answer.stopped_by == stop


def test_stop_string_within_the_held_back_end_is_found() -> None:
    """A stop string that only the last, held-back text completes still ends the answer."""
    ids = MINI.official.get_vocab()
    held_back = [*MINI.chat.encode_text("a"), *(ids[f"<0x{byte:02X}>"] for byte in "é!".encode())]
    answer, shown = feed(MINI, held_back, ["é"])
    assert (shown, answer.stopped_by) == ("a", "é")


@pytest.mark.parametrize("kit", KITS, ids=lambda kit: kit.name)
@given(text=st.text(st.characters(exclude_categories=["Cs"]), max_size=60))
@example(text="<|end|> <|user|>\n</s> word word")
@settings(max_examples=60)
def test_ids_are_those_of_a_single_encode(kit: Kit, text: str) -> None:
    """Encoding releases the interpreter's lock; the ids are those of the call that holds it."""
    single = kit.official.encode(text, add_special_tokens=False).ids
    assert kit.chat.encode_raw(text) == single
