"""`diagnose`: run the same prompts on every device and engine, and check the answers on the CPU.

A broken driver or kernel can produce fluent nonsense without an error. So every device and engine
of the machine answers the same prompts greedily. Each prompt is answered twice, the second time
from the prefix cache, and in one batch if the engine supports it. Then the model in float32 on the
CPU computes the probability of every token of each answer. A token is wrong if this exact model
prefers another token by more than a tolerance. Two tokens of nearly equal probability are both
right, because rounding may choose either; the following tokens are judged given the chosen one.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ..answer.token_stream import TokenRequest
from ..engine.protocol import ENGINES, Engine, EngineName, EngineSetup, load_engine
from ..errors import ArtifactError, GenerationError, OptionError, Phi3OVError
from ..loading import find_artifact
from ..prompt.chat_tokenizer import ChatTokenizer
from ..prompt.messages import Message
from ..runtime.config import RuntimeConfig
from ..runtime.devices import choose_device, describe_devices
from ..runtime.rope import choose_context
from ..runtime.tuning import find_record
from ..validation import is_number, require_choice, require_integer

if TYPE_CHECKING:
    from ..artifact.folder import Artifact
    from ..runtime.devices import DeviceInfo
    from ..runtime.rope import ContextChoice
    from ..runtime.tuning import TuningRecord

Verdict = Literal["right", "wrong", "not run"]
"""Result for a device with an engine; "not run" if the model does not load."""

PROMPTS = (
    "What is the capital of France?",
    "Write a Python function that returns the n-th Fibonacci number.",
    "Übersetze ins Deutsche: 你好，世界 👍",
    "Here is a price list.\n"
    + "\n".join(
        f"Article {number}: {number * 37 % 101} euros, {number * 53 % 17} in stock."
        for number in range(1, 25)
    )
    + "\nWhich article is the most expensive?",
)
"""Default prompts: short, code, other scripts, and one that needs several forward passes."""

ANSWER_TOKENS = 48
TOLERANCE_NATS = 2.0
"""Maximum difference in log-probability between the exact model's first choice and a right token:
a factor of about 7.

