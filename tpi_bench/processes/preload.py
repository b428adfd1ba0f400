"""What devices are forked with: torch, the engine and its compiled kernels.

Nothing but names it: the server imports it once (`host/fork.py`), and every device and helper is a
copy of that. Compiling here costs no device its time or memory.
"""

from __future__ import annotations

from tpi_bench.engine.matrix import prepare_kernels
from tpi_bench.processes import device  # noqa: F401

prepare_kernels()
