"""All ways between the nodes of a job, measured one after another: none disturbs another."""

from __future__ import annotations

import secrets
from collections.abc import Sequence

from tpi_bench.cluster.link_probe import pairs_of
from tpi_bench.cluster.nodes import Place
from tpi_bench.cluster.ray_cluster import RayCluster
from tpi_bench.contract.job import LinkReading
from tpi_bench.contract.runtime import DeviceLost

_OPEN_S = 10.0
_ASK_S = 30.0


def measured_links(cluster: RayCluster, places: Sequence[Place]) -> list[LinkReading]:
    """Raises NodeLost, or ValueError for nodes that do not reach each other."""
    found = []
    for src, dst in pairs_of([place.host for place in places]):
        here, there, secret = places[src], places[dst], secrets.token_bytes(32)
        port = cluster.call(
            there.node, "open_link", there.host, dst, src, secret, timeout_s=_OPEN_S
        )
        place = (there.host, port)
        try:
            found.append(
                cluster.call(
                    here.node, "ask_link", src, dst, place, here.host, secret, timeout_s=_ASK_S
                )
            )
        except (DeviceLost, OSError) as error:
            reason = error.reason if isinstance(error, DeviceLost) else str(error)
            raise ValueError(
                f"{there.words} {reason} from {here.words} at {there.host}; devices talk over "
                "ports that the system chooses, which no firewall between them may close"
            ) from None
    return found
