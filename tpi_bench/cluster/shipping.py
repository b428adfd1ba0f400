"""Block files from this host to the nodes that need them: each its own, once, by content."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from tqdm import tqdm

from tpi_bench.cluster.agent import stats_of
from tpi_bench.cluster.nodes import Place
from tpi_bench.cluster.ray_cluster import RayCluster
from tpi_bench.cluster.store import Content, Digests
from tpi_bench.contract.blocks import BlockFile
from tpi_bench.host import cache

_PIECE_BYTES = 8 << 20
_ANSWER_S = 60.0  # to a piece, and to the checksum of a gigabyte
_DIGESTS = "sent_block_files.json"


@dataclass(frozen=True, kw_only=True)
class Storage:
    """Where nodes keep block files. `share`: a node that sees this host's files reads those."""

    cache_dir: str | None
    limit_bytes: float
    share: bool

    def folder_of(self, place: Place) -> str | None:
        return self.cache_dir and self.cache_dir.replace("ADDRESS", place.node.address)


class Progress(Protocol):
    def update(self, n: float | None = 1) -> object: ...


def ship(
    cluster: RayCluster,
    places: Sequence[Place],
    blocks: Sequence[Sequence[BlockFile]],
    storage: Storage,
    cache_dir: Path,
) -> list[list[BlockFile]]:
    """Each rank's blocks with the paths that they have on its node. Raises ValueError, NodeLost.

    All nodes are asked for room before the first byte leaves.
    """
    digests = Digests(cache_dir / _DIGESTS)
    shipments = [
        _Shipment(cluster, place, sorted({block.path for block in own}), storage, digests)
        for place, own in zip(places, blocks, strict=True)
    ]
    digests.save()
    total = sum(shipment.missing_bytes for shipment in shipments)
    # Two devices of one node may need the same file, so a node's shipments come one after another.
    by_node: dict[str, list[_Shipment]] = {}
    for place, shipment in zip(places, shipments, strict=True):
        by_node.setdefault(place.node.id, []).append(shipment)
    with cache.progress(total, "sending block files") as bar, ThreadPoolExecutor() as threads:
        for sent in [threads.submit(_send_all, own, bar) for own in by_node.values()]:
            sent.result()
    return [
        [replace(block, path=shipment.paths[block.path]) for block in own]
        for shipment, own in zip(shipments, blocks, strict=True)
    ]


def _send_all(shipments: Sequence[_Shipment], bar: tqdm) -> None:
    for shipment in shipments:
        shipment.send(bar)


class _Shipment:
    """The files of one device. `paths` are those on its node, once they are sent."""

    def __init__(
        self,
        cluster: RayCluster,
        place: Place,
        files: Sequence[str],
        storage: Storage,
        digests: Digests,
    ) -> None:
        self._cluster, self._node, self._words = cluster, place.node, place.words
        self._folder, self._limit_bytes = storage.folder_of(place), storage.limit_bytes
        self.paths = {path: path for path in files}
        self._contents: dict[str, Content] = {}
        self._begun: list[int | None] = []
        if storage.share and self._ask("sees", stats_of(files)):
            return
        self._contents = {path: digests.of(path) for path in files}
        self._begun = self._lacking()

    @property
    def missing_bytes(self) -> int:
        pairs = zip(self._contents.values(), self._begun, strict=True)
        return sum(content.nbytes - begun for content, begun in pairs if begun is not None)

    def send(self, bar: Progress) -> None:
        if not self._contents:
            return
        for (path, content), begun in zip(self._contents.items(), self._lacking(), strict=True):
            if begun is not None:
                self._send(path, content, begun, bar)
        arrived = self._ask("seal", self._folder, list(self._contents.values()))
        self.paths = dict(zip(self._contents, arrived, strict=True))

    def _send(self, path: str, content: Content, begun: int, bar: Progress) -> None:
        with open(path, "rb") as file:
            file.seek(begun)
            offset = begun
            while piece := file.read(_PIECE_BYTES):
                self._ask("write", self._folder, content, offset, piece)
                offset += len(piece)
                bar.update(len(piece))
            if hasattr(os, "posix_fadvise"):
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        if content.nbytes == 0:
            self._ask("write", self._folder, content, 0, b"")
        self._ask("seal", self._folder, [content])

    def _lacking(self) -> list[int | None]:
        wanted = list(self._contents.values())
        found: Any = self._ask("lacking", self._folder, self._limit_bytes, wanted)
        return list(found)

    def _ask(self, method: str, *args: object) -> Any:
        """Its refusals begin with the node."""
        try:
            return self._cluster.call(self._node, method, *args, timeout_s=_ANSWER_S)
        except ValueError as error:
            text = str(error).replace("cache_dir=DIR", "testbed.node_cache_dir=DIR")
            raise type(error)(f"{self._words}: {text}") from None
