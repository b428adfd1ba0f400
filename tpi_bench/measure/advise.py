"""`task=advise`: which way of running a model on the devices of a household is fastest, and why.

Every way that could be done (`ways.py`) gets its bound (`bounds.py`); what may be among the best is
run in virtual time (`search.py`); the best are run with a longer prompt; and then it is asked what
one change of the household would do (`household_changes.py`). The rows of all that was run and what
is left to be said of them go to `report/advice.py`.
"""

from __future__ import annotations

import math
import string
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from tpi_bench.contract.model import BYTES_PER_WEIGHT, ModelConfig
from tpi_bench.measure.bounds import Bounds
from tpi_bench.measure.household import Household
from tpi_bench.measure.household_changes import Changed, possible_changes
from tpi_bench.measure.search import NUM_BEST, Bounded, Effort, Found, Run, Tried, search
from tpi_bench.measure.settings import Settings
from tpi_bench.measure.ways import Fixed, Way, ways
from tpi_bench.measure.why_not import kinds, letters, limited_by
from tpi_bench.report.advice import Advice, Change, Line
from tpi_bench.report.names import counted
from tpi_bench.report.rows import Record

LONG_PROMPT = 512
_LONG_TOKENS = 2  # that follow it: only its first is asked for
_CHANGED_POINTS = 3  # run for each change
_SEARCH_SHARE = 0.7  # of the time: the rest is for longer prompts and changes

Make = Callable[[Mapping[str, Any]], Settings]


