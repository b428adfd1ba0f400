"""Cores of threads that help a device beside its computing."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable


def on_any_core() -> Callable[[], None]:
    """Lets the thread that calls it use the cores that this one may use now.

    The one that makes it may be bound to one of them later, and a new thread has its maker's.
    """
    if not hasattr(os, "sched_setaffinity"):
        return _nothing
    return functools.partial(os.sched_setaffinity, 0, os.sched_getaffinity(0))


def _nothing() -> None:
    pass
