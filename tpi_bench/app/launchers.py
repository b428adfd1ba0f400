"""Other launchers than ours (`point_launcher.py`): each point as a program of its own.

`hydra/launcher=joblib` or `submitit_local` run several at once on this host, which is for virtual
time alone: measured points would take each other's cores. Hydra's `basic` runs them one after
another.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence

from hydra.core.utils import JobReturn
from hydra.experimental.callback import Callback
from hydra.types import HydraContext
from omegaconf import DictConfig, OmegaConf

from tpi_bench.app.quoting import quoted

_IN_THIS_PROCESS = (
    "hydra_plugins.tpi_bench.PointLauncher",
    "hydra_plugins.tpi_bench.RayLauncher",
    "hydra._internal.core_plugins.basic_launcher.BasicLauncher",
)
_ON_THIS_HOST = {
    "hydra_plugins.hydra_joblib_launcher.joblib_launcher.JoblibLauncher": "joblib",
    "hydra_plugins.hydra_submitit_launcher.submitit_launcher.LocalLauncher": "submitit_local",
}


class WatchesSweep(Callback):
    """What Hydra tells no callback. Workers have copies of one, this is of the original."""

    @abstractmethod
    def on_accepted(self) -> None:
        """No point is refused; the first is about to run."""

    @abstractmethod
    def on_worker_end(self, job_return: JobReturn) -> None:
        """A point has ended that a worker ran."""

    @abstractmethod
    def on_broken_off(self, *, is_stopped: bool) -> None:
        """The sweep does not come to its end: somebody stopped it, or it was refused or failed."""


def refuse_side_by_side(config: DictConfig, point: DictConfig) -> None:
    """Raises ValueError for a point that would be measured while others run on this host."""
    launcher = _ON_THIS_HOST.get(config.hydra.launcher._target_)
    cost = OmegaConf.select(point, "testbed.cost", default="real")
    if launcher is not None and cost != "modelled":
        raise ValueError(
            f"hydra/launcher={launcher} runs points side by side on this host, where measured ones "
            "slow each other down; leave the launcher out, or use testbed=virtual with "
            "testbed.cost=modelled for all points"
        )


def fix_folder(config: DictConfig) -> None:
    """Tell workers, which compose the configuration again, the folder of results of this sweep."""
    folder = f"hydra.sweep.dir={quoted(str(config.hydra.sweep.dir))}"
    config.hydra.overrides.hydra.append(folder)


def tell_of_workers(
    config: DictConfig, context: HydraContext, results: Sequence[JobReturn]
) -> None:
    """What workers found, to the callbacks of this process; nothing where it ran the points."""
    if config.hydra.launcher._target_ in _IN_THIS_PROCESS:
        return
    for watcher in watchers(context):
        for result in results:
            watcher.on_worker_end(result)


def watchers(context: HydraContext) -> list[WatchesSweep]:
    """Of the callbacks of this process."""
    return [each for each in context.callbacks.callbacks if isinstance(each, WatchesSweep)]
