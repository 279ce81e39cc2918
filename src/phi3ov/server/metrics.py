"""Prometheus metrics of one application, under vLLM's names with the prefix ``phi3ov:``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

if TYPE_CHECKING:
    from ..answer.reply import Reply
    from .host import ModelHost

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
_TOKENS = (1, 8, 32, 128, 512, 1024, 2048, 4096, 8192, 32768, 131072)
_PER_TOKEN = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 1, 2.5)


class ServerMetrics:
    """Metrics of an application, in a separate registry.

    Attributes:
        requests: Answered HTTP requests by path and status.
        disconnected: Clients that disconnected before their answer ended.
        failures: Answers that ended with an error of the engine.
    """

    def __init__(self, host: ModelHost) -> None:
        """Create the metrics; the gauges query ``host`` when they are read."""
        self._registry = registry = CollectorRegistry()
        self._host = host
        self.requests: Counter = Counter(
            "phi3ov:http_requests", "Answered HTTP requests.", ["path", "status"], registry=registry
        )
        self.disconnected: Counter = Counter(
            "phi3ov:http_requests_client_disconnected",
            "Clients that left before their answer ended.",
            registry=registry,
        )
        self.failures: Counter = Counter(
            "phi3ov:request_failure",
            "Requests that the engine failed to answer.",
            registry=registry,
        )
        self._successes = Counter(
            "phi3ov:request_success", "Finished answers.", ["finished_reason"], registry=registry
        )
        self._prompt_tokens = Counter(
            "phi3ov:prompt_tokens", "Prompt tokens, cached ones included.", registry=registry
        )
        self._cached_tokens = Counter(
            "phi3ov:prefix_cache_hits",
            "Prompt tokens found in the prefix cache.",
            registry=registry,
        )
        self._asked_tokens = Counter(
            "phi3ov:prefix_cache_queries", "Prompt tokens looked up in it.", registry=registry
        )
        self._generated_tokens = Counter(
            "phi3ov:generation_tokens", "Generated tokens.", registry=registry
        )
        self._prompt_sizes = Histogram(
            "phi3ov:request_prompt_tokens", "Prompt tokens.", buckets=_TOKENS, registry=registry
        )
        self._answer_sizes = Histogram(
            "phi3ov:request_generation_tokens",
            "Generated tokens.",
            buckets=_TOKENS,
            registry=registry,
        )
        self._first_token = Histogram(
            "phi3ov:time_to_first_token_seconds",
            "From the request to its first token.",
            buckets=_SECONDS,
            registry=registry,
        )
        self._per_token = Histogram(
            "phi3ov:inter_token_latency_seconds",
            "Between tokens, mean of an answer.",
            buckets=_PER_TOKEN,
            registry=registry,
        )
        self._whole = Histogram(
            "phi3ov:e2e_request_latency_seconds",
            "From the request to its last token.",
            buckets=_SECONDS,
            registry=registry,
        )
        self._queue = Histogram(
            "phi3ov:request_queue_time_seconds",
            "From the request to its place among those that run.",
            buckets=_SECONDS,
            registry=registry,
        )
        self._prefill = Histogram(
            "phi3ov:request_prefill_time_seconds",
            "From that place to the first token.",
            buckets=_SECONDS,
            registry=registry,
        )
        self._inference = Histogram(
            "phi3ov:request_inference_time_seconds",
            "From that place to the last token.",
            buckets=_SECONDS,
            registry=registry,
        )
        self._decode = Histogram(
            "phi3ov:request_decode_time_seconds",
            "From the first token to the last.",
            buckets=_SECONDS,
            registry=registry,
        )
        for name, text, field in (
            ("phi3ov:num_requests_running", "Requests that are being answered.", "running"),
            ("phi3ov:num_requests_waiting", "Requests that wait for their turn.", "waiting"),
            ("phi3ov:num_tokens_waiting", "Prompt tokens that wait.", "waiting_tokens"),
        ):
            gauge = Gauge(name, text, registry=registry)
            gauge.set_function(lambda field=field: self._load(field))  # type: ignore[misc]

    def _load(self, field: str) -> float:
        model = self._host.model
        return 0.0 if model is None else float(getattr(model.load, field))

    def note_reply(self, reply: Reply) -> None:
        """Count a finished answer."""
        usage, timings = reply.usage, reply.timings
        self._successes.labels(reply.finish_reason).inc()
        self._prompt_tokens.inc(usage.prompt_tokens)
        self._asked_tokens.inc(usage.prompt_tokens)
        self._cached_tokens.inc(usage.cached_tokens)
        self._generated_tokens.inc(usage.completion_tokens)
        self._prompt_sizes.observe(usage.prompt_tokens)
        self._answer_sizes.observe(usage.completion_tokens)
        self._whole.observe(timings.total_seconds)
        if usage.completion_tokens:
            self._first_token.observe(timings.first_token_seconds)
            self._queue.observe(timings.queue_seconds)
            self._prefill.observe(timings.first_token_seconds - timings.queue_seconds)
            self._inference.observe(timings.total_seconds - timings.queue_seconds)
            self._decode.observe(timings.total_seconds - timings.first_token_seconds)
        if timings.tokens_per_second > 0:
            self._per_token.observe(1 / timings.tokens_per_second)

    def render(self) -> bytes:
        """Return the metrics in Prometheus' text format."""
        return generate_latest(self._registry)
