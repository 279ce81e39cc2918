"""The same question with and without a LoRA adapter, on the same int4 weights.

python examples/lora.py MODEL ADAPTER

ADAPTER is a folder that PEFT wrote: adapter_config.json and adapter_model.safetensors.
"""

import sys

import phi3ov


def main(folder: str, adapter: str) -> None:
    """Load the model twice: an adapter belongs to a loaded model."""
    for name, used in (("without", None), ("with", phi3ov.LoraAdapter(path=adapter, weight=1.0))):
        with phi3ov.load_model(folder, device="CPU", adapter=used) as model:
            reply = phi3ov.Phi3Chat(model).generate(
                "What is the capital of France?", max_new_tokens=32
            )
            print(f"{name}: {reply}")


if __name__ == "__main__":
    main(*sys.argv[1:])
