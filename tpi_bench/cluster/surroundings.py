"""What a worker of Ray has that its devices must not inherit.

Ray bounds the threads of OpenMP in its workers where nobody has. A device would then compute with
other settings than on one host.
"""

from __future__ import annotations

import os

import psutil

_BOUND = "OMP_NUM_THREADS"


def as_ray_was_started() -> None:
    """Give this process the bound that `ray start` was called with, or none."""
    given = _of_parent().get(_BOUND)
    if given is None:
        os.environ.pop(_BOUND, None)
    else:
        os.environ[_BOUND] = given


def _of_parent() -> dict[str, str]:
    """The environment of the process that has started this one; empty where it cannot be read."""
    try:
        parent = psutil.Process().parent()
        return {} if parent is None else parent.environ()
    except (psutil.Error, OSError):
        return {}
