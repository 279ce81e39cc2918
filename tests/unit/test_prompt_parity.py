"""A conversation encodes to exactly what the official template and tokenizer make of it."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from phi3ov.errors import PromptError, UnsupportedModelError
from phi3ov.prompt.chat_tokenizer import ChatTokenizer
from phi3ov.prompt.formats import ChatFormat, recognize_format
from phi3ov.prompt.messages import Message, Role
from phi3ov.prompt.text_tokenizer import RUST_WHITE_SPACE
from phi3ov.prompt.tokenizer_files import make_tokenizer, parse_definition, read_stop_ids

from .fakes import (
    KITS,
    LLAMA_2,
    MEDIUM,
    MINI,
    MINI_EARLY,
    PHI3_5,
    PHI4_KIT,
    PHI4_MINI_KIT,
    TRIMMING,
    Kit,
    llama_like,
    render_template,
)

SPACES = [
    *RUST_WHITE_SPACE,
    *map(chr, range(0x1C, 0x20)),
    "\u200b",
    "\ufeff",
    "\r\n",
    "\t\t",
    "   ",
]
FRAGMENTS = [
    "<|",
    "|>",
    "<|en",
    "end|>",
    "<",
    ">",
    "/",
    "user",
    "\n<|",
    "▁",
    "▁▁",
    "<0x0A>",
    "\ufffd",
]
SAMPLES = [
    "def f(x):\n\treturn x  # 1\n",
    "你好，世界！",
    "👩‍👩‍👧‍👦 😀 🏳️‍🌈",
    "e\u0301 o\u0308 \u1112\u1161\u11ab",
    "the user's system: assistant",
    "``` python\nprint('hi')\n```",
    "\u202eright to left\u202c",
]
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
PIECES = st.one_of(
    TEXT, st.sampled_from(SPACES), st.sampled_from(FRAGMENTS), st.sampled_from(SAMPLES)
)
CONTENT = st.lists(PIECES, max_size=5).map("".join)
LONG = st.builds(lambda text, times: text * times, CONTENT, st.integers(100, 400))


def contents(kit: Kit) -> st.SearchStrategy[str]:
    """Return contents that hold the text of no control token of the kit."""
    added = [token["content"] for token in json.loads(kit.tokenizer_json)["added_tokens"]]
    return CONTENT.filter(lambda text: not any(token in text for token in added))


@st.composite
def conversations(draw: st.DrawFn, kit: Kit) -> list[Message]:
    """Draw a conversation that can be answered; contents hold no control token."""
    turns = draw(st.integers(0, 2))
    roles: list[Role] = ["user", *(["assistant", "user"] * turns)]  # type: ignore[list-item]
    if kit.system_messages != "dropped" and draw(st.booleans()):
        roles.insert(0, "system")
    return [Message(role, draw(contents(kit))) for role in roles]


def official_ids(kit: Kit, messages: Sequence[Message]) -> list[int]:
    """Return what transformers makes of the messages: template, then tokenizer."""
    dictionaries = [{"role": one.role, "content": one.content} for one in messages]
    rendered = render_template(kit.template, dictionaries)
    ids: list[int] = kit.official.encode(rendered, add_special_tokens=False).ids
    return ids


@pytest.mark.parametrize("kit", KITS, ids=lambda kit: kit.name)
def test_official_template_is_recognized(kit: Kit) -> None:
    """The format of every official template of the family is found by rendering it."""
    found = recognize_format(lambda messages: render_template(kit.template, messages))
    assert (found.name, found.system_messages) == (kit.format_name, kit.system_messages)


@pytest.mark.parametrize(
    ("template", "difference"),
    [
        pytest.param(TRIMMING, r"  a\\n b \\n", id="trims-contents"),
        pytest.param(LLAMA_2, r"\[INST\]", id="other-family"),
        pytest.param("", r"writes ''", id="writes-nothing"),
        pytest.param("<unk>" + MINI.template, "<unk>", id="adds-a-token"),
    ],
)
def test_unknown_template_is_refused_with_the_difference(template: str, difference: str) -> None:
    """A template that writes anything else is refused, and the message shows what it writes."""
    with pytest.raises(UnsupportedModelError, match=difference) as caught:
        recognize_format(lambda messages: render_template(template, messages))
    assert "Nearest" in str(caught.value)


def test_nearest_format_is_the_one_that_differs_least() -> None:
    """A Phi-4-like template that trims is compared with phi4, not with the first format."""
    template = PHI4_KIT.template.replace("message['content']", "message['content'] | trim")
    with pytest.raises(UnsupportedModelError, match=r"where phi4 \(system messages kept\)"):
        recognize_format(lambda messages: render_template(template, messages))


@pytest.mark.parametrize("kit", KITS, ids=lambda kit: kit.name)
@given(data=st.data())
@settings(max_examples=120)
def test_prompt_equals_official_rendering(kit: Kit, data: st.DataObject) -> None:
    """For contents without control tokens, ids equal official template plus tokenizer."""
    messages = data.draw(conversations(kit))
    assert kit.chat.encode_prompt(messages) == official_ids(kit, messages)


@pytest.mark.parametrize("kit", KITS, ids=lambda kit: kit.name)
@given(data=st.data())
@settings(max_examples=8)
def test_long_prompt_equals_official_rendering(kit: Kit, data: st.DataObject) -> None:
    """The same for contents of thousands of characters."""
    added = [token["content"] for token in json.loads(kit.tokenizer_json)["added_tokens"]]
    text = data.draw(LONG.filter(lambda text: not any(token in text for token in added)))
    messages = [Message("user", text)]
    assert kit.chat.encode_prompt(messages) == official_ids(kit, messages)


@pytest.mark.parametrize("kit", KITS, ids=lambda kit: kit.name)
@pytest.mark.parametrize("space", SPACES, ids=ascii)
def test_white_space_around_content_equals_official_rendering(kit: Kit, space: str) -> None:
    """Every kind of white space, before, after and alone, is kept or swallowed as officially."""
    for text in (space, space + "a", "a" + space, space + "a" + space, space * 2, "\n" + space):
        messages = [Message("user", text), Message("assistant", text), Message("user", text)]
        assert kit.chat.encode_prompt(messages) == official_ids(kit, messages), ascii(text)


def test_rust_white_space_is_what_the_tokenizers_library_strips() -> None:
    """The list of swallowed characters equals what the library swallows, character by character."""
    swallowed = [
        char
        for char in map(chr, [*range(0xD800), *range(0xE000, 0x11000)])
        if MINI.official.encode("<|user|>" + char, add_special_tokens=False).ids
        == [MINI.official.token_to_id("<|user|>")]
    ]
    assert sorted(swallowed) == sorted(RUST_WHITE_SPACE)


def test_known_prompt_is_four_ids_around_the_content() -> None:
    """The newline after a role token is swallowed, as FACTS of Phi-3-mini say."""
    ids = MINI.chat.encode_prompt([Message("user", "hello")])
    names = ["<|user|>", "<|end|>", "<|assistant|>"]
    user, end, assistant = (MINI.official.token_to_id(name) for name in names)
    assert ids == [user, *MINI.chat.encode_text("hello"), end, assistant]
    assert len(MINI_EARLY.chat.encode_prompt([Message("user", "hello")])) > len(ids)


def test_dropped_system_message_is_refused() -> None:
    """Where the official template drops system messages, phi3ov says so instead of dropping."""
    with pytest.raises(PromptError, match="drops system messages"):
        MEDIUM.chat.encode_prompt([Message("system", "Be brief."), Message("user", "a")])


@pytest.mark.parametrize("kit", [MEDIUM, PHI3_5], ids=lambda kit: kit.name)
def test_empty_system_message_costs_nothing_where_the_template_skips_it(kit: Kit) -> None:
    """An empty system message that the template leaves out gives no ids and no error."""
    with_system = [Message("system", ""), Message("user", "a")]
    assert kit.chat.encode_prompt(with_system) == official_ids(kit, with_system)
    assert kit.chat.encode_prompt(with_system) == kit.chat.encode_prompt(with_system[1:])


@pytest.mark.parametrize(
    ("roles", "message"),
    [
        ([], "empty"),
        (["system"], "must be the user's"),
        (["user", "assistant"], "must be the user's"),
        (["assistant"], r"messages\[0\].role is 'assistant' where 'user'"),
        (["system", "assistant"], r"messages\[1\].role is 'assistant' where 'user'"),
        (["user", "user"], r"messages\[1\].role is 'user' where 'assistant'"),
        (["user", "system"], r"messages\[1\].role is 'system' where 'assistant'"),
        (["system", "system", "user"], r"messages\[1\].role is 'system'"),
    ],
)
def test_roles_out_of_order_are_refused(roles: list[Role], message: str) -> None:
    """A conversation that no template was trained on is refused, with the position."""
    with pytest.raises(PromptError, match=message):
        MINI.chat.encode_prompt([Message(role, "a") for role in roles])


@pytest.mark.parametrize(
    ("role", "content", "message"),
    [
        ("function", "a", "role='function' is not one of system, user, assistant, tool"),
        ("user", 5, "content=5 of the user message is not a string"),
        ("user", "ab\ud800", "lone surrogate at index 2"),
    ],
)
def test_message_refuses_what_is_no_message(role: Role, content: str, message: str) -> None:
    """A wrong role, a content that is no string and a lone surrogate are named."""
    with pytest.raises(PromptError, match=message):
        Message(role, content)


def test_raw_prompt_honours_control_tokens() -> None:
    """`encode_raw` equals the unmodified tokenizer: control tokens in the string count."""
    prompt = "<|user|>\nHello<|end|>\n<|assistant|>\n"
    assert MINI.chat.encode_raw(prompt) == MINI.chat.encode_prompt([Message("user", "Hello")])


def test_tokenizer_without_the_formats_tokens_is_refused() -> None:
    """A tokenizer without the format's control tokens names the missing ones."""
    with pytest.raises(UnsupportedModelError, match=r"<\|im_end\|>, <\|im_sep\|>, <\|im_start\|>"):
        ChatTokenizer(llama_like(), PHI4_KIT.chat_format)


