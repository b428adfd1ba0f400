"""The table of a sweep for a text: as Markdown, and as LaTeX with booktabs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tpi_bench.report.sweep_table import sweep_frame

if TYPE_CHECKING:
    import pandas as pd

MARKDOWN_FILE, LATEX_FILE = "table.md", "table.tex"


def paper_tables(runs: pd.DataFrame) -> dict[str, str]:
    """What each file holds; nothing of a folder without points."""
    if runs.empty:
        return {}
    frame = sweep_frame(runs)
    return {MARKDOWN_FILE: markdown(frame), LATEX_FILE: latex(frame)}


def markdown(frame: pd.DataFrame) -> str:
    """A table as GitHub and Pandoc read it."""
    rows = [list(frame.columns), ["---"] * len(frame.columns), *frame.to_numpy().tolist()]
    return "".join(f"| {' | '.join(map(_cell, row))} |\n" for row in rows)


def _cell(value: object) -> str:
    return str(value).replace("\\", "\\\\").replace("|", "\\|").replace("\n", " ")


def latex(frame: pd.DataFrame) -> str:
    """A tabular; the document needs \\usepackage{booktabs}."""
    texts = frame.map(str)
    styled = texts.style.hide(axis="index").format(escape="latex")
    styled = styled.format_index(escape="latex", axis="columns")
    return styled.to_latex(hrules=True, column_format="l" * len(frame.columns))
