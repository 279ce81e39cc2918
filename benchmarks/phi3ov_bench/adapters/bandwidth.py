"""Reads memory as fast as it can; prints bytes per second as JSON. See ``machine.py``."""

from __future__ import annotations

import json
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import openvino
from openvino import opset13 as ops

_ROWS, _COLUMNS = 8192, 16384  # of float32: 512 MB
_ROUNDS = 12


def main() -> None:
    """Measure both reads with the number of threads on the command line."""
    threads = int(sys.argv[1])
    values = np.full((_ROWS, _COLUMNS), 0.5, dtype=np.float32)
    print(
        json.dumps(
            {
                "numpy_dot": _best(lambda: _dot(values, threads), values.nbytes),
                "openvino_matmul": _best(_product(values, threads), values.nbytes),
            }
        )
    )


def _best(read: object, size: int) -> float:
    """Return the best of several rounds: what disturbs a read only makes it slower."""
    rates = []
    for _ in range(_ROUNDS):
        started = time.perf_counter()
        read()  # type: ignore[operator]
        rates.append(size / (time.perf_counter() - started))
    return max(rates)


def _dot(values: np.ndarray, threads: int) -> float:
    parts = np.array_split(values.reshape(-1), threads)
    with ThreadPoolExecutor(threads) as pool:
        return float(sum(pool.map(lambda part: np.dot(part, part), parts)))


def _product(values: np.ndarray, threads: int) -> object:
    vector = ops.parameter([1, _ROWS], openvino.Type.f32)
    product = ops.matmul(vector, ops.constant(values), transpose_a=False, transpose_b=False)
    compiled = openvino.Core().compile_model(
        openvino.Model([product], [vector]),
        "CPU",
        {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": "f32"},
    )
    request, one = compiled.create_infer_request(), np.ones((1, _ROWS), dtype=np.float32)
    return lambda: request.infer([one])


if __name__ == "__main__":
    main()
