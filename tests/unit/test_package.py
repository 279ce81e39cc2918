"""The package as a whole: its names, what importing it costs, and who imports whom."""

from __future__ import annotations

import ast
import graphlib
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import phi3ov
from phi3ov import errors
from phi3ov.engine.protocol import ENGINES, EngineSetup, load_engine
from phi3ov.errors import MissingDependencyError
from phi3ov.runtime.config import RuntimeConfig
from phi3ov.runtime.rope import ContextChoice

from .fakes import make_artifact

ROOT = Path(__file__).resolve().parents[2]
SOURCE = Path(phi3ov.__file__).parent
FILES = {
    ".".join(path.relative_to(SOURCE).with_suffix("").parts): path
    for path in sorted(SOURCE.rglob("*.py"))
}

CHAIN = (
    {"errors"},
    {
        "answer.options",
        "runtime.limits",
        "prompt.formats",
        "runtime.rope",
        "artifact.ir",
        "runtime.config",
        "runtime.devices",
    },
    {"artifact.folder", "prompt.chat_tokenizer", "exporter.checkpoint"},
    {"engine.protocol", "engine.serial", "artifact.fingerprint"},
    {
        "engine.pipeline",
        "engine.transformers",
        "model",
        "answer.stream",
        "exporter.export",
        "saved_chat",
    },
    {"chat", "loading"},
    {"cli.__init__", "cli.chat", "cli.export", "cli.info"},
    {"__main__"},
)
"""The picture that CONTRIBUTING draws, from the bottom up: nobody imports from above."""

EXPORT_SIDE = {
    "exporter.export",
    "exporter.recipes",
    "quality.report",
    "reference.build",
    "engine.transformers",
}
EXPORT_TOOLS = {"torch", "transformers", "nncf", "optimum", "gguf"}
HEAVY = (
    "torch",
    "transformers",
    "nncf",
    "optimum",
    "openvino",
    "openvino_genai",
    "numpy",
    "tokenizers",
    "huggingface_hub",
    "asyncio",
)


def is_type_checking(node: ast.AST) -> bool:
    """Whether a node is an ``if TYPE_CHECKING:`` block."""
    return isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"


def imports_of(module: str, *, nested: bool) -> set[str]:
    """Return absolute names of what a module imports when it runs, functions included or not."""
    package = ["phi3ov", *module.split(".")[:-1]]
    found: set[str] = set()
    pending: list[ast.AST] = list(ast.parse(FILES[module].read_text(encoding="utf-8")).body)
    while pending:
        node = pending.pop()
        if is_type_checking(node):
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            start = ".".join([*base, *([node.module] if node.module else [])])
            found |= {start, *(f"{start}.{alias.name}" for alias in node.names)}
        elif nested or not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            pending += ast.iter_child_nodes(node)
    return found


def own_imports(module: str, *, nested: bool = False) -> set[str]:
    """Return which of phi3ov's modules a module imports."""
    names = imports_of(module, nested=nested)
    return {
        other for other in FILES if f"phi3ov.{other}" in names and other not in (module, "__init__")
    }


def test_public_names_are_sorted_and_complete() -> None:
    """``__all__`` is sorted, holds no name twice, and is exactly what ``__init__`` imports."""
    assert phi3ov.__all__ == sorted(set(phi3ov.__all__))
    imported = {
        alias.name
        for node in ast.walk(ast.parse(FILES["__init__"].read_text(encoding="utf-8")))
        if isinstance(node, ast.ImportFrom) and node.level == 1
        for alias in node.names
    }
    assert imported == set(phi3ov.__all__)


@pytest.mark.parametrize("name", phi3ov.__all__)
def test_public_name_is_there(name: str) -> None:
    """Every public name leads to an object of phi3ov that goes by this name."""
    value = getattr(phi3ov, name)
    assert (value.__name__, value.__module__.partition(".")[0]) == (name, "phi3ov")


def test_unknown_name_is_an_attribute_error() -> None:
    """A misspelt name fails as everywhere in Python."""
    with pytest.raises(AttributeError, match="load_modle"):
        _ = getattr(phi3ov, "load_" + "modle")


def test_every_error_is_public() -> None:
    """Whatever phi3ov raises can be caught by a public name."""
    names = {
        name
        for name, value in vars(errors).items()
        if isinstance(value, type) and issubclass(value, errors.Phi3OVError)
    }
    assert names <= set(phi3ov.__all__)


