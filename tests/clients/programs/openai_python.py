"""The openai package, unchanged, against the server: every kind of call that it has for text."""

import asyncio
import inspect
import json
import os
import typing
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import openai
import pydantic
from openai.types.chat import ChatCompletion, ChatCompletionChunk, completion_create_params
from openai.types.completion_create_params import CompletionCreateParamsBase
from openai.types.responses import Response
from openai.types.responses.response_create_params import ResponseCreateParamsBase

URL, LIMITED_URL = os.environ["SERVER_URL"], os.environ["LIMITED_SERVER_URL"]
HELLO = [{"role": "user", "content": "Say hello to my cat."}]

client = openai.OpenAI(base_url=f"{URL}/v1", api_key="key", max_retries=0)
MODEL = client.models.list().data[0].id


class Animal(pydantic.BaseModel):
    """What the structured answers are."""

    name: str
    legs: typing.Literal[2, 4]


def whole_answers() -> None:
    answer = client.chat.completions.create(model=MODEL, messages=HELLO, max_tokens=12)
    body = json.loads(answer.model_dump_json(exclude={"timings": True}))
    ChatCompletion.model_validate(body, strict=True)
    assert answer.choices[0].message.content
    assert answer.choices[0].finish_reason in ("stop", "length")
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    long = [{"role": "system", "content": "You are polite. " * 40}, *HELLO]
    twice = [
        client.chat.completions.create(model=MODEL, messages=long, max_tokens=12) for _ in range(2)
    ]
    assert twice[0].choices[0].message.content == twice[1].choices[0].message.content
    assert twice[1].usage.prompt_tokens_details.cached_tokens > 100
    drawn = {"model": MODEL, "messages": HELLO, "max_tokens": 12, "temperature": 1, "seed": 7}
    sampled = [client.chat.completions.create(**drawn) for _ in range(2)]
    assert sampled[0].choices[0].message.content == sampled[1].choices[0].message.content
    several = client.chat.completions.create(**drawn, n=3)
    assert [choice.index for choice in several.choices] == [0, 1, 2]
    assert len({choice.message.content for choice in several.choices}) > 1
    stopped = client.chat.completions.create(model=MODEL, messages=HELLO, max_tokens=60, stop=["."])
    assert "." not in stopped.choices[0].message.content


def streams() -> None:
    whole = client.chat.completions.create(model=MODEL, messages=HELLO, max_tokens=20)
    text, usage = "", None
    with client.chat.completions.create(
        model=MODEL,
        messages=HELLO,
        max_tokens=20,
        stream=True,
        stream_options={"include_usage": True},
    ) as stream:
        for chunk in stream:
            assert isinstance(chunk, ChatCompletionChunk)
            usage = chunk.usage or usage
            text += "".join(choice.delta.content or "" for choice in chunk.choices)
    assert text == whole.choices[0].message.content
    assert usage.completion_tokens == whole.usage.completion_tokens
    with client.chat.completions.stream(model=MODEL, messages=HELLO, stop=[" "]) as helper:
        text = "".join(event.delta for event in helper if event.type == "content.delta")
        assert helper.get_final_completion().choices[0].message.content == text


def log_probabilities() -> None:
    answer = client.chat.completions.create(
        model=MODEL, messages=HELLO, max_tokens=8, logprobs=True
    )
    tokens = answer.choices[0].logprobs.content
    assert "".join(token.token for token in tokens) == answer.choices[0].message.content
    assert all(token.logprob <= 0 for token in tokens)


def structured_answers() -> None:
    parsed = client.chat.completions.parse(
        model=MODEL,
        messages=[{"role": "user", "content": "Name an animal."}],
        response_format=Animal,
        max_tokens=60,
    )
    assert isinstance(parsed.choices[0].message.parsed, Animal)
    anything = client.chat.completions.create(
        model=MODEL,
        messages=[{"role": "user", "content": "Give JSON."}],
        response_format={"type": "json_object"},
        max_tokens=200,
    )
    if anything.choices[0].finish_reason == "stop":
        assert isinstance(json.loads(anything.choices[0].message.content), dict)


