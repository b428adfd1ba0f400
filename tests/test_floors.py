"""The house keeps its floors: imports point downward, rank programs know no clock."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FLOORS = {
    0: "cache profiles fabric paging edgeshard plans links workload metrics results provenance "
    "theory",
    1: "models checkpoints weights runtime llama sampling sharder job demo_model "
    "gguf_import gguf_export gguf_vocab",
    2: "collectives window",
    3: "engine generation hf_generation",
    # injected, 3' in the design
    4: "aio disk handshake tcp wall memory device launch_target processes helper "
    "clean_fork cgroups caps page_cache pss verdict "
    "costs virtual virtual_testbed calibrate",
    5: "system tpi figures sources text probe",
    6: "sweeper config oracle limits points reports app __main__",
}
FLOOR_OF = {name: floor for floor, names in FLOORS.items() for name in names.split()}
RANK_PROGRAMS = [
    "collectives",
    "window",
    "engine",
    "generation",
    "hf_generation",
    "sampling",
    "llama",
    "tpi",
    "runtime",
    "plans",
]
FORBIDDEN = {"time", "socket", "threading", "asyncio", "select", "multiprocessing"}
NO_TORCH = [
    *FLOORS[0].split(),
    "models",
    "checkpoints",
    "weights",
    "sharder",
    "gguf_export",
    "gguf_vocab",
    "job",
    "processes",
    "clean_fork",
    "cgroups",
    "caps",
    "page_cache",
    "pss",
    "verdict",
    "app",
]
NO_TORCH += [
    "config",
    "points",
    "reports",
    "sources",
    "text",
    "helper",
    "system",
    "tpi",
    "collectives",
]


def imports_of(path: Path, *, top_level_only: bool = False) -> set[str]:
    """Modules a file imports, leaving out what is only for type checking."""
    tree = ast.parse(path.read_text())
    found: set[str] = set()

    def visit(node: ast.AST) -> None:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            return
        if isinstance(node, ast.FunctionDef) and top_level_only:
            return
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(tree)
    return found


def own_imports(path: Path) -> set[str]:
    names = {name.split(".")[1] for name in imports_of(path) if name.startswith("tpi_bench.")}
    return names & FLOOR_OF.keys()


def test_every_module_has_a_floor() -> None:
    modules = {path.stem for path in (ROOT / "tpi_bench").glob("*.py")} - {"__init__"}
    assert modules == FLOOR_OF.keys()


@pytest.mark.parametrize("name", sorted(FLOOR_OF))
def test_imports_point_downward(name: str) -> None:
    above = {
        other
        for other in own_imports(ROOT / "tpi_bench" / f"{name}.py")
        if FLOOR_OF[other] > FLOOR_OF[name]
    }
    assert not above


@pytest.mark.parametrize("path", sorted((ROOT / "baselines").glob("*.py")), ids=lambda p: p.stem)
def test_baselines_do_not_import_each_other_or_the_clock(path: Path) -> None:
    found = imports_of(path)
    assert not {name for name in found if name.startswith("baselines")}
    assert not {name.split(".")[0] for name in found} & FORBIDDEN


@pytest.mark.parametrize("name", RANK_PROGRAMS)
def test_rank_programs_ask_the_runtime(name: str) -> None:
    found = {module.split(".")[0] for module in imports_of(ROOT / "tpi_bench" / f"{name}.py")}
    assert not found & FORBIDDEN


@pytest.mark.parametrize("name", NO_TORCH)
def test_the_launcher_loads_without_torch(name: str) -> None:
    found = imports_of(ROOT / "tpi_bench" / f"{name}.py", top_level_only=True)
    assert not {module.split(".")[0] for module in found} & {"torch", "transformers"}


@pytest.mark.parametrize("path", sorted((ROOT / "experiments").glob("*.py")), ids=lambda p: p.stem)
def test_experiments_see_only_rows(path: Path) -> None:
    own = own_imports(path)
    assert own <= {"figures", "results", "theory"}
    assert "torch" not in {name.split(".")[0] for name in imports_of(path)}
