"""Some of a job's devices as a world of their own, for collectives among them alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    import torch

    from tpi_bench.contract.runtime import Runtime


class _Team:
    """A runtime whose ranks are places among `ranks`; all but names is the runtime's own."""

    def __init__(self, rt: Runtime, ranks: Sequence[int]) -> None:
        self._rt = rt
        self._ranks = ranks
        self.rank = ranks.index(rt.rank)
        self.world_size = len(ranks)

    def send(self, dst: int, buffer: torch.Tensor) -> None:
        self._rt.send(self._ranks[dst], buffer)

    def recv(self, src: int, out: torch.Tensor) -> None:
        self._rt.recv(self._ranks[src], out)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._rt, name)


def team_of(rt: Runtime, ranks: Sequence[int]) -> Runtime:
    """The runtime as one of these ranks sees it, which has to be one of them."""
    return cast("Runtime", _Team(rt, ranks))