def test_tokenizer_whose_messages_depend_on_their_neighbours_is_refused() -> None:
    """With lstrip a role token would swallow the line break that ends the message before it."""
    definition = json.loads(llama_like())
    for token in definition["added_tokens"]:
        token["lstrip"] = token["content"] == "<|user|>"
    with pytest.raises(UnsupportedModelError, match="lstrip=true"):
        ChatTokenizer(json.dumps(definition), MINI.chat_format)


@pytest.mark.parametrize("kit", [PHI4_KIT, PHI4_MINI_KIT], ids=lambda kit: kit.name)
@given(texts=st.lists(CONTENT, min_size=3, max_size=3))
@settings(max_examples=60)
def test_tokens_that_strip_on_both_sides_equal_official_rendering(
    kit: Kit, texts: list[str]
) -> None:
    """Phi-4's own added tokens all have lstrip and rstrip: white space around contents goes."""
    definition = json.loads(kit.tokenizer_json)
    if any(token["content"] in text for token in definition["added_tokens"] for text in texts):
        return
    for token in definition["added_tokens"]:
        token["lstrip"] = token["rstrip"] = True
    chat = ChatTokenizer(json.dumps(definition), kit.chat_format)
    roles: list[Role] = ["user", "assistant", "user"]
    messages = [Message(role, text) for role, text in zip(roles, texts, strict=True)]
    rendered = render_template(
        kit.template, [{"role": each.role, "content": each.content} for each in messages]
    )
    official = make_tokenizer(definition)
    assert chat.encode_prompt(messages) == official.encode(rendered, add_special_tokens=False).ids


