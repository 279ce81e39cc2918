"""Several answers to one question, how likely the model found each, and a choice.

python examples/candidates.py MODEL
"""

import sys

import phi3ov


def main(folder: str) -> None:
    """Draw three answers together, take the likeliest, and go on from it."""
    with phi3ov.load_model(folder, engine="worker") as model:
        chat = phi3ov.Phi3Chat(model)
        reply = chat.generate(
            "A name for a cat?",
            temperature=0.9,
            seed=1,
            candidates=3,
            logprobs=True,
            max_new_tokens=24,
        )
        for candidate in reply.candidates:
            print(f"[seed {candidate.seed}, {mean_logprob(candidate):.2f} per token] {candidate}")
        chat.choose(max(reply.candidates, key=mean_logprob))
        print(chat.generate("Why that one?", max_new_tokens=32))


def mean_logprob(reply: phi3ov.Reply) -> float:
    """Return the mean natural logarithm of the tokens' probabilities."""
    logprobs = reply.logprobs or (float("-inf"),)
    return sum(logprobs) / len(logprobs)


if __name__ == "__main__":
    main(sys.argv[1])
