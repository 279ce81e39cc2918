"""Chat formats: the text that each member of the Phi-3 family expects around a message.

`FORMATS` lists every chat format that phi3ov knows. `recognize_format` finds the format of a
checkpoint's own template by rendering the same conversations with both; constant texts that the
template adds become the format's `Extension`. To add a format, add its shape to `_SHAPES`.
``chat_tokenizer.py`` encodes messages to token ids.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from ..errors import UnsupportedModelError
from .extension import NO_EXTENSION, THINK, Extension
from .messages import Role

RenderTemplate = Callable[[list[dict[str, str]]], str]
"""A checkpoint's own chat template: messages to a prompt that ends in an open assistant turn."""

SystemMessages = Literal["kept", "kept unless empty", "dropped", "replaces messages"]
"""A template's treatment of system messages; see `ChatFormat`."""

CONTROL_TOKEN = re.compile(r"<\|[a-z_/]+\|>|<s>")
"""Pattern of control tokens in the texts of a `ChatFormat`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatFormat:
    """The text around messages that a model was trained with.

    Attributes:
        name: Name in manifests and in ``phi3ov info``.
        header: Text before a content; ``{role}`` is the role. Control tokens are written out.
        footer: Text after a content.
        system_messages: How the checkpoint's own template treats a system message: it is
            ``"kept"``, ``"kept unless empty"``, or ``"dropped"`` without an error; or it
            ``"replaces messages"``: every message, also the user's, is written as
            ``system_text``.
        system_text: Text of the checkpoint's own system message, which every prompt contains. A
            system message that is kept is appended to it after a space.
        prefix: Text before the first message; empty for most formats.
        tool_list: Tokens around the tool descriptions at the end of the system message; None
            for a model that was trained without tools.
        tool_call: Tokens around the calls in an answer; None without tools.
        thoughts: Tags around the reasoning text before an answer; None for other models.
        tool_result: Role in the header of a call's result; None without tools.
        extension: Texts that a fine-tune's template adds; empty in `FORMATS`.
    """

    name: str
    header: str
    footer: str
    system_messages: SystemMessages = "kept"
    system_text: str = ""
    prefix: str = ""
    tool_list: tuple[str, str] | None = None
    tool_call: tuple[str, str] | None = None
    tool_result: str | None = None
    thoughts: tuple[str, str] | None = None
    extension: Extension = NO_EXTENSION

    @property
    def roles(self) -> tuple[str, ...]:
        """Every role that can appear in a header of this format."""
        results = () if self.tool_result is None else (self.tool_result,)
        return ("system", "user", "assistant", *results)

    def header_role(self, role: Role) -> str | None:
        """Return the name of ``role`` in a header; None if the format does not support it."""
        return self.tool_result if role == "tool" else role

    @property
    def own_tokens(self) -> frozenset[str]:
        """Control tokens of the prefix, the headers and the footer."""
        headers = "".join(self.header.format(role=role) for role in self.roles)
        return frozenset(CONTROL_TOKEN.findall(self.prefix + headers + self.footer))

    @property
    def assistant_header(self) -> str:
        """Text before the content of an assistant message, without an extension."""
        return self.header.format(role="assistant")

    @property
    def opening(self) -> str:
        """Text that opens the answer, after the last message."""
        added = self.extension
        return added.question_end + self.assistant_header + added.answer_start

    def extended(self, extension: Extension) -> ChatFormat:
        """Return this format with the texts that a fine-tune's template adds."""
        thoughts = THINK if extension.has_thoughts else self.thoughts
        return replace(self, extension=extension, thoughts=thoughts)

    def render(self, messages: Sequence[Mapping[str, str]]) -> str:
        """Render ``messages`` to one string, as the checkpoint's own template does."""
        return self.render_history(messages) + self.opening

    def render_history(self, messages: Sequence[Mapping[str, str]]) -> str:
        """Render ``messages`` without the text that opens an answer."""
        parts = [self.prefix]
        has_system = messages[0]["role"] == "system"
        own = self.header.format(role="system") + self.system_text + self.footer
        if self.system_messages == "replaces messages" and has_system:
            return "".join([*parts, *([own] * len(messages))])
        if self.system_text and (not has_system or self.skips("system", messages[0]["content"])):
            parts.append(own)
        for message in messages:
            role, content = message["role"], message["content"]
            if self.skips(role, content):
                continue
            content = self.system_content(content) if role == "system" else content
            is_answer = role == "assistant"
            parts.append(self.header.format(role=role))
            parts += [self.extension.history_start if is_answer else "", content]
            if "tools" in message and self.tool_list is not None:
                parts += [self.tool_list[0], message["tools"], self.tool_list[1]]
            parts += [self.footer, self.extension.answer_end if is_answer else ""]
        return "".join(parts)

    def system_content(self, content: str) -> str:
        """Return the text of the rendered system message for a conversation's ``content``."""
        return f"{self.system_text} {content}" if self.system_text else content

    def skips(self, role: str, content: str) -> bool:
        """Whether the checkpoint's own template drops this message."""
        if role != "system":
            return False
        return self.system_messages == "dropped" or (
            self.system_messages == "kept unless empty" and not content
        )


