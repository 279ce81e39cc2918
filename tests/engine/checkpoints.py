"""Tiny random checkpoints with the config shape of each member of the Phi-3 family.

Each is a folder as it lies on the hub: ``config.json`` with the field names of the real one
(``auto_map`` included, and nothing there that it points at), bf16 safetensors,
``tokenizer.json`` with the family's control tokens, chat template and generation config. The
vocabulary is the 256 bytes, so a prompt of ASCII text has one token per character.

The weights are drawn wide, so that the answers depend on every position and every factor, and
are exact in bf16, fp16 and fp32 alike, so that an fp16 export can be compared with fp32 token
for token.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from transformers import Phi3Config, Phi3ForCausalLM, PhimoeConfig, PhimoeForCausalLM
from transformers.core_model_loading import revert_weight_conversion

HIDDEN = 128
INTERMEDIATE = 256
HEADS = 4
HEAD = HIDDEN // HEADS
BORDER = 64
"""Original context of the LongRoPE rows."""
LONGEST = 1024
"""``max_position_embeddings`` of the LongRoPE rows."""
WINDOW = 32
"""Sliding window of the 4k rows."""

_MESSAGE = "'<|{role}|>\\n' + message['content'] + '<|end|>\\n'"


def _phi3_template(system_condition: str) -> str:
    branches = [
        f"message['role'] == 'system'{system_condition}",
        "message['role'] == 'user'",
        "message['role'] == 'assistant'",
    ]
    body = ""
    for index, (branch, role) in enumerate(
        zip(branches, ("system", "user", "assistant"), strict=True)
    ):
        body += f"{{% {'elif' if index else 'if'} {branch} %}}"
        body += "{{" + _MESSAGE.replace("{role}", role) + "}}"
    return (
        "{% for message in messages %}" + body + "{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% else %}{{ eos_token }}{% endif %}"
    )


MINI_TEMPLATE = _phi3_template("")
MINI_35_TEMPLATE = _phi3_template(" and message['content']")
MEDIUM_TEMPLATE = (
    "{% for message in messages %}{% if (message['role'] == 'user') %}"
    "{{'<|user|>' + '\\n' + message['content'] + '<|end|>' + '\\n' + '<|assistant|>' + '\\n'}}"
    "{% elif (message['role'] == 'assistant') %}"
    "{{message['content'] + '<|end|>' + '\\n'}}{% endif %}{% endfor %}"
)
PHI4_MINI_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'system' and 'tools' in message and message['tools'] is not none %}"
    "{{ '<|' + message['role'] + '|>' + message['content'] + '<|tool|>' + message['tools'] + "
    "'<|/tool|>' + '<|end|>' }}"
    "{% else %}{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% else %}{{ eos_token }}{% endif %}"
)
PHI4_TEMPLATE = (
    "{% for message in messages %}"
    "{{'<|im_start|>' + message['role'] + '<|im_sep|>' + message['content'] + '<|im_end|>'}}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant<|im_sep|>' }}{% endif %}"
)

MINI_REASONING_TEMPLATE = (
    "<|system|>Your name is Phi, an AI math expert developed by Microsoft."
    "{% for message in messages %}{% if message['role'] == 'system' %} {{ message['content'] }}"
    "{% if 'tools' in message and message['tools'] is not none %}"
    "<|tool|>{{ message['tools'] }}<|/tool|>{% endif %}{% endif %}{% endfor %}<|end|>"
    "{% for message in messages %}{% if message['role'] != 'system' %}"
    "<|{{ message['role'] }}|>{{ message['content'] }}<|end|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
"""Writes what Phi-4-mini-reasoning's template writes."""

PHI3_TOKENS = ("<|endoftext|>", "<|assistant|>", "<|system|>", "<|end|>", "<|user|>")
PHI4_MINI_TOKENS = (
    "<|endoftext|>",
    "<|assistant|>",
    "<|system|>",
    "<|tool|>",
    "<|/tool|>",
    "<|tool_call|>",
    "<|/tool_call|>",
    "<|end|>",
    "<|user|>",
    "<|tool_response|>",
)
PHI4_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_sep|>", "<|im_end|>")
FIRST_CONTROL_ID = 256
VOCABULARY = 272


@dataclass(frozen=True, kw_only=True)
class Row:
    """One row of the family table, scaled down.

    Attributes:
        template: The chat template.
        control_tokens: In the order of their ids.
        strips: Whether control tokens have rstrip, as Phi-3's do.
        config: What differs from Phi-3-mini-4k's ``config.json``.
        seed: Of the weights.
    """

    template: str
    control_tokens: tuple[str, ...] = PHI3_TOKENS
    strips: bool = True
    config: dict[str, Any] = field(default_factory=dict)
    seed: int = 0

    @property
    def longrope(self) -> bool:
        """Whether it has two sets of rotary factors."""
        return bool(self.config.get("rope_scaling"))


