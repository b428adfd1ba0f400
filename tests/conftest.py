"""Shared fixtures: one cache folder a test session, and random models of every variant."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.helpers.models_zoo import VARIANTS, WIDE, Variant, make_checkpoint


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
