"""phi3ov measured against its peers, in one run, on the same work.

    make bench-peers    # once: an environment per peer, in build/bench
    make bench          # the reference model
    make bench-full     # a full-size Phi-3-mini with random weights
    make bench-report   # docs/benchmarks.md and its plots, from benchmarks/results/*.json

The physics, which the cases of ``cases.py`` refer to:

- *Decoding* one answer reads every weight once per token and does two operations with each, so
  it is bound by memory bandwidth: tokens/s <= bandwidth / bytes of weights per token. Several
  answers at once share each reading, until arithmetic takes longer than reading.
- *Prefill* does the same two operations per weight for every token of the prompt, with the
  weights read once per chunk, so it is bound by arithmetic.
- *The first token after loading* waits for more: the interpreter's imports, reading the graph,
  compiling it, and repacking the weights for the processor's kernels.
- *A growing chat* repeats its history. With a kept KV cache only the new message is read.

Files: ``peers.py`` (environments), ``models.py`` (the same weights in each peer's format),
``adapters/`` (one small script per peer, run in its environment), ``session.py`` (the other end
of its pipe), ``work.py`` (prompts), ``cases.py`` (what is measured), ``run.py`` (in which
order), ``memory.py``, ``machine.py``, ``report.py``, ``plot.py``.
"""