def _longrope(*, rotary: int = HEAD) -> dict[str, Any]:
    half = rotary // 2
    return {
        "max_position_embeddings": LONGEST,
        "original_max_position_embeddings": BORDER,
        "rope_scaling": {
            "type": "longrope",
            "short_factor": [1.0 + 0.02 * index for index in range(half)],
            "long_factor": [1.1 + 0.5 * index for index in range(half)],
        },
        "sliding_window": 4 * LONGEST,
    }


_GQA = {"num_key_value_heads": HEADS // 2}

EXPERTS = 16


def _mixture(code: str) -> dict[str, Any]:
    """Return the fields that the three mixtures of experts share; ``code`` is in `auto_map`."""
    return {
        "architectures": ["PhiMoEForCausalLM"],
        "attention_bias": True,
        "auto_map": {
            "AutoConfig": f"configuration_{code}.PhiMoEConfig",
            "AutoModelForCausalLM": f"modeling_{code}.PhiMoEForCausalLM",
        },
        "hidden_dropout": 0.0,
        "input_jitter_noise": 0.01,
        "lm_head_bias": True,
        "model_type": "phimoe",
        "num_experts_per_tok": 2,
        "num_key_value_heads": HEADS // 4,
        "num_local_experts": EXPERTS,
        "output_router_logits": False,
        "router_aux_loss_coef": 0.0,
        "router_jitter_noise": 0.01,
    }


_MSCALES = {"short_mscale": 1.25, "long_mscale": 1.5}
"""The real ones are both 1.243163121016122; these tell the two apart."""

_MOE_ROPE = _longrope()
_MOE_ROPE["rope_scaling"] |= {"original_max_position_embeddings": BORDER, **_MSCALES}

FAMILY: dict[str, Row] = {
    "phi-3-mini-4k": Row(template=MINI_TEMPLATE),
    "phi-3-mini-128k": Row(template=MINI_TEMPLATE, config=_longrope(), seed=1),
    "phi-3-medium-4k": Row(template=MEDIUM_TEMPLATE, config=_GQA, seed=2),
    "phi-3-medium-128k": Row(template=MEDIUM_TEMPLATE, config=_GQA | _longrope(), seed=3),
    "phi-3.5-mini": Row(template=MINI_35_TEMPLATE, config=_longrope(), seed=4),
    "phi-4-mini": Row(
        template=PHI4_MINI_TEMPLATE,
        control_tokens=PHI4_MINI_TOKENS,
        strips=False,
        config=_GQA
        | _longrope(rotary=HEAD * 3 // 4)
        | {
            "auto_map": {
                "AutoConfig": "configuration_phi3.Phi3Config",
                "AutoModelForCausalLM": "modeling_phi3.Phi3ForCausalLM",
                "AutoTokenizer": "Xenova/gpt-4o",  # a stranger's; nothing may go there
            },
            "partial_rotary_factor": 0.75,
            "tie_word_embeddings": True,
        },
        seed=15,
    ),
    "phi-4": Row(
        template=PHI4_TEMPLATE,
        control_tokens=PHI4_TOKENS,
        strips=False,
        config=_GQA
        | {
            "max_position_embeddings": LONGEST,
            "original_max_position_embeddings": LONGEST,
            "sliding_window": None,
        },
        seed=6,
    ),
    "phi-3.5-moe": Row(
        template=MINI_TEMPLATE,
        config=_mixture("phimoe") | _MOE_ROPE | {"intermediate_size": 192},
        seed=7,
    ),
    "phi-mini-moe": Row(
        template=MINI_TEMPLATE,
        config=_mixture("slimmoe") | {"intermediate_size": 64},
        seed=8,
    ),
    "phi-tiny-moe": Row(
        template=MINI_TEMPLATE,
        config=_mixture("slimmoe") | {"intermediate_size": 64, "head_dim": HEAD // 2},
        seed=9,
    ),
}
"""Every row of the family table, by its name."""

MINI_REASONING = Row(
    template=MINI_REASONING_TEMPLATE, control_tokens=PHI4_MINI_TOKENS, strips=False, seed=15
)
"""Phi-4-mini-reasoning's chat format; its architecture is Phi-4-mini's."""

LONGROPE_ROWS = tuple(name for name, row in FAMILY.items() if row.longrope)
WINDOW_ROWS = tuple(
    name for name, row in FAMILY.items() if row.config.get("sliding_window", WINDOW) == WINDOW
)


def build_checkpoint(
    folder: Path,
    row: Row,
    *,
    dtype: str = "bfloat16",
    config_only: Mapping[str, Any] | None = None,
    tokenizer_json: str | None = None,
    **changes: Any,
) -> Path:
    """Write a checkpoint into ``folder``.

    Args:
        folder: Must not exist yet.
        row: What to build.
        dtype: How the weights are stored: bfloat16 (as on the hub), float16 or float32.
        config_only: Fields that ``config.json`` gets after the weights were made.
        tokenizer_json: A ``tokenizer.json`` instead of the bytes' own.
        **changes: More fields of ``config.json``.
    """
    folder.mkdir(parents=True)
    config = copy.deepcopy(_config(row) | {"torch_dtype": dtype} | changes)  # transformers edits it
    _write_json(folder / "config.json", config | dict(config_only or {}))
    _write_tokenizer(folder, row)
    if tokenizer_json is not None:
        (folder / "tokenizer.json").write_text(tokenizer_json, encoding="utf-8")
    named = [token for token in row.control_tokens if token != "<|tool_response|>"]
    stop_ids = [_id(row, "<|endoftext|>"), _id(row, named[-2])]
    _write_json(
        folder / "generation_config.json",
        {"_from_model_config": True, "bos_token_id": 1, "eos_token_id": stop_ids},
    )
    weights = _draw_weights(config, row.seed)
    stored = {name: tensor.to(getattr(torch, dtype)) for name, tensor in weights.items()}
    save_file(stored, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def _config(row: Row) -> dict[str, Any]:
    end_of_text = _id(row, "<|endoftext|>")
    return {
        "architectures": ["Phi3ForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "auto_map": {
            "AutoConfig": "configuration_phi3.Phi3Config",
            "AutoModelForCausalLM": "modeling_phi3.Phi3ForCausalLM",
        },
        "bos_token_id": 1,
        "embd_pdrop": 0.0,
        "eos_token_id": end_of_text,
        "hidden_act": "silu",
        "hidden_size": HIDDEN,
        "initializer_range": 0.02,
        "intermediate_size": INTERMEDIATE,
        "max_position_embeddings": LONGEST,
        "model_type": "phi3",
        "num_attention_heads": HEADS,
        "num_hidden_layers": 2,
        "num_key_value_heads": HEADS,
        "original_max_position_embeddings": LONGEST,
        "pad_token_id": end_of_text,
        "resid_pdrop": 0.0,
        "rms_norm_eps": 1e-05,
        "rope_scaling": None,
        "rope_theta": 10000.0,
        "sliding_window": WINDOW,
        "tie_word_embeddings": False,
        "transformers_version": "4.40.2",
        "use_cache": True,
        "vocab_size": VOCABULARY,
    } | row.config


def _id(row: Row, token: str) -> int:
    return FIRST_CONTROL_ID + row.control_tokens.index(token)


def _write_tokenizer(folder: Path, row: Row) -> None:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(BPE(vocab={one: index for index, one in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(
        [
            AddedToken(token, special=True, normalized=False, rstrip=row.strips)
            for token in row.control_tokens
        ]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    _write_json(
        folder / "tokenizer_config.json",
        {
            "clean_up_tokenization_spaces": False,
            "eos_token": "<|endoftext|>",
            "pad_token": "<|endoftext|>",
            "model_max_length": LONGEST,
            "tokenizer_class": "PreTrainedTokenizerFast",
        },
    )
    (folder / "chat_template.jinja").write_text(row.template, encoding="utf-8", newline="\n")


def _draw_weights(config: dict[str, Any], seed: int) -> dict[str, torch.Tensor]:
    """Draw weights that bf16, fp16 and fp32 hold exactly, and that never speak control tokens."""
    model_fields = {key: value for key, value in config.items() if key != "auto_map"}
    if config["model_type"] == "phimoe":
        mixture = PhimoeForCausalLM(PhimoeConfig(**model_fields))
        state = revert_weight_conversion(mixture, mixture.state_dict())
    else:
        state = Phi3ForCausalLM(Phi3Config(**model_fields)).state_dict()
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for name, tensor in state.items():
        if name == "lm_head.weight" and config["tie_word_embeddings"]:
            continue
        drawn = torch.randn(tensor.shape, generator=generator)
        drawn = 1 + 0.1 * drawn if name.endswith("norm.weight") else 0.2 * drawn
        if name == "lm_head.weight" or (
            name == "model.embed_tokens.weight" and config["tie_word_embeddings"]
        ):
            drawn[FIRST_CONTROL_ID:] *= 2**-7
        if name == "lm_head.bias":
            drawn[FIRST_CONTROL_ID:] = -4
        weights[name] = drawn.to(torch.bfloat16).to(torch.float16).to(torch.bfloat16)
    return weights


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8", newline="\n")
