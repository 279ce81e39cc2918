"""`load_model`: assembles artifact, device and engine into a `Phi3Model`."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .answer.reply import LoadTimings
from .artifact.download import is_hub_id
from .artifact.folder import Artifact
from .artifact.publish import fetch_artifact
from .engine.protocol import ENGINES, Engine, EngineName, EngineSetup, load_engine
from .errors import ArtifactError, DeviceError, ExportError, OptionError
from .model import Phi3Model
from .prompt.chat_tokenizer import ChatTokenizer
from .prompt.formats import ChatFormat
from .runtime.config import RuntimeConfig
from .runtime.devices import DeviceChoice, choose_device, find_devices
from .runtime.huge_pages import plan_huge_pages
from .runtime.limits import RequestLimits
from .runtime.lora import LoraAdapter
from .runtime.rope import choose_context
from .runtime.speculation import DraftModel, PromptLookup, Speculation
from .runtime.tuning import (
    Goal,
    TunedSettings,
    Tuning,
    check_tuning,
    find_record,
)
from .validation import is_integer

if TYPE_CHECKING:
    from .engine.worker.process import EarlyProcess

_LOGGER = logging.getLogger("phi3ov")


def load_model(
    path: str | Path,
    *,
    revision: str | None = None,
    device: str | Sequence[str] = ("GPU", "CPU"),
    config: RuntimeConfig = RuntimeConfig(),  # noqa: B008 - immutable
    engine: EngineName = "pipeline",
    limits: RequestLimits = RequestLimits(),  # noqa: B008 - immutable
    context_tokens: int | None = None,
    cache_bytes: int | None = None,
    speculation: Speculation | None = None,
    adapter: LoraAdapter | None = None,
    tuning: Tuning | Path = "auto",
    verify: bool = True,
    warm_up: bool = True,
) -> Phi3Model:
    """Load an exported folder on the first preferred device that can run it.

    Args:
        path: A folder made by `phi3ov.export_model`; or the hub id ``owner/name`` of such a folder,
            which is downloaded as by `phi3ov.fetch_artifact`.
        revision: Branch, tag or commit of a hub id; None for the default branch.
        device: An OpenVINO device name, or several in order of preference. If a device does not
            exist or cannot compile the model, the next one is tried. The reasons are logged and
            kept in `DeviceChoice.refused`.
        config: OpenVINO's settings.
        engine: ``"pipeline"`` (openvino-genai in this process, one answer at a time),
            ``"worker"`` (openvino-genai in a child process, many answers at once),
            ``"paged"`` (openvino alone, one answer at a time, a KV cache that can be saved) or
            ``"transformers"`` (optimum-intel; needs ``phi3ov[export]``).
        limits: How many requests run at the same time, and how many may wait.
        context_tokens: Context length that prompt and answer share. None for the model's original
            context. For a LongRoPE model a larger number selects the long factors for as long as
            the model is loaded.
        cache_bytes: Maximum size of the KV cache, including cached prefixes; at least one full
            context. None for 4 contexts with ``"pipeline"`` and 16 with ``"worker"``, but not more
            than 2 and 4 GiB, unless one context needs more.
        speculation: `PromptLookup` or `DraftModel`: speculative decoding, for the engines
            ``"pipeline"`` and ``"worker"``. Greedy text stays the same.
        adapter: A `LoraAdapter`, applied for as long as the model is loaded, for the same engines.
        tuning: ``"auto"`` applies the saved settings of ``phi3ov tune`` for this processor and
            export, if any; fields set in ``config`` take precedence. A path names the file to
            use, ``"off"`` uses none. `Phi3Model.settings` shows the origin of each setting.
        verify: Compare every file, also of a draft model, with its SHA-256 in the manifest while
            the model compiles. Otherwise only presence and size are checked. A folder that phi3ov
            did not export has no checksums; a warning is logged.
        warm_up: Generate two tokens before returning, which repacks weights, so that the first
            answer does not wait for it. `Phi3Model.load_timings` holds the duration.

    Raises:
        ArtifactError: Files are missing or have changed since the export, listing every problem;
            or there is no such folder, and no such repository on the hub.
        UnsupportedModelError: ``config.json``, tokenizer or graph are not those of a Phi-3 that
            phi3ov supports.
        DeviceError: No requested device exists or can compile the model, also because of a
            property (``RuntimeConfig.properties``) that OpenVINO does not know.
        OptionError: An argument is not allowed, or the device does not support a field of
            ``config``.
        MissingDependencyError: The engine needs a package that is not installed.
        EngineCrashedError: The worker process died while loading the model.
        GenerationError: The engine failed during warm-up.

    Example:
        >>> with load_model("models/phi3-int4", device="CPU") as model:  # doctest: +SKIP
        ...     print(model.device.reason)
        CPU is the first choice and is there.
    """
    started = time.perf_counter()
    _require_type("config", config, RuntimeConfig)
    _require_engine(engine, limits)
    _require_type("speculation", speculation, PromptLookup, DraftModel, type(None))
    _require_type("adapter", adapter, LoraAdapter, type(None))
    _require_bytes("cache_bytes", cache_bytes)
    check_tuning(tuning)
    artifact = find_artifact(path, revision=revision)
    draft = _find_draft(speculation)
    if isinstance(speculation, DraftModel) and draft is not None:
        speculation = replace(speculation, path=draft.path, revision=None)
    context = choose_context(artifact.config, context_tokens)
    chat_format = artifact.chat_format
    with _early_start(engine, config) as early:
        available = find_devices(device)
        setup = EngineSetup(
            artifact=artifact,
            device=choose_device(device, available).selected,
            config=config,
            context=context,
            limits=limits,
            cache_bytes=cache_bytes,
            speculation=speculation,
            adapter=adapter,
            tuned=_find_tuned(
                artifact, tuning, "throughput" if engine == "worker" else "latency", available
            ),
            early_process=early,
        )
        files = [found for found in (artifact, draft) if found is not None and found.has_checksums]
        read = time.perf_counter()
        # openvino-genai compiles without the interpreter's lock, so both are read meanwhile
        with ThreadPoolExecutor(max_workers=2, thread_name_prefix="phi3ov-load") as executor:
            reading = executor.submit(_read_tokenizer, artifact, chat_format)
            pending: list[Future[Any]] = [reading]
            if verify and files:
                pending.append(executor.submit(_verify, files))
            running, choice = _open_first(engine, setup, device, available, pending)
            compiled = time.perf_counter()
            _wait_for(pending, running)
    verified = time.perf_counter()
    model = Phi3Model(
        artifact=artifact,
        device=choice,
        context=context,
        tokenizer=reading.result(),
        engine=running,
        config=config,
        adapter=adapter,
        load_timings=LoadTimings(
            read_seconds=read - started,
            compile_seconds=compiled - read,
            verify_seconds=verified - compiled,
        ),
    )
    if warm_up:
        _warm_up(model)
    return model


def find_artifact(
    path: str | Path, *, revision: str | None = None, needs_chat: bool = True
) -> Artifact:
    """Open a local folder, or download the folder of a hub id.

    Args:
        path: A folder, or a hub id ``owner/name``. A local folder of that name takes precedence.
        revision: Branch, tag or commit of a hub id; None for the default branch.
        needs_chat: Whether a folder that phi3ov did not export must have a chat template.

    Raises:
        ArtifactError: The folder is incomplete or changed; or there is no such folder, and no such
            repository on the hub.
        OptionError: ``revision`` is given, and ``path`` is not a hub id.
    """
    if isinstance(path, Path) or Path(path).exists() or not is_hub_id(path):
        if revision is not None:
            raise OptionError(
                f"revision={revision!r} goes with a hub id, but {path} is a path.",
                option="revision",
            )
        return Artifact.open(path, needs_chat=needs_chat)
    try:
        return fetch_artifact(path, revision=revision, needs_chat=needs_chat)
    except ExportError as error:
        raise ArtifactError(
            f"{path} is not a folder, and cannot be downloaded from the hub: {error} For a local "
            f"folder, export a checkpoint first: phi3ov.export_model(source, {path!r})."
        ) from error


def _find_draft(speculation: Speculation | None) -> Artifact | None:
    if not isinstance(speculation, DraftModel):
        return None
    return find_artifact(speculation.path, revision=speculation.revision, needs_chat=False)


@contextmanager
def _early_start(engine: EngineName, config: RuntimeConfig) -> Iterator[EarlyProcess | None]:
    """Start the worker's interpreter, whose imports take as long as those of this process."""
    if engine != "worker":
        yield None
        return
    from .engine.worker.process import early_process

    planned = plan_huge_pages(config, "CPU", "worker")
    with early_process(huge_pages=planned.value == "on") as early:
        yield early


