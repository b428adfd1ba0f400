"""What a computation costs in virtual time: modelled by a roofline, or measured on this host.

Modelled: the computation runs once on torch's meta device, where tensors have shapes and no data;
its operators are counted and every later one with the same key costs the same and runs no more.
Measured: every computation really runs, alone; what is charged is the typical time of computations
with the same key, kept in a file of this host and scaled to the device's profile. Times are kept
for ten minutes: what a shared host takes for the same products differs by a quarter between hours.
A core that has idled is slower at first (why was not isolated), so it idles as long before a timed
computation, and times after short and long waits are kept apart.

What is timed without such waits is timed within an instant, in which others may have taken the
core. So the run after that times it again, and where the two disagree a third decides.
"""

from __future__ import annotations

import json
import statistics
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

from tpi_bench.contract.device import DeviceProfile
from tpi_bench.contract.roofline import Operator, Work, work_ns
from tpi_bench.contract.runtime import Key
from tpi_bench.host import cache
from tpi_bench.virtual.operators import count_work

T = TypeVar("T")
K = TypeVar("K")
V = TypeVar("V")

_KEPT_S = 600.0
_DOUBTED = 0.1  # by which two timings may differ,
_MATTERS = 0.01  # of a computation that takes more than this share of all
_WAITS_MS = (16, 8, 2, 1)
# A modelled device is the colder the longer it has waited. By hand a block of the engine and what
# adds it up took 25 us longer behind 0.3 to 1 ms, 65 behind 2, 140 behind 4 and 280 behind 10.
_COLDEST_NS = 10_000_000
# What a computation gives, on the meta device, and its operators.
Traced = dict[Key, tuple[Any, Work]]


class Costs(Protocol):
    """How the virtual runtime gets a computation's result and its time."""

    def run(
        self, key: Key, fn: Callable[[], T], profile: DeviceProfile, idle_ns: int = 0
    ) -> tuple[T, int]:
        """The result of `fn` and what it costs a device after `idle_ns` of waiting, in ns."""
        ...

    def work(self, key: Key) -> Work:
        """The operators of a computation that has run."""
        ...


class _ByProfile(Generic[K, V]):
    """What is known of each profile, by its identity: with its rounds one takes 10 us to hash."""

    def __init__(self) -> None:
        self._found: dict[int, tuple[DeviceProfile, dict[K, V]]] = {}  # kept: no other is like it

    def of(self, profile: DeviceProfile) -> dict[K, V]:
        try:
            return self._found[id(profile)][1]
        except KeyError:
            known: dict[K, V] = {}
            self._found[id(profile)] = (profile, known)
            return known


class ModelledCosts:
    """Roofline of the profile; each key is traced once, whatever the number of devices.

    `traced` is what is known already of the same computations, to which more is added.
    """

    def __init__(self, traced: Traced | None = None) -> None:
        self._traced: Traced = {} if traced is None else traced
        self._charges = _ByProfile[Key, tuple[Any, int]]()
        self.num_traced = 0

    def run(
        self, key: Key, fn: Callable[[], T], profile: DeviceProfile, idle_ns: int = 0
    ) -> tuple[T, int]:
        try:
            charged = self._charges.of(profile)[key]
        except KeyError:
            charged = self._charge(key, fn, profile)
        if not idle_ns:
            return charged
        result, ns = charged
        return result, ns + profile.cold_after_ns(min(idle_ns, _COLDEST_NS))

    def work(self, key: Key) -> Work:
        return self._traced[key][1]

    def _charge(self, key: Key, fn: Callable[[], T], profile: DeviceProfile) -> tuple[T, int]:
        """What it gives, and its time on a device that is warm."""
        if key not in self._traced:
            self._traced[key] = count_work(fn)
            self.num_traced += 1
        result, work = self._traced[key]
        charged = self._charges.of(profile)[key] = (result, work_ns(profile, work))
        return charged


