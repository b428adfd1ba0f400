"""What a person is told of an error: one line that says what was given and what is allowed."""

from __future__ import annotations

import json
import sys
from typing import NoReturn

from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from tpi_bench.report.text import error_report

HYDRA_ERRORS = (HydraException, OmegaConfBaseException)


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
    text = (
        ", ".join(lines)
        .replace(":,", ":")
        .replace("In 'config': ", "")
        .replace("', Avail", "'; avail")
    )
    return text or type(error).__name__


def fail(report: str, message: str) -> NoReturn:
    """Say it, as JSON too where that was asked for, and end."""
    print(f"error: {message}", file=sys.stderr)
    if report == "json":
        print(json.dumps(error_report(message)))
    sys.exit(1)
