"""simonw/llm: a model of extra-openai-models.yaml, by the command."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

with tempfile.TemporaryDirectory() as folder:
    url = os.environ["SERVER_URL"]
    Path(folder, "extra-openai-models.yaml").write_text(
        f"- model_id: phi3\n  model_name: phi3\n  api_base: {url}/v1\n", encoding="utf-8"
    )
    environment = {**os.environ, "LLM_USER_PATH": folder, "OPENAI_API_KEY": "key"}
    command = Path(sys.executable).with_name("llm")
    ask = [command, "-m", "phi3", "Say hello to my cat.", "-o", "max_tokens", "16"]
    for more in ([], ["--no-stream"]):
        done = subprocess.run(
            [*ask, *more], env=environment, capture_output=True, text=True, timeout=120, check=False
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.strip()
print("llm: ok")
