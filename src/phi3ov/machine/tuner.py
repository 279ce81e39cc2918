"""`tune`: measure OpenVINO settings on this machine and keep the fastest for `load_model`.

It works in three steps: precision with dynamic quantization group; threads and KV cache precision
on the best of those; the worker's prompt chunk on the best of those. Each step runs in interleaved
rounds, so that disturbances of the machine affect all settings alike. The engines generate from
token ids without stop tokens, so no answer ends early. ``runtime/tuning.py`` stores the result.
"""

from __future__ import annotations

import itertools
import math
import random
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from ..answer.token_stream import TokenRequest
from ..artifact.folder import MODEL_BIN, MODEL_XML, Artifact
from ..artifact.ir import exported_kv_precision
from ..engine.protocol import Engine, EngineSetup, load_engine
from ..errors import OptionError
from ..loading import find_artifact
from ..prompt.chat_tokenizer import ChatTokenizer
from ..runtime.config import RuntimeConfig
from ..runtime.devices import describe_devices
from ..runtime.limits import RequestLimits
from ..runtime.processor import Processor, read_processor
from ..runtime.rope import ContextChoice, choose_context
from ..runtime.settings import PRECISION, largest_group
from ..runtime.tuning import (
    Goal,
    TunedSettings,
    TuningKey,
    TuningRecord,
    tuning_folder,
    tuning_path,
    write_record,
)
from ..validation import is_number, require_integer

if TYPE_CHECKING:
    from ..artifact.ir import WeightSummary
    from ..engine.logits import Logits

_Measured = TypeVar("_Measured")

DIVERGENCE_BUDGET = 0.01
"""Maximum divergence of a setting from the exact one, in nats, if the export's own is unknown.

This is a 20th of the divergence that int4 weights cause in the reference model.
"""
SHARE_OF_OWN = 0.05
"""Maximum divergence as a share of the export's own divergence from its source, if known."""

CHATS = 8
_ANSWER_TOKENS, _PROMPT_TOKENS, _PREFILL_TOKENS = 48, 24, 512
_DIVERGENCE_TOKENS = 512
_CONTEXT_TOKENS = 1024
_CHUNKS = (64, 128, 256, 512)
_LONGEST_STEP_SECONDS = 0.5
"""Maximum duration of a worker's step, for which the other chats wait (decision 18)."""
_LEAST_GAIN = 1.02
"""Minimum gain over OpenVINO's default to keep a setting; less is noise."""
_CHAT_SHARE = 2 / 3
"""Weight of decode speed in the score, a geometric mean; prefill has the rest."""
_COPIES = 2.5
"""Memory of a loaded model as a multiple of its weights: mapped, repacked, and caches."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Speed:
    """Speed of a setting.

    Attributes:
        one_chat: Decode rate of one chat, in tokens per second.
        eight_chats: Total decode rate of eight chats, in tokens per second.
        prefill: Prefill rate of a prompt of 512 tokens, in tokens per second.
    """

    one_chat: float
    eight_chats: float
    prefill: float


@dataclass(frozen=True, slots=True, kw_only=True)
class TuningRow:
    """Measurement of one setting.

    Attributes:
        settings: The setting.
        speed: Medians over the rounds.
        gain: Speed relative to OpenVINO's default: medians of the ratios within a round.
        divergence: Mean KL(exact || setting) on the text, in nats.
        refused: Why the setting was not considered; empty if it was.
    """

    settings: TunedSettings
    speed: Speed
    gain: Speed
    divergence: float
    refused: str = ""

    def score(self, goal: Goal) -> float:
        """Return the score for a goal, relative to OpenVINO's default, whose score is 1."""
        chats = self.gain.one_chat if goal == "latency" else self.gain.eight_chats
        return float(chats**_CHAT_SHARE * self.gain.prefill ** (1 - _CHAT_SHARE))


