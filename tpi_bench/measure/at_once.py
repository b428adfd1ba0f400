"""Several processes that do something at the same time, for a calibration (`calibrate.py`)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from tpi_bench.host.fork import in_helper

_TRIES = 5


def together(
    fn: Callable[..., list[int]], given: Sequence[tuple[Any, ...]], take_s: float
) -> float:
    """How much a nanosecond all get done together that call `fn` in a process each, while all do.

    A call is as `at_once` wants it.
    """
    ends, begin, end = at_once(fn, given, take_s)
    return sum(begin < ns <= end for each in ends for ns in each) / (end - begin)


def at_once(
    fn: Callable[..., list[int]], given: Sequence[tuple[Any, ...]], take_s: float
) -> tuple[list[list[int]], int, int]:
    """What each process said that called `fn`, and between which times all did.

    A call says when it began and when each thing was done, of the host's clock, and takes `take_s`.
    """
    for _ in range(_TRIES):
        with ThreadPoolExecutor(len(given)) as pool:
            ends = list(pool.map(lambda each: in_helper(fn, *each), given))
        begin, end = max(each[0] for each in ends), min(each[-1] for each in ends)
        if end - begin > take_s * 1e9 / 2:
            return ends, begin, end
    raise ValueError(
        f"this host could not be calibrated: of {len(given)} processes one began when another had "
        "nearly ended, several times; something else keeps it busy"
    )
