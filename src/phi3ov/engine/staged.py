"""Generates one answer in several requests, on any engine: `submit_staged`.

Each stage of the answer (``answer/stages.py``) is a request. When a stage ends, the prompt and the
ids so far are submitted again under the rules of the next stage. The prefix cache holds them, so
little is computed twice. The reader sees a single stream. A trigger of openvino-genai's structural
tags could begin a grammar within one request, but triggers are texts: the token that opens a tool
call has no text, and no trigger can force a token or limit the number of tokens before it.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from ..answer.token_stream import TokenRequest, TokenStream
from ..errors import OptionError, StateError

if TYPE_CHECKING:
    from ..answer.stages import Stage
    from .protocol import Engine


def submit_staged(
    engine: Engine,
    request: TokenRequest,
    stages: Sequence[Stage],
    *,
    timeout_seconds: float | None = None,
    wait: bool = False,
) -> TokenStream:
    """Submit an answer that is generated stage by stage.

    Every stage after the first is queued even if the queue is full. Its sampling starts with the
    request's seed again, and its repetition penalties treat the earlier stages as prompt.

    Args:
        engine: The engine.
        request: The request for the whole answer. With several stages, each has its own grammar.
        stages: The stages in order, at least one; the last one never ends by itself.
        timeout_seconds: As for `Engine.submit`, for all stages together.
        wait: As for `Engine.submit`, for the first stage.

    Raises:
        OptionError, QueueFullError, StateError: As for `Engine.submit`.
    """
    # An engine without grammars must refuse the whole request by name, before it begins.
    is_refused = request.grammar is not None and not engine.takes_grammars
    if len(stages) == 1 or is_refused:
        return engine.submit(request, timeout_seconds=timeout_seconds, wait=wait)
    _require_room(engine, request, stages)
    stream = _StagedStream(engine, request, stages, timeout_seconds)
    stream.start(wait=wait)
    return stream


def _require_room(engine: Engine, request: TokenRequest, stages: Sequence[Stage]) -> None:
    """Check that the engine can read the longest prompt that a limited stage can produce."""
    longest, limit = engine.longest_prompt, stages[0].max_tokens
    if longest is not None and limit is not None and len(request.prompt_ids) + limit > longest:
        raise OptionError(
            f"max_reasoning_tokens={limit} after a prompt of {len(request.prompt_ids)} tokens: "
            "a second request generates the answer and reads prompt and thoughts again, but this "
            f"device reads at most {longest} tokens. Set it lower, leave it out, or load the model "
            "with device='CPU'.",
            option="max_reasoning_tokens",
        )


class _StagedStream(TokenStream):
    """Stream that forwards the ids of one request after the other."""

    def __init__(
        self,
        engine: Engine,
        request: TokenRequest,
        stages: Sequence[Stage],
        timeout_seconds: float | None,
    ) -> None:
        super().__init__(request, timeout_seconds=timeout_seconds)
        self._engine = weakref.ref(engine)  # an open stream must not keep the model alive
        self._stages = [*stages]
        self._part: TokenStream | None = None
        self._parts = 0
        self._ids: list[int] = []
        self._passed = 0  # forwarded ids of the current part
        self._busy = threading.Lock()  # held by the forwarding thread; others never wait
        self._again = True

    def start(self, *, wait: bool) -> None:
        """Submit the first stage."""
        self._skip_finished_stages()
        self._submit(wait=wait)

    def cancel(self) -> None:
        """Cancel the running part; see `TokenStream.cancel`."""
        super().cancel()
        part = self._part
        if part is not None:
            part.cancel()

    @property
    def _left(self) -> int:
        return self.request.max_new_tokens - len(self._ids)

    def _skip_finished_stages(self) -> None:
        """Forward the forced ids between a stage that has ended and the next one."""
        while self._stages[0].is_over:
            for token_id in self._stages.pop(0).forced_ids[: self._left]:
                self._pass([token_id])

    def _pass(self, token_ids: list[int]) -> None:
        self._ids += token_ids
        self.put(token_ids)

    def _submit(self, *, wait: bool) -> None:
        if self._left < 1:
            self.end()
            return
        engine, stage = self._engine(), self._stages[0]
        if engine is None:
            raise StateError("The model was closed while the answer was running.")
        request = replace(
            self.request,
            prompt_ids=(*self.request.prompt_ids, *self._ids),
            max_new_tokens=self._left,
            stop_ids=self.request.stop_ids | stage.stop_ids,
            grammar=stage.grammar,
        )
        part = engine.submit(request, timeout_seconds=self.remaining_seconds, wait=wait)
        self._part, self._passed = part, 0
        self._parts += 1
        part.add_listener(self._wake)
        part.add_listener(self._wake, only_end=True)
        if self._cancelled:
            part.cancel()
        self._wake()

    def _wake(self) -> None:
        """Forward new ids; runs on the engine's thread and on threads that submit or cancel."""
        self._again = True
        while self._again and self._busy.acquire(blocking=False):
            try:
                self._again = False
                self._pass_on()
            except BaseException as error:  # noqa: BLE001 - it belongs to the stream's reader
                self.end(error)
            finally:
                self._busy.release()

    def _pass_on(self) -> None:
        part = self._part
        if part is None:
            return
        while chunk := part.read():
            self.begun = part.begun
            self.began_at = part.began_at if self._parts == 1 else self.began_at
            self.cached_tokens = part.cached_tokens if self._parts == 1 else self.cached_tokens
            self._take(part, chunk)
        if chunk is None:
            self._part = None
            self._end_part(part)

    def _take(self, part: TokenStream, chunk: list[int]) -> None:
        """Forward the ids of a chunk that the stage keeps; drop ids after the stage's end."""
        stage, kept = self._stages[0], list[int]()
        for token_id in chunk:
            if stage.is_over:
                break
            new = slice(self._passed, self._passed + 1)
            self.logprobs += part.logprobs[new]
            self.top_logprobs += part.top_logprobs[new]
            self._passed += 1
            kept += stage.add(token_id)
        self._pass(kept)
        if stage.is_over:
            part.cancel()

    def _end_part(self, part: TokenStream) -> None:
        stage = self._stages[0]
        self.expire()
        if stage.is_over and not self.cancelled:
            self._skip_finished_stages()
            self._submit(wait=True)
            return
        if part.cancelled:  # perhaps because the model was closed
            self.cancel()
        self._pass([*stage.finish()])
        self.end()
