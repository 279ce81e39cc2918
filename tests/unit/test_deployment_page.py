"""The files on the page "Deployment" agree with each other and with the command."""

from __future__ import annotations

import re
from pathlib import Path

import yaml

from phi3ov.server import create_app

from .fakes import FakeEngine, make_model
from .test_batch_file import echo
from .test_cli_commands import OPTIONS

PAGE = Path(__file__).parents[2] / "docs" / "server" / "deployment.md"


def block(language: str) -> str:
    """Return the page's only block in a language."""
    text = PAGE.read_text(encoding="utf-8")
    [found] = re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return str(found)


def test_the_inference_service_fits_the_container() -> None:
    """Port, mount, key, health path and options are those of the image on the same page."""
    dockerfile = block("dockerfile")
    [container] = yaml.safe_load(block("yaml"))["spec"]["predictor"]["containers"]
    [port] = container["ports"]
    assert f"EXPOSE {port['containerPort']}" in dockerfile
    probe = container["readinessProbe"]["httpGet"]
    assert probe["port"] == port["containerPort"]
    app = create_app(make_model(FakeEngine(echo)))
    assert probe["path"] in {getattr(route, "path", None) for route in app.routes}
    assert f'"{container["volumeMounts"][0]["mountPath"]}"' in dockerfile
    assert [variable["name"] for variable in container["env"]] == ["PHI3OV_API_KEY"]
    asked = {argument for argument in container["args"] if argument.startswith("--")}
    assert asked
    assert asked <= set(OPTIONS["serve"].split())


def test_the_pod_outlives_its_drain() -> None:
    """Kubernetes kills a pod after its grace period, whatever it still answers."""
    predictor = yaml.safe_load(block("yaml"))["spec"]["predictor"]
    arguments = predictor["containers"][0]["args"]
    drain = int(arguments[arguments.index("--drain-seconds") + 1])
    assert predictor["terminationGracePeriodSeconds"] > drain
