"""Hydra's sweeper for several products of values in one experiment, one after another.

`hydra.sweeper.params` holds what all of them sweep, each entry of `hydra.sweeper.grids` what one of
them adds or changes; the command line overrides both. Systems given there that an experiment names
take part in the grids that name them, others in all. Two grids can then name the same point, which
is run once, and one can set what another system has and this one has not: such points are left out.
`repeat` varies slowest over all grids, so that everything is measured in turns; where some grids
have repeats and others have none, as what is the same each time in virtual time, one that is typed
goes to those that have.
With `hydra.sweeper.draw` only so many cases are run, drawn by `hydra.sweeper.seed` from one grid
after the other; a case is a choice of what its grid sweeps, and has all choices of `params`.
Without grids it does what Hydra's basic sweeper does, and launcher plug-ins work as with that one.
"""

from __future__ import annotations

import functools
import itertools
import random
import sys
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

from tpi_bench.app.choices import GROUPS
from tpi_bench.app.composer import Composer, SharesComposer
from tpi_bench.app.config_folders import CONFIG_FOLDER, folders_of, settings_of_system
from tpi_bench.app.launchers import fix_folder, refuse_side_by_side, tell_of_workers, watchers
from tpi_bench.app.place import LEAVE_NO_ROWS, refuse_changed
from tpi_bench.app.refusals import refuse_typed, trouble_of
from tpi_bench.app.typed import did_you_mean
from tpi_bench.report.folder import ResultsFolder
from tpi_bench.report.names import counted

NAME = "hydra_plugins.tpi_bench.GridSweeper"


_SETTINGS = ("_target_", "params", "grids", "draw", "seed")


def register() -> None:
    """Make the sweeper known to Hydra, which takes only names that begin as a plug-in's."""
    Plugins.instance().class_name_to_class[NAME] = GridSweeper


def refuse_settings(settings: Mapping[str, Any]) -> None:
    """Raises ValueError for a key of `hydra.sweeper` that there is not, and for a YAML list of
    choices of a group, which would be one choice.
    """
    for name in settings:
        if name not in _SETTINGS:
            near = did_you_mean(str(name), _SETTINGS[1:], "hydra.sweeper.")
            raise ValueError(f"there is no hydra.sweeper.{name}; {near}")
    for grid in (settings.get("params") or {}, *(settings.get("grids") or ())):
        for key, value in grid.items():
            is_list = isinstance(value, Sequence) and not isinstance(value, str)
            if is_list and key in GROUPS and key != "device":
                texts = ",".join(map(str, value))
                raise ValueError(
                    f"hydra.sweeper has {key}: [{texts}], which is one value, a list; to sweep "
                    f"over these, write {key}: {texts}"
                )


class GridSweeper(Sweeper):
    """Jobs are numbered through all grids and go to the launcher in one batch."""

    def __init__(
        self,
        params: Mapping[str, Any] | None = None,
        grids: Sequence[Mapping[str, Any]] | None = None,
        draw: int | None = None,
        seed: int = 0,
        **others: Any,
    ) -> None:
        refuse_settings({"params": params, "grids": grids, **others})
        self._params = params or {}
        self._grids = grids or [{}]
        self._draw = draw
        self._seed = seed
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
        assert self.hydra_context is not None
        try:
            return self._launch(arguments)
        except BaseException as error:  # a notebook goes on, and may take the folder up again
            for watcher in watchers(self.hydra_context):
                watcher.on_broken_off(is_stopped=isinstance(error, KeyboardInterrupt))
            raise

    def _launch(self, arguments: list[str]) -> Any:
        assert self.config is not None
        assert self.launcher is not None
        assert self.hydra_context is not None
        jobs, left_out = jobs_of_grids(
            self._params,
            self._grids,
            arguments,
            folders_of(self.config),
            draw=self._draw,
            seed=self._seed,
        )
        for reason, count in left_out.items():
            said = counted(count, "point is", "points are")
            print(f"{said} left out: {reason}", file=sys.stderr)
        if not jobs:
            raise ValueError("no point of the experiment is left; give it other systems")
        composer = Composer(self.hydra_context.config_loader, self.config)
        self._refuse_wrong(composer, jobs, arguments)
        if self.config.task not in LEAVE_NO_ROWS:
            folder = Path(self.config.hydra.sweep.dir)
            folder.mkdir(parents=True, exist_ok=True)
            stored = folder / "multirun.yaml"
            if stored.exists():  # a sweep that is resumed
                refuse_changed(self.config, DictConfig(OmegaConf.load(stored)))
            else:
                with ResultsFolder(folder).writing():
                    OmegaConf.save(self.config, stored)
        fix_folder(self.config)
        for watcher in watchers(self.hydra_context):
            watcher.on_accepted()
        if isinstance(self.launcher, SharesComposer):
            self.launcher.composer = composer  # which has read the files
        results = self.launcher.launch(jobs, initial_job_idx=0)
        tell_of_workers(self.config, self.hydra_context, results)
        for result in results:
            _ = result.return_value  # raises what the job raised
        return [results]

    def _refuse_wrong(
        self, composer: Composer, jobs: Sequence[Sequence[str]], arguments: Sequence[str]
    ) -> None:
        """Compose every point before the first runs, and refuse what may not or cannot run."""
        assert self.config is not None
        troubles = []
        for job in jobs:
            point = composer.compose(job)
            refuse_side_by_side(self.config, point)
            troubles.append(trouble_of(point, job))
        refuse_typed(jobs, troubles, arguments)
        limits = sorted({text for job in jobs for text in job if text.startswith("timeout_s=")})
        if len(limits) > 1:
            raise ValueError(
                f"{' and '.join(limits)}: how long a point may take makes no other point of it; "
                "give one timeout_s for all"
            )


