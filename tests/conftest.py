"""Shared fixtures: one cache folder a test session, and random models of every variant."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from tests.helpers.models_zoo import VARIANTS, WIDE, Variant, make_checkpoint


@pytest.fixture(scope="session", autouse=True)
def own_turns(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Measured points of this worker's tests wait for no other program on this host."""
    folder = tmp_path_factory.mktemp("runtime")
    folder.chmod(0o700)
    os.environ["XDG_RUNTIME_DIR"] = str(folder)


@pytest.fixture(scope="session", autouse=True)
def ctrl_c_is_heard() -> None:
    """What a shell starts in the background ignores Ctrl-C, and so would all that tests start."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def cache_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A Hugging Face folder with random weights for each variant."""
    root = tmp_path_factory.mktemp("checkpoints")
    return {name: make_checkpoint(root / name, variant) for name, variant in VARIANTS.items()}


@pytest.fixture(scope="session")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose rows are whole quantised blocks."""
    return make_checkpoint(tmp_path_factory.mktemp("wide"), Variant(changes=WIDE))
