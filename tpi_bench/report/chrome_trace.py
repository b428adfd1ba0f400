"""Spans as Chrome trace JSON, which Perfetto and chrome://tracing open.

A point is a process group of devices; a device has a track for each kind of span, so that reads in
the background lie beside what they hide behind. Times are in microseconds from the point's first
span, as the format wants them (Trace Event Format, complete events "X").
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tpi_bench.report.names import system_name

if TYPE_CHECKING:
    import pandas as pd

_KINDS = ("compute", "sync", "load_wait", "sampling", "read")  # from the top


def chrome_trace(runs: pd.DataFrame, spans: pd.DataFrame) -> dict[str, Any]:
    """All points that kept spans. Raises ValueError where none did."""
    if spans.empty:
        raise ValueError("no spans were kept; measure again with testbed.trace=true")
    events: list[dict[str, Any]] = []
    names = {row["point"]: system_name(row) for row in runs.to_dict("records")}
    devices = spans.groupby(["point", "rank"], sort=False)
    starts = spans.groupby("point").start_ns.min()
    for number, ((point, rank), own) in enumerate(devices):
        label = f"{names.get(point, point)}, device {rank} ({point[:8]})"
        events.append(_named("process_name", number, 0, label))
        events.append(
            {**_named("process_sort_index", number, 0, ""), "args": {"sort_index": number}}
        )
        kinds = sorted(set(own.kind), key=_place)
        events += [_named("thread_name", number, track, kind) for track, kind in enumerate(kinds)]
        tracks = own.kind.map({kind: track for track, kind in enumerate(kinds)})
        begins = (own.start_ns - starts[point]) / 1e3
        lengths = (own.end_ns - own.start_ns) / 1e3
        cells = zip(own.key, own.kind, tracks, begins, lengths, _cores(own), strict=True)
        events += [
            {
                "name": str(key),
                "cat": kind,
                "ph": "X",
                "pid": number,
                "tid": int(track),
                "ts": float(begin),
                "dur": float(length),
                "args": cores,
            }
            for key, kind, track, begin, length, cores in cells
        ]
    return {"traceEvents": events, "displayTimeUnit": "ms"}


def _cores(spans: pd.DataFrame) -> list[dict[str, float]]:
    """What the thread of each span had of the cores, where that was counted."""
    if "cpu_ns" not in spans:  # of earlier rows
        return [{}] * len(spans)
    cells = zip(spans.cpu_ns / 1e6, spans.core_wait_ns / 1e6, strict=True)
    return [
        {name: ms for name, ms in (("cpu_ms", ran), ("core_wait_ms", waited)) if ms == ms}
        for ran, waited in cells
    ]


def _named(what: str, process: int, track: int, label: str) -> dict[str, Any]:
    """A metadata event."""
    return {"name": what, "ph": "M", "pid": process, "tid": track, "args": {"name": label}}


def _place(kind: str) -> tuple[int, str]:
    return (_KINDS.index(kind) if kind in _KINDS else len(_KINDS), kind)
