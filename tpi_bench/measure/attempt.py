"""A point of a sweep: its record, or one that says why there is none. Failed points are rows."""

from __future__ import annotations

import traceback
from collections.abc import Callable

from tpi_bench.contract.job import Job, Outcome
from tpi_bench.contract.plan import DoesNotFit
from tpi_bench.host.fork import HelperDied, InterpreterLost
from tpi_bench.measure.point import measure
from tpi_bench.measure.prepare import prepare
from tpi_bench.measure.record import failure_record
from tpi_bench.measure.settings import Settings
from tpi_bench.report.rows import Record
from tpi_bench.report.text import in_one_line, place_of


def attempted(settings: Settings, run: Callable[[Job], Outcome] | None = None) -> Record:
    """What `measure(prepare(settings))` gives, or the record of its failure. `run` as there."""
    try:
        return measure(prepare(settings), run=run)
    except DoesNotFit as error:
        return failure_record(settings, _reason(error), "oom")
    except InterpreterLost as error:
        return failure_record(settings, _reason(error), "device_lost")
    except (ValueError, OSError, HelperDied) as error:
        return failure_record(settings, _reason(error))
    except Exception as error:  # a defect of one system is no reason to lose the others' points
        traceback.print_exc()
        return failure_record(settings, f"{type(error).__name__}: {_reason(error)}")


def _reason(error: Exception) -> str:
    return (in_one_line(str(error)) or type(error).__name__) + place_of(error)
