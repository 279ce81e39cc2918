"""A chat page with Gradio: streamed answers, a stop button, and the figures of each answer."""

import sys
from collections.abc import Iterator
from typing import Any

import gradio as gr

import phi3ov

model = phi3ov.load_model(sys.argv[1], engine="worker")
SYSTEM = "You are a helpful AI assistant."


def answer(message: str, history: list[dict[str, Any]]) -> Iterator[str]:
    """Stream an answer; Gradio closes the generator when the user presses stop."""
    past = [{"role": turn["role"], "content": text_of(turn)} for turn in history]
    messages = [{"role": "system", "content": SYSTEM}, *past, {"role": "user", "content": message}]
    said = ""
    with model.stream(messages, max_new_tokens=400, on_overflow="drop_oldest") as stream:
        for piece in stream:
            said += piece
            yield said
    usage, rate = stream.reply.usage, stream.reply.timings.tokens_per_second
    gr.Info(f"{usage.cached_tokens} of {usage.prompt_tokens} cached, {rate:.0f} tokens/s")


def text_of(turn: dict[str, Any]) -> str:
    """Return the text of a turn, whose content is a list of parts in later versions."""
    parts = turn["content"]
    return parts if isinstance(parts, str) else "".join(part.get("text", "") for part in parts)


page = gr.ChatInterface(answer, title="phi3ov", analytics_enabled=False, concurrency_limit=8)
if __name__ == "__main__":
    page.launch(server_name="127.0.0.1", share=False)
