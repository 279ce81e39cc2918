"""A conversation that goes on where it was left: run it again and again.

python examples/lasting_chat.py MODEL [FILE]
"""

import sys
from pathlib import Path

import phi3ov


def main(folder: str, file: str = "chat.json") -> None:
    """Restore the conversation if there is one, take a turn, and save it."""
    with phi3ov.load_model(folder) as model:
        if Path(file).exists():
            try:
                chat = phi3ov.Phi3Chat.restore(model, file)
            except phi3ov.RestoreError as error:
                sys.exit(str(error))
        else:
            chat = phi3ov.Phi3Chat(model, system="You are a helpful AI assistant.")
        question = "And of Germany?" if chat.messages[1:] else "What is the capital of France?"
        print(chat.generate(question, max_new_tokens=64))
        chat.save(file)
        print(f"[{len(chat.messages)} messages in {file}]")


if __name__ == "__main__":
    main(*sys.argv[1:])
