"""What `bench_engine.py` shows, line by line: which points are compared, and what is asked of them.

A line has a figure a repeat, in seconds, of us, of the limit that was measured right before it, and
of the peer that ran next to it in the same repeat; ratios are of these pairs.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

SHAPE, DEMO = "tinyllama_1.1b", "smollm2_135m"
PRECISIONS = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16", "q8": "q8", "q4": "q4"}
_GGUF = {"float32": "F32", "bfloat16": "BF16", "float16": "F16", "q8": "Q8_0", "q4": "Q4_0"}
# What is asked: of the limit's speed at least, of a peer's time at most.
LEAST_SHARE = 0.85
_LEAST_SHARE_OF_DECODE = {"float32": LEAST_SHARE}
_MOST_OF_LLAMACPP = {"float32": 1.0, "bfloat16": 1.0, "float16": 0.85, "q8": 0.85, "q4": 0.95}
_MOST_OF_PREFILL = 1.0
_MOST_OF_ONE_DEVICE = 0.55
_MOST_OF_LIMIT_CROWDED = 2.0
_MOST_OF_ROUND_TRIP = 1.5
MOST_BESIDE_WEIGHTS = 0.30


@dataclass(frozen=True, kw_only=True)
class Line:
    """`kind` groups lines; NaN in `least_share` and `most` asks nothing; `reason` is the peer's."""

    kind: str
    name: str
    weights: str
    ours: pd.Series
    limit: pd.Series
    peer_name: str = ""
    peer: pd.Series
    least_share: float = math.nan
    most: float = math.nan
    reason: str = ""

    @property
    def share(self) -> pd.Series:
        """Of the limit's speed that is reached."""
        return (self.limit[self.limit > 0] / self.ours).dropna()

    @property
    def ratio(self) -> pd.Series:
        """To the peer's time."""
        return (self.ours / self.peer).dropna()

    @property
    def asked(self) -> str:
        words = [] if math.isnan(self.least_share) else [f">= {self.least_share:.0%}"]
        words += [] if math.isnan(self.most) else [f"<= {self.most:.2f}"]
        return ", ".join(words)

    @property
    def is_met(self) -> bool | None:
        """None where nothing is asked, or it was not measured."""
        found = []
        if not math.isnan(self.least_share):
            found.append(None if self.share.empty else self.share.median() >= self.least_share)
        if not math.isnan(self.most):
            found.append(None if self.ratio.empty else self.ratio.median() <= self.most)
        if False in found:
            return False
        return None if None in found or not found else True


def lines(runs: pd.DataFrame) -> list[Line]:
    """Those of which something was run, in the order of what is asked."""
    parts = (_decode, _one_thread, _prefill, _two_devices, _crowded, _allreduce, _account)
    return [line for part in parts for line in part(runs) if len(line.ours)]


def points(runs: pd.DataFrame, **wanted: Any) -> pd.DataFrame:
    """Rows by what their columns hold. A model that is in none has been replaced in all of them."""
    for column, value in wanted.items():
        found = runs[runs[column] == value]
        runs = runs if column == "model" and found.empty else found
    return runs


def figures_of(rows: pd.DataFrame, column: str = "token_latency_p50_s") -> pd.Series:
    """One a repeat, of rows that are ok. Of a run's tokens it is the median."""
    return rows[rows.status == "ok"].groupby("repeat")[column].median().dropna()


def _engine(runs: pd.DataFrame, **wanted: Any) -> pd.DataFrame:
    """This engine's points with as many threads as any has."""
    own = points(runs, system="tpi")
    return points(own, **({"threads_per_device": own.threads_per_device.max()} | wanted))


def _line(rows: pd.DataFrame, peer: pd.Series | None = None, **values: Any) -> Line:
    """Of a token of the points `rows`."""
    ours = figures_of(rows)
    nothing = ours[:0]
    limit = figures_of(rows, "limit_token_s")
    weights = str(rows.weights.iloc[0]) if len(rows) else ""
    return Line(
        **({"weights": weights, "ours": ours, "limit": limit} | values),
        peer=nothing if peer is None else peer,
    )


def _decode(runs: pd.DataFrame) -> Iterator[Line]:
    for weights, short in PRECISIONS.items():
        ours = _engine(runs, model=SHAPE, weights=weights, num_devices=1)
        for system, name in (("llamacpp", f"llama.cpp {_GGUF[weights]}"), ("transformers", "")):
            theirs = points(runs, model=SHAPE, system=system, weights=weights)
            if system == "transformers" and theirs.empty:
                continue
            is_first = system == "llamacpp"
            yield _line(
                ours,
                figures_of(theirs),
                kind="decode",
                name=f"{short} decode",
                peer_name=name or f"Transformers {short}",
                least_share=_LEAST_SHARE_OF_DECODE.get(weights, math.nan) if is_first else math.nan,
                most=_MOST_OF_LLAMACPP[weights] if is_first else math.nan,
                reason=_reason(theirs),
            )


