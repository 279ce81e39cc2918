"""Templates of fine-tunes that add constant texts to a known format."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from phi3ov.artifact.fingerprint import ModelFingerprint
from phi3ov.artifact.folder import Artifact, Manifest, record_files
from phi3ov.chat import Phi3Chat
from phi3ov.errors import ArtifactError, PromptError, RestoreError, UnsupportedModelError
from phi3ov.model import Phi3Model
from phi3ov.prompt.chat_tokenizer import ChatTokenizer
from phi3ov.prompt.extension import Extension
from phi3ov.prompt.formats import ChatFormat, recognize_format
from phi3ov.prompt.messages import Message, Role
from phi3ov.prompt.token_texts import TokenTexts

from .fakes import (
    MINI,
    PHI3_MINI,
    PHI4,
    PHI4_KIT,
    PHI4_MINI_KIT,
    Answer,
    FakeEngine,
    Kit,
    llama_like,
    make_artifact,
    make_model,
    render_template,
)
from .test_artifact import make_manifest, write_manifest
from .test_prompt_attacks import ATTACKS
from .test_real_files import FAMILY, ROWS, Row, conversations, definition

OPENED = "<think>\n"
CLOSED = "<think>\n\n</think>\n\n"

EXTENSIONS = {
    "line-break": {"answer_start": "\n"},
    "opened-thoughts": {"answer_start": OPENED},
    "closed-thoughts": {"answer_start": CLOSED},
    "closed-thoughts-everywhere": {"answer_start": CLOSED, "history_start": CLOSED},
    "text": {"answer_start": "Sure:"},
    "text-that-ends-with-a-space": {"answer_start": "Sure: "},
    "end-of-text": {"answer_end": "<|endoftext|>"},
    "end-of-text-on-a-line": {"answer_end": "<|endoftext|>\n", "answer_start": OPENED},
    "question-end": {"question_end": "<|endoftext|>", "answer_start": "\n"},
    "text-everywhere": {"answer_start": "Answer: ", "history_start": "Answer: "},
    "closed-thoughts-in-history": {"answer_start": OPENED, "history_start": CLOSED},
}
"""Texts that a template adds, by the test's id."""

CONVERSATIONS = 60


def extend(template: str, added: dict[str, str]) -> str:
    """Return a template that writes the texts, with jinja's own means."""
    quoted = {name: json.dumps(text, ensure_ascii=False) for name, text in added.items()}
    is_answer = "message['role'] == 'assistant'"
    before = f"({quoted.get('history_start', repr(''))} if {is_answer} else '')"
    template = template.replace("message['content'] +", f"{before} + message['content'] +")
    template = template.replace("message['content'] }}", f"{before} + message['content'] }}}}")
    head, tail = template.rsplit("{% endfor %}", 1)
    end, question_end = quoted.get("answer_end", "''"), quoted.get("question_end", "''")
    loop_end = f"{{% if {is_answer} %}}{{{{ {end} }}}}{{% endif %}}{{% endfor %}}"
    start = f"{{{{ {quoted.get('answer_start', repr(''))} }}}}"
    if "add_generation_prompt" not in tail:  # as Phi-3-medium's: the header ends the last question
        return head + loop_end + tail + start
    opening = re.search(r"{% if add_generation_prompt %}({{.*?}}|[^{]*)", tail, re.DOTALL)
    assert opening is not None
    tail = tail[: opening.end()] + start + tail[opening.end() :]
    return f"{head}{loop_end}{{{{ {question_end} }}}}{tail}"


@dataclass(frozen=True)
class ExtendedRow(Row):
    """A real model of the family whose template a fine-tune has extended."""

    made: str = ""

    @property
    def template(self) -> str:
        """The extended template."""
        return self.made


def recognized(template: str) -> ChatFormat:
    """Return the format of a template."""
    return recognize_format(lambda messages: render_template(template, messages))


