"""The look of all figures: a paper's column width, colours that colour-blind readers can tell
apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLUMN_INCHES = 3.4
MARKERS = "osD^vPX*"

_STYLE = {
    "font.size": 7.5,
    "axes.labelsize": 8,
    "legend.fontsize": 6.5,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "axes.linewidth": 0.6,
    "grid.linewidth": 0.4,
    "lines.linewidth": 1.2,
    "lines.markersize": 3.5,
    "pdf.fonttype": 42,  # text stays text in the PDF
    "savefig.dpi": 300,
}


def new_figure(height_inches: float = 2.6) -> Figure:
    """An empty figure, one column wide, drawn without a display."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    import seaborn as sns

    sns.set_theme(context="paper", style="whitegrid", rc=_STYLE)
    return plt.figure(figsize=(COLUMN_INCHES, height_inches), layout="constrained")


def palette(names: Sequence[str]) -> dict[str, tuple[float, float, float]]:
    """A colour for each name, the same whenever the names are the same."""
    import seaborn as sns

    return dict(zip(names, sns.color_palette("colorblind", len(names)), strict=True))


def save_figure(figure: Figure, folder: Path, name: str) -> list[Path]:
    """PNG and PDF of the figure in `folder`."""
    import matplotlib.pyplot as plt

    paths = [folder / f"{name}.{ending}" for ending in ("png", "pdf")]
    for path in paths:
        figure.savefig(path)
    plt.close(figure)
    return paths
