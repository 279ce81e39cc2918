"""Many at once on real engines: threads, tasks and forks get what each would get alone."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import openvino_genai
import pytest

from phi3ov import Phi3Chat, Phi3Model, RequestLimits
from phi3ov.answer.token_stream import TokenRequest, TokenStream
from phi3ov.engine import pipeline
from phi3ov.engine.genai.kv_pool import KVPool
from phi3ov.engine.protocol import EngineName
from phi3ov.engine.worker.batch import Batch
from phi3ov.engine.worker.protocol import Submit

from .conftest import LoadModel, Zoo
from .test_worker import wait_until
from .truth import greedy, prompt_text

ENGINES: tuple[EngineName, ...] = ("pipeline", "worker")
ROW = "phi-4"
MANY = 32


def converse(model: Phi3Model, user: int) -> list[tuple[int, ...]]:
    """Take three turns of one user's conversation, the last of them on a fork."""
    chat = Phi3Chat(model)
    answers = []
    for turn in range(3):
        if turn == 2:
            chat = chat.fork()
        question = prompt_text(5 + (user + turn) % 7, 100 * user + turn)
        answers.append(chat.generate(question, max_new_tokens=3 + user % 4).token_ids)
    return answers


@pytest.mark.parametrize("engine", ENGINES)
def test_threads_get_the_conversations_they_would_have_alone(
    engine: EngineName, zoo: Zoo, load: LoadModel
) -> None:
    """Thirty-two users at once, three turns each, with forks; checked against one after another."""
    model = load(zoo.artifact(ROW), engine=engine)
    alone = [converse(model, user) for user in range(MANY)]
    together = threading.Barrier(MANY)

    def work(user: int) -> list[tuple[int, ...]]:
        together.wait()
        return converse(model, user)

    with ThreadPoolExecutor(MANY) as threads:
        assert list(threads.map(work, range(MANY))) == alone
    first = greedy(
        zoo.checkpoint(ROW),
        model.tokenizer.encode_raw(
            f"<|im_start|>user<|im_sep|>{prompt_text(5)}<|im_end|><|im_start|>assistant<|im_sep|>"
        ),
        3,
    )
    assert alone[0][0] == first


@pytest.mark.parametrize("engine", ENGINES)
def test_tasks_of_one_loop_get_the_answers_they_would_get_alone(
    engine: EngineName, zoo: Zoo, load: LoadModel
) -> None:
    """Thirty-two tasks, every fourth of which is cancelled in the middle; the others are whole."""
    model = load(zoo.artifact(ROW), engine=engine)
    prompts = [prompt_text(10 + user, user) for user in range(MANY)]
    alone = [Phi3Chat(model).generate(prompt, max_new_tokens=12).text for prompt in prompts]

    async def ask(user: int) -> str:
        chat = Phi3Chat(model)
        if user % 4 == 3:
            async with chat.stream(prompts[user], max_new_tokens=900) as stream:
                async for _ in stream:
                    break
            assert stream.reply.finish_reason == "cancelled"
            return ""
        pieces = [piece async for piece in chat.stream(prompts[user], max_new_tokens=12)]
        return "".join(pieces)

    async def ask_all() -> list[str]:
        return await asyncio.gather(*map(ask, range(MANY)))

    expected = ["" if user % 4 == 3 else text for user, text in enumerate(alone)]
    assert asyncio.run(ask_all()) == expected


@pytest.mark.parametrize("engine", ENGINES)
def test_forks_go_on_at_the_same_time(engine: EngineName, zoo: Zoo, load: LoadModel) -> None:
    """Futures of one past do not touch each other, nor the conversation that they come from."""
    model = load(zoo.artifact(ROW), engine=engine)
    chat = Phi3Chat(model)
    for turn in range(2):
        chat.generate(prompt_text(20, turn), max_new_tokens=5)
    past = chat.token_ids
    questions = [prompt_text(6, 50 + number) for number in range(8)]
    alone = [chat.fork().generate(one, max_new_tokens=8).token_ids for one in questions]
    forks = [chat.fork() for _ in questions]
    streams = [
        fork.stream(one, max_new_tokens=8) for fork, one in zip(forks, questions, strict=True)
    ]
    assert [stream.drain().token_ids for stream in streams] == alone
    assert chat.token_ids == past
    assert all(fork.token_ids[: len(past)] == past for fork in forks)
    assert len({fork.token_ids for fork in forks}) == len(forks)


