"""Is the twin of a cluster true? The same points on its machines and in virtual time.

The machines and their links were measured once by `task=survey`, which wrote the profiles and the
network that virtual time takes; nothing was fitted to the points. Run it with
`python -m tpi_bench +experiment=fig_twin --config-dir FOLDER device=FOLDER/devices/`; draw it again
with `python -m experiments.fig_twin FOLDER`.
"""

from __future__ import annotations

import pandas as pd

from experiments.fig_fidelity import TIMES, cases, draw
from tpi_bench.report.drawing import Drawing

_SHOWN = {"case": "case", "wall_ms": "cluster ms", "virtual_ms": "virtual ms", "error": "error"}


def table(rows: pd.DataFrame) -> str:
    """One line a case: the median on the cluster, virtual time, and how far that is off."""
    parts = []
    for time, each in rows.groupby("time", sort=False):
        numbers = {"cluster ms": "{:.1f}".format, "virtual ms": "{:.1f}".format}
        shown = each[list(_SHOWN)].rename(columns=_SHOWN)
        text = shown.to_string(index=False, formatters=numbers | {"error": "{:+.1%}".format})
        off = each.error.abs()
        parts.append(
            f"{TIMES[str(time)]}\n{text}\nmedian error {off.median():.1%}, worst {off.max():.1%} "
            f"of {len(each)} cases"
        )
    return "\n\n".join(parts)


DRAWING = Drawing(
    name="fig_twin",
    rows=cases,
    table=table,
    draw=draw,
    nothing="no case ran both on the cluster and in virtual time",
)

if __name__ == "__main__":
    DRAWING.again()
