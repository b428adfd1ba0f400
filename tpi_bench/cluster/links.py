"""All ways between the nodes of a job, measured one after another: none disturbs another.

With certificates each is measured as it is and under TLS, in turns: what the encryption costs.
"""

from __future__ import annotations

import secrets
import statistics
from collections.abc import Sequence
from dataclasses import replace

from tpi_bench.cluster.link_probe import pairs_of
from tpi_bench.cluster.nodes import Place
from tpi_bench.cluster.ray_cluster import RayCluster
from tpi_bench.contract.job import LinkReading
from tpi_bench.contract.runtime import DeviceLost

_OPEN_S = 10.0
_ASK_S = 30.0
_TURNS = 2

Certificates = tuple[str, ...]


def measured_links(
    cluster: RayCluster, places: Sequence[Place], certificates: Certificates = ()
) -> list[LinkReading]:
    """Raises NodeLost, or ValueError for nodes that do not reach each other."""
    found = []
    for src, dst in pairs_of([place.host for place in places]):
        if not certificates:
            found.append(_reading(cluster, places, src, dst, ()))
            continue
        turns = [
            [_reading(cluster, places, src, dst, each) for each in ((), certificates)]
            for _ in range(_TURNS)
        ]
        found.append(_beside([plain for plain, _ in turns], [under for _, under in turns]))
    return found


def _beside(plain: Sequence[LinkReading], under: Sequence[LinkReading]) -> LinkReading:
    """Medians of both, and the least and the most that the link gave."""
    return replace(
        plain[0],
        round_trip_s=statistics.median(each.round_trip_s for each in plain),
        round_trip_min_s=min(each.round_trip_min_s for each in plain),
        bandwidth_mbps=statistics.median(each.bandwidth_mbps for each in plain),
        tls_round_trip_s=statistics.median(each.round_trip_s for each in under),
        tls_bandwidth_mbps=statistics.median(each.bandwidth_mbps for each in under),
    )


def _reading(
    cluster: RayCluster, places: Sequence[Place], src: int, dst: int, certificates: Certificates
) -> LinkReading:
    here, there, secret = places[src], places[dst], secrets.token_bytes(32)
    try:
        port = cluster.call(
            there.node, "open_link", there.host, dst, src, secret, certificates, timeout_s=_OPEN_S
        )
        place = (there.host, port)
        found: LinkReading = cluster.call(
            here.node,
            "ask_link",
            src,
            dst,
            place,
            here.host,
            secret,
            certificates,
            timeout_s=_ASK_S,
        )
    except (DeviceLost, OSError) as error:
        reason = error.reason if isinstance(error, DeviceLost) else str(error)
        raise ValueError(
            f"{there.words} {reason} from {here.words} at {there.host}; devices talk over "
            "ports that the system chooses, which no firewall between them may close"
        ) from None
    return found