def errors() -> None:
    refused = {
        openai.NotFoundError: {"model": "gpt-4"},
        openai.BadRequestError: {"max_tokens": 10**6},
    }
    for kind, fields in refused.items():
        try:
            client.chat.completions.create(**{"model": MODEL, "messages": HELLO} | fields)
        except kind as error:
            assert error.code
            assert error.param in ("model", "messages")
        else:
            raise AssertionError(f"{fields} was accepted")
    try:
        client.chat.completions.create(model=MODEL, messages=HELLO, logit_bias={"5": 100})
    except openai.BadRequestError as error:
        assert error.param == "logit_bias"
    else:
        raise AssertionError("logit_bias was ignored")
    raw = client.chat.completions.with_raw_response.create(
        model=MODEL, messages=HELLO, max_tokens=2, extra_headers={"x-request-id": "my-id"}
    )
    assert raw.headers["x-request-id"] == "my-id"
    assert raw.parse().choices


def completions_and_responses() -> None:
    text = client.completions.create(model=MODEL, prompt="The capital of France is", max_tokens=5)
    assert text.choices[0].text
    assert "".join(
        chunk.choices[0].text
        for chunk in client.completions.create(
            model=MODEL, prompt="The capital of France is", max_tokens=5, stream=True
        )
    ) == (text.choices[0].text)
    response = client.responses.create(
        model=MODEL, input="Say hello to my cat.", max_output_tokens=12, store=False
    )
    assert isinstance(response, Response)
    assert response.output_text
    with client.responses.stream(
        model=MODEL, input="Say hello to my cat.", max_output_tokens=12
    ) as stream:
        deltas = "".join(
            event.delta for event in stream if event.type == "response.output_text.delta"
        )
    assert deltas == response.output_text
    parsed = client.responses.parse(
        model=MODEL, input="Name an animal.", text_format=Animal, max_output_tokens=60
    )
    assert isinstance(parsed.output_parsed, Animal)


def leaving_early() -> None:
    stream = client.chat.completions.create(
        model=MODEL, messages=HELLO, max_tokens=2000, stream=True
    )
    next(iter(stream))
    stream.close()


async def many_at_once() -> None:
    async with openai.AsyncOpenAI(base_url=f"{URL}/v1", api_key="key", max_retries=0) as many:
        answers = await asyncio.gather(
            *(
                many.chat.completions.create(model=MODEL, messages=HELLO, max_tokens=8)
                for _ in range(16)
            )
        )
    assert len({answer.choices[0].message.content for answer in answers}) == 1


def retries_where_the_queue_is_full() -> None:
    """A server that takes 2 and lets 2 wait refuses some of 12, and all complete in the end."""
    patient = openai.OpenAI(base_url=f"{LIMITED_URL}/v1", api_key="key", max_retries=30)

    def ask(_number: int) -> str:
        answer = patient.chat.completions.create(model=MODEL, messages=HELLO, max_tokens=16)
        return answer.choices[0].message.content

    with ThreadPoolExecutor(12) as threads:
        assert all(threads.map(ask, range(12)))
    with urllib.request.urlopen(f"{LIMITED_URL}/metrics") as metrics:
        lines = metrics.read().decode().splitlines()
    name = 'phi3ov:http_requests_total{path="/v1/chat/completions",status="429"}'
    refused = [float(line.split()[-1]) for line in lines if line.startswith(name)]
    assert refused
    print(f"{refused[0]:.0f} answers of 429, and 12 of 12 requests completed")


def every_field_of_the_client_is_decided() -> None:
    """Each parameter that this version of the package sends stands in the server's description."""
    with urllib.request.urlopen(f"{URL}/openapi.json") as answer:
        api = json.load(answer)
    own = {"extra_headers", "extra_query", "extra_body", "timeout", "self"}
    for path, kind, create in (
        (
            "/v1/chat/completions",
            completion_create_params.CompletionCreateParamsBase,
            client.chat.completions.create,
        ),
        ("/v1/completions", CompletionCreateParamsBase, client.completions.create),
        ("/v1/responses", ResponseCreateParamsBase, client.responses.create),
    ):
        described = api["paths"][path]["post"]["description"]
        names = set(typing.get_type_hints(kind)) | set(inspect.signature(create).parameters)
        missing = sorted(name for name in names - own if f"`{name}`" not in described)
        assert not missing, (path, missing)


if __name__ == "__main__":
    whole_answers()
    streams()
    log_probabilities()
    structured_answers()
    errors()
    completions_and_responses()
    leaving_early()
    asyncio.run(many_at_once())
    retries_where_the_queue_is_full()
    every_field_of_the_client_is_decided()
    print(f"openai {openai.__version__}: ok")
