"""examples/ray_serve.py on a Ray of its own: sessions find their prefix, answers stream."""

import json
import os
import sys
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import ray
from ray import serve

sys.path.insert(0, os.environ["EXAMPLES"])
import ray_serve

PORT = int(os.environ["SERVE_PORT"])
SESSIONS = 6


def post(path, body, **headers):
    request = urllib.request.Request(
        f"http://127.0.0.1:{PORT}{path}",
        json.dumps(body).encode(),
        {"content-type": "application/json", **headers},
    )
    with urllib.request.urlopen(request, timeout=120) as answer:
        return answer.read().decode()


def cold_answers(question, *, session=None):
    """Ask the same twelve times; return how often nothing of it was cached."""
    headers = {} if session is None else {"x-session-id": session}
    body = {"model": "", "messages": [{"role": "user", "content": f"{question} {'word ' * 80}"}]}
    body["max_completion_tokens"] = 2
    answers = [json.loads(post("/v1/chat/completions", body, **headers)) for _ in range(12)]
    cached = [answer["usage"]["prompt_tokens_details"]["cached_tokens"] for answer in answers]
    return sum(tokens < 40 for tokens in cached)


def converse(session):
    """Three turns; return the cached tokens of each, and those that were there to be cached."""
    messages, cached, had = [], [], 0
    for turn in range(3):
        messages.append({"role": "user", "content": f"Turn {turn} of {session}: tell me a story."})
        answer = json.loads(
            post(
                "/v1/chat/completions",
                {"model": "", "messages": messages, "max_completion_tokens": 24},
                **{"x-session-id": f"session {session}"},
            )
        )
        usage = answer["usage"]
        cached.append((usage["prompt_tokens_details"]["cached_tokens"], had))
        had = usage["total_tokens"]
        messages.append(answer["choices"][0]["message"])
    return cached


def main():
    ray.init(
        num_cpus=4,
        include_dashboard=False,
        object_store_memory=100 * 2**20,
        _node_ip_address="127.0.0.1",
        log_to_driver=False,
    )
    serve.start(http_options={"host": "127.0.0.1", "port": PORT})
    arguments = {"model": os.environ["MODEL"], "replicas": "2", "cores": "1"}
    serve.run(ray_serve.build(arguments))
    with ThreadPoolExecutor(SESSIONS) as threads:
        turns = list(threads.map(converse, range(SESSIONS)))
    print(turns)
    for session in turns:
        for cached, had in session[1:]:
            # the last block of 32 tokens, and the answer's last token, may be left out
            assert cached >= had - 40, turns
    # One replica reads the prompt of a session; without a session, each of the two does.
    assert cold_answers("first", session="a") == 1
    assert cold_answers("second") == 2
    stream = post(
        "/v1/chat/completions",
        {
            "model": "",
            "messages": [{"role": "user", "content": "Hi"}],
            "stream": True,
            "max_completion_tokens": 16,
        },
    )
    assert stream.count("data: ") > 3
    assert stream.rstrip().endswith("data: [DONE]")
    serve.shutdown()
    ray.shutdown()
    print("done")


if __name__ == "__main__":
    main()
