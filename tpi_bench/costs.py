"""What a computation costs in virtual time: modelled by a roofline, or measured on this host.

Modelled: the computation runs once on torch's meta device, where tensors have shapes and no data;
its operators are counted and every later one with the same key costs the same and runs no more.
Measured: every computation really runs, alone; what is charged is the typical time of computations
with the same key, kept in a file of this host and scaled to the device's profile. A core that has
idled is slower at first (caches and clock rate), so it idles as long before a timed computation,
and times after short and long waits are kept apart.
"""

from __future__ import annotations

import functools
import json
import statistics
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from tpi_bench import cache
from tpi_bench.profiles import DeviceProfile, Work
from tpi_bench.runtime import Key

T = TypeVar("T")
_WAITS_MS = (8, 2, 1)
_UNTOUCHED = ("empty", "empty_like", "new_empty", "empty_strided")
_ATTENTION = "scaled_dot_product_attention"  # one fused operator on a CPU, many on the meta device
_GATHERS = ("index", "index_select", "embedding", "gather")


class Costs(Protocol):
    """How the virtual runtime gets a computation's result and its time."""

    def run(
        self, key: Key, fn: Callable[[], T], device: DeviceProfile, idle_ns: int = 0
    ) -> tuple[T, int]:
        """The result of `fn` and what it costs on `device` after `idle_ns` of waiting, in ns."""
        ...


class CountOperators(TorchDispatchMode):
    """Floating-point operations and bytes of every operator that touches data.

    Views are free. A gather reads what it returns, not the whole table.
    """

    def __init__(self) -> None:
        super().__init__()
        self.work: list[tuple[int, int]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        packet = func.overloadpacket
        if packet not in flop_registry and packet.__name__ != _ATTENTION:
            with self:  # inference mode leaves `linear` and its like whole
                parts = func.decompose(*args, **kwargs)
            if parts is not NotImplemented:
                return parts
        out = func(*args, **kwargs)
        if not _is_view(func) and packet.__name__ not in _UNTOUCHED:
            self.work.append(
                (_flops(packet, args, kwargs, out), _nbytes(packet, args, kwargs, out))
            )
        return out


def _flops(packet: Any, args: Any, kwargs: Any, out: Any) -> int:
    if packet.__name__ == _ATTENTION:  # two products of every query with every key
        queries, keys, values = args[:3]
        return 2 * queries.numel() * keys.shape[-2] + 2 * out.numel() * values.shape[-2]
    return (
        int(flop_registry[packet](*args, **kwargs, out_val=out)) if packet in flop_registry else 0
    )


def _nbytes(packet: Any, args: Any, kwargs: Any, out: Any) -> int:
    written = sum(leaf.nbytes for leaf in tree_leaves(out) if isinstance(leaf, torch.Tensor))
    if packet.__name__ in _GATHERS:
        return 2 * written
    inputs = args[1:] if packet.__name__ == "copy_" else args
    leaves = tree_leaves((inputs, kwargs))
    return written + sum(leaf.nbytes for leaf in leaves if isinstance(leaf, torch.Tensor))


@functools.lru_cache(maxsize=4096)
def _is_view(func: Any) -> bool:
    """Whether an operator only looks at its input another way."""
    returns = func._schema.returns
    aliases = [r.alias_info for r in returns]
    if not returns or any(alias is None or alias.is_write for alias in aliases):
        return func.name() in ("aten::detach", "aten::_unsafe_view", "aten::lift_fresh")
    return True


def count_work(fn: Callable[[], T]) -> tuple[T, Work]:
    """Run `fn` and count its operators."""
    counter = CountOperators()
    with counter:
        result = fn()
    return result, tuple(counter.work)


class ModelledCosts:
    """Roofline of the profile; each key is traced once, whatever the number of devices."""

    def __init__(self) -> None:
        self._known: dict[Key, tuple[Any, Work]] = {}
        self._priced: dict[tuple[Key, DeviceProfile], int] = {}
        self.num_traced = 0

    def run(
        self, key: Key, fn: Callable[[], T], device: DeviceProfile, idle_ns: int = 0
    ) -> tuple[T, int]:
        known = self._known.get(key)
        if known is None:
            known = self._known[key] = count_work(fn)
            self.num_traced += 1
        price = self._priced.get((key, device))
        if price is None:
            price = self._priced[key, device] = device.work_ns(known[1])
        return known[0], price


def typical_ns(samples: list[int]) -> int:
    """Mean without the slowest tenth: a token is a sum of many, whose skew a median would lose."""
    ordered = sorted(samples)
    kept = ordered[: max(1, len(ordered) * 9 // 10)]
    return round(statistics.fmean(kept))


class MeasuredCosts:
    """Times of this host from `path`, which `save` brings up to date.

    A key that the file does not know is timed as it runs, and charged what it took; the run is then
    not `is_complete` and should be made again.
    """

    def __init__(self, path: Path, host: DeviceProfile, num_threads: int) -> None:
        self._path = path
        self._host = host
        self._num_threads = num_threads
        self._typical: dict[str, tuple[int, Work]] = {}
        if path.is_file():
            for text, entry in json.loads(path.read_text()).items():
                work = tuple((flops, nbytes) for flops, nbytes in entry["work"])
                self._typical[text] = (entry["typical_ns"], work)
        self._names: dict[tuple[Key, int], str] = {}
        self._samples: dict[str, list[int]] = defaultdict(list)
        self._works: dict[str, Work] = {}
        self._ratios: dict[tuple[str, DeviceProfile], float] = {}

    @property
    def is_complete(self) -> bool:
        """Whether every cost since the last `save` came from the file."""
        return not self._samples

    def run(
        self, key: Key, fn: Callable[[], T], device: DeviceProfile, idle_ns: int = 0
    ) -> tuple[T, int]:
        wait_ms = next((ms for ms in _WAITS_MS if idle_ns >= ms * 1e6), 0)
        name = self._names.get((key, wait_ms))
        if name is None:
            name = f"{self._num_threads} threads, after {wait_ms} ms, {key}"
            self._names[key, wait_ms] = name
        known = self._typical.get(name)
        if known is not None:
            return fn(), round(known[0] * self._ratio(name, known[1], device))
        if name not in self._works:  # counting slows it down: this one is charged, but no sample
            start = time.perf_counter_ns()
            result, self._works[name] = count_work(fn)
            took = time.perf_counter_ns() - start
            self._samples[name] = []
            return result, round(took * self._ratio(name, self._works[name], device))
        time.sleep(wait_ms / 1e3)
        start = time.perf_counter_ns()
        result = fn()
        took = time.perf_counter_ns() - start
        self._samples[name].append(took)
        return result, round(took * self._ratio(name, self._works[name], device))

    def save(self) -> None:
        """Add what this run's samples say to the file; it holds from now on."""
        for name, samples in self._samples.items():
            if samples:  # what ran once only is timed in the next run
                self._typical[name] = (typical_ns(samples), self._works[name])
        once = [name for name, samples in self._samples.items() if not samples]
        self._samples = defaultdict(list)
        self._works = {name: self._works[name] for name in once}
        entries = {
            name: {"typical_ns": typical, "work": work}
            for name, (typical, work) in self._typical.items()
        }
        cache.write_json(self._path, entries)

    def _ratio(self, name: str, work: Work, device: DeviceProfile) -> float:
        """How much longer the roofline says that the device takes than this host."""
        if device.name == self._host.name:
            return 1.0
        ratio = self._ratios.get((name, device))
        if ratio is None:
            ratio = device.work_ns(work) / max(1, self._host.work_ns(work))
            self._ratios[name, device] = ratio
        return ratio
