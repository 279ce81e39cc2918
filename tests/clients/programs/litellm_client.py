"""litellm: whole answers, streams and a refused field, through its OpenAI provider."""

import os

import litellm

litellm.telemetry = False
COMMON = {
    "model": "openai/phi3",
    "api_base": f"{os.environ['SERVER_URL']}/v1",
    "api_key": "key",
    "messages": [{"role": "user", "content": "Say hello to my cat."}],
    "max_tokens": 16,
}

whole = litellm.completion(**COMMON)
assert whole.choices[0].message.content
assert whole.usage.total_tokens > 16
text = "".join(
    chunk.choices[0].delta.content or "" for chunk in litellm.completion(**COMMON, stream=True)
)
assert text == whole.choices[0].message.content
try:
    litellm.completion(**COMMON, logit_bias={"5": 100})
except litellm.BadRequestError as error:
    assert "logit_bias" in str(error)
else:
    raise AssertionError("logit_bias was ignored")
print("litellm: ok")
