"""One measurement at a time on a host: two side by side would be measured against each other.

Points in virtual time measure nothing here and take no turn. The lock lies in the user's runtime
folder, whatever `cache_dir` and `results_dir` are.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import math
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path

import platformdirs

from tpi_bench.contract.testbed import Testbed
from tpi_bench.host.locks import Occupied, turn

_LOG = logging.getLogger(__name__)


class HostBusy(RuntimeError):
    """Another measurement runs on this host, for longer than `wait` allows."""


@contextlib.contextmanager
def measuring_turn(testbed: Testbed | None, *, wait: bool | float) -> Iterator[None]:
    """Measure alone on this host; `testbed` None is for what measures the host itself.

    Raises HostBusy where another process measures for longer than `wait`: seconds, or whether to.
    """
    if testbed is not None and not testbed.measures_here:
        yield
        return
    folder = _runtime_folder()
    longest_s = float(wait) if not isinstance(wait, bool) else math.inf if wait else 0.0
    with contextlib.ExitStack() as held:
        try:
            held.enter_context(turn(folder, _tell_of, longest_s))
        except Occupied as holder:
            waited = f" (waited {longest_s:g} s)" if longest_s else ""
            raise HostBusy(
                f"this host is measured by {holder}, and two at once would disturb each other"
                f"{waited}; try again later, or let it wait with wait=true"
            ) from None
        yield


def _runtime_folder() -> Path:
    """The same for all programs of the user: where the system has none, a private one in /tmp,
    wherever TMPDIR points, as each job of a CI has another.
    """
    before, tempfile.tempdir = tempfile.tempdir, "/tmp" if Path("/tmp").is_dir() else None
    try:
        with warnings.catch_warnings():  # of a folder of another user, which is not taken
            warnings.simplefilter("ignore")
            return platformdirs.user_runtime_path("tpi_bench", ensure_exists=True)
    finally:
        tempfile.tempdir = before


def _tell_of(holder: str) -> None:
    """Without since when: a sweep holds the turn anew for each of its points."""
    _say_once(holder.rpartition(", since ")[0] or holder)


@functools.cache
def _say_once(process: str) -> None:
    """However many points wait for it."""
    _LOG.warning(
        "waiting for %s, which measures on this host (wait=false refuses instead, "
        "wait=60 after 60 s)",
        process,
    )