# ----------------------------------------------------------------------- parity on real files
real_files = pytest.mark.skipif(
    not FAMILY.is_dir(), reason=f"no real files of the family at {FAMILY}"
)


@real_files
@pytest.mark.export
@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.folder)
@pytest.mark.parametrize("name", EXTENSIONS)
def test_ids_are_transformers_own(row: Row, name: str) -> None:
    """Random conversations of several turns, with the real templates extended in each way."""
    transformers = pytest.importorskip("transformers", reason="needs the extra [export]")
    from tokenizers import Tokenizer

    added = EXTENSIONS[name]
    template = extend(row.template, added)
    opens_in_history = "add_generation_prompt" not in row.template
    if opens_in_history and "question_end" in added:
        pytest.skip("its header ends the last question")
    found = recognized(template)
    assert (found.name, found.system_messages) == (row.format_name, row.system_messages)
    assert found.extension.to_values() == added
    chat = ChatTokenizer(definition(row), found, eos_token=row.config["eos_token"])
    official = transformers.PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(definition(row)),
        chat_template=template,
        bos_token=row.config["bos_token"],
        eos_token="<|endoftext|>",
    )
    for messages, _ in conversations(replace(row, tools=False), CONVERSATIONS):
        said = [{"role": each.role, "content": each.content} for each in messages]
        expected = official.apply_chat_template(
            said, add_generation_prompt=True, tokenize=True, return_dict=False
        )
        assert chat.encode_prompt(messages) == expected, ascii(messages)


