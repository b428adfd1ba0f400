"""What devices are forked with: torch, the engine and its compiled kernels.

Nothing but names it: the server imports it once (`host/fork.py`), and every device and helper is a
copy of that. Compiling here costs no device its time or memory. Numba imports scipy where there is
one, for functions that no kernel calls: 16 MB of every device, so it is not found meanwhile. What
is loaded stays, so garbage collections of devices leave it out: one would look through all of it,
as those amid the imports would, which is a sixth of their time.
"""

from __future__ import annotations

import gc
import sys

gc.disable()
sys.modules.setdefault("scipy", None)  # type: ignore[arg-type]  # what `import` takes for absent

from tpi_bench.engine.matrix import prepare_kernels  # noqa: E402
from tpi_bench.processes import device  # noqa: E402, F401

prepare_kernels()
if sys.modules["scipy"] is None:
    del sys.modules["scipy"]
gc.collect()
gc.freeze()
gc.enable()
