"""Sixteen clients on the FastAPI example: is its event loop ever held up?

    make install
    .venv/bin/python benchmarks/fastapi_example.py  # builds the reference if need be
    .venv/bin/python benchmarks/fastapi_example.py --artifact FOLDER --clients 16

This process serves ``examples/fastapi_server.py`` with uvicorn; the clients are another process,
so that their work does not count. In the server's event loop a task sleeps 5 ms at a time and
notes by how much it wakes up late: that is how long any other request would have been held up.
The same is measured before any client comes, which is what the machine itself does.

Prints a Markdown table; the last line is the same as JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx
import uvicorn
from reference_artifact import make_reference_artifact

EXAMPLE = Path(__file__).parents[1] / "examples" / "fastapi_server.py"
NAP_SECONDS = 0.005


def main() -> None:
    """Serve, let the clients come, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--artifact", type=Path, default=Path("build/reference-int4"))
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--requests", type=int, default=4, help="of each client")
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--ask", help=argparse.SUPPRESS)  # the address: be the clients
    options = parser.parse_args()
    if options.ask is not None:
        asyncio.run(ask_all(options.ask, options))
        return
    make_reference_artifact(options.artifact)
    os.environ["PHI3OV_MODEL"] = str(options.artifact)
    asyncio.run(serve(options))


async def serve(options: argparse.Namespace) -> None:
    """Run the server and measure its loop, without clients and with them."""
    spec = importlib.util.spec_from_file_location("fastapi_server", EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules["fastapi_server"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    server = uvicorn.Server(uvicorn.Config(module.app, port=0, log_level="error"))
    serving = asyncio.create_task(server.serve())
    while not server.started:
        await asyncio.sleep(0.05)
    port = server.servers[0].sockets[0].getsockname()[1]
    url = f"http://127.0.0.1:{port}/chat"
    idle = await measure(asyncio.sleep(3))
    await run_clients(url, options, requests=1)  # the first answers repack weights
    said: list[dict[str, Any]] = []

    async def run() -> None:
        said.append(await run_clients(url, options, requests=options.requests))

    busy = await measure(run())
    server.should_exit = True
    await serving
    report(idle, busy, said[0])


async def run_clients(url: str, options: argparse.Namespace, *, requests: int) -> dict[str, Any]:
    """Start the clients' process and return what it says."""
    command = [sys.executable, __file__, "--ask", url, "--clients", str(options.clients)]
    command += ["--requests", str(requests), "--new-tokens", str(options.new_tokens)]
    clients = await asyncio.create_subprocess_exec(*command, stdout=subprocess.PIPE)
    said, _ = await clients.communicate()
    result: dict[str, Any] = json.loads(said)
    return result


async def measure(work: Any) -> list[float]:
    """Return by how many milliseconds each nap was late while ``work`` ran."""
    late: list[float] = []
    task = asyncio.ensure_future(work)
    while not task.done():
        before = time.perf_counter()
        await asyncio.sleep(NAP_SECONDS)
        late.append(1000 * (time.perf_counter() - before - NAP_SECONDS))
    await task
    return late


async def ask_all(url: str, options: argparse.Namespace) -> None:
    """Be the clients: each sends its requests one after the other; print what they saw."""
    first_seconds: list[float] = []
    characters = 0

    async def item(client: httpx.AsyncClient, number: int) -> None:
        nonlocal characters
        for turn in range(options.requests):
            question = f"Story {number} of {turn}: write about a lighthouse."
            body = {
                "messages": [{"role": "user", "content": question}],
                "max_new_tokens": options.new_tokens,
            }
            started = time.perf_counter()
            async with client.stream("POST", url, json=body) as response:
                response.raise_for_status()
                texts = response.aiter_text()
                characters += len(await anext(texts))
                first_seconds.append(time.perf_counter() - started)
                async for text in texts:
                    characters += len(text)

    started = time.perf_counter()
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(timeout=300, limits=limits) as client:
        await asyncio.gather(*(item(client, number) for number in range(options.clients)))
    seconds = time.perf_counter() - started
    result = {
        "answers": len(first_seconds),
        "seconds": round(seconds, 2),
        "characters_per_second": round(characters / seconds),
        "first_text_seconds_median": round(statistics.median(first_seconds), 3),
        "first_text_seconds_worst": round(max(first_seconds), 3),
    }
    print(json.dumps(result))


def report(idle: list[float], busy: list[float], said: dict[str, Any]) -> None:
    """Print both distributions and what the clients saw."""
    result: dict[str, Any] = {"clients": said}
    print("| event loop | naps | late by, median, ms | 99 % | longest |")
    print("|---|---|---|---|---|")
    for name, late in (("without clients", idle), ("with clients", busy)):
        p99 = statistics.quantiles(late, n=100)[-1]
        row = [len(late), *(round(item, 1) for item in (statistics.median(late), p99, max(late)))]
        result[name] = dict(zip(("naps", "median_ms", "p99_ms", "longest_ms"), row, strict=True))
        print(f"| {name} | " + " | ".join(map(str, row)) + " |")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
