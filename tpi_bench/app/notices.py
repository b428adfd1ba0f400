"""What is said beside the results, on standard error: `verbosity=` and `progress=`.

Everything of the tool logs below `tpi_bench`; Hydra's configuration (conf/hydra/*_logging) gives
the lines to standard error as they are.
"""

from __future__ import annotations

import logging
import os
from typing import TextIO

from tqdm import tqdm

_LEVELS = {"quiet": logging.WARNING, "normal": logging.INFO, "debug": logging.DEBUG}
VERBOSITIES = tuple(_LEVELS)
_TQDM_SWITCH = "TQDM_DISABLE"  # tqdm's own; helper processes inherit it
_OURS = "by tpi_bench"


class BesideBars(logging.StreamHandler[TextIO]):
    """Lines on standard error, above a bar that stands there rather than behind it."""

    def emit(self, record: logging.LogRecord) -> None:
        if not getattr(tqdm, "_instances", ()):  # whose lock is then better not made
            super().emit(record)
            return
        with tqdm.external_write_mode(file=self.stream):
            super().emit(record)


def set_notices(verbosity: str, *, progress: bool) -> bool:
    """Say only what is to be said; returns whether bars are to be seen on a terminal.

    A verbosity that is none is left to the check of all settings.
    """
    logging.getLogger("tpi_bench").setLevel(_LEVELS.get(verbosity, logging.INFO))
    is_shown = progress and verbosity != "quiet"
    if not is_shown:
        os.environ[_TQDM_SWITCH] = _OURS
    elif os.environ.get(_TQDM_SWITCH) == _OURS:  # of a run before, in the same interpreter
        del os.environ[_TQDM_SWITCH]
    return is_shown
