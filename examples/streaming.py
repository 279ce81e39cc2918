"""Text as it comes, an answer that is stopped half-way, and the same from asyncio.

python examples/streaming.py MODEL
"""

import asyncio
import sys

import phi3ov


def main(folder: str) -> None:
    """Stream one answer, cancel another, and stream a third without blocking."""
    with phi3ov.load_model(folder) as model:
        chat = phi3ov.Phi3Chat(model)
        for piece in chat.stream("What is the capital of France?"):
            print(piece, end="", flush=True)

        stream = chat.stream("Write a poem about the sea.")
        for number, piece in enumerate(stream):
            print(piece, end="", flush=True)
            if number == 10:
                stream.cancel()  # from any thread; the history forgets this turn
        print(f"\n[{stream.reply.finish_reason}]")
        asyncio.run(stream_without_blocking(chat))


async def stream_without_blocking(chat: phi3ov.Phi3Chat) -> None:
    """Let the event loop run while the answer is made."""
    async for piece in chat.stream("And of Germany?"):
        print(piece, end="", flush=True)
    print()


if __name__ == "__main__":
    main(sys.argv[1])
