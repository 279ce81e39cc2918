"""LangChain in this process: an answer, a stream, and a value of a class."""

import sys

from pydantic import BaseModel, Field

from phi3ov.integrations.langchain import ChatPhi3


class Animal(BaseModel):
    """An animal."""

    name: str = Field(max_length=20)
    legs: int = Field(ge=0, le=8)


with ChatPhi3(model=sys.argv[1], max_tokens=64) as chat:
    answer = chat.invoke("What is the capital of France?")
    print(answer.content)

    for chunk in chat.stream([("system", "Be brief."), ("human", "What is a harbour?")]):
        print(chunk.content, end="", flush=True)
    print()

    print(repr(chat.with_structured_output(Animal).invoke("Describe a dog.")))
    print(
        answer.usage_metadata["total_tokens"], "tokens in", answer.response_metadata["model_name"]
    )
