"""Standard streams that whoever started the program has closed (`<&-`), as some services do, or
that take no more, as on a full disk.
"""

from __future__ import annotations

import os
import sys
from typing import Any, TextIO


def open_closed() -> None:
    """Connect them to the null device, for helpers and devices too.

    Else the next file that is opened gets a stream's number and whatever is written to that; and
    `sys.stdin` is None.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            lowest = os.open(os.devnull, os.O_RDWR)  # of the numbers that are free
            assert lowest == number
            os.set_inheritable(number, True)
    for name, number, mode in (("stdin", 0, "r"), ("stdout", 1, "w"), ("stderr", 2, "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(number, mode, encoding="utf-8", closefd=False))
    if not isinstance(sys.stderr, _Notices):
        sys.stderr = _Notices(sys.stderr)


class _Notices:
    """Standard error, which may fail: status and results do not depend on who reads notices."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except OSError:
            return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except OSError:
            return

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
