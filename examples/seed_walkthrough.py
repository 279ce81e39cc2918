"""The ten steps of a hand-written optimum-intel script, beside the same steps on phi3ov.

    python examples/seed_walkthrough.py MODEL

MODEL is an exported folder. Both halves answer the same prompt with the same weights, and the
script ends by saying whether they agree. It needs ``phi3ov[export]`` for the first half.
"""

import sys

import phi3ov

SYSTEM = "You are a helpful AI assistant."
QUESTION = "can you introduce yourself?"
MAX_NEW_TOKENS = 1024


def by_hand(folder: str) -> str:
    """Take the steps with optimum-intel and transformers, as most scripts do."""
    # 1. import optimum-intel and transformers
    from optimum.intel import OVModelForCausalLM
    from transformers import AutoConfig, AutoTokenizer

    # 2. the checkpoint was exported to int4, group size 128, ratio 0.6, symmetric
    # 3. configure OpenVINO
    ov_config = {
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": "1",
        "CACHE_DIR": "",
        "INFERENCE_PRECISION_HINT": "f32",
    }
    # 4. choose a device: the script dies here if it names one that is not there
    device = "CPU"
    # 5. load
    model = OVModelForCausalLM.from_pretrained(
        folder, device=device, ov_config=ov_config, config=AutoConfig.from_pretrained(folder)
    )
    # 6. the tokenizer
    tokenizer = AutoTokenizer.from_pretrained(folder)
    # 7. write the prompt by hand: what a user types here can become a control token
    prompt = f"<|system|>\n{SYSTEM}<|end|>\n<|user|>\n{QUESTION}<|end|>\n<|assistant|>\n"
    # 8. encode without adding special tokens
    inputs = tokenizer(prompt, add_special_tokens=False, return_tensors="pt")
    # 9. generate
    output = model.generate(**inputs, max_new_tokens=MAX_NEW_TOKENS, do_sample=False)
    # 10. cut the prompt off and decode without special tokens
    answer: str = tokenizer.decode(
        output[0][inputs["input_ids"].shape[1] :], skip_special_tokens=True
    )
    return answer


def on_phi3ov(folder: str) -> str:
    """Take the same steps with phi3ov."""
    # 3. to 5.
    config = phi3ov.RuntimeConfig.exact()
    with phi3ov.load_model(folder, device=("GPU.0", "CPU"), config=config) as model:
        # 6. and 7. come with the model; 8. to 10.
        chat = phi3ov.Phi3Chat(model, system=SYSTEM)
        return chat.generate(QUESTION, max_new_tokens=MAX_NEW_TOKENS).text


def main(folder: str) -> None:
    """Answer both ways and compare."""
    ours, theirs = on_phi3ov(folder), by_hand(folder)
    print(f"phi3ov:   {ours}\nby hand:  {theirs}")
    print("the same" if ours == theirs else "NOT the same")


if __name__ == "__main__":
    main(sys.argv[1])
