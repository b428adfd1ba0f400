"""What README.md tells to type works: its commands run as they stand there, but for less of it."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from io import StringIO
from pathlib import Path

import pytest

from tests.helpers.command_line import ROOT, run
from tpi_bench.host import cache
from tpi_bench.measure import calibrate
from tpi_bench.report.folder import read_runs

README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
FENCED = [line for kind, block in BLOCKS if not kind for line in block.split("\n")]
TYPED = [shlex.split(line, comments=True) for line in FENCED if line.startswith(("python", "make"))]
ON_MAKE = {word for words in TYPED if words[0] == "make" for word in words[1:]}
ON_MAKE |= set(re.findall(r"`make (\w+)`", README))
OURS = [words[3:] for words in TYPED if words[:3] == ["python", "-m", "tpi_bench"]]
NAMED = re.findall(r"`(\w+)`", README.partition("| NAME | question |")[2].partition("\n## ")[0])
EXPERIMENTS = {path.stem for path in (ROOT / "conf" / "experiment").glob("*.yaml")}
LESS = {
    "task=chat": ["model=debug", "workload.num_new_tokens=2"],
    "task=advise": ["model=debug", "workload.num_new_tokens=2", "timeout_s=10"],
    "-m": ["repeat=0", "model=debug", "workload.prompt_ids=[1,2]", "workload.num_new_tokens=2"],
}


def test_there_is_something_to_run_and_little_to_read() -> None:
    assert len(OURS) >= 7
    assert len(README.split("\n")) <= 150


@pytest.mark.parametrize("typed", OURS, ids=" ".join)
def test_a_command_runs(
    typed: list[str],
    checkpoints: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With the demo model of the user's cache; a folder of a model is a small one's."""
    folder = str(checkpoints["gqa"])
    is_own = "model.path=DIR" in typed
    words = [word.replace("model.path=DIR", f"model.path={folder}") for word in typed]
    less = next(
        (more for word, more in LESS.items() if word in words), ["workload.num_new_tokens=2"]
    )
    less = [*less, *(["workload.prompt_ids=[1,2]"] if is_own else [])]
    monkeypatch.setattr(calibrate, "calibrate", lambda folder: {"threads": {}, "host": []})
    monkeypatch.setattr(sys, "stdin", StringIO("4 5\n"))
    where = [] if "task=calibrate" in words else [*less, f"results_dir={tmp_path}"]
    done = run(*words, *where, cache_dir=cache.cache_folder(None))
    assert done.returncode == 0, done.stderr
    if "-m" in words:
        (made,) = (tmp_path / "measure").iterdir()
        assert set(read_runs(made).system) == {"tpi", "pipeline", "llamacpp"}
    else:
        assert done.stdout.strip()


def test_its_python_runs(capsys: pytest.CaptureFixture[str]) -> None:
    """In this process; scripts and standard input are for `app/test_api.py`."""
    (code,) = (block for kind, block in BLOCKS if kind == "python")
    shorter = code.replace('"prompt=', '"workload.num_new_tokens=2", "prompt=')
    assert shorter != code
    exec(shorter, {})
    assert float(capsys.readouterr().out) > 0


@pytest.mark.parametrize("target", sorted(ON_MAKE))
def test_a_target_of_make_is_there(target: str) -> None:
    """What it would run; experiments are run small by `tests/experiments`."""
    done = subprocess.run(["make", "-n", target], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    for name in re.findall(r"\+experiment=(\w+)", done.stdout):
        assert name in EXPERIMENTS


def test_every_experiment_is_named_and_there() -> None:
    shown = {name for name in NAMED if name in EXPERIMENTS}
    assert {name.removesuffix("_product") for name in EXPERIMENTS} <= shown


def test_what_it_links_to_is_there() -> None:
    for target in re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", README):
        assert target.startswith("http") or (ROOT / target).exists(), target
    sections = re.findall(r"^#+ (.*)$", (ROOT / "results" / "README.md").read_text(), re.MULTILINE)
    anchors = {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in sections}
    for anchor in re.findall(r"\]\(results/README\.md#([^)]+)\)", README):
        assert anchor in anchors, anchor
