"""How the program ends: its exit statuses, and one line that says what was given and is allowed."""

from __future__ import annotations

import logging
import sys
from enum import IntEnum
from typing import Any, NoReturn

from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from tpi_bench.app import early
from tpi_bench.app.place import InUse
from tpi_bench.app.streams import CannotPrint, print_nothing_more
from tpi_bench.contract.plan import DoesNotFit
from tpi_bench.host.cache import CacheError
from tpi_bench.measure.turns import HostBusy
from tpi_bench.report.folder import CannotWrite
from tpi_bench.report.rows import RunRow
from tpi_bench.report.text import in_one_line, place_of

HYDRA_ERRORS = (HydraException, OmegaConfBaseException)
_LOG = logging.getLogger(__name__)


class ExitStatus(IntEnum):
    """What the shell sees; `reason` is the same in JSON (`exit_reason`)."""

    OK = 0
    ERROR = 1
    USAGE = 2
    OUT_OF_MEMORY = 3
    TIMEOUT = 4
    POINTS_FAILED = 5
    STOPPED = early.STOPPED

    @property
    def reason(self) -> str:
        return self.name.lower()


# For `--help`.
MEANINGS = {
    ExitStatus.OK: "all went well",
    ExitStatus.ERROR: "something failed, or the oracle has other tokens",
    ExitStatus.USAGE: "what was typed cannot be run; nothing was started",
    ExitStatus.OUT_OF_MEMORY: "a device ran out of memory, or would have",
    ExitStatus.TIMEOUT: "it took longer than timeout_s, or a device hung",
    ExitStatus.POINTS_FAILED: "a sweep came to its end, but some of its points failed (that some "
    "do not fit or take too long is an answer, that all do is not)",
    ExitStatus.STOPPED: "stopped by Ctrl-C or SIGTERM",
}


def status_text() -> str:
    """Of `--help`: every exit status in a line."""
    lines = [f"{int(status):<5}{words}" for status, words in MEANINGS.items()]
    return "\n".join(["== Exit status ==", *lines])


def status_of_error(error: BaseException) -> ExitStatus:
    """Of what ends the program: bad input, unless the machine is to blame."""
    if isinstance(error, DoesNotFit):
        return ExitStatus.OUT_OF_MEMORY
    if isinstance(error, (CacheError, CannotWrite)):
        return ExitStatus.ERROR
    is_input = isinstance(error, (ValueError, YAMLError, *HYDRA_ERRORS))
    return ExitStatus.USAGE if is_input else ExitStatus.ERROR


def status_of_run(run: RunRow) -> ExitStatus:
    """Of a point by itself. With `check=true` other tokens than the oracle's are a failure too."""
    if run.status == "oom":
        return ExitStatus.OUT_OF_MEMORY
    if run.status == "timeout":
        return ExitStatus.TIMEOUT
    is_good = run.status == "ok" and not run.differs_from_oracle
    return ExitStatus.OK if is_good else ExitStatus.ERROR


def one_line(error: BaseException) -> str:
    """The innermost reason of an error, as one line that says what is allowed."""
    while error.__cause__ is not None and isinstance(error, HYDRA_ERRORS):
        error = error.__cause__
    lines = [line.strip() for line in str(error).split("\n") if line.strip()]
    for line in lines:
        key = line.partition("full_key: ")[2]
        if key and isinstance(error, OmegaConfBaseException):
            return f"{key}: {lines[0]}; python -m tpi_bench --help lists the names there are"
    if "Config search path:" in lines:
        lines = lines[: lines.index("Config search path:")]
    lines = [line for line in lines if not line.startswith(("See https", "Set the environment"))]
    text = in_one_line("\n".join(lines))
    text = text.replace("In 'config': ", "").replace("', Avail", "'; avail")
    return (text or type(error).__name__) + place_of(error)


def defect_of(error: Exception) -> str:
    """What nobody foresaw; where it is in a system or an experiment that somebody adds, it is not
    this program's.
    """
    is_ours = not place_of(error)
    return f"{type(error).__name__}: {one_line(error)}{' (a defect; please report it)' * is_ours}"


class Failed(SystemExit):
    """The end of the program, with what was said: a caller in Python is told it too."""

    def __init__(self, message: str, status: ExitStatus) -> None:
        super().__init__(status)
        self.message, self.status = message, status

    def __reduce__(self) -> tuple[type[Failed], tuple[str, ExitStatus]]:
        return Failed, (self.message, self.status)


def fail(report: str, message: str, status: ExitStatus = ExitStatus.ERROR, **more: Any) -> NoReturn:
    """Say it, as JSON too where that was asked for, and end."""
    tell(report, message, status, **more)
    raise Failed(message, status)


def tell(report: str, message: str, status: ExitStatus, **more: Any) -> None:
    """What has failed, and go on; `more` is for the JSON object."""
    print(f"error: {message}", file=sys.stderr)
    if report == "json":
        early.say_failure(message, status.reason, **more)


def fail_of(report: str, error: BaseException, **more: Any) -> NoReturn:
    """The same of an error; `verbosity=debug` shows where it came from."""
    _LOG.debug("where it came from:", exc_info=error)
    message, status = one_line(error), status_of_error(error)
    if isinstance(error, (HostBusy, InUse)):
        more["exit_reason"] = "busy"
    if isinstance(error, CannotPrint):
        print_nothing_more()
        report = "text"
    tell(report, message, status, **more)
    raise Failed(message, status)


def end_unread() -> NoReturn:
    """Whoever read our output has gone, as `head` does, and has seen enough."""
    print_nothing_more()
    sys.exit(ExitStatus.OK)
