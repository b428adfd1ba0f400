"""`task=reproduce` on small sets: what it says before, what it runs again, how it stops."""

from __future__ import annotations

import json
import re
import shutil
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.helpers.command_line import ROOT, run_here
from tpi_bench.app import reproduce
from tpi_bench.app.arguments import for_hydra
from tpi_bench.app.errors import ExitStatus
from tpi_bench.app.main import main
from tpi_bench.app.reproduction import COMMITTED, MARK, PLAN, Step, estimate_of, read_steps
from tpi_bench.host.machine import provenance
from tpi_bench.report.durations import seconds_of
from tpi_bench.report.results import load

STORED = ("fig_window", "fig_keep")


def typed(*arguments: str) -> tuple[int, str, str]:
    done = run_here(main, ["task=reproduce", "notes=none", *arguments])
    return done.returncode, done.stdout, done.stderr


class Programs:
    """Stands for what is run: leaves stored rows, as an experiment would, and notes what it was."""

    def __init__(self) -> None:
        self.typed: list[list[str]] = []
        self.status = 0
        self.writes: dict[str, str] = {}

    def __call__(self, arguments: Sequence[str]) -> int:
        self.typed.append(list(arguments))
        place = next(text for text in arguments if text.startswith(("output_dir=", "resume=")))
        target = Path(place.partition("=")[2])
        if self.status == 0:
            target.mkdir(parents=True, exist_ok=True)
            for path in (COMMITTED / target.name).glob("*.*"):
                shutil.copy(path, target)
            (target / "points").mkdir(exist_ok=True)
            for name, text in self.writes.items():
                (target / name).write_text(text)
        return self.status


@pytest.fixture
def programs(monkeypatch: pytest.MonkeyPatch) -> Programs:
    found = Programs()
    monkeypatch.setattr(reproduce, "_program", found)
    return found


@pytest.fixture
def no_page(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reproduce, "_report", lambda *_: ExitStatus.OK)


@pytest.fixture
def given(tmp_path: Path, cache_dir: Path) -> list[str]:
    plan = tmp_path / "plan.yaml"
    plan.write_text(yaml.safe_dump([{"name": name, "cache_gb": 2} for name in STORED]))
    return [f"plan={plan}", f"folder={tmp_path / 'reference'}", f"cache_dir={cache_dir}"]


def test_it_says_how_long_it_takes_before_it_begins(programs: Programs, given: list[str]) -> None:
    status, shown, told = typed(*given, "estimate=true")
    assert status == 0, told
    assert programs.typed == []
    minutes = [seconds_of(load(COMMITTED / name).runs) / 60 for name in STORED]
    assert re.search(rf"^  fig_window +{minutes[0]:.1f} min$", shown, re.MULTILINE)
    assert 0 < 60 * sum(minutes) < 90
    assert "about 1 minute, for 2 of 2 experiments\n" in shown  # never none
    assert "disk: up to 4 GB of models and block files in " in shown
    assert "GB are free there" in shown


def test_rows_page_and_ledger(programs: Programs, given: list[str], tmp_path: Path) -> None:
    status, shown, told = typed(*given)
    assert status == 0, told
    folder = tmp_path / "reference"
    assert [run[:2] for run in programs.typed] == [
        [f"+experiment={name}", f"output_dir={folder / name}"] for name in STORED
    ]
    assert not (folder / "fig_keep" / "points").exists()
    mark = json.loads((folder / "fig_keep" / MARK).read_text())
    assert mark["commit"] == provenance()["commit"]
    assert (folder / "report.html").stat().st_size > 100_000
    assert "\n 14. A window of two blocks is enough." in shown
    assert shown.rstrip().splitlines()[-1].startswith("31 claims: ")


def test_what_is_done_is_not_run_again(
    programs: Programs, no_page: None, given: list[str], tmp_path: Path
) -> None:
    typed(*given, "only=fig_keep")
    assert len(programs.typed) == 1
    status, shown, _ = typed(*given)
    assert status == 0
    assert [run[0] for run in programs.typed[1:]] == ["+experiment=fig_window"]
    assert "done already" in shown
    mark_path = tmp_path / "reference" / "fig_keep" / MARK
    mark = json.loads(mark_path.read_text())
    mark_path.write_text(json.dumps(mark | {"commit": "another"}))
    status, shown, _ = typed(*given)
    assert [run[0] for run in programs.typed[2:]] == ["+experiment=fig_keep"]
    assert "again" in shown
    assert not list((tmp_path / "reference").glob(".*before"))


def test_what_was_stopped_goes_on(
    programs: Programs, no_page: None, given: list[str], tmp_path: Path
) -> None:
    target = tmp_path / "reference" / "fig_keep"
    (target / "points").mkdir(parents=True)
    plan = tmp_path / "plan.yaml"
    plan.write_text("- {name: fig_keep, typed: ['prompt=What, and why?']}")
    typed_once = ["+experiment=fig_keep", "prompt=What, and why?", f"output_dir={target}"]
    kept = for_hydra(typed_once, lambda: "")  # as the program keeps it
    (target / "overrides.json").write_text(json.dumps(kept))
    (target / "points" / "a.json").write_text(record_of(str(provenance()["commit"])))
    status, shown, told = typed(*given)
    assert status == 0, told
    assert "goes on" in shown
    assert programs.typed[0][0] == f"resume={target}"


