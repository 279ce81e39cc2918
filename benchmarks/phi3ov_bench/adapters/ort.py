"""onnxruntime-genai: its own generator loop, which continues a chat where it stopped."""

from __future__ import annotations

import json
from typing import Any

from .protocol import MOST_AT_ONCE, Adapter, Clock, Timed, groups, serve

_CONTEXT_TOKENS = 4096


class OnnxRuntime(Adapter):
    """``model`` is a folder made by its model builder."""

    def import_package(self) -> None:
        """Import onnxruntime-genai."""
        import numpy
        import onnxruntime_genai

        self.numpy, self.genai = numpy, onnxruntime_genai

    def load(self) -> None:
        """Load with nothing set but the number of threads."""
        config = self.genai.Config(self.model)
        options = {"intra_op_num_threads": self.threads}
        config.overlay(json.dumps({"model": {"decoder": {"session_options": options}}}))
        self.loaded = self.genai.Model(config)
        self.chat: Any = None

    def answer(self, prompt_ids: list[int], new_tokens: int) -> Timed:
        """Generate with a generator of its own."""
        clock = Clock()
        generator = self._generator(len(prompt_ids) + new_tokens)
        return self._continue(generator, prompt_ids, new_tokens, clock, len(prompt_ids))

    def new_chat(self) -> None:
        """Forget the chat's generator."""
        self.chat = None
        self.closing: list[int] = []

    def turn(self, message: dict[str, Any], new_tokens: int) -> Timed:
        """Append the message to the chat's generator."""
        clock = Clock()
        if self.chat is None:
            self.chat = self._generator(_CONTEXT_TOKENS)
        ids = self.closing + message["ids"]
        self.closing = message["closing"]
        return self._continue(self.chat, ids, new_tokens, clock, self.chat.token_count())

    def together(self, prompts: list[dict[str, Any]], new_tokens: int) -> int:
        """Generate static batches."""
        made = 0
        for group in groups(prompts, MOST_AT_ONCE):
            ids = self.numpy.array([prompt["ids"] for prompt in group], dtype=self.numpy.int32)
            generator = self._generator(ids.shape[1] + new_tokens, batch=len(group))
            generator.append_tokens(ids)
            for _ in range(new_tokens):
                generator.generate_next_token()
            made += new_tokens * len(group)
        return made

    def _generator(self, length: int, *, batch: int = 1) -> Any:
        parameters = self.genai.GeneratorParams(self.loaded)
        parameters.set_search_options(
            max_length=length, min_length=length, batch_size=batch, do_sample=False
        )
        return self.genai.Generator(self.loaded, parameters)

    def _continue(
        self, generator: Any, ids: list[int], new_tokens: int, clock: Clock, before: int
    ) -> Timed:
        generator.append_tokens(self.numpy.array([ids], dtype=self.numpy.int32))
        for _ in range(new_tokens):
            generator.generate_next_token()
            clock.note([int(generator.get_next_tokens()[0])])
        return clock.stop(before)


if __name__ == "__main__":
    serve(OnnxRuntime())
