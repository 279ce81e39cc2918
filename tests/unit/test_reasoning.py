"""Reasoning models: their formats, and thoughts told apart from the answer."""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from phi3ov.answer.recommended import RECOMMENDED
from phi3ov.answer.reply import Reply
from phi3ov.answer.stages import Thoughts
from phi3ov.answer.token_stream import TokenRequest
from phi3ov.chat import Phi3Chat
from phi3ov.errors import OptionError, PromptError
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


# ----------------------------------------------------------------------- thoughts in stages
SCRIPT = '\n<think>\n1 + 1é <b\n</think>\n\n{"n": 2}'
"""What the scripted model writes: a structured answer behind its thoughts."""
LONGEST_PIECE = 6


@functools.cache
def any_pieces() -> ChatTokenizer:
    """Return a tokenizer with a token for every run of up to six bytes of the script."""
    definition = json.loads(DROPPING.tokenizer_json)
    like = {**definition["added_tokens"][-1], "special": False}
    first = max(token["id"] for token in definition["added_tokens"]) + 1
    text = range(len(SCRIPT))
    runs = {SCRIPT[start : start + size] for start in text for size in range(2, LONGEST_PIECE + 1)}
    runs = {run for run in runs if run.isascii()}  # byte-level vocabularies spell others in bytes
    definition["added_tokens"] += [
        {**like, "id": first + number, "content": run} for number, run in enumerate(sorted(runs))
    ]
    return ChatTokenizer(json.dumps(definition), DROPPING.chat_format)


@st.composite
def segmentations(draw: st.DrawFn) -> list[int]:
    """Draw ids that spell the script, cut anywhere."""
    chat, ids, start = any_pieces(), list[int](), 0
    while start < len(SCRIPT):
        size = draw(st.integers(1, LONGEST_PIECE))
        ids += chat.encode_text(SCRIPT[start : start + size])
        start += size
    assert chat.decode(ids) == SCRIPT
    return ids


def run_stage(ids: list[int], *, limit: int | None, guided: bool) -> tuple[list[int], Thoughts]:
    """Return the ids that a stage keeps, with those that it forces, and the stage."""
    stage = Thoughts(any_pieces(), max_tokens=limit, ends_with_thoughts=guided, end_ids=(0,))
    kept: list[int] = []
    for token_id in ids:
        if stage.is_over:
            break
        kept += stage.add(token_id)
    return [*kept, *(stage.forced_ids if stage.is_over else stage.finish())], stage


@given(ids=segmentations())
def test_a_grammar_begins_behind_the_closing_tag_at_every_token_boundary(ids: list[int]) -> None:
    """However the tags are cut into tokens, the stage ends with the tag and white space at most."""
    kept, stage = run_stage(ids, limit=None, guided=True)
    assert stage.is_over
    text = any_pieces().decode(kept)
    thoughts, _, rest = SCRIPT.partition(TAGS[1])
    assert text.startswith(thoughts + TAGS[1])
    assert rest.startswith(text.removeprefix(thoughts + TAGS[1]))
    assert not text.removeprefix(thoughts + TAGS[1]).strip()


@pytest.mark.parametrize("guided", [False, True])
@given(ids=segmentations(), data=st.data())
def test_thoughts_end_at_their_limit_at_every_token_boundary(
    guided: bool, ids: list[int], data: st.DataObject
) -> None:
    """What the model wrote stays, one whole closing tag follows, and no part of it is thoughts."""
    limit = data.draw(st.integers(0, len(ids)))
    kept, stage = run_stage(ids, limit=limit, guided=guided)
    chat = any_pieces()
    begun = chat.decode(ids[:limit])
    if TAGS[1] in begun:  # the model closed its thoughts in time
        unlimited, _ = run_stage(ids, limit=None, guided=guided)
        assert (kept, stage.is_over) == (unlimited, guided)
        return
    assert stage.is_over
    assert kept[:limit] == ids[:limit]
    text = chat.decode(kept)
    assert text.count(TAGS[0]) == text.count(TAGS[1]) == 1
    assert text.startswith(begun)
    ends = [n for n in range(len(TAGS[1])) if begun.endswith(TAGS[1][:n])]
    assert split_whole(text) == (split_whole(begun[: len(begun) - max(ends)])[0], "") or (
        not begun.lstrip().startswith(TAGS[0]) and split_whole(text) == ("", "")
    )


PROMPT_TOKENS = len(MINI.chat.encode_prompt([Message("user", "?")]))


class ReasoningEngine(FakeEngine):
    """A scripted model: goes on with its script, or behind forced ids with another answer."""

    def __init__(
        self,
        script: Sequence[int],
        after: Sequence[int] = (),
        *,
        prompt_tokens: int = PROMPT_TOKENS,
    ) -> None:
        self.script, self.after, self.prompt_tokens = [*script], [*after], prompt_tokens
        super().__init__(self.answer)
        self.takes_grammars = True

    def answer(self, request: TokenRequest) -> Answer:
        """Return what comes behind the ids of the answer that the prompt holds."""
        written = [*request.prompt_ids[self.prompt_tokens :]]
        goes_on = request.grammar is None and written == self.script[: len(written)]
        ids = self.script[len(written) :] if goes_on else self.after
        return Answer(ids, endless=not set(ids) & request.stop_ids)


