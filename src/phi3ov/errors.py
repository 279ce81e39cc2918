"""Every error that phi3ov raises on purpose.

Each one derives from `Phi3OVError` and, where one fits, from the builtin that a
caller would expect, so both ``except phi3ov.Phi3OVError`` and ``except ValueError``
work::

    Phi3OVError(Exception)
    ├─ MissingDependencyError(ImportError)      an optional package is not installed
    ├─ UnsupportedModelError(ValueError)        config.json is not a Phi-3 that phi3ov supports
    ├─ ExportError                              conversion or compression failed
    │   └─ CompressionError(ValueError)         the recipe does not fit the model's layers
    ├─ ArtifactError(ValueError)                an exported folder is incomplete or changed
    ├─ DeviceError(ValueError)                  no requested device can be used
    ├─ RestoreError(ValueError)                 a saved file is damaged or of another model
    ├─ OptionError(ValueError)                  an option is out of range or contradicts another
    ├─ StateError(RuntimeError)                 used after close(), or while a turn is open
    │   └─ QueueFullError                       the request queue is full
    ├─ PromptError(ValueError)                  a conversation cannot be encoded as a prompt
    │   └─ ContextLengthError                   prompt and answer do not fit the context
    └─ GenerationError                          the engine failed while answering
        └─ EngineCrashedError                   the worker process died

Errors of underlying libraries are translated in ``engine/`` and ``exporter/``, and stay reachable
as ``__cause__``. `lazy_names` raises `MissingDependencyError` for a package whose extra is missing.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any


class Phi3OVError(Exception):
    """Base of every deliberate error of this library."""

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle and copy by state, because subclasses take keyword-only arguments."""
        return _rebuild, (type(self), self.args, self.__dict__)


def _rebuild(cls: type[Phi3OVError], args: tuple[Any, ...], state: dict[str, Any]) -> Phi3OVError:
    error = cls.__new__(cls, *args)
    error.__dict__.update(state)
    return error


class MissingDependencyError(Phi3OVError, ImportError):
    """An optional package is not installed; the message holds the exact pip command."""

    def __init__(self, package: str, *, purpose: str, command: str) -> None:
        """Name the missing ``package``, its ``purpose``, and the ``command`` that installs it."""
        super().__init__(f"{purpose} needs {package}, which is not installed. Run: {command}")
        self.package = package
        self.command = command


class UnsupportedModelError(Phi3OVError, ValueError):
    """A checkpoint is not a Phi-3 that phi3ov supports; names the field and its value."""


class ExportError(Phi3OVError):
    """Conversion or compression failed; the target is unchanged."""


class CompressionError(ExportError, ValueError):
    """A compression recipe does not fit the model, or the result does not match the recipe."""

    def __init__(self, message: str, *, layers: tuple[str, ...] = ()) -> None:
        """Keep the names of the ``layers`` that the recipe does not fit."""
        super().__init__(message)
        self.layers = layers


class ArtifactError(Phi3OVError, ValueError):
    """An exported folder is incomplete, changed or of another version; lists every problem."""

    def __init__(self, message: str, *, problems: tuple[str, ...] = ()) -> None:
        """Keep every one of the ``problems`` found, one sentence each."""
        lines = "".join(f"\n  - {problem}" for problem in problems)
        super().__init__(message + lines)
        self.problems = problems


class DeviceError(Phi3OVError, ValueError):
    """No requested device can be used; names requested and existing devices, and the reasons."""


class RestoreError(Phi3OVError, ValueError):
    """A saved file is damaged, of another version, or does not belong to the loaded model."""

    def __init__(self, path: str | Path, reason: str) -> None:
        """Keep the file's ``path`` and the ``reason``, one sentence."""
        super().__init__(f"{path} cannot be restored: {reason}")
        self.path: Path = Path(path)
        self.reason = reason


