"""A tool that the model may ask for; what it asks is checked before anything is called.

python examples/tools.py MODEL

MODEL is an exported Phi-4-mini: the others were not trained to call tools.
"""

import sys

import phi3ov

WEATHER = phi3ov.Tool(
    name="get_weather",
    description="Current weather of a city",
    parameters={"city": {"description": "Name of the city", "type": "str"}},
)


def main(folder: str) -> None:
    """Ask, answer the model's calls, and let it put the result into words."""
    with phi3ov.load_model(folder) as model:
        system = "You are a helpful assistant with some tools."
        chat = phi3ov.Phi3Chat(model, system=system, tools=[WEATHER])
        reply = chat.generate("What is the weather in Paris?", max_new_tokens=64)
        print(f"{len(reply.tool_calls)} calls. {reply}")
        for call in reply.tool_calls:
            print(chat.generate(look_up(call), max_new_tokens=64))


def look_up(call: phi3ov.ToolCall) -> str:
    """Return the tool's result; name and arguments are whatever the model wrote."""
    city = call.arguments.get("city")
    if call.name != WEATHER.name or not isinstance(city, str):
        return "There is no such tool."
    return f"The weather in {city}: sunny, 24 degrees."


if __name__ == "__main__":
    main(sys.argv[1])
