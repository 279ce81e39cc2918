"""A chat in the terminal: type, read, Ctrl-D ends. Ctrl-C stops an answer.

python examples/terminal_chat.py MODEL
"""

import sys

import phi3ov


def main(folder: str) -> None:
    """Read lines and stream the answers until the input ends."""
    with phi3ov.load_model(folder) as model:
        options = phi3ov.GenerationOptions(max_new_tokens=256, on_overflow="drop_oldest")
        chat = phi3ov.Phi3Chat(model, system="You are a helpful AI assistant.", options=options)
        while True:
            try:
                message = input("\nyou> ")
            except EOFError:
                return
            with chat.stream(message) as stream:
                try:
                    for piece in stream:
                        print(piece, end="", flush=True)
                except KeyboardInterrupt:
                    stream.cancel(keep=True)
            print(f"\n[{stream.reply.timings.tokens_per_second:.0f} tokens/s]")


if __name__ == "__main__":
    main(sys.argv[1])