def test_other_threads_run_while_the_pipeline_reads_a_long_prompt(
    zoo: Zoo, load: LoadModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the call into genai to the first token, Python code of other threads goes on."""
    counter, over = [0], threading.Event()
    marks: list[int] = []
    make_config: Callable[..., Any] = pipeline.generation_config
    put = TokenStream.put

    def note_start(request: TokenRequest, **options: Any) -> Any:
        marks.append(counter[0])
        return make_config(request, **options)

    def note_token(stream: TokenStream, token_ids: list[int]) -> None:
        marks.append(counter[0])
        put(stream, token_ids)

    def count() -> None:
        while not over.is_set():
            counter[0] += 1

    monkeypatch.setattr(pipeline, "generation_config", note_start)
    monkeypatch.setattr(TokenStream, "put", note_token)
    model = load(zoo.artifact(ROW))
    thread = threading.Thread(target=count)
    thread.start()
    try:
        wait_until(lambda: counter[0] > 0)
        model.complete(prompt_text(900), max_new_tokens=1)
    finally:
        over.set()
        thread.join()
    started, first_token = marks[-2:]
    assert first_token - started > 100  # held, the interpreter would let none pass


def test_a_long_prompt_neither_stops_the_others_nor_starves(zoo: Zoo) -> None:
    """In every step those who answer get their token, and the prompt gets the rest of the step."""
    scheduler = openvino_genai.SchedulerConfig()
    scheduler.enable_prefix_caching = True
    scheduler.max_num_batched_tokens = 32 + 8
    folder = str(zoo.artifact(ROW))
    exact = {"INFERENCE_PRECISION_HINT": "f32"}
    native = openvino_genai.ContinuousBatchingPipeline(folder, scheduler, "CPU", exact)
    pool = KVPool(blocks=100, block_tokens=32, block_bytes=0)
    batch = Batch(lambda: native, pool, max_running=8, prompt_tokens=32)

    def submit(number: int, length: int, limit: int) -> None:
        ids = tuple(prompt_text(length, number).encode())
        request = TokenRequest(prompt_ids=ids, max_new_tokens=limit, stop_ids=frozenset())
        batch.accept(Submit(number=number, request=request))

    for number in (1, 2):
        submit(number, 6, 60)
    while {one.number for one in batch.step()} != {1, 2}:
        pass
    submit(3, 160, 2)  # long
    submit(4, 6, 2)  # short, and behind it
    first: dict[int, int] = {}
    for step in range(1, 30):
        got = {one.number for one in batch.step() if one.token_ids}
        assert {1, 2} <= got
        for number in got:
            first.setdefault(number, step)
    assert first[3] <= 160 // 32 + 1
    assert first[3] <= first[4] <= first[3] + 1


def test_requests_beyond_the_limits_wait_in_order(zoo: Zoo, load: LoadModel) -> None:
    """With waiting chosen, any number of callers is served; none is refused, none mixed."""
    model = load(
        zoo.artifact(ROW), engine="worker", limits=RequestLimits(max_running=2, max_waiting=1)
    )
    prompts = [prompt_text(10, user) for user in range(12)]
    alone = [model.complete(prompt, max_new_tokens=4).token_ids for prompt in prompts]

    def ask(prompt: str) -> tuple[int, ...]:
        return model.complete(prompt, max_new_tokens=4, on_full_queue="wait").token_ids

    with ThreadPoolExecutor(len(prompts)) as threads:
        assert list(threads.map(ask, prompts)) == alone


@pytest.mark.parametrize("engine", [*ENGINES, "paged", "transformers"])
def test_time_that_is_over_frees_the_engine(engine: EngineName, zoo: Zoo, load: LoadModel) -> None:
    """What there was is a beginning of the whole answer; one that waited in vain has nothing."""
    model = load(
        zoo.artifact(ROW), engine=engine, limits=RequestLimits(max_running=1, max_waiting=9)
    )
    prompt = prompt_text(20)
    whole = model.complete(prompt, max_new_tokens=900)
    streams = [
        Phi3Chat(model).stream(prompt_text(20, seed), max_new_tokens=900, timeout_seconds=limit)
        for seed, limit in enumerate((60, 0.02))
    ]
    next(streams[0])
    waited = streams[1].drain()
    assert (waited.finish_reason, waited.text) == ("timeout", "")
    streams[0].close()
    cut = model.complete(prompt, max_new_tokens=900, timeout_seconds=0.1)
    assert cut.finish_reason in ("timeout", "length")
    assert cut.token_ids == whole.token_ids[: len(cut.token_ids)]
    assert model.complete(prompt, max_new_tokens=900).token_ids == whole.token_ids
