"""llama.cpp through llama-cpp-python.

One answer at a time goes through its `Llama` class, which keeps the KV cache of the last prompt
and reads only what differs. Several at once go through llama.cpp's C functions, a sequence
each in one shared batch, because the class answers one at a time.
"""

from __future__ import annotations

from typing import Any

from .protocol import MOST_AT_ONCE, Adapter, Clock, Timed, groups, serve

_CONTEXT_TOKENS = 4096
_BATCH_TOKENS = 2048


class Llama(Adapter):
    """``model`` is a GGUF file."""

    def import_package(self) -> None:
        """Import llama-cpp-python."""
        import llama_cpp
        import numpy

        self.llama_cpp, self.numpy = llama_cpp, numpy
        self.shared: Any = None

    def load(self) -> None:
        """Load with nothing set but context and number of threads."""
        self.loaded = self.llama_cpp.Llama(
            self.model,
            n_ctx=_CONTEXT_TOKENS,
            n_threads=self.threads,
            n_threads_batch=self.threads,
            verbose=False,
        )

    def answer(self, prompt_ids: list[int], new_tokens: int) -> Timed:
        """Take tokens from the class's own generator."""
        clock = Clock()
        for token in self.loaded.generate(prompt_ids, temp=0.0, reset=True):
            clock.note([int(token)])
            if len(clock.token_ids) == new_tokens:
                break
        return clock.stop(len(prompt_ids))

    def together(self, prompts: list[dict[str, Any]], new_tokens: int) -> int:
        """Answer groups of 16, a sequence each."""
        return sum(
            self._answer_group([prompt["ids"] for prompt in group], new_tokens)
            for group in groups(prompts, MOST_AT_ONCE)
        )

    def _answer_group(self, prompts: list[list[int]], new_tokens: int) -> int:
        lib = self.llama_cpp
        if self.shared is None:
            self._open_shared()
        lib.llama_memory_clear(lib.llama_get_memory(self.shared), True)
        places: list[tuple[int, int, int]] = []  # token, position, sequence
        for sequence, ids in enumerate(prompts):
            places += [(token, position, sequence) for position, token in enumerate(ids)]
        following: dict[int, int] = {}
        for part in groups(places, _BATCH_TOKENS):
            wanted = [position == len(prompts[prompt]) - 1 for _, position, prompt in part]
            following |= self._decode(part, wanted)
        made = len(following)
        for step in range(new_tokens - 1):
            part = [
                (token, len(prompts[sequence]) + step, sequence)
                for sequence, token in following.items()
            ]
            following = self._decode(part, [True] * len(part))
            made += len(following)
        return made

    def _open_shared(self) -> None:
        lib = self.llama_cpp
        parameters = lib.llama_context_default_params()
        parameters.n_ctx = _CONTEXT_TOKENS
        parameters.n_batch = _BATCH_TOKENS
        parameters.n_seq_max = MOST_AT_ONCE
        parameters.kv_unified = True
        parameters.n_threads = parameters.n_threads_batch = self.threads
        self.shared = lib.llama_init_from_model(self.loaded._model.model, parameters)
        self.batch = lib.llama_batch_init(_BATCH_TOKENS, 0, 1)
        self.vocabulary = lib.llama_vocab_n_tokens(
            lib.llama_model_get_vocab(self.loaded._model.model)
        )

    def _decode(self, part: list[tuple[int, int, int]], wanted: list[bool]) -> dict[int, int]:
        """Compute one batch; return each wanted sequence's likeliest next token."""
        lib, batch = self.llama_cpp, self.batch
        batch.n_tokens = len(part)
        for index, (token, position, sequence) in enumerate(part):
            batch.token[index] = token
            batch.pos[index] = position
            batch.n_seq_id[index] = 1
            batch.seq_id[index][0] = sequence
            batch.logits[index] = wanted[index]
        if lib.llama_decode(self.shared, batch):
            raise RuntimeError("llama_decode failed")
        following = {}
        for index, (_, _, sequence) in enumerate(part):
            if wanted[index]:
                logits = lib.llama_get_logits_ith(self.shared, index)
                values = self.numpy.ctypeslib.as_array(logits, (self.vocabulary,))
                following[sequence] = int(values.argmax())
        return following

    def quantize(self, source: str, target: str, kind: str, importance: str | None = None) -> None:
        """Write ``target``, the GGUF ``source`` quantized by llama.cpp's own quantizer.

        Args:
            source: A GGUF file in float16 or float32.
            target: The file to write.
            kind: Such as ``Q4_K_M``.
            importance: An ``.npz`` file with the mean square of each column's activations, by
                the tensor's name in the GGUF: the importance matrix. None quantizes without one.
        """
        lib = self.llama_cpp
        parameters = lib.llama_model_quantize_default_params()
        parameters.ftype = getattr(lib, f"LLAMA_FTYPE_MOSTLY_{kind}")
        parameters.nthread = self.threads
        if importance is not None:
            parameters.imatrix = self._importance(importance)
        if lib.llama_model_quantize(source.encode(), target.encode(), parameters):
            raise RuntimeError(f"llama_model_quantize to {kind} failed")

    def _importance(self, file: str) -> Any:
        """Return an array of C structures that ends with an empty one; it owns its data."""
        import ctypes

        struct = self.llama_cpp.llama_model_imatrix_data
        with self.numpy.load(file) as columns:
            self.columns = {name: columns[name].astype(self.numpy.float32) for name in columns}
        entries = (struct * (len(self.columns) + 1))()
        for entry, (name, values) in zip(entries, self.columns.items(), strict=False):
            entry.name = name.encode()
            entry.data = values.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
            entry.size = values.size
        return entries


if __name__ == "__main__":
    serve(Llama())
