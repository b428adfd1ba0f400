"""What is wrong with points of a sweep, found before the first one runs.

Composing the settings shows it, without a file of the model. `sweeper.py` asks. What the model must
be known for, as more devices than it has heads, is a row of the point that fails.
"""

from __future__ import annotations

from collections.abc import Sequence

from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig

from tpi_bench.app.arguments import as_typed
from tpi_bench.app.compose import build_settings
from tpi_bench.app.errors import one_line


def trouble_of(point: DictConfig, overrides: Sequence[str]) -> str | None:
    """Why a composed point of a sweep cannot be run, in one line; None where nothing is wrong."""
    from tpi_bench.measure.prepare import refuse_unfit

    try:
        refuse_unfit(build_settings(point, overrides))
    except ValueError as error:
        return one_line(error)
    return None


def refuse_typed(
    jobs: Sequence[Sequence[str]], troubles: Sequence[str | None], arguments: Sequence[str]
) -> None:
    """Raises ValueError where no point can run, or none with a value that was typed.

    Values that do not go together in some points alone are no mistake: these points are left out,
    or fail, when they come.
    """
    given = OverridesParser.create().parse_overrides(list(arguments))
    keys = tuple(f"{override.get_key_element()}=" for override in given)
    typed = dict.fromkeys(text for job in jobs for text in job if text.startswith(keys))
    reasons = [_reason(jobs, troubles, text) for text in ("", *typed)]
    for text, reason in zip(("", *typed), reasons, strict=True):
        if reason is not None:
            value = as_typed(text)
            raise ValueError(reason if value in reason else f"{value}: {reason}")


def _reason(jobs: Sequence[Sequence[str]], troubles: Sequence[str | None], text: str) -> str | None:
    """Why no job with this text can run, or no job at all; None where one can."""
    told = [why for job, why in zip(jobs, troubles, strict=True) if not text or text in job]
    return None if None in told else told[0]