def _read_tokenizer(artifact: Artifact, chat_format: ChatFormat) -> ChatTokenizer:
    tokenizer = ChatTokenizer.from_folder(artifact.path, chat_format)
    tokenizer.require_rows(artifact.config.vocab_size)
    return tokenizer


def _verify(artifacts: Sequence[Artifact]) -> None:
    for artifact in artifacts:
        artifact.verify()


def _find_tuned(
    artifact: Artifact, tuning: Tuning | Path, goal: Goal, available: Mapping[str, str]
) -> TunedSettings | None:
    """Return the result of ``phi3ov tune`` for this machine and export, if any."""
    processor = available.get("CPU")
    record = None if processor is None else find_record(artifact, processor, tuning)
    if record is None:
        return None
    _LOGGER.info("%s: settings of phi3ov tune, %s, for %s", artifact.path, record.date, goal)
    return record.for_goal(goal)


def _open_first(
    engine: EngineName,
    setup: EngineSetup,
    device: str | Sequence[str],
    available: Mapping[str, str],
    pending: Sequence[Future[Any]],
) -> tuple[Engine, DeviceChoice]:
    """Open the engine on the first preferred device that can compile the model.

    If that fails and so does one of ``pending``, the latter's error is raised: a damaged file
    explains the engine's error better.
    """
    open_engine = load_engine(engine)
    failed: dict[str, str] = {}
    cause: DeviceError | None = None
    while True:
        try:
            choice = choose_device(device, available, failed=failed)
        except DeviceError as none_left:
            raise none_left from cause
        try:
            running = open_engine(replace(setup, device=choice.selected))
        except Exception as error:
            for future in pending:
                future.result()
            if not isinstance(error, DeviceError):
                raise
            _LOGGER.warning("%s: %s: %s", setup.artifact.path, choice.selected, error)
            failed[choice.selected] = str(error)
            cause = error
        else:
            _LOGGER.info("%s: %s", setup.artifact.path, choice.reason)
            return running, choice


