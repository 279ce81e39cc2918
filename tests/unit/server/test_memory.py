"""The server's memory does not grow with the number of requests that it has answered."""

from __future__ import annotations

import gc
import threading
from typing import Any

import httpx
import psutil
import pytest

from .serving import always, serving

REQUESTS = 2000
CLIENTS = 4
MOST_GROWTH_BYTES = 6 * 1024**2
"""One answer that was kept, with its prompt, takes 10 kB: all of them would take 18 MB."""


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_memory_is_flat_over_two_thousand_requests() -> None:
    """After a tenth of them it is what it stays: streamed or whole, answered, refused or left."""
    text = "one two three " * 20
    with serving(always(text)) as served:
        memory = psutil.Process()

        def visit(number: int, requests: int) -> None:
            with httpx.Client(base_url=served.url, timeout=60) as client:
                for count in range(number, number + requests):
                    served.engine.requests.clear()  # the fake keeps what it was asked
                    messages: list[Any] = [{"role": "user", "content": f"{text} {count}"}]
                    fields = {"messages": messages, "stream": count % 2 == 0, "n": 1}
                    if count % 10 == 3:
                        fields["n"] = "two"
                    if count % 10 == 4:
                        with client.stream("POST", "/v1/chat/completions", json=fields):
                            continue  # leaves early
                    answer = client.post("/v1/chat/completions", json=fields)
                    assert answer.status_code == (400 if count % 10 == 3 else 200)

        def visit_together(requests: int) -> int:
            threads = [
                threading.Thread(target=visit, args=(number * 10**6, requests // CLIENTS))
                for number in range(CLIENTS)
            ]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            gc.collect()
            return int(memory.memory_info().rss)

        after_a_tenth = visit_together(REQUESTS // 10)
        after_all = visit_together(REQUESTS)
        assert after_all - after_a_tenth < MOST_GROWTH_BYTES
        print(f"memory grew by {(after_all - after_a_tenth) / 1e6:.1f} MB")
