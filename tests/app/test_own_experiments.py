"""An experiment in a user's own folder: what its YAML may get wrong is one line."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from tests.helpers import command_line
from tests.helpers.command_line import ROOT, run
from tpi_bench import load
from tpi_bench import run as run_point
from tpi_bench.app.experiment import kept_line
from tpi_bench.report.rows import RunRow

WRONG = {
    "device: raspberry_pi_5": "- override /device: raspberry_pi_5",
    "device: [raspberry_pi_4, raspberry_pi_5]": "- override /device: [raspberry_pi_4, raspberry_pi",
    "model: debug": "- override /model: debug",
    "testbed: virtual": "- override /testbed: virtual",
}


def typed(folder: Path, name: str, text: str) -> list[str]:
    """What runs an experiment that has been written into a folder beside `conf/`."""
    path = folder / "experiment" / f"{name}.yaml"
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"# @package _global_\n{text}\n")
    return ["--config-dir", str(folder), f"+experiment={name}", f"output_dir={folder / 'out'}"]


@pytest.mark.parametrize("mode", ["RUN", "MULTIRUN"])
@pytest.mark.parametrize("line", WRONG)
def test_a_choice_made_as_it_is_typed(
    line: str, mode: str, cache_dir: Path, tmp_path: Path
) -> None:
    text = f"{line}\ntask: measure\nhydra:\n  mode: {mode}"
    done = run(*typed(tmp_path, "mine", text), cache_dir=cache_dir)
    assert done.returncode == 2
    (said,) = done.stderr.splitlines()
    assert said.startswith(f"error: {line} stands in a YAML where the settings of ")
    assert WRONG[line] in said
    assert not (tmp_path / "out").exists()


def test_as_the_sentence_says_it_works(cache_dir: Path, tmp_path: Path) -> None:
    text = """defaults:
  - override /testbed: virtual
  - override /model: debug
  - override /device: raspberry_pi_5
