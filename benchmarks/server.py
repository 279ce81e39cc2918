r"""The server beside the model it serves: throughput, time to the first token, event loop, memory.

    make install
    .venv/bin/python benchmarks/server.py                    # builds the reference if need be
    .venv/bin/python benchmarks/server.py --artifact FOLDER --clients 16 \
        --llama build/bench/models/reference/q4_0.gguf --checkpoint build/reference

This process serves `phi3ov.server.create_app` with uvicorn; the clients are another process, so
that their work does not count as the server's. phi3ov's and raw genai's answers do not end before
``--new-tokens``: in bf16 a close choice depends on the batch, and answers of other lengths leave
other gaps in it. In turn, several rounds of

- `iter_batch` of the same model on the same requests, without HTTP, with as many at once,
- openvino-genai's ContinuousBatchingPipeline itself in a process of its own,
- whole answers through HTTP, and streamed ones,
- the same requests to llama.cpp's server (llama-cpp-python's), if ``--llama`` names a GGUF that
  ``make bench`` has made; the first run installs the server in ``build/bench``.

A client writes a request to a socket and looks for the end of the answer: on a machine where
clients, server and engine share the processor, a client library would be measured as well.

In the server's event loop a task sleeps 5 ms at a time and notes by how much it wakes up late: that
is how long any other request would have been held up. It does so without clients, with them, and
while prompts of the whole context arrive. Last come many short requests, for the memory.

Prints Markdown tables; the last line is the same as JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import statistics
import subprocess
import sys
import time
import urllib.parse
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import Any

import httpx
import psutil
import uvicorn
from phi3ov_bench.llama_server import serving, with_tokenizer
from reference_artifact import make_reference_artifact

import phi3ov
from phi3ov.server import ServerSettings, create_app
from phi3ov.server.running import SWITCH_SECONDS

NAP_SECONDS = 0.005
PATH = "/v1/chat/completions"


def main() -> None:
    """Serve, let the clients come, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--artifact", type=Path, default=Path("build/reference-int4"))
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--requests", type=int, default=4, help="of each client and round")
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--short-requests", type=int, default=2000, help="for the memory")
    parser.add_argument("--llama", type=Path, metavar="GGUF", help="for llama.cpp's server")
    parser.add_argument("--checkpoint", type=Path, default=Path("build/reference"))
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of llama.cpp")
    parser.add_argument("--ask", help=argparse.SUPPRESS)  # the address: be the clients
    parser.add_argument("--raw", action="store_true", help=argparse.SUPPRESS)  # be raw genai
    parser.add_argument("--stream", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.ask is not None:
        asyncio.run(ask_all(options.ask, options))
    elif options.raw:
        run_raw(options)
    else:
        sys.setswitchinterval(SWITCH_SECONDS)  # as phi3ov.server.serve does
        make_reference_artifact(options.artifact)
        asyncio.run(measure_all(options))


def questions(options: argparse.Namespace) -> list[str]:
    """Return what is asked in a round."""
    return [
        f"Story {number}: write about a lighthouse."
        for number in range(options.clients * options.requests)
    ]


async def measure_all(options: argparse.Namespace) -> None:
    """Run every measurement and print what came out."""
    with ExitStack() as stack:
        other = stack.enter_context(llama_server(options)) if options.llama else None
        await measure_beside(other, options)


def llama_server(options: argparse.Namespace) -> AbstractContextManager[str]:
    """Run llama.cpp's server on a copy of the GGUF that has a tokenizer."""
    target = options.llama.with_name(f"{options.llama.stem}-text.gguf")
    model = with_tokenizer(options.llama, options.checkpoint, target)
    context = json.loads((options.checkpoint / "config.json").read_text(encoding="utf-8"))
    return serving(
        model,
        threads=options.threads,
        context_tokens=context["max_position_embeddings"],
        log=target.with_suffix(".log"),
    )


async def measure_beside(other: str | None, options: argparse.Namespace) -> None:
    """Measure, with another server's address or none."""
    limits = phi3ov.RequestLimits(max_running=options.clients, max_waiting=options.clients)
    with phi3ov.load_model(options.artifact, engine="worker", device="CPU", limits=limits) as model:
        model.tokenizer.stop_tokens = {}  # answers of full length: each way computes as many tokens
        app = create_app(model, settings=ServerSettings(model_name="phi3"))
        server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error"))
        serving = asyncio.create_task(server.serve())
        while not server.started:
            await asyncio.sleep(0.05)
        url = f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
        rounds: dict[str, list[dict[str, float]]] = {}
        idle = await watch_loop(asyncio.sleep(2))
        busy: list[float] = []
        for _ in range(options.rounds):
            found = await asyncio.to_thread(run_batch, model, options)
            rounds.setdefault("iter_batch", []).append(found)
            for name, flags in (("whole", []), ("streamed", ["--stream"])):
                said: list[dict[str, float]] = []

                async def run(flags: list[str] = flags, said: list[Any] = said) -> None:
                    said.append(await run_clients(url, options, flags))

                late = await watch_loop(run())
                busy += late if name == "streamed" else []
                rounds.setdefault(name, []).append(said[0])
            rounds.setdefault("raw genai", []).append(await run_process(options, ["--raw"]))
            if other is not None:
                for name, flags in (
                    ("llama.cpp, whole", []),
                    ("llama.cpp, streamed", ["--stream"]),
                ):
                    found = await run_clients(other, options, flags)
                    rounds.setdefault(name, []).append(found)
        large = await watch_loop(send_whole_contexts(url, model))
        memory = await measure_memory(url, options)
        server.should_exit = True
        await serving
    report(rounds, {"no clients": idle, "streaming": busy, "whole contexts": large}, memory)


def run_batch(model: phi3ov.Phi3Model, options: argparse.Namespace) -> dict[str, float]:
    """Answer the round's requests without HTTP, as many at once as there are clients."""
    asked = [[phi3ov.Message("user", question)] for question in questions(options)]
    started = time.perf_counter()
    tokens = sum(
        result.reply.usage.completion_tokens
        for result in model.iter_batch(asked, max_new_tokens=options.new_tokens)
        if result.reply is not None
    )
    return {"tokens_per_second": tokens / (time.perf_counter() - started)}


def run_raw(options: argparse.Namespace) -> None:
    """Answer the round's requests with openvino-genai alone; print the rate."""
    import openvino_genai
    from openvino import Tensor

    from phi3ov.prompt.chat_tokenizer import ChatTokenizer

    artifact = phi3ov.Artifact.open(options.artifact)
    tokenizer = ChatTokenizer.from_folder(artifact.path, artifact.chat_format)
    scheduler = openvino_genai.SchedulerConfig()
    pipeline = openvino_genai.ContinuousBatchingPipeline(str(artifact.path), scheduler, "CPU")
    config = openvino_genai.GenerationConfig(max_new_tokens=options.new_tokens)
    config.ignore_eos = True
    prompts = [
        Tensor([tokenizer.encode_prompt([phi3ov.Message("user", question)])])
        for question in questions(options)
    ]
    pipeline.generate(prompts[:1], [config])
    started = time.perf_counter()
    tokens = 0
    # As many at once as there are clients. openvino-genai computes all prompts of a call at once:
    # its max_num_seqs has no effect while dynamic_split_fuse is on, which is the default.
    for first in range(0, len(prompts), options.clients):
        group = prompts[first : first + options.clients]
        results = pipeline.generate(group, [config] * len(group))
        tokens += sum(len(result.m_generation_ids[0]) for result in results)
    print(json.dumps({"tokens_per_second": tokens / (time.perf_counter() - started)}))


async def run_clients(url: str, options: argparse.Namespace, flags: list[str]) -> dict[str, float]:
    """Let the clients' process ask; return what it says."""
    return await run_process(options, ["--ask", url, *flags])


async def run_process(options: argparse.Namespace, flags: list[str]) -> dict[str, float]:
    """Run this file again in another part; return the JSON that it prints last."""
    command = [sys.executable, __file__, "--artifact", str(options.artifact), *flags]
    command += ["--clients", str(options.clients), "--requests", str(options.requests)]
    command += ["--new-tokens", str(options.new_tokens)]
    process = await asyncio.create_subprocess_exec(*command, stdout=subprocess.PIPE)
    said, _ = await process.communicate()
    result: dict[str, float] = json.loads(said.splitlines()[-1])
    return result


async def ask_all(url: str, options: argparse.Namespace) -> None:
    """Be the clients: each sends its requests one after the other; print what they saw."""
    first_seconds: list[float] = []
    tokens = 0
    waiting = questions(options)[::-1]

    address = urllib.parse.urlsplit(url)

    async def visit() -> None:
        nonlocal tokens
        connection = await Connection.open(str(address.hostname), int(address.port or 80))
        while waiting:
            body: dict[str, Any] = {
                "messages": [{"role": "user", "content": waiting.pop()}],
                "max_tokens": options.new_tokens,
                "temperature": 0,
            }
            if options.stream:
                body |= {"stream": True, "stream_options": {"include_usage": True}}
            answer, first = await connection.ask(body)
            counted = re.search(rb'"completion_tokens": ?(\d+)', answer)
            # llama.cpp's server sends no counts in a stream, but an event for each token
            tokens += int(counted[1]) if counted else len(CONTENT.findall(answer))
            if options.stream:
                first_seconds.append(first)
        connection.writer.close()

    started = time.perf_counter()
    await asyncio.gather(*(visit() for _ in range(options.clients)))
    result = {"tokens_per_second": tokens / (time.perf_counter() - started)}
    if first_seconds:
        result["first_token_seconds"] = statistics.median(first_seconds)
    print(json.dumps(result))


CONTENT = re.compile(rb'"content": ?"[^"]')
"""A piece of text in an answer."""


class Connection:
    """A connection to a server that stays open, and knows as little of HTTP as it can."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Take an open connection."""
        self.reader, self.writer = reader, writer

    @classmethod
    async def open(cls, host: str, port: int) -> Connection:
        """Connect."""
        return cls(*await asyncio.open_connection(host, port))

    async def ask(self, body: dict[str, Any]) -> tuple[bytes, float]:
        """Return the answer, and after how many seconds its first text came."""
        content = json.dumps(body).encode()
        started = time.perf_counter()
        self.writer.write(
            f"POST {PATH} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
            f"content-length: {len(content)}\r\n\r\n".encode()
            + content
        )
        head = (await self.reader.readuntil(b"\r\n\r\n")).lower()
        if b" 200 " not in head.partition(b"\r\n")[0]:
            raise RuntimeError(head.decode())
        if length := re.search(rb"content-length: *(\d+)", head):
            answer = await self.reader.readexactly(int(length[1]))
            return answer, time.perf_counter() - started
        answer, first = b"", 0.0
        while not answer.endswith(b"\r\n0\r\n\r\n"):
            piece = await self.reader.read(2**16)
            if not piece:
                raise RuntimeError("The server closed the connection.")
            answer += piece
            if not first and CONTENT.search(piece):
                first = time.perf_counter() - started
        return answer, first or time.perf_counter() - started


async def watch_loop(work: Any) -> list[float]:
    """Return by how many milliseconds each nap was late while ``work`` ran."""
    late: list[float] = []
    task = asyncio.ensure_future(work)
    while not task.done():
        before = time.perf_counter()
        await asyncio.sleep(NAP_SECONDS)
        late.append(1000 * (time.perf_counter() - before - NAP_SECONDS))
    await task
    return late


async def send_whole_contexts(url: str, model: phi3ov.Phi3Model) -> None:
    """Let another process send prompts that fill the context, and give each a few seconds.

    What could hold up the loop is their arrival: parsing, encoding, sending them to the engine.
    Reading them is the engine's work, in another process, and is cut off.
    """
    words = (model.context.tokens - 64) * 1000 // len(model.tokenizer.encode_text("word " * 1000))
    arguments = [url, str(words), PATH]
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", LARGE, *arguments)
    if await process.wait():
        raise RuntimeError("A prompt of the whole context was refused.")


LARGE = """
import json, sys, urllib.error, urllib.request
url, words, path = sys.argv[1:]
for number in range(4):
    messages = [{"role": "user", "content": f"{number} " + "word " * int(words)}]
    body = json.dumps({"messages": messages, "max_tokens": 4, "timeout_seconds": 4}).encode()
    request = urllib.request.Request(url + path, body, {"content-type": "application/json"})
    try:
        urllib.request.urlopen(request).read()
    except urllib.error.HTTPError as error:
        if error.code != 503:  # its time was over before the first token
            sys.exit(error.read().decode())
"""


async def measure_memory(url: str, options: argparse.Namespace) -> dict[str, float]:
    """Return this process's memory after a tenth of many short requests, and after all of them."""
    own = psutil.Process(os.getpid())
    body = {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 2}
    found: dict[str, float] = {}
    done = 0

    async def visit(client: httpx.AsyncClient) -> None:
        nonlocal done
        while done < options.short_requests:
            done += 1
            if done == options.short_requests // 10:
                found["after_a_tenth_mb"] = own.memory_info().rss / 1e6
            streamed = body | {"stream": done % 2 == 0}
            (await client.post(url + PATH, json=streamed)).raise_for_status()

    async with httpx.AsyncClient(timeout=600) as client:
        await asyncio.gather(*(visit(client) for _ in range(options.clients)))
    found["after_all_mb"] = own.memory_info().rss / 1e6
    return found


def report(
    rounds: dict[str, list[dict[str, float]]], loops: dict[str, list[float]], memory: dict[str, Any]
) -> None:
    """Print the tables and the JSON."""
    result: dict[str, Any] = {"memory": memory}
    print("| way | tokens/s, each round | of iter_batch | first token, s |\n|---|---|---|---|")
    base = [each["tokens_per_second"] for each in rounds["iter_batch"]]
    for name, found in rounds.items():
        rates = [each["tokens_per_second"] for each in found]
        share = statistics.median(rate / other for rate, other in zip(rates, base, strict=True))
        firsts = [each["first_token_seconds"] for each in found if "first_token_seconds" in each]
        first = f"{statistics.median(firsts):.3f}" if firsts else ""
        print(f"| {name} | {', '.join(f'{rate:.0f}' for rate in rates)} | {share:.2f} | {first} |")
        result[name] = {"tokens_per_second": rates, "of_iter_batch": share, "first": first}
    print("\n| event loop | naps | late by, median, ms | 99 % | longest |\n|---|---|---|---|---|")
    for name, late in loops.items():
        p99 = statistics.quantiles(late, n=100)[-1]
        row = [len(late), *(round(value, 1) for value in (statistics.median(late), p99, max(late)))]
        result[name] = dict(zip(("naps", "median_ms", "p99_ms", "longest_ms"), row, strict=True))
        print(f"| {name} | " + " | ".join(map(str, row)) + " |")
    print(f"\nMemory of the server's process: {memory}")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
