"""Which allreduce on which network, for how many devices?

Star is TPI-LLM's choice, and its argument is link latency: it takes two steps, ring and tree more.
Critics ask what is left of it at the round trips of a normal LAN, which are 0.2 to 1 ms, and on
other topologies than a star; and a direct allreduce takes one step, until the up-link fills. Each
field has the colour of the fastest allreduce, with the token latency of star over its own; a
pipeline, which has none, and one device alone stand in the table. 4-bit weights, so that nothing
streams. Shown is the median gap: during the first, star's port still sends what the prompt left in
it. Run it with `python -m tpi_bench +experiment=fig_lan`; draw it again with
`python -m experiments.fig_lan FOLDER`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from tpi_bench.report import figures, looks, names
from tpi_bench.report.drawing import Drawing, succeeded

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_PIPELINE = "pipeline"
_WIRES = {"auto": "as computed", "q8": "8 bits"}
_HOPS = {"switch": 4, "paper": 8, "wifi": 4, "none": 2}  # of a round trip
_NAMES = {"wifi": "Wi-Fi", "wan": "wide area"}
_FIELD = ["network", "wire", "num_devices", "round_trip_ms"]


def table(rows: pd.DataFrame) -> str:
    """A line a network, wire, number of devices and round trip: milliseconds a token of each."""
    import pandas as pd

    alone = rows[rows.num_devices == 1]
    lines = pd.DataFrame(list(_lines(rows[rows.num_devices > 1]))).to_string(index=False)
    if alone.empty:
        return lines
    return f"{lines}\none device: {alone.token_s.median() * 1e3:.4g} ms"


def _lines(rows: pd.DataFrame) -> Iterator[dict[str, Any]]:
    pipelines = rows[rows.line == _PIPELINE].set_index(["network", "num_devices", "round_trip_ms"])
    own = rows[rows.line != _PIPELINE]
    lines = list(dict.fromkeys(own.line))
    for (network, wire, devices, trip), found in own.groupby(_FIELD, sort=False, dropna=False):
        times = found.set_index("line").token_s
        beside = pipelines.token_s.get((network, devices, trip), float("nan"))
        yield {
            "network": network,
            "messages": wire,
            "devices": f"{devices:.0f}",
            "round trip ms": "by pair" if trip != trip else f"{trip:g}",
            **{line: f"{times[line] * 1e3:.4g}" if line in times else "-" for line in lines},
            "fastest": times.idxmin(),
            "pipeline": "-" if beside != beside else f"{beside * 1e3:.4g}",
        }


def draw(rows: pd.DataFrame) -> Figure:
    """A map a network and wire: devices by round trip, coloured by the fastest allreduce."""
    rows = rows[rows.round_trip_ms.notna() & (rows.line != _PIPELINE) & (rows.num_devices > 1)]
    networks, wires = (list(dict.fromkeys(rows[name])) for name in ("network", "wire"))
    lines = list(dict.fromkeys(rows.line))
    colours = {line: looks.light(looks.look_of(line).colour) for line in lines}
    figure = figures.new_figure(1.6 * len(wires) + 0.8, num_columns=2)
    panels = figure.subplots(len(wires), len(networks), squeeze=False)
    for wire, row in zip(wires, panels, strict=True):
        for network, axes in zip(networks, row, strict=True):
            _draw_map(axes, rows[(rows.network == network) & (rows.wire == wire)], colours)
            if wire == wires[0]:
                axes.set_title(network, fontsize=8)
            if wire == wires[-1]:
                axes.set_xlabel("round trip (ms)")
        row[0].set_ylabel(f"messages {wire}\ndevices")
    handles = [figures.patch(colours[line], line) for line in lines]
    figure.legend(handles=handles, loc="outside lower center", ncol=4, frameon=False)
    first = rows.iloc[0]
    words = (
        f"{names.model_name(first.model)} in {first.weights}, virtual time: the fastest allreduce"
    )
    figure.suptitle(f"{words}, and star's token latency over its", fontsize=7.5)
    return figure


def _draw_map(axes: Axes, own: pd.DataFrame, colours: dict[str, Any]) -> None:
    import numpy as np

    trips, devices = (sorted(own[name].unique()) for name in ("round_trip_ms", "num_devices"))
    image = np.ones((len(devices), len(trips), 3))
    for (number, trip), found in own.groupby(["num_devices", "round_trip_ms"]):
        times = found.set_index("line").token_s
        best = times.idxmin()
        y, x = devices.index(number), trips.index(trip)
        image[y, x] = colours[best]
        stars = found[found.system_collective == "star"].token_s
        if len(stars):
            text = f"{stars.iloc[0] / times[best]:.2f}"
            axes.text(x, y, text, ha="center", va="center", fontsize=6, color="k")
    axes.imshow(image, origin="lower", aspect="auto")
    axes.set_xticks(range(len(trips)), [f"{trip:g}" for trip in trips])
    axes.set_yticks(range(len(devices)), [f"{number:.0f}" for number in devices])
    axes.grid(False)


def _rows(runs: pd.DataFrame) -> pd.DataFrame:
    """With the median gap, the network's name, and its round trip where all pairs have the same."""
    rows = succeeded(runs)
    rows["token_s"] = rows.token_latency_p50_s
    labels = [names.system_label(row) for row in rows.to_dict("records")]
    rows["line"] = [label.removesuffix("wire q8").rstrip() for label in labels]
    rows["wire"] = rows.system_wire.map(_WIRES).fillna(rows.system_wire)
    rows["network"] = [
        f"{_NAMES.get(topology, topology)}, {mbps:g} Mbit/s" if mbps else topology
        for topology, mbps in zip(rows.topology, rows.bandwidth_mbps, strict=True)
    ]
    rows["round_trip_ms"] = rows.link_latency_ms * rows.topology.map(_HOPS)
    return rows


DRAWING = Drawing(name="fig_lan", rows=_rows, table=table, draw=draw)

if __name__ == "__main__":
    DRAWING.again()
