"""Independent conversations answered as a batch; one that is wrong does not stop the others.

python examples/batch.py MODEL
"""

import sys

import phi3ov


def main(folder: str) -> None:
    """Answer three conversations, one of which is malformed."""
    conversations = [
        [phi3ov.Message("user", "What is the capital of France?")],
        [],
        [phi3ov.Message("system", "Be brief."), phi3ov.Message("user", "Say hello.")],
    ]
    with phi3ov.load_model(folder) as model:
        for result in model.generate_batch(conversations, max_new_tokens=32):
            print(result.index, result.error or result.reply)


if __name__ == "__main__":
    main(sys.argv[1])
