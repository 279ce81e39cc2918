"""What users write: both type checkers accept it, and infer the types that it states."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Unpack, assert_type

import phi3ov
from phi3ov import quality, reference


def export(source: str, output: Path) -> float:
    """Export with every form of recipe, and read the report."""
    report = phi3ov.export_model(source, output)
    assert_type(report, phi3ov.ExportReport)
    phi3ov.export_model(source, output, compression="int8", progress=False)
    phi3ov.export_model(source, str(output), compression=phi3ov.Int4Compression(ratio=1.0))
    phi3ov.export_model(source, output, compression=phi3ov.Int4Compression.small())
    phi3ov.export_model(source, output, progress=say, overwrite=True)
    assert_type(report.artifact, phi3ov.Artifact)
    return report.artifact.bits_per_weight


def say(progress: phi3ov.ExportProgress) -> None:
    """Take the progress of an export."""
    print(progress.phase)


def load(folder: Path, devices: Sequence[str]) -> phi3ov.Phi3Model:
    """Load with every option."""
    config = phi3ov.RuntimeConfig(threads=2, inference_precision="f32", properties={"A": "B"})
    limits = phi3ov.RequestLimits(max_running=8, max_waiting=0)
    model = phi3ov.load_model(folder, device=devices, config=config, engine="worker", limits=limits)
    assert_type(model, phi3ov.Phi3Model)
    assert_type(model.device, phi3ov.DeviceChoice)
    assert_type(model.device.selected, str)
    return model


def talk(model: phi3ov.Phi3Model) -> tuple[str, float]:
    """Chat, look at the reply and at the history."""
    chat = phi3ov.Phi3Chat(model, system="Be brief.", options=phi3ov.GenerationOptions(seed=None))
    reply = chat.generate("Hello", max_new_tokens=8, stop=("\n",))
    assert_type(reply, phi3ov.Reply)
    assert_type(reply.finish_reason, Literal["stop", "length", "cancelled", "timeout"])
    assert_type(reply.usage, phi3ov.Usage)
    assert_type(chat.token_ids, tuple[int, ...])
    assert_type(chat.messages, tuple[phi3ov.Message, ...])
    assert_type(chat.fork(), phi3ov.Phi3Chat)
    return reply.text, reply.timings.tokens_per_second


def stream(chat: phi3ov.Phi3Chat) -> Iterator[str]:
    """Stream with a loop, and hand a stream to whatever wants an iterator of text."""
    with chat.stream("Hello") as pieces:
        for piece in pieces:
            assert_type(piece, str)
            if len(piece) > 80:
                pieces.cancel(keep=True)
    return chat.stream("Again")


async def stream_without_blocking(chat: phi3ov.Phi3Chat) -> phi3ov.Reply:
    """Stream and answer from asyncio."""
    async for piece in chat.stream("Hello"):
        assert_type(piece, str)
    return await chat.agenerate("And again", temperature=0.5, seed=7)


def ask(model: phi3ov.Phi3Model, question: str, **options: Unpack[phi3ov.Options]) -> str:
    """Wrap the library and keep its options checked."""
    results = model.generate_batch([[phi3ov.Message("user", question)]], **options)
    assert_type(results, list[phi3ov.BatchResult])
    assert_type(results[0].reply, phi3ov.Reply)
    assert_type(results[0].error, phi3ov.Phi3OVError | None)
    return model.complete(question, **options).text + results[0].reply.text


def ask_many(model: phi3ov.Phi3Model, questions: Sequence[str]) -> Iterator[str]:
    """Answer conversations as they come, some of them with options of their own."""
    for question in questions:
        request = phi3ov.BatchRequest(
            messages=[phi3ov.Message("user", question)], options={"max_new_tokens": len(question)}
        )
        for result in model.iter_batch([request, request.messages], timeout_seconds=1):
            yield str(result.error or result.reply)


@dataclass
class City:
    """An answer's shape."""

    name: str


def ask_for_a_class(model: phi3ov.Phi3Model, chat: phi3ov.Phi3Chat) -> list[str]:
    """``parsed`` has the type of the class that the answer must fit."""
    messages = [{"role": "user", "content": "Name a city."}]
    reply = model.generate(messages, json_schema=City, max_new_tokens=50)
    assert_type(reply.parsed, City | None)
    assert_type(chat.stream("Name a city.", json_schema=City).drain().parsed, City | None)
    assert_type(model.generate(messages), phi3ov.Reply)
    return [candidate.parsed.name for candidate in reply.candidates if candidate.parsed]


def use_tools(model: phi3ov.Phi3Model) -> list[str]:
    """Offer a tool and read the calls."""
    tool = phi3ov.Tool(name="clock", description="Tells the time.", parameters={})
    chat = phi3ov.Phi3Chat(model, tools=[tool, say_twice, City])
    calls = chat.generate("What time is it?", tool_choice="required").tool_calls
    chat.generate("What time is it?", tool_choice={"name": "clock"})
    results = [phi3ov.Message("tool", say_twice(**call.parse(say_twice))) for call in calls]
    chat.generate(results)
    asked: list[phi3ov.ChatMessage] = [{"role": "user", "content": "Name a city."}]
    called = model.generate(asked, tools=[City], tool_choice={"name": "City"}).tool_calls
    assert_type(called[0].parse(City), City)
    return [call.name for call in calls]


def say_twice(text: str) -> str:
    """Be a tool."""
    return text * 2


def catch(folder: Path) -> phi3ov.Artifact | None:
    """Catch by the library's class, or by the builtin that the class also is."""
    try:
        artifact = phi3ov.Artifact.open(folder)
        artifact.verify()
    except phi3ov.Phi3OVError:
        return None
    except ValueError:
        raise
    return artifact


def measure(source: Path, artifact: Path) -> dict[str, str]:
    """Use the modules beside the package's own names."""
    cost = quality.compare(reference.build_reference(source), artifact, max_tokens=512)
    assert_type(cost.artifact_perplexity, float)
    return phi3ov.list_devices()