def test_version_is_the_projects() -> None:
    """``__version__`` and pyproject.toml agree."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert phi3ov.__version__ == project["version"]


def test_package_is_typed() -> None:
    """The marker that tells type checkers to read our annotations is there."""
    assert (SOURCE / "py.typed").is_file()


def test_import_brings_nothing_heavy() -> None:
    """``import phi3ov`` loads none of the big packages, and prints nothing."""
    code = f"import sys, phi3ov; print([one for one in {HEAVY!r} if one in sys.modules])"
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert (result.stdout.strip(), result.stderr) == ("[]", "")


def test_no_module_imports_itself_in_a_circle() -> None:
    """At module level there is an order in which all modules can be imported."""
    order = graphlib.TopologicalSorter({module: own_imports(module) for module in FILES})
    assert set(order.static_order()) == set(FILES)


def reachable_from(*modules: str, nested: bool = False) -> set[str]:
    """Return every module that importing ``modules`` brings, directly or not."""
    found: set[str] = set()
    pending = list(modules)
    while pending:
        new = own_imports(pending.pop(), nested=nested) - found
        found |= new
        pending += new
    return found


@pytest.mark.parametrize("module", sorted(set().union(*CHAIN)))
def test_imports_go_one_way(module: str) -> None:
    """Whatever a module of the picture brings, nothing of it stands above the module."""
    level = {name: index for index, layer in enumerate(CHAIN) for name in layer}
    assert not {one for one in reachable_from(module) if level.get(one, -1) > level[module]}


def test_running_needs_nothing_of_the_export_side() -> None:
    """Nothing that loading and chatting can import, in functions too, is or uses export tools."""
    start = {"chat", "model", "engine.pipeline"}
    runtime = start | reachable_from(*start, nested=True)
    assert runtime >= {
        "artifact.folder",
        "engine.serial",
        "prompt.chat_tokenizer",
        "runtime.rope",
        "answer.stream",
        "prompt.detokenizer",
    }
    assert not runtime & EXPORT_SIDE
    for module in runtime:
        tops = {name.partition(".")[0] for name in imports_of(module, nested=True)}
        assert not tops & EXPORT_TOOLS, module


@pytest.mark.parametrize(
    "module",
    sorted(
        one
        for one in FILES
        if not one.startswith(("engine.", "runtime.properties")) or "__init__" in one
    ),
)
def test_native_packages_are_imported_where_needed_only(module: str) -> None:
    """Outside the engines, no module imports a heavy package at its top."""
    tops = {name.partition(".")[0] for name in imports_of(module, nested=False)}
    assert not tops & {*HEAVY, *EXPORT_TOOLS}


@pytest.mark.parametrize("missing", [("optimum", "optimum.intel"), ("optimum.intel",)])
def test_transformers_engine_without_optimum_names_the_command(
    missing: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the export extra, the engine says what to install instead of an import error."""
    for module in missing:  # both, because other tests may have imported the inner one
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingDependencyError, match=r'pip install "phi3ov\[export\]"') as caught:
        load_engine("transformers")(
            EngineSetup(
                artifact=make_artifact(),
                device="CPU",
                config=RuntimeConfig(),
                context=ContextChoice(tokens=10, factors="none"),
            )
        )
    assert isinstance(caught.value.__cause__, ImportError)


def test_export_without_optimum_names_the_command(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """`export_model` says so before it looks at anything else, and makes nothing."""
    monkeypatch.setitem(sys.modules, "optimum", None)
    monkeypatch.setitem(sys.modules, "optimum.intel", None)
    with pytest.raises(MissingDependencyError, match=r'pip install "phi3ov\[export\]"'):
        phi3ov.export_model("no-such-source", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_every_engine_is_where_its_name_says() -> None:
    """The names of `EngineName` lead to classes with the methods of `Engine`."""
    for name in ENGINES:
        engine = load_engine(name)
        assert callable(getattr(engine, "submit", None))
        assert callable(getattr(engine, "forget_cache", None))
        assert callable(getattr(engine, "close", None))


def test_unknown_engine_is_refused() -> None:
    """A misspelt engine is an error that lists the right ones."""
    with pytest.raises(phi3ov.OptionError, match=r"engine='genai' is not one of 'pipeline'"):
        phi3ov.load_model("x", engine="genai")  # type: ignore[arg-type]