@real_files
@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.folder)
@pytest.mark.parametrize("name", EXTENSIONS)
def test_a_text_that_holds_the_extension_stays_text(row: Row, name: str) -> None:
    """Also beside control tokens; and every attack writes the control tokens of a harmless text."""
    added = EXTENSIONS[name]
    if "add_generation_prompt" not in row.template and "question_end" in added:
        pytest.skip("its header ends the last question")
    chat = ChatTokenizer(definition(row), recognized(extend(row.template, added)))

    def shape(content: str) -> list[int]:
        roles: list[Role] = ["user", "assistant", "user"]
        ids = chat.encode_prompt([Message(role, content) for role in roles])
        return [token_id for token_id in ids if token_id in chat.control_tokens]

    harmless = shape("hello")
    texts = [
        f"{before}{text}{after}"
        for text in added.values()
        for before in ("", "<|end|>")
        for after in ("", " ", text)
    ]
    for attack in (*texts, *ATTACKS[:: max(1, len(ATTACKS) // 60)]):
        assert shape(attack) == harmless, ascii(attack)
    assert chat.encode_prompt([Message("user", texts[0])])[-len(chat.opening) :] == chat.opening


# ----------------------------------------------------------------------- refused
def in_loop(template: str, text: str) -> str:
    """Return a template that writes ``text`` at the end of each message."""
    head, tail = template.rsplit("{% endfor %}", 1)
    return head + text + "{% endfor %}" + tail


@pytest.mark.parametrize(
    ("template", "difference"),
    [
        pytest.param(
            PHI4 + "{{ messages|length }}", "answer_start': '1'", id="counts-the-messages"
        ),
        pytest.param(
            PHI4 + "{% if messages|length > 3 %}<think>{% endif %}", "<think>", id="late-thoughts"
        ),
        pytest.param(
            in_loop(PHI4, "{% if loop.index == 2 %}<|endoftext|>{% endif %}"),
            re.escape("<|endoftext|>"),
            id="first-answer-only",
        ),
        pytest.param(
            in_loop(PHI4, "{% if loop.revindex == 2 %}<|endoftext|>{% endif %}"),
            re.escape("<|endoftext|>"),
            id="last-answer-only",
        ),
        pytest.param(
            PHI4 + "{% if 'a' in messages[-1]['content'] %}!{% endif %}", "!", id="by-content"
        ),
        pytest.param(
            PHI4 + "<|im_end|><|im_start|>user<|im_sep|>", "begins or ends a message", id="role"
        ),
        pytest.param(PHI4 + "</think>", "does not begin with one pair", id="closes-only"),
        pytest.param(PHI4 + "Well <think>", "does not begin with one pair", id="text-before"),
        pytest.param(PHI4 + CLOSED + OPENED, "does not begin with one pair", id="two-pairs"),
        pytest.param(
            extend(PHI4, {"answer_end": "</think>"}), "holds a tag of thoughts", id="tag-at-the-end"
        ),
        pytest.param(
            extend(PHI4, {"answer_start": OPENED, "history_start": OPENED}),
            "opens thoughts in every answer of the history",
            id="opened-in-the-history",
        ),
        pytest.param(
            extend(PHI4, {"answer_start": "Sure", "history_start": "Well"}),
            "neither its answer_start 'Sure' nor closed thoughts",
            id="other-text-in-the-history",
        ),
        pytest.param(
            (PHI4 + "Sure:").replace("message['content']", "message['content'] | trim"),
            r"  a\\n b",
            id="trims",
        ),
        pytest.param(
            PHI4.replace("message['content']", "message['content'] | replace('Sure:', '')")
            + "Sure:",
            "Sure:",
            id="searches-contents",
        ),
    ],
)
def test_a_template_that_adds_anything_else_is_refused(template: str, difference: str) -> None:
    """The message shows the texts that were found and where the template differs from them."""
    with pytest.raises(UnsupportedModelError, match=difference) as caught:
        recognized(template)
    assert "Nearest: " in str(caught.value)


def test_a_template_that_asks_for_the_date_is_refused() -> None:
    """Its texts would be those of the day of the export; one that adds none may ask."""
    dated = PHI4 + "{{ today }}"

    def render(messages: list[dict[str, str]]) -> str:
        return render_template(dated.replace("{{ today }}", "28 Nov"), messages)

    with pytest.raises(UnsupportedModelError, match="may hold the date"):
        recognize_format(render, template=dated.replace("today", "strftime_now('%d %b')"))
    plain = recognize_format(lambda said: render_template(PHI4, said), template="strftime_now")
    assert plain.name == "phi4"


def test_a_control_token_that_the_vocabulary_lacks_is_refused() -> None:
    """By its name; text in which no control token stands is text."""
    found = recognized(PHI4 + "<|reasoning|>")
    with pytest.raises(UnsupportedModelError, match=r"no control token <\|reasoning\|>"):
        ChatTokenizer(PHI4_KIT.tokenizer_json, found)


def test_a_text_that_merges_with_the_message_before_it_is_refused() -> None:
    """Phi-3's footer ends with a line break: a text behind it would be one piece with it."""
    found = recognized(extend(PHI3_MINI, {"question_end": "Answer now."}))
    assert found.extension.question_end == "Answer now."
    with pytest.raises(UnsupportedModelError, match="could not be encoded one by one"):
        ChatTokenizer(llama_like(rstrip=False), found)


# ----------------------------------------------------------------------- answers
@dataclass(frozen=True)
class ExtendedKit(Kit):
    """A small tokenizer whose template a fine-tune has extended."""

    @property
    def chat_format(self) -> ChatFormat:
        """The format that the template is recognized as."""
        return recognized(self.template)


@functools.cache
def kit(base: Kit, **added: str) -> Kit:
    """Return a base with an extended template."""
    return ExtendedKit(
        base.name, base.make_tokenizer, extend(base.template, added), base.format_name, "kept"
    )


def rendered_ids(extended: Kit, messages: Sequence[Message]) -> list[int]:
    """Return what the template and the unmodified tokenizer make of the messages."""
    said = [{"role": each.role, "content": each.content} for each in messages]
    text = render_template(extended.template, said)
    ids: list[int] = extended.official.encode(text, add_special_tokens=False).ids
    return ids


def spoken_ids(extended: Kit, text: str, *, stop: bool = True) -> tuple[int, ...]:
    """Return the ids with which a model goes on behind the text that the template began."""
    chat = extended.chat
    ids = chat.encode_continuation(text) if chat.answer_start else chat.encode_text(text)
    return (*ids, *chat.closing[:1]) if stop else tuple(ids)


def ask(extended: Kit, *answers: str, **options: Any) -> tuple[Any, Phi3Chat, FakeEngine]:
    """Return the reply to a question, its chat and the engine, which writes the answers."""
    engine = FakeEngine([Answer(spoken_ids(extended, text)) for text in answers])
    chat = Phi3Chat(make_model(engine, kit=extended))
    return chat.generate("?", **options), chat, engine


BASES = (MINI, PHI4_KIT, PHI4_MINI_KIT)
by_base = pytest.mark.parametrize("base", BASES, ids=lambda base: base.name)
BIG = 200


@by_base
@pytest.mark.parametrize("name", EXTENSIONS)
def test_every_prompt_of_a_chat_is_the_templates(base: Kit, name: str) -> None:
    """The first one, and the second, in which the answer stands as the template writes it."""
    extended = kit(base, **EXTENSIONS[name])
    spoken = "one</think>\n\nFour" if EXTENSIONS[name].get("answer_start") == OPENED else "Four"
    reply, chat, engine = ask(extended, spoken, "Five")
    assert (reply.text, reply.finish_reason) == ("Four", "stop")
    chat.generate("!")
    engine.close()
    said = [Message("user", "?"), Message("assistant", reply.text), Message("user", "!")]
    assert list(engine.requests[0].prompt_ids) == rendered_ids(extended, said[:1])
    assert list(engine.requests[1].prompt_ids) == rendered_ids(extended, said)


@by_base
def test_the_answer_continues_the_text_that_the_template_began(base: Kit) -> None:
    """A leading space, a word and a character that the text has begun come out whole."""
    extended = kit(base, answer_start="Sure:")
    whole = extended.chat.encode_text("Sure: the nameé is")
    start = extended.chat.encode_text("Sure:")
    assert whole[: len(start)] == start
    engine = FakeEngine([Answer([*whole[len(start) :], extended.chat.closing[0]])])
    reply = make_model(engine, kit=extended).generate([Message("user", "?")])
    engine.close()
    assert reply.text == " the nameé is"
    assert list(reply.prompt_ids[-len(start) :]) == start


@by_base
@pytest.mark.parametrize("start", [OPENED, "<think>", "\n<think>\n\n"])
def test_thoughts_that_the_template_opened_are_told_apart(base: Kit, start: str) -> None:
    """At every limit of the answer, and no matter whether the model closes them at once."""
    extended = kit(base, answer_start=start)
    reply, chat, engine = ask(extended, "one two</think>\n\nfour")
    engine.close()
    assert (reply.text, reply.reasoning) == ("four", "one two")
    assert chat.messages[-1].content == "four"
    thoughts = TokenTexts(extended.chat).count_thoughts(reply.token_ids)
    assert extended.chat.decode(reply.token_ids[:thoughts]).endswith("</think>")
    for limit in range(1, len(reply.token_ids)):
        cut, _, engine = ask(extended, "one two</think>\n\nfour", max_new_tokens=limit)
        engine.close()
        assert "one two</think>".startswith(cut.reasoning)
        assert "four".startswith(cut.text)
    silent, chat, engine = ask(extended, "</think>\n\nfour")
    engine.close()
    assert (silent.text, silent.reasoning) == ("four", "")
    said = [Message("user", "?"), Message("assistant", "four"), Message("user", "!")]
    opening = len(extended.chat.encode_prompt(said)) - len(chat.token_ids)
    assert list(chat.token_ids) == rendered_ids(extended, said)[: len(chat.token_ids)]
    assert opening > 0


@by_base
def test_thoughts_that_the_template_closed_are_over(base: Kit) -> None:
    """All text is answer, and no token counts as thoughts."""
    extended = kit(base, answer_start=CLOSED)
    reply, _, engine = ask(extended, "four </think> five")
    engine.close()
    assert (reply.text, reply.reasoning) == ("four </think> five", "")
    assert TokenTexts(extended.chat).count_thoughts(reply.token_ids) == 0


@by_base
def test_a_limit_closes_thoughts_that_the_template_opened(base: Kit) -> None:
    """The tag that phi3ov writes is the closing one alone."""
    extended = kit(base, answer_start=OPENED)
    for limit in (0, 2):

        def go_on(request: Any) -> Answer:
            text = extended.chat.decode(request.prompt_ids)
            spoken = "four" if text.endswith("</think>") else "one two three four"
            end = extended.chat.closing[0]
            return Answer([*extended.chat.encode_text(spoken), end])

        engine = FakeEngine(go_on)
        model = make_model(engine, kit=extended)
        reply = model.generate([Message("user", "?")], max_reasoning_tokens=limit)
        engine.close()
        assert reply.text == "four"
        assert "one two three".startswith(reply.reasoning)
        written = extended.chat.decode([*reply.prompt_ids, *reply.token_ids])
        assert (written.count("<think>"), written.count("</think>")) == (1, 1)


@by_base
def test_a_shape_begins_behind_thoughts_that_the_template_opened(base: Kit) -> None:
    """And at once where the template closed them."""
    for start, requests in ((OPENED, 2), (CLOSED, 1)):
        extended = kit(base, answer_start=start)
        end = extended.chat.closing[0]

        def go_on(request: Any, extended: Kit = extended, end: int = end) -> Answer:
            spoken = "one</think>\n\nno" if request.grammar is None else '{"n": 2}'
            return Answer([*extended.chat.encode_text(spoken), end])

        engine = FakeEngine(go_on)
        engine.takes_grammars = True
        schema = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
        reply = make_model(engine, kit=extended).generate(
            [Message("user", "?")], json_schema=schema, max_new_tokens=BIG
        )
        engine.close()
        assert reply.parsed == {"n": 2}
        assert reply.reasoning == ("one" if start == OPENED else "")
        assert len(engine.requests) == requests


# ----------------------------------------------------------------------- chats
@by_base
@pytest.mark.parametrize("name", EXTENSIONS)
def test_an_answer_that_was_cut_off_is_continued_with_its_exact_ids(base: Kit, name: str) -> None:
    """The prompt of the continuation is the first prompt and the ids of the answer so far."""
    extended = kit(base, **EXTENSIONS[name])
    opens = EXTENSIONS[name].get("answer_start") == OPENED
    spoken = "one two</think>\n\nfour five" if opens else "four five"
    ids = spoken_ids(extended, spoken, stop=False)
    end = extended.chat.closing[0]
    for cut in range(1, len(ids)):
        engine = FakeEngine([Answer(ids), Answer([*ids[cut:], end])])
        chat = Phi3Chat(make_model(engine, kit=extended))
        first = chat.generate("?", max_new_tokens=cut)
        chat.stream_more().drain()
        engine.close()
        second = engine.requests[1].prompt_ids
        assert second == (*first.prompt_ids, *ids[:cut])
        assert chat.messages[-1] == Message("assistant", "four five")
        said = [*chat.messages, Message("user", "!")]
        if opens:
            expected = rendered_ids(extended, said)[: len(chat.token_ids)]
            assert list(chat.token_ids) == expected


@by_base
@pytest.mark.parametrize("name", EXTENSIONS)
def test_a_complete_answer_can_be_continued(base: Kit, name: str) -> None:
    """From the form that it has in the history; the turn stays one turn."""
    extended = kit(base, **EXTENSIONS[name])
    opens = EXTENSIONS[name].get("answer_start") == OPENED
    engine = FakeEngine(
        [
            Answer(spoken_ids(extended, "one</think>\n\nfour" if opens else "four")),
            Answer((*extended.chat.encode_text(" five"), extended.chat.closing[0])),
        ]
    )
    chat = Phi3Chat(make_model(engine, kit=extended))
    chat.generate("?")
    before = chat.token_ids[: -len(extended.chat.closing)]
    more = chat.stream_more().drain()
    engine.close()
    assert engine.requests[1].prompt_ids == before
    assert [each.content.strip() for each in chat.messages] == ["?", f"four{more.text}"]


@by_base
@pytest.mark.parametrize("name", EXTENSIONS)
def test_an_answer_that_the_caller_gave_can_be_continued_and_saved(
    base: Kit, name: str, tmp_path: Path
) -> None:
    """Its first token may be shared with the text that the template writes before it."""
    extended = kit(base, **EXTENSIONS[name])
    spoken = (*extended.chat.encode_text(" five"), extended.chat.closing[0])
    engine = FakeEngine([Answer(spoken)])
    said = [Message("user", "?"), Message("assistant", "four")]
    chat = Phi3Chat(with_manifest(make_model(engine, kit=extended), extended), messages=said)
    prompt = rendered_ids(extended, [*said, Message("user", "!")])
    assert list(chat.token_ids) == prompt[: len(chat.token_ids)]
    chat.save(tmp_path / "chat.json")
    assert Phi3Chat.restore(chat.model, tmp_path / "chat.json").token_ids == chat.token_ids
    before = chat.token_ids[: -len(extended.chat.closing)]
    chat.stream_more().drain()
    engine.close()
    assert engine.requests[0].prompt_ids == before
    assert chat.messages[-1].content.split() == ["four", "five"]


@by_base
@pytest.mark.parametrize("name", EXTENSIONS)
def test_saved_chats_come_back(base: Kit, name: str, tmp_path: Path) -> None:
    """With a complete turn, one that was cut off, and the texts in the model's fingerprint."""
    extended = kit(base, **EXTENSIONS[name])
    opens = EXTENSIONS[name].get("answer_start") == OPENED
    spoken = "one</think>\n\nfour" if opens else "four"
    ids = spoken_ids(extended, spoken, stop=False)
    engine = FakeEngine([Answer([*ids, extended.chat.closing[0]]), Answer(ids)])
    model = with_manifest(make_model(engine, kit=extended), extended)
    chat = Phi3Chat(model)
    chat.generate("?")
    chat.generate("!", max_new_tokens=len(ids) - 1)
    chat.save(tmp_path / "chat.json")
    again = Phi3Chat.restore(model, tmp_path / "chat.json")
    assert (again.token_ids, again.messages) == (chat.token_ids, chat.messages)
    plain = with_manifest(make_model(engine, kit=base), base)
    with pytest.raises(RestoreError, match="chat_format differ"):
        Phi3Chat.restore(plain, tmp_path / "chat.json")
    engine.close()


def with_manifest(model: Phi3Model, extended: Kit) -> Phi3Model:
    """Return the model with the manifest that an export of it has."""
    manifest = replace(
        make_artifact().manifest,
        chat_format=extended.chat_format.name,
        chat_extension=extended.chat_format.extension.to_values(),
    )
    model.artifact = replace(model.artifact, manifest=manifest)
    return model


def test_a_candidate_is_chosen_in_the_form_of_the_history() -> None:
    """As the first one, which the turn was kept with."""
    extended = kit(PHI4_KIT, answer_start=CLOSED)
    end = extended.chat.closing[0]
    answers = [Answer([*extended.chat.encode_text(text), end]) for text in ("four", "five")]
    engine = FakeEngine(answers)
    chat = Phi3Chat(make_model(engine, kit=extended))
    reply = chat.generate("?", candidates=2, temperature=0.5, seed=1)
    chat.choose(reply.candidates[1])
    engine.close()
    said = [Message("user", "?"), Message("assistant", reply.candidates[1].text)]
    prompt = rendered_ids(extended, [*said, Message("user", "!")])
    assert list(chat.token_ids) == prompt[: len(chat.token_ids)]


def test_a_partial_answer_of_the_caller_stands_as_in_the_history() -> None:
    """As transformers' ``continue_final_message``: without the text for a new answer."""
    extended = kit(PHI4_KIT, answer_start=OPENED, history_start=CLOSED)
    said = [Message("user", "?"), Message("assistant", "Fo")]
    ids = extended.chat.encode_prompt(said, continue_last=True)
    assert extended.chat.decode(ids, skip_special_tokens=False).endswith(f"{CLOSED}Fo")
    engine = FakeEngine([Answer([*extended.chat.encode_text("ur"), extended.chat.closing[0]])])
    reply = make_model(engine, kit=extended).generate(said, continue_last=True)
    engine.close()
    assert (list(reply.prompt_ids), reply.text) == (ids, "ur")


def test_an_earlier_answer_with_thoughts_is_refused_where_the_template_drops_them() -> None:
    """As DeepSeek's and Qwen's templates do; an answer without thoughts is written."""
    last = "(message['content'].split('</think>')[-1])"
    template = PHI4.replace(
        "'<|im_start|>assistant<|im_sep|>' + message['content']",
        f"'<|im_start|>assistant<|im_sep|>' + {last}",
    )
    template += "{{ '<think>\\n' }}"
    found = recognized(template)
    assert found.extension == Extension(answer_start=OPENED, drops_thoughts=True)
    chat = ChatTokenizer(PHI4_KIT.tokenizer_json, found)
    said = [Message("user", "?"), Message("assistant", "<think>a</think>b"), Message("user", "!")]
    with pytest.raises(PromptError, match=r"messages\[1\]: .*drops thoughts from earlier answers"):
        chat.encode_prompt(said)
    kept = [said[0], Message("assistant", "b"), said[2]]
    rendered = render_template(
        template, [{"role": each.role, "content": each.content} for each in said]
    )
    assert chat.encode_prompt(kept) == chat.encode_raw(rendered)


# ----------------------------------------------------------------------- manifest
def folder_with(tmp_path: Path, **changes: Any) -> Artifact:
    """Return an artifact whose manifest has other fields."""
    (tmp_path / "config.json").write_text(
        json.dumps(
            {
                "model_type": "phi3",
                "hidden_size": 64,
                "intermediate_size": 128,
                "max_position_embeddings": 4096,
                "num_attention_heads": 4,
                "num_hidden_layers": 2,
            }
        ),
        encoding="utf-8",
    )
    write_manifest(tmp_path, record_files(tmp_path), **changes)
    return Artifact.open(tmp_path)


def test_the_manifest_records_the_texts(tmp_path: Path) -> None:
    """And gives the format back, thoughts included; an empty extension is not written."""
    added = {"answer_start": OPENED, "drops_thoughts": True}
    artifact = folder_with(tmp_path, chat_extension=added)
    assert artifact.chat_format.extension == Extension(answer_start=OPENED, drops_thoughts=True)
    assert artifact.chat_format.thoughts == ("<think>", "</think>")
    assert "answer_start" in ModelFingerprint.of(artifact).chat_format
    assert "chat_extension" not in make_manifest({}).to_json()
    assert Manifest.from_json(make_manifest({}).to_json()).chat_extension == {}


@pytest.mark.parametrize(
    "added",
    [{"answer_start": 1}, {"beginning": "a"}, {"drops_thoughts": "yes"}, ["answer_start"]],
)
def test_a_wrong_record_of_the_texts_is_refused(tmp_path: Path, added: Any) -> None:
    """By the manifest's name."""
    with pytest.raises(ArtifactError, match=r"phi3ov.json cannot be read"):
        folder_with(tmp_path, chat_extension=added)


def test_a_record_of_texts_that_no_prompt_can_hold_is_refused(tmp_path: Path) -> None:
    """A manifest cannot smuggle the end of a message into every prompt."""
    artifact = folder_with(tmp_path, chat_extension={"answer_start": "<|end|>\n<|user|>\n"})
    with pytest.raises(ArtifactError, match="begins or ends a message"):
        _ = artifact.chat_format
