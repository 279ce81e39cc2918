"""langchain-tests' standard suites over `ChatPhi3`: pytest runs this file.

REFERENCE_EXPORT is the reference model, TOOLS_EXPORT the same with Phi-4-mini's tool format.
"""

import os
import subprocess
import sys

import pytest
from langchain_core.language_models import BaseChatModel
from langchain_tests.integration_tests import ChatModelIntegrationTests
from langchain_tests.unit_tests import ChatModelUnitTests

import phi3ov
from phi3ov.integrations.langchain import ChatPhi3

MODELS = {
    name: phi3ov.load_model(
        os.environ[name], engine="worker", config=phi3ov.RuntimeConfig(threads=1)
    )  # one thread is faster than two where other programs run beside
    for name in ("REFERENCE_EXPORT", "TOOLS_EXPORT")
}


class TestUnit(ChatModelUnitTests):
    """The suite that generates nothing; with tools."""

    chat_model_class = ChatPhi3
    supports_model_override = False
    chat_model_params = {"model": MODELS["TOOLS_EXPORT"]}  # noqa: RUF012


class TestUnitWithoutTools(ChatModelUnitTests):
    """The same, of a model that was trained without tools."""

    chat_model_class = ChatPhi3
    supports_model_override = False
    chat_model_params = {"model": MODELS["REFERENCE_EXPORT"]}  # noqa: RUF012
    has_tool_calling = False
    has_structured_output = True


class TestIntegration(ChatModelIntegrationTests):
    """The suite that generates, with guided calls and schemas."""

    chat_model_class = ChatPhi3
    supports_model_override = False
    chat_model_params = {"model": MODELS["TOOLS_EXPORT"]}  # noqa: RUF012
    supports_json_mode = True
    supports_image_inputs = False

    @pytest.mark.xfail(reason="the reference model, with 135M parameters, does not end the string")
    def test_structured_output_optional_param(self, model: BaseChatModel) -> None:
        super().test_structured_output_optional_param(model)

    # A method's parametrization is not inherited, so it stands here again.
    @pytest.mark.xfail(reason="a model that was not trained for tools does not choose to call one")
    @pytest.mark.parametrize("model", [{}, {"output_version": "v1"}], indirect=True)
    def test_agent_loop(self, model: BaseChatModel) -> None:
        super().test_agent_loop(model)


class TestIntegrationWithoutTools(ChatModelIntegrationTests):
    """The same, of the reference model as it is."""

    chat_model_class = ChatPhi3
    supports_model_override = False
    chat_model_params = {"model": MODELS["REFERENCE_EXPORT"]}  # noqa: RUF012
    has_tool_calling = False
    has_structured_output = True
    supports_json_mode = True

    @pytest.mark.xfail(reason="the reference model, with 135M parameters, does not end the string")
    def test_structured_output_optional_param(self, model: BaseChatModel) -> None:
        super().test_structured_output_optional_param(model)


if __name__ == "__main__":
    # -c: the settings of this repository's own tests are not for other people's suites.
    options = [
        "-q",
        "-rxXs",
        "--noconftest",
        "-o",
        "asyncio_mode=auto",
        "-o",
        "asyncio_default_test_loop_scope=session",
        "-c",
        os.devnull,
        "-p",
        "no:cacheprovider",
        *sys.argv[1:],
    ]
    done = subprocess.run([sys.executable, "-m", "pytest", __file__, *options], check=False)
    raise SystemExit(done.returncode)