class OptionError(Phi3OVError, ValueError):
    """An option's value is out of range or contradicts another; names the field and the value.

    Attributes:
        option: Name of the option, as the caller gave it; None if no single option is meant.
    """

    def __init__(self, message: str, *, option: str | None = None) -> None:
        """Keep the name of the ``option``."""
        super().__init__(message)
        self.option = option


class StateError(Phi3OVError, RuntimeError):
    """An object was used at the wrong time: a closed model, or a chat whose turn is still open."""


class QueueFullError(StateError):
    """The request queue is full: its requests or prompt tokens have reached `RequestLimits`."""

    def __init__(self, open_requests: int, *, waiting_tokens: int | None = None) -> None:
        """Keep the number of ``open_requests``, and of ``waiting_tokens`` if they are limited."""
        if waiting_tokens is None:
            full = f"{open_requests} requests run or wait already"
            limit = "max_waiting"
        else:
            full = f"{waiting_tokens} prompt tokens of {open_requests} requests wait already"
            limit = "max_waiting_tokens"
        super().__init__(
            f"{full}, which is the most that this model takes. Try again when one has ended, "
            "choose on_full_queue='wait', or load it with "
            f"limits=RequestLimits({limit}=...)."
        )
        self.open_requests = open_requests
        self.waiting_tokens = waiting_tokens


class PromptError(Phi3OVError, ValueError):
    """A conversation is empty, has an invalid order of roles, or does not fit the chat format."""


class ContextLengthError(PromptError):
    """The prompt and the requested answer do not fit the model's context."""

    def __init__(self, *, prompt_tokens: int, max_new_tokens: int, context_tokens: int) -> None:
        """Keep the three numbers that do not fit together, all in tokens."""
        room = context_tokens - prompt_tokens
        way_out = (
            f"Ask for max_new_tokens={room} at most"
            if room > 0
            else "Shorten the conversation, or start a new one"
        )
        super().__init__(
            f"prompt_tokens={prompt_tokens} plus max_new_tokens={max_new_tokens} exceed "
            f"context_tokens={context_tokens}. {way_out}; or choose on_overflow='drop_oldest' "
            "or 'clamp' to have phi3ov make room."
        )
        self.prompt_tokens = prompt_tokens
        self.max_new_tokens = max_new_tokens
        self.context_tokens = context_tokens


class GenerationError(Phi3OVError):
    """The engine failed while answering; ``partial_text`` holds the text so far."""

    def __init__(self, message: str, *, partial_text: str = "") -> None:
        """Keep the ``partial_text`` that the engine had generated before it failed."""
        super().__init__(message)
        self.partial_text = partial_text


class EngineCrashedError(GenerationError):
    """The worker process died; the model starts a new one for the next request."""


def lazy_names(
    package: str,
    modules: Mapping[str, str],
    *,
    needs: Collection[str],
    purpose: str,
    extra: str,
) -> Callable[[str], object]:
    """Return a module's ``__getattr__`` that imports each name on first use.

    Args:
        package: ``__name__`` of the package that offers the names.
        modules: The module of the package that defines each name.
        needs: Top-level packages that the extra brings.
        purpose: What needs them, for the error.
        extra: The extra of phi3ov that installs them.

    Returns:
        A function that raises `MissingDependencyError` if the extra is not installed, and
        AttributeError for an unknown name.

    Example:
        >>> find = lazy_names("json", {"JSONDecoder": "decoder"}, needs=(), purpose="", extra="")
        >>> find("JSONDecoder").__module__
        'json.decoder'
    """

    def find(name: str) -> object:
        if name not in modules:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        try:
            module = import_module(f".{modules[name]}", package)
        except ImportError as error:
            missing = (error.name or "").partition(".")[0]
            if missing not in needs:
                raise
            raise MissingDependencyError(
                missing.replace("_", "-"),
                purpose=purpose,
                command=f'pip install "phi3ov[{extra}]"',
            ) from error
        found: object = getattr(module, name)
        return found

    return find
