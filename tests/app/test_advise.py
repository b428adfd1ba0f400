"""`task=advise` as one types it: what is told, that it can be typed again, and what is refused."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest

from experiments.fig_advise import DRAWING
from tests.helpers.advising import SMALL, asked
from tests.helpers.calibration import PLAIN, keep
from tests.helpers.command_line import report_of, run, run_module
from tpi_bench.app.advise import _notes
from tpi_bench.app.advise_again import commands
from tpi_bench.app.api import settings_of
from tpi_bench.report.advice import Advice, Rows
from tpi_bench.report.advice_text import advice_text
from tpi_bench.report.results import load
from tpi_bench.report.rows import Record

# The second has no room for its half in fp32, and the third slows down who waits for it.
DEVICES = "device=[fast(4,0.0022,0.4,0.05),old(4,0.0011,0.2,0.02),slow(1,0.002,0.005,0.01)]"
TYPED = (*SMALL, DEVICES, "network=wifi", "network.bandwidth_mbps=20")


@pytest.fixture(scope="module")
def told(
    cache_dir: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[subprocess.CompletedProcess[str], Path]:
    """Once, as text, and the folder."""
    folder = tmp_path_factory.mktemp("told") / "advice"
    typed = ("task=advise", *TYPED, f"output_dir={folder}", "timeout_s=60")
    return run(*typed, cache_dir=cache_dir), folder


def test_it_tells_the_best_and_why_others_are_not(
    told: tuple[subprocess.CompletedProcess[str], Path],
) -> None:
    done, _ = told
    assert done.returncode == 0, done.stderr
    text = done.stdout
    assert re.search(r"^debug, [\d.e-]+ GB in q4, .* 0.0053 GB of memory together, wifi", text)
    assert "B old: 4 cores, 0.0011 GB, 0.2 GB/s, disk 0.02 GB/s (taken, as not said: " in text
    table = text.partition("perplexity*\n")[2].partition("\n*")[0].split("\n")
    assert [line.split()[0] for line in table] == [str(n) for n in range(1, len(table) + 1)]
    assert 3 < len(table) <= 10
    for title in ("By number of devices", "By precision", "By system", "What one change would do"):
        assert title in text
    for words in ("float32", "bfloat16", "galaxy", "pipeline", "tpi star", "cables to a gigabit"):
        assert f"  {words} " in text, words
    assert "slower than A" in text  # the third device does harm


def test_what_is_told_is_made_of_what_is_stored(
    told: tuple[subprocess.CompletedProcess[str], Path],
) -> None:
    done, folder = told
    results = load(folder)
    rows = Rows.of(Record(run=row, devices=results.device_rows(row)) for row in results.rows)
    assert advice_text(Advice.load(folder), rows) == done.stdout.rstrip("\n")
    assert (folder / "fig_advise.png").stat().st_size > 10_000
    shown = DRAWING.rows(DRAWING.stored(folder))  # the ten of the table, and in its order
    assert list(shown.point) == [line.point for line in Advice.load(folder).best]
    again = run_module("experiments.fig_advise", str(folder))
    assert again.returncode == 0, again.stderr
    best = results.runs[results.runs.experiment == "advise"].token_latency_s.min()
    assert f"{best * 1e3:.1f}" in again.stdout


def test_its_command_gives_the_same_again(
    told: tuple[subprocess.CompletedProcess[str], Path], cache_dir: Path, tmp_path: Path
) -> None:
    done, folder = told
    command = done.stdout.partition("Again in virtual time:\n")[2].split("\n")[0]
    words = shlex.split(command)
    assert words[:3] == ["python", "-m", "tpi_bench"]
    once = run(*words[3:], f"results_dir={tmp_path}", "report=json", cache_dir=cache_dir)
    assert once.returncode == 0, once.stderr
    latencies = report_of(once)["token_latencies_s"]
    best = Advice.load(folder).best[0]
    (row,) = [row for row in load(folder).rows if row.point == best.point]
    assert sum(latencies) / len(latencies) == pytest.approx(row.token_latency_s, rel=1e-12)


@pytest.mark.parametrize("threads", [1, 2])
def test_cores_of_this_host_that_it_does_not_count_on(tmp_path: Path, threads: int) -> None:
    keep(tmp_path, t1=PLAIN, t2=PLAIN)
    typed = ["task=advise", "device=this_host", f"device.this_host.threads={threads}"]
    settings = settings_of([*typed, "model=debug", "testbed=virtual", f"cache_dir={tmp_path}"])
    notes = _notes(settings, SimpleNamespace(best=[]), tmp_path)
    words = "this_host counts with 1 of its 2 cores; with all of them: device.this_host.threads=2"
    assert (words in notes) == (threads == 1)


def test_its_commands_for_real_devices(cache_dir: Path) -> None:
    """Of a model that has weights, as they must be the user's; on machines in the team's order."""
    home = asked(*TYPED, "system=tpi_direct", cache_dir=cache_dir)
    way = next(way for way, _ in home.bounded() if way.team == (1, 0))
    found = commands(home.base, way.changes(home.household), home.household, way)
    for where, clue in (
        ("processes of one machine", "network=switch"),
        ("machines", "nodes=[B,A]"),
    ):
        (command,) = (text for words, text in found.items() if where in words)
        words = shlex.split(command)[3:]
        assert "model=hf" in words
        assert any(word.endswith(clue) for word in words)
        words = [word for word in words if not word.startswith("model=")]
        words = [word.replace("model.path=DIR", "model=debug") for word in words]
        settings = settings_of([*words, "workload.prompt_tokens=4"])
        assert settings.testbed.clock == "wall"
        assert settings.num_devices == 2


def test_its_shares_by_strength_are_those_that_were_typed(cache_dir: Path) -> None:
    """For real devices, which know no profiles: their GB/s of memory, which divide the same."""
    home = asked(
        *SMALL, "device=[a(4,2,41,0.5),b(4,2,9.3,0.5)]", "network=switch", cache_dir=cache_dir
    )
    way = next(way for way, _ in home.bounded() if way.shares == "strength")
    found = commands(home.base, way.changes(home.household), home.household, way)
    typed = "[41,9.3]" if way.team == (0, 1) else "[9.3,41]"
    *_, emulated, machines = found.values()
    assert f"testbed.proportions={typed}" in shlex.split(emulated)
    assert f"testbed.proportions={typed}" in shlex.split(machines)


@pytest.mark.parametrize("number", range(0, 60, 7))
def test_settings_are_those_that_hydra_composes(number: int, cache_dir: Path) -> None:
    """The search makes them itself; typed, they are the same point."""
    home = asked(*TYPED, cache_dir=cache_dir)
    bounded = home.bounded()
    ours = home.settings(bounded[number * len(bounded) // 60][0])
    theirs = settings_of([*ours.overrides, "task=measure", "name=advise", f"cache_dir={cache_dir}"])
    assert ours.point == theirs.point
    assert ours.system == theirs.system
    assert ours.network == theirs.network
    assert ours.profiles == theirs.profiles


def test_what_is_typed_is_not_varied(cache_dir: Path) -> None:
    given = ("system=pipeline", "system.wire=q8", "model.weights=q8", "device.old.used_cores=2")
    home = asked(*TYPED, *given, cache_dir=cache_dir)
    found = [home.settings(way) for way, _ in home.bounded()]
    assert {each.system.name for each in found} == {"pipeline"}
    assert {each.raw["system"]["wire"] for each in found} == {"q8"}
    assert {each.model.weights for each in found} == {"q8"}
    shares = asked(*TYPED, "testbed.proportions=[3,2,1]", cache_dir=cache_dir)
    assert {way.shares for way, _ in shares.bounded()} == {(3, 2, 1)}
    one = asked(*TYPED, "system.collective=direct", cache_dir=cache_dir)
    assert {way.setting("collective") for way, _ in one.bounded()} == {"direct"}


def test_one_object_where_nothing_fits(cache_dir: Path, tmp_path: Path) -> None:
    given = (*SMALL, "device=[tiny(4,0.0002,0.4,0.05)]", "report=json", f"results_dir={tmp_path}")
    done = run("task=advise", *given, "system=tpi", "system.window=off", cache_dir=cache_dir)
    assert done.returncode == 3
    report = json.loads(done.stdout)
    assert (report["status"], report["exit_reason"]) == ("oom", "out_of_memory")
    assert report["best"] == []
    helps = {each["words"]: each["token_latency_s"] for each in report["changes"]}
    assert helps == {"twice the memory on tiny": None, "a disk twice as fast on tiny": None}
    assert Path(report["results"]).parent == tmp_path / "advise"


def test_a_search_that_was_stopped_is_taken_up(cache_dir: Path, tmp_path: Path) -> None:
    """Its points are not run again."""
    folder = tmp_path / "advice"
    given = (*SMALL, "device=2*old(4,0.0011,0.2,0.02)", "system=tpi", "model.weights=q4")
    first = run("task=advise", *given, f"output_dir={folder}", "report=json", cache_dir=cache_dir)
    assert first.returncode == 0, first.stderr
    refused = run(f"resume={folder}", cache_dir=cache_dir)
    assert refused.returncode == 2
    assert "it is finished (" in refused.stderr
    assert "measure it anew with: python -m tpi_bench task=advise " in refused.stderr
    for path in folder.glob("runs.*"):
        path.unlink()  # as if it had not come to its end
    started = {
        path.name: json.loads(path.read_text())["run"]["started"] for path in _points(folder)
    }
    again = run(f"resume={folder}", cache_dir=cache_dir)
    assert again.returncode == 0, again.stderr
    after = {path.name: json.loads(path.read_text())["run"]["started"] for path in _points(folder)}
    assert after == started
    assert report_of(first)["best"] == report_of(again)["best"]


def _points(folder: Path) -> list[Path]:
    return sorted((folder / "points").glob("*.json"))


@pytest.mark.parametrize(
    ("typed", "words"),
    [
        ((), "task=advise wants to know the devices: "),
        (("device=[macbok_pro_m1]",), "did you mean device=macbook_pro_m1?"),
        ((DEVICES, "network=wifi_paper", "network.station_mbps=[1,2]"), "is for 2 devices, but"),
        ((DEVICES, "network=none"), "network=none says nothing of what connects the devices"),
        ((DEVICES, "device.memory_mb=5"), "leave out device.memory_mb, or change the profile"),
        ((DEVICES, "testbed.num_devices=2"), "device= names 3; leave it out"),
        ((DEVICES, "prompt=Hello"), "task=advise answers no prompt"),
        ((DEVICES, "-m"), "leave out -m"),
        ((DEVICES, "model.weights=q4,q8"), "task=advise takes one: ask it once for each"),
        ((DEVICES, "system=llamacpp"), "knows no virtual time; its stand-in there is"),
        ((DEVICES, "testbed=processes"), "task=advise looks ahead in virtual time"),
        (("device=2*old(4,8,20,0.5)", "testbed.proportions=[1,2,3]"), "no system can divide"),
        (("device=17*raspberry_pi_5",), "device= names 17 devices; task=advise looks at up to 16"),
    ],
)
def test_what_cannot_be_is_one_line(
    typed: tuple[str, ...], words: str, cache_dir: Path, tmp_path: Path
) -> None:
    given = ("task=advise", *SMALL, f"results_dir={tmp_path}")
    done = run(*given, *typed, cache_dir=cache_dir)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert words in done.stderr
    assert not list(tmp_path.rglob("*.json"))


def test_of_this_host_itself(cache_dir: Path, tmp_path: Path) -> None:
    """As it was calibrated, beside another."""
    typed = ("task=advise", "device=[this_host,slow(1,2,5,1)]", *SMALL, "timeout_s=2")
    done = run(*typed, "report=json", f"output_dir={tmp_path / 'out'}", cache_dir=cache_dir)
    assert done.returncode == 0, done.stderr
    assert "this_host" in done.stdout


def test_help_is_help(cache_dir: Path) -> None:
    done = run("task=advise", "--help", cache_dir=cache_dir)
    assert done.returncode == 0, done.stderr
    assert "== Exit status ==" in done.stdout
