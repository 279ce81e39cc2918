"""optimum-intel as most scripts use it: ``OVModelForCausalLM`` and transformers' ``generate()``."""

from __future__ import annotations

from typing import Any

from .protocol import MOST_AT_ONCE, Adapter, Clock, Timed, groups, serve


class Optimum(Adapter):
    """Reads the whole prompt for each answer; several at once are a static batch."""

    def import_package(self) -> None:
        """Import what such a script begins with."""
        import torch
        from optimum.intel import OVModelForCausalLM
        from transformers import AutoTokenizer

        self.torch, self.model_class, self.tokenizer_class = (
            torch,
            OVModelForCausalLM,
            AutoTokenizer,
        )

    def load(self) -> None:
        """Load the exported folder."""
        self.torch.set_num_threads(self.threads)
        config = {
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": "1",
            "INFERENCE_NUM_THREADS": str(self.threads),
        }
        self.loaded = self.model_class.from_pretrained(self.model, device="CPU", ov_config=config)
        self.tokenizer_class.from_pretrained(self.model)
        self.loaded.generation_config.eos_token_id = None

    def answer(self, prompt_ids: list[int], new_tokens: int) -> Timed:
        """Generate with a streamer."""
        streamer = _Streamer()
        self._generate([prompt_ids], new_tokens, streamer)
        return streamer.clock.stop(len(prompt_ids))

    def together(self, prompts: list[dict[str, Any]], new_tokens: int) -> int:
        """Generate static batches."""
        return sum(
            self._generate([prompt["ids"] for prompt in group], new_tokens, None)
            for group in groups(prompts, MOST_AT_ONCE)
        )

    def _generate(self, prompts: list[list[int]], new_tokens: int, streamer: Any) -> int:
        ids = self.torch.tensor(prompts)
        output = self.loaded.generate(
            ids,
            attention_mask=self.torch.ones_like(ids),
            max_new_tokens=new_tokens,
            min_new_tokens=new_tokens,
            do_sample=False,
            pad_token_id=0,
            streamer=streamer,
        )
        return int(output.numel() - ids.numel())


class _Streamer:
    """transformers' streamer protocol: the prompt comes first, then each token."""

    def __init__(self) -> None:
        self.clock = Clock()
        self._prompt_seen = False

    def put(self, value: Any) -> None:
        """Take the prompt's or the next token's ids."""
        if self._prompt_seen:
            self.clock.note([int(token_id) for token_id in value.reshape(-1)])
        self._prompt_seen = True

    def end(self) -> None:
        """Nothing is held back."""


if __name__ == "__main__":
    serve(Optimum())
