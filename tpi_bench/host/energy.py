"""What this host uses, where it tells: processor packages with their memory (RAPL), or a battery.

Whole host, whoever keeps it busy. RAPL counts joules, which root may read; a battery that is being
emptied tells its power, which is added up. Nothing is guessed: what tells neither has no energy.
"""

from __future__ import annotations

import itertools
import math
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

SYS = Path("/sys")
RAPL, BATTERY = "rapl", "battery"
_INTERVAL_S = 0.1
_COUNTED = ("package", "dram")  # core and uncore are parts of a package, psys is more than all


class Counter(Protocol):
    """Something that tells how much was used so far."""

    name: str

    def joules(self) -> float:
        """Since some moment before its making. Raises OSError where it is no longer told."""
        ...


@dataclass
class Rapl:
    """Counters of microjoules that begin anew at `ranges`; a look in between must be in time."""

    paths: list[Path]
    ranges: list[int]
    name: str = RAPL

    def __post_init__(self) -> None:
        self._last = [_number(path) for path in self.paths]
        self._used_uj = 0

    @classmethod
    def found(cls, sys: Path) -> Rapl | None:
        """None where there is none, or none that may be read."""
        paths, ranges = [], []
        for zone in sorted((sys / "class" / "powercap").glob("intel-rapl:*")):
            try:
                name = (zone / "name").read_text().strip()
                if name.startswith(_COUNTED):
                    _number(zone / "energy_uj")
                    ranges.append(_number(zone / "max_energy_range_uj"))
                    paths.append(zone / "energy_uj")
            except (OSError, ValueError):
                return None  # a part of it would be too little
        return cls(paths, ranges) if paths else None

    def joules(self) -> float:
        now = [_number(path) for path in self.paths]
        for before, after, most in zip(self._last, now, self.ranges, strict=True):
            self._used_uj += after - before + (most + 1 if after < before else 0)
        self._last = now
        return self._used_uj / 1e6


@dataclass
class Battery:
    """Power of batteries that are being emptied, over time."""

    folders: list[Path]
    name: str = BATTERY

    def __post_init__(self) -> None:
        self._last_s, self._last_w, self._used_j = time.monotonic(), self._watts(), 0.0

    @classmethod
    def found(cls, sys: Path) -> Battery | None:
        """None where there is none, or where the mains help."""
        supplies = [
            supply
            for supply in sorted((sys / "class" / "power_supply").glob("*"))
            if _text(supply / "type") == "Battery" and _text(supply / "scope") != "Device"
        ]
        states = {_text(supply / "status") for supply in supplies}
        if "Discharging" not in states or states & {"Charging", "Full", "Not charging"}:
            return None
        try:
            return cls(supplies)
        except (OSError, ValueError):
            return None

    def joules(self) -> float:
        now_s, now_w = time.monotonic(), self._watts()
        self._used_j += (now_s - self._last_s) * (now_w + self._last_w) / 2
        self._last_s, self._last_w = now_s, now_w
        return self._used_j

    def _watts(self) -> float:
        total = 0.0
        for folder in self.folders:
            if _text(folder / "status") != "Discharging":
                raise OSError(f"{folder.name} is no longer being emptied")
            if (folder / "power_now").is_file():
                total += abs(_number(folder / "power_now")) / 1e6
            else:
                volts = _number(folder / "voltage_now") / 1e6
                total += volts * abs(_number(folder / "current_now")) / 1e6
        return total


def counter(sys: Path = SYS) -> Counter | None:
    """The best that this host has."""
    return Rapl.found(sys) or Battery.found(sys)


class EnergyMeter:
    """Looks at a counter ten times a second while its body runs; does nothing without one."""

    def __init__(self, source: Counter | None) -> None:
        self._source = source
        self._looks: list[tuple[int, float]] = []
        self._is_over = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def source(self) -> str | None:
        return None if self._source is None else self._source.name

    def __enter__(self) -> Self:
        if self._source is not None:
            self._thread = threading.Thread(target=self._look, args=(self._source,), daemon=True)
            self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._is_over.set()
        if self._thread is not None:
            self._thread.join()

    def _look(self, source: Counter) -> None:
        is_over = False
        while not is_over:
            is_over = self._is_over.wait(_INTERVAL_S) if self._looks else False
            try:
                used = source.joules()
            except (OSError, ValueError):  # pulled out, or plugged in
                self._looks.clear()
                return
            self._looks.append((time.monotonic_ns(), used))

    def joules_between(self, start_ns: int, end_ns: int) -> float:
        """On `time.monotonic_ns`; NaN where it was not looked at so early or so late."""
        start, end = self._at(start_ns), self._at(end_ns)
        return end - start

    def _at(self, time_ns: int) -> float:
        for (before_ns, before), (after_ns, after) in self._pairs():
            if before_ns <= time_ns <= after_ns:
                share = (time_ns - before_ns) / max(1, after_ns - before_ns)
                return before + share * (after - before)
        return math.nan

    def _pairs(self) -> Iterator[tuple[tuple[int, float], tuple[int, float]]]:
        return itertools.pairwise(self._looks)


def _number(path: Path) -> int:
    return int(path.read_text())


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
