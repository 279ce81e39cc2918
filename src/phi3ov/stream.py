"""One answer while it is being made: `ReplyStream`.

``generate()`` is this stream read to its end; there is no second way to an answer.
"""

from __future__ import annotations

import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from typing import TYPE_CHECKING

from .errors import GenerationError, StateError
from .generation import FinishReason, Reply, ReplyPlan, Timings, Usage

if TYPE_CHECKING:
    from .engine import TokenStream
    from .text import AnswerText


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
        on_end: Callable[[Reply, bool], None] = lambda _reply, _keep: None,
        on_abort: Callable[[], None] = lambda: None,
    ) -> None:
        """Read ``tokens`` through ``answer``; for `Phi3Model` and `Phi3Chat` to call.

        Args:
            tokens: The engine's side: chunks of token ids.
            answer: Turns ids into text and knows the stop tokens and strings.
            plan: What the finished reply reports besides.
            on_end: Called once with the finished reply and whether it shall be kept.
            on_abort: Called once instead of ``on_end`` when the engine failed.
        """
        self._tokens = tokens
        self._answer = answer
        self._plan = plan
        self._on_end = on_end
        self._on_abort = on_abort
        self._started = time.perf_counter()
        self._first_token: float | None = None
        self._keep_partial = False
        self._cancelled = False
        self._completion_tokens = 0
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
                    chunk = next(self._tokens, None)
                except GenerationError as error:
                    self._fail(error)
                    raise
                except BaseException:  # Ctrl-C while waiting: the engine must not go on
                    self.close()
                    raise
                piece = self._end() if chunk is None else self._take(chunk)
                if piece:
                    return piece
        raise StopIteration

    def __aiter__(self) -> ReplyStream:
        return self

    async def __anext__(self) -> str:
        import asyncio  # 20 ms that `import phi3ov` need not cost

        try:
            piece = await asyncio.to_thread(next, self, None)
        except asyncio.CancelledError:
            self.cancel(keep=self._keep_partial)
            # Nobody reads on, so read the rest here: the chat's turn must end.
            asyncio.get_running_loop().run_in_executor(None, self.close)
            raise
        if piece is None:
            raise StopAsyncIteration
        return piece

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

    def close(self) -> None:
        """Cancel the answer if it has not ended, and wait until the engine let go of it."""
        self.cancel(keep=self._keep_partial)
        with self._reading:
            while not self.done:
                try:
                    chunk = next(self._tokens, None)
                except GenerationError as error:
                    self._fail(error)
                    return
                if chunk is None:
                    self._end()

    def drain(self) -> Reply:
        """Read the stream to its end and return the reply: this is all that ``generate()`` does."""
        for _ in self:
            pass
        return self.reply

    def __enter__(self) -> ReplyStream:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    def __del__(self) -> None:
        if getattr(self, "_tokens", None) is not None and not self.done:
            self._tokens.cancel()
            self._failed = True
            self._on_abort()

    def _take(self, chunk: list[int]) -> str:
        """Turn one chunk of ids into text, ending the answer where it says so."""
        if self._first_token is None:
            self._first_token = time.perf_counter()
        pieces = []
        for token_id in chunk:
            self._completion_tokens += 1
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
            error = GenerationError(
                f"The engine ended after {self._completion_tokens} tokens without a stop token "
                f"and before max_new_tokens={self._plan.max_new_tokens}."
            )
            self._fail(error)
            raise error
        ended = time.perf_counter()
        first = self._first_token if self._first_token is not None else ended
        after_first = self._completion_tokens - 1
        decode_seconds = ended - first
        self._reply = Reply(
            text=self._answer.text,
            token_ids=tuple(self._answer.token_ids),
            finish_reason=reason,
            stopped_by=self._answer.stopped_by,
            usage=Usage(
                prompt_tokens=self._plan.prompt_tokens,
                cached_tokens=self._tokens.cached_tokens,
                completion_tokens=self._completion_tokens,
            ),
            timings=Timings(
                first_token_seconds=first - self._started,
                total_seconds=ended - self._started,
                tokens_per_second=after_first / decode_seconds
                if after_first > 0 and decode_seconds > 0
                else 0.0,
            ),
            max_new_tokens=self._plan.max_new_tokens,
            dropped_turns=self._plan.dropped_turns,
            seed=self._plan.seed,
            tool_calls=self._answer.tool_calls,
        )
        self._on_end(self._reply, reason != "cancelled" or self._keep_partial)
        return rest

    def _finish_reason(self) -> FinishReason | None:
        if self._answer.stopped_by is not None:
            return "stop"
        if self._completion_tokens >= self._plan.max_new_tokens:
            return "length"
        if self._cancelled or self._tokens.cancelled:  # the latter when the model is closed
            return "cancelled"
        return None

    def _fail(self, error: GenerationError) -> None:
        self._failed = True
        error.partial_text = self._answer.text
        self._on_abort()
