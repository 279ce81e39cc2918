"""One past, several futures: fork a conversation and let each branch go its own way.

python examples/branches.py MODEL
"""

import sys

import phi3ov


def main(folder: str) -> None:
    """Ask a question once, and draw two different follow-ups from it."""
    with phi3ov.load_model(folder) as model:
        chat = phi3ov.Phi3Chat(model)
        print(chat.generate("What is the capital of France?", max_new_tokens=32))
        for seed in (1, 2):
            branch = chat.fork()
            reply = branch.generate("Describe it.", temperature=0.8, seed=seed, max_new_tokens=32)
            print(f"[seed {reply.seed}, {reply.usage.cached_tokens} tokens cached] {reply}")
        print(f"[{len(chat.messages)} messages in the trunk]")


if __name__ == "__main__":
    main(sys.argv[1])