workload:
  prompt_tokens: 3"""
    arguments = typed(tmp_path, "mine", text)
    done = run("-m", "task=measure", *arguments, cache_dir=cache_dir)
    assert done.returncode == 0, done.stderr
    (row,) = load(tmp_path / "out").rows
    assert (row.device, row.clock) == ("raspberry_pi_5", "virtual")


@pytest.mark.parametrize("typed_too", ["device.memory_mb=400", "device.raspberry_pi_5.cores=2"])
def test_a_setting_of_what_is_chosen_so(typed_too: str, cache_dir: Path, tmp_path: Path) -> None:
    """Hydra would say that the setting does not exist, which is not the reason."""
    done = run(*typed(tmp_path, "mine", "device: raspberry_pi_5"), typed_too, cache_dir=cache_dir)
    assert done.returncode == 2
    assert done.stderr.startswith("error: device: raspberry_pi_5 stands in a YAML where ")


def test_a_figure_is_called_as_its_module(
    cache_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else it would be drawn once, and refused when it is drawn again."""
    text = (ROOT / "experiments" / "fig_window.py").read_text()
    (tmp_path / "my_figure.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    arguments = typed(tmp_path, "mine", "figure: my_figure\ntestbed:\n  num_devices: 1")
    done = run(
        "-m", "task=measure", "testbed=virtual", "model=debug", *arguments, cache_dir=cache_dir
    )
    assert done.returncode == 2
    assert "its DRAWING is called fig_window; it must have the module's name, my_fig" in done.stderr


def test_a_profile_that_was_copied_has_the_name_of_its_file(
    cache_dir: Path, tmp_path: Path
) -> None:
    (tmp_path / "device").mkdir()
    text = (ROOT / "conf" / "device" / "raspberry_pi_5.yaml").read_text()
    (tmp_path / "device" / "slow_pi.yaml").write_text(text)
    own = ["--config-dir", str(tmp_path), "task=measure", "testbed=virtual", "model=debug"]
    done = run(*own, "device=[raspberry_pi_5,slow_pi]", cache_dir=cache_dir)
    assert done.returncode == 2
    assert "the first line must be '# @package device.slow_pi', and the name slow_pi" in done.stderr
    assert "Traceback" not in done.stderr


FOLDER = {
    "system/mine.yaml": "defaults: [tpi]\nname: mine\nstrength: 3\n",
    "system/theirs.yaml": "defaults: [mine]\nname: theirs\npatience: 1\n",
    "model/small.yaml": "defaults: [debug]\nname: small\n",
    "device/toaster.yaml": "cores: 1\n",
    "experiment/quick.yaml": "# @package _global_\ndefaults:\n  - override /system: mine\n",
    "network/broken.yaml": "a: [",
}


@pytest.mark.parametrize(
    ("typed", "line"),
    [
        (
            "system=mine system.strngth=2",
            "there is no system.strngth; did you mean system.strength",
        ),
        ("system.strength=2", "it is a setting of system=mine, theirs: add system=mine"),
        ("system=mine system.patience=2", "with system=mine; it is a setting of system=theirs: "),
        ("system=theirs system.windw=2", "there is no system.windw; did you mean system.window?"),
        ("patience=2", "there is no patience; did you mean system.patience?"),
        ("+experiment=quick system.patience=2", "there is no system.patience with system=mine; "),
        ("device.toster.cores=2", "there is no device.toster.cores; did you mean device.toaster"),
        ("device.toaster.cores=2", "as device= does not name that profile; add device=toaster"),
        ("model=smal", "there is no model=smal; did you mean model=small?"),
        ("network.link_latency=1", "there is no network.link_latency; did you mean network.l"),
    ],
)
def test_unknown_names_beside_choices_of_ones_own(
    typed: str, line: str, cache_dir: Path, tmp_path: Path
) -> None:
    for name, text in FOLDER.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    done = run(*typed.split(), "--config-dir", str(tmp_path), cache_dir=cache_dir)
    assert done.returncode == 2
    (said,) = done.stderr.splitlines()
    assert line in said
    with pytest.raises(ValueError, match=r"there is no "):
        run_point(*typed.split(), config_dir=tmp_path)


def test_help_lists_choices_of_ones_own(cache_dir: Path, tmp_path: Path) -> None:
    for name in ("system/mine.yaml", "experiment/quick.yaml"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(FOLDER[name])
    done = run("--help", "--config-dir", str(tmp_path), "system=mine", cache_dir=cache_dir)
    assert done.returncode == 0, done.stderr
    for group, own in (("system", "mine"), ("experiment", "quick")):
        (line,) = (line for line in done.stdout.splitlines() if line.startswith(f"{group}: "))
        assert own in line.split(": ")[1].split(", ")
        assert line.count(",") > 10  # ours too


GRIDS = "hydra: {sweeper: {grids: [{system: 'tpi,pipeline'}]}}"


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (GRIDS, "hydra.sweeper.grids has several points, and this runs one; add -m, or to the "),
        (
            "hydra: {mode: MULTIRUN, sweeper: {grid: [{system: tpi}]}}",
            "there is no hydra.sweeper.grid; did you mean hydra.sweeper.grids?",
        ),
        (
            "hydra: {mode: MULTIRUN, sweeper: {params: {system: [tpi, pipeline]}}}",
            "hydra.sweeper has system: [tpi,pipeline], which is one value, a list; to sweep over ",
        ),
        (
            "hydra: {mode: MULTIRUN, sweeper: {grids: [{network.link_latency_ms: [1, 2]}]}}",
            "it must be a number; to sweep over these, write 1,2 (-m network.link_latency_ms=1,2;",
        ),
        ("figure: broken_figure\nhydra: {mode: MULTIRUN}", "cannot draw the results: KeyError: "),
    ],
)
def test_what_else_an_experiment_may_get_wrong(
    text: str, line: str, cache_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "broken_figure.py").write_text("raise KeyError('own')\n")
    monkeypatch.syspath_prepend(tmp_path)
    given = typed(tmp_path, "mine", f"task: measure\nmodel: {{name: x}}\n{text}")
    done = run(*given, "model=debug", "workload.prompt_ids=[1]", cache_dir=cache_dir)
    assert done.returncode == 2, done.stderr
    assert line in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_a_figure_without_rows_is_refused(cache_dir: Path, tmp_path: Path) -> None:
    """It would run all its points and keep nothing."""
    text = f"figure: fig_window\n{GRIDS.replace('{sweeper', '{mode: MULTIRUN, sweeper')}"
    given = typed(tmp_path, "mine", text)
    done = run(*given, "model=debug", "testbed=virtual", cache_dir=cache_dir)
    assert done.returncode == 2
    (said,) = done.stderr.splitlines()
    assert said.startswith("error: figure=fig_window draws rows, and task=generate leaves none; ")


def test_an_experiment_whose_first_line_is_missing(cache_dir: Path, tmp_path: Path) -> None:
    given = typed(tmp_path, "mine", "")
    path = tmp_path / "experiment" / "mine.yaml"
    path.write_text("defaults:\n  - override /network: wifi\n")
    done = run(*given, cache_dir=cache_dir)
    assert done.returncode == 2
    assert "'experiment/mine': the first line of an experiment's YAML must be '#" in done.stderr


