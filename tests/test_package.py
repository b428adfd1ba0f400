"""Installed as a wheel, into an environment of its own, with a system of another package."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.command_line import ROOT
from tpi_bench import load

THIRD_PARTY = {
    "pyproject.toml": """
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"

[project]
name = "tpi-bench-lone"
version = "1"

[project.entry-points."tpi_bench.systems"]
lone = "lone:LoneSystem"
broken = "lone:Missing"

[tool.hatch.build.targets.wheel]
only-include = ["lone.py"]
""",
    "lone.py": '''
from dataclasses import dataclass
from baselines.pipeline import PipelineSystem

@dataclass(frozen=True, kw_only=True)
class LoneSystem(PipelineSystem):
    """A pipeline that works on its first device alone."""
    name: str = "lone"
    greeting: str = "hello"

    max_devices = 1
''',
}
CONFIGS = {
    "experiment/mine.yaml": """
# @package _global_
name: mine
task: measure
hydra:
  mode: MULTIRUN
  sweeper:
    grids:
      - system: eager,lone
        system.greeting: hi
      - system: eager,tpi
""",
    "system/eager.yaml": "defaults: [pipeline, _self_]\nname: eager\n",
}
POINT = (
    "testbed=virtual",
    "testbed.num_devices=2",
    "model=debug",
    "workload.prompt_tokens=4",
    "workload.num_new_tokens=2",
)


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of the environment: it finds the libraries of this one, but not our tree."""
    folder = tmp_path_factory.mktemp("installed")
    package = folder / "lone"
    for name, text in THIRD_PARTY.items():
        write(package / name, text)
    environment = folder / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", environment], check=True)
    (site,) = environment.glob("lib/python*/site-packages")
    ours = [path for path in sys.path if path.endswith("site-packages")]
    write(site / "libraries.pth", "\n".join(ours))
    write(site / "numba.py", "raise ImportError('compiling takes longer than all that is tested')")
    executable = environment / "bin" / "python"
    offline = ["--no-index", "--no-build-isolation", "--no-deps", "--quiet"]
    pip = [sys.executable, "-m", "pip", "--python", executable, "--disable-pip-version-check"]
    subprocess.run([*pip, "install", *offline, ROOT, package], check=True)
    return executable


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def run_in(folder: Path, *command: str | Path, status: int = 0) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder, timeout=120)
    assert done.returncode == status, done.stderr
    return done


def test_an_experiment_from_another_folder(python: Path, tmp_path: Path, cache_dir: Path) -> None:
    """By the command, with configurations of one's own and the other package's system."""
    for name, text in CONFIGS.items():
        write(tmp_path / "mine" / name, text)
    command = [python.parent / "tpi_bench", "--config-dir", "mine", "+experiment=mine"]
    done = run_in(tmp_path, *command, *POINT, f"cache_dir={cache_dir}")
    assert "system=broken of tpi-bench-lone is left out: AttributeError" in done.stderr
    (folder,) = (tmp_path / "results" / "runs" / "mine").iterdir()
    runs = load(folder).runs.set_index("system")
    assert runs.status.to_dict() == {"eager": "ok", "lone": "ok", "tpi": "ok"}
    assert runs.num_devices.to_dict() == {"eager": 2, "lone": 1, "tpi": 2}
    assert runs.system_greeting.dropna().to_dict() == {"lone": "hi"}
    assert "1 point is left out: system=eager has no greeting" in done.stderr
    assert set(runs.commit) == {"tpi_bench 0.1.0"}

    again = run_in(tmp_path, python, "-m", "tpi_bench", f"resume={folder}")
    assert "eager" in again.stdout


def test_a_setting_of_it_that_does_not_exist(python: Path, tmp_path: Path) -> None:
    typed = ("system=lone", "system.greetng=hi")
    done = run_in(tmp_path, python.parent / "tpi_bench", *typed, status=2)
    assert "error: there is no system.greetng; did you mean system.greeting?" in done.stderr


def test_what_lies_beside_the_code_comes_along(python: Path, tmp_path: Path) -> None:
    """Every command of README from any folder: another figure's data, and what can be set."""
    stored = ROOT / "results" / "tab_memory"
    shutil.copytree(stored, tmp_path / "tab_memory")
    done = run_in(tmp_path, python, "-m", "experiments.tab_memory", "tab_memory")
    assert "tab_memory.png" in done.stdout
    done = run_in(tmp_path, python, "-m", "tpi_bench", "task=report", "tab_memory")
    assert "tab_memory/report.html: 1 experiment," in done.stdout
    page = (tmp_path / "tab_memory" / "report.html").read_text()
    assert "<svg class=" in page
    assert "What holds of TPI-LLM" in page
    told = run_in(tmp_path, python, "-m", "tpi_bench", "task=ledger", "tab_memory").stdout
    assert told.rstrip().endswith("31 claims: 31 not shown")
    told = run_in(tmp_path, python, "-m", "tpi_bench", "task=reproduce", "estimate=true").stdout
    assert "fig_latency" in told
    shown = run_in(tmp_path, python, "-m", "tpi_bench", "--help").stdout
    assert "fig_latency" in shown
    assert "lone" in shown


def test_the_wheel_is_used_and_not_the_tree(python: Path, tmp_path: Path) -> None:
    code = "import tpi_bench, baselines, experiments as e; print(tpi_bench.__file__, e.__file__)"
    done = run_in(tmp_path, python, "-c", code)
    assert str(ROOT) + "/" not in done.stdout
    assert done.stdout.count(str(python.parent.parent)) == 2