def encode(text: str, *, end: bool = True) -> list[int]:
    """Return the ids of an answer of the tiny Phi-4-mini-reasoning."""
    return [*answer_ids(text, kit=MINI, stop="<|end|>" if end else None)]


THINKING = "<think>\none two three\n</think>\n\nfour"
SHAPE = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}


@pytest.mark.parametrize("limit", range(14))
def test_max_reasoning_tokens_closes_the_thoughts(limit: int) -> None:
    """The reply, its ids, the stream and the history agree at every limit."""
    script, after = encode(THINKING), encode("five")
    engine = ReasoningEngine(script, after)
    chat = Phi3Chat(make_model(engine, kit=MINI))
    pieces = list(
        chat.stream("?", max_reasoning_tokens=limit, max_new_tokens=60, timeout_seconds=20).pieces()
    )
    engine.close()
    text = "".join(piece.text for piece in pieces)
    thoughts = "".join(piece.reasoning for piece in pieces)
    ids = [token_id for piece in pieces for token_id in piece.token_ids]
    ended = "</think>" in MINI.chat.decode(script[:limit])
    assert text == ("four" if ended else "five")
    assert "one two three\n".startswith(thoughts)
    assert len(engine.requests) == (1 if ended or not limit else 2)
    if ended:
        assert ids == script[:-1]
    else:
        assert ids[:limit] == script[:limit]
        assert split_whole(MINI.chat.decode(ids)) == (thoughts, "five")
        second = engine.requests[-1]
        written = second.prompt_ids[PROMPT_TOKENS:]
        assert [*written, *after[:-1]] == ids
        assert second.max_new_tokens == 60 - len(written)
    assert chat.messages[-1] == Message("assistant", text)


def shaped(script: list[int], after: str = '{"n": 2}', **options: Any) -> tuple[Reply, FakeEngine]:
    """Return the reply to a question whose answer has a shape, and the engine."""
    engine = ReasoningEngine(script, encode(after))
    model = make_model(engine, kit=MINI)
    chosen: dict[str, Any] = {"json_schema": SHAPE, "max_new_tokens": 60, "timeout_seconds": 20}
    reply = model.generate([Message("user", "?")], **chosen | options)
    engine.close()
    return reply, engine


def test_a_structured_answer_begins_behind_the_thoughts() -> None:
    """They are free; the grammar applies to what follows them, whatever the model wrote there."""
    reply, engine = shaped(encode("<think>\none\n</think>\n\nFour is"))
    assert (reply.parsed, reply.reasoning) == ({"n": 2}, "one\n")
    first, second = engine.requests
    assert first.grammar is None
    assert second.grammar is not None
    written = MINI.chat.decode(second.prompt_ids[PROMPT_TOKENS:])
    assert written.rstrip() == "<think>\none\n</think>"
    assert (*reply.prompt_ids, *reply.token_ids) == (*second.prompt_ids, *encode('{"n": 2}')[:-1])


def test_a_structured_answer_without_thoughts_has_the_grammar_from_its_beginning() -> None:
    """What the model wrote instead of thoughts is not kept."""
    for begun in ("Four", "\n <thing>"):
        reply, engine = shaped(encode(begun))
        assert (reply.text, reply.reasoning, reply.parsed) == ('{"n": 2}', "", {"n": 2})
        assert engine.requests[1].prompt_ids == engine.requests[0].prompt_ids == reply.prompt_ids


def test_thoughts_that_end_the_message_are_closed_before_a_structured_answer() -> None:
    """An answer that ended by itself always parses."""
    reply, engine = shaped(encode("<think>\none </th"))
    assert (reply.parsed, reply.reasoning, reply.finish_reason) == ({"n": 2}, "one ", "stop")
    assert MINI.chat.decode(engine.requests[1].prompt_ids).endswith("<think>\none </think>")


@pytest.mark.parametrize("limit", [0, 1, 3])
def test_a_structured_answer_follows_thoughts_at_their_limit(limit: int) -> None:
    """Both options together."""
    reply, _ = shaped(encode("<think>\none two three four five"), max_reasoning_tokens=limit)
    assert reply.parsed == {"n": 2}
    assert "one two".startswith(reply.reasoning)


def test_thoughts_that_reach_the_answers_limit_leave_no_value() -> None:
    """As any answer that was cut off."""
    reply, engine = shaped(encode("<think>\none two three four five"), max_new_tokens=5)
    assert (reply.parsed, reply.finish_reason, len(engine.requests)) == (None, "length", 1)
    assert reply.usage.completion_tokens == 5


