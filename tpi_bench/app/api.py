"""tpi_bench from Python: `from tpi_bench import run, sweep, load` (`load` is `report/results.py`).

In a script, with or without a guard, in a notebook, or from standard input. What can be set is what
the command line takes, `python -m tpi_bench --help`, and both run the same functions.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from hydra import compose
from hydra.core.override_parser.overrides_parser import OverridesParser
from yaml import YAMLError

from tpi_bench.app.arguments import as_typed, for_hydra, options_last
from tpi_bench.app.compose import build_settings
from tpi_bench.app.errors import HYDRA_ERRORS, Failed, one_line
from tpi_bench.app.hydra_app import CONFIG_NAME, SWEEP, hydra_of_ours, start, with_config_dir
from tpi_bench.app.place import ResultsPlace
from tpi_bench.app.points import run_point
from tpi_bench.app.resolvers import register
from tpi_bench.app.tasks import run_task
from tpi_bench.app.unknown import explained
from tpi_bench.measure.settings import Settings
from tpi_bench.report.results import Result, Results, load

_ONE_POINT = ("generate", "measure")
_SWEEPS = ("-m", "--multirun")
_SWEPT = "task=measure"


def run(
    *arguments: str,
    on_text: Callable[[str], None] | None = None,
    config_dir: str | Path | None = None,
) -> Result:
    """Run one point, `"key=value"` as on the command line. Writes no results to the disk.

    `on_text` gets each piece of the answer as it comes. `config_dir` is a folder of configurations
    of your own. Raises ValueError, in one line, for what cannot be run; a device that fails is a
    result whose `status` says so.

    >>> result = run("system=tpi", "testbed.num_devices=2", "prompt=What is the capital of France?")
    >>> print(result.text, result.row.token_latency_s)
    """
    with _value_errors(arguments):
        settings = settings_of(with_config_dir(_typed(arguments), config_dir))
        if settings.task not in _ONE_POINT:
            raise ValueError(
                f"task={settings.task} is no single point; run() takes task=measure, and the "
                f"command line all tasks: python -m tpi_bench task={settings.task}"
            )
        return run_point(settings, on_text=on_text)


def sweep(*arguments: str, show: bool = True, config_dir: str | Path | None = None) -> Results:
    """Run every combination of the values: `"testbed.num_devices=1,2,4"`, or `"+experiment=NAME"`.

    Rows, and a figure where an experiment has one, go to a new folder below `results/runs`;
    `"resume=FOLDER"` takes one up again. With `show`, progress and the table go to standard error.
    A point that fails is a row. Raises ValueError, in one line, for what cannot be run.

    >>> results = sweep("testbed=virtual", "model=llama2_70b", "model.weights=q4",
    ...                 "workload.prompt_tokens=32", "system=tpi,pipeline",
    ...                 "testbed.num_devices=6,8")
    >>> print(results.runs[["system", "num_devices", "token_latency_s"]])
    """
    place = ResultsPlace()
    with _value_errors(arguments), _shown(show), _logging_kept():
        given = options_last(
            place.with_stored(with_config_dir(_typed(arguments, _SWEEPS), config_dir))
        )
        others = [text for text in given if text.startswith("task=") and text != _SWEPT]
        if others:
            raise ValueError(f"{others[0]} is nothing to sweep; give task=measure, or leave it out")
        if not any(text.startswith(("task=", "+experiment=", "resume=")) for text in given):
            given = [_SWEPT, *given]
        if not show and not any(text.startswith("verbosity=") for text in given):
            given = ["verbosity=quiet", *given]  # to workers too, whose words go past this process
        given = [*given, SWEEP]
        register(place, given)
        _without_status(lambda: start(given, run_task, sets_logging=False))
    assert place.folder is not None
    return load(place.folder)


def settings_of(arguments: Sequence[str]) -> Settings:
    """The checked settings of one point. Raises ValueError and Hydra's errors."""
    parser = OverridesParser.create()
    for text, override in zip(arguments, parser.parse_overrides(list(arguments)), strict=True):
        if override.is_sweep_override():
            raise ValueError(
                f"{as_typed(text)} names several values; run() takes one, sweep() all of them"
            )
    with hydra_of_ours(arguments):
        config = compose(CONFIG_NAME, overrides=list(arguments))
    target = str(config.system.get("_target_"))
    if target.startswith("__main__."):
        raise ValueError(
            f"system._target_={target} stands in the program itself, which devices do not load; "
            "put it into a module of its own"
        )
    return build_settings(config, arguments)


def _without_status(command: Callable[[], None]) -> None:
    """Points that failed end a command with a status; here their rows say so."""
    try:
        command()
    except Failed as failed:
        raise ValueError(failed.message) from None
    except SystemExit:
        return


def _typed(arguments: Sequence[str], options: Sequence[str] = ()) -> list[str]:
    """As the command line reads them: a prompt is text, whatever is in it.

    Raises ValueError for what is no text.
    """
    for each in arguments:
        if not isinstance(each, str):
            raise ValueError(f'{each!r} is no text; give settings as they are typed: "system=tpi"')
        if each.startswith("-") and each not in options:
            raise ValueError(
                f"{each} is an option of the command line; give KEY=VALUE, several values to "
                "sweep(), and a folder of configurations as config_dir=DIR"
            )
    return for_hydra(arguments, sys.stdin.read)


@contextlib.contextmanager
def _value_errors(arguments: Sequence[str]) -> Iterator[None]:
    """Every error of what was given is a ValueError of one line."""
    try:
        yield
    except (*HYDRA_ERRORS, YAMLError) as error:
        raise ValueError(explained(error, arguments) or one_line(error)) from error


@contextlib.contextmanager
def _shown(is_shown: bool) -> Iterator[None]:
    """What the command line would print, on standard error or nowhere."""
    with contextlib.ExitStack() as stack:
        if not is_shown:
            nowhere = stack.enter_context(open(os.devnull, "w"))
            stack.enter_context(contextlib.redirect_stderr(nowhere))
        stack.enter_context(contextlib.redirect_stdout(sys.stderr))
        yield


@contextlib.contextmanager
def _logging_kept() -> Iterator[None]:
    """Hydra sets up logging for a program of its own; the caller's comes back."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    try:
        yield
    finally:
        root.handlers[:], root.level = handlers, level