@dataclass(frozen=True, slots=True, kw_only=True)
class TuningReport:
    """Result of `tune`. ``print(report)`` shows it as a table.

    Attributes:
        artifact: The exported folder.
        record: The fastest settings, and the machine and model that they are valid for.
        rows: Every measured setting; the first is OpenVINO's default.
        budget: Maximum divergence from the exact setting, in nats.
        saved_to: The file from which `load_model` reads the fastest settings; None if they were
            not saved.
    """

    artifact: str
    record: TuningRecord
    rows: tuple[TuningRow, ...]
    budget: float
    saved_to: str | None

    def to_dict(self) -> dict[str, Any]:
        """Return the report as plain values, for JSON."""
        return asdict(self)

    def __str__(self) -> str:
        width = max(len(describe(row.settings)) for row in self.rows)
        lines = [
            f"{self.record.key.processor}, {self.record.key.cpus} processors, "
            f"OpenVINO {self.record.key.openvino}",
            f"{'':{width}} {'one chat':>16} {'eight chats':>16} {'prefill':>16} {'divergence':>11}",
        ]
        for row in self.rows:
            cells = " ".join(
                f"{speed:>8.0f} ({gain:.2f})"
                for speed, gain in (
                    (row.speed.one_chat, row.gain.one_chat),
                    (row.speed.eight_chats, row.gain.eight_chats),
                    (row.speed.prefill, row.gain.prefill),
                )
            )
            note = f"  refused: {row.refused}" if row.refused else ""
            lines.append(f"{describe(row.settings):{width}} {cells} {row.divergence:>11.5f}{note}")
        lines += [
            "tokens per second, and in brackets the multiple of OpenVINO's own",
            f"divergence from the exact setting in nats, allowed: {self.budget:.5f}",
            f"latency:    {describe(self.record.latency)}",
            f"throughput: {describe(self.record.throughput)}",
            f"kept in {self.saved_to}" if self.saved_to else "not kept",
        ]
        return "\n".join(lines)


def tune(
    path: str | Path,
    *,
    revision: str | None = None,
    own_divergence: float | None = None,
    budget: float | None = None,
    text: str | None = None,
    rounds: int | None = None,
    save: bool | Path = True,
    progress: bool = True,
) -> TuningReport:
    """Measure settings on this machine's CPU, and keep the fastest for `load_model`.

    The result is written at the end, so Ctrl-C leaves no file.

    Args:
        path: A folder made by `phi3ov.export_model`, or the hub id of one.
        revision: Branch, tag or commit of a hub id; None for the default branch.
        own_divergence: The export's own divergence from its source, in nats, as ``phi3ov
            quality`` prints it; a setting may add 5 % of it.
        budget: Maximum divergence from the exact setting, in nats; None for 5 % of
            ``own_divergence``, or for 0.01 if that is None, too.
        text: Text for measuring divergence, at least 513 tokens; None for Python's manual.
        rounds: Rounds per step, at least 1; None for 5, or for 2 if memory cannot hold all
            candidates at once and each is loaded again for each round.
        save: Whether to save the fastest settings in the user's data folder; or the file to save
            them in.
        progress: Print a line per measurement to stderr.

    Raises:
        ArtifactError: The folder's files are missing or have changed since the export.
        OptionError: A number is out of range, the text is too short, or the user has no home
            folder to save the result in.
        DeviceError: OpenVINO cannot compile the model for the CPU.
        EngineCrashedError: A worker died, for example because memory ran out.
        OSError: The result cannot be written.

    Example:
        >>> print(tune("models/phi3-int4"))  # doctest: +SKIP
    """
    allowed = _check_budget(budget, own_divergence)
    if save is True:
        tuning_folder()  # fail before minutes of work if there is no folder
    if rounds is not None:
        require_integer("rounds", rounds, least=1)
    artifact = find_artifact(path, revision=revision)
    cpu = next(device for device in describe_devices() if device.name == "CPU")
    processor = read_processor(cpu.full_name)
    ids = _read_text(artifact, text)
    bench = _Bench(
        artifact=artifact,
        ids=ids,
        rounds=rounds,
        memory_bytes=cpu.memory_bytes,
        say=_say if progress else lambda _line: None,
    )
    judge = _Judge(artifact, ids, allowed)
    arithmetic = arithmetic_candidates(processor, artifact.manifest.weights, _own_precision())
    rows = bench.measure(arithmetic, judge)
    winners = {goal: best(rows, goal) for goal in ("latency", "throughput")}
    exported = exported_kv_precision(artifact.path / MODEL_XML)
    for base in {winner.settings: winner for winner in winners.values()}.values():
        rows += bench.measure(refinements(base.settings, processor, exported), judge, base=base)
    day = date.today().isoformat()
    record = TuningRecord(
        key=TuningKey.of(artifact, cpu.full_name),
        date=day,
        latency=_explain(best(rows, "latency"), day),
        throughput=bench.choose_chunk(_explain(best(rows, "throughput"), day)),
    )
    target = tuning_path(record.key) if save is True else save
    if isinstance(target, Path):
        write_record(record, target)
    return TuningReport(
        artifact=str(path),
        record=record,
        rows=tuple(rows),
        budget=allowed,
        saved_to=str(target) if isinstance(target, Path) else None,
    )