def test_the_limit_of_the_answer_holds_for_forced_tokens() -> None:
    """A closing tag that does not fit is cut off, and the reply says so."""
    engine = ReasoningEngine(encode("<think>\none two three"), encode("no"))
    model = make_model(engine, kit=MINI)
    opened = len(MINI.chat.encode_text("<think>"))
    reply = model.generate(
        [Message("user", "?")], max_reasoning_tokens=opened + 1, max_new_tokens=opened + 2
    )
    assert (reply.finish_reason, reply.text) == ("length", "")
    assert reply.usage.completion_tokens == opened + 2
    engine.close()


def test_a_continued_answer_has_its_shape_behind_thoughts_that_were_closed_before() -> None:
    """With closed thoughts in the prompt, the grammar applies at once."""
    engine = ReasoningEngine([], encode('{"n": 2}'))
    model = make_model(engine, kit=MINI)
    said = [Message("user", "?"), Message("assistant", "<think>one</think>")]
    reply = model.generate(said, continue_last=True, json_schema=SHAPE)
    [asked] = engine.requests
    assert (reply.parsed, asked.grammar is None) == ({"n": 2}, False)
    engine.close()


def test_calls_that_must_come_follow_the_thoughts() -> None:
    """The token that opens them is forced where the thoughts end."""
    call, tools = '[{"name": "now", "arguments": {}}]', [Tool(name="now", description="Time")]
    asked = [Message("user", "?")]
    engine = ReasoningEngine(
        encode("<think>\none\n</think>\n\nNo"),
        encode(call),
        prompt_tokens=len(MINI.chat.encode_prompt(asked, tools=tools)),
    )
    reply = make_model(engine, kit=MINI).generate(asked, tools=tools, tool_choice="required")
    assert [each.name for each in reply.tool_calls] == ["now"]
    assert (reply.reasoning, reply.text) == ("one\n", "")
    opening = MINI.chat.control["<|tool_call|>"]["id"]
    assert engine.requests[1].prompt_ids[-1] == opening
    engine.close()


def test_what_reasoning_cannot_do_is_refused_by_name() -> None:
    """Before anything is generated."""
    engine = ReasoningEngine([])
    mini, plain = make_model(engine, kit=MINI), make_model(engine, kit=PHI4_KIT)
    asked = [Message("user", "?")]
    with pytest.raises(OptionError, match="max_reasoning_tokens=3: the chat format 'phi4' has no"):
        plain.generate(asked, max_reasoning_tokens=3)
    with pytest.raises(OptionError, match="logprobs=True contradicts max_reasoning_tokens"):
        mini.generate(asked, logprobs=True, max_reasoning_tokens=3)
    with pytest.raises(OptionError, match="logprobs=True contradicts a shape"):
        mini.generate(asked, logprobs=True, json_schema=SHAPE)
    with pytest.raises(OptionError, match="leaves nothing of max_new_tokens=8"):
        mini.generate(asked, max_reasoning_tokens=8, max_new_tokens=8)
    with pytest.raises(OptionError, match="Did you mean max_reasoning_tokens"):
        mini.generate(asked, thinking_budget=8)  # type: ignore[call-overload]
    engine.longest_prompt = 60
    with pytest.raises(OptionError, match="max_reasoning_tokens=60 after a prompt of"):
        mini.generate(asked, max_reasoning_tokens=60)
    assert engine.requests == []
    engine.close()


def test_every_candidate_has_thoughts_of_its_own() -> None:
    """Each is watched by itself."""
    engine = ReasoningEngine(encode(THINKING), encode("five"))
    model = make_model(engine, kit=MINI)
    reply = model.generate(
        [Message("user", "?")], max_reasoning_tokens=6, candidates=3, temperature=0.8, seed=1
    )
    assert [each.text for each in reply.candidates] == ["five"] * 3
    assert len({each.reasoning for each in reply.candidates}) == 1
    assert len(engine.requests) == 6
    engine.close()


def test_the_cards_sampling_is_offered_and_never_set() -> None:
    """The options are those of the card, with what the caller adds; a request alone is greedy."""
    engine = ReasoningEngine(encode("<think>one</think>two"))
    mini, reasoning = make_model(engine, kit=MINI), make_model(engine, kit=DROPPING)
    chosen = mini.recommended_options(max_new_tokens=50)
    assert (chosen.temperature, chosen.top_p, chosen.top_k) == (0.8, 0.95, None)
    assert chosen.max_new_tokens == 50
    assert reasoning.recommended_options().top_k == 50
    with pytest.raises(OptionError, match="'phi4' has no recommended sampling"):
        make_model(engine, kit=PHI4_KIT).recommended_options()
    assert set(RECOMMENDED) == {each.name for each in FORMATS if each.thoughts}
    mini.generate([Message("user", "?")])
    assert engine.requests[0].sampling.greedy
    engine.close()
