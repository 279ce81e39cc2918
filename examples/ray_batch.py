"""A dataset of prompts answered by a pool of Ray actors, each with a loaded model.

python examples/ray_batch.py MODEL [ADDRESS]

Without an address, Ray starts on this machine alone. On a cluster, MODEL is a path that every node
sees, or a hub id.
"""

import sys

import ray

from phi3ov.integrations.ray import answer_dataset


def main(model: str, address: str | None = None) -> None:
    """Answer three prompts, of which one is empty, with one model."""
    # One CPU more than the actors have: Ray Data's own tasks need one as well.
    if address is None:
        ray.init(num_cpus=2, object_store_memory=200 * 2**20, include_dashboard=False)
    else:
        ray.init(address=address)
    prompts = ["What is the capital of France?", "", "Say hello."]
    questions = ray.data.from_items([{"prompt": prompt} for prompt in prompts])
    answers = answer_dataset(questions, model, actors=1, cores=1, max_new_tokens=32)
    for row in answers.iter_rows():
        print(repr(row["prompt"]), "->", row["answer"] or row["error"]["message"])
    ray.shutdown()


if __name__ == "__main__":
    main(*sys.argv[1:])