_SHAPES = (
    ChatFormat(name="phi3", header="<|{role}|>\n", footer="<|end|>\n"),
    ChatFormat(
        name="phi3 after <s>", prefix="<s>", header="<|{role}|>\n", footer="<|end|>\n"
    ),  # Phi-3-mini's first revisions, from which many exports on the hub were made
    ChatFormat(
        name="phi4-mini",
        header="<|{role}|>",
        footer="<|end|>",
        tool_list=("<|tool|>", "<|/tool|>"),
        tool_call=("<|tool_call|>", "<|/tool_call|>"),
        tool_result="tool_response",
    ),
    ChatFormat(name="phi4-mini without tools", header="<|{role}|>", footer="<|end|>"),
    ChatFormat(name="phi4", header="<|im_start|>{role}<|im_sep|>", footer="<|im_end|>"),
    ChatFormat(
        name="chatml", header="<|im_start|>{role}\n", footer="<|im_end|>\n"
    ),  # fine-tunes of Phi-3 that bring these two tokens
)

_MINI_REASONING = replace(
    next(shape for shape in _SHAPES if shape.name == "phi4-mini"),
    name="phi4-mini-reasoning",
    system_text="Your name is Phi, an AI math expert developed by Microsoft.",
    thoughts=THINK,
)

_REASONING = replace(
    next(shape for shape in _SHAPES if shape.name == "phi4"),
    name="phi4-reasoning",
    system_text=(
        "You are Phi, a language model trained by Microsoft to help users. Your role as an "
        "assistant involves thoroughly exploring questions through a systematic thinking process "
        "before providing the final precise and accurate solutions. This requires engaging in a "
        "comprehensive cycle of analysis, summarizing, exploration, reassessment, reflection, "
        "backtracing, and iteration to develop well-considered thinking process. Please structure "
        "your response into two main sections: Thought and Solution using the specified format: "
        "<think> {Thought section} </think> {Solution section}. In the Thought section, detail "
        "your reasoning process in steps. Each step should include detailed considerations such as "
        "analysing questions, summarizing relevant findings, brainstorming new ideas, verifying "
        "the accuracy of the current steps, refining any errors, and revisiting previous steps. In "
        "the Solution section, based on various attempts, explorations, and reflections from the "
        "Thought section, systematically present the final solution that you deem correct. The "
        "Solution section should be logical, accurate, and concise and detail necessary steps "
        "needed to reach the conclusion. Now, try to solve the following question through the "
        "above guidelines:"
    ),
    thoughts=THINK,
)

FORMATS: tuple[ChatFormat, ...] = (
    *(
        replace(shape, system_messages=system_messages)
        for shape in _SHAPES
        for system_messages in ("kept", "kept unless empty", "dropped")
    ),
    _MINI_REASONING,
    replace(_REASONING, system_messages="replaces messages"),
    replace(_REASONING, system_messages="dropped"),
)
"""Every format that phi3ov supports. Sources: the chat templates in the checkpoints'
``tokenizer_config.json`` or ``chat_template.jinja`` (Phi-3 and 3.5: phi3; Phi-4-mini: phi4-mini;
Phi-4: phi4; Phi-4-mini-reasoning; Phi-4-reasoning and -plus: phi4-reasoning). ChatML is what many
fine-tunes of Phi-3 were trained with."""

_PROBES: tuple[tuple[tuple[Role, str], ...], ...] = (
    (("user", "a"),),
    (("user", "  a\n b \n"),),
    (("system", "s"), ("user", "a")),
    (("system", ""), ("user", "a")),
    (("user", "a"), ("assistant", " b "), ("user", "c")),
    (
        ("system", "s\n"),
        ("user", ""),
        ("assistant", "b"),
        ("user", "c"),
        ("assistant", ""),
        ("user", "d"),
    ),
)
"""Conversations that distinguish the formats when the checkpoint's own template renders them."""

