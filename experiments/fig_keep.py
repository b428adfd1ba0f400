"""What to keep when memory is short: the same of every layer, whole blocks, or nothing?

Nothing can read less than all weights less what the memory holds, at the rate of the disk, nor
compute faster than its memory: that is the optimum. Beside it TPI with a budget of the same
matrices of every layer and of whole blocks, FlexInfer (arXiv 2503.03777), a window that keeps
nothing, and mapped files, where the kernel chooses. Run it with `python -m tpi_bench
+experiment=fig_keep`; draw it again with `python -m experiments.fig_keep FOLDER`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tpi_bench.report import figures, looks, names
from tpi_bench.report.drawing import Drawing, succeeded

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

_PLAIN = {
    "window auto": "same of every layer",
    "window auto of blocks": "whole blocks",
    "window 2": "nothing",
}


def table(rows: pd.DataFrame) -> str:
    """A table a device: a line a memory, a column a way, each as a multiple of the optimum."""
    text = []
    for device, group in rows.groupby("device", sort=False):
        text.append(f"{device}: token latency over the optimum")
        shown = group.pivot_table(index="memory_mb", columns="line", values="over", sort=False)
        optimum = group.groupby("memory_mb").optimum_s.first()
        shown.insert(0, "optimum s", optimum)
        shown.index = shown.index.map("{:.0f} MB".format)
        text.append(shown.to_string(float_format="{:.2f}".format, na_rep="-"))
        short = group[group.is_short]
        if len(short):
            means = short.groupby("line", sort=False).over.agg(["min", "max"])
            text += [
                f"  {name}: {row['min']:.2f} to {row['max']:.2f} times where memory is short"
                for name, row in means.iterrows()
            ]
    return "\n".join(text)


def draw(rows: pd.DataFrame) -> Figure:
    """Above, token latency and the optimum; below, how far each is from it. A column a device."""
    devices, labels = list(dict.fromkeys(rows.device)), list(dict.fromkeys(rows.line))
    styles = looks.line_styles(labels)
    figure = figures.new_figure(4.2, num_columns=2)
    panels = figure.subplots(2, len(devices), squeeze=False, sharex=True)
    for column, device in enumerate(devices):
        own = rows[rows.device == device]
        above, below = panels[:, column]
        for label in labels:
            line = own[own.line == label].sort_values("memory_mb")
            style: dict[str, Any] = {**styles[label], "label": label}
            above.plot(line.memory_mb / 1e3, line.token_latency_s, **style)
            below.plot(line.memory_mb / 1e3, line.over, **style)
        least = own.drop_duplicates("memory_mb").sort_values("memory_mb")
        above.plot(least.memory_mb / 1e3, least.optimum_s, **looks.LIMIT, label="optimum")
        below.axhline(1, **looks.LIMIT)
        figures.log_milliseconds(above)
        figures.log_milliseconds(below)
        above.set_title(device, fontsize=7.5)
        below.set_xlabel("memory (GB)")
    panels[0, 0].set_ylabel("token latency (s)")
    panels[1, 0].set_ylabel("over the optimum (times)")
    handles = figures.handles_of(panels[0])
    figure.legend(*handles, loc="outside lower center", ncol=3, frameon=False)
    first = rows.iloc[0]
    figure.suptitle(
        f"{names.model_name(first.model)} in {first.weights}, one device; virtual time",
        fontsize=7.5,
    )
    return figure


def _rows(runs: pd.DataFrame) -> pd.DataFrame:
    """With the name of their `line`, the `optimum_s` of their memory, and how far `over` it.

    Where mapped files are among the rows, their limit is the optimum: of a scan, all but what
    memory holds. Else it is the least limit of any.
    """
    rows = succeeded(runs)
    rows["line"] = [_line(row) for row in rows.to_dict("records")]
    rows["memory_mb"] = rows.memory_mb.fillna(rows.memory_mb.max() if len(rows) else 0.0).fillna(0)
    keys = [rows.device, rows.memory_mb]
    rows["optimum_s"] = rows.limit_token_s.groupby(keys).transform("min")
    rows["over"] = rows.token_latency_s / rows.optimum_s
    least = rows.groupby("device").optimum_s.transform("min")
    rows["is_short"] = rows.optimum_s > 1.05 * least
    return rows


def _line(row: Any) -> str:
    """What is kept, in words."""
    name = names.system_name(row)
    if str(row["system"]) == "mmap":
        return "mmap (the kernel's choice)"
    if str(row["system"]) == "blocking":
        return "blocking (keeps nothing)"
    kept = _PLAIN.get(str(row["variant"]))
    return f"TPI star, {kept}" if kept else name


DRAWING = Drawing(name="fig_keep", rows=_rows, table=table, draw=draw)

if __name__ == "__main__":
    DRAWING.again()
