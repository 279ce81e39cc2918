"""What phi3ov replaces in the tools around it, while it uses them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any


@contextlib.contextmanager
def replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    """Give the attribute ``name`` of ``owner`` another value while the block runs."""
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)


@contextlib.contextmanager
def su_rope_accepted() -> Iterator[None]:
    """Let transformers read the first releases of the 128k models while the block runs.

    Their config calls LongRoPE ``"su"``. transformers renames it, but only after it has looked
    up what LongRoPE needs under its new name, and then raises that this is missing.
    """
    from transformers import Phi3Config

    convert = Phi3Config.convert_rope_params_to_dict

    def rename_and_convert(config: Any, *arguments: Any, **options: Any) -> Any:
        scaling = options.get("rope_scaling") or {}
        if scaling.get("rope_type", scaling.get("type")) == "su":
            options["rope_scaling"] = scaling | {"rope_type": "longrope"}
        return convert(config, *arguments, **options)

    with replaced(Phi3Config, "convert_rope_params_to_dict", rename_and_convert):
        yield
