"""`hydra/launcher=ray`: the points of a sweep over the machines of a Ray cluster.

A point travels as its configuration, composed here, and its record comes back to the one who asked,
who stores it in its turn: what is seen of a sweep, its rows and how it is resumed are as without a
cluster. Only as many points are ahead of their turn as keep all cores busy.
"""

from __future__ import annotations

import datetime
import json
from collections import deque
from collections.abc import Sequence
from pathlib import Path

from hydra.core.plugins import Plugins
from omegaconf import DictConfig

from tpi_bench.app.composer import Composer
from tpi_bench.app.point_launcher import PointLauncher, Turns, settings_of
from tpi_bench.app.point_worker import PointWorker
from tpi_bench.app.tasks import awaits_record
from tpi_bench.cluster.agent import facts_of_this_machine
from tpi_bench.cluster.nodes import Node
from tpi_bench.cluster.pool import Pool, Task, fit_nodes
from tpi_bench.cluster.ray_cluster import NodeLost, RayWorkers, cluster_at
from tpi_bench.cluster.testbed import ClusterTestbed
from tpi_bench.measure.record import failure_record
from tpi_bench.measure.settings import Settings
from tpi_bench.report.rows import Record
from tpi_bench.report.text import in_one_line

NAME = "hydra_plugins.tpi_bench.RayLauncher"
_FACTS_S = 60.0
_AHEAD = 3  # points a core


def register() -> None:
    """Make it known to Hydra, which takes only names that begin as a plug-in's."""
    Plugins.instance().class_name_to_class[NAME] = RayLauncher


class RayLauncher(PointLauncher):
    def __init__(self, address: str = "auto", ship_code: bool = False) -> None:
        super().__init__()
        self._address, self._ship_code = address, ship_code

    def turns(
        self, composer: Composer, jobs: Sequence[Sequence[str]], first: int, folder: Path
    ) -> Turns:
        return _RayTurns(composer, jobs, first, folder, self._pool())

    def _pool(self) -> Pool:
        """Of all nodes with this program. Raises ValueError."""
        cluster, own = cluster_at(self._address, self._ship_code), facts_of_this_machine()
        cores: dict[Node, int] = {}

        def trouble_of(node: Node) -> str | None:
            try:
                facts = cluster.call(node, "facts", timeout_s=_FACTS_S)
            except NodeLost as error:
                return str(error)
            cores[node] = facts.cores
            if (facts.code, facts.python) == (own.code, own.python):
                return None
            return f"node {node.address} ({facts.host}) has another version, {facts.commit[:20]}"

        nodes = fit_nodes(cluster.nodes(), trouble_of)
        return Pool({node: cores[node] for node in nodes}, RayWorkers(cluster, PointWorker))


class _RayTurns(Turns):
    def __init__(
        self,
        composer: Composer,
        jobs: Sequence[Sequence[str]],
        first: int,
        folder: Path,
        pool: Pool,
    ) -> None:
        super().__init__(composer, jobs, first, folder)
        self._pool = pool
        self._unseen: deque[DictConfig] = deque()  # composed and not handed out

    def record_of(self, settings: Settings) -> Record | None:
        """None for a point over several nodes, which is run from here."""
        if isinstance(settings.testbed, ClusterTestbed) or settings.point in self._served:
            return None
        self._hand_out()
        if settings.point not in self._asked:
            return None
        self._served.add(settings.point)
        try:
            record: Record = self._pool.result(settings.point)
        except NodeLost as error:
            return failure_record(settings, in_one_line(str(error)), "device_lost")
        except Exception as error:  # of a node, where the point could not even be read
            return failure_record(settings, in_one_line(str(error)) or type(error).__name__)
        return record

    def close(self) -> None:
        self._pool.close()
        super().close()

    def _compose_next(self) -> DictConfig | None:
        config = super()._compose_next()
        if config is not None:
            self._unseen.append(config)
        return config

    def _hand_out(self) -> None:
        while self._pool.num_held < _AHEAD * self._pool.num_slots:
            if not self._unseen and self._compose_next() is None:
                return
            settings = settings_of(self._unseen.popleft())
            if settings is None or settings.point in self._asked:
                continue
            if isinstance(settings.testbed, ClusterTestbed):
                continue
            if not awaits_record(settings, self._folder):
                continue
            self._asked.add(settings.point)
            self._pool.submit(_task_of(settings))


def _task_of(settings: Settings) -> Task:
    """Points of one model are compared."""
    started = datetime.datetime.now(datetime.UTC).isoformat()
    is_measured = settings.testbed.measures_here
    group = json.dumps(settings.raw["model"], sort_keys=True) if is_measured else None
    return Task(settings.point, (settings.raw, settings.overrides, started), group)
