"""Benchmarks and experiments for running large language models on several small devices.

Nine rooms on five floors, imports only downward (`tests/test_house.py`): app; measure; models,
processes, virtual, report; engine, host; contract. Each says in its `__init__` what lives there.

From Python, `run` measures a point, `sweep` many, and `load` reads what a sweep has left; what they
need is imported when they are first asked for.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tpi_bench.app.api import run, sweep
    from tpi_bench.report.results import Result, Results, load

__all__ = ["Result", "Results", "load", "run", "sweep"]


def __getattr__(name: str) -> Any:
    if name in ("run", "sweep"):
        from tpi_bench.app import api

        return getattr(api, name)
    if name in __all__:
        from tpi_bench.report import results

        return getattr(results, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
