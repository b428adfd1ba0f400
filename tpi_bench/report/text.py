"""What a person or a script is told of a record: text, or a JSON object."""

from __future__ import annotations

import math
import sysconfig
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tpi_bench.report.names import counted, system_name
from tpi_bench.report.rows import DeviceRow, Record, RunRow

_ROOT = Path(__file__).resolve().parents[2]
_PROGRAM = tuple(_ROOT / name for name in ("tpi_bench", "baselines", "experiments"))
_LIBRARIES = tuple(Path(sysconfig.get_path(of)) for of in ("stdlib", "purelib", "platlib"))
_DEVICE_FIELDS = ("rank", "peak_anon_bytes", "peak_file_bytes", "weight_bytes_read")


def run_report(
    record: Record, exit_reason: str, *, text: str | None = None, results: Path | None = None
) -> dict[str, Any]:
    """The JSON contract of `report=json`. What was not measured is null.

    `text` is what was generated, where there is a tokenizer; `results` the folder with the rows.
    """
    run = record.run
    report = {
        "status": run.status,
        "exit_reason": exit_reason,
        "text": text,
        "results": None if results is None else str(results),
        "token_ids": [row.token_id for row in record.tokens],
        "ttft_s": _number(run.ttft_s),
        "token_latencies_s": [row.gap_s for row in record.tokens[1:]],
        "devices": [
            {key: _number(getattr(device, key)) for key in _DEVICE_FIELDS}
            for device in record.devices
        ],
        "link_round_trip_s": _number(run.link_round_trip_s),
        "limit_token_s": _number(run.limit_token_s),
    }
    if run.tokens_equal is not None:
        report |= {
            "tokens_equal": run.tokens_equal,
            "max_logit_diff": _number(run.max_logit_diff),
        }
    if run.num_proposed is not None:
        report |= {
            "num_passes": run.num_passes,
            "num_proposed": run.num_proposed,
            "num_accepted": run.num_accepted,
        }
    if run.error:
        report["error"] = run.error
    return report


def in_one_line(text: str) -> str:
    """A message of several lines."""
    lines = [line.strip() for line in text.split("\n") if line.strip()]
    return ", ".join(lines).replace(":,", ":")


def place_of(error: BaseException) -> str:
    """Where it was raised, ` (FILE:LINE)`, if that is neither in this program nor in a library: in
    a system or an experiment that somebody adds.
    """
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        path = Path(frame.filename)
        if any(path.is_relative_to(folder) for folder in _PROGRAM):
            return ""
        if path.is_file() and not any(path.is_relative_to(folder) for folder in _LIBRARIES):
            return f" ({path}:{frame.lineno})"
    return ""


def generation_text(record: Record) -> str:
    """Speed beside its limit, and each device's memory, in a few lines, of a point that is ok."""
    run, devices = record.run, record.devices
    lines = [*_speed_lines(run), *(_device_line(device) for device in devices)]
    lines += [_plan_line(device) for device in devices if device.streamed_bytes > 0]
    if not math.isnan(run.memory_mb):
        lines.append(f"memory cap     {_cap_text(run, devices)}")
    if run.tokens_equal is not None:
        verdict = "equal those" if run.tokens_equal else "DIFFER from those"
        difference = _number(run.max_logit_diff)
        logits = "no logits" if difference is None else f"largest logit difference {difference:.1e}"
        lines.append(f"check          tokens {verdict} of the oracle, {logits}")
    return "\n".join([*lines, *(f"note: {note}" for note in _notes(run))])


def _speed_lines(run: RunRow) -> list[str]:
    latency, limit = run.token_latency_s, run.limit_token_s
    prompt = counted(run.prompt_tokens, "prompt token")
    lines = [f"TTFT           {run.ttft_s * 1e3:9.1f} ms   ({prompt})"]
    if not math.isnan(latency):
        lines.append(f"token latency  {latency * 1e3:9.1f} ms   ({_spread(run)})")
        lines += _drafted(run)
        if limit > 0:
            slowest = ", the slowest," if "," in (run.device or "") else ""  # of several profiles
            reason = (
                f"limit {1 / limit:.1f}: memory at {run.memory_bps / 1e9:.1f} GB/s{slowest} "
                f"{_ms(run.limit_memory_s)}, links {_ms(run.limit_network_s)}, "
                f"disk {_ms(run.limit_disk_s)} a token"
            )
        elif limit == 0:
            reason = "weights fit in the CPU cache: no limit"
        else:
            reason = "its limit is not known"
        lines.append(f"speed          {1 / latency:9.1f} tokens/s   ({reason})")
    if not math.isnan(run.joules_per_token):
        told = "processor and memory" if run.energy_source == "rapl" else "from the battery"
        lines.append(f"energy         {run.joules_per_token:9.2f} J a token   ({told}, whole host)")
    if not math.isnan(run.link_round_trip_s):
        asked, trip = run.asked_round_trip_s * 1e3, run.link_round_trip_s * 1e3
        lines.append(f"round trip     {trip:9.2f} ms   (asked {asked:.2f})")
    return lines


