"""The files of docs/server/deployment.md, read by the programs that they are for."""

from __future__ import annotations

import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from phi3ov.cli.serve import KEY_VARIABLE
from tests.unit.fakes import Answer, answer_ids

from .serving import serving, wait_until

PAGE = Path(__file__).parents[3] / "docs" / "server" / "deployment.md"
NGINX = shutil.which("nginx")
ANALYZE = shutil.which("systemd-analyze")


def blocks(language: str) -> list[str]:
    """Return the page's blocks in a language."""
    found: list[str] = re.findall(
        rf"```{language}\b[^\n]*\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL
    )
    assert found
    return found


@pytest.mark.skipif(ANALYZE is None, reason="needs systemd-analyze")
def test_systemd_reads_the_unit(tmp_path: Path) -> None:
    """Every line, with a program that is there in the place of phi3ov."""
    (unit,) = blocks("ini")
    assert KEY_VARIABLE in unit
    file = tmp_path / "phi3ov.service"
    file.write_text(
        unit.replace("/opt/phi3ov/bin/phi3ov", sys.executable).replace("User=phi3ov\n", ""),
        encoding="utf-8",
    )
    done = subprocess.run(
        [str(ANALYZE), "verify", str(file)], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


@contextmanager
def proxy(folder: Path, upstream: str) -> Iterator[str]:
    """Run nginx with the page's location before a server; give its address."""
    location, _balancer = blocks("nginx")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    paths = "".join(
        f"{name}_temp_path {folder / name};\n"
        for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    location = location.replace("http://127.0.0.1:8000", upstream)
    config = folder / "nginx.conf"
    config.write_text(
        f"daemon off; master_process off; pid {folder / 'pid'}; error_log stderr;\n"
        f"events {{}}\nhttp {{ access_log off;\n{paths}"
        f"server {{ listen 127.0.0.1:{port}; {location} }} }}",
        encoding="utf-8",
    )
    command = [str(NGINX), "-e", "stderr", "-c", str(config)]
    assert subprocess.run([*command, "-t"], check=False, capture_output=True).returncode == 0
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
        try:
            wait_until(lambda: _listens(port))
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()


def _listens(port: int) -> bool:
    with socket.socket() as attempt:
        return attempt.connect_ex(("127.0.0.1", port)) == 0


@pytest.mark.skipif(NGINX is None, reason="needs nginx")
def test_nginx_passes_on_events_as_they_come_and_a_client_that_leaves(tmp_path: Path) -> None:
    """The first words arrive while the answer goes on; leaving frees the place behind the proxy."""
    endless = Answer(token_ids=answer_ids("one two three", stop=None), endless=True)
    with serving(lambda _request: endless) as served, proxy(tmp_path, served.url) as address:
        body = {"messages": [{"role": "user", "content": "Hello"}], "stream": True}
        url = f"{address}/v1/chat/completions"
        with httpx.stream("POST", url, json=body, timeout=20) as response:
            text = ""
            for piece in response.iter_text():
                text += piece
                if "three" in text:
                    break
            assert served.app.state.host.running
        wait_until(served.is_idle, 2.0)


@pytest.mark.skipif(NGINX is None, reason="needs nginx")
def test_nginx_reads_the_balancer(tmp_path: Path) -> None:
    """The block of several machines is valid where it stands: in http."""
    _location, balancer = blocks("nginx")
    config = tmp_path / "nginx.conf"
    config.write_text(
        f"pid {tmp_path / 'pid'}; events {{}}\nhttp {{ {balancer} }}", encoding="utf-8"
    )
    command = [str(NGINX), "-e", "stderr", "-t", "-c", str(config)]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert "syntax is ok" in done.stderr, done.stderr


def test_the_container_needs_no_network_when_it_runs() -> None:
    """It installs while it is built; its command is phi3ov serve on a folder that is mounted."""
    (lines,) = blocks("dockerfile")
    installing = [line for line in lines.splitlines() if "pip install" in line]
    assert [line.split()[0] for line in installing] == ["RUN"]
    assert 'ENTRYPOINT ["phi3ov", "serve", "/model"' in lines
    assert "/v1" not in lines.partition("HEALTHCHECK")[2]  # /health alone needs no key
