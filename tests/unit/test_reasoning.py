"""Reasoning models: their formats, and thoughts told apart from the answer."""

from __future__ import annotations

import json

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from phi3ov.chat import Phi3Chat
from phi3ov.errors import PromptError
from phi3ov.prompt.chat_tokenizer import ChatTokenizer
from phi3ov.prompt.detokenizer import AnswerText
from phi3ov.prompt.formats import FORMATS, recognize_format
from phi3ov.prompt.messages import Message
from phi3ov.prompt.thoughts import ThoughtSplitter
from phi3ov.prompt.tools import Tool, describe_tools

from .fakes import (
    PHI4_CONTROL,
    PHI4_KIT,
    PHI4_MINI_CONTROL,
    PHI4_MINI_TOOLS,
    Answer,
    FakeEngine,
    Kit,
    answer_ids,
    byte_level,
    make_model,
    render_template,
)

TAGS = ("<think>", "</think>")


def system_text(name: str) -> str:
    """Return the fixed system text of a format."""
    return next(each.system_text for each in FORMATS if each.name == name)


MINI_TEMPLATE = (
    "<|system|>" + system_text("phi4-mini-reasoning") + "{% for message in messages %}"
    "{% if message['role'] == 'system' %} {{ message['content'] }}"
    "{% if 'tools' in message and message['tools'] is not none %}"
    "<|tool|>{{ message['tools'] }}<|/tool|>{% endif %}{% endif %}{% endfor %}<|end|>"
    "{% for message in messages %}{% if message['role'] != 'system' %}"
    "<|{{ message['role'] }}|>{{ message['content'] }}<|end|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
"""Writes what Phi-4-mini-reasoning's template writes; the parity suite compares the real one."""
_OWN = "<|im_start|>system<|im_sep|>" + system_text("phi4-reasoning") + "<|im_end|>"
_TURN = "<|im_start|>{{ message['role'] }}<|im_sep|>{{ message['content'] }}<|im_end|>"
REPLACING_TEMPLATE = (
    "{% if messages[0]['role'] != 'system' %}" + _OWN + "{% endif %}"
    "{% for message in messages %}{% if messages[0]['role'] == 'system' %}" + _OWN + "{% else %}"
    "" + _TURN + "{% endif %}{% endfor %}<|im_start|>assistant<|im_sep|>"
)
"""As published beside Phi-4-reasoning: the first test stands within the loop as well."""
DROPPING_TEMPLATE = (
    _OWN + "{% for message in messages %}{% if message['role'] != 'system' %}" + _TURN + ""
    "{% endif %}{% endfor %}<|im_start|>assistant<|im_sep|>"
)


def _mini_json() -> str:
    return byte_level(PHI4_MINI_CONTROL, PHI4_MINI_TOOLS, rstrip=True)


def _phi4_json() -> str:
    return byte_level(PHI4_CONTROL, rstrip=False)


MINI = Kit("mini", _mini_json, MINI_TEMPLATE, "phi4-mini-reasoning", "kept")
REPLACING = Kit("replacing", _phi4_json, REPLACING_TEMPLATE, "phi4-reasoning", "replaces messages")
DROPPING = Kit("dropping", _phi4_json, DROPPING_TEMPLATE, "phi4-reasoning", "dropped")
KITS = (MINI, REPLACING, DROPPING)
WORDS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="<|>"), max_size=12)


@pytest.mark.parametrize("kit", KITS, ids=lambda kit: kit.name)
def test_reasoning_templates_are_recognized(kit: Kit) -> None:
    """By what they write around the same conversations, their fixed text included."""
    found = recognize_format(lambda messages: render_template(kit.template, messages))
    assert found is kit.chat_format
    assert found.thoughts == TAGS


@pytest.mark.parametrize("kit", KITS, ids=lambda kit: kit.name)
@given(texts=st.lists(WORDS, min_size=1, max_size=5).filter(lambda texts: len(texts) % 2))
def test_prompt_equals_the_templates(kit: Kit, texts: list[str]) -> None:
    """The fixed text stands before every conversation without a system message."""
    messages = [Message(("user", "assistant")[n % 2], text) for n, text in enumerate(texts)]
    assert kit.chat.encode_prompt(messages) == rendered_ids(kit, messages)
    pieces = kit.chat.encode_beginning()
    for message in messages:
        pieces += kit.chat.encode_message(message)
    assert pieces + kit.chat.opening == kit.chat.encode_prompt(messages)


def rendered_ids(kit: Kit, messages: list[Message], tools: str | None = None) -> list[int]:
    """Return what the template and the unmodified tokenizer make of the messages."""
    dictionaries = [{"role": each.role, "content": each.content} for each in messages]
    if tools is not None:
        dictionaries[0]["tools"] = tools
    text = render_template(kit.template, dictionaries)
    ids: list[int] = kit.official.encode(text, add_special_tokens=False).ids
    return ids