def rewritten(scheme: str, **model: Any) -> str:
    """Return `llama_like` as transformers 5 saves it after reading it as a Llama tokenizer."""
    definition = json.loads(llama_like())
    definition["normalizer"] = None
    definition["pre_tokenizer"] = {
        "type": "Metaspace",
        "replacement": "▁",
        "prepend_scheme": scheme,
        "split": False,
    }
    definition["model"] |= model
    return json.dumps(definition)


def test_tokenizer_that_prefixes_the_first_segment_only_is_refused() -> None:
    """A Metaspace that marks only the first segment cannot be encoded message by message."""
    with pytest.raises(UnsupportedModelError, match="after a control token"):
        ChatTokenizer(rewritten("first", byte_fallback=False), MINI.chat_format)


@pytest.mark.trap(
    "A Phi-3 tokenizer that transformers has rewritten (Metaspace instead of the released "
    "normalizer) gives the ids that the model was released with.",
    about="Tokenizers",
)
@pytest.mark.parametrize("scheme", ["first", "always"])
def test_a_rewritten_tokenizer_gives_the_released_ids(scheme: str) -> None:
    """Also for text that begins with spaces, which the rewritten one marks otherwise."""
    found = ChatTokenizer(rewritten(scheme), MINI.chat_format)
    texts = ["Hello", " Hello", "  a", "a  b", "\n", "", "▁", "x\n\ny", "é 🤖", "<|end|>"]
    for text in texts:
        assert found.encode_text(text) == MINI.chat.encode_text(text)
        if text.strip():
            messages = [Message("user", text)]
            assert found.encode_prompt(messages) == MINI.chat.encode_prompt(messages)
        assert found.encode_raw(f"<|user|>\n{text}<|end|>\n") == MINI.chat.encode_raw(
            f"<|user|>\n{text}<|end|>\n"
        )


