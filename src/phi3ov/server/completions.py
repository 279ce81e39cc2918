"""``/v1/completions``: completions of raw prompts, as text or token ids."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .chat import DONE
from .errors import bad_field
from .event_stream import frame
from .options import answer_options, drawing_options
from .rendering import AnswerHead, finish_reason, stopped_by, timings, usage
from .schemas import CompletionRequest

if TYPE_CHECKING:
    from ..answer.reply import Reply, TokenScores
    from ..answer.stream import Piece, ReplyStream
    from ..model import Phi3Model
    from ..prompt.token_texts import TokenTexts
    from .settings import ServerSettings

DEFAULT_MAX_TOKENS = 16
"""OpenAI's default of this endpoint."""
MOST_PROMPTS = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Echo:
    """A prompt that is repeated at the beginning of its answers.

    Attributes:
        text: The prompt's text.
        token_ids: The prompt's ids.
        scores: Log-probabilities of its tokens except the first; None if they are not requested,
            or if the prompt has only one token.
    """

    text: str
    token_ids: tuple[int, ...]
    scores: TokenScores | None


class CompletionExchange:
    """A validated completion request: starts the answers and creates their rendering.

    Attributes:
        notes: HTTP headers that report changes to the request.
    """

    def __init__(self, request: CompletionRequest, settings: ServerSettings) -> None:
        """Run the checks that do not need the model.

        Raises:
            ApiError: A field is not allowed.
        """
        self._request = request
        self._settings = settings
        self.notes: dict[str, str] = {}
        self.prompts: list[str | list[int]] = read_prompts(request.prompt)
        if request.best_of not in (None, request.n):
            raise bad_field("best_of", f"best_of={request.best_of} must equal n={request.n}.")
        if request.logprobs is not None and not 0 <= request.logprobs <= 1:
            raise bad_field(
                "logprobs",
                f"logprobs={request.logprobs} must be 0 or 1: only the chosen token's is there.",
                code="unsupported_value",
            )
        self._scores_prompts = request.echo and request.logprobs is not None
        if request.max_tokens == 0 and not self._scores_prompts:
            raise bad_field(
                "max_tokens", "max_tokens=0 needs echo and logprobs: there is nothing to answer."
            )
        if self._scores_prompts and (request.stream or request.n != 1):
            raise bad_field(
                "echo",
                "echo together with logprobs needs n=1 and stream=false.",
                code="unsupported_parameter",
            )
        self._echoed: list[Echo] = []

    @property
    def scores_prompts(self) -> bool:
        """Whether `start` computes the prompts' own log-probabilities, which may take long."""
        return self._scores_prompts

    def start(self, model: Phi3Model) -> Sequence[ReplyStream]:
        """Encode the prompts and start their completions; runs on a worker thread.

        Raises:
            ApiError: As `answer_options`, or the engine gives no log-probabilities of prompts.
            Phi3OVError: The library refuses the request.
        """
        request = self._request
        if self._scores_prompts and not model.can_score:
            raise bad_field(
                "echo",
                "echo together with logprobs needs a model loaded with the paged engine: the "
                "others give no log-probabilities of a prompt.",
                code="unsupported_parameter",
            )
        options = answer_options(
            request,
            self._settings,
            # 0 requests only the prompt's log-probabilities
            max_tokens=DEFAULT_MAX_TOKENS
            if request.max_tokens is None
            else request.max_tokens or int(self._scores_prompts),
            max_tokens_field="max_tokens",
            context_tokens=model.context.tokens,
        )
        options |= drawing_options(request, options)
        if request.logprobs is not None:
            options["logprobs"] = True
        if self._scores_prompts:
            options["top_logprobs"] = 1
        streams: list[ReplyStream] = []
        try:
            for prompt in self.prompts:
                token_ids = self.encode(model, prompt)
                if request.echo:
                    self._echoed.append(self._echo(model, prompt, token_ids))
                if request.max_tokens != 0:
                    streams.append(model.stream_ids(token_ids, **options))
        except BaseException:
            for stream in streams:
                stream.cancel()
            raise
        return streams

    def _echo(
        self, model: Phi3Model, prompt: str | Sequence[int], token_ids: Sequence[int]
    ) -> Echo:
        """Return the prompt to echo, with its log-probabilities if requested."""
        scores = None
        if self._scores_prompts and len(token_ids) > 1:
            scores = model.score(token_ids)
        text = prompt
        if not isinstance(text, str):
            text = model.tokenizer.decode(token_ids, skip_special_tokens=False)
        return Echo(text=text, token_ids=tuple(token_ids), scores=scores)

    def encode(self, model: Phi3Model, prompt: str | Sequence[int]) -> Sequence[int]:
        """Encode a prompt; control tokens are honoured only if the settings allow it."""
        return encode_text(model, prompt, self._settings) if isinstance(prompt, str) else prompt

    def render(self, head: AnswerHead, texts: TokenTexts) -> CompletionRendering:
        """Return the rendering of the answers."""
        options = self._request.stream_options
        return CompletionRendering(
            head,
            texts if self._request.logprobs is not None else None,
            include_usage=options is not None and bool(options.include_usage),
            prompts=len(self.prompts),
            each=self._request.n,
            echoed=self._echoed,
        )


def encode_text(model: Phi3Model, text: str, settings: ServerSettings) -> list[int]:
    """Encode a raw prompt."""
    if settings.allow_control_tokens:
        return model.tokenizer.encode_raw(text)
    return model.tokenizer.encode_text(text)


