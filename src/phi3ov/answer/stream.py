"""One answer while it is being generated: `ReplyStream`.

``generate()`` is this stream read to its end; there is no second way to an answer. Several
candidates of one request are ``candidates.py``.
"""

from __future__ import annotations

import threading
from abc import abstractmethod
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic

from ..errors import GenerationError, StateError
from .reply import FinishReason, Meter, Parsed, Reply

if TYPE_CHECKING:
    from asyncio import AbstractEventLoop

    from ..prompt.detokenizer import AnswerText
    from ..structured.shape import AnswerShape
    from .token_stream import TokenStream


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """What one read of a stream brought: text that is certain, and the tokens that came with it.

    Attributes:
        text: Text to show; empty while a character or a stop string is incomplete.
        reasoning: Thoughts of a reasoning model, which come before its answer.
        token_ids: The ids that came, the stop token left out. The text of a token may come with a
            later piece.
        logprobs: Their log-probabilities, where ``logprobs=True`` was asked for; else empty.
        top_logprobs: The likeliest ids in the place of each, with their log-probabilities, where
            ``top_logprobs`` was asked for; else empty.
    """

    text: str
    reasoning: str = ""
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[float, ...] = ()
    top_logprobs: tuple[tuple[tuple[int, float], ...], ...] = ()

    def __bool__(self) -> bool:
        """Whether it holds anything."""
        return bool(self.text or self.reasoning or self.token_ids)


