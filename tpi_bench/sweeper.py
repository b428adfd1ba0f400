"""Hydra's sweeper for several products of values in one experiment, one after another.

`hydra.sweeper.params` holds what all of them sweep, each entry of `hydra.sweeper.grids` what one of
them adds or changes; the command line overrides both. Without grids it does what Hydra's basic
sweeper does, and launcher plug-ins work as with that one.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.core.plugins import Plugins
from hydra.errors import HydraException
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

NAME = "hydra_plugins.tpi_bench.GridSweeper"


def register() -> None:
    """Make the sweeper known to Hydra, which takes only names that begin as a plug-in's."""
    Plugins.instance().class_name_to_class[NAME] = GridSweeper


class GridSweeper(Sweeper):
    """Jobs are numbered through all grids and go to the launcher in one batch."""

    def __init__(
        self,
        params: Mapping[str, Any] | None = None,
        grids: Sequence[Mapping[str, Any]] | None = None,
    ) -> None:
        self._params = params or {}
        self._grids = grids or [{}]
        self.config: DictConfig | None = None
        self.launcher: Launcher | None = None

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        self.hydra_context = hydra_context
        self.config = config
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> Any:
        """Run every job; the first that raises ends the sweep."""
        assert self.config is not None
        assert self.launcher is not None
        folder = Path(self.config.hydra.sweep.dir)
        folder.mkdir(parents=True, exist_ok=True)
        OmegaConf.save(self.config, folder / "multirun.yaml")
        jobs = jobs_of_grids(self._params, self._grids, arguments)
        self.validate_batch_is_legal(jobs)
        results = self.launcher.launch(jobs, initial_job_idx=0)
        for result in results:
            _ = result.return_value  # raises what the job raised
        return [results]


def jobs_of_grids(
    params: Mapping[str, Any], grids: Sequence[Mapping[str, Any]], arguments: Sequence[str]
) -> list[list[str]]:
    """The overrides of every job: for each grid the product of all choices, the last key fastest.

    A key that is given again keeps its place and takes the later choices.
    """
    parser = OverridesParser.create()
    jobs: list[list[str]] = []
    for grid in grids:
        texts = [f"{key}={value}" for key, value in [*params.items(), *grid.items()]]
        choices: dict[str, list[str]] = {}
        for override in parser.parse_overrides([*texts, *arguments]):
            choices[override.get_key_element()] = _choices(override)
        jobs += [list(job) for job in itertools.product(*choices.values())]
    return jobs


def _choices(override: Override) -> list[str]:
    key = override.get_key_element()
    if not override.is_sweep_override():
        return [f"{key}={override.get_value_element_as_str()}"]
    if not override.is_discrete_sweep():
        raise HydraException(f"{key}: only lists of values, choice(), range() and glob() can sweep")
    return [f"{key}={value}" for value in override.sweep_string_iterator()]
