"""An agent: the model calls functions until it can answer.

python examples/agent.py MODEL

MODEL is an exported Phi-4-mini; other models were not trained to call tools.
"""

import sys

import phi3ov


def get_temperature(city: str) -> str:
    """Return the current temperature of a city in degrees Celsius."""
    return {"Paris": "24", "Oslo": "11"}.get(city, "unknown")


def to_fahrenheit(celsius: float) -> str:
    """Convert degrees Celsius to degrees Fahrenheit."""
    return f"{celsius * 9 / 5 + 32:g}"


def run(call: phi3ov.ToolCall) -> phi3ov.Message:
    """Call a function with checked arguments; the model reads its own mistakes."""
    try:
        function = {"get_temperature": get_temperature, "to_fahrenheit": to_fahrenheit}[call.name]
        result = function(**call.parse(function))
    except (KeyError, phi3ov.GenerationError) as error:
        result = f"Error: {error}"
    return phi3ov.Message("tool", result, tool_call_id=call.id, name=call.name)


with phi3ov.load_model(sys.argv[1]) as model:
    chat = phi3ov.Phi3Chat(model, tools=[get_temperature, to_fahrenheit])
    reply = chat.generate("How warm is Oslo in Fahrenheit?", max_new_tokens=64)
    for _step in range(5):
        if not reply.tool_calls:
            break
        reply = chat.generate([run(call) for call in reply.tool_calls], max_new_tokens=64)
    print(f"[{len(chat.messages)} messages] {reply}")
