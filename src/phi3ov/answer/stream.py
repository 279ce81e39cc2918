"""One answer while it is being generated: `ReplyStream`.

``generate()`` reads this stream to its end, so there is only one code path. ``candidates.py``
streams several candidates of one request.
"""

from __future__ import annotations

import threading
from abc import abstractmethod
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain
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
    """Result of one read of a stream: text that can be shown, and the tokens that arrived.

    Attributes:
        text: Text to show; empty while a character or a stop string is incomplete.
        reasoning: Reasoning text of a reasoning model, which precedes its answer.
        token_ids: The ids that arrived, without the stop token. The text of a token may arrive
            with a later piece.
        logprobs: Log-probability of each id with ``logprobs=True``; otherwise empty.
        top_logprobs: Most likely ids at each position with their log-probabilities, with
            ``top_logprobs``; otherwise empty.
    """

    text: str
    reasoning: str = ""
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[float, ...] = ()
    top_logprobs: tuple[tuple[tuple[int, float], ...], ...] = ()

    def __bool__(self) -> bool:
        """Whether the piece holds text or tokens."""
        return bool(self.text or self.reasoning or self.token_ids)

    @classmethod
    def join(cls, pieces: Sequence[Piece]) -> Piece:
        """Return consecutive pieces as one.

        Example:
            >>> Piece.join([Piece(text="a", token_ids=(1,)), Piece(text="b", token_ids=(2,))])
            Piece(text='ab', reasoning='', token_ids=(1, 2), logprobs=(), top_logprobs=())
        """
        if len(pieces) == 1:
            return pieces[0]
        return cls(
            text="".join(piece.text for piece in pieces),
            reasoning="".join(piece.reasoning for piece in pieces),
            token_ids=tuple(chain.from_iterable(piece.token_ids for piece in pieces)),
            logprobs=tuple(chain.from_iterable(piece.logprobs for piece in pieces)),
            top_logprobs=tuple(chain.from_iterable(piece.top_logprobs for piece in pieces)),
        )


