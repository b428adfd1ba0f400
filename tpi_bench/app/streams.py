"""Standard streams that whoever started the program has closed (`<&-`), as some services do, or
that take no more, as on a full disk.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
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
    if not isinstance(sys.stdout, _Answers):
        sys.stdout = _Answers(sys.stdout)


class CannotPrint(OSError):
    """Standard output takes no more."""


def print_nothing_more() -> None:
    """What standard output still holds would fail again when Python ends."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


class _Answers:
    """Standard output, of which an error says that it is. A reader that leaves is none."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        with _as_cannot_print():
            return self._stream.write(text)

    def flush(self) -> None:
        with _as_cannot_print():
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextlib.contextmanager
def _as_cannot_print() -> Iterator[None]:
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        raise CannotPrint(f"cannot write to standard output: {error.strerror}") from error


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
