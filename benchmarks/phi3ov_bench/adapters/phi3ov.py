"""phi3ov through its public API: text in, text out."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, cast

from .protocol import MOST_AT_ONCE, Adapter, Timed, serve

if TYPE_CHECKING:
    from collections.abc import Callable

    from phi3ov import Reply
    from phi3ov.engine.protocol import EngineName


class Phi3OV(Adapter):
    """``variant`` is the engine, and a group size if not its own; prompts are given as text."""

    def import_package(self) -> None:
        """Import phi3ov and the names that a chat needs."""
        import phi3ov
        from phi3ov import Message, Phi3Chat, RuntimeConfig, load_model

        self.names = (phi3ov, load_model, RuntimeConfig, Phi3Chat, Message)

    def load(self) -> None:
        """Load with nothing set but the number of threads, and what ``variant`` says."""
        _, load_model, runtime_config, _, _ = self.names
        engine, _, group = self.variant.partition(" ")
        self.loaded = load_model(
            self.model,
            device="CPU",
            engine=cast("EngineName", engine),
            config=runtime_config(
                threads=self.threads,
                dynamic_quantization_group_size=int(group) if group else None,
            ),
        )
        self.loaded.tokenizer.stop_tokens = {}  # every answer of the benchmark has its full length
        start = self.loaded.stream_ids

        def noted(*arguments: Any, **options: Any) -> Any:
            """Note when phi3ov's own clock starts: what it does before counts as well."""
            self.started = time.perf_counter()
            return start(*arguments, **options)

        self.loaded.stream_ids = noted  # type: ignore[method-assign]

    def generate(self, prompt: dict[str, Any], new_tokens: int) -> Timed:
        """Answer a raw prompt."""
        return self._time(lambda: self.loaded.complete(prompt["text"], max_new_tokens=new_tokens))

    def new_chat(self) -> None:
        """Begin a conversation."""
        self.chat = self.names[3](self.loaded)

    def turn(self, message: dict[str, Any], new_tokens: int) -> Timed:
        """Take a turn of the conversation."""
        return self._time(lambda: self.chat.generate(message["text"], max_new_tokens=new_tokens))

    def _time(self, answer: Callable[[], Reply]) -> Timed:
        """Time a call that returns a reply, from the call on, as `Clock` does."""
        called = time.perf_counter()
        reply = answer()
        before = self.started - called
        return Timed(
            first_seconds=before + reply.timings.first_token_seconds,
            total_seconds=before + reply.timings.total_seconds,
            token_ids=list(reply.token_ids),
            tokens=reply.usage.completion_tokens,
            prompt_tokens=reply.usage.prompt_tokens,
        )

    def together(self, prompts: list[dict[str, Any]], new_tokens: int) -> int:
        """Take the first turn of as many chats, all at once; above 16, as one batch."""
        _, _, _, chat_class, message_class = self.names
        if len(prompts) > MOST_AT_ONCE:
            conversations = [[message_class("user", prompt["text"])] for prompt in prompts]
            results = self.loaded.generate_batch(conversations, max_new_tokens=new_tokens)
            return sum(result.reply.usage.completion_tokens for result in results)

        def ask(prompt: dict[str, Any]) -> int:
            reply = chat_class(self.loaded).generate(prompt["text"], max_new_tokens=new_tokens)
            return reply.usage.completion_tokens

        with ThreadPoolExecutor(len(prompts)) as users:
            return sum(users.map(ask, prompts))

    def encode(self, texts: list[str], as_messages: bool) -> dict[str, Any]:  # noqa: FBT001
        """Return the ids that the other peers are given, and those that close an answer."""
        tokenizer = self.loaded.tokenizer
        message_class = self.names[4]
        if as_messages:
            ids = [
                tokenizer.encode_message(message_class("user", text)) + tokenizer.opening
                for text in texts
            ]
        else:
            ids = [tokenizer.encode_raw(text) for text in texts]
        return {"ids": ids, "closing": tokenizer.closing}


if __name__ == "__main__":
    serve(Phi3OV())
