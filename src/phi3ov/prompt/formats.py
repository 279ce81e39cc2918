"""Messages, and what each member of the Phi-3 family writes around them.

`FORMATS` lists every chat format that phi3ov knows; `recognize_format` finds the one that a
checkpoint's own template writes, by rendering the same conversations with both. To add a
format, add its shape to `_SHAPES`. Turning messages into token ids is ``prompt.py``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from ..errors import UnsupportedModelError
from .messages import Role

RenderTemplate = Callable[[list[dict[str, str]]], str]
"""A checkpoint's own chat template: messages to prompt string, assistant turn opened."""

CONTROL_TOKEN = re.compile(r"<\|[a-z_/]+\|>|<s>")
"""How control tokens look inside a `ChatFormat`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatFormat:
    """What a model was trained to see around a message.

    Attributes:
        name: How manifests and ``phi3ov info`` call it.
        header: Text before a content; ``{role}`` is the role. Control tokens are written out.
        footer: Text after a content.
        system_messages: What the checkpoint's own template does with a system message:
            ``"kept"``, ``"kept unless empty"``, or ``"dropped"`` without a word.
        prefix: Text before the first message; most formats have none.
        tool_list: Tokens around the tool descriptions at the end of the system message; None
            for a model that was trained without tools.
        tool_call: Tokens around the calls in an answer; None likewise.
        tool_result: Role in the header of a call's result; None likewise.
    """

    name: str
    header: str
    footer: str
    system_messages: Literal["kept", "kept unless empty", "dropped"] = "kept"
    prefix: str = ""
    tool_list: tuple[str, str] | None = None
    tool_call: tuple[str, str] | None = None
    tool_result: str | None = None

    @property
    def roles(self) -> tuple[str, ...]:
        """Every role that the format writes into a header."""
        results = () if self.tool_result is None else (self.tool_result,)
        return ("system", "user", "assistant", *results)

    def header_role(self, role: Role) -> str | None:
        """Return what the header says for ``role``; None if the format has nothing for it."""
        return self.tool_result if role == "tool" else role

    def render(self, messages: Sequence[Mapping[str, str]]) -> str:
        """Write ``messages`` as one string, as the checkpoint's own template does."""
        parts = [self.prefix]
        for message in messages:
            if self.skips(message["role"], message["content"]):
                continue
            parts += [self.header.format(role=message["role"]), message["content"]]
            if "tools" in message and self.tool_list is not None:
                parts += [self.tool_list[0], message["tools"], self.tool_list[1]]
            parts.append(self.footer)
        return "".join(parts) + self.header.format(role="assistant")

    def skips(self, role: str, content: str) -> bool:
        """Whether the checkpoint's own template leaves this message out."""
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
)

FORMATS: tuple[ChatFormat, ...] = tuple(
    replace(shape, system_messages=system_messages)
    for shape in _SHAPES
    for system_messages in ("kept", "kept unless empty", "dropped")
)
"""Every format that phi3ov writes. Sources: the chat templates in the checkpoints'
``tokenizer_config.json`` (Phi-3 and 3.5: phi3; Phi-4-mini: phi4-mini; Phi-4: phi4)."""

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
"""Conversations that tell the formats apart; the checkpoint's own template renders each."""


def recognize_format(render: RenderTemplate) -> ChatFormat:
    """Find the format that a checkpoint's own template writes, by rendering with both.

    Args:
        render: The checkpoint's template.

    Raises:
        UnsupportedModelError: It is none of `FORMATS`; says where the nearest one differs.
    """
    probes = [[{"role": role, "content": text} for role, text in probe] for probe in _PROBES]
    probes.append([{"role": "system", "content": "s", "tools": "[1]"}, *probes[0]])
    rendered = [render(probe) for probe in probes]
    nearest: tuple[int, str] = (-1, "")
    for chat_format in FORMATS:
        pairs = list(zip(probes, rendered, strict=True))
        equal = [chat_format.render(probe) == text for probe, text in pairs]
        if all(equal):
            return chat_format
        probe, text = pairs[equal.index(False)]
        difference = (
            f"for {probe} the template writes {text!r} where {chat_format.name} "
            f"(system messages {chat_format.system_messages}) has {chat_format.render(probe)!r}"
        )
        nearest = max(nearest, (sum(equal), difference), key=lambda item: item[0])
    raise UnsupportedModelError(
        f"chat_template is none of the formats that phi3ov knows. Nearest: {nearest[1]}."
    )
