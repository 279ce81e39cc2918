"""A manual that the model reads once: later starts restore what it has read.

python examples/saved_prefix.py MODEL [TEXT_FILE]
"""

import sys
import time
from pathlib import Path

import phi3ov

MANUAL = "The green button starts the machine. The red button stops it. " * 20


def main(folder: str, text_file: str | None = None) -> None:
    """Restore the manual's KV cache, or read the manual and save it; then ask."""
    manual = Path(text_file).read_text(encoding="utf-8") if text_file else MANUAL
    saved = Path("manual.kv")
    with phi3ov.load_model(folder, device="CPU", engine="paged") as model:
        chat = phi3ov.Phi3Chat(model, system="Answer from this manual. " + manual)
        started = time.perf_counter()
        try:
            tokens = model.restore_kv_cache(saved)
            done = f"{tokens} tokens restored"
        except (FileNotFoundError, phi3ov.RestoreError) as error:
            print(f"[{error}]")
            chat.save_kv_cache(saved)
            done = f"{len(chat.token_ids)} tokens read and saved"
        print(f"[{done} in {time.perf_counter() - started:.2f} s]")
        reply = chat.generate("Which button starts the machine?", max_new_tokens=32)
        print(reply)
        print(f"[{reply.usage.cached_tokens} of {reply.usage.prompt_tokens} prompt tokens cached]")


if __name__ == "__main__":
    main(*sys.argv[1:])
