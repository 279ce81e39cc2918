"""Results of ``phi3ov tune``: the fastest settings, and the file that keeps them.

The file is in the user's data folder, named for the processor and the weights. It records the
OpenVINO version and the number of processors of the measurement; for others it is stale.
``machine/tuner.py`` measures.
"""

from __future__ import annotations

import hashlib
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import msgspec

from ..artifact.fingerprint import ModelFingerprint
from ..artifact.folder import Artifact
from ..atomic_file import replace_file
from ..errors import OptionError
from ..validation import require_integer
from .config import InferencePrecision, KVCachePrecision, RuntimeConfig
from .processor import read_processor
from .user_folders import user_folder

_LOGGER = logging.getLogger("phi3ov")

Tuning = Literal["auto", "off"]
"""Whether `load_model` uses the saved result of ``phi3ov tune``."""

Goal = Literal["latency", "throughput"]
"""Goal of a setting: a single chat, or many at once."""

_VERSION = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class TunedSettings:
    """The fastest settings within the divergence budget.

    Attributes:
        inference_precision: As in `RuntimeConfig`; None for OpenVINO's default.
        dynamic_quantization_group_size: As in `RuntimeConfig`; None for OpenVINO's default.
        threads: As in `RuntimeConfig`; None for OpenVINO's default.
        kv_cache_precision: As in `RuntimeConfig`; None for the export's value.
        prompt_chunk_tokens: Maximum number of prompt tokens per step of the worker; None for the
            worker's default.
        reason: The measurement, in a sentence.
    """

    inference_precision: InferencePrecision | None = None
    dynamic_quantization_group_size: int | None = None
    threads: int | None = None
    kv_cache_precision: KVCachePrecision | None = None
    prompt_chunk_tokens: int | None = None
    reason: str = ""

    def __post_init__(self) -> None:
        self.to_config()
        if self.prompt_chunk_tokens is not None:
            require_integer("prompt_chunk_tokens", self.prompt_chunk_tokens, least=1)

    def to_config(self) -> RuntimeConfig:
        """Return the `RuntimeConfig` with these settings.

        Raises:
            OptionError: A value is not allowed.
        """
        return RuntimeConfig(
            inference_precision=self.inference_precision,
            dynamic_quantization_group_size=self.dynamic_quantization_group_size,
            threads=self.threads,
            kv_cache_precision=self.kv_cache_precision,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class TuningKey:
    """The machine and model that a measurement is valid for.

    Attributes:
        processor: Name from OpenVINO; in virtual machines, different processors share a name.
        features: `Processor.features`, sorted.
        cpus: Number of processors that the process may use.
        openvino: OpenVINO's version.
        weights: `ModelFingerprint.weights`.
    """

    processor: str
    features: tuple[str, ...]
    cpus: int
    openvino: str
    weights: str

    @classmethod
    def of(cls, artifact: Artifact, processor: str) -> TuningKey:
        """Return the key of an exported folder on this machine.

        Args:
            artifact: The folder; without a manifest its weights are hashed, which takes seconds.
            processor: The processor's name, from OpenVINO.
        """
        import openvino

        found = read_processor(processor)
        return cls(
            processor=processor,
            features=tuple(sorted(found.features)),
            cpus=found.threads_within_quota or found.cpus,
            openvino=openvino.get_version(),
            weights=ModelFingerprint.of(artifact).weights,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class TuningRecord:
    """The content of a file of ``phi3ov tune``.

    Attributes:
        key: The machine and model of the measurement.
        date: The day, as ``2026-11-28``.
        latency: The fastest settings for one chat.
        throughput: The fastest settings for many chats at once.
        version: Version of the file format.
    """

    key: TuningKey
    date: str
    latency: TunedSettings
    throughput: TunedSettings
    version: int = _VERSION

    def for_goal(self, goal: Goal) -> TunedSettings:
        """Return the settings for one of the two goals."""
        return self.latency if goal == "latency" else self.throughput


def check_tuning(tuning: object) -> None:
    """Check an argument ``tuning``.

    Raises:
        OptionError: The value is not ``"auto"``, ``"off"`` or a path.
    """
    if not isinstance(tuning, (str, Path)) or tuning == "":
        raise OptionError(
            f"tuning={tuning!r} must be 'auto', 'off', or the path of a file of phi3ov tune.",
            option="tuning",
        )


def tuning_folder() -> Path:
    """Return the folder in which ``phi3ov tune`` keeps its files; it may not exist.

    Raises:
        OptionError: The user has no home folder.
    """
    return user_folder("data") / "tuning"


def tuning_path(key: TuningKey) -> Path:
    """Return the file for a processor and an export, for any OpenVINO and number of CPUs.

    Raises:
        OptionError: The user has no home folder.
    """
    kind = " ".join((key.processor, *key.features))
    digest = hashlib.sha256(f"{kind}\n{key.weights}".encode()).hexdigest()
    return tuning_folder() / f"{digest[:16]}.json"


def write_record(record: TuningRecord, path: Path) -> None:
    """Write a file of ``phi3ov tune``; an existing one is overwritten atomically.

    Raises:
        OSError: The file cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with replace_file(path) as file:
        file.write(msgspec.json.format(msgspec.json.encode(record), indent=2) + b"\n")


def find_record(
    artifact: Artifact, processor: str, tuning: Tuning | Path = "auto"
) -> TuningRecord | None:
    """Return the result of ``phi3ov tune`` for an exported folder on this machine, if it exists.

    Args:
        artifact: The folder.
        processor: The processor's name, from OpenVINO.
        tuning: As for `load_model`.
    """
    if tuning == "off":
        return None
    path = None if tuning == "auto" else Path(tuning)
    if path is None and not _keeps_records():
        return None  # skip hashing a folder without a manifest, which takes seconds
    return read_record(TuningKey.of(artifact, processor), path)


def _keeps_records() -> bool:
    try:
        return tuning_folder().is_dir()
    except OptionError as error:
        _LOGGER.info("Settings of phi3ov tune are not looked for: %s", error)
    except OSError as error:
        _LOGGER.warning("Settings of phi3ov tune are not looked for: %s", error)
    return False


def read_record(key: TuningKey, path: Path | None = None) -> TuningRecord | None:
    """Return the record for ``key``, if any.

    If the file is damaged or was measured for another key, a warning is logged and the file is not
    used.

    Args:
        key: The machine and model to load.
        path: The file; None for the one in the user's data folder, which may not exist.
    """
    wanted = tuning_path(key) if path is None else path
    try:
        record = msgspec.json.decode(wanted.read_bytes(), type=TuningRecord)
    except FileNotFoundError:
        if path is not None:
            _warn(wanted, "it does not exist")
        return None
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError) as error:
        _warn(wanted, f"it cannot be read ({error})")
        return None
    if record.version != _VERSION:
        _warn(wanted, f"its version is {record.version}, and this phi3ov reads {_VERSION}")
        return None
    stale = [
        f"{name} was {getattr(record.key, name)!r}, is {getattr(key, name)!r}"
        for name in TuningKey.__slots__
        if getattr(record.key, name) != getattr(key, name)
    ]
    if stale:
        _warn(wanted, f"it was measured for something else ({'; '.join(stale)})")
        return None
    return record


def _warn(path: Path, why: str) -> None:
    _LOGGER.warning(
        "The tuned settings in %s are not used: %s. Measure again with phi3ov tune, or load with "
        "tuning='off'.",
        path,
        why,
    )
