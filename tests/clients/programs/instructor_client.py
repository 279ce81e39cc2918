"""instructor in JSON schema mode: the answer is an instance of the class."""

import os
from typing import Literal

import instructor
import openai
import pydantic


class Animal(pydantic.BaseModel):
    """What is asked for."""

    name: Literal["cat", "dog", "bird"]
    legs: Literal[2, 4]


client = instructor.from_openai(
    openai.OpenAI(base_url=f"{os.environ['SERVER_URL']}/v1", api_key="key"),
    mode=instructor.Mode.JSON_SCHEMA,
)
animal = client.chat.completions.create(
    model="phi3",
    messages=[{"role": "user", "content": "Name an animal."}],
    response_model=Animal,
    max_tokens=60,
    max_retries=0,
)
assert isinstance(animal, Animal)
print(f"instructor: ok, {animal}")
