"""Three machines on this host, joined by Ray, for all tests of clusters."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator

import pytest

from tests.cluster_demo.machines import Machines


@pytest.fixture(scope="session")
def machines() -> Iterator[Machines]:
    if importlib.util.find_spec("ray") is None:
        pytest.skip("Ray is not installed: pip install -c constraints.txt '.[cluster]'")
    with Machines(3) as machines:
        yield machines