def read_prompts(prompt: str | Sequence[str | int | Sequence[int]]) -> list[str | list[int]]:
    """Return the prompts of a request, each as text or as ids.

    Raises:
        ApiError: The list or a prompt is empty, there are too many prompts, or texts and ids are
            mixed.
    """
    prompts: list[Any]
    if isinstance(prompt, str):
        prompts = [prompt]
    elif prompt and all(isinstance(part, int) for part in prompt):
        prompts = [list(prompt)]
    else:
        prompts = list(prompt)
    kinds = {type(part) for part in prompts}
    if len(kinds) != 1 or int in kinds or not all(prompts):
        raise bad_field(
            "prompt", "prompt must be a non-empty string, a list of those, ids, or a list of those."
        )
    if len(prompts) > MOST_PROMPTS:
        raise bad_field("prompt", f"prompt holds {len(prompts)} prompts; at most {MOST_PROMPTS}.")
    return prompts


class CompletionRendering:
    """Writes the answers of one completion request."""

    def __init__(
        self,
        head: AnswerHead,
        texts: TokenTexts | None,
        *,
        include_usage: bool,
        prompts: int,
        each: int,
        echoed: Sequence[Echo],
    ) -> None:
        """Render ``each`` answers per prompt.

        Args:
            head: Shared members of the answer's objects.
            texts: Texts of tokens, if log-probabilities are requested.
            include_usage: Whether a stream ends with the token counts.
            prompts: Number of prompts.
            each: Number of answers per prompt.
            echoed: The echoed prompts, filled when the answers have started; empty without
                ``echo``.
        """
        self._head = head
        self._texts = texts
        self._include_usage = include_usage
        self._prompts = prompts
        self._each = each
        self._echoed = echoed
        self._offsets: dict[int, int] = {}

    def whole(self, replies: Sequence[Reply]) -> Mapping[str, Any]:
        """Return the response body without streaming; without replies, only scored prompts."""
        choices = []
        for number in range(self._prompts * self._each):
            reply = replies[number] if replies else None
            before = self._text_before(number)
            choice = {
                "index": number,
                "text": before if reply is None else before + reply.text,
                "logprobs": self._all_logprobs(number, reply),
                "finish_reason": "length" if reply is None else finish_reason(reply),
            }
            choices.append(choice if reply is None else choice | stopped_by(reply))
        body = {**self._head.members("text_completion"), "choices": choices}
        if replies:
            return {
                **body,
                "usage": usage(replies, self._prompts),
                "timings": timings(replies[0]),
            }
        tokens = sum(len(echo.token_ids) for echo in self._echoed)
        counts = {"prompt_tokens": tokens, "completion_tokens": 0, "total_tokens": tokens}
        return {**body, "usage": counts}

    def begin(self) -> Iterator[bytes]:
        """Yield the prompt if the request asks for ``echo``."""
        if self._echoed:
            for number in range(self._prompts * self._each):
                yield self._chunk(number, self._text_before(number))

    def piece(self, number: int, piece: Piece) -> Iterator[bytes]:
        """Yield a piece of text, with the log-probabilities of its tokens."""
        logprobs = self._logprobs(number, piece.token_ids, piece.logprobs)
        if piece.text or logprobs is not None:
            yield self._chunk(number, piece.text, logprobs=logprobs)

    def end(self, number: int, reply: Reply) -> Iterator[bytes]:
        """Yield the finish reason."""
        yield self._chunk(number, "", reason=finish_reason(reply), ending=stopped_by(reply))

    def finish(self, replies: Sequence[Reply]) -> Iterator[bytes]:
        """Yield the token counts, if requested, and the end of the stream."""
        if self._include_usage:
            members = self._head.members("text_completion")
            yield frame({**members, "choices": [], "usage": usage(replies, self._prompts)})
        yield DONE

    def _text_before(self, number: int) -> str:
        return self._echoed[number // self._each].text if self._echoed else ""

    def _chunk(
        self,
        number: int,
        text: str,
        *,
        logprobs: Mapping[str, Any] | None = None,
        reason: str | None = None,
        ending: Mapping[str, Any] | None = None,
    ) -> bytes:
        choice = {"index": number, "text": text, "logprobs": logprobs, "finish_reason": reason}
        choice |= dict(ending or {})
        chunk = {**self._head.members("text_completion"), "choices": [choice]}
        return frame({**chunk, "usage": None} if self._include_usage else chunk)

    def _all_logprobs(self, number: int, reply: Reply | None) -> dict[str, Any] | None:
        """Return the log-probabilities of a whole answer, including those of an echoed prompt."""
        if self._texts is None:
            return None
        token_ids: tuple[int, ...] = ()
        logprobs: list[float | None] = []
        likeliest: list[tuple[int, float] | None] = []
        if self._echoed:
            echo = self._echoed[number // self._each]
            token_ids, logprobs, likeliest = echo.token_ids, [None], [None]  # nothing before it
            if echo.scores is not None:
                logprobs += echo.scores.logprobs
                likeliest += echo.scores.likeliest
        if reply is not None:
            token_ids += reply.token_ids
            logprobs += reply.logprobs or ()
            likeliest += [top[0] for top in reply.top_logprobs or ()]
        found = self._logprobs(number, token_ids, logprobs)
        if found is not None and self._echoed:
            found["top_logprobs"] = [
                None if pair is None else {self._texts(pair[0]): pair[1]} for pair in likeliest
            ]
        return found

    def _logprobs(
        self, number: int, token_ids: Sequence[int], logprobs: Sequence[float | None]
    ) -> dict[str, Any] | None:
        if self._texts is None or not token_ids:
            return None
        tokens = [self._texts(token_id) for token_id in token_ids]
        offsets = []
        for token in tokens:
            offsets.append(self._offsets.setdefault(number, 0))
            self._offsets[number] += len(token)
        return {
            "tokens": tokens,
            "token_logprobs": list(logprobs),
            "top_logprobs": None,
            "text_offset": offsets,
        }
