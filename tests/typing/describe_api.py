"""The public surface as text, one line a name. ``make api`` writes it to ``api.txt``.

It holds what a caller can rely on: signatures with their defaults, fields, methods, properties
and base classes of the names in ``phi3ov.__all__`` and of the documented modules beside them.
"""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Iterator
from dataclasses import is_dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, is_typeddict

import phi3ov

SNAPSHOT = Path(__file__).with_name("api.txt")

MODULES = {
    "phi3ov.quality": ("QualityReport", "SampleAnswer", "compare", "draw_histogram"),
    "phi3ov.reference": ("build_reference",),
    "phi3ov.artifact.folder": ("FileRecord", "Manifest"),
    "phi3ov.batch.runner": ("Conversation", "ReportProgress"),
    "phi3ov.prompt.messages": ("Role",),
    "phi3ov.exporter.recipes": ("Compression",),
    "phi3ov.engine.protocol": ("EngineName",),
    "phi3ov.structured.shape": ("Validation",),
    "phi3ov.answer.options": ("JsonSchema", "OverflowPolicy", "QueuePolicy", "TimeoutPolicy"),
    "phi3ov.artifact.ir": ("Precision", "WeightLayer", "WeightSummary"),
    "phi3ov.exporter.progress": ("ProgressCallback",),
    "phi3ov.answer.reply": ("FinishReason",),
    "phi3ov.runtime.rope": ("ContextChoice", "RopeFactors"),
    "phi3ov.runtime.config": (
        "InferencePrecision",
        "KVCachePrecision",
        "CoarsePrecision",
        "KeyScales",
        "PerformanceHint",
    ),
    "phi3ov.runtime.speculation": ("Speculation",),
}
"""Public names that are not imported by the package itself; types that signatures name."""


def describe_api() -> str:
    """Return every public name with what belongs to it, sorted."""
    public = [("phi3ov", name) for name in phi3ov.__all__]
    public += [(module, name) for module, names in MODULES.items() for name in names]
    lines = [
        line
        for module, name in public
        for line in _describe(f"{module}.{name}", getattr(import_module(module), name))
    ]
    return "\n".join(lines) + "\n"


def _describe(path: str, value: object) -> Iterator[str]:
    if inspect.isfunction(value):
        yield from _call(path, value)
    elif not inspect.isclass(value):
        yield f"{path} = {value}"
    elif is_typeddict(value):
        yield f"{path}: TypedDict"
        yield from (f"    {name}: {_text(kind)}" for name, kind in value.__annotations__.items())
    else:
        yield from _describe_class(path, value)


def _describe_class(path: str, value: type) -> Iterator[str]:
    bases = ", ".join(base.__name__ for base in value.__bases__ if base is not object)
    yield f"class {path}({bases})"
    if "__init__" in vars(value):
        parameters = list(inspect.signature(value).parameters.values())
        yield from _indent(_call("__init__", inspect.Signature(parameters)))
    if not is_dataclass(value):  # the constructor's arguments are a dataclass's fields
        yield from (f"    {name}" for name in _attributes_set_in_init(value))
    for name, member in sorted(vars(value).items()):
        slot = is_dataclass(value) and name in value.__dataclass_fields__
        if not name.startswith("_") and not slot:
            yield from _indent(_describe_member(name, member))


def _describe_member(name: str, member: object) -> Iterator[str]:
    if isinstance(member, property):
        assert member.fget is not None
        yield f"{name}: {_text(inspect.signature(member.fget).return_annotation)}"
    elif isinstance(member, classmethod | staticmethod):
        yield from _call(f"{type(member).__name__} {name}", member.__func__)
    elif inspect.isfunction(member):
        prefix = "async " if inspect.iscoroutinefunction(member) else ""
        yield from _call(prefix + name, member)
    else:
        yield name


def _attributes_set_in_init(value: type) -> list[str]:
    """Return the public ``self.name = ...`` of a constructor."""
    if "__init__" not in vars(value):
        return []
    tree = ast.parse(textwrap.dedent(inspect.getsource(vars(value)["__init__"])))
    names = {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store)
    }
    return sorted(name for name in names if not name.startswith("_"))


def _call(path: str, function: Any) -> Iterator[str]:
    """Return a signature, on one line where it fits, else with one line a parameter."""
    is_signature = isinstance(function, inspect.Signature)
    signature = function if is_signature else inspect.signature(function)
    taken = [one for one in signature.parameters.values() if one.name not in ("self", "cls")]
    parameters = [
        str(one.replace(annotation=_Code(_text(one.annotation)), default=_default(one.default)))
        for one in taken
    ]
    kinds = [one.kind for one in taken]
    if inspect.Parameter.KEYWORD_ONLY in kinds:
        parameters.insert(kinds.index(inspect.Parameter.KEYWORD_ONLY), "*")
    returned = signature.return_annotation
    end = ")" if returned is signature.empty else f") -> {_text(returned)}"
    line = f"{path}({', '.join(parameters)}{end}"
    if len(line) <= 90:
        yield line
    else:
        yield f"{path}("
        yield from (f"    {one}," for one in parameters)
        yield end


class _Code:
    """Source text that prints without quotes."""

    def __init__(self, text: str) -> None:
        self.text = text

    def __repr__(self) -> str:
        return self.text


def _default(value: Any) -> object:
    """Return a default as a caller would write it."""
    if inspect.isfunction(value):
        return _Code("...")
    if is_dataclass(value) and not isinstance(value, type) and value == type(value)():
        return _Code(f"{type(value).__name__}()")
    return value


def _text(annotation: object) -> str:
    """Return an annotation as it was written, whether or not Python evaluated it."""
    if isinstance(annotation, str):
        return annotation
    return str(getattr(annotation, "__forward_arg__", annotation))


def _indent(lines: Iterator[str]) -> Iterator[str]:
    return (f"    {line}" for line in lines)


if __name__ == "__main__":
    SNAPSHOT.write_text(describe_api(), encoding="utf-8", newline="\n")
