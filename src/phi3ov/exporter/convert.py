"""Converts a checkpoint to an OpenVINO graph with optimum's exporter; compresses before writing.

optimum would write the whole model in full precision and read it again for compression, which
moves twice the checkpoint's size through the disk. Instead, the graph is compressed in optimum's
last step, ``save_model``. Until then its weights are the checkpoint's own mapped files, and none
has been copied into memory.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

from ..artifact.folder import MODEL_XML
from ..errors import ExportError
from ..thirdparty.overrides import original_of, replaced


def convert(checkpoint: Path, output: Path, rewrite: Callable[[Any], None]) -> None:
    """Convert the checkpoint to an IR in the folder ``output``.

    optimum's exporter accepts a quantization config too, but silently ignores it here, so
    ``rewrite`` does the compression.

    Args:
        checkpoint: The folder of a checkpoint in Phi-3's layout.
        output: The folder to write.
        rewrite: Called with the ``openvino.Model`` before it is written, to change it in place.

    Raises:
        ExportError: This version of optimum does not write through ``save_model``.
    """
    from optimum.exporters.openvino import main_export
    from optimum.intel import OVConfig

    exporter = importlib.import_module("optimum.exporters.openvino.convert")
    saver = _RewritingSaver(original_of(exporter, "save_model"), rewrite)
    with replaced(exporter, "save_model", saver):
        main_export(
            str(checkpoint),
            output=output,
            task="text-generation-with-past",
            trust_remote_code=False,
            local_files_only=True,
            ov_config=OVConfig(dtype="auto"),
            stateful=True,
            convert_tokenizer=False,
            library_name="transformers",
        )
    if not saver.has_rewritten:
        raise ExportError(
            f"optimum-intel {metadata.version('optimum-intel')} does not save its model through "
            "openvino.save_model. Install a version that phi3ov[export] asks for."
        )


class _RewritingSaver:
    """Replacement for ``openvino.save_model`` in optimum's exporter."""

    def __init__(self, save_model: Callable[..., None], rewrite: Callable[[Any], None]) -> None:
        self._save_model = save_model
        self._rewrite = rewrite
        self.has_rewritten = False

    def __call__(self, model: Any, path: Any, *arguments: Any, **options: Any) -> None:
        if Path(path).name != MODEL_XML:
            self._save_model(model, path, *arguments, **options)
            return
        self._rewrite(model)
        self.has_rewritten = True
        self._save_model(model, path, compress_to_fp16=False)
