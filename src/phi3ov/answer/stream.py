"""One answer while it is being made: `ReplyStream`.

``generate()`` is this stream read to its end; there is no second way to an answer.
"""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING

from ..errors import GenerationError, StateError
from .reply import FinishReason, Meter, Reply, ReplyPlan

if TYPE_CHECKING:
    from asyncio import AbstractEventLoop

    from ..prompt.detokenizer import AnswerText
    from .token_stream import TokenStream


class ReplyStream(Iterator[str], AsyncIterator[str]):
    """An answer while it is being made: iterate over its text, or ``async for`` over it.

    The pieces never split a character, and joined they equal `Reply.text`. When the
    iteration ends, `reply` is complete. Leaving early (``close()``, the end of a ``with``
    block, or dropping the last reference) cancels the answer.

    Example:
        >>> import phi3ov
        >>> chat = phi3ov.Phi3Chat(model)  # doctest: +SKIP
        >>> for piece in chat.stream("Hello"):  # doctest: +SKIP
        ...     print(piece, end="", flush=True)
    """

    def __init__(
        self,
        tokens: TokenStream,
        answer: AnswerText,
        plan: ReplyPlan,
        *,
        others: Sequence[ReplyStream] = (),
        keep_at_timeout: bool = False,
        on_end: Callable[[Reply, bool], None] = lambda _reply, _keep: None,
        on_abort: Callable[[], None] = lambda: None,
    ) -> None:
        """Read ``tokens`` through ``answer``; for `Phi3Model` and `Phi3Chat` to call.

        Args:
            tokens: The engine's side: chunks of token ids.
            answer: Turns ids into text and knows the stop tokens and strings.
            plan: What the finished reply reports besides.
            others: More candidates, under way; the reply is complete when all have ended.
            keep_at_timeout: Whether an answer whose time was over shall be kept.
            on_end: Called once with the finished reply and whether it shall be kept.
            on_abort: Called once instead of ``on_end`` when the engine failed.
        """
        self._tokens = tokens
        self._answer = answer
        self._plan = plan
        self._others = others
        self._on_end = on_end
        self._on_abort = on_abort
        self._meter = Meter(tokens.asked_at, tokens.put_at)
        self._keep_partial = False
        self._keep_at_timeout = keep_at_timeout
        self._cancelled = False
        self._own_reply: Reply | None = None  # without the other candidates
        self._reply: Reply | None = None
        self._failed = False
        # One reader at a time: close() may be called while another thread waits for a piece.
        self._reading = threading.RLock()

    @property
    def reply(self) -> Reply:
        """The finished answer.

        Raises:
            StateError: The stream has not ended yet, or it failed.
        """
        if self._reply is None:
            state = "failed" if self._failed else "has not ended yet; read it to its end first"
            raise StateError(f"This stream {state}, so it has no reply.")
        return self._reply

    @property
    def done(self) -> bool:
        """Whether the answer has ended, in whatever way."""
        return self._reply is not None or self._failed

    def __iter__(self) -> ReplyStream:
        return self

    def __next__(self) -> str:
        with self._reading:
            while not self.done:
                try:
                    piece = self._advance(wait=True)
                except GenerationError:
                    raise
                except BaseException:  # Ctrl-C while waiting: the engine must not go on
                    self.close()
                    raise
                if piece:
                    return piece
        raise StopIteration

    def __aiter__(self) -> ReplyStream:
        return self

    async def __anext__(self) -> str:
        import asyncio  # 20 ms that `import phi3ov` need not cost

        loop = asyncio.get_running_loop()
        try:
            await asyncio.sleep(0)  # a reader that lags behind must not keep the loop to itself
            piece = await self._piece_on(loop)
        except asyncio.CancelledError:
            self.cancel(keep=self._keep_partial)
            # Nobody reads on, so read the rest here: the chat's turn must end.
            loop.run_in_executor(None, self.close)
            raise
        if piece is None:
            raise StopAsyncIteration
        return piece

    async def _piece_on(self, loop: AbstractEventLoop) -> str | None:
        """Return the next piece, None at the end; no thread waits meanwhile."""
        import asyncio

        news = asyncio.Event()

        def wake() -> None:  # on the engine's thread
            with suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(news.set)

        for stream in (self, *self._others):
            stream._tokens.add_listener(wake)
        try:
            while self._reading.acquire(blocking=False):
                try:
                    piece = self._next_ready()
                finally:
                    self._reading.release()
                if piece != "":
                    return piece
                with suppress(TimeoutError):
                    await asyncio.wait_for(news.wait(), self._remaining_seconds())
                news.clear()
        finally:
            for stream in (self, *self._others):
                stream._tokens.remove_listener(wake)
        return await asyncio.to_thread(next, self, None)  # another thread reads: wait behind it

    def _remaining_seconds(self) -> float | None:
        """Return how soon the time of a candidate that is under way is over."""
        left = (one._tokens.remaining_seconds for one in (self, *self._others) if not one.done)
        return min((seconds for seconds in left if seconds is not None), default=None)

    def _next_ready(self) -> str | None:
        """Return the next piece without waiting: "" if there is none yet, None at the end."""
        while not self.done:
            piece = self._advance(wait=False)
            if piece is None:
                return ""
            if piece:
                return piece
        return None

    def _add_listener(self, wake: Callable[[], None]) -> None:
        """Call ``wake``, on another thread, whenever `_read_ready` may find that it has ended."""
        for stream in (self, *self._others):
            stream._tokens.add_listener(wake, only_end=not stream._answer.stops_early)

    def _read_ready(self) -> bool:
        """Read what has come, without waiting, and return whether the answer has ended.

        Raises:
            GenerationError: The engine failed.
        """
        with self._reading:
            while self._next_ready():
                pass
        return self.done

    def cancel(self, *, keep: bool = False) -> None:
        """Stop the answer within one token; may be called from any thread, any number of times.

        The iteration then ends and `reply` holds what there was, with the finish reason
        ``"cancelled"``.

        Args:
            keep: Whether a chat keeps the turn, with the partial answer, in its history.
                By default the history stays as it was before the turn.
        """
        if not self.done:
            self._keep_partial = keep
            self._cancelled = True
            self._tokens.cancel()
            for other in self._others:
                other.cancel()

    def close(self) -> None:
        """Cancel the answer if it has not ended, and wait until the engine let go of it.

        One that the engine has not begun, or whose time is over, is not waited for.
        """
        self.cancel(keep=self._keep_partial)
        with self._reading:
            while not self.done:
                try:
                    self._advance(wait=True)
                except GenerationError:
                    return

    async def aclose(self) -> None:
        """Do what `close` does without blocking the event loop."""
        self.cancel(keep=self._keep_partial)
        with suppress(GenerationError):
            async for _ in self:
                pass

    def drain(self) -> Reply:
        """Read the stream to its end and return the reply: this is all that ``generate()`` does.

        Unless a stop string may end it, nothing is read before the engine has ended: waking up
        for each token would take time from the processor that computes the next.
        """
        if not self._answer.stops_early:
            try:
                self._tokens.wait_for_end()
            except BaseException:  # Ctrl-C while waiting: the engine must not go on
                self.close()
                raise
        for _ in self:
            pass
        return self.reply

    def __enter__(self) -> ReplyStream:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    async def __aenter__(self) -> ReplyStream:
        return self

    async def __aexit__(self, *_exc: object) -> None:
        await self.aclose()

    def __del__(self) -> None:
        if getattr(self, "_tokens", None) is not None and not self.done:
            self._tokens.cancel()
            self._failed = True
            self._on_abort()

    def _advance(self, *, wait: bool) -> str | None:
        """Take what comes next; return the text that it brings, None if nothing is there yet."""
        try:
            if self._own_reply is not None:
                return self._complete(self._own_reply, wait=wait)
            chunk = next(self._tokens, None) if wait else self._tokens.poll()
            piece = None if chunk == [] else self._take(chunk)
        except GenerationError as error:
            if not self._failed:
                self._fail(error)
            raise
        return piece

    def _complete(self, own: Reply, *, wait: bool) -> str | None:
        """Hand the reply over once every other candidate has ended."""
        for other in self._others:
            if wait:
                other.drain()
            elif not other._read_ready():
                return None
        replies = [other.reply for other in self._others]
        self._reply = replace(own, candidates=(own, *replies)) if replies else own
        keep = {"cancelled": self._keep_partial, "timeout": self._keep_at_timeout}
        self._on_end(self._reply, keep.get(own.finish_reason, True))
        return ""

    def _take(self, chunk: list[int] | None) -> str:
        """Turn one chunk of ids into text, ending the answer where it says so; None ends it."""
        if chunk is None:
            return self._end()
        pieces = []
        self._meter.passes += 1  # engines put what one pass over the weights gave at once
        for token_id in chunk:
            self._meter.completion_tokens += 1
            pieces.append(self._answer.add(token_id))
            if self._answer.stopped_by is not None:
                self._tokens.cancel()  # harmless where the engine stopped by itself
                pieces.append(self._end())
                break
        return "".join(pieces)

    def _end(self) -> str:
        """Complete the reply and return the text that was still held back."""
        rest = self._answer.finish()
        reason = self._finish_reason()
        if reason is None:
            raise GenerationError(
                f"The engine ended after {self._meter.completion_tokens} tokens without a stop "
                f"token and before max_new_tokens={self._plan.max_new_tokens}."
            )
        logprobs = self._tokens.logprobs[: len(self._answer.token_ids)]
        self._own_reply = Reply(
            text=self._answer.text,
            token_ids=tuple(self._answer.token_ids),
            finish_reason=reason,
            stopped_by=self._answer.stopped_by,
            usage=self._meter.usage(
                prompt_tokens=self._plan.prompt_tokens, cached_tokens=self._tokens.cached_tokens
            ),
            timings=self._meter.timings(),
            max_new_tokens=self._plan.max_new_tokens,
            dropped_turns=self._plan.dropped_turns,
            seed=self._plan.seed,
            tool_calls=self._answer.tool_calls,
            logprobs=tuple(logprobs) if self._plan.logprobs else None,
            parsed=self._plan.parse(self._answer.text) if reason == "stop" else None,
        )
        if not self._others:
            self._complete(self._own_reply, wait=False)
        return rest

    def _finish_reason(self) -> FinishReason | None:
        if self._answer.stopped_by is not None:
            return "stop"
        if self._meter.completion_tokens >= self._plan.max_new_tokens:
            return "length"
        if self._tokens.timed_out and not self._cancelled:
            return "timeout"
        if self._cancelled or self._tokens.cancelled:  # the latter when the model is closed
            return "cancelled"
        return None

    def _fail(self, error: GenerationError) -> None:
        self._failed = True
        for other in self._others:
            other.cancel()
        error.partial_text = self._answer.text
        self._on_abort()
