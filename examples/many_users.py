"""Eight conversations at once on one model: continuous batching in a process of its own.

python examples/many_users.py MODEL
"""

import sys
from concurrent.futures import ThreadPoolExecutor

import phi3ov

CITIES = ("France", "Germany", "Italy", "Spain", "Austria", "Japan", "Egypt", "Peru")


def main(folder: str) -> None:
    """Ask one question in each of eight chats, all at the same time."""
    with phi3ov.load_model(folder, engine="worker") as model, ThreadPoolExecutor(8) as threads:

        def ask(country: str) -> phi3ov.Reply:
            chat = phi3ov.Phi3Chat(model)
            return chat.generate(f"What is the capital of {country}?", max_new_tokens=24)

        for country, reply in zip(CITIES, threads.map(ask, CITIES), strict=True):
            print(f"{country:8} {reply.timings.tokens_per_second:6.1f} tokens/s  {reply}")


if __name__ == "__main__":
    main(sys.argv[1])
