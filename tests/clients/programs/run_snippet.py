"""Run a block of a page as it is printed, but at the address of the test."""

import os
import re
import sys
import tempfile
from pathlib import Path

PAGE, TITLE = Path(sys.argv[1]), sys.argv[2]
text = PAGE.read_text(encoding="utf-8").replace("http://127.0.0.1:8000", os.environ["SERVER_URL"])
(block,) = re.findall(rf'```python title="{TITLE} \(not ours\)"\n(.*?)```', text, re.DOTALL)
(models,) = re.findall(r"```yaml(?: title=\"extra[^\n]*)?\n(.*?)```", text, re.DOTALL)
os.environ["OPENAI_API_KEY"] = "only the server's address may be asked"

with tempfile.TemporaryDirectory() as folder:
    os.environ["LLM_USER_PATH"] = folder
    Path(folder, "extra-openai-models.yaml").write_text(models, encoding="utf-8")
    exec(compile(block, TITLE, "exec"), {"__name__": "__main__"})
