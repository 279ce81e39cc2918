"""Writes the int4 weights of an ONNX model as they are stored: onnx_weights.py MODEL.onnx OUT.npz.

Runs where ``onnx`` is: in the environment of onnxruntime-genai's builder. ``dequantize.py`` reads
the file.
"""

from __future__ import annotations

import sys
from pathlib import Path


def main(model: Path, target: Path) -> None:
    """Check that every matrix has 4 bits and no zero points, and write all initializers.

    Raises:
        ValueError: A node is quantized in another way.
    """
    import numpy as np
    import onnx
    from onnx import numpy_helper

    loaded = onnx.load(model)
    for node in loaded.graph.node:
        if node.op_type in ("MatMulNBits", "GatherBlockQuantized"):
            bits = next((field.i for field in node.attribute if field.name == "bits"), 4)
            if bits != 4 or any(node.input[3:]):
                raise ValueError(f"{node.name} has {bits} bits and the inputs {node.input}.")
        elif node.op_type in ("MatMul", "Gemm"):
            raise ValueError(f"{node.name} is a {node.op_type}, which is not quantized.")
    tensors = {each.name: numpy_helper.to_array(each) for each in loaded.graph.initializer}
    np.savez(target, **tensors)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