@given(system=WORDS, user=WORDS)
def test_a_system_message_is_appended_to_the_fixed_text(system: str, user: str) -> None:
    """As Phi-4-mini-reasoning's template does, with tools behind it."""
    messages = [Message("system", system), Message("user", user)]
    assert MINI.chat.encode_prompt(messages) == rendered_ids(MINI, messages)
    tools = [Tool(name="now", description="Time")]
    expected = rendered_ids(MINI, messages, describe_tools(tools))
    assert MINI.chat.encode_prompt(messages, tools=tools) == expected
    without = MINI.chat.encode_prompt(messages[1:], tools=tools)
    assert without == MINI.chat.encode_prompt([Message("system", ""), messages[1]], tools=tools)


def test_a_template_that_would_lose_the_users_text_is_not_followed() -> None:
    """The published template proves the point; phi3ov refuses with that sentence."""
    for system in ("Be brief.", ""):
        messages = [Message("system", system), Message("user", "What is 1 + 1?")]
        dictionaries = [{"role": each.role, "content": each.content} for each in messages]
        assert "1 + 1" not in render_template(REPLACING_TEMPLATE, dictionaries)
        with pytest.raises(PromptError, match="the user's text would be lost"):
            REPLACING.chat.encode_prompt(messages)


def test_a_dropped_system_message_is_refused_and_an_empty_one_costs_nothing() -> None:
    """The fixed text stays where an empty system message is left out."""
    user = Message("user", "a")
    with pytest.raises(PromptError, match="drops system messages"):
        DROPPING.chat.encode_prompt([Message("system", "s"), user])
    empty = [Message("system", ""), user]
    assert DROPPING.chat.encode_prompt(empty) == rendered_ids(DROPPING, empty)


# ----------------------------------------------------------------------- thoughts
def split_whole(text: str) -> tuple[str, str]:
    """Return thoughts and answer of a whole text: the slow, obvious way."""
    start = text.lstrip()
    if not start.startswith(TAGS[0]):
        return "", text
    thoughts, _, answer = start.removeprefix(TAGS[0]).partition(TAGS[1])
    return thoughts.lstrip(), answer.lstrip()


def split_in(pieces: list[str]) -> tuple[str, str]:
    """Return thoughts and answer of a text that arrives in pieces."""
    splitter = ThoughtSplitter(TAGS)
    parts = [splitter.add(piece) for piece in pieces]
    parts.append(splitter.finish())
    return "".join(part[0] for part in parts), "".join(part[1] for part in parts)


FULL = "\n<think>\n1 < 2 </thin </ think>, so\n</think>\n\nYes </think> <think>."


@pytest.mark.parametrize("text", [FULL, FULL[: FULL.index("so")], "no <think>", "<thin", "", " "])
def test_thoughts_come_apart_at_every_boundary(text: str) -> None:
    """Cut in two at every place, and into single characters, the parts are the same."""
    expected = split_whole(text)
    for cut in range(len(text) + 1):
        assert split_in([text[:cut], text[cut:]]) == expected, cut
    assert split_in(list(text)) == expected
    assert split_whole(FULL) == ("1 < 2 </thin </ think>, so\n", "Yes </think> <think>.")


FRAGMENTS = st.sampled_from(["<think>", "</think>", "<", "</", "think>", " ", "\n", "a", "</thi"])


@given(st.lists(FRAGMENTS))
@example(["<think>", "</", "</think>"])
def test_any_fragments_come_apart_as_the_whole(pieces: list[str]) -> None:
    """Nothing is lost, and nothing moves from one part to the other."""
    assert split_in(pieces) == split_whole("".join(pieces))


@given(st.lists(FRAGMENTS))
def test_what_was_given_stays_right(pieces: list[str]) -> None:
    """Thoughts and answer so far are the beginnings of the final ones; no answer comes first."""
    splitter, thoughts, answer = ThoughtSplitter(TAGS), "", ""
    final = split_whole("".join(pieces))
    for piece in pieces:
        more_thoughts, more_answer = splitter.add(piece)
        thoughts += more_thoughts
        answer += more_answer
        assert final[0].startswith(thoughts)
        assert final[1].startswith(answer)
        assert not answer or splitter.is_over


def with_tags(*, special: bool) -> ChatTokenizer:
    """Return a tokenizer that has a token of its own for each tag."""
    definition = json.loads(DROPPING.tokenizer_json)
    like = {**definition["added_tokens"][-1], "special": special}
    first = max(token["id"] for token in definition["added_tokens"]) + 1
    definition["added_tokens"] += [
        {**like, "id": first + n, "content": tag} for n, tag in enumerate(TAGS)
    ]
    return ChatTokenizer(json.dumps(definition), DROPPING.chat_format)


