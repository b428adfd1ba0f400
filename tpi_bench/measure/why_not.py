"""Why other ways are not the best: the best of each system, precision and number of devices.

`advise.py` asks, `report/advice.py` tells it.
"""

from __future__ import annotations

import math
import string
from collections.abc import Callable, Iterator, Sequence

from tpi_bench.measure.household import Household, Team
from tpi_bench.measure.search import Bounded, Found, Tried
from tpi_bench.measure.ways import Way
from tpi_bench.report.advice import Kind

_BUSY_SHARE = 0.75  # of a token: a disk that is busier limits it
_Key = Callable[[Way, Team], str]  # of a way, and the devices of it that work
_KEYS: dict[str, _Key] = {
    "devices": lambda way, team: str(len(team)),
    "weights": lambda way, team: way.weights,
    "system": lambda way, team: way.kind,
}


def kinds(found: Found, household: Household) -> Iterator[Kind]:
    """Of all ways there are, whether they were run, skipped or do not fit."""
    for of, key in _KEYS.items():
        tried, bounded = _grouped(found.tried, key), _bounds(found, key)
        names = dict.fromkeys([*tried, *bounded])
        made = [
            _kind(of, name, tried.get(name, []), bounded.get(name), found, household)
            for name in names
        ]
        yield from sorted(made, key=_place_of)


def limited_by(tried: Tried, household: Household) -> str:
    """What most of a token goes to: `disk` where it is busy nearly all the time, or longer than all
    else; else the larger of what weights take out of memory and messages on their way, or `compute`
    where what no bound counts is more: operators, messages in the devices, arithmetic.
    """
    bound, disk_s = tried.bound, max(tried.bound.disk_s, read_s(tried, household))
    if disk_s > min(_BUSY_SHARE * tried.token_s, bound.weights_s + bound.links_s):
        return "disk"
    parts = {"memory": bound.weights_s, "links": bound.links_s}
    parts["compute"] = tried.token_s - bound.token_s
    return max(parts, key=lambda part: parts[part])


def read_s(tried: Tried, household: Household) -> float:
    """What the busiest disk takes for what is read for a token; in a pipeline, all in turn.

    Kept weights are read once, all others at every pass: those of the warm-up, the prompt and each
    later token.
    """
    num_passes = (tried.record.run.num_tokens or 0) + 1
    each = []
    for device in tried.record.devices:
        kept = 0.0 if math.isnan(device.kept_bytes) else device.kept_bytes
        again = max(0.0, device.weight_bytes_read - kept) / num_passes
        each.append(again / household.profiles[tried.way.team[device.rank]].disk_bps)
    return sum(each) if tried.way.scheme in ("layers", "chain") else max(each, default=0.0)


def letters(team: Sequence[int]) -> str:
    """The devices of a team as tables call them, the master first."""
    return " ".join(string.ascii_uppercase[device] for device in team)


def _grouped(found: Sequence[Tried], key: _Key) -> dict[str, list[Tried]]:
    """From the fastest on."""
    groups: dict[str, list[Tried]] = {}
    for tried in sorted(found, key=lambda each: each.order):
        groups.setdefault(key(tried.way, tried.team), []).append(tried)
    return groups


def _bounds(found: Found, key: _Key) -> dict[str, Bounded]:
    """The least of those that were not run; what fits before what does not."""
    least: dict[str, Bounded] = {}
    for each in sorted(found.unrun, key=_of_bound) + sorted(found.lacking, key=_of_bound):
        least.setdefault(key(each[0], each[0].team), each)
    return least


def _of_bound(bounded: Bounded) -> tuple[float, float]:
    return max(0.0, bounded[1].lacking_bytes), bounded[1].token_s


def _place_of(kind: Kind) -> tuple[int, float]:
    """Numbers of devices in order, others from the fastest on; what does not fit comes last."""
    count = int(kind.name) if kind.of == "devices" else 0
    return count, math.inf if kind.bound_s is None else kind.bound_s


def _kind(
    of: str,
    name: str,
    tried: Sequence[Tried],
    bounded: Bounded | None,
    found: Found,
    household: Household,
) -> Kind:
    if tried and math.isfinite(tried[0].token_s):
        point, token_s = tried[0].record.run.point, tried[0].token_s
        why = _why(tried[0], found, household)
        return Kind(of=of, name=name, point=point, bound_s=token_s, why=why)
    if bounded is not None and bounded[1].lacking_bytes <= 0:
        bound = bounded[1]
        why = f"{bound.limited_by}, as its bound says; not run"
        return Kind(of=of, name=name, point=None, bound_s=bound.token_s, why=why)
    if tried:
        run = tried[0].record.run
        why = f"{run.status}: {(run.error or '').partition(';')[0]}"
        return Kind(of=of, name=name, point=None, bound_s=None, why=why)
    assert bounded is not None
    why = f"does not fit: {bounded[1].lacking_bytes / 1e9:.1f} GB too much at least"
    return Kind(of=of, name=name, point=None, bound_s=None, why=why)


def _why(tried: Tried, found: Found, household: Household) -> str:
    """In a few words: what it is, what limits it, and where fewer devices do better, or why it is
    in no better place.
    """
    best, way = found.best, tried.way
    where = f"{way.kind} on {letters(tried.team)} in {way.weights}"
    if tried is best[0]:
        return f"{where}: the best of all"
    words = f"{where}: {limited_by(tried, household)}"
    if way.only_short:
        return (
            f"{words}; tried only where memory is short, elsewhere no faster than tpi or a pipeline"
        )
    fewer = [
        each
        for each in best
        if len(each.team) < len(tried.team)
        and each.way.weights == way.weights
        and each.token_s < tried.token_s
    ]
    return f"{words}; slower than {letters(fewer[0].team)}" if fewer else words
