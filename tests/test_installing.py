"""`make` says at once where an interpreter cannot hold an installation, and what to do."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import tomllib

import pytest

from tests.helpers.command_line import ROOT

SPEC = importlib.util.spec_from_file_location("check_python", ROOT / ".ci" / "check_python.py")
assert SPEC is not None
assert SPEC.loader is not None
check_python = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(check_python)


@pytest.mark.parametrize("version", [(3, 11), (3, 12), (3, 13), (3, 14)])
def test_what_can_hold_one(version: tuple[int, int]) -> None:
    assert check_python.trouble(version, 64, True) is None


@pytest.mark.parametrize(
    ("interpreter", "words"),
    [
        (((3, 10), 64, True), "Python 3.10 is older than 3.11; give another one: make PYTHON="),
        (((3, 15), 64, True), "Python 3.15 is newer than 3.14, and Hydra, torch or numba may not"),
        (((3, 13), 32, True), "this Python 3.13 has 32 bits, and torch needs 64; give another"),
        (((3, 13), 64, False), "Python 3.13 is without venv; install it (apt install python3.13-"),
    ],
)
def test_what_cannot(interpreter: tuple[tuple[int, int], int, bool], words: str) -> None:
    assert check_python.trouble(*interpreter).startswith(words)


def test_it_asks_for_what_the_package_asks_for() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    first, last = check_python.FIRST, check_python.LAST
    assert project["requires-python"] == f">=3.{first[1]},<3.{last[1] + 1}"


@pytest.mark.parametrize(
    ("python", "words"),
    [("python9.9", "there is no python9.9; name one of 3.11 to 3.14"), ("OLD", "Python 2.7")],
)
def test_make_stops_before_it_makes_anything(tmp_path, python: str, words: str) -> None:
    """`OLD` stands for an interpreter that says it is too old."""
    if python == "OLD":
        old = tmp_path / "old"
        old.write_text('#!/bin/sh\necho "error: Python 2.7 is older" >&2\nexit 1\n')
        old.chmod(0o755)
        python = str(old)
    venv = tmp_path / "venv"
    done = subprocess.run(
        ["make", "install", f"PYTHON={python}", f"VENV={venv}"],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert done.returncode != 0
    assert re.search(words, done.stdout + done.stderr)
    assert not venv.exists()