def arithmetic_candidates(
    processor: Processor, weights: Sequence[WeightSummary], own_precision: str
) -> list[TunedSettings]:
    """Return the precisions and dynamic quantization groups to try, OpenVINO's default first."""
    sizes: list[int | None] = [None]
    if processor.features & {"avx512_vnni", "avx_vnni"}:  # others have no dynamic quantization
        most = largest_group(weights, 128) or 0
        sizes += [size for size in (64, 128) if size <= most]
    found = [TunedSettings(dynamic_quantization_group_size=size) for size in sizes]
    if own_precision != "f32":
        found += [replace(settings, inference_precision="f32") for settings in found]
    return found


def refinements(
    base: TunedSettings, processor: Processor, exported_kv: str | None
) -> list[TunedSettings]:
    """Return ``base`` and its variants with other threads or KV cache precision."""
    found = [base]
    if exported_kv not in (None, "u8"):
        found.append(replace(base, kv_cache_precision="u8"))
    available = processor.threads_within_quota or processor.cpus
    counts = [available // 2] if available < 4 else [available // 2, available]
    if processor.fast_cpus is not None and processor.fast_cpus <= available:
        counts.append(processor.fast_cpus)  # the performance cores of a hybrid processor
    found += [replace(base, threads=count) for count in sorted({*counts} - {0})]
    return found


def best(rows: Sequence[TuningRow], goal: Goal) -> TuningRow:
    """Return the best row within the budget, or OpenVINO's default if no row gains enough."""
    within = [row for row in rows if not row.refused]
    found = max(within, key=lambda row: row.score(goal), default=rows[0])
    return found if found.score(goal) >= _LEAST_GAIN else rows[0]


def describe(settings: TunedSettings) -> str:
    """Return a setting in a few words.

    Example:
        >>> describe(TunedSettings(inference_precision="f32", threads=2))
        'f32, 2 threads'
    """
    parts = [
        settings.inference_precision,
        f"groups of {size}" if (size := settings.dynamic_quantization_group_size) else None,
        f"KV {settings.kv_cache_precision}" if settings.kv_cache_precision else None,
        f"{settings.threads} threads" if settings.threads else None,
        f"chunks of {settings.prompt_chunk_tokens}" if settings.prompt_chunk_tokens else None,
    ]
    return ", ".join(part for part in parts if part) or "OpenVINO's own"


class _Judge:
    """Measures the divergence of settings from the exact one, once per kind of arithmetic."""

    def __init__(self, artifact: Artifact, ids: Sequence[int], budget: float) -> None:
        self._artifact = artifact
        self._windows = [ids[:256], ids[256:_DIVERGENCE_TOKENS]]
        self._budget = budget
        self._exact: list[Logits] = []
        self._known: dict[TunedSettings, float] = {}

    def divergence(self, settings: TunedSettings) -> float:
        """Return mean KL(exact || setting) over the text, in nats."""
        arithmetic = replace(settings, threads=None, prompt_chunk_tokens=None, reason="")
        if arithmetic not in self._known:
            from ..engine.logits import ExportedModel

            folder = self._artifact.path
            if not self._exact:
                exact = ExportedModel(folder, RuntimeConfig.exact())
                self._exact = [exact.logits(window) for window in self._windows]
                del exact  # free its memory for the next model
            model = ExportedModel(folder, RuntimeConfig(), tuned=arithmetic)
            pairs = zip(self._exact, map(model.logits, self._windows), strict=True)
            self._known[arithmetic] = _mean_divergence(pairs)
        return self._known[arithmetic]

    def refuse(self, settings: TunedSettings) -> str:
        """Return why a setting is not considered; empty if it is, as OpenVINO's default always."""
        found = self.divergence(settings)
        if settings == TunedSettings() or found <= self._budget:
            return ""
        return f"more than {self._budget:g} nats from exact"


class _Bench:
    """Opens engines with the candidates' settings, and measures them in turns."""

    def __init__(
        self,
        *,
        artifact: Artifact,
        ids: Sequence[int],
        rounds: int | None,
        memory_bytes: int | None,
        say: Callable[[str], None],
    ) -> None:
        self._artifact = artifact
        self._ids = ids
        self._rounds = rounds
        self._memory_bytes = memory_bytes
        self._say = say
        original = artifact.config.original_max_position_embeddings
        self._context = choose_context(artifact.config, min(_CONTEXT_TOKENS, original))
        self._numbers = itertools.count()

    def measure(
        self, candidates: Sequence[TunedSettings], judge: _Judge, *, base: TuningRow | None = None
    ) -> list[TuningRow]:
        """Return a row for each candidate, without the first one if its row exists already.

        Args:
            candidates: The settings; the first is the baseline of the others.
            judge: Measures their divergence.
            base: The existing row of the first candidate, if any; its gain is multiplied in.
        """
        taken: list[list[Speed]] = [[] for _ in candidates]
        for index, speed in self._in_turns(candidates, self._speed):
            taken[index].append(speed)
            self._say(
                f"{describe(candidates[index])}: {speed.one_chat:.0f} tokens/s, eight chats "
                f"{speed.eight_chats:.0f}, prefill {speed.prefill:.0f}"
            )
        rows = []
        for settings, speeds in zip(candidates, taken, strict=True):
            self._say(f"{describe(settings)}: divergence {judge.divergence(settings):.5f} nats")
            gain = _median_ratio(speeds, taken[0])
            if base is not None:
                gain = _combine(lambda a, b: a * b, gain, base.gain)
            rows.append(
                TuningRow(
                    settings=settings,
                    speed=_combine_all(statistics.median, speeds),
                    gain=gain,
                    divergence=judge.divergence(settings),
                    refused=judge.refuse(settings),
                )
            )
        return rows if base is None else rows[1:]

    def choose_chunk(self, settings: TunedSettings) -> TunedSettings:
        """Return ``settings`` with the fastest prompt chunk within the maximum step duration."""
        candidates = [replace(settings, prompt_chunk_tokens=chunk) for chunk in _CHUNKS]
        seconds: list[list[float]] = [[] for _ in candidates]
        for index, taken in self._in_turns(candidates, self._prefill):
            seconds[index].append(taken)
            self._say(f"chunks of {_CHUNKS[index]}: {_PREFILL_TOKENS / taken:.0f} tokens/s")
        medians = [statistics.median(taken) for taken in seconds]
        short = [
            index
            for index, chunk in enumerate(_CHUNKS)
            if medians[index] * chunk / _PREFILL_TOKENS <= _LONGEST_STEP_SECONDS
        ]
        return candidates[min(short, key=lambda index: medians[index], default=0)]

    def _in_turns(
        self, candidates: Sequence[TunedSettings], measure: Callable[[Engine], _Measured]
    ) -> Iterator[tuple[int, _Measured]]:
        """Yield index and measurement of each candidate, round by round, in rotating order."""
        size = (self._artifact.path / MODEL_BIN).stat().st_size
        half = (self._memory_bytes or 0) / 2
        resident = size * _COPIES * len(candidates) <= half
        rounds = self._rounds or (5 if resident else 2)
        with ExitStack() as stack:
            engines: dict[int, Engine] = {}
            if resident:
                for index, settings in enumerate(candidates):
                    engines[index] = stack.enter_context(self._open(settings))
            for number in range(rounds):
                order = range(len(candidates))
                for index in order if number % 2 else reversed(order):
                    if resident:
                        yield index, measure(engines[index])
                    else:
                        with self._open(candidates[index]) as engine:
                            yield index, measure(engine)

    @contextmanager
    def _open(self, settings: TunedSettings) -> Iterator[Engine]:
        """Load the model in a worker with these settings, and warm it up."""
        self._say(f"loading: {describe(settings)}")
        engine = load_engine("worker")(
            EngineSetup(
                artifact=self._artifact,
                device="CPU",
                config=RuntimeConfig(),
                context=ContextChoice(tokens=self._context.tokens, factors=self._context.factors),
                limits=RequestLimits(max_running=CHATS),
                tuned=settings,
            )
        )
        try:
            self._generate(engine, chats=CHATS, prompt_tokens=_PROMPT_TOKENS, answer_tokens=4)
            yield engine
        finally:
            engine.close()

    def _speed(self, engine: Engine) -> Speed:
        answers = {
            chats: self._generate(
                engine, chats=chats, prompt_tokens=_PROMPT_TOKENS, answer_tokens=_ANSWER_TOKENS
            )
            for chats in (1, CHATS)
        }
        return Speed(
            one_chat=_ANSWER_TOKENS / answers[1],
            eight_chats=CHATS * _ANSWER_TOKENS / answers[CHATS],
            prefill=_PREFILL_TOKENS / self._prefill(engine),
        )

    def _prefill(self, engine: Engine) -> float:
        return self._generate(engine, chats=1, prompt_tokens=_PREFILL_TOKENS, answer_tokens=1)

    def _generate(
        self, engine: Engine, *, chats: int, prompt_tokens: int, answer_tokens: int
    ) -> float:
        """Return the seconds for several answers to prompts that are not cached."""
        requests = [
            TokenRequest(
                prompt_ids=tuple(
                    random.Random(next(self._numbers)).choices(self._ids, k=prompt_tokens)
                ),
                max_new_tokens=answer_tokens,
                stop_ids=frozenset(),
            )
            for _ in range(chats)
        ]
        started = time.perf_counter()
        streams = [engine.submit(request, wait=True) for request in requests]
        try:
            for stream in streams:
                for _chunk in stream:
                    pass
        finally:
            for stream in streams:
                stream.cancel()
        return time.perf_counter() - started


def _check_budget(budget: float | None, own_divergence: float | None) -> float:
    for name, value in (("budget", budget), ("own_divergence", own_divergence)):
        if value is not None and not (is_number(value) and 0 <= value < math.inf):
            raise OptionError(
                f"{name}={value!r} must be a number of nats, at least 0, or None.", option=name
            )
    if budget is not None:
        return float(budget)
    return DIVERGENCE_BUDGET if own_divergence is None else SHARE_OF_OWN * own_divergence


def _read_text(artifact: Artifact, text: str | None) -> list[int]:
    if text is None:
        try:
            from pydoc_data.topics import topics
        except ImportError as error:
            raise OptionError(
                "text=None needs Python's own help texts (pydoc_data), and this Python was "
                "installed without them. Give text of your own.",
                option="text",
            ) from error
        text = "\n\n".join(topics[name] for name in sorted(topics)[:8])
    tokenizer = ChatTokenizer.from_folder(artifact.path, artifact.chat_format)
    ids = tokenizer.encode_text(text)
    if len(ids) <= _DIVERGENCE_TOKENS:
        raise OptionError(
            f"text has {len(ids)} tokens; at least {_DIVERGENCE_TOKENS + 1} are needed. Give more."
        )
    return ids


def _own_precision() -> str:
    from openvino import Core

    return str(Core().get_property("CPU", PRECISION).get_type_name())


def _mean_divergence(pairs: Iterator[tuple[Logits, Logits]]) -> float:
    from ..engine.logits import divergence, log_probabilities

    values: list[float] = []
    for exact, other in pairs:
        for row in range(0, len(exact), 16):  # a whole window in float64 takes gigabytes
            rows = slice(row, row + 16)
            p, q = log_probabilities(exact[rows]), log_probabilities(other[rows])
            values += divergence(p, q).tolist()
    return math.fsum(values) / len(values)


def _explain(row: TuningRow, day: str) -> TunedSettings:
    return replace(
        row.settings,
        reason=f"phi3ov tune, {day}: {row.gain.one_chat:.2f} times OpenVINO's own for one chat, "
        f"{row.gain.eight_chats:.2f} for eight, {row.gain.prefill:.2f} for prefill, "
        f"{row.divergence:.4f} nats from exact",
    )


def _median_ratio(speeds: Sequence[Speed], base: Sequence[Speed]) -> Speed:
    ratios = [_combine(lambda a, b: a / b, *pair) for pair in zip(speeds, base, strict=True)]
    return _combine_all(statistics.median, ratios)


def _combine(change: Callable[[float, float], float], left: Speed, right: Speed) -> Speed:
    return _combine_all(lambda values: change(*values), (left, right))


def _combine_all(change: Callable[[list[float]], float], speeds: Sequence[Speed]) -> Speed:
    return Speed(
        one_chat=change([speed.one_chat for speed in speeds]),
        eight_chats=change([speed.eight_chats for speed in speeds]),
        prefill=change([speed.prefill for speed in speeds]),
    )


def _say(line: str) -> None:
    if sys.stderr is not None:  # as under pythonw.exe
        sys.stderr.write(f"phi3ov tune: {line}\n")
        sys.stderr.flush()
