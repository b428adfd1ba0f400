"""The command line: Hydra composes the config, a task runs a point, an experiment many.

`python -m tpi_bench task=generate prompt="..."` and `python -m tpi_bench +experiment=NAME`.
Results go to standard output, everything else to standard error; bad input is one line
(`errors.ExitStatus` lists how it can end).
"""

from __future__ import annotations

import json
import os
import signal
import sys
from types import FrameType

import hydra
from omegaconf import OmegaConf
from yaml import YAMLError

from tpi_bench.app import sweeper
from tpi_bench.app.errors import HYDRA_ERRORS, ExitStatus, fail_of
from tpi_bench.app.place import ResultsPlace, without_resume
from tpi_bench.app.tasks import run_task
from tpi_bench.report.text import error_report


def main() -> None:
    """Entry point."""
    signal.signal(signal.SIGTERM, _interrupt)
    os.environ["HYDRA_FULL_ERROR"] = "1"  # errors come here as exceptions and become one line
    typed = sys.argv[1:]
    report = "json" if "report=json" in typed else "text"
    place = ResultsPlace()
    try:
        arguments = place.with_stored(typed)
        _register("tpi_arguments", lambda: without_resume(arguments))
        _register("tpi_results_folder", place.folder_of)
        sweeper.register()
        sys.argv[1:] = arguments  # Hydra takes them from there
        entry = hydra.main(
            version_base="1.3", config_path=str(sweeper.CONFIG_FOLDER), config_name="config"
        )(run_task)
        entry()
    except KeyboardInterrupt:
        print(place.stopped_message(), file=sys.stderr)
        if report == "json":
            print(json.dumps(error_report("stopped", ExitStatus.STOPPED.reason)))
        sys.exit(ExitStatus.STOPPED)
    except BrokenPipeError:  # whoever read our output has gone, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(ExitStatus.ERROR)
    except (*HYDRA_ERRORS, YAMLError, ValueError, OSError) as error:
        fail_of(report, error)


def _register(name: str, resolver: object) -> None:
    """Make `${name:...}` known to the configuration; it is asked once."""
    OmegaConf.register_new_resolver(name, resolver, use_cache=True, replace=True)  # type: ignore[arg-type]


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt
