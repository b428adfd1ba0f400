"""Which ways are run: the most promising first, until no other can be among the best.

Promising is a low bound, times what ways of its kind have taken over theirs at least: bounds of
some kinds are far from what they take, and all of these would be run before others otherwise.

What can be skipped is skipped for good: a way whose bound is above the tenth best that was found
cannot be one of the ten, and if it is above the best of its precision and of its number of devices,
not these either. The table
tells a system on one team in one precision once, with its best settings; so the ten are ten of
those.
"""

from __future__ import annotations

import itertools
import math
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from tpi_bench.measure.bounds import Bound
from tpi_bench.measure.household import Team
from tpi_bench.measure.ways import Way
from tpi_bench.report.rows import Record

NUM_BEST = 10
_AT_ONCE = 6  # points between two looks at what is left

Bounded = tuple[Way, Bound]
# Runs ways, each with its record, in their order.
Run = Callable[[Sequence[Way]], Iterator[Record]]


@dataclass(frozen=True, kw_only=True)
class Tried:
    """A way that was run."""

    way: Way
    bound: Bound
    record: Record

    @property
    def token_s(self) -> float:
        """Infinite where it gave no answer."""
        run = self.record.run
        is_timed = run.status == "ok" and not math.isnan(run.token_latency_s)
        return run.token_latency_s if is_timed else math.inf

    @property
    def team(self) -> Team:
        """The devices that hold something: a planner may have left others idle."""
        held = {device.rank for device in self.record.devices if device.ledger_bytes}
        return tuple(
            device for rank, device in enumerate(self.way.team) if not held or rank in held
        )

    @property
    def order(self) -> tuple[float, int, bool]:
        """From the fastest on; of equals, the one with fewest devices."""
        return self.token_s, len(self.team), self.is_another_way

    @property
    def is_another_way(self) -> bool:
        """Whether one device does all of what several were asked: `tpi` on it is the same."""
        return len(self.team) == 1 < len(self.way.team)


@dataclass(frozen=True, kw_only=True)
class Effort:
    """How much may be run: points, and wall seconds (a time of `time.monotonic`)."""

    num_points: int = 120
    until_s: float = math.inf

    @property
    def is_over(self) -> bool:
        return time.monotonic() >= self.until_s


@dataclass(kw_only=True)
class Found:
    """What a search has run, and what it has not and why.

    `lacking` do not fit for certain. Of those not run (`unrun`) `skipped` counts the ones out of
    reach by what their bound is made of; `left` might have been better, had there been more time.
    """

    num_ways: int = 0
    tried: list[Tried] = field(default_factory=list)
    lacking: list[Bounded] = field(default_factory=list)
    unrun: list[Bounded] = field(default_factory=list)
    skipped: Counter[str] = field(default_factory=Counter)
    left: list[Bounded] = field(default_factory=list)

    @property
    def best(self) -> list[Tried]:
        """The best of each choice, from the fastest on."""
        return best_choices(self.tried)

    @property
    def over_bounds(self) -> dict[str, float]:
        """What ways of each kind took over their bounds, at least."""
        found: dict[str, float] = {}
        for each in self.tried:
            if math.isfinite(each.token_s) and each.bound.token_s > 0:
                ratio = each.token_s / each.bound.token_s
                found[each.way.kind] = min(ratio, found.get(each.way.kind, math.inf))
        return found


def best_of_each(tried: Sequence[Tried], key: Callable[[Tried], object]) -> list[Tried]:
    """One of each key, from the fastest on; none that gave no answer."""
    best: dict[object, Tried] = {}
    for each in sorted(tried, key=lambda each: each.order):
        if math.isfinite(each.token_s):
            best.setdefault(key(each), each)
    return list(best.values())


def best_choices(tried: Sequence[Tried]) -> list[Tried]:
    """The best of each choice, as `best_of_each`.

    Those that are another way count only as long as there is nothing else that answers.
    """
    own = [each for each in tried if not each.is_another_way]
    found = (best_of_each(ways, lambda each: each.way.choice) for ways in (own, tried))
    return next(filter(None, found), [])