_DATE = "strftime_now"
"""The function by which a template asks for the date, in transformers and in openvino-genai."""

_MARKS = ("First question?", "First answer.", "Second question?")
"""Contents by which the texts of an extension are found in a rendered conversation."""


def recognize_format(render: RenderTemplate, *, template: str = "") -> ChatFormat:
    """Find the format of a checkpoint's own template by rendering with both.

    A template that adds constant texts to a known format (see `Extension`) is that format with
    the extension.

    Args:
        render: The checkpoint's template.
        template: Its source. A template that adds texts and asks for the date is refused.

    Raises:
        UnsupportedModelError: No format of `FORMATS` matches, also not with an extension; says
            where the nearest one differs.
    """
    probes = [[{"role": role, "content": text} for role, text in probe] for probe in _PROBES]
    probes.append([{"role": "system", "content": "s", "tools": "[1]"}, *probes[0]])
    rendered = [render(probe) for probe in probes]
    nearest: tuple[int, str] = (-1, "")
    extended = [found for each in FORMATS for found in _extend(each, render)]
    for chat_format in (*FORMATS, *extended):
        pairs = list(zip(probes, rendered, strict=True))
        if chat_format.extension != NO_EXTENSION:
            pairs += [(probe, render(probe)) for probe in _more_probes(chat_format.extension)]
        equal = [chat_format.render(probe) == text for probe, text in pairs]
        problem = chat_format.extension.find_problem(chat_format.own_tokens)
        if problem is None and chat_format.extension.texts and _DATE in template:
            problem = f"its texts {chat_format.extension.texts} may hold the date ({_DATE})"
        if all(equal) and problem is None:
            return chat_format
        if all(equal):
            difference = f"{chat_format.name}, but {problem}"
        else:
            probe, text = pairs[equal.index(False)]
            added = chat_format.extension.to_values()
            difference = (
                f"for {probe} the template writes {text!r} where {chat_format.name} "
                f"(system messages {chat_format.system_messages}"
                f"{f', with {added}' if added else ''}) has {chat_format.render(probe)!r}"
            )
        nearest = max(nearest, (sum(equal), difference), key=lambda item: item[0])
    raise UnsupportedModelError(
        f"chat_template is not one of the formats that phi3ov knows. Nearest: {nearest[1]}."
    )


def _extend(chat_format: ChatFormat, render: RenderTemplate) -> list[ChatFormat]:
    """Return the format with the texts that a template may add to it; empty if it adds none."""
    question, answer, more = (
        {"role": role, "content": mark}
        for role, mark in zip(("user", "assistant", "user"), _MARKS, strict=True)
    )
    asked, told = render([question]), render([question, answer, more])
    before = chat_format.render_history([question])
    if not (asked.startswith(before) and told.startswith(before)):
        return []
    header, footer = chat_format.assistant_header, chat_format.footer
    question_end, found, answer_start = asked.removeprefix(before).partition(header)
    after = chat_format.header.format(role="user") + more["content"] + footer
    after += asked.removeprefix(before)
    start, said, end = told.removeprefix(before).removesuffix(after).partition(answer["content"])
    if not (found and said and start.startswith(header) and end.startswith(footer)):
        return []
    extension = Extension(
        answer_start=answer_start,
        history_start=start.removeprefix(header),
        answer_end=end.removeprefix(footer),
        question_end=question_end,
    )
    if extension == NO_EXTENSION:
        return []
    return [
        chat_format.extended(replace(extension, drops_thoughts=drops)) for drops in (False, True)
    ]


def _more_probes(extension: Extension) -> list[list[dict[str, str]]]:
    """Return conversations of many turns that hold the texts of an extension, and thoughts.

    They show a template that searches contents for its own texts, or that treats the last answer
    of the history in another way than the others.
    """
    thoughts = [] if extension.drops_thoughts else [f"{THINK[0]}t{THINK[1]}b", "".join(THINK)]
    held = [text for text in extension.texts.values() if THINK[1] not in text]
    turns = [
        {"role": role, "content": content}
        for content in (*held, *thoughts, " b\n", "b")
        for role in ("user", "assistant")
    ]
    question = {"role": "user", "content": "c"}
    return [[*turns[:count], question] for count in range(2, len(turns) + 1, 2)]
