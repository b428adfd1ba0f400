"""Advice for people: which way is fastest, why others are not, and what would help.

A function of stored rows and of `advice.json` beside them (`advice.py`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from tpi_bench.report.advice import PERPLEXITY, Advice, Change, Kind, Line, Rows
from tpi_bench.report.names import counted, system_name
from tpi_bench.report.rows import SETTING_PREFIX, DeviceRow

# Modelled cost errs by a tenth or more: results/fig_fidelity.
_NOT_TOLD_APART = 0.1


def advice_text(advice: Advice, rows: Rows) -> str:
    """For people."""
    parts = [
        _heading(advice),
        _best_table(advice, rows),
        _kinds_text(advice, rows),
        _changes_text(advice, rows),
        _search_text(advice, rows),
        "\n".join(f"{where}:\n  {command}" for where, command in advice.commands.items()),
        "\n".join(f"note: {note}" for note in advice.notes),
    ]
    return "\n\n".join(part for part in parts if part)


def _heading(advice: Advice) -> str:
    sizes = ", ".join(f"{gb:.3g} GB in {weights}" for weights, gb in advice.weights_gb.items())
    return "\n".join(
        [
            f"{advice.model}, {sizes}; {advice.memory_gb:.3g} GB of memory together, "
            f"{advice.network}",
            *(f"  {words}" for words in advice.devices),
        ]
    )


def _best_table(advice: Advice, rows: Rows) -> str:
    if not advice.best:
        fits = "Nothing that was run fits" if advice.num_left else "Nothing fits"
        return f"{fits}: see below what does not, and what would help."
    lengths = [f"TTFT {_prompt(rows, line.point)}" for line in advice.best[:1]]
    lengths += [f"TTFT {_prompt(rows, line.long_point)}" for line in advice.best[:1]]
    head = ["", "system", "devices", "weights", "a token", "tokens/s", *lengths]
    head += ["memory of each, GB", "limited by", "perplexity*"]
    lines = [head]
    for number, line in enumerate(advice.best, start=1):
        run = rows.runs[line.point]
        working = [row for row in rows.devices[line.point] if row.ledger_bytes]
        held = "+".join(map(_held, working))
        lines.append(
            [
                str(number),
                way_name(run.cells()),
                line.team,
                run.weights,
                seconds_text(run.token_latency_s),
                f"{1 / run.token_latency_s:.3g}",
                seconds_text(run.ttft_s),
                _long_ttft(line, rows),
                held,
                line.limited_by,
                f"{PERPLEXITY[run.weights]:.2f}" if run.weights in PERPLEXITY else "-",
            ]
        )
    told = [
        aligned(lines),
        "* of the demo model (SmolLM2-135M) with weights of that precision, lower is better: what "
        "it costs a larger model is less",
    ]
    most_s = _best_s(advice, rows) * (1 + _NOT_TOLD_APART)
    num_near = sum(rows.token_s(line.point) <= most_s for line in advice.best)
    if num_near > 1:
        told.append(
            f"The first {num_near} are within a tenth of each other, and virtual time does not "
            "tell such apart: take the one that suits you."
        )
    soonest = min(advice.best, key=lambda line: _ttft_s(line.long_point, rows))
    if soonest is not advice.best[0] and math.isfinite(_ttft_s(soonest.long_point, rows)):
        number, seconds = advice.best.index(soonest) + 1, _ttft_s(soonest.long_point, rows)
        told.append(
            f"A prompt of {_prompt(rows, soonest.long_point)} is answered soonest by {number}: "
            f"after {seconds_text(seconds)}."
        )
    return "\n".join(told)


def _held(device: DeviceRow) -> str:
    """GB in the ledger; the kernel decides what it holds of mapped files."""
    is_mapped = math.isnan(device.kept_bytes)
    return "mapped" if is_mapped else f"{device.ledger_bytes / 1e9:.1f}"


def _ttft_s(point: str | None, rows: Rows) -> float:
    run = rows.runs.get(point or "")
    return run.ttft_s if run is not None and run.status == "ok" else math.inf


def way_name(row: Mapping[Any, Any]) -> str:
    """The system with what sets it apart; on one device without a collective, which it has not."""
    collective = row.get(f"{SETTING_PREFIX}collective")
    name = system_name(row)
    is_alone = row["num_devices"] == 1 and isinstance(collective, str)
    return name.replace(f" {collective}", "", 1) if is_alone and collective else name


def _prompt(rows: Rows, point: str | None) -> str:
    run = rows.runs.get(point or "")
    return str(run.prompt_tokens) if run is not None and run.prompt_tokens else "long"


def _long_ttft(line: Line, rows: Rows) -> str:
    run = rows.runs.get(line.long_point or "")
    if run is None:
        return "-"
    return seconds_text(run.ttft_s) if run.status == "ok" else "no room"


def _kinds_text(advice: Advice, rows: Rows) -> str:
    """The best that was run of each kind beside the best of all; the search leaves out what cannot
    beat that, so a kind may have better ways than the one shown.
    """
    parts = []
    titles = {"devices": "By number of devices", "weights": "By precision", "system": "By system"}
    for of, title in titles.items():
        lines = [
            [f"  {kind.name}", _kind_time(kind, rows), kind.why]
            for kind in advice.kinds
            if kind.of == of
        ]
        if len(lines) > 1:
            parts.append(f"{title}, the best that was run of each:\n{aligned(lines)}")
    return "\n".join(parts)


def _kind_time(kind: Kind, rows: Rows) -> str:
    run = rows.runs.get(kind.point or "")
    if run is not None:
        return seconds_text(run.token_latency_s)
    return f"> {seconds_text(kind.bound_s)}" if kind.bound_s else "-"


def _changes_text(advice: Advice, rows: Rows) -> str:
    """What would help, most first."""
    if not advice.changes:
        return ""
    best_s = _best_s(advice, rows)
    lines = []
    for change in sorted(advice.changes, key=lambda change: rows.token_s(change.point)):
        changed_s = rows.token_s(change.point)
        if not changed_s < 0.99 * best_s:
            lines.append([f"  {change.words}", "-", _no_gain(change)])
            continue
        run = rows.runs[change.point or ""]
        gain = f"{best_s / changed_s:.2f} times as fast" if math.isfinite(best_s) else "it fits"
        how = f"{gain} ({way_name(run.cells())}, {run.device})"
        lines.append([f"  {change.words}", seconds_text(changed_s), how])
    return f"What one change would do (a token then, in the same precision):\n{aligned(lines)}"


def _no_gain(change: Change) -> str:
    if not change.is_run:
        return f"not looked at for lack of time ({counted(change.num_left, 'way')})"
    if change.num_left:
        left = counted(change.num_left, "was not run", "were not run")
        return f"no gain in the likeliest ways; {left}"
    return "no gain"


def _best_s(advice: Advice, rows: Rows) -> float:
    return rows.runs[advice.best[0].point].token_latency_s if advice.best else math.inf


def _search_text(advice: Advice, rows: Rows) -> str:
    skipped = ", ".join(f"{count} by {what}" for what, count in advice.skipped.items())
    text = (
        f"{counted(advice.num_ways, 'way')} to run it: "
        f"{counted(advice.num_run, 'was run', 'were run')} in virtual time, "
        f"{counted(advice.num_lacking, 'does not fit', 'do not fit')} for certain"
    )
    if skipped:
        text += f", and bounds put the rest out of reach ({skipped})"
    text += f". It took {advice.took_s:.0f} s."
    if advice.num_left:
        left_s = advice.left_bound_s or 0.0
        text += (
            f" {counted(advice.num_left, 'way was', 'ways were')} left for lack of time; "
            f"{'it' if advice.num_left == 1 else 'each'} takes at least "
            f"{seconds_text(left_s)} a token"
        )
        if left_s < _best_s(advice, rows):
            which = "it" if advice.num_left == 1 else "one of them"
            text += f", so that {which} may be better: timeout_s=120 gives it two minutes."
        else:
            text += ", so that what is faster above is certain to be so."
    return text


def seconds_text(seconds: float) -> str:
    """As `812 ms` or `1.29 s`."""
    if math.isnan(seconds):
        return "-"
    if seconds < 1:
        return f"{seconds * 1e3:.3g} ms"
    return f"{seconds:.3g} s" if seconds < 1000 else f"{seconds:.0f} s"


def aligned(lines: Sequence[Sequence[str]]) -> str:
    """Columns side by side."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )
