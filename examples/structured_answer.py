"""An answer that is a dataclass, a choice, and a pattern.

python examples/structured_answer.py MODEL
"""

import dataclasses
import sys
from typing import Literal

import phi3ov


@dataclasses.dataclass
class Animal:
    name: str
    legs: int
    kind: Literal["bird", "fish", "insect", "mammal"]


def main(folder: str) -> None:
    """Ask for three shapes; whatever the model is like, the answers have them."""
    with phi3ov.load_model(folder) as model:
        chat = phi3ov.Phi3Chat(model)
        reply = chat.generate(
            "Describe a cat as JSON with name, legs and kind.",
            json_schema=Animal,
            max_new_tokens=200,
        )
        print(reply.parsed if reply.finish_reason == "stop" else f"cut off: {reply}")
        print(chat.generate("Is it a pet?", choices=("yes", "no"), max_new_tokens=8))
        print(chat.generate("In which year?", regex=r"(19|20)\d\d", max_new_tokens=16))


if __name__ == "__main__":
    main(sys.argv[1])
