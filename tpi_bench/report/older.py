"""Rows that are older than a column: what is said where somebody asks them for it.

A record that lacks a column is read with an empty one (`rows.py`), a table as it was written. What
is made of either, a figure or a line of text, may not expect that.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path

from tpi_bench.report.columns import columns_of
from tpi_bench.report.folder import ResultsFolder


class OlderRows(ValueError):
    """Something was asked of rows that were measured before there was a column for it."""


@contextlib.contextmanager
def told_of_older_rows(folder: Path) -> Iterator[None]:
    """Turns what goes wrong for want of a column into OlderRows, in one line."""
    try:
        yield
    except (AttributeError, KeyError, TypeError) as error:
        lacking = columns_lacking(folder)
        text = str(error)
        named = [name for name in lacking if re.search(rf"\b{name}\b", text)]
        if not named and (not lacking or not isinstance(error, TypeError)):
            raise
        names = named or lacking
        raise OlderRows(
            f"rows of {folder} are older than the column{'s' * (len(names) > 1)} "
            f"{', '.join(names)}, which they do not have ({type(error).__name__}: {text}); measure "
            "them anew in another folder, or take the version that made them"
        ) from error


def columns_lacking(folder: Path) -> list[str]:
    """Declared columns of the run table that a stored row there does not have."""
    declared = [column.name for column in columns_of("runs", ())]
    stored = ResultsFolder(folder).stored_columns()
    return [name for name in declared if any(name not in each for each in stored)]