def _spread(run: RunRow) -> str:
    """How a run's gaps differ; a single gap has no jitter."""
    spread = {
        "p50": run.token_latency_p50_s,
        "p95": run.token_latency_p95_s,
        "p99": run.token_latency_p99_s,
        "jitter": run.token_jitter_s,
    }
    told = [f"{name} {value * 1e3:.1f}" for name, value in spread.items() if not math.isnan(value)]
    return ", ".join([*told, counted(run.num_tokens, "token")])


def _drafted(run: RunRow) -> list[str]:
    """What speculation gave, if there was any."""
    if run.speculation in (None, "none") or not run.num_passes:
        return []
    return [
        f"{run.speculation:<15s}{run.tokens_per_pass:9.2f} tokens a pass of "
        f"{run.pass_latency_s * 1e3:.1f} ms   ({run.num_accepted} of {run.num_proposed} drafted "
        "ones were right)"
    ]


def _device_line(device: DeviceRow) -> str:
    """What it took of memory: as the system tells, else as the ledger says."""
    name, read = f"device {device.rank:<8d}", f"{device.weight_bytes_read / 1e6:.0f} MB read"
    if math.isnan(device.peak_anon_bytes):
        held = f"{device.ledger_bytes / 1e6:9.0f} MB held at most"
        return f"{name}{held}, {read} ({device.profile})"
    return (
        f"{name}{device.peak_anon_bytes / 1e6:9.0f} MB anonymous at peak "
        f"({device.start_anon_bytes / 1e6:.0f} before the model), "
        f"{device.peak_file_bytes / 1e6:.0f} MB mapped files, {read}, "
        f"{counted(device.num_threads, 'thread')}"
    )


def _plan_line(device: DeviceRow) -> str:
    """How its memory is used."""
    kept, streamed = device.kept_bytes / 1e6, device.streamed_bytes / 1e6
    return (
        f"weights of {device.rank:<3d} {kept:9.0f} MB kept, {streamed:.0f} MB a token streamed "
        f"through {device.window_bytes / 1e6:.0f} MB"
    )


def _notes(run: RunRow) -> list[str]:
    """What must be known of a row before its numbers are used."""
    notes = [run.note] if run.note else []
    if run.was_disturbed:
        stolen = f", and took {run.steal_share:.0%} of its time" if run.steal_share > 0 else ""
        notes.append(
            f"others kept {run.busy_cores_start:.1f} of {run.cores} cores busy when this began"
            + stolen
        )
    if run.probe_was_disturbed:
        notes.append(
            f"others kept at least {run.busy_cores_probe:.1f} of {run.cores} cores busy whenever "
            "the limits were measured: the host can do more"
        )
    if run.beats_limit:
        notes.append(f"faster than its limit, so {_why_faster(run)}")
    if run.devices_share_cores:
        notes.append(f"{run.num_devices} devices share {run.cores} cores; real devices would not")
    return notes


def _why_faster(run: RunRow) -> str:
    """What can be the matter: in modelled time both are computed of the same devices."""
    if run.cost == "modelled":
        return "a formula of it is wrong: of the collective's record, or the system's `traffic`"
    return "the host was slower when the limit was measured"


def _cap_text(run: RunRow, devices: Sequence[DeviceRow]) -> str:
    """What bounded the devices, and how near they came to it."""
    used = ", ".join(
        f"{device.peak_cgroup_bytes / 1e6:.0f} of {device.memory_limit_bytes / 1e6:.0f} MB"
        for device in devices
        if not math.isnan(device.peak_cgroup_bytes)
    )
    beside = f"; used beside what a device starts with: {used}" if used else ""
    return f"{run.memory_mb:g} MB, {run.memory_cap}{beside}"


def point_line(run: RunRow, swept: Sequence[str] = ()) -> str:
    """One point in one line, for logs: `swept` is what sets it apart from the others."""
    where = " ".join(swept) if swept else _where(run)
    if run.status != "ok":
        return f"{where}: {run.status}: {run.error}"
    where += f": {run.token_latency_s * 1e3:.1f} ms a token, TTFT {run.ttft_s * 1e3:.1f} ms"
    if run.beats_limit:
        where += f", faster than its limit ({_why_faster(run)})"
    if run.is_of_busy_host:
        where += ", measured on a busy host"
    if run.tokens_equal is not None:
        where += ", tokens as the oracle's" if run.tokens_equal else ", OTHER TOKENS"
    return where


def _where(run: RunRow) -> str:
    """What a point is, where nothing else is said of it."""
    where = f"{system_name(run.cells())}, {run.num_devices} device"
    if run.num_devices > 1:
        where += f"s, {run.link_latency_ms:g} ms a hop"
    if not math.isnan(run.memory_mb):
        where += f", {run.memory_mb:g} MB"
    return f"{where}, repeat {run.repeat}"


def _ms(seconds: float) -> str:
    return "-" if math.isnan(seconds) else f"{seconds * 1e3:.1f} ms"


def _number(value: Any) -> Any:
    """JSON knows no NaN."""
    return None if isinstance(value, float) and math.isnan(value) else value
