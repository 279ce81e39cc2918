"""What a model's weights are made of, as a picture: share of bytes by precision.

python examples/weights.py MODEL
"""

import sys

import phi3ov

BITS = {"int4": 4, "int8": 8, "fp16": 16, "bf16": 16, "fp32": 32}


def main(folder: str) -> None:
    """Draw a bar for each precision; nothing is loaded, the manifest knows."""
    artifact = phi3ov.Artifact.open(folder)
    size = {
        f"{each.precision}, group {each.group_size or 'row'}": each.parameters
        * BITS[each.precision]
        for each in artifact.manifest.weights
    }
    for name, bits in size.items():
        share = bits / sum(size.values())
        print(f"{name:16} {'#' * round(50 * share):50} {share:6.1%} {bits / 8e6:8.1f} MB")
    print(f"{artifact.bits_per_weight:.2f} bits per weight, scales included")


if __name__ == "__main__":
    main(sys.argv[1])
