"""``/v1/completions``: completions of raw prompts, as text or token ids."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from .chat import DONE
from .errors import bad_field
from .event_stream import frame
from .options import answer_options, drawing_options
from .rendering import AnswerHead, finish_reason, stopped_by, timings, usage
from .schemas import CompletionRequest

if TYPE_CHECKING:
    from ..answer.reply import Reply
    from ..answer.stream import Piece, ReplyStream
    from ..model import Phi3Model
    from ..prompt.token_texts import TokenTexts
    from .settings import ServerSettings

DEFAULT_MAX_TOKENS = 16
"""OpenAI's default of this endpoint."""
MOST_PROMPTS = 64


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
        if request.echo and not all(isinstance(prompt, str) for prompt in self.prompts):
            raise bad_field("echo", "echo needs prompts of text.", code="unsupported_parameter")
        if request.echo and request.logprobs is not None:
            raise bad_field(
                "echo",
                "echo together with logprobs is not supported: the prompt's are not computed.",
                code="unsupported_parameter",
            )

    def start(self, model: Phi3Model) -> Sequence[ReplyStream]:
        """Encode the prompts and start their completions; runs on a worker thread.

        Raises:
            ApiError: As `answer_options`.
            Phi3OVError: The library refuses the request.
        """
        request = self._request
        options = answer_options(
            request,
            self._settings,
            max_tokens=DEFAULT_MAX_TOKENS if request.max_tokens is None else request.max_tokens,
            max_tokens_field="max_tokens",
            context_tokens=model.context.tokens,
        )
        options |= drawing_options(request, options)
        if request.logprobs is not None:
            options["logprobs"] = True
        streams: list[ReplyStream] = []
        try:
            for prompt in self.prompts:
                streams.append(model.stream_ids(self.encode(model, prompt), **options))
        except BaseException:
            for stream in streams:
                stream.cancel()
            raise
        return streams

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
            prompts=self.prompts,
            each=self._request.n,
            echo=self._request.echo,
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
        prompts: Sequence[str | list[int]],
        each: int,
        echo: bool,
    ) -> None:
        """Render ``each`` answers per prompt; ``echo`` puts the prompt before each answer."""
        self._head = head
        self._texts = texts
        self._include_usage = include_usage
        self._prompts = prompts
        self._each = each
        self._echo = echo
        self._offsets: dict[int, int] = {}

    def whole(self, replies: Sequence[Reply]) -> Mapping[str, Any]:
        """Return the response body without streaming."""
        choices = []
        for number, reply in enumerate(replies):
            before = self._echoed(number)
            logprobs = self._logprobs(number, reply.token_ids, reply.logprobs or ())
            choice = {"index": number, "text": before + reply.text, "logprobs": logprobs}
            choices.append(choice | {"finish_reason": finish_reason(reply)} | stopped_by(reply))
        return {
            **self._head.members("text_completion"),
            "choices": choices,
            "usage": usage(replies, len(self._prompts)),
            "timings": timings(replies[0]),
        }

    def begin(self) -> Iterator[bytes]:
        """Yield the prompt if the request asks for ``echo``."""
        if self._echo:
            for number in range(len(self._prompts) * self._each):
                yield self._chunk(number, self._echoed(number))

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
            yield frame({**members, "choices": [], "usage": usage(replies, len(self._prompts))})
        yield DONE

    def _echoed(self, number: int) -> str:
        prompt = self._prompts[number // self._each]
        return prompt if self._echo and isinstance(prompt, str) else ""

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

    def _logprobs(
        self, number: int, token_ids: Sequence[int], logprobs: Sequence[float]
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
