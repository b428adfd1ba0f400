"""The house keeps its floors: arrows between rooms point downward; rank programs know no clock."""

from __future__ import annotations

import ast
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FLOORS = {
    "contract": 1,
    "engine": 2,
    "host": 2,
    "models": 3,
    "processes": 3,
    "cluster": 3,
    "virtual": 3,
    "report": 3,
    "measure": 4,
    "baselines": 4,
    "experiments": 4,
    "app": 5,
}
# Arrows that point downward and still may not be.
NEVER = {("models", "engine"), ("report", "engine")}
ONLY = {
    "baselines": {"contract", "engine", "models"},
    "experiments": {"report"},
}
RANK_PROGRAMS = ("engine", "baselines")
CLOCKS = {"time", "socket", "threading", "asyncio", "select", "multiprocessing"}
# Arrows between rooms of one floor. A node's devices are those of this host, started elsewhere:
# the same launcher, control messages, mesh and caps, or a row would mean something else.
BESIDE = {("cluster", "processes")}
# Where torch may be loaded at once: the launcher gets by without.
TORCH = {
    "engine": {
        "llama",
        "device_model",
        "kept",
        "paged",
        "attention",
        "compiled",
        "one_position",
        "groups",
        "task",
        "tiles",
        "matrix",
        "packing",
        "sampling",
        "rank",
        "weights",
        "window",
    },
    "processes": {"device", "runtime"},
    "virtual": {"costs", "operators", "run", "runtime", "without_data", "world"},
}
HEAVY = {"torch", "transformers", "accelerate", "ray"}

FILES = sorted(
    path
    for folder in ("tpi_bench", "baselines", "experiments")
    for path in (ROOT / folder).rglob("*.py")
)


def module_of(path: Path) -> str:
    name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
    return name.removesuffix(".__init__")


MODULES = {module_of(path) for path in FILES}


def room_of(module: str) -> str | None:
    """The room of one of our modules; None for a library, and for the front door."""
    parts = module.split(".")
    if parts[0] in ("baselines", "experiments"):
        return parts[0]
    return parts[1] if parts[0] == "tpi_bench" and parts[1:] not in ([], ["__main__"]) else None


def imports_of(path: Path, *, at_once: bool = False) -> set[str]:
    """Modules that a file imports, anywhere or (`at_once`) when it is loaded itself.

    What is only for type checking does not count.
    """
    found: set[str] = set()

    def visit(node: ast.AST) -> None:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            return
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and at_once:
            return
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(ast.parse(path.read_text()))
    return found


def own_imports(path: Path) -> set[str]:
    return imports_of(path) & MODULES - {module_of(path)}


def test_every_file_is_in_a_room() -> None:
    assert {room_of(module) for module in MODULES} - {None} == FLOORS.keys()


def test_every_room_says_what_lives_there() -> None:
    for path in FILES:
        if path.name == "__init__.py":
            assert len(ast.get_docstring(ast.parse(path.read_text())) or "") > 30, path


@pytest.mark.parametrize("room", FLOORS)
def test_arrows_point_downward(room: str) -> None:
    wrong = []
    for path in FILES:
        if room_of(module_of(path)) != room:
            continue
        for module in own_imports(path):
            other = room_of(module)
            if other is None or other == room:
                continue
            is_below = FLOORS[other] < FLOORS[room] or (room, other) in BESIDE
            is_allowed = is_below and (room, other) not in NEVER
            if not is_allowed or other not in ONLY.get(room, {other}):
                wrong.append(f"{path.relative_to(ROOT)} -> {module}")
    assert not wrong


def test_a_room_above_is_named_in_one_place_only() -> None:
    """Not by import, but in a string: what the fork server loads."""
    named = {
        (module_of(path), node.value)
        for path in FILES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Constant) and "." in str(node.value) and node.value in MODULES
        if room_of(node.value) not in (None, room_of(module_of(path)))
    }
    assert named == {("tpi_bench.host.fork", "tpi_bench.processes.preload")}


def test_no_circle() -> None:
    """Not between files either, wherever the import stands."""
    arrows = {module_of(path): own_imports(path) for path in FILES}
    rooms: dict[str, set[str]] = {room: set() for room in FLOORS}
    for module, others in arrows.items():
        room = room_of(module)
        if room is not None:
            rooms[room] |= {r for r in map(room_of, others) if r is not None} - {room}
    for graph in (arrows, rooms):
        order = list(TopologicalSorter(graph).static_order())  # raises CycleError
        assert graph.keys() <= set(order)


@pytest.mark.parametrize("room", RANK_PROGRAMS)
def test_rank_programs_ask_the_runtime(room: str) -> None:
    for path in FILES:
        if room_of(module_of(path)) == room:
            assert not {m.split(".")[0] for m in imports_of(path)} & CLOCKS, path


def test_systems_do_not_import_each_other() -> None:
    """What two systems share stands in a file that defines none."""
    systems = {
        module_of(path)
        for path in (ROOT / "baselines").glob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ClassDef)
        and any("dataclass" in ast.unparse(d) for d in node.decorator_list)
        and node.name.endswith("System")
    }
    assert len(systems) >= 6
    for path in (ROOT / "baselines").glob("*.py"):
        assert not own_imports(path) & systems, path


@pytest.mark.parametrize("room", FLOORS)
def test_heavy_libraries_are_loaded_where_they_compute(room: str) -> None:
    for path in FILES:
        if room_of(module_of(path)) == room and path.stem not in TORCH.get(room, ()):
            assert not {m.split(".")[0] for m in imports_of(path, at_once=True)} & HEAVY, path


def test_the_launcher_runs_without_them() -> None:
    """Not by way of another module either."""
    code = (
        "import sys, tpi_bench.app.main, tpi_bench.measure.point, tpi_bench.virtual.testbed, "
        "tpi_bench.processes.testbed, tpi_bench.cluster.testbed, tpi_bench.engine.tpi, "
        "baselines.pipeline, baselines.galaxy, baselines.hf_accelerate, baselines.llamacpp; "
        f"print(*sorted({HEAVY!r} & sys.modules.keys()))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True
    )
    assert done.stdout == "\n"


def test_experiments_load_without_the_engine() -> None:
    code = (
        "import sys, importlib, pathlib; "
        "[importlib.import_module(f'experiments.{p.stem}') "
        "for p in pathlib.Path('experiments').glob('[a-z]*.py')]; "
        f"print(*sorted({HEAVY!r} & sys.modules.keys()))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True
    )
    assert done.stdout == "\n"