On the reference model in int4, with phi3ov's default settings, the worst of 1 024 right tokens was
1.0 nats below the first choice. Random tokens are 6.5 nats below it (median), and the best of 128
was 2.05 nats below.
"""

_NO_TOKEN_NATS = 1000.0
"""How far behind an id is that the model does not have: finite, as JSON knows no infinity."""

_CONTEXT_TOKENS = 1024
_TIMEOUT_SECONDS = 600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckedAnswer:
    """One answer of a device, judged by the exact model.

    Attributes:
        prompt: Number of the prompt, from 1.
        repeated: Whether the prompt was answered before and came from the prefix cache.
        tokens: Number of tokens of the answer.
        first_choices: Number of tokens that are the exact model's first choice.
        furthest_nats: Largest difference in log-probability between the first choice and a token.
        wrong_from: Number of the first wrong token, from 1; None if all are right.
        said: Text of the first wrong token.
        expected: Text of the exact model's first choice at that position.
    """

    prompt: int
    repeated: bool
    tokens: int
    first_choices: int
    furthest_nats: float
    wrong_from: int | None = None
    said: str = ""
    expected: str = ""

    def __str__(self) -> str:
        which = f"prompt {self.prompt}" + (", from the cache" if self.repeated else "")
        if self.wrong_from is None:
            return f"{which}: right"
        return (
            f"{which}: wrong from token {self.wrong_from}, {self.said!r} instead of "
            f"{self.expected!r}; {self.furthest_nats:.1f} nats"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """Result for one device with one engine.

    Attributes:
        device: OpenVINO's name of the device.
        full_name: The product name.
        engine: The engine.
        verdict: Whether the answers are right.
        reason: Why the answers are wrong or the model did not run; empty if they are right.
        answers: The judged answers; empty if there are none.
        seconds: Time for loading and answering.
    """

    device: str
    full_name: str
    engine: EngineName
    verdict: Verdict
    reason: str = ""
    answers: tuple[CheckedAnswer, ...] = ()
    seconds: float = 0.0

    @property
    def wrong_from(self) -> int | None:
        """Number of the first wrong token of any answer, from 1; None if all are right."""
        wrong = [item.wrong_from for item in self.answers if item.wrong_from is not None]
        return min(wrong, default=None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Diagnosis:
    """Result of `diagnose`. ``print(diagnosis)`` shows it as a table.

    Attributes:
        artifact: The exported folder.
        openvino: OpenVINO's version.
        tolerance_nats: Maximum difference in log-probability of a right token.
        prompt_tokens: Number of tokens of each prompt.
        findings: The result for each device and engine.
    """

    artifact: str
    openvino: str
    tolerance_nats: float
    prompt_tokens: tuple[int, ...]
    findings: tuple[Finding, ...]

    @property
    def wrong(self) -> tuple[Finding, ...]:
        """The findings whose answers are wrong."""
        return tuple(found for found in self.findings if found.verdict == "wrong")

    def to_dict(self) -> dict[str, Any]:
        """Return the diagnosis as plain values, for JSON."""
        return asdict(self)

    def __str__(self) -> str:
        head = ("device", "engine", "verdict", "right", "from token", "first choice", "nats", "s")
        cells = [head, *map(_cells, self.findings)]
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        version = self.openvino.partition("-")[0]
        lines = [f"{self.artifact}, OpenVINO {version}, against the CPU in float32"]
        lines += [
            "  ".join(
                cell.ljust(width) if index < 3 else cell.rjust(width)
                for index, (cell, width) in enumerate(zip(row, widths, strict=True))
            ).rstrip()
            for row in cells
        ]
        for found in self.findings:
            name = f"{found.device} {found.engine}"
            if found.reason:
                lines.append(f"{name}: {found.reason}")
            wrong = [item for item in found.answers if item.wrong_from is not None]
            lines += [f"{name}: {answer}" for answer in wrong]
        lines.append(
            f"a token is wrong where the exact model prefers another by more than "
            f"{self.tolerance_nats:g} nats ({math.exp(self.tolerance_nats):.1f} times as likely)"
        )
        return "\n".join(lines)


def diagnose(
    path: str | Path,
    *,
    revision: str | None = None,
    devices: Sequence[str] | None = None,
    engines: Sequence[EngineName] | None = None,
    config: RuntimeConfig = RuntimeConfig(),  # noqa: B008 - immutable
    prompts: Sequence[str] | None = None,
    answer_tokens: int = ANSWER_TOKENS,
    tolerance_nats: float = TOLERANCE_NATS,
    progress: bool = True,
) -> Diagnosis:
    """Run the same prompts on every device and engine of this machine, and check the answers.

    Only one model is in memory at a time: each device and engine in turn, then the exact model.

    Args:
        path: A folder that `load_model` loads, or the hub id of one.
        revision: Branch, tag or commit of a hub id; None for the default branch.
        devices: OpenVINO's device names; None for all devices.
        engines: The engines; None for all.
        config: OpenVINO's settings, as for `load_model`.
        prompts: User messages to answer; None for `PROMPTS`.
        answer_tokens: Tokens of each answer, at least 1; fewer if the context is short.
        tolerance_nats: Maximum difference in log-probability of a right token, in nats.
        progress: Print a line per device and engine to stderr.

    Raises:
        ArtifactError: The folder's files have changed since the export, or its weights are not
            finite.
        DeviceError: A requested device does not exist.
        OptionError: An argument is not allowed.
        UnsupportedModelError: The model is not a Phi-3 that phi3ov supports.

    Example:
        >>> print(diagnose("models/phi3-int4"))  # doctest: +SKIP
    """
    require_integer("answer_tokens", answer_tokens, least=1)
    if not (is_number(tolerance_nats) and 0 < tolerance_nats < math.inf):
        raise OptionError(
            f"tolerance_nats={tolerance_nats!r} must be a number above 0.", option="tolerance_nats"
        )
    texts = PROMPTS if prompts is None else tuple(prompts)
    if not texts:
        raise OptionError("prompts must hold at least one text.")
    chosen = tuple(ENGINES) if engines is None else tuple(engines)
    for engine in chosen:
        require_choice("engine", engine, tuple(ENGINES))
    say = _say if progress else lambda _line: None
    machine = describe_devices()
    asked = _choose_devices(devices, machine)
    artifact = find_artifact(path, revision=revision)
    if artifact.has_checksums:
        say("comparing the files with their checksums")
        artifact.verify()
    examination = _Examination.plan(artifact, config, texts, answer_tokens)
    cpu = next((device.full_name for device in machine if device.name == "CPU"), None)
    record = None if cpu is None else find_record(artifact, cpu)
    heard = []
    for device in asked:
        for engine in chosen:
            say(f"{device.name}, engine {engine!r}")
            heard.append(examination.ask(device, engine, record))
    say("the CPU in exact arithmetic reads the answers")
    findings = tuple(examination.judge(heard, tolerance_nats))
    return Diagnosis(
        artifact=str(path),
        openvino=_openvino_version(),
        tolerance_nats=float(tolerance_nats),
        prompt_tokens=tuple(map(len, examination.prompts)),
        findings=findings,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Heard:
    """Answers of a device: tokens per round and prompt, or the reason why there are none."""

    device: DeviceInfo
    engine: EngineName
    seconds: float
    rounds: Sequence[Sequence[Sequence[int]]] = ()
    not_run: str = ""
    broke_off: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Examination:
    """The encoded prompts, with the methods that run and judge them."""

    artifact: Artifact
    config: RuntimeConfig
    context: ContextChoice
    tokenizer: ChatTokenizer
    prompts: Sequence[tuple[int, ...]]
    answer_tokens: int

    @classmethod
    def plan(
        cls,
        artifact: Artifact,
        config: RuntimeConfig,
        prompts: Sequence[str],
        answer_tokens: int,
    ) -> _Examination:
        """Encode the prompts, cutting off the beginning of those that exceed the context."""
        original = artifact.config.original_max_position_embeddings
        context = choose_context(artifact.config, min(_CONTEXT_TOKENS, original))
        answer_tokens = min(answer_tokens, context.tokens // 2)
        tokenizer = ChatTokenizer.from_folder(artifact.path, artifact.chat_format)
        tokenizer.require_rows(artifact.config.vocab_size)
        room = context.tokens - answer_tokens
        return cls(
            artifact=artifact,
            config=config,
            context=context,
            tokenizer=tokenizer,
            prompts=[
                tuple(tokenizer.encode_prompt([Message("user", text)])[-room:]) for text in prompts
            ],
            answer_tokens=answer_tokens,
        )

    def ask(self, device: DeviceInfo, engine: EngineName, record: TuningRecord | None) -> _Heard:
        """Load the model on a device, and answer every prompt twice."""
        started = time.perf_counter()
        tuned = None
        if record is not None:
            tuned = record.for_goal("throughput" if engine == "worker" else "latency")
        setup = EngineSetup(
            artifact=self.artifact,
            device=device.name,
            config=self.config,
            context=self.context,
            tuned=tuned,
        )
        rounds: list[list[list[int]]] = []
        not_run = broke_off = ""
        try:
            running = load_engine(engine)(setup)
        except Exception as error:  # noqa: BLE001 - a broken driver may raise anything
            not_run = _describe(error)
        else:
            with closing(running):
                try:
                    for _ in range(2):
                        rounds.append(self._answers(running))
                except Exception as error:  # noqa: BLE001 - as above
                    broke_off = _describe(error)
        return _Heard(
            device=device,
            engine=engine,
            seconds=time.perf_counter() - started,
            rounds=rounds,
            not_run=not_run,
            broke_off=broke_off,
        )

    def _answers(self, engine: Engine) -> list[list[int]]:
        streams = [
            engine.submit(
                TokenRequest(
                    prompt_ids=prompt, max_new_tokens=self.answer_tokens, stop_ids=frozenset()
                ),
                timeout_seconds=_TIMEOUT_SECONDS,
                wait=True,
            )
            for prompt in self.prompts
        ]
        try:
            answers = [[token for chunk in stream for token in chunk] for stream in streams]
        finally:
            for stream in streams:
                stream.cancel()
        short = [len(answer) for answer in answers if len(answer) != self.answer_tokens]
        if short:
            raise GenerationError(
                f"an answer has {short[0]} of {self.answer_tokens} tokens, and nothing but the "
                f"limit of {_TIMEOUT_SECONDS:g} seconds may end it"
            )
        return answers

    def judge(self, heard: Iterable[_Heard], tolerance_nats: float) -> Iterator[Finding]:
        """Judge each answer with the exact model; equal answers are computed once."""
        judge = _Judge(self, tolerance_nats)
        for said in heard:
            answers = tuple(
                judge.check(number, tokens, repeated=repeated > 0)
                for repeated, answers in enumerate(said.rounds)
                for number, tokens in enumerate(answers)
            )
            wrong = [answer for answer in answers if answer.wrong_from is not None]
            verdict: Verdict = "right"
            if said.not_run:
                verdict = "not run"
            elif said.broke_off or wrong:
                verdict = "wrong"
            reason = said.not_run or (f"broke off: {said.broke_off}" if said.broke_off else "")
            yield Finding(
                device=said.device.name,
                full_name=said.device.full_name,
                engine=said.engine,
                verdict=verdict,
                reason=reason,
                answers=answers,
                seconds=said.seconds,
            )


class _Judge:
    """Judges answers with the exact model."""

    def __init__(self, examination: _Examination, tolerance_nats: float) -> None:
        from ..engine.logits import ExportedModel

        self._examination = examination
        self._tolerance_nats = tolerance_nats
        self._exact = ExportedModel(examination.artifact.path, RuntimeConfig.exact())
        self._known: dict[tuple[int, tuple[int, ...]], tuple[list[float], list[int]]] = {}

    def check(self, number: int, tokens: Sequence[int], *, repeated: bool) -> CheckedAnswer:
        """Judge an answer to a prompt."""
        key = (number, tuple(tokens))
        if key not in self._known:
            self._known[key] = self._read(*key)
        behind, best = self._known[key]
        wrong = [index for index, nats in enumerate(behind) if nats > self._tolerance_nats]
        first = wrong[0] if wrong else None
        spell = self._examination.tokenizer.decode
        return CheckedAnswer(
            prompt=number + 1,
            repeated=repeated,
            tokens=len(tokens),
            first_choices=sum(token == choice for token, choice in zip(tokens, best, strict=True)),
            furthest_nats=max(behind),
            wrong_from=None if first is None else first + 1,
            said="" if first is None else spell([tokens[first]]),
            expected="" if first is None else spell([best[first]]),
        )

    def _read(self, number: int, tokens: tuple[int, ...]) -> tuple[list[float], list[int]]:
        """Return each token's difference to the first choice in nats, and the first choices.

        Raises:
            ArtifactError: The exact model computes values that are not finite.
        """
        import numpy as np

        from ..engine.logits import log_probabilities

        folder = self._examination.artifact.path
        logits = self._exact.answer_logits(self._examination.prompts[number], tokens)
        if not np.isfinite(logits).all():
            raise ArtifactError(
                f"{folder}: on the CPU in float32 the logits of prompt {number + 1} are not "
                "numbers, so the export itself is broken. Export the checkpoint again."
            )
        rows = log_probabilities(logits)
        inside = np.minimum(tokens, rows.shape[1] - 1)  # a device may name ids beyond the rows
        chosen = np.where(
            np.asarray(tokens) < rows.shape[1],
            rows[np.arange(len(tokens)), inside],
            -_NO_TOKEN_NATS,
        )
        return (rows.max(axis=1) - chosen).tolist(), rows.argmax(axis=1).tolist()


def _choose_devices(names: Sequence[str] | None, machine: Sequence[DeviceInfo]) -> list[DeviceInfo]:
    if names is None:
        return list(machine)
    if isinstance(names, str) or not names:
        raise OptionError(
            f"devices={names!r} must be a sequence of names, or None for all.", option="devices"
        )
    by_name = {device.name: device for device in machine}
    available = {device.name: device.full_name for device in machine}
    return [by_name[choose_device(name, available).selected] for name in names]


def _cells(found: Finding) -> tuple[str, ...]:
    named = (found.device, found.engine, found.verdict)
    if not found.answers:
        return (*named, "-", "-", "-", "-", f"{found.seconds:.0f}")
    right = sum(answer.wrong_from is None for answer in found.answers)
    tokens = sum(answer.tokens for answer in found.answers)
    choices = sum(answer.first_choices for answer in found.answers)
    return (
        *named,
        f"{right} of {len(found.answers)}",
        "-" if found.wrong_from is None else str(found.wrong_from),
        f"{100 * choices / tokens:.0f} %",
        f"{max(answer.furthest_nats for answer in found.answers):.2f}",
        f"{found.seconds:.0f}",
    )


def _describe(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text if isinstance(error, Phi3OVError) else f"{type(error).__name__}: {text}"


def _openvino_version() -> str:
    import openvino

    return str(openvino.get_version())


def _say(line: str) -> None:
    if sys.stderr is not None:  # as under pythonw.exe
        sys.stderr.write(f"phi3ov doctor: {line}\n")
        sys.stderr.flush()
