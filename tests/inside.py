"""The one place where tests reach behind a model: its engine, and the engine's process.

Users have no need of either. Tests kill the process, count its requests, or break its pipeline.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

from phi3ov.engine.worker.engine import WorkerEngine

if TYPE_CHECKING:
    from phi3ov import Phi3Model
    from phi3ov.engine.protocol import Engine
    from phi3ov.engine.worker.parent import WorkerChild

E = TypeVar("E")


def any_engine_of(model: Phi3Model) -> Engine:
    """Return the model's engine, whichever it is."""
    return model._engine


def engine_of(model: Phi3Model, kind: type[E]) -> E:
    """Return the model's engine, which must be of this class."""
    engine = any_engine_of(model)
    assert isinstance(engine, kind), f"{type(engine).__name__} is no {kind.__name__}"
    return engine


def runner_of(model: Phi3Model) -> Any:
    """Return what computes the answers of an engine that works in this process."""
    engine: Any = any_engine_of(model)
    return engine._runner


def child_of(model: Phi3Model) -> WorkerChild:
    """Return the living worker process of a model with ``engine="worker"``."""
    return engine_of(model, WorkerEngine)._state.living_child()
