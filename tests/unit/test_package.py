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

LAYERS = (
    {
        "atomic_file",
        "errors",
        "family",
        "moved",
        "plain_json",
        "thirdparty",
        "validation",
        "weight_files",
    },
    {"answer", "artifact", "prompt", "runtime", "structured"},
    {"engine", "exporter", "quality", "reference"},
    {"batch", "chat", "loading", "machine", "model", "saved_chat"},
    {"__main__", "cli", "integrations", "server"},
)
"""Folders and top-level modules, from the bottom up: imports go down or stay in a layer."""

MOST_ROOMS = 28
MOST_ARROWS = 112
"""Folders and top-level modules, and the imports among them: fewer are easier to learn.

Eleven of the imports are those of `integrations`, where each adapter needs what it adapts.
"""

TOP = LAYERS[-1]
EXPORT_SIDE = {"exporter", "quality", "reference"}
"""Beside the engine: only the top layer imports these, and `quality` reads with `exporter`."""

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
            found |= {f"{start}.{alias.name}" for alias in node.names}
            found |= {start} - {"phi3ov"}  # from ... import errors: that is the module alone
        elif nested or not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            pending += ast.iter_child_nodes(node)
    return found


def own_imports(module: str, *, nested: bool = False) -> set[str]:
    """Return which of phi3ov's modules a module imports."""
    found = set()
    for name in imports_of(module, nested=nested):
        package, _, rest = name.partition(".")
        if package != "phi3ov":
            continue
        if rest in FILES:
            found.add(rest)
        elif f"{rest}.__init__" in FILES:
            found.add(f"{rest}.__init__")
        elif "." not in rest:  # a name of the package itself
            found.add("__init__")
    return found - {module}


def room_of(module: str) -> str:
    """Return the folder or top-level module that a module belongs to."""
    return module.partition(".")[0]


def test_public_names_are_sorted_and_complete() -> None:
    """``__all__`` is sorted, holds no name twice, and is exactly what ``__init__`` imports."""
    assert phi3ov.__all__ == sorted(set(phi3ov.__all__))
    imported = {
        alias.name
        for node in ast.walk(ast.parse(FILES["__init__"].read_text(encoding="utf-8")))
        if isinstance(node, ast.ImportFrom) and node.level == 1 and node.module
        for alias in node.names
    }
    assert imported == set(phi3ov.__all__)


@pytest.mark.parametrize("name", phi3ov.__all__)
def test_public_name_is_there(name: str) -> None:
    """Every public name leads to an object of phi3ov that goes by this name."""
    value = getattr(phi3ov, name)
    assert (value.__name__, value.__module__.partition(".")[0]) == (name, "phi3ov")


@pytest.mark.parametrize("name", ["quality", "reference"])
def test_a_public_module_is_an_attribute(name: str) -> None:
    """``import phi3ov`` is enough for ``phi3ov.quality.compare``; the folder loads when asked."""
    code = (
        f"import sys, phi3ov; assert 'phi3ov.{name}' not in sys.modules; "
        f"assert {name!r} in dir(phi3ov); print(phi3ov.{name}.__name__)"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True
    )
    assert result.stdout.strip() == f"phi3ov.{name}"


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


def circle_in(graph: dict[str, set[str]]) -> list[str]:
    """Return a circle of imports, or nothing where there is none."""
    try:
        list(graphlib.TopologicalSorter(graph).static_order())
    except graphlib.CycleError as error:
        return list(error.args[1])
    return []


def test_no_module_imports_itself_in_a_circle() -> None:
    """Imports inside functions count: a circle that they hide is still one to the reader."""
    modules = {module: own_imports(module, nested=True) - {"__init__"} for module in FILES}
    assert circle_in(modules) == []
    rooms: dict[str, set[str]] = {room_of(module): set() for module in FILES}
    for module, others in modules.items():
        rooms[room_of(module)] |= {room_of(other) for other in others} - {room_of(module)}
    assert circle_in(rooms) == []
    arrows = sum(map(len, rooms.values()))
    assert (len(rooms) <= MOST_ROOMS, arrows <= MOST_ARROWS) == (True, True), (len(rooms), arrows)


def test_a_circle_would_be_found() -> None:
    """Of modules that import each other, be it in a function."""
    assert circle_in({"a": {"b"}, "b": set()}) == []
    assert circle_in({"a": {"b"}, "b": {"c"}, "c": {"a"}}) != []
    assert "__init__" in own_imports("cli.__init__"), "names of the package are not seen"
    assert "quality.__init__" in own_imports("cli.quality", nested=True), "nor those of a folder"
    inside_functions = {
        (module, other)
        for module in FILES
        for other in own_imports(module, nested=True) - own_imports(module)
    }
    assert len(inside_functions) > 5, "imports inside functions are not read"


def test_every_module_has_a_layer() -> None:
    """A new folder or top-level module is put into `LAYERS`, so that the rules hold for it."""
    known = [room for layer in LAYERS for room in layer]
    assert len(known) == len(set(known))
    assert {room_of(module) for module in FILES} - {"__init__"} <= set(known)


@pytest.mark.parametrize("module", sorted(FILES.keys() - {"__init__"}))
def test_imports_go_one_way(module: str) -> None:
    """No module imports from a higher layer, nor the package itself, whose names come from all."""
    level = {room: index for index, layer in enumerate(LAYERS) for room in layer}
    room = room_of(module)
    for other in {room_of(other) for other in own_imports(module, nested=True)}:
        if other == "__init__":
            assert room in TOP
            continue
        assert level[other] <= level[room], f"{module} imports from {other}"
        if other in EXPORT_SIDE and room != other:
            assert room in TOP | EXPORT_SIDE, f"{module} imports from {other}"


def test_running_needs_nothing_of_the_export_side() -> None:
    """Nothing that loading and chatting can import, in functions too, uses export tools.

    The engine that runs on transformers is the exception that its name announces.
    """
    running = {
        module
        for module in FILES
        if room_of(module) not in {*EXPORT_SIDE, *TOP, "thirdparty"}
        and module != "engine.transformers"
    }
    assert running >= {"engine.pipeline", "engine.paged.engine", "engine.worker.child", "model"}
    for module in running:
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
    """Outside the engines, no module imports a heavy package at its top; a server needs asyncio."""
    tops = {name.partition(".")[0] for name in imports_of(module, nested=False)}
    allowed = {"asyncio"} if module.startswith("server.") else set()
    assert not tops & {*HEAVY, *EXPORT_TOOLS} - allowed


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
    phases: list[str] = []
    with pytest.raises(MissingDependencyError, match=r'pip install "phi3ov\[export\]"'):
        phi3ov.export_model(
            "no-such-source",
            tmp_path / "out",
            progress=lambda progress: phases.append(progress.phase),
        )
    assert list(tmp_path.iterdir()) == []
    assert phases == ["check"], "the first line comes before ten seconds of imports"


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
