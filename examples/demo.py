"""The whole way on a small real model: build it, export it to int4, load it, talk to it.

    make demo
    python examples/demo.py [FOLDER]

Everything is kept in FOLDER (build/ beside examples/), so a second run starts with the chat.
"""

import sys
from pathlib import Path

import phi3ov
from phi3ov.reference.build import build_reference

BUILD = Path(__file__).parent.parent / "build"

# Group size 128 does not divide this small model's width of 576; Phi-3's 3072 it does.
RECIPE = phi3ov.Int4Compression(on_indivisible="adjust")


def prepare(build: Path) -> phi3ov.Artifact:
    """Return the exported reference model, building what is not there yet."""
    checkpoint, exported = build / "reference", build / "reference-int4"
    try:
        return phi3ov.Artifact.open(exported)
    except phi3ov.ArtifactError:
        if not (checkpoint / "config.json").is_file():
            print(f"Building the reference checkpoint in {checkpoint} ...")
            build_reference(checkpoint)
        print(f"Exporting it to {exported} ...")
        return phi3ov.export_model(checkpoint, exported, compression=RECIPE).artifact


def main(build: Path = BUILD) -> None:
    """Answer two questions and say what they took."""
    artifact = prepare(build)
    replies = []
    with phi3ov.load_model(artifact.path, device=("GPU.0", "CPU")) as model:
        print(f"Loaded on {model.device.selected}: {model.device.reason}")
        chat = phi3ov.Phi3Chat(model, system="You are a helpful AI assistant.")
        for question in ("can you introduce yourself?", "What is the capital of France?"):
            print(f"\nyou> {question}\nmodel> ", end="")
            with chat.stream(question) as stream:
                for piece in stream:
                    print(piece, end="", flush=True)
            print()
            replies.append(stream.reply)

    print("\n  tokens in  cached  out   first token   tokens/s")
    for reply in replies:
        usage, timings = reply.usage, reply.timings
        print(
            f"  {usage.prompt_tokens:9}  {usage.cached_tokens:6}  {usage.completion_tokens:3}"
            f"   {timings.first_token_seconds:9.3f} s  {timings.tokens_per_second:9.1f}"
        )
    print(
        f"  on disk: {artifact.manifest.source_bytes / 1e6:.0f} MB of float16 weights before, "
        f"{artifact.size_bytes / 1e6:.0f} MB after ({artifact.bits_per_weight:.2f} bits per weight)"
    )
    command = Path(sys.executable).with_name("phi3ov")
    print(
        "\nThis 135M model shows the machinery, not Phi-3's answers. Next:\n"
        f"  {command} chat {artifact.path}\n"
        f"  {command} export microsoft/Phi-3-mini-4k-instruct models/phi3-int4\n"
        f"  {command} chat models/phi3-int4"
    )


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
