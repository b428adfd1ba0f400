"""How the program says that it was stopped, also before its imports are done.

Light for that reason, and imports all that it needs: `__main__.py` comes here first.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any, NoReturn

from tpi_bench.app.streams import print_nothing_more
from tpi_bench.report.failure import error_report
from tpi_bench.report.json_keys import counts_of

STOPPED = 130
_BOTH = (signal.SIGINT, signal.SIGTERM)
_SWEEPS = {"-m", "--multirun", "hydra.mode=MULTIRUN"}


def interrupt(number: int, frame: FrameType | None) -> NoReturn:
    """SIGTERM is what Ctrl-C is."""
    raise KeyboardInterrupt


@contextmanager
def stopped_at_once() -> Iterator[None]:
    """Meanwhile a stop is said and ends the program: an exception might end in what is imported,
    which catches all sorts of them. What ignores Ctrl-C, as in a shell's background, still does.
    """
    before = signal.getsignal(signal.SIGINT)
    signal.signal(signal.SIGTERM, _say_and_end)
    if before is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, _say_and_end)
    yield
    signal.signal(signal.SIGTERM, interrupt)
    signal.signal(signal.SIGINT, before)


@contextmanager
def unheard() -> Iterator[None]:
    """What is said meanwhile is not broken off by a second signal."""
    before = [signal.signal(number, signal.SIG_IGN) for number in _BOTH]
    try:
        yield
    finally:
        for number, handler in zip(_BOTH, before, strict=True):
            signal.signal(number, handler)


def end_at_once() -> None:
    """From now on, when all is said: a stop would be a traceback of Python's own end."""
    for number in _BOTH:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, lambda number, frame: os._exit(STOPPED))
    exec("")  # Python would end by a Ctrl-C that has come in any exec before, as a dataclass has


def say_stopped(arguments: Sequence[str], message: str = "stopped", **more: Any) -> None:
    """`more` is for the JSON object; without it no row is known of."""
    with unheard():
        print(message, file=sys.stderr, flush=True)
        if report_of(arguments) == "json":
            nothing = counts_of([]) if is_sweep(arguments) else {}
            say_failure("stopped", "stopped", **(nothing | more))


def report_of(arguments: Sequence[str]) -> str:
    """`report=`, before it is known whether the arguments can be composed."""
    given = [text for text in arguments if text.startswith("report=")]
    return "json" if given[-1:] == ["report=json"] else "text"


def is_sweep(arguments: Sequence[str]) -> bool:
    """Whether they ask for several points that leave rows, as far as they tell."""
    has_experiment = any(text.startswith("+experiment=") for text in arguments)
    tasks = [text for text in arguments if text.startswith("task=")]
    task = tasks[-1] if tasks else "task=measure" if has_experiment else ""
    return task == "task=measure" and (has_experiment or bool(_SWEEPS & set(arguments)))


def say_failure(message: str, reason: str, **more: Any) -> None:
    """As JSON. Where standard output takes no more, as on a full disk, the status still tells."""
    said = error_report(message, reason, is_point="points" not in more)
    try:
        print(json.dumps(said | more), flush=True)
    except OSError as error:
        if not isinstance(error, BrokenPipeError):  # whoever read it has gone, as `head` does
            print(f"error: {error}", file=sys.stderr)
        print_nothing_more()


def _say_and_end(number: int, frame: FrameType | None) -> NoReturn:
    say_stopped(sys.argv[1:])
    os._exit(STOPPED)
