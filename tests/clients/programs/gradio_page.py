"""examples/gradio_chat.py as a user starts it, asked twice through Gradio's own client."""

import os
import socket
import subprocess
import sys
import time

from gradio_client import Client

EXAMPLE, MODEL = sys.argv[1:3]
with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    port = free.getsockname()[1]
environment = {**os.environ, "GRADIO_SERVER_PORT": str(port), "GRADIO_ANALYTICS_ENABLED": "False"}
page = subprocess.Popen([sys.executable, EXAMPLE, MODEL], env=environment)
try:
    deadline = time.monotonic() + 300
    while True:
        assert page.poll() is None, "the example ended"
        assert time.monotonic() < deadline, "the page did not come up"
        try:
            client = Client(f"http://127.0.0.1:{port}", verbose=False, analytics_enabled=False)
            break
        except Exception:  # noqa: BLE001 - of httpx, and of Gradio's own
            time.sleep(1)
    pieces = list(client.submit("What is the capital of France?", api_name="/answer"))
    assert "The capital of France is Paris." in str(pieces[-1]), pieces[-1]
    assert len(pieces) > 2, "the answer was streamed"
    again = client.predict("And of Germany?", api_name="/answer")
    assert "Berlin" in str(again), again
finally:
    page.terminate()
    page.wait(60)
print("gradio: ok")