class ReplyStream(Iterator[str], AsyncIterator[str], Generic[Parsed]):
    """An answer while it is being generated: iterate over its text, or ``async for`` over it.

    The pieces never split a character, and joined they equal `Reply.text`. When the
    iteration ends, `reply` is complete. Leaving early (``close()``, the end of a ``with``
    block, or dropping the last reference) cancels the answer.

    Example:
        >>> import phi3ov
        >>> chat = phi3ov.Phi3Chat(model)  # doctest: +SKIP
        >>> for piece in chat.stream("Hello"):  # doctest: +SKIP
        ...     print(piece, end="", flush=True)
    """

    def __init__(self) -> None:
        """Start with nothing read; `Phi3Model` and `Phi3Chat` make streams."""
        self._reply: Reply[Parsed] | None = None
        self._failed = False
        self._keep_partial = False
        self._is_abandoned = False
        self.is_kept: bool = False  # see `on_end`
        self._on_end: list[Callable[[Reply[Parsed] | None], None]] = []
        # One reader at a time: close() may be called while another thread waits for a piece.
        self._reading = threading.RLock()

    # --- what kinds of streams differ in ------------------------------------------------------

    @abstractmethod
    def _advance(self, *, wait: bool) -> Piece | None:
        """Take what comes next, for `read`; None if nothing has come."""

    @property
    @abstractmethod
    def token_streams(self) -> Sequence[TokenStream]:
        """The engine's streams that this one reads; not for users."""

    @property
    @abstractmethod
    def stops_early(self) -> bool:
        """Whether a stop string, which the engine does not know, may end the answer."""

    @property
    @abstractmethod
    def candidates(self) -> Sequence[ReplyStream[Parsed]]:
        """The stream of each candidate, the first one's included; empty for a single answer."""

    # --- state --------------------------------------------------------------------------------

    @property
    @abstractmethod
    def text(self) -> str:
        """The text that has been read so far."""

    @property
    def reply(self) -> Reply[Parsed]:
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

    def __repr__(self) -> str:
        state = "failed" if self._failed else "open"
        if self._reply is not None:
            state = f"ended, finish_reason={self._reply.finish_reason!r}"
        return f"<phi3ov.ReplyStream: {state}>"

    def on_end(self, call: Callable[[Reply[Parsed] | None], None]) -> None:
        """Call ``call`` once when the stream ends: with the reply, or None.

        None stands for an answer that is not to be kept: it failed, was abandoned, cancelled
        without ``keep``, or ran out of time without ``on_timeout="keep"``. The call happens on
        the thread that reads the end.
        """
        self._on_end.append(call)

    # --- reading ------------------------------------------------------------------------------

    def read(self, *, wait: bool = False) -> Piece | None:
        """Read what comes next: the one way in which a stream is read.

        Args:
            wait: Wait for it, up to half a second.

        Returns:
            A piece, possibly an empty one; None if nothing has come, or `done` says that nothing
            will.

        Raises:
            GenerationError: The engine failed.
        """
        with self._reading:
            return None if self.done else self._advance(wait=wait)

    def pieces(self) -> Iterator[Piece]:
        """Read on, and yield each piece with its token ids and log-probabilities."""
        while (piece := self._next_piece()) is not None:
            yield piece

    async def apieces(self) -> AsyncIterator[Piece]:
        """Do what `pieces` does without blocking the event loop."""
        while (piece := await self._await_piece()) is not None:
            yield piece

    def __iter__(self) -> ReplyStream[Parsed]:
        return self

    def __next__(self) -> str:
        while (piece := self._next_piece()) is not None:
            if piece.text:
                return piece.text
        raise StopIteration

    def __aiter__(self) -> ReplyStream[Parsed]:
        return self

    async def __anext__(self) -> str:
        while (piece := await self._await_piece()) is not None:
            if piece.text:
                return piece.text
        raise StopAsyncIteration

    def _next_piece(self) -> Piece | None:
        """Return the next piece that holds something; None at the end."""
        while not self.done:
            try:
                piece = self.read(wait=True)
            except GenerationError:
                raise
            except BaseException:  # Ctrl-C while waiting: the engine must not go on
                self._abandon()
                raise
            if piece:
                return piece
        return None

    async def _await_piece(self) -> Piece | None:
        """Do what `_next_piece` does without blocking the event loop."""
        import asyncio  # costs `import phi3ov` 20 ms

        loop = asyncio.get_running_loop()
        try:
            await asyncio.sleep(0)  # a reader that lags behind must not keep the loop busy
            return await self._piece_on(loop)
        except asyncio.CancelledError:
            self.cancel(keep=self._keep_partial)
            # This reader is gone, so another thread reads the rest: the turn must end.
            loop.run_in_executor(None, self.close)
            raise

    async def _piece_on(self, loop: AbstractEventLoop) -> Piece | None:
        """Return the next piece, None at the end; no thread waits meanwhile."""
        import asyncio

        news = asyncio.Event()

        def wake() -> None:  # on the engine's thread
            with suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(news.set)

        for tokens in self.token_streams:
            tokens.add_listener(wake)
        try:
            while self._reading.acquire(blocking=False):
                try:
                    piece = self._next_ready()
                    if piece is not None:
                        return piece
                    if self.done:
                        return None
                finally:
                    self._reading.release()
                with suppress(TimeoutError):
                    await asyncio.wait_for(news.wait(), self._remaining_seconds())
                news.clear()
        finally:
            for tokens in self.token_streams:
                tokens.remove_listener(wake)
        # Another thread reads: wait behind it.
        return await asyncio.to_thread(self._next_piece)

    def _remaining_seconds(self) -> float | None:
        """Return how soon the time of an engine's stream is over."""
        left = (tokens.remaining_seconds for tokens in self.token_streams)
        return min((seconds for seconds in left if seconds is not None), default=None)

    def _next_ready(self) -> Piece | None:
        """Return the next piece without waiting; None if there is none yet, or at the end."""
        while (piece := self.read()) is not None:
            if piece:
                return piece
        return None

    def poll(self) -> bool:
        """Read what has come, without waiting, and return whether the answer has ended.

        Raises:
            GenerationError: The engine failed.
        """
        while self._next_ready() is not None:
            pass
        return self.done

    def add_listener(self, wake: Callable[[], None]) -> None:
        """Call ``wake``, on another thread, when `poll` may find that the answer has ended.

        Args:
            wake: Must not wait for anything.
        """
        for tokens in self.token_streams:
            tokens.add_listener(wake, only_end=not self.stops_early)

    def drain(self) -> Reply[Parsed]:
        """Read the stream to its end and return the reply: this is all that ``generate()`` does.

        Unless a stop string may end it, nothing is read before the engine has ended: waking up
        for each token would take time from the processor that computes the next.
        """
        if not self.stops_early:
            try:
                for tokens in self.token_streams:
                    tokens.wait_for_end()
            except BaseException:  # Ctrl-C while waiting: the engine must not go on
                self._abandon()
                raise
        while self._next_piece() is not None:
            pass
        return self.reply

    async def adrain(self) -> Reply[Parsed]:
        """Do what `drain` does without blocking the event loop."""
        while await self._await_piece() is not None:
            pass
        return self.reply

    # --- leaving ------------------------------------------------------------------------------

    def cancel(self, *, keep: bool = False) -> None:
        """Stop the answer within one token, from any thread or signal handler, any number of times.

        The iteration then ends and `reply` holds what there was, with the finish reason
        ``"cancelled"``.

        Args:
            keep: Whether a chat keeps the turn, with the partial answer, in its history.
                By default the history stays as it was before the turn.
        """
        if not self.done:
            self._keep_partial = keep
            for tokens in self.token_streams:
                tokens.cancel()

    def close(self) -> None:
        """Cancel the answer if it has not ended, and wait until the engine let go of it.

        An answer that the engine has not begun, or whose time is over, is not waited for.
        """
        self.cancel(keep=self._keep_partial)
        with suppress(GenerationError):
            while not self.done:
                self.read(wait=True)

    def _abandon(self) -> None:
        """Close the stream, and keep nothing of it even if it had ended before."""
        self._is_abandoned = True
        self.close()

    async def aclose(self) -> None:
        """Do what `close` does without blocking the event loop."""
        self.cancel(keep=self._keep_partial)
        with suppress(GenerationError):
            while await self._await_piece() is not None:
                pass  # not adrain(): a stream that failed has no reply

    def __enter__(self) -> ReplyStream[Parsed]:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    async def __aenter__(self) -> ReplyStream[Parsed]:
        return self

    async def __aexit__(self, *_exc: object) -> None:
        await self.aclose()

    def __del__(self) -> None:
        if getattr(self, "_reading", None) is not None and not self.done:
            for tokens in self.token_streams:
                tokens.cancel()
            self._fail()

    def _finish(self, reply: Reply[Parsed], *, keep: bool) -> None:
        self._reply = reply
        self.is_kept = keep = keep and not self._is_abandoned
        self._tell_end(reply if keep else None)

    def _fail(self) -> None:
        self._failed = True
        self._tell_end(None)

    def _tell_end(self, kept: Reply[Parsed] | None) -> None:
        calls, self._on_end = self._on_end, []
        for call in calls:
            call(kept)