def _wait_for(pending: Sequence[Future[Any]], running: Engine) -> None:
    """Wait for files and tokenizer; close the engine if one of them is not as it should be."""
    try:
        for future in pending:
            future.result()
    except BaseException:
        running.close()
        raise


def _warm_up(model: Phi3Model) -> None:
    try:
        seconds = model.warm_up()
    except BaseException:
        model.close()
        raise
    model.load_timings = replace(model.load_timings, warm_up_seconds=seconds)


def _require_engine(engine: EngineName, limits: RequestLimits) -> None:
    _require_type("limits", limits, RequestLimits)
    if engine not in ENGINES:
        raise OptionError(
            f"engine={engine!r} is not one of {', '.join(map(repr, ENGINES))}.", option="engine"
        )
    if engine != "worker" and limits.max_running not in (None, 1):
        raise OptionError(
            f"max_running={limits.max_running}: engine={engine!r} answers one request at a time. "
            "Use engine='worker'.",
            option="max_running",
        )


def _require_bytes(name: str, value: int | None) -> None:
    if value is not None and (not is_integer(value) or value < 1):
        raise OptionError(
            f"{name}={value!r} must be a number of bytes, at least 1, or None.", option=name
        )


def _require_type(name: str, value: object, *types: type) -> None:
    if not isinstance(value, types):
        names = [f"phi3ov.{each.__name__}" for each in types if each is not type(None)]
        raise OptionError(f"{name} must be a {' or '.join(names)}, got {value!r}.", option=name)
