"""A tool that the model must call: a grammar guides the call, so it always parses.

python examples/tools.py MODEL

MODEL is an exported Phi-4-mini: the others were not trained to call tools.
"""

import sys
from typing import Literal

import phi3ov


def get_weather(city: str, unit: Literal["celsius", "fahrenheit"] = "celsius") -> str:
    """Return the weather of a city.

    Args:
        city: Name of the city.
        unit: Unit of the temperature.
    """
    return f"{city}: sunny, {24 if unit == 'celsius' else 75} degrees {unit}"


def main(folder: str) -> None:
    """Ask, call the tool that the model asks for, and print what it makes of the result."""
    with phi3ov.load_model(folder) as model:
        chat = phi3ov.Phi3Chat(model, tools=[get_weather])
        question = "What is the weather in Paris?"
        reply = chat.generate(question, tool_choice="required", max_new_tokens=128)
        print(f"{len(reply.tool_calls)} calls. {reply}")
        if reply.finish_reason != "length":
            results = [
                phi3ov.Message("tool", get_weather(**call.parse(get_weather)))
                for call in reply.tool_calls
            ]
            print(chat.generate(results, max_new_tokens=128))


if __name__ == "__main__":
    main(sys.argv[1])
