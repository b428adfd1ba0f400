"""Hydra's launcher for the points of a sweep: one after another, in this process.

Points of modelled virtual time, which need nothing of this host but its cores, are computed ahead
of their turn, side by side; what is seen of them, their order and their rows are as if they were
not. Where a point that is measured comes next, none is in flight any more.
"""

from __future__ import annotations

import contextlib
import functools
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, configure_log, run_job, setup_globals
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, open_dict
from omegaconf.errors import OmegaConfBaseException

from tpi_bench.app.compose import build_settings
from tpi_bench.app.composer import Composer, SharesComposer
from tpi_bench.app.tasks import awaits_record
from tpi_bench.measure.settings import Settings
from tpi_bench.report.rows import Record

if TYPE_CHECKING:
    from tpi_bench.measure.side_by_side import SideBySide

NAME = "hydra_plugins.tpi_bench.PointLauncher"


def register() -> None:
    """Make it known to Hydra, which takes only names that begin as a plug-in's."""
    Plugins.instance().class_name_to_class[NAME] = PointLauncher


class PointLauncher(Launcher, SharesComposer):
    """`hydra/launcher=points`, which is the default. Its task is `tasks.run_task`."""

    def __init__(self) -> None:
        self.config: DictConfig | None = None
        self.hydra_context: HydraContext | None = None
        self.task_function: Callable[..., Any] | None = None  # also takes `records`

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        self.config = config
        self.hydra_context = hydra_context
        self.task_function = task_function

    def launch(
        self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int
    ) -> Sequence[JobReturn]:
        assert self.config is not None
        assert self.hydra_context is not None
        run_task: Any = self.task_function
        setup_globals()
        logs = self.config.hydra.hydra_logging, self.config.hydra.verbose
        configure_log(*logs)
        composer = self.composer or Composer(self.hydra_context.config_loader, self.config)
        found = []
        folder = Path(self.config.hydra.sweep.dir)
        with contextlib.closing(
            self.turns(composer, job_overrides, initial_job_idx, folder)
        ) as turns:
            task = functools.partial(run_task, records=turns)
            for config in turns:
                ended = run_job(
                    hydra_context=self.hydra_context,
                    task_function=task,
                    config=config,
                    job_dir_key="hydra.sweep.dir",
                    job_subdir_key="hydra.sweep.subdir",
                )
                ended.cfg = ended.hydra_cfg = None  # of ten thousand points two gigabytes
                found.append(ended)
                configure_log(*logs)
        return found

    def turns(
        self, composer: Composer, jobs: Sequence[Sequence[str]], first: int, folder: Path
    ) -> Turns:
        """Where records come from that are computed ahead of their turn."""
        return Turns(composer, jobs, first, folder)


class Turns:
    """Points in their order. Records of modelled ones come from workers that look ahead."""

    def __init__(
        self, composer: Composer, jobs: Sequence[Sequence[str]], first: int, folder: Path
    ) -> None:
        self._composer = composer
        self._jobs = iter(enumerate(jobs, first))
        self._folder = folder
        self._composed: deque[DictConfig] = deque()  # ahead of their turn
        self._asked: set[str] = set()
        self._served: set[str] = set()
        self._workers: SideBySide | None = None
        self._records: Iterator[Record] = iter(())

    def __iter__(self) -> Iterator[DictConfig]:
        while self._composed or self._compose_next() is not None:
            yield self._composed[0]
            self._composed.popleft()

    def record_of(self, settings: Settings) -> Record | None:
        """Of the point whose turn it is; None where it is to be measured now."""
        if settings.testbed.measures_here or settings.point in self._served:
            return None
        if settings.point not in self._asked:
            self._records = self._side_by_side().records(self._modelled())
        for record in self._records:
            self._served.add(record.run.point)
            if record.run.point == settings.point:
                return record
        return None

    def close(self) -> None:
        """End the workers, also in the middle of a point."""
        if self._workers is not None:
            self._workers.end()

    def _side_by_side(self) -> SideBySide:
        from tpi_bench.measure.side_by_side import SideBySide

        if self._workers is None:
            self._workers = SideBySide()
        return self._workers

    def _modelled(self) -> Iterator[Settings]:
        """The points from this one on, up to one that is measured."""
        for config in self._from_here_on():
            settings = settings_of(config)
            if settings is None or settings.point in self._asked:
                continue
            if not awaits_record(settings, self._folder):
                continue
            if settings.testbed.measures_here:
                return
            self._asked.add(settings.point)
            yield settings

    def _from_here_on(self) -> Iterator[DictConfig]:
        """Composed as far as they are asked for."""
        yield from list(self._composed)
        while (config := self._compose_next()) is not None:
            yield config

    def _compose_next(self) -> DictConfig | None:
        """One more configuration, which waits for its turn; None where there is none."""
        number, overrides = next(self._jobs, (0, None))
        if overrides is None:
            return None
        config = self._composer.compose(overrides)
        with open_dict(config):
            config.hydra.job.id = number
            config.hydra.job.num = number
        self._composed.append(config)
        return config


def settings_of(config: DictConfig) -> Settings | None:
    """None for what cannot be: that is told when its turn comes."""
    try:
        return build_settings(config, config.hydra.overrides.task)
    except (ValueError, OSError, OmegaConfBaseException):
        return None
