"""pydantic-ai: text, a stream, and native structured output."""

import asyncio
import os
from typing import Literal

import pydantic
from pydantic_ai import Agent, NativeOutput
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider


class Animal(pydantic.BaseModel):
    """What is asked for."""

    name: Literal["cat", "dog", "bird"]


provider = OpenAIProvider(base_url=f"{os.environ['SERVER_URL']}/v1", api_key="key")
model = OpenAIChatModel("phi3", provider=provider)
settings = {"max_tokens": 24}


async def main() -> None:
    agent = Agent(model, system_prompt="Be brief.", model_settings=settings)
    result = await agent.run("Say hello to my cat.")
    assert result.output
    assert result.usage.output_tokens > 0
    async with agent.run_stream("Say hello to my cat.") as stream:
        text = "".join([piece async for piece in stream.stream_text(delta=True)])
    assert text == result.output
    shaped = Agent(model, output_type=NativeOutput(Animal), model_settings=settings)
    assert isinstance((await shaped.run("Name an animal.")).output, Animal)


asyncio.run(main())
print("pydantic-ai: ok")
