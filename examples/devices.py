"""The machine's devices, the one that runs the model, and why not the others.

python examples/devices.py MODEL
"""

import sys

import phi3ov


def main(folder: str) -> None:
    """List the devices, then ask for an NPU or a GPU before the CPU."""
    for device in phi3ov.describe_devices():
        memory = "" if device.memory_bytes is None else f"{device.memory_bytes / 1e9:.1f} GB"
        print(f"{device.name:8} {memory:>9}  {', '.join(device.precisions)}  {device.full_name}")
    with phi3ov.load_model(folder, device=("NPU", "GPU", "CPU")) as model:
        for refusal in model.device.refused:
            print(f"not {refusal.device}: {refusal.reason}")
        print(f"runs on {model.device.selected}: {model.device.reason}")


if __name__ == "__main__":
    main(sys.argv[1])
