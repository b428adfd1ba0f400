"""Devices on a node compute with the settings that Ray was started with, not with Ray's own."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tpi_bench.cluster.agent import NodeAgent

CHILD = (
    "import os; os.environ['OMP_NUM_THREADS'] = '1'; from tpi_bench.cluster.agent import NodeAgent;"
    "NodeAgent(); print(os.environ.get('OMP_NUM_THREADS'))"
)


@pytest.mark.parametrize("given", [None, "3"])
def test_a_bound_of_threads_is_the_users(given: str | None) -> None:
    """A shell stands for what has started the worker."""
    environment = {key: value for key, value in os.environ.items() if key != "OMP_NUM_THREADS"}
    environment |= {} if given is None else {"OMP_NUM_THREADS": given}
    done = subprocess.run(
        ["sh", "-c", '"$0" -c "$1"; true', sys.executable, CHILD],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == str(given)


def test_an_agent_is_made_without_a_readable_parent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setattr("tpi_bench.cluster.surroundings._of_parent", dict)
    NodeAgent()
    assert "OMP_NUM_THREADS" not in os.environ
