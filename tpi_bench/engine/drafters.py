"""Who proposes tokens: the text itself, a smaller model, or nobody where nothing is real.

Rank programs give `generate` what `drafter_of` makes of their job.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING

from tpi_bench.engine.prompt_lookup import PromptLookup
from tpi_bench.engine.speculation import Drafter

if TYPE_CHECKING:
    from tpi_bench.contract.job import Job
    from tpi_bench.contract.runtime import Runtime


class LookupDrafter:
    """Copies from the text itself; a little Python on the master, charged as sampling is."""

    def __init__(self, rt: Runtime) -> None:
        self._rt = rt
        self._lookup = PromptLookup()

    def read(self, text: Sequence[int]) -> None:
        self.propose(text, 1)

    def propose(self, text: Sequence[int], most: int) -> list[int]:
        find = functools.partial(self._lookup.propose, text, most)
        return self._rt.compute(("lookup", most), find)


class UnrealDrafter:
    """Where nothing real is computed: always as many as are allowed, of no meaning."""

    def read(self, text: Sequence[int]) -> None:
        """There is nothing to look at."""

    def propose(self, text: Sequence[int], most: int) -> list[int]:
        return [0] * most


def drafter_of(rt: Runtime, job: Job) -> Drafter | None:
    """What proposes tokens in a job's answers; None where each pass gives one."""
    speculation = job.request.speculation
    if speculation is None:
        return None
    if speculation.kind == "draft":
        from tpi_bench.engine.draft_model import ModelDrafter

        return ModelDrafter(rt, job)
    return LookupDrafter(rt) if speculation.acceptance is None else UnrealDrafter()
