"""The command line: Hydra composes the config, a task runs a point, an experiment many.

`python -m tpi_bench task=generate prompt="..."` and `python -m tpi_bench +experiment=NAME`.
Results go to standard output, everything else to standard error; bad input is one line and exit
status 1.
"""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType

import hydra
from omegaconf import OmegaConf
from yaml import YAMLError

from tpi_bench.app import sweeper
from tpi_bench.app.errors import HYDRA_ERRORS, fail, one_line
from tpi_bench.app.experiment import ResultsPlace, without_resume
from tpi_bench.app.tasks import run_task

_STOPPED = 130


def main() -> None:
    """Entry point. Exit status: 0 all well, 1 anything failed, 130 stopped."""
    signal.signal(signal.SIGTERM, _interrupt)
    os.environ["HYDRA_FULL_ERROR"] = "1"  # errors come here as exceptions and become one line
    typed = sys.argv[1:]
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
        sys.exit(_STOPPED)
    except BrokenPipeError:  # whoever read our output has gone, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except (*HYDRA_ERRORS, YAMLError, ValueError, OSError) as error:
        fail("json" if "report=json" in typed else "text", one_line(error))


def _register(name: str, resolver: object) -> None:
    """Make `${name:...}` known to the configuration; it is asked once."""
    OmegaConf.register_new_resolver(name, resolver, use_cache=True, replace=True)  # type: ignore[arg-type]


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt
