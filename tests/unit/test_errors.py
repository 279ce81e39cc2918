"""The exception tree is what the docstring draws."""

from __future__ import annotations

import copy
import pickle

import pytest

from phi3ov import errors
from phi3ov.errors import (
    ArtifactError,
    CompressionError,
    ContextLengthError,
    DeviceError,
    EngineCrashedError,
    ExportError,
    GenerationError,
    MissingDependencyError,
    OptionError,
    Phi3OVError,
    PromptError,
    QueueFullError,
    RestoreError,
    StateError,
    UnsupportedModelError,
)

PARENTS: dict[type[Phi3OVError], tuple[type[BaseException], ...]] = {
    MissingDependencyError: (Phi3OVError, ImportError),
    UnsupportedModelError: (Phi3OVError, ValueError),
    ExportError: (Phi3OVError,),
    CompressionError: (ExportError, ValueError),
    ArtifactError: (Phi3OVError, ValueError),
    DeviceError: (Phi3OVError, ValueError),
    RestoreError: (Phi3OVError, ValueError),
    OptionError: (Phi3OVError, ValueError),
    StateError: (Phi3OVError, RuntimeError),
    QueueFullError: (StateError,),
    PromptError: (Phi3OVError, ValueError),
    ContextLengthError: (PromptError,),
    GenerationError: (Phi3OVError,),
    EngineCrashedError: (GenerationError,),
}


def test_tree_is_as_drawn() -> None:
    """Every error is in the tree, below the parents that the docstring draws."""
    defined = {
        value
        for value in vars(errors).values()
        if isinstance(value, type) and issubclass(value, Phi3OVError) and value is not Phi3OVError
    }
    assert defined == set(PARENTS)
    assert errors.__doc__ is not None
    for error, parents in PARENTS.items():
        assert error.__bases__ == parents
        builtin = f"({parents[-1].__name__})" if parents[-1].__module__ == "builtins" else ""
        assert f"─ {error.__name__}{builtin} " in errors.__doc__


SAMPLES: list[Phi3OVError] = [
    MissingDependencyError("nncf", purpose="export_model()", command="pip install x"),
    UnsupportedModelError("model_type='llama'"),
    ExportError("failed"),
    CompressionError("wrong", layers=("a", "b")),
    ArtifactError("changed:", problems=("one: missing", "two: missing")),
    DeviceError("no GPU"),
    OptionError("both contradict each other"),
    OptionError("top_p=2 is too large", option="top_p"),
    StateError("closed"),
    PromptError("empty"),
    ContextLengthError(prompt_tokens=10, max_new_tokens=20, context_tokens=25),
    GenerationError("failed", partial_text="so far"),
    EngineCrashedError("died", partial_text="so"),
    QueueFullError(5),
    RestoreError("chat.json", "it is damaged."),
]


@pytest.mark.parametrize("error", SAMPLES, ids=lambda error: type(error).__name__)
def test_errors_survive_pickling_and_copying(error: Phi3OVError) -> None:
    """Message and attributes come through a process border and through ``copy``."""
    for twin in (pickle.loads(pickle.dumps(error)), copy.copy(error), copy.deepcopy(error)):
        assert type(twin) is type(error)
        assert str(twin) == str(error)
        assert twin.args == error.args
        assert vars(twin) == vars(error)


def test_missing_dependency_holds_the_command() -> None:
    """The text says what is missing, for what, and what to run."""
    error = SAMPLES[0]
    assert str(error) == "export_model() needs nncf, which is not installed. Run: pip install x"
    assert isinstance(error, MissingDependencyError)
    assert (error.package, error.command) == ("nncf", "pip install x")


def test_artifact_error_lists_every_problem() -> None:
    """One line per problem."""
    assert str(SAMPLES[4]) == "changed:\n  - one: missing\n  - two: missing"
    assert str(ArtifactError("alone")) == "alone"


@pytest.mark.parametrize(
    ("prompt_tokens", "way_out"),
    [
        (10, "Ask for max_new_tokens=15 at most"),
        (24, "Ask for max_new_tokens=1 at most"),
        (25, "Shorten the conversation"),
        (30, "Shorten the conversation"),
    ],
)
def test_context_length_error_says_what_fits(prompt_tokens: int, way_out: str) -> None:
    """The three numbers, and the way out that these numbers leave."""
    error = ContextLengthError(prompt_tokens=prompt_tokens, max_new_tokens=20, context_tokens=25)
    assert str(error).startswith(
        f"prompt_tokens={prompt_tokens} plus max_new_tokens=20 exceed context_tokens=25. {way_out}"
    )
    assert "drop_oldest" in str(error)


def test_generation_error_has_partial_text_by_default() -> None:
    """``partial_text`` is always there to read."""
    assert GenerationError("x").partial_text == ""
    assert CompressionError("x").layers == ()
    assert ArtifactError("x").problems == ()
