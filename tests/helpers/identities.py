"""Sides of a run that talk under TLS, as agents and the launcher make them."""

from __future__ import annotations

from tpi_bench.cluster.identities import make_identity
from tpi_bench.processes.tls import Credentials, Tls


def sides(count: int) -> list[Tls]:
    """One a rank."""
    identities = [make_identity(rank) for rank in range(count)]
    certificates = tuple(identity.certificate for identity in identities)
    return [
        Tls(Credentials(rank=rank, key=identity.key, certificates=certificates))
        for rank, identity in enumerate(identities)
    ]