class Typical(NamedTuple):
    """What the file knows of a computation; `timed_s` is when it was timed, in s since 1970."""

    timings_ns: tuple[int, ...]  # one a run that timed it: one, two or three
    is_doubted: bool  # the first two disagree
    work: Work
    timed_s: float

    @property
    def ns(self) -> int:
        """The first as long as nothing contradicts it, so that what was charged stays true."""
        is_decided = len(self.timings_ns) > 2
        return round(statistics.median(self.timings_ns)) if is_decided else self.timings_ns[0]

    @property
    def is_settled(self) -> bool:
        return len(self.timings_ns) == (3 if self.is_doubted else 2)


class MeasuredCosts:
    """Times of this host from `path`, which `save` brings up to date.

    A key that the file does not know, with so many threads and this kernel for products, is timed
    as it runs, and charged what it took; the run is then not `is_complete` and should be made
    again. So it should where what the file knew is doubted.
    """

    def __init__(
        self, path: Path, host: DeviceProfile, num_threads: int, kernel: str = "torch"
    ) -> None:
        self._path = path
        self._host = host
        self._circumstances = f"{num_threads} threads, {kernel}"
        self._typical = _read_costs(path)
        self._names: dict[tuple[Key, int], str] = {}
        self._samples: dict[str, list[int]] = defaultdict(list)
        self._checks: dict[str, list[int]] = defaultdict(list)  # of what the file knows
        self._works: dict[str, Work] = {}
        self._work_of: dict[Key, Work] = {}
        self._ratios = _ByProfile[str, float]()

    @property
    def is_complete(self) -> bool:
        """Whether every cost since the last `save` came from the file, and is not doubted."""
        return not self._samples and not self._doubted()

    def run(
        self, key: Key, fn: Callable[[], T], profile: DeviceProfile, idle_ns: int = 0
    ) -> tuple[T, int]:
        wait_ms = _wait_ms(idle_ns)
        name = self._name(key, wait_ms)
        known = self._typical.get(name)
        if known is not None:
            self._work_of[key] = known.work
            is_believed = wait_ms or known.is_settled
            result = fn() if is_believed else _timed(fn, wait_ms, self._checks[name])
            return result, round(known.ns * self._ratio(name, known.work, profile))
        if name in self._works:
            result = _timed(fn, wait_ms, self._samples[name])
            took_ns = self._samples[name][-1]
        else:
            result, took_ns = self._count(name, fn)
        self._work_of[key] = self._works[name]
        return result, round(took_ns * self._ratio(name, self._works[name], profile))

    def work(self, key: Key) -> Work:
        return self._work_of[key]

    def save(self) -> None:
        """Add what this run's samples say to the file; it holds from now on."""
        now_s = time.time()
        doubted = self._doubted()
        for name, samples in self._checks.items():
            known = self._typical[name]
            timings = (*known.timings_ns, typical_ns(samples))
            self._typical[name] = known._replace(timings_ns=timings, is_doubted=name in doubted)
        self._checks = defaultdict(list)
        for name, samples in self._samples.items():
            if samples:  # what ran once only is timed in the next run
                first = (typical_ns(samples),)
                self._typical[name] = Typical(first, False, self._works[name], now_s)
        once = [name for name, samples in self._samples.items() if not samples]
        self._samples = defaultdict(list)
        self._works = {name: self._works[name] for name in once}
        _write_costs(self._path, self._typical)

    def recall_ns(self, key: Key, profile: DeviceProfile, idle_ns: int) -> int:
        """What the file says that a computation costs the device, after such a wait if it knows."""
        wait_ms = _wait_ms(idle_ns)
        for ms in sorted((0, *_WAITS_MS), key=lambda ms: abs(ms - wait_ms)):
            name = self._name(key, ms)
            known = self._typical.get(name)
            if known is not None:
                return round(known.ns * self._ratio(name, known.work, profile))
        raise KeyError(f"no cost of {key} is known")

    def _doubted(self) -> set[str]:
        """Of what this run timed again, what the file is not believed about."""
        checks = {name: typical_ns(samples) for name, samples in self._checks.items()}
        total_ns = sum(ns * len(self._checks[name]) for name, ns in checks.items())
        return {
            name
            for name, ns in checks.items()
            for known in [self._typical[name]]
            if known.is_doubted
            or (
                abs(ns - known.ns) > _DOUBTED * min(ns, known.ns)
                and ns * len(self._checks[name]) > _MATTERS * total_ns
            )
        }

    def _name(self, key: Key, wait_ms: int) -> str:
        """Of a computation in the file."""
        name = self._names.get((key, wait_ms))
        if name is None:
            name = f"{self._circumstances}, after {wait_ms} ms, {key}"
            self._names[key, wait_ms] = name
        return name

    def _count(self, name: str, fn: Callable[[], T]) -> tuple[T, int]:
        """Counting slows it down: this one is charged, but no sample."""
        start = time.perf_counter_ns()
        result, self._works[name] = count_work(fn)
        took_ns = time.perf_counter_ns() - start
        self._samples[name] = []
        return result, took_ns

    def _ratio(self, name: str, work: Work, profile: DeviceProfile) -> float:
        """How much longer the roofline says that the device takes than this host."""
        ratios = self._ratios.of(profile)
        ratio = ratios.get(name)
        if ratio is None:
            taken_ns, here_ns = work_ns(profile, work), work_ns(self._host, work)
            ratio = 1.0 if taken_ns == here_ns else taken_ns / max(1, here_ns)
            ratios[name] = ratio
        return ratio


