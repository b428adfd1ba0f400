"""The twin of a cluster: what each node can do and what each link gives, as virtual time takes it.

`task=survey` measures it once and writes a folder: `devices/`, a calibration a node in the order of
ranks (`device=FOLDER/devices/`), and `network/survey.yaml` (`--config-dir FOLDER network=survey`).
Nodes are calibrated side by side, those that are one machine once, with the threads that a device
has there; links one after another.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tpi_bench.cluster.links import measured_links
from tpi_bench.cluster.nodes import Place, threads_of
from tpi_bench.cluster.ray_cluster import NodeLost, RayCluster
from tpi_bench.contract.job import LinkReading
from tpi_bench.contract.network import NetworkConfig
from tpi_bench.host import cache
from tpi_bench.measure.calibrate import calibrate, profile_of

NUM_ROUNDS = 3  # of a calibration: a survey takes less than two minutes
_CALIBRATE_S = 900.0
NETWORK = "survey"


@dataclass(frozen=True, kw_only=True)
class Survey:
    """One calibration a place, and the links between them."""

    places: Sequence[Place]
    calibrations: Sequence[dict[str, Any]]
    links: Sequence[LinkReading]

    def write(self, folder: Path) -> None:
        """Raises CacheError where the folder cannot be written."""
        devices, network = folder / "devices", folder / "network"
        with cache.explain_write_errors(folder):
            for part in (devices, network):
                part.mkdir(parents=True, exist_ok=True)
            for rank, found in enumerate(self.calibrations):
                cache.write_json(devices / f"{self.name_of(rank)}.json", found)
            (network / f"{NETWORK}.yaml").write_text(self._network_yaml())

    def name_of(self, rank: int) -> str:
        """Of a device, so that names are in the order of ranks."""
        return f"node{rank}_{re.sub(r'[^A-Za-z0-9]', '_', self.places[rank].facts.host)}"

    def text(self) -> str:
        """For people."""
        lines = [f"{'node':22}{'memory GB/s':>12}{'disk GB/s':>11}{'fp32 GFLOPS':>12}"]
        for rank, place in enumerate(self.places):
            found = self.calibrations[rank]
            most = found["threads"][max(found["threads"], key=int)]
            rates = {row["name"]: row["typical"] for row in [*found["host"], *most]}
            numbers = [rates.get(name, 0.0) for name in _SHOWN]
            lines.append(f"{place.node.address:22}" + "".join(f"{n:11.4g} " for n in numbers))
        lines += ["", f"{'from':>5}{'to':>4}{'round trip ms':>15}{'Mbit/s':>9}"]
        for link in self.links:
            trip_ms = link.round_trip_s * 1e3
            lines.append(f"{link.src:5}{link.dst:4}{trip_ms:15.3f}{link.bandwidth_mbps:9.0f}")
        return "\n".join(lines)

    def mesh_links(self) -> list[list[float]]:
        """[device, device, ms one way, Mbit/s]: the least round trip, and the slower direction."""
        by_way = {(link.src, link.dst): link for link in self.links}
        found: list[list[float]] = []
        for (src, dst), there in by_way.items():
            back = by_way.get((dst, src))
            if src < dst and back is not None:
                one_way_ms = 500 * min(there.round_trip_min_s, back.round_trip_min_s)
                mbps = min(there.bandwidth_mbps, back.bandwidth_mbps)
                found.append([src, dst, round(one_way_ms, 4), round(mbps, 1)])
        return found

    def _network_yaml(self) -> str:
        names = ", ".join(f"{rank} {p.node.address}" for rank, p in enumerate(self.places))
        target = f"{NetworkConfig.__module__}.{NetworkConfig.__qualname__}"
        links = self.mesh_links()
        values = {"_target_": target, "topology": "mesh", "mesh_links": links}
        if not links:  # a single node
            values = {"_target_": target, "topology": "none"}
        head = f"# Links of a cluster as task=survey measured them: {names}.\n"
        return head + yaml.safe_dump(values, sort_keys=False, default_flow_style=None)


_SHOWN = ("memory_gb_per_s", "disk_gb_per_s", "peak_gflops")


def survey(
    cluster: RayCluster, places: Sequence[Place], node_cache_dir: str | None, num_rounds: int
) -> Survey:
    """Raises ValueError for a node that is lost meanwhile, or cannot be calibrated."""
    first = {place.facts.machine: place for place in reversed(places)}

    def calibrated(place: Place) -> dict[str, Any]:
        folder = node_cache_dir and node_cache_dir.replace("ADDRESS", place.node.address)
        share = threads_of(places, places.index(place))
        found: dict[str, Any] = cluster.call(
            place.node, "call", calibrated_here, (folder, num_rounds, share), timeout_s=_CALIBRATE_S
        )
        return found | {"threads": {str(share): found["threads"][str(share)]}}

    try:
        links = measured_links(cluster, places)
        with ThreadPoolExecutor(max(1, len(first))) as threads:
            by_machine = dict(zip(first, threads.map(calibrated, first.values()), strict=True))
    except NodeLost as error:
        raise ValueError(str(error)) from None
    for machine, place in first.items():
        refuse_unusable(place, by_machine[machine])
    found = [by_machine[place.facts.machine] for place in places]
    return Survey(places=places, calibrations=found, links=links)


def refuse_unusable(place: Place, found: dict[str, Any]) -> None:
    """Raises ValueError for a calibration of which no profile can be made."""
    threads = max(found["threads"], key=int)
    try:
        profile_of(found, place.node.address, threads, found["machine"]["memory_gb"])
    except ValueError as error:
        raise ValueError(
            f"{place.words} was disturbed while it was calibrated ({error}); leave the machines "
            "alone and survey again"
        ) from None


def calibrated_here(folder: str | None, num_rounds: int, threads: int) -> dict[str, Any]:
    """On a node."""
    return calibrate(cache.cache_folder(folder), num_rounds, threads)