@pytest.mark.parametrize("special", [None, False, True])
def test_thoughts_of_an_answer_come_apart_whatever_the_tags_are(special: bool | None) -> None:
    """Spelled with ordinary pieces, or as one token each, special or not."""
    chat = DROPPING.chat if special is None else with_tags(special=special)
    ids = chat.encode_text("<think>\n1 + 1 <b\n</think>\n\nIt is 2. stop")
    answer = AnswerText(chat, ["2. st"])
    shown = ""
    for token_id in ids:
        shown += answer.add(token_id)
        assert shown == "" or "2" in answer.reasoning or answer.reasoning == "1 + 1 <b\n"
    shown += answer.finish()
    assert (shown, answer.text, answer.reasoning) == ("It is ", "It is ", "1 + 1 <b\n")
    assert len(chat.encode_text("<think>")) == 1 or special is None


def test_stop_strings_and_calls_are_not_looked_for_in_thoughts() -> None:
    """They belong to the answer."""
    text = '<think>stop {"name": "now"} functools[{"name": "now"}]</think>{"name": "now"}'
    answer = AnswerText(MINI.chat, ["stop"], offered=["now"])
    for token_id in MINI.chat.encode_text(text):
        answer.add(token_id)
    answer.finish()
    assert answer.reasoning == text[len("<think>") : text.index("</think>")]
    assert (answer.text, [call.name for call in answer.tool_calls]) == ("", ["now"])


def test_thoughts_that_were_cut_off_go_on() -> None:
    """The ids of the answer so far stand in the prompt, and what follows is still thoughts."""
    chat = DROPPING.chat
    ids = chat.encode_text("<think>one two</think>three")
    for cut in range(len(ids)):
        answer = AnswerText(chat, before=ids[:cut])
        for token_id in ids[cut:]:
            answer.add(token_id)
        answer.finish()
        assert "one two".endswith(answer.reasoning)
        assert "three".endswith(answer.text)
        assert chat.decode(ids[cut:]).endswith(answer.text)


def test_an_answer_of_another_model_keeps_the_tags() -> None:
    """Only the reasoning models' formats have thoughts."""
    chat = PHI4_KIT.chat
    answer = AnswerText(chat)
    shown = "".join(map(answer.add, chat.encode_text("<think>a</think>b"))) + answer.finish()
    assert (shown, answer.reasoning) == ("<think>a</think>b", "")


def test_other_models_have_no_thoughts() -> None:
    """Without tags every text is answer, at once; with the tag in the prompt it begins inside."""
    assert ThoughtSplitter(None).add("<think>a") == ("", "<think>a")
    splitter = ThoughtSplitter(TAGS, begun=True)
    assert splitter.add(" a</think>b") == ("a", "b")
    assert {each.name for each in FORMATS if each.thoughts} == {
        "phi4-mini-reasoning",
        "phi4-reasoning",
    }


def test_a_chat_keeps_thoughts_out_of_later_prompts() -> None:
    """The reply has both parts, the stream shows the answer, and the history holds it alone."""
    text = "<think>\n1 + 1 is 2\n</think>\n\nIt is 2."
    ids = answer_ids(text, kit=MINI)
    engine = FakeEngine([Answer(ids), Answer(ids)])
    chat = Phi3Chat(make_model(engine, kit=MINI))
    stream = chat.stream("1 + 1?")
    thoughts = ""
    shown = ""
    while (piece := stream.read(wait=True)) is not None:
        thoughts += piece.reasoning
        shown += piece.text
        if stream.done:
            break
    reply = stream.reply
    assert (shown, thoughts) == (reply.text, reply.reasoning) == ("It is 2.", "1 + 1 is 2\n")
    assert reply.token_ids == tuple(ids[:-1])
    assert chat.messages[-1] == Message("assistant", "It is 2.")
    chat.generate("Sure?")
    said = [("user", "1 + 1?"), ("assistant", "It is 2."), ("user", "Sure?")]
    messages = [Message(role, content) for role, content in said]  # type: ignore[arg-type]
    assert list(engine.requests[1].prompt_ids) == rendered_ids(MINI, messages)
    engine.close()


def test_thoughts_that_were_cut_off_can_be_continued() -> None:
    """An answer that ended at its limit keeps its thoughts, so that it can go on from them."""
    ids = answer_ids("<think>one two</think>three", kit=MINI)
    count = len(MINI.chat.encode_text("<think>one"))
    engine = FakeEngine([Answer(ids), Answer(ids[count:])])
    chat = Phi3Chat(make_model(engine, kit=MINI))
    cut = chat.generate("?", max_new_tokens=count)
    assert (cut.text, cut.finish_reason) == ("", "length")
    more = chat.stream_more().drain()
    assert "one two".endswith(more.reasoning)
    assert more.text == "three"
    assert chat.messages[-1].content == "three"
    engine.close()