class RecalledCosts:
    """What `MeasuredCosts` knows, without computing again: on the meta device, each key once."""

    def __init__(self, measured: MeasuredCosts) -> None:
        self._measured = measured
        self._results: dict[Key, Any] = {}
        self._priced = _ByProfile[tuple[Key, int], int]()

    def run(
        self, key: Key, fn: Callable[[], T], profile: DeviceProfile, idle_ns: int = 0
    ) -> tuple[T, int]:
        if key not in self._results:
            self._results[key] = fn()
        priced = self._priced.of(profile)
        named = (key, _wait_ms(idle_ns))
        price = priced.get(named)
        if price is None:
            price = priced[named] = self._measured.recall_ns(key, profile, idle_ns)
        return self._results[key], price

    def work(self, key: Key) -> Work:
        return self._measured.work(key)


def _timed(fn: Callable[[], T], wait_ms: int, samples: list[int]) -> T:
    """Its result; what it took is one sample more."""
    if wait_ms:  # even a sleep of no time leaves the core colder
        time.sleep(wait_ms / 1e3)
    start = time.perf_counter_ns()
    result = fn()
    samples.append(time.perf_counter_ns() - start)
    return result


def _wait_ms(idle_ns: int) -> int:
    """The longest of `_WAITS_MS` that a core has idled for, or 0."""
    return next((ms for ms in _WAITS_MS if idle_ns >= ms * 1e6), 0)


def typical_ns(samples: list[int]) -> int:
    """Mean without the slowest tenth: a token is a sum of many, whose skew a median would lose."""
    ordered = sorted(samples)
    kept = ordered[: max(1, len(ordered) * 9 // 10)]
    return round(statistics.fmean(kept))


def _read_costs(path: Path) -> dict[str, Typical]:
    """Those that still hold."""
    entries = json.loads(path.read_text()) if path.is_file() else {}
    oldest_s = time.time() - _KEPT_S
    return {
        name: Typical(
            tuple(entry["timings_ns"]),
            entry["is_doubted"],
            tuple(Operator(*each) for each in entry["work"]),
            entry["timed_s"],
        )
        for name, entry in entries.items()
        if entry["timed_s"] >= oldest_s
    }


def _write_costs(path: Path, costs: dict[str, Typical]) -> None:
    entries = {name: known._asdict() for name, known in costs.items()}
    cache.write_json(path, entries)
