"""The shortest chat: two turns of one conversation.

python examples/minimal_chat.py MODEL
"""

import sys

import phi3ov


def main(folder: str) -> None:
    """Ask two questions, the second of which needs the first."""
    with phi3ov.load_model(folder, device=("GPU.0", "CPU")) as model:
        chat = phi3ov.Phi3Chat(model, system="You are a helpful AI assistant.")
        print(chat.generate("What is the capital of France?", max_new_tokens=64))
        print(chat.generate("And of Germany?", max_new_tokens=64))


if __name__ == "__main__":
    main(sys.argv[1])