def contents(folder: Path) -> dict[str, tuple[int, bytes]]:
    """When each file was written, and what it holds."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {str(path): (path.stat().st_mtime_ns, path.read_bytes()) for path in files}


def test_a_folder_that_was_typed_from_here_is_found_from_elsewhere(
    cache_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "defaults:\n  - override /testbed: virtual\ntask: measure"
    given = typed(tmp_path, "mine", text)
    (relative,) = [os.path.relpath(each, ROOT) for each in given if each == str(tmp_path)]
    given[given.index(str(tmp_path))] = relative
    point = ["-m", "model=debug", "workload.prompt_tokens=3", "system=tpi,pipeline"]
    done = run(*given, *point, cache_dir=cache_dir)
    assert done.returncode == 0, done.stderr
    before = contents(tmp_path / "out")
    monkeypatch.setattr(command_line, "ROOT", tmp_path)
    again = run(f"resume={tmp_path / 'out'}", cache_dir=cache_dir)
    assert again.returncode == 0, again.stderr
    assert "2 points are done and are not run again" in again.stderr
    assert contents(tmp_path / "out") == before  # finished, so nothing is written


def test_a_system_that_fails_while_it_plans_is_a_row(cache_dir: Path, tmp_path: Path) -> None:
    """On devices of this host too, and the others are measured."""
    named = "_target_: tests.helpers.hasty.HastySystem\nname: hasty\n"
    (tmp_path / "system").mkdir()
    (tmp_path / "system" / "hasty.yaml").write_text(f"defaults: [tpi, _self_]\n{named}")
    done = run(
        *("-m", "task=measure", "--config-dir", str(tmp_path), "model=debug"),
        *("workload.prompt_ids=[1]", "workload.num_new_tokens=2", "system=hasty,tpi"),
        f"output_dir={tmp_path / 'out'}",
        cache_dir=cache_dir,
    )
    assert done.returncode == 5, done.stderr
    rows = {row.system: row for row in load(tmp_path / "out").rows}
    assert rows["tpi"].status == "ok"
    said = str(rows["hasty"].error)
    assert said.startswith("ZeroDivisionError: a plan of its own (")
    assert "hasty.py:" in said


EDITED = {
    "num_new_tokens: 3": "workload.num_new_tokens is 3 and was 2",
    "prompt_tokens: 5": "workload.prompt_tokens is 5 and was 4",
    "'1,2'": "hydra.sweeper.grids is [{'testbed.num_devices': '1,2'}] and was [{'testbed",
}


@pytest.mark.parametrize("edited", EDITED)
def test_a_sweep_whose_yaml_was_edited_is_not_taken_up_again(
    edited: str, cache_dir: Path, tmp_path: Path
) -> None:
    """Rows of two experiments would stand in one table."""
    text = """task: measure
workload:
  num_new_tokens: 2
  prompt_tokens: 4
hydra:
  mode: MULTIRUN
  sweeper: {grids: [{testbed.num_devices: '1,2,3'}]}"""
    given = typed(tmp_path, "mine", text)
    done = run(*given, "model=debug", "testbed=virtual", cache_dir=cache_dir)
    assert done.returncode == 0, done.stderr
    out = tmp_path / "out"
    (out / "runs.parquet").unlink()  # as if it had been stopped before its last point
    first, *_ = sorted((out / "points").glob("*.json"))
    first.unlink()
    wrong = {"num_new_tokens: 3": "num_new_tokens: 2", "prompt_tokens: 5": "prompt_tokens: 4"}
    typed(tmp_path, "mine", text.replace(wrong.get(edited, "'1,2,3'"), edited))
    again = run(f"resume={out}", cache_dir=cache_dir)
    assert again.returncode == 2
    assert EDITED[edited] in again.stderr
    assert again.stderr.splitlines()[-1].endswith("; undo that, or begin a new folder")
    assert not first.exists()
    typed(tmp_path, "mine", text)
    again = run(f"resume={out}", "timeout_s=60", cache_dir=cache_dir)
    assert again.returncode == 0, again.stderr
    assert len(load(out).rows) == 3


def test_one_point_is_not_told_as_several() -> None:
    run_row = replace(RunRow.of(), status="ok")
    assert kept_line([run_row], Path("x")) == "1 point is done and is not run again"