@pytest.mark.trap(
    "A tokenizer with a token beyond the rows of the embedding is refused, at export and when a "
    "model is loaded, with the token, its id and the number of rows; a padded matrix is fine.",
    about="Tokenizers",
)
def test_a_token_beyond_the_rows_is_refused() -> None:
    """The model has nothing for it, and would answer nonsense or fail."""
    last, text = MINI.chat.last_token()
    MINI.chat.require_rows(last + 1)
    MINI.chat.require_rows(last + 64)
    message = f"token {text!r} has the id {last}, but the model knows vocab_size={last} tokens"
    with pytest.raises(UnsupportedModelError, match=re.escape(message)):
        MINI.chat.require_rows(last)


def test_vocabulary_that_spells_a_control_token_is_refused() -> None:
    """When ordinary merges spell a control id, the text is refused rather than let through."""
    definition = json.loads(PHI4_MINI_KIT.tokenizer_json)
    vocab = definition["model"]["vocab"]
    end = "<|end|>"
    for length in range(2, len(end) + 1):
        vocab.setdefault(end[:length], len(vocab))
    definition["model"]["merges"] = [[end[:length], end[length]] for length in range(1, len(end))]
    others = [token for token in definition["added_tokens"] if token["content"] != end]
    for index, token in enumerate(others):
        token["id"] = len(vocab) + index
    definition["added_tokens"] = [{**others[0], "id": vocab[end], "content": end}, *others]
    definition["pre_tokenizer"] = {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": True,
        "use_regex": False,
    }
    tokenizer = ChatTokenizer(json.dumps(definition), PHI4_MINI_KIT.chat_format)
    with pytest.raises(PromptError, match=r"encodes to the control token '<\|end\|>'"):
        tokenizer.encode_text(end)


def test_truncation_of_the_tokenizer_file_is_ignored() -> None:
    """A fine-tune's tokenizer.json with truncation or padding neither cuts nor fills a prompt."""
    definition = json.loads(llama_like())
    definition["truncation"] = {
        "direction": "Right",
        "max_length": 4,
        "strategy": "LongestFirst",
        "stride": 0,
    }
    definition["padding"] = {
        "strategy": {"Fixed": 64},
        "direction": "Right",
        "pad_to_multiple_of": None,
        "pad_id": 0,
        "pad_type_id": 0,
        "pad_token": "<unk>",
    }
    tokenizer = ChatTokenizer(json.dumps(definition), MINI.chat_format)
    messages = [Message("user", "a much longer text than four tokens")]
    assert tokenizer.encode_prompt(messages) == MINI.chat.encode_prompt(messages)
    raw = "<|user|>" + messages[0].content
    assert tokenizer.encode_raw(raw) == MINI.chat.encode_raw(raw)