class ReplyStream(Iterator[str], AsyncIterator[str], Generic[Parsed]):
    """An answer while it is being generated: iterate over its text, or ``async for`` over it.

    The pieces never split a character, and joined they equal `Reply.text`. When the
    iteration ends, `reply` is complete. Leaving early cancels the answer: ``close()``, the end of
    a ``with`` block, or dropping the last reference.

    Example:
        >>> import phi3ov
        >>> chat = phi3ov.Phi3Chat(model)  # doctest: +SKIP
        >>> for piece in chat.stream("Hello"):  # doctest: +SKIP
        ...     print(piece, end="", flush=True)
    """

    def __init__(self) -> None:
        """Start an unread stream; `Phi3Model` and `Phi3Chat` create streams."""
        self._reply: Reply[Parsed] | None = None
        self._failed = False
        self._keep_partial = False
        self._is_abandoned = False
        self.is_kept: bool = False  # see `on_end`
        self._on_end: list[Callable[[Reply[Parsed] | None], None]] = []
        # One reader at a time: close() may be called while another thread waits for a piece.
        self._reading = threading.RLock()

    # --- implemented by subclasses ------------------------------------------------------------

    @abstractmethod
    def _advance(self, *, wait: bool) -> Piece | None:
        """Return the next piece, for `read`; None if nothing has arrived."""

    @property
    @abstractmethod
    def token_streams(self) -> Sequence[TokenStream]:
        """The engine streams that this stream reads; internal."""

    @property
    @abstractmethod
    def stops_early(self) -> bool:
        """Whether a stop string may end the answer; the engine itself only knows stop tokens."""

    @property
    @abstractmethod
    def candidates(self) -> Sequence[ReplyStream[Parsed]]:
        """The stream of each candidate, including the first; empty for a single answer."""

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
        """Whether the answer has ended, successfully or not."""
        return self._reply is not None or self._failed

    def __repr__(self) -> str:
        state = "failed" if self._failed else "open"
        if self._reply is not None:
            state = f"ended, finish_reason={self._reply.finish_reason!r}"
        return f"<phi3ov.ReplyStream: {state}>"

    def on_end(self, call: Callable[[Reply[Parsed] | None], None]) -> None:
        """Call ``call`` once when the stream ends, with the reply or None.

        None means that the answer is discarded: it failed, was abandoned, was cancelled without
        ``keep``, or ran out of time without ``on_timeout="keep"``. The call happens on the thread
        that reads the end of the stream.
        """
        self._on_end.append(call)

    # --- reading ------------------------------------------------------------------------------

    def read(self, *, wait: bool = False) -> Piece | None:
        """Read the next piece. All other ways to read a stream use this method.

        Args:
            wait: Wait up to half a second for a piece.

        Returns:
            A piece, possibly empty; None if nothing has arrived, or if the stream is `done`.

        Raises:
            GenerationError: The engine failed.
        """
        with self._reading:
            return None if self.done else self._advance(wait=wait)

    def pieces(self) -> Iterator[Piece]:
        """Yield the remaining pieces with their token ids and log-probabilities."""
        while (piece := self._next_piece()) is not None:
            yield piece

    async def apieces(self) -> AsyncIterator[Piece]:
        """Async version of `pieces`; does not block the event loop."""
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
        """Return the next piece that is not empty; None at the end."""
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
        """Async version of `_next_piece`; does not block the event loop."""
        import asyncio  # at module level it would add 20 ms to `import phi3ov`

        loop = asyncio.get_running_loop()
        try:
            await asyncio.sleep(0)  # a reader that lags behind must not block the loop
            return await self._piece_on(loop)
        except asyncio.CancelledError:
            self.cancel(keep=self._keep_partial)
            # The reader was cancelled, so another thread must close the stream to end the turn.
            loop.run_in_executor(None, self.close)
            raise

    async def _piece_on(self, loop: AbstractEventLoop) -> Piece | None:
        """Return the next piece, or None at the end, without blocking a thread."""
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
        # Another thread is reading: wait for it in a worker thread.
        return await asyncio.to_thread(self._next_piece)

    def _remaining_seconds(self) -> float | None:
        """Return the shortest remaining time of the engine streams; None without a limit."""
        left = (tokens.remaining_seconds for tokens in self.token_streams)
        return min((seconds for seconds in left if seconds is not None), default=None)

    def _next_ready(self) -> Piece | None:
        """Return the next piece without waiting; None if none has arrived, or at the end."""
        while (piece := self.read()) is not None:
            if piece:
                return piece
        return None

    def poll(self) -> bool:
        """Read everything that has arrived without waiting; return whether the answer has ended.

        Raises:
            GenerationError: The engine failed.
        """
        while self._next_ready() is not None:
            pass
        return self.done

    def add_listener(self, wake: Callable[[], None]) -> None:
        """Call ``wake`` on another thread when the answer may have ended; call `poll` then.

        Args:
            wake: The callback; must not block.
        """
        for tokens in self.token_streams:
            tokens.add_listener(wake, only_end=not self.stops_early)

    def drain(self) -> Reply[Parsed]:
        """Read the stream to its end and return the reply, as ``generate()`` does.

        Without stop strings this waits for the engine to end before reading anything: waking up
        for each token would take CPU time from the computation of the next token.
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
        """Async version of `drain`; does not block the event loop."""
        while await self._await_piece() is not None:
            pass
        return self.reply

    # --- leaving ------------------------------------------------------------------------------

    def cancel(self, *, keep: bool = False) -> None:
        """Stop the answer within one token; safe from any thread or signal handler, repeatedly.

        The iteration then ends, and `reply` holds the partial answer with the finish reason
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
        """Cancel the answer if it has not ended, and wait until the engine has stopped it.

        Returns at once if the engine has not begun the answer, or if its time is over.
        """
        self.cancel(keep=self._keep_partial)
        with suppress(GenerationError):
            while not self.done:
                self.read(wait=True)

    def _abandon(self) -> None:
        """Close the stream and discard its answer, even if it had already ended."""
        self._is_abandoned = True
        self.close()

    async def aclose(self) -> None:
        """Async version of `close`; does not block the event loop."""
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
            tokens: The engine stream with chunks of token ids.
            answer: Decodes ids to text and detects stop tokens and stop strings.
            shape: Parses the finished answer; None for an unstructured answer.
            dropped_turns: Number of turns dropped from the prompt, for the reply.
            keep_at_timeout: Whether to keep an answer that ran out of time.
        """
        self._tokens = tokens
        self._answer = answer
        self._shape = shape
        self._dropped_turns = dropped_turns
        self._keep_at_timeout = keep_at_timeout
        self._meter = Meter(tokens.asked_at, tokens.put_at, tokens.checked)
        super().__init__()

    @property
    def token_streams(self) -> Sequence[TokenStream]:
        """The single engine stream."""
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
        """Decode one chunk of ids, ending the answer at a stop token or stop string."""
        known = len(self._answer.token_ids)
        texts, reasoning = [], ""
        self._meter.passes += 1  # engines put the tokens of one forward pass as one chunk
        for token_id in chunk:
            self._meter.completion_tokens += 1
            texts.append(self._answer.add(token_id))
            if self._answer.stopped_by is not None:
                self._tokens.cancel()  # harmless if the engine has already stopped
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
        """Complete the reply, and return the last piece with the text that was held back."""
        rest = self._answer.finish()
        reason = self._finish_reason()
        request, answer = self._tokens.request, self._answer
        if reason is None:
            raise GenerationError(
                f"The engine ended after {self._meter.completion_tokens} tokens without a stop "
                f"token and before max_new_tokens={request.max_new_tokens}."
            )
        shown = slice(len(answer.token_ids))  # without the stop token
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
            timings=self._meter.timings(self._tokens.began_at),
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
