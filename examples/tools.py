"""An agent with two tools: the model calls, the program answers, until the model has an answer.

python examples/tools.py MODEL

MODEL is an exported Phi-4-mini: the others were not trained to call tools.
"""

import sys
from datetime import UTC, datetime
from typing import Literal

import phi3ov

MOST_STEPS = 4


def get_weather(city: str, unit: Literal["celsius", "fahrenheit"] = "celsius") -> str:
    """Return the weather of a city.

    Args:
        city: Name of the city.
        unit: Unit of the temperature.
    """
    return f"{city}: sunny, {24 if unit == 'celsius' else 75} degrees {unit}"


def now() -> str:
    """Return the current time in UTC."""
    return datetime.now(UTC).isoformat(timespec="minutes")


TOOLS = {"get_weather": get_weather, "now": now}


def main(folder: str) -> None:
    """Ask, answer the model's calls, and print what it makes of the results."""
    with phi3ov.load_model(folder) as model:
        chat = phi3ov.Phi3Chat(model, system="You are helpful.", tools=list(TOOLS.values()))
        question = "What time is it, and what is the weather in Paris?"
        reply = chat.generate(question, tool_choice="required", max_new_tokens=128)
        for _ in range(MOST_STEPS):
            print(f"{len(reply.tool_calls)} calls. {reply}")
            if not reply.tool_calls:
                break
            results = [phi3ov.Message("tool", run(call)) for call in reply.tool_calls]
            reply = chat.generate(results, max_new_tokens=128)


def run(call: phi3ov.ToolCall) -> str:
    """Return a tool's result, or what is wrong with the call, for the model to read."""
    try:
        function = TOOLS[call.name]
        return function(**call.parse(function))
    except (KeyError, phi3ov.GenerationError) as error:
        return f"error: {error}"


if __name__ == "__main__":
    main(sys.argv[1])