def _one_thread(runs: pd.DataFrame) -> Iterator[Line]:
    for weights, short in PRECISIONS.items():
        rows = _engine(runs, model=SHAPE, weights=weights, num_devices=1, threads_per_device=1)
        yield _line(rows, kind="one thread", name=f"{short} one thread", least_share=LEAST_SHARE)


def _prefill(runs: pd.DataFrame) -> Iterator[Line]:
    """Transformers holds no quantised weights: they stand beside fp32, in which they compute."""
    shape = points(runs, model=SHAPE)
    for length in sorted(shape[shape.system == "transformers"].prompt_tokens.dropna().unique()):
        for weights, short in PRECISIONS.items():
            ours = _engine(shape, weights=weights, num_devices=1, prompt_tokens=length)
            held = weights if weights in ("float32", "bfloat16", "float16") else "float32"
            theirs = points(shape, system="transformers", weights=held, prompt_tokens=length)
            times = figures_of(ours, "ttft_s")
            yield _line(
                ours,
                figures_of(theirs, "ttft_s"),
                kind=f"prefill {length:.0f}",
                name=f"{short} prefill {length:.0f}",
                ours=times,
                limit=times[:0],
                peer_name=f"Transformers {PRECISIONS[held]}",
                most=_MOST_OF_PREFILL,
            )


def _two_devices(runs: pd.DataFrame) -> Iterator[Line]:
    """Beside one device of one thread.

    Half a token's time and a little is asked where memory gives two threads twice what it gives
    one; else what `LEAST_SHARE` of the limit of both leaves; and in addition the token's
    allreduces, each as long as one alone of the same payload took in this run.
    """
    for weights, short in PRECISIONS.items():
        pair = [
            _engine(runs, model=SHAPE, weights=weights, threads_per_device=1, num_devices=number)
            for number in (1, 2)
        ]
        one, two = (figures_of(rows) for rows in pair)
        memory = figures_of(pair[1], "limit_memory_s") / LEAST_SHARE
        sync = _sync_of_a_token(runs, pair[1])
        allowed = (_MOST_OF_ONE_DEVICE * one).combine(memory, max) + sync
        yield _line(
            pair[1],
            one,
            kind="two devices",
            name=f"{short} two devices",
            peer_name="one device",
            most=(allowed / one).median() if len(two) else math.nan,
        )


def _sync_of_a_token(runs: pd.DataFrame, rows: pd.DataFrame) -> pd.Series:
    """What its allreduces take. Their limit is round trips: it tells how many there are."""
    count = (rows.limit_network_s / rows.link_round_trip_min_s).median()
    size = rows.hidden.median()
    alone = figures_of(points(runs, system="allreduce", hidden=size))
    return count * alone if len(alone) else figures_of(rows, "limit_network_s")


def _crowded(runs: pd.DataFrame) -> Iterator[Line]:
    own = points(runs, model=DEMO, system="tpi")
    for number in sorted(own.num_devices[own.num_devices > 2].unique()):
        rows = points(own, num_devices=number)
        yield _line(
            rows,
            figures_of(rows, "limit_token_s"),
            kind="crowded",
            name=f"demo model, {number} devices",
            peer_name="the limit",
            most=_MOST_OF_LIMIT_CROWDED,
        )


def _allreduce(runs: pd.DataFrame) -> Iterator[Line]:
    """Beside a round trip of the same payload between plain processes."""
    rows = points(runs, system="allreduce", status="ok")
    for hidden in sorted(rows.hidden.unique()):
        own = points(rows, hidden=hidden)
        yield _line(
            own,
            figures_of(own, "raw_round_trip_s"),
            kind="allreduce",
            name=f"allreduce {4 * hidden / 1024:.2g} KB",
            peer_name="raw round trip",
            most=_MOST_OF_ROUND_TRIP,
        )


def _account(runs: pd.DataFrame) -> Iterator[Line]:
    """A token beside its products alone; asked of fp32, where what is not weights is least."""
    for weights, short in PRECISIONS.items():
        alone = points(runs, model=DEMO, system="products", weights=weights)
        if alone.empty:
            continue
        yield _line(
            _engine(runs, model=DEMO, weights=weights, num_devices=1),
            figures_of(alone),
            kind="account",
            name=f"demo model {short}",
            peer_name="its products alone",
            most=1 / (1 - MOST_BESIDE_WEIGHTS) if weights == "float32" else math.nan,
        )


def _reason(rows: pd.DataFrame) -> str:
    """Why there is no figure."""
    failed = rows[rows.status != "ok"]
    return "" if failed.empty else f"{failed.status.iloc[0]}: {failed.error.iloc[0]}"