class _Bar:
    """What has been found so far, as what a way that is not run has to beat."""

    def __init__(self, tried: Sequence[Tried], num_best: int) -> None:
        best = best_choices(tried)
        self._last_s = best[num_best - 1].token_s if len(best) >= num_best else math.inf
        self._of_choice = {each.way.choice: each.token_s for each in best}
        self._leading: dict[object, float] = {}
        for each in best:
            for group in groups_of(each.way):
                self._leading.setdefault(group, each.token_s)

    def is_out_of_reach(self, way: Way, bound: Bound) -> bool:
        """Whether it cannot stand for its choice, or neither be among the best nor lead a group."""
        if bound.token_s >= self._of_choice.get(way.choice, math.inf):
            return True
        leads = (self.may_lead(group, bound) for group in groups_of(way))
        return bound.token_s >= self._last_s and not any(leads)

    def may_lead(self, group: object, bound: Bound) -> bool:
        return bound.token_s < self._leading.get(group, math.inf)


def search(
    bounded: Sequence[Bounded],
    run: Run,
    effort: Effort,
    on_tried: Callable[[Tried], None] = lambda tried: None,
    num_best: int = NUM_BEST,
    over_bounds: Mapping[str, float] | None = None,
) -> Found:
    """Run what may be among the best.

    Where ten are asked for, each kind of way is run once first, to know what there is to beat.
    `over_bounds` is what kinds took over their bounds in another search.
    """
    found = Found(num_ways=len(bounded))
    found.lacking = [each for each in bounded if each[1].lacking_bytes > 0]
    unrun = [each for each in bounded if each[1].lacking_bytes <= 0]
    known = dict(over_bounds or {})
    unrun = _by_promise(unrun, known)
    batch = _first_of_each_kind(unrun) if num_best > 1 else unrun[:1]
    while batch and len(found.tried) < effort.num_points and not effort.is_over:
        batch = batch[: effort.num_points - len(found.tried)]
        for (way, bound), record in zip(batch, run([way for way, _ in batch]), strict=False):
            found.tried.append(Tried(way=way, bound=bound, record=record))
            on_tried(found.tried[-1])
            if effort.is_over:
                break
        done = {id(tried.way) for tried in found.tried}
        unrun = [each for each in unrun if id(each[0]) not in done]
        unrun = _by_promise(unrun, known | found.over_bounds)
        bar = _Bar(found.tried, num_best)
        batch = _next(unrun, bar) if num_best > 1 else _first(unrun, bar, 1)
    bar = _Bar(found.tried, num_best)
    found.unrun = unrun
    for each in unrun:
        if bar.is_out_of_reach(*each):
            found.skipped[each[1].limited_by] += 1
        else:
            found.left.append(each)
    return found


def _by_promise(unrun: Sequence[Bounded], over_bounds: Mapping[str, float]) -> list[Bounded]:
    """From the least expected time on; of equals, the one with fewest devices."""

    def expected(each: Bounded) -> tuple[float, int]:
        way, bound = each
        return bound.token_s * over_bounds.get(way.kind, 1.0), len(way.team)

    return sorted(unrun, key=expected)


def _first(unrun: Sequence[Bounded], bar: _Bar, count: int) -> list[Bounded]:
    """The most promising that are within reach."""
    within = (each for each in unrun if not bar.is_out_of_reach(*each))
    return list(itertools.islice(within, count))


def groups_of(way: Way) -> tuple[object, object]:
    """Those whose best is to be certain: of its precision, of its number of devices."""
    return ("weights", way.weights), ("devices", len(way.team))


def _next(unrun: Sequence[Bounded], bar: _Bar) -> list[Bounded]:
    """The most promising, and beside them that of each group whose best is not certain."""
    found = _first(unrun, bar, _AT_ONCE)
    least: dict[object, Bounded] = {}
    for way, bound in unrun:
        for group in groups_of(way):
            if group not in least and bar.may_lead(group, bound):
                least[group] = (way, bound)
    found += [each for each in least.values() if not bar.is_out_of_reach(*each)]
    return list({id(each[0]): each for each in found}.values())


def _first_of_each_kind(unrun: Sequence[Bounded]) -> list[Bounded]:
    """The most promising of each system, each precision and each number of devices."""
    first: dict[object, Bounded] = {}
    for each in unrun:
        way = each[0]
        for key in (("kind", way.kind), *groups_of(way)):
            first.setdefault(key, each)
    return list({id(each[0]): each for each in first.values()}.values())
