"""Export a checkpoint, measure what that lost, and draw it.

python examples/export_and_measure.py CHECKPOINT FOLDER

CHECKPOINT is a folder or a hub id; the picture is FOLDER.svg. Needs phi3ov[export,plot].
"""

import sys
from pathlib import Path

import phi3ov
from phi3ov import quality


def main(checkpoint: str, folder: str) -> None:
    """Export with the small recipe; both sides then read the same text in float32."""
    recipe = phi3ov.Int4Compression(ratio=1.0, on_indivisible="adjust")
    report = phi3ov.export_model(checkpoint, folder, compression=recipe)
    print(f"{report.source_bytes / 1e6:.0f} MB became {report.artifact_bytes / 1e6:.0f} MB")
    cost = quality.compare(checkpoint, folder, max_tokens=512)
    print(cost)
    picture = Path(f"{folder}.svg")
    picture.write_text(quality.draw_histogram(cost), encoding="utf-8")
    print(f"[{cost.top1_agreement:.0%} the same first choice; see {picture}]")


if __name__ == "__main__":
    main(*sys.argv[1:])