def jobs_of_grids(
    params: Mapping[str, Any],
    grids: Sequence[Mapping[str, Any]],
    arguments: Sequence[str],
    folders: Sequence[Path] = (CONFIG_FOLDER,),
    *,
    draw: int | None = None,
    seed: int = 0,
) -> tuple[list[list[str]], dict[str, int]]:
    """The overrides of every job, and how many points are left out for which reason.

    For each grid the product of all choices, the last key fastest; then all of them in the order
    of their repeat. A key that is given again keeps its place and takes the later choices. With
    `draw` only so many cases (see the module). Raises ValueError.
    """
    if draw is not None and draw < 1:
        raise ValueError(f"hydra.sweeper.draw={draw} must be at least 1, or null for all cases")
    parser = OverridesParser.create()
    given = {override.get_key_element() for override in parser.parse_overrides(list(arguments))}
    jobs: dict[frozenset[str], list[str]] = {}
    drawn: list[dict[frozenset[str], list[frozenset[str]]]] = []  # jobs of each case of each grid
    left_out: dict[str, int] = {}
    named = {name for grid in grids for name in _systems(parser, grid)}
    some_repeat = any("repeat" in grid for grid in grids)
    for grid in grids:
        own = _systems(parser, grid)
        texts = [f"{key}={value}" for key, value in [*params.items(), *grid.items()]]
        choices: dict[str, list[str]] = {}
        is_once = some_repeat and "repeat" not in {**params, **grid}
        for override in parser.parse_overrides([*texts, *arguments]):
            if not (is_once and override.get_key_element() == "repeat"):
                choices[override.get_key_element()] = _choices(override)
        if own:
            elsewhere = {f"system={name}" for name in named - own}
            choices["system"] = [name for name in choices["system"] if name not in elsewhere]
        cases: dict[frozenset[str], list[frozenset[str]]] = {}
        for job in itertools.product(*choices.values()):
            if reason := _misfit(job, given, folders):
                left_out[reason] = left_out.get(reason, 0) + 1
            elif frozenset(job) not in jobs:
                jobs[frozenset(job)] = list(job)
                case = (text for text in job if text.partition("=")[0] not in params)
                cases.setdefault(frozenset(case), []).append(frozenset(job))
        drawn.append(cases)
    if draw is not None:
        kept = _draw(drawn, draw, random.Random(seed))
        jobs = {key: job for key, job in jobs.items() if key in kept}
    return sorted(jobs.values(), key=_repeat_of), left_out


def _draw(
    grids: Sequence[Mapping[frozenset[str], list[frozenset[str]]]], number: int, rng: random.Random
) -> set[frozenset[str]]:
    """The jobs of so many cases: one of each grid in turn, as long as there are any."""
    shuffled = [rng.sample(list(cases), len(cases)) for cases in grids]
    in_turn = itertools.chain.from_iterable(itertools.zip_longest(*shuffled))
    cases = [case for case in in_turn if case is not None][:number]
    return {job for jobs in grids for case in cases for job in jobs.get(case, ())}


def _repeat_of(job: Sequence[str]) -> int:
    numbers = [text.removeprefix("repeat=") for text in job if text.startswith("repeat=")]
    return int(numbers[0]) if numbers and numbers[0].isdigit() else 0


def _systems(parser: OverridesParser, grid: Mapping[str, Any]) -> set[str]:
    """The systems that a grid names."""
    if "system" not in grid:
        return set()
    (override,) = parser.parse_overrides([f"system={grid['system']}"])
    return {choice.removeprefix("system=") for choice in _choices(override)}


def _misfit(job: Sequence[str], given: set[str], folders: Sequence[Path]) -> str | None:
    """A setting of an experiment that the job's system does not have.

    What was `given` by hand is left to Hydra, which refuses it.
    """
    values = dict(text.split("=", 1) for text in job if "=" in text)
    known = _known_settings(values.get("system", ""), tuple(folders))
    for key in values:
        if known and key.startswith("system.") and key not in given:
            name = key.removeprefix("system.")
            if name not in known:
                return f"system={values['system']} has no {name}"
    return None


@functools.cache
def _known_settings(system: str, folders: tuple[Path, ...]) -> frozenset[str]:
    """Once a sweep, not once a point."""
    return settings_of_system(system, folders)


def _choices(override: Override) -> list[str]:
    key = override.get_key_element()
    if not override.is_sweep_override():
        return [f"{key}={override.get_value_element_as_str()}"]
    if not override.is_discrete_sweep():
        raise HydraException(f"{key}: only lists of values, choice(), range() and glob() can sweep")
    return [f"{key}={value}" for value in override.sweep_string_iterator()]