def record_of(commit: str, status: str = "ok") -> str:
    from dataclasses import replace

    from tests.report.test_rows import RUN

    run = replace(RUN, commit=commit, status=status)
    return json.dumps({"run": run.cells(), "tokens": [], "devices": [], "spans": [], "config": {}})


def test_one_that_fails_does_not_hold_up_the_others(programs: Programs, given: list[str]) -> None:
    programs.status = 1
    status, _, told = typed(*given)
    assert len(programs.typed) == 2
    assert status == 5
    assert "failed: fig_window, fig_keep; the same command tries again" in told


@pytest.mark.parametrize(("status", "is_done"), [("error", False), ("oom", True)])
def test_a_point_that_could_not_be_run_is_tried_again(
    status: str,
    is_done: bool,
    programs: Programs,
    no_page: None,
    given: list[str],
    tmp_path: Path,
) -> None:
    """As where the disk was full; that it is too large is an answer."""
    target = tmp_path / "reference" / "fig_keep"
    programs.writes = {"points/a.json": record_of(str(provenance()["commit"]), status)}
    programs.writes["overrides.json"] = json.dumps(["+experiment=fig_keep"])
    _, _, told = typed(*given, "only=fig_keep")
    assert ("fig_keep failed; the others go on" in told) is not is_done
    assert (target / MARK).is_file() is is_done
    programs.writes = {"points/a.json": record_of(str(provenance()["commit"]))}
    _, shown, _ = typed(*given, "only=fig_keep")
    again = [] if is_done else [f"resume={target}"]
    assert [run[0] for run in programs.typed[1:]] == again
    assert ("goes on" in shown) is not is_done
    assert (target / MARK).is_file()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["only=fig_kep"], "only=fig_kep is no experiment of the set; did you mean fig_keep?"),
        (["plan=no.yaml"], "plan=no.yaml cannot be read: No such file or directory"),
        (["estimate=yes"], "estimate=yes is not allowed; it may be true or false"),
        (["folder=results", "only=fig_keep"], "results/fig_keep holds results that this set did"),
        (["fold=x"], "there is no fold here; did you mean folder?"),
    ],
)
def test_what_cannot_be_run_is_told_in_a_line(
    arguments: list[str], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    status, shown, told = typed(*arguments)
    assert (status, shown) == (2, "")
    assert said in told
    assert told.count("\n") == 1


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ("- {experiment: x}", "step 1 has no name; a step may have name, experiment"),
        ("- {name: x, disk: 3}", "step 1: there is no disk; it may have name"),
        ("name: x", "is no list of experiments"),
        ("- {name: x", "cannot be read"),
    ],
)
def test_plans_that_make_no_sense(tmp_path: Path, written: str, said: str) -> None:
    path = tmp_path / "plan.yaml"
    path.write_text(written)
    with pytest.raises(ValueError, match="plan=") as caught:
        read_steps(path)
    assert said in str(caught.value)


def test_the_set_covers_the_ledger() -> None:
    """Every folder that a claim is measured from is made again, in less than 75 minutes."""
    from tpi_bench.report.ledger.entries import read_entries

    steps = read_steps(PLAN)
    names = [step.name for step in steps]
    assert {name for entry in read_entries() for name in entry.folders} <= set(names)
    seconds = [estimate_of(step, ROOT / "nowhere").seconds or 0.0 for step in steps]
    assert sum(seconds) < 75 * 60
    for step in steps:
        path = ROOT / "conf" / "experiment" / f"{step.experiment or step.name}.yaml"
        assert path.is_file() or not (COMMITTED / step.name).is_dir(), step.name


STOPPABLE = """
import pathlib, sys, time
try:
    pathlib.Path(sys.argv[-1]).with_suffix(".began").touch()
    time.sleep(60)
except KeyboardInterrupt:
    pathlib.Path(sys.argv[-1]).write_text("stopped once")
    sys.exit(130)
"""


@pytest.fixture
def alarm() -> Iterator[None]:
    """Ctrl-C after a moment."""

    def interrupt(number: int, frame: Any) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    yield
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


def test_ctrl_c_ends_what_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, alarm: None
) -> None:
    program, said = tmp_path / "program.py", tmp_path / "said"
    program.write_text(STOPPABLE)
    monkeypatch.setattr(reproduce, "_COMMAND", (sys.executable, str(program)))
    signal.setitimer(signal.ITIMER_REAL, 1.0)
    begun = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        reproduce._program([str(said)])
    assert time.monotonic() - begun < 30
    assert said.read_text() == "stopped once"


def test_a_step_for_real(tmp_path: Path, cache_dir: Path) -> None:
    plan, folder = tmp_path / "plan.yaml", tmp_path / "reference"
    tiny = ["model=debug", "workload.num_new_tokens=3", "system=tpi", "system.window=1,off"]
    tiny += ["testbed.num_devices=2", "device.memory_mb=null"]
    step = Step(name="fig_window", typed=tiny)
    plan.write_text(yaml.safe_dump([vars(step)]))
    given = [f"plan={plan}", f"folder={folder}", f"cache_dir={cache_dir}"]
    status, shown, told = typed(*given)
    assert status == 0, told
    assert len(load(folder / "fig_window")) > 1
    assert (folder / "fig_window" / "fig_window.png").is_file()
    assert "fig_window" in (folder / "report.html").read_text()
    status, shown, told = typed(*given)
    assert (status, "done already" in shown) == (0, True)
