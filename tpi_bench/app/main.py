"""The command line: Hydra composes the config, a task runs a point, an experiment many.

`python -m tpi_bench task=generate prompt="..."` and `python -m tpi_bench +experiment=NAME`.
Results go to standard output, everything else to standard error; bad input is one line
(`errors.ExitStatus` lists how it can end).
"""

from __future__ import annotations

import importlib.metadata
import signal
import sys
from collections.abc import Sequence
from typing import NoReturn

from omegaconf import DictConfig, OmegaConf
from yaml import YAMLError

from tpi_bench.app import hydra_app
from tpi_bench.app.advise_asked import with_advice_defaults
from tpi_bench.app.arguments import for_hydra, options_last, plain_text
from tpi_bench.app.early import interrupt, is_sweep, report_of, say_stopped, unheard
from tpi_bench.app.errors import (
    HYDRA_ERRORS,
    ExitStatus,
    end_unread,
    fail_of,
    status_text,
)
from tpi_bench.app.folder_tasks import folder_task
from tpi_bench.app.place import ResultsPlace
from tpi_bench.app.resolvers import register
from tpi_bench.app.settings import help_text
from tpi_bench.app.streams import open_closed
from tpi_bench.app.tasks import run_task
from tpi_bench.app.typed_folders import with_whole_folders
from tpi_bench.app.unknown import explained
from tpi_bench.report.json_keys import counts_of


def main() -> None:
    """Entry point."""
    open_closed()
    signal.signal(signal.SIGTERM, interrupt)
    typed = sys.argv[1:]
    arguments = typed
    place = ResultsPlace()
    try:
        if "--version" in typed:
            print(version(), flush=True)
            return
        of_folders = folder_task(typed)
        if of_folders is not None:
            status = of_folders.start(typed)
            sys.stdout.flush()
            sys.exit(status)
        given = with_whole_folders(with_advice_defaults(for_hydra(typed, sys.stdin.read)))
        arguments = options_last(place.with_stored(given))
        OmegaConf.register_new_resolver("tpi_settings", settings_in_force, replace=True)
        register(place, arguments)
        hydra_app.start(arguments, run_task)
        sys.stdout.flush()  # else what it cannot take is told when Python ends
    except KeyboardInterrupt:
        _end_stopped(arguments, place)
    except BrokenPipeError:
        end_unread()
    except (*HYDRA_ERRORS, YAMLError, ValueError, OSError) as error:
        if _is_of_a_stop(error):
            _end_stopped(arguments, place)
        said = explained(error, arguments)
        counts = counts_of([]) if is_sweep(arguments) else {}
        fail_of(report_of(arguments), ValueError(said) if said else error, **counts)


def _end_stopped(arguments: Sequence[str], place: ResultsPlace) -> NoReturn:
    with unheard():
        say_stopped(arguments, place.stopped_message(), **place.so_far())
    sys.exit(ExitStatus.STOPPED)


def _is_of_a_stop(error: BaseException | None) -> bool:
    """Whether a library made an error of its own of a KeyboardInterrupt, as Hydra may."""
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__cause__ or error.__context__
    return error is not None


def version() -> str:
    """`tpi_bench 0.1.0`, as it was installed."""
    try:
        return f"tpi_bench {importlib.metadata.version('tpi_bench')}"
    except importlib.metadata.PackageNotFoundError:
        return "tpi_bench, not installed: run from its folder"


def settings_in_force(*, _root_: DictConfig) -> str:
    """`${tpi_settings:}` of the help, and how the program can end."""
    shown = OmegaConf.masked_copy(_root_, [str(key) for key in _root_ if key != "hydra"])
    values = OmegaConf.to_container(shown)
    assert isinstance(values, dict)
    return f"{help_text(plain_text(values))}\n\n{status_text()}"
