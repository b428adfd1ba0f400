"""`task=survey`: measure a cluster once, into a folder from which virtual time makes its twin."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

from tpi_bench.app.errors import ExitStatus
from tpi_bench.cluster.testbed import ClusterTestbed
from tpi_bench.measure.settings import Settings
from tpi_bench.measure.turns import measuring_turn


def survey_of_cluster(settings: Settings) -> None:
    """Raises ValueError where there is no cluster, or the folder is not empty."""
    from tpi_bench.measure.survey import NETWORK, NUM_ROUNDS, survey

    testbed = settings.testbed
    if not isinstance(testbed, ClusterTestbed):
        raise ValueError(
            "task=survey measures the nodes of a cluster; add testbed=cluster testbed.address="
            "HOST:PORT, or take task=calibrate for this machine alone"
        )
    folder = _folder_of(settings)
    places = testbed.places(anew=True)
    names = ", ".join(place.node.address for place in places)
    print(f"measuring {names}; leave the machines alone for two minutes", file=sys.stderr)
    with measuring_turn(testbed, wait=settings.wait):
        found = survey(testbed.cluster, places, testbed.node_cache_dir, NUM_ROUNDS)
    found.write(folder)
    if settings.report == "json":
        links = [vars(link) for link in found.links]
        said = {"status": "ok", "exit_reason": ExitStatus.OK.reason, "text": None}
        print(json.dumps(said | {"results": str(folder), "links": links}), flush=True)
    else:
        print(found.text())
    twin = f"device={folder}/devices/ --config-dir {folder} network={NETWORK}"
    print(f"the same in virtual time: testbed=virtual {twin}", file=sys.stderr)


def _folder_of(settings: Settings) -> Path:
    """A new one, or the one that was asked for."""
    asked = settings.raw["output_dir"]
    if asked is None:
        return Path(settings.results_dir) / time.strftime("survey-%Y%m%d-%H%M%S")
    folder = Path(asked)
    if folder.is_dir() and any(folder.iterdir()):
        raise ValueError(f"output_dir={folder} is not empty; a survey makes a folder of its own")
    return folder