class AnswerStream(ReplyStream[Any]):
    """The stream of a single answer."""

    def __init__(
        self,
        tokens: TokenStream,
        answer: AnswerText,
        *,
        shape: AnswerShape | None = None,
        dropped_turns: int = 0,
        keep_at_timeout: bool = False,
    ) -> None:
        """Read ``tokens`` through ``answer``.

        Args:
            tokens: The engine's side: chunks of token ids.
            answer: Turns ids into text and knows the stop tokens and strings.
            shape: Parses the finished answer; None where it has no shape.
            dropped_turns: How many turns were left out of the prompt, for the reply.
            keep_at_timeout: Whether an answer whose time was over shall be kept.
        """
        self._tokens = tokens
        self._answer = answer
        self._shape = shape
        self._dropped_turns = dropped_turns
        self._keep_at_timeout = keep_at_timeout
        self._meter = Meter(tokens.asked_at, tokens.put_at)
        super().__init__()

    @property
    def token_streams(self) -> Sequence[TokenStream]:
        """The engine's one stream."""
        return (self._tokens,)

    @property
    def stops_early(self) -> bool:
        """Whether a stop string, which the engine does not know, may end the answer."""
        return self._answer.stops_early

    @property
    def candidates(self) -> Sequence[ReplyStream[Any]]:
        """Empty: this is a single answer."""
        return ()

    @property
    def text(self) -> str:
        """The text that has been read so far."""
        return self._answer.text

    def _advance(self, *, wait: bool) -> Piece | None:
        try:
            chunk = self._tokens.read(0.5 if wait else 0.0)
            if chunk == []:
                return None
            return self._end() if chunk is None else self._take(chunk)
        except GenerationError as error:
            error.partial_text = self.text
            self._fail()
            raise

    def _take(self, chunk: list[int]) -> Piece:
        """Turn one chunk of ids into text, ending the answer where it says so."""
        known = len(self._answer.token_ids)
        texts, reasoning = [], ""
        self._meter.passes += 1  # engines put what one pass over the weights gave at once
        for token_id in chunk:
            self._meter.completion_tokens += 1
            texts.append(self._answer.add(token_id))
            if self._answer.stopped_by is not None:
                self._tokens.cancel()  # harmless where the engine stopped by itself
                end = self._end()
                texts.append(end.text)
                reasoning += end.reasoning
                break
        token_ids = tuple(self._answer.token_ids[known:])
        new = slice(known, known + len(token_ids))
        return Piece(
            text="".join(texts),
            reasoning=reasoning + self._answer.take_reasoning(),
            token_ids=token_ids,
            logprobs=tuple(self._tokens.logprobs[new]),
            top_logprobs=tuple(self._tokens.top_logprobs[new]),
        )

    def _end(self) -> Piece:
        """Complete the reply and return the text that was still held back."""
        rest = self._answer.finish()
        reason = self._finish_reason()
        request, answer = self._tokens.request, self._answer
        if reason is None:
            raise GenerationError(
                f"The engine ended after {self._meter.completion_tokens} tokens without a stop "
                f"token and before max_new_tokens={request.max_new_tokens}."
            )
        shown = slice(len(answer.token_ids))  # not the stop token
        logprobs = tuple(self._tokens.logprobs[shown])
        top_logprobs = tuple(self._tokens.top_logprobs[shown])
        reply = Reply(
            text=answer.text,
            token_ids=tuple(answer.token_ids),
            prompt_ids=request.prompt_ids,
            finish_reason=reason,
            stopped_by=answer.stopped_by,
            usage=self._meter.usage(
                prompt_tokens=len(request.prompt_ids), cached_tokens=self._tokens.cached_tokens
            ),
            timings=self._meter.timings(),
            max_new_tokens=request.max_new_tokens,
            dropped_turns=self._dropped_turns,
            seed=request.sampling.seed,
            tool_calls=answer.tool_calls,
            reasoning=answer.reasoning,
            logprobs=logprobs if request.logprobs else None,
            top_logprobs=top_logprobs if request.top_logprobs else None,
            parsed=self._parse(answer.text) if reason == "stop" else None,
        )
        keep = {"cancelled": self._keep_partial, "timeout": self._keep_at_timeout}
        self._finish(reply, keep=keep.get(reason, True))
        return Piece(text=rest, reasoning=self._answer.take_reasoning())

    def _parse(self, text: str) -> Any:
        if self._shape is None:
            return None
        try:
            return self._shape.parse(text)
        except Exception as error:
            raise GenerationError(
                f"The finished answer does not fit json_schema: {error}"
            ) from error

    def _finish_reason(self) -> FinishReason | None:
        if self._answer.stopped_by is not None:
            return "stop"
        if self._meter.completion_tokens >= self._tokens.request.max_new_tokens:
            return "length"
        if self._tokens.timed_out:
            return "timeout"
        if self._tokens.cancelled:  # by a caller, or because the model was closed
            return "cancelled"
        return None
