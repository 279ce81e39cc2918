"""openvino-genai by itself: `LLMPipeline` on either attention back end, continuous batching."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from .protocol import Adapter, Clock, Timed, serve


class GenAI(Adapter):
    """``variant`` is PA or SDPA (`LLMPipeline`), or CB (`ContinuousBatchingPipeline`)."""

    def import_package(self) -> None:
        """Import openvino-genai and what token ids need."""
        import numpy
        import openvino
        import openvino_genai

        self.numpy, self.openvino, self.genai = numpy, openvino, openvino_genai

    properties: Mapping[str, str] = MappingProxyType({})

    def set_properties(self, properties: dict[str, str]) -> None:
        """Set OpenVINO properties for `load`; only ``settings.py`` does."""
        self.properties = properties

    def load(self) -> None:
        """Load with nothing set but the back end and the number of threads."""
        properties: dict[str, Any] = {"INFERENCE_NUM_THREADS": self.threads, **self.properties}
        if self.variant == "CB":
            scheduler = self.genai.SchedulerConfig()
            self.loaded = self.genai.ContinuousBatchingPipeline(
                self.model, scheduler, "CPU", properties
            )
        else:
            self.loaded = self.genai.LLMPipeline(
                self.model, "CPU", ATTENTION_BACKEND=self.variant, **properties
            )

    def answer(self, prompt_ids: list[int], new_tokens: int) -> Timed:
        """Generate with a streamer."""
        genai, clock = self.genai, Clock()

        class Streamer(genai.StreamerBase):  # type: ignore[misc, name-defined]
            def write(self, token: Any) -> Any:
                clock.note([token] if isinstance(token, int) else list(token))
                return genai.StreamingStatus.RUNNING

            def end(self) -> None:
                pass

        self.loaded.generate(self._tensor(prompt_ids), self._config(new_tokens), Streamer())
        return clock.stop(len(prompt_ids))

    def together(self, prompts: list[dict[str, Any]], new_tokens: int) -> int:
        """Give all prompts to continuous batching."""
        results = self.loaded.generate(
            [self._tensor(prompt["ids"]) for prompt in prompts],
            [self._config(new_tokens)] * len(prompts),
        )
        return sum(len(result.m_generation_ids[0]) for result in results)

    def _tensor(self, ids: list[int]) -> Any:
        return self.openvino.Tensor(self.numpy.array([ids], dtype=self.numpy.int64))

    def _config(self, new_tokens: int) -> Any:
        config = self.genai.GenerationConfig()
        config.max_new_tokens = new_tokens
        config.ignore_eos = True
        config.apply_chat_template = False
        return config


if __name__ == "__main__":
    serve(GenAI())
