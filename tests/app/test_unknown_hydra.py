"""Hydra's own settings, and defaults lists of YAMLs: what is wrong with them, in our words."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from tests.helpers.command_line import ROOT
from tpi_bench.app import hydra_app
from tpi_bench.app.arguments import for_hydra
from tpi_bench.app.unknown import explained


def said_of(*typed: str) -> str:
    """What is said instead of Hydra's error, in one line."""
    arguments = for_hydra(typed, lambda: "")
    with pytest.raises((HydraException, OmegaConfBaseException)) as caught:
        hydra_app.start(arguments, lambda config: None, sets_logging=False)
    said = explained(caught.value, arguments)
    assert said is not None
    assert "\n" not in said
    return said


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        (
            "hydra/launcher.njobs=2",
            "there is no hydra.launcher.njobs with hydra/launcher=points; did you mean "
            "hydra.launcher.n_jobs, of hydra/launcher=joblib?",
        ),
        (
            "hydra/launcher=joblib hydra/launcher.n_jobs=2",
            "there is no hydra/launcher.n_jobs; did you mean hydra.launcher.n_jobs=2?",
        ),
        (
            "hydra/launcher=joblib hydra.launcher.njobs=2",
            "there is no hydra.launcher.njobs with hydra/launcher=joblib; did you mean "
            "hydra.launcher.n_jobs?",
        ),
        (
            "hydra.launcher.n_jobs=2",
            "there is no hydra.launcher.n_jobs with hydra/launcher=points; it is a setting of "
            "hydra/launcher=joblib: add hydra/launcher=joblib",
        ),
        (
            "hydra.sweeper.parms.x=1",
            "there is no hydra.sweeper.parms with hydra/sweeper=grids; did you mean "
            "hydra.sweeper.params?",
        ),
        (
            "hydra/launcher=joblib hydra.launcher.n_jobs=two",
            "hydra.launcher.n_jobs=two has the wrong type; it must be a whole number",
        ),
        ("hydra/lancher=joblib", "there is no hydra/lancher; did you mean hydra/launcher?"),
        ("hydra.launchr.n_jobs=2", "there is no hydra.launchr; did you mean hydra.launcher?"),
        ("hydra.sweep.dirr=x", "there is no hydra.sweep.dirr; did you mean hydra.sweep.dir?"),
        ("hydra.mode=MULTI", "hydra.mode=MULTI is unknown; choose one of RUN, MULTIRUN"),
        (
            "experiment=fig_latency",
            "experiment=fig_latency lacks a plus, with which an experiment is added; type "
            "+experiment=fig_latency",
        ),
        (
            "+device=lenovo(4,8,20,0.5)",
            "+device=lenovo(4,8,20,0.5) adds what is there already; drop the plus: "
            "device=lenovo(4,8,20,0.5)",
        ),
        ("+system=tpi", "+system=tpi adds what is there already; drop the plus: system=tpi"),
        ("+name=x", "+name=x adds what is there already; drop the plus: name=x"),
        (
            "+system.window=2",
            "+system.window=2 adds what is there already; drop the plus: system.window=2",
        ),
    ],
)
def test_what_is_typed_of_hydras_own(typed: str, said: str) -> None:
    assert said_of(*typed.split()) == said


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "defaults: [override model: llama2_7b]",
            "experiment=mine: override model: NAME in its defaults list lacks a slash; write "
            "- override /model: NAME",
        ),
        (
            "defaults: [model: llama2_7b]",
            "an experiment's defaults list says model: llama2_7b; a choice is made there with "
            "- override /model: llama2_7b",
        ),
        (
            "defaults: [/model: llama2_7b]",
            "model: llama2_7b is a second choice of model; in the defaults list of a YAML write "
            "- override /model: llama2_7b",
        ),
        (
            "defaults: [override /modle: llama2_7b]",
            "experiment=mine: its defaults list overrides modle, which is no group; did you mean "
            "- override /model?",
        ),
        (
            "hydra: {mode: MULTI}",
            "experiment=mine: hydra.mode=MULTI is unknown; choose one of RUN, MULTIRUN",
        ),
        (
            "hydra: {sweper: {params: {}}}",
            "experiment=mine: there is no hydra.sweper; did you mean hydra.sweeper?",
        ),
    ],
)
def test_what_a_yaml_says_to_hydra(text: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "experiment").mkdir()
    path = tmp_path / "experiment" / "mine.yaml"
    path.write_text(f"# @package _global_\n{text.replace('[', '[{').replace(']', '}]')}\n")
    assert said_of("+experiment=mine", f"--config-dir={tmp_path}") == said


def test_python_is_told_too_where_hydra_has_loaded_nothing_yet() -> None:
    code = """
from tpi_bench import run
try:
    run("hydra/launcher.njobs=2")
except ValueError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.startswith("there is no hydra.launcher.njobs with hydra/launcher=points; ")
    assert done.stderr == ""
