"""Results folders by name: those that were given, and those that lie in a folder that was given."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

_TIME = re.compile(r"\d{4}-\d\d-\d\d")
_APART = ("runs", "reference")  # everybody's own experiments, and what `task=reproduce` leaves
_DEPTH = 2


def collected(given: Sequence[Path]) -> dict[str, Path]:
    """By name. Raises ValueError: a folder without results, or two of one name."""
    found: dict[str, Path] = {}
    for folder in given:
        inside = [(name_of(folder), folder)] if has_rows(folder) else list(_below(folder, folder))
        if not inside:
            what = "holds no results" if folder.is_dir() else "is no folder"
            raise ValueError(
                f"{folder} {what}; give folders with runs.parquet or points/, or one that has such"
            )
        for name, path in inside:
            if name in found and found[name].resolve() != path.resolve():
                raise ValueError(
                    f"{found[name]} and {path} are both called {name}; give one of them"
                )
            found[name] = path
    return found


def has_rows(folder: Path) -> bool:
    """Whether it is a results folder."""
    return (folder / "runs.parquet").is_file() or any((folder / "points").glob("*.json"))


def name_of(folder: Path) -> str:
    """Its own, or that of the experiment where it is called after a time."""
    path = folder.resolve()
    return path.parent.name if _TIME.match(path.name) else path.name


def _below(folder: Path, top: Path, depth: int = _DEPTH) -> Iterator[tuple[str, Path]]:
    if depth == 0 or not folder.is_dir():
        return
    for path in sorted(folder.iterdir()):
        if path.is_dir() and path.name not in _APART and not path.name.startswith("."):
            if has_rows(path):
                yield path.relative_to(top).as_posix(), path
            else:
                yield from _below(path, top, depth - 1)
