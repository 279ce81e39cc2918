"""The exported reference model that the scripts of this folder run on, made if it is not there."""

from __future__ import annotations

from pathlib import Path

import phi3ov
from phi3ov.reference.build import build_reference


def make_reference_artifact(artifact: Path) -> None:
    """Export the reference checkpoint (beside ``artifact``, built if need be) unless it is."""
    if artifact.exists():
        return
    source = artifact.parent / "reference"
    if not source.exists():
        build_reference(source)
    adjusted = phi3ov.Int4Compression(on_indivisible="adjust")
    phi3ov.export_model(source, artifact, compression=adjusted)
