"""langchain-tests' standard suite over langchain-openai: pytest runs this file."""

import os
import subprocess
import sys

import pytest
from langchain_core.language_models import BaseChatModel
from langchain_openai import ChatOpenAI
from langchain_tests.integration_tests import ChatModelIntegrationTests

PARAMETERS = {
    "model": "phi3",
    "base_url": f"{os.environ['SERVER_URL']}/v1",
    "api_key": "key",
    "max_tokens": 100,
    "stream_usage": True,  # ChatOpenAI asks for it by itself only at OpenAI's address
}


class TestIntegration(ChatModelIntegrationTests):
    """The suite that talks to the server. The reference model was not trained for tools."""

    @property
    def chat_model_class(self) -> type[BaseChatModel]:
        return ChatOpenAI

    @property
    def chat_model_params(self) -> dict:
        return PARAMETERS

    has_tool_calling = False
    has_structured_output = True
    structured_output_kwargs = {"method": "json_schema"}  # noqa: RUF012
    supports_json_mode = False  # without a schema, 135M parameters find no joke
    supports_image_inputs = False
    supports_model_override = False
    returns_usage_metadata = True

    @pytest.mark.xfail(reason="ChatOpenAI sends pydantic 1 classes as tools, which need training")
    def test_structured_output_pydantic_2_v1(self, model: BaseChatModel) -> None:
        super().test_structured_output_pydantic_2_v1(model)

    @pytest.mark.xfail(reason="the reference model, with 135M parameters, does not end the string")
    def test_structured_output_optional_param(self, model: BaseChatModel) -> None:
        super().test_structured_output_optional_param(model)


if __name__ == "__main__":
    # -c: the settings of this repository's own tests are not for other people's suites.
    options = [
        "-q",
        "--noconftest",
        "-o",
        "asyncio_mode=auto",
        "-o",
        "asyncio_default_test_loop_scope=session",
        "-c",
        os.devnull,
        "-p",
        "no:cacheprovider",
        "--allow-hosts=127.0.0.1,localhost",
    ]
    done = subprocess.run([sys.executable, "-m", "pytest", __file__, *options], check=False)
    raise SystemExit(done.returncode)
