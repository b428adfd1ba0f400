"""What a device has in memory before it loads a model: Python, torch, and what these grow by."""

from __future__ import annotations

from collections.abc import Sequence

from tpi_bench.host.fork import in_helper
from tpi_bench.host.memory import resident_bytes

# What a device takes beside what it starts with and what its ledger names: scratch of torch and of
# the kernels, threads, sockets, and pages of the interpreter that it changes. Seen were 2 to 5 MB
# with a small model and 14 to 28 with one of 1.1B parameters.
GROWTH_BYTES = 40_000_000


def taken_bytes() -> int:
    """Of a cap, by the interpreter, its libraries and what these grow by."""
    return round(in_helper(resident_bytes)[0]) + GROWTH_BYTES


def free_of_caps(memory_bytes: Sequence[int] | None) -> tuple[int, ...] | None:
    """Of caps, what the interpreter, its libraries and what these grow by leave.

    Below 0 where a device could not even start.
    """
    if memory_bytes is None:
        return None
    taken = taken_bytes()
    return tuple(nbytes - taken for nbytes in memory_bytes)
