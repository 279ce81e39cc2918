"""Several tokens per pass over the weights, where the answer repeats the prompt.

python examples/speculation.py MODEL
"""

import sys

import phi3ov

TEXT = (
    "The harbour office opens at eight. Ships longer than forty metres need a pilot, who comes "
    "aboard two miles before the lighthouse. The fee is paid at the office, in cash or by card. "
)
QUESTION = f"{TEXT}\nWhen does the harbour office open?"


def main(folder: str) -> None:
    """Answer the same question without and with prompt lookup."""
    answers = []
    for name, speculation in (("none", None), ("prompt lookup", phi3ov.PromptLookup())):
        with phi3ov.load_model(folder, device="CPU", speculation=speculation) as model:
            reply = phi3ov.Phi3Chat(model).generate(QUESTION, max_new_tokens=64)
        answers.append(reply.text)
        print(
            f"{name:14} {reply.usage.tokens_per_pass:.2f} tokens per pass, "
            f"{reply.timings.tokens_per_second:.0f} tokens/s"
        )
    print(answers[-1])


if __name__ == "__main__":
    main(sys.argv[1])
