"""Exports by optimum-intel with the recipe that it keeps for a model: reads one JSON from stdin.

The JSON has ``checkpoint`` and ``target`` (folders), ``model_id`` (whose recipe), and ``texts``
(calibration text for a recipe that names a data set of the hub). Prints the recipe as JSON.
"""

from __future__ import annotations

import json
import os
import sys


def main() -> None:
    """Export, then convert the tokenizer as ``optimum-cli`` does.

    Raises:
        ValueError: optimum-intel has no recipe for this model.
    """
    reports = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print goes to stderr
    asked = json.load(sys.stdin)
    from optimum.exporters.openvino.convert import export_tokenizer
    from optimum.intel import OVModelForCausalLM, OVWeightQuantizationConfig
    from optimum.intel.openvino.configuration import get_default_quantization_config
    from transformers import AutoTokenizer

    recipe = get_default_quantization_config(asked["model_id"], weight_format="int4")
    if recipe is None:
        raise ValueError(f"optimum-intel keeps no int4 recipe for {asked['model_id']!r}.")
    given = dict(recipe)
    if "dataset" in given:
        given |= {"dataset": asked["texts"], "tokenizer": asked["checkpoint"]}
    model = OVModelForCausalLM.from_pretrained(
        asked["checkpoint"], export=True, quantization_config=OVWeightQuantizationConfig(**given)
    )
    model.save_pretrained(asked["target"])
    tokenizer = AutoTokenizer.from_pretrained(asked["checkpoint"])
    tokenizer.save_pretrained(asked["target"])
    export_tokenizer(tokenizer, asked["target"])
    shown = {name: getattr(value, "value", value) for name, value in recipe.items()}
    reports.write(json.dumps(shown) + "\n")
    reports.flush()


if __name__ == "__main__":
    main()
