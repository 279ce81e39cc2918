"""``phi3ov verify``: an exported folder compared with its checksums."""

from __future__ import annotations

from typing import Annotated, Any

from ..errors import Phi3OVError
from .options import Model, Revision, json_option
from .printing import print_json

EXAMPLE = "phi3ov verify phi3-int4"


def run(
    model: Model,
    *,
    revision: Revision = None,
    as_json: Annotated[bool, json_option("what was found, also where that is an error")] = False,
) -> None:
    """Compare an exported folder with its checksums."""
    from ..loading import find_artifact

    found: dict[str, Any] = {"path": model, "files": None, "problems": ()}
    try:
        artifact = find_artifact(model, revision=revision)
        found["files"] = len(artifact.manifest.files)
        artifact.verify()
    except (Phi3OVError, OSError) as error:
        found["problems"] = getattr(error, "problems", ()) or (str(error),)
        if as_json:
            print_json(found)
        raise
    if as_json:
        print_json(found)
    else:
        print(f"{artifact.path}: all {found['files']} files are as they were exported")
