"""What each precision costs in quality: the perplexity of one text, by what weights are held in.

`task=perplexity` prints it. The engine itself reads the text token by token, with the kernels that
decode; the rows of single points come from `workload=score`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from tpi_bench.contract.model import WEIGHTS
from tpi_bench.measure.point import measure
from tpi_bench.measure.prepare import prepare
from tpi_bench.measure.settings import Settings
from tpi_bench.measure.texts import PAGE_NAME

_REFERENCE = "float32"


@dataclass(frozen=True, kw_only=True)
class Score:
    """Of one precision. `ratio` is to fp32; `error` says why there is none."""

    weights: str
    dtype: str
    perplexity: float = math.nan
    ratio: float = math.nan
    num_tokens: int = 0
    weight_bytes: int = 0
    error: str | None = None


def scores(settings: Settings) -> Iterator[Score]:
    """Each precision in turn; fp32 and the asked one where `model.weights` says one."""
    asked = settings.model.weights
    kinds = WEIGHTS if asked == "auto" else dict.fromkeys((_REFERENCE, asked))
    reference = math.nan
    for weights in kinds:
        score = _score(settings, weights)
        if weights == _REFERENCE:
            reference = score.perplexity
        yield replace(score, ratio=score.perplexity / reference)


def _score(settings: Settings, weights: str) -> Score:
    dtype = settings.model.dtype if weights == settings.model.weights else "auto"
    model: Any = settings.model  # a dataclass, as every source is
    text = settings.workload.text or PAGE_NAME
    point = replace(
        settings,
        model=replace(model, weights=weights, dtype=dtype),
        workload=replace(settings.workload, text=text),
    )
    try:
        prepared = prepare(point)
    except ValueError as error:
        return Score(weights=weights, dtype=dtype, error=str(error))
    run = measure(prepared).run
    if run.status != "ok":
        return Score(weights=weights, dtype=run.dtype, error=run.error)
    blocks = {block.path: block for blocks in prepared.job.blocks for block in blocks}
    return Score(
        weights=weights,
        dtype=run.dtype,
        perplexity=run.perplexity,
        num_tokens=run.num_tokens or 0,
        weight_bytes=sum(block.weight_bytes for block in blocks.values()),
    )


def score_line(score: Score) -> str:
    """A line of the table."""
    if score.error:
        return f"{score.weights:<10} {score.error}"
    return (
        f"{score.weights:<10} {score.dtype:<10} {score.perplexity:10.3f} {score.ratio:10.4f} "
        f"{score.weight_bytes / 1e6:10.1f}"
    )


SCORE_HEAD = f"{'weights':<10} {'computed in':<11} {'perplexity':>9} {'of fp32':>10} {'MB':>10}"


def score_report(found: Sequence[Score]) -> dict[str, Any]:
    """For `report=json`. What was not measured is null."""
    rows = [
        {key: None if value != value else value for key, value in asdict(score).items()}
        for score in found
    ]
    return {"status": "error" if any(score.error for score in found) else "ok", "scores": rows}