@dataclass(kw_only=True)
class Adviser:
    """One household and one model. `make` turns changed settings into those of a point, `measured`
    runs points; `tell` is told how far it is: what is done and the best so far.
    """

    household: Household
    config: ModelConfig
    fixed: Fixed
    make: Make
    measured: Callable[[Iterable[Settings]], Iterator[Record]]
    model: str = ""
    tell: Callable[[str, float], None] = lambda words, best_s: None
    num_points: int = 120
    seconds: float = 30.0
    _best_s: float = field(default=math.inf, init=False)

    def bounded(self) -> list[Bounded]:
        """Every way with its bound. Raises ValueError where there is none."""
        found = self._bounded(self.household, self.fixed)
        if not found:
            raise ValueError(
                "no system can divide this model over these devices; give fewer devices or leave "
                "out settings of system= and testbed.proportions="
            )
        return found

    def advise(self, bounded: Sequence[Bounded]) -> tuple[Advice, Found]:
        """Search among these, and say what was found."""
        start = time.monotonic()
        until = Effort(num_points=self.num_points, until_s=start + _SEARCH_SHARE * self.seconds)
        found = search(bounded, self._run("searching"), until, self._note)
        best = found.best[:NUM_BEST]
        longer = self._longer(best)
        last = Effort(num_points=_CHANGED_POINTS, until_s=start + self.seconds)
        changes = list(self._changes(found, last))
        left = min((bound.token_s for _, bound in found.left), default=None)
        advice = Advice(
            model=self.model,
            network=self.household.network.words,
            devices=self._devices(),
            weights_gb={weights: self._weights_gb(weights) for weights in self.fixed.precisions},
            memory_gb=sum(profile.memory_gb for profile in self.household.profiles),
            best=[
                _line(tried, record, self.household)
                for tried, record in zip(best, longer, strict=True)
            ],
            kinds=list(kinds(found, self.household)),
            changes=changes,
            num_ways=found.num_ways,
            num_run=len(found.tried),
            num_lacking=len(found.lacking),
            skipped=dict(found.skipped),
            num_left=len(found.left),
            left_bound_s=left,
            took_s=time.monotonic() - start,
        )
        return advice, found

    def _bounded(self, household: Household, fixed: Fixed) -> list[Bounded]:
        """Every way with its bound; those that cannot be divided so are none."""
        bounds, found = Bounds(household, self.config, fixed.dtype), []
        for way in ways(household, self.config, fixed):
            try:
                found.append((way, bounds.of(way)))
            except ValueError:  # more devices than heads or layers
                continue
        return found

    def _run(
        self, words: str, household: Household | None = None, also: Mapping[str, Any] | None = None
    ) -> Run:
        """Runs ways of a household, with other settings besides."""

        def run(several: Sequence[Way]) -> Iterator[Record]:
            points = (
                self.make({**way.changes(household or self.household), **(also or {})})
                for way in several
            )
            for record in self.measured(points):
                self.tell(words, self._best_s)
                yield record

        return run

    def _note(self, tried: Tried) -> None:
        self._best_s = min(self._best_s, tried.token_s)

    def _longer(self, best: Sequence[Tried]) -> list[Record]:
        """The best with a longer prompt, as long as the model takes."""
        prompt = min(LONG_PROMPT, self.config.context_length - _LONG_TOKENS)
        also = {"workload.prompt_tokens": prompt, "workload.num_new_tokens": _LONG_TOKENS}
        return list(self._run("a longer prompt", also=also)([tried.way for tried in best]))

    def _changes(self, found: Found, effort: Effort) -> Iterator[Change]:
        """What one change would do, in the precision of the best, or else the narrowest.

        The most promising first; one whose bounds are above the best is not run.
        """
        best = found.best[0] if found.best else None
        fixed = replace(
            self.fixed, precisions=(best.way.weights if best else self.fixed.precisions[0],)
        )
        systems = {tried.way.system for tried in found.best[:NUM_BEST]}
        hopeful: list[tuple[Changed, list[Bounded]]] = []
        for changed in possible_changes(self.household):
            bounded = [
                (way, bound)
                for way, bound in self._bounded(changed.household, fixed)
                if (not systems or way.system in systems)
                and bound.token_s < self._best_s
                and bound.lacking_bytes <= 0
            ]
            hopeful.append((changed, bounded))
        hopeful.sort(key=lambda each: min((b.token_s for _, b in each[1]), default=math.inf))
        for changed, bounded in hopeful:
            if bounded and effort.is_over:
                yield Change(words=changed.words, point=None, num_left=len(bounded), is_run=False)
                continue
            also = {"name": "advise_change", **changed.settings}
            run = self._run("what would help", changed.household, also)
            then = search(bounded, run, effort, num_best=1, over_bounds=found.over_bounds)
            point = then.best[0].record.run.point if then.best else None
            is_run = bool(then.tried) or not bounded  # else time is over
            yield Change(words=changed.words, point=point, num_left=len(then.left), is_run=is_run)

    def _weights_gb(self, weights: str) -> float:
        values = self.config.num_layers * self.config.layer_parameters
        return (values + self.config.end_parameters) * BYTES_PER_WEIGHT[weights] / 1e9

    def _devices(self) -> list[str]:
        found = []
        for letter, profile in zip(string.ascii_uppercase, self.household.profiles, strict=False):
            idle = f"{profile.num_used} of " if profile.num_used < profile.cores else ""
            words = (
                f"{letter} {profile.name}: {idle}{counted(profile.cores, 'core')}, "
                f"{profile.memory_gb:.3g} GB, "
                f"{profile.memory_gb_per_s:.3g} GB/s, disk {profile.disk_gb_per_s:.3g} GB/s"
            )
            taken = profile.source.partition("taken, as not said: ")[2]
            found.append(f"{words} (taken, as not said: {taken})" if taken else words)
        return found


def _line(tried: Tried, longer: Record, household: Household) -> Line:
    bound = tried.bound
    return Line(
        point=tried.record.run.point,
        long_point=longer.run.point,
        team=letters(tried.team),
        limited_by=limited_by(tried, household),
        bound_s=bound.token_s,
        weights_s=bound.weights_s,
        links_s=bound.links_s,
        disk_s=bound.disk_s,
    )