def test_stop_tokens_unite_configs_format_and_eos() -> None:
    """Every way in which a checkpoint says that an answer is over is a stop token."""
    ids = {text: MINI.official.token_to_id(text) for text in ("</s>", "<|endoftext|>", "<|end|>")}
    tokenizer = ChatTokenizer(
        llama_like(), MINI.chat_format, stop_ids=[ids["<|endoftext|>"], 10**6], eos_token="</s>"
    )
    expected = {"<|system|>", "<|user|>", "<|assistant|>", *ids}
    assert set(tokenizer.stop_tokens.values()) == expected
    assert {text: token_id for token_id, text in tokenizer.stop_tokens.items()} == {
        text: MINI.official.token_to_id(text) for text in expected
    }


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, []),
        ({"config.json": {"eos_token_id": 7}}, [7]),
        ({"config.json": {"eos_token_id": None}, "generation_config.json": {}}, []),
        (
            {
                "config.json": {"eos_token_id": 7},
                "generation_config.json": {"eos_token_id": [9, 7]},
            },
            [7, 9],
        ),
    ],
)
def test_stop_ids_come_from_both_configs(
    files: dict[str, dict[str, object]],
    expected: list[int],
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """One id, several ids or none, in either config: all are found, once each."""
    folder = tmp_path_factory.mktemp("configs")
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content), encoding="utf-8")
    assert read_stop_ids(folder) == expected


@pytest.mark.parametrize("eos_token", ["</s>", {"content": "</s>"}, None])
def test_folder_brings_tokenizer_and_stop_tokens(
    eos_token: object, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """`from_folder` reads tokenizer.json, the configs' stop ids and the tokenizer's eos token."""
    folder = tmp_path_factory.mktemp("checkpoint")
    (folder / "tokenizer.json").write_text(llama_like(), encoding="utf-8")
    (folder / "config.json").write_text('{"eos_token_id": 1}', encoding="utf-8")
    if eos_token is not None:
        text = json.dumps({"eos_token": eos_token})
        (folder / "tokenizer_config.json").write_text(text, encoding="utf-8")
    tokenizer = ChatTokenizer.from_folder(folder, MINI.chat_format)
    assert tokenizer.stop_tokens[1] == "<s>"
    assert ("</s>" in tokenizer.stop_tokens.values()) == (eos_token is not None)


def test_byte_tokens_are_the_byte_fallback_pieces() -> None:
    """A byte-fallback vocabulary has 256 byte tokens; a byte-level one has none."""
    assert [MINI.official.id_to_token(one) for one in sorted(MINI.chat.byte_tokens)] == [
        f"<0x{byte:02X}>" for byte in range(256)
    ]
    assert PHI4_KIT.chat.byte_tokens == frozenset()


def test_format_renders_as_the_official_template() -> None:
    """`ChatFormat.render` writes the same string as the template that it stands for."""
    formats: set[ChatFormat] = set()
    messages = [{"role": "system", "content": ""}, {"role": "user", "content": " a\n"}]
    for kit in KITS:
        assert kit.chat_format.render(messages) == render_template(kit.template, messages)
        formats.add(kit.chat_format)
    assert len(formats) == 6


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "tokenizer.json cannot be read: JSONDecodeError"),
        ("5", "tokenizer.json cannot be read: "),
        ('{"added_tokens": 5}', "tokenizer.json cannot be read: "),
        ('{"model": {"type": "BPE"}}', "tokenizer.json does not define a tokenizer: "),
    ],
)
def test_what_is_no_tokenizer_is_refused(content: str, said: str) -> None:
    """Before anything is encoded by it."""
    with pytest.raises(UnsupportedModelError, match=said):
        make_tokenizer(parse_definition(content))
