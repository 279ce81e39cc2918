"""What errors say: what is wrong, and the way out.

python examples/errors.py MODEL
"""

import sys

import phi3ov


def main(folder: str) -> None:
    """Make three mistakes and print what the library says of each."""
    try:
        phi3ov.load_model(folder, device="GPU.7")
    except phi3ov.DeviceError as error:
        print(f"device: {error}")
    with phi3ov.load_model(folder) as model:
        chat = phi3ov.Phi3Chat(model)
        try:
            chat.generate("Hello", max_new_tokens=10**6)
        except phi3ov.ContextLengthError as error:
            print(f"context: {error.prompt_tokens} + {error.max_new_tokens} tokens. {error}")
        try:
            chat.generate("Hello", top_p=0.9)
        except phi3ov.Phi3OVError as error:  # the class of all of them
            print(f"option: {error}")


if __name__ == "__main__":
    main(sys.argv[1])
