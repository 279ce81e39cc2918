"""lm-eval: a task of multiple choice by log-likelihood and one by generation, from local files."""

import json
import math
import os
import urllib.request
from pathlib import Path

os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(Path("hf"))}

import lm_eval
from lm_eval.tasks import TaskManager

URL = os.environ["SCORING_SERVER_URL"]
QUESTIONS = [
    {"question": "The capital of France is", "choices": ["Paris", "Rome", "green"], "gold": 0},
    {"question": "The cat sat on the", "choices": ["mat", "seven", "were"], "gold": 0},
    {"question": "Two and two are", "choices": ["blue", "four", "dog"], "gold": 1},
    {"question": "Once upon a", "choices": ["time", "of", "run"], "gold": 0},
]
LIKELIHOOD = """
task: local_choice
dataset_path: json
dataset_kwargs: {data_files: {test: QUESTIONS}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_choice: "{{choices}}"
doc_to_target: "{{gold}}"
metric_list: [{metric: acc}, {metric: acc_norm}]
"""
GENERATION = """
task: local_generation
dataset_path: json
dataset_kwargs: {data_files: {test: QUESTIONS}}
test_split: test
output_type: generate_until
doc_to_text: "{{question}}"
doc_to_target: "{{choices[gold]}}"
generation_kwargs: {until: ["\\n"], max_gen_toks: 8, do_sample: false}
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]
"""


def post(path: str, body: dict) -> dict:
    request = urllib.request.Request(
        URL + path, json.dumps(body).encode(), {"content-type": "application/json"}
    )
    with urllib.request.urlopen(request) as answer:
        return json.load(answer)


def log_likelihood(context: str, continuation: str) -> float:
    """Return it as asked of the server directly."""
    ids = post("/tokenize", {"prompt": context + continuation})["tokens"]
    known = len(post("/tokenize", {"prompt": context})["tokens"])
    body = {"prompt": ids, "echo": True, "logprobs": 1, "max_tokens": 0}
    (choice,) = post("/v1/completions", body)["choices"]
    return math.fsum(choice["logprobs"]["token_logprobs"][known:])


questions = Path("questions.jsonl").resolve()
questions.write_text("".join(json.dumps(row) + "\n" for row in QUESTIONS))
tasks = Path("tasks")
tasks.mkdir()
for name, text in (("choice", LIKELIHOOD), ("generation", GENERATION)):
    (tasks / f"{name}.yaml").write_text(text.replace("QUESTIONS", str(questions)))
result = lm_eval.simple_evaluate(
    model="local-completions",
    model_args={"model": "phi3", "base_url": f"{URL}/v1/completions", "num_concurrent": 2},
    tasks=["local_choice", "local_generation"],
    task_manager=TaskManager(include_path=str(tasks), include_defaults=False),
    bootstrap_iters=0,
)
accuracy = result["results"]["local_choice"]["acc,none"]
assert 0 <= accuracy <= 1
assert "exact_match,none" in result["results"]["local_generation"]
likeliest = 0
for sample in result["samples"]["local_choice"]:
    scores = [float(response[0][0]) for response in sample["resps"]]
    asked = sample["doc"]
    own = [log_likelihood(asked["question"], f" {choice}") for choice in asked["choices"]]
    assert all(math.isclose(a, b, abs_tol=0.02) for a, b in zip(scores, own, strict=True)), (
        scores,
        own,
    )
    likeliest += own.index(max(own)) == asked["gold"]
assert accuracy == likeliest / len(QUESTIONS)
texts = [sample["resps"][0][0] for sample in result["samples"]["local_generation"]]
assert len(texts) == len(QUESTIONS)
assert all("\n" not in text for text in texts)
print(f"lm-eval {lm_eval.__version__}: ok, accuracy {accuracy}")
