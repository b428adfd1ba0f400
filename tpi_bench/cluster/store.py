"""Block files on a node, kept by their content: each is sent once, whatever model or plan asks.

A file is named by its SHA-256. What is on its way is a `.part`, to which more is added later; its
checksum is compared when it is whole. Beyond the limit the files that were used longest ago go.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tpi_bench.host import cache

_PIECE_BYTES = 4 << 20
_SPARE_BYTES = 64 << 20  # of a disk, left free


@dataclass(frozen=True)
class Content:
    """A file by what is in it."""

    sha256: str
    nbytes: int


class BlockStore:
    """Below `folder`, which may hold `limit_bytes`. Raises CacheError where it cannot be used."""

    def __init__(self, folder: Path, limit_bytes: float) -> None:
        self._folder = folder
        self._limit_bytes = limit_bytes
        with cache.explain_write_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)

    def path(self, content: Content) -> Path:
        return self._folder / content.sha256

    def lacking(self, wanted: Sequence[Content]) -> list[int | None]:
        """Of each, how many bytes are here already; None where it is whole, which is noted as use.

        Makes room for the rest, or raises CacheError before anything is sent.
        """
        found = [self._begun(content) for content in wanted]
        pairs = list(zip(wanted, found, strict=True))
        need = {c.sha256: c.nbytes - begun for c, begun in pairs if begun is not None}
        self._make_room(sum(need.values()), {content.sha256 for content in wanted})
        return found

    def write(self, content: Content, offset: int, piece: bytes) -> None:
        """The next bytes of a file; what is behind `offset` is written anew."""
        part = self._part(content)
        with cache.explain_write_errors(self._folder), part.open("ab") as file:
            file.truncate(offset)
            file.write(piece)

    def seal(self, content: Content) -> None:
        """It is all there. Raises ValueError, and forgets it, where its checksum is another."""
        part = self._part(content)
        if not part.is_file() and self.path(content).is_file():  # somebody else has sent it too
            return
        if _sha256(part) != content.sha256:
            part.unlink()
            raise ValueError(f"a block file arrived altered ({content.sha256[:12]}); send it again")
        with cache.explain_write_errors(self._folder):
            with part.open("rb") as file:
                os.fsync(file.fileno())
                if hasattr(os, "posix_fadvise"):  # a first read comes from the disk
                    os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            part.replace(self.path(content))

    def _part(self, content: Content) -> Path:
        return self._folder / f"{content.sha256}.part"

    def _begun(self, content: Content) -> int | None:
        whole, part = self.path(content), self._part(content)
        if whole.is_file() and whole.stat().st_size == content.nbytes:
            os.utime(whole)
            return None
        return min(part.stat().st_size, content.nbytes) if part.is_file() else 0

    def _make_room(self, nbytes: int, wanted: set[str]) -> None:
        """Throw out what was used longest ago and is not wanted."""
        if not nbytes:
            return
        held = [(path, path.stat()) for path in self._folder.iterdir() if path.is_file()]
        over = sum(stat.st_size for _, stat in held) + nbytes - self._limit_bytes
        for path, stat in sorted(held, key=lambda each: each[1].st_mtime_ns):
            if over <= 0:
                break
            if path.name.removesuffix(".part") not in wanted:
                path.unlink()
                over -= stat.st_size
        if over > 0:
            raise cache.CacheError(
                f"block files take {over / 1e9:.3g} GB more than testbed.node_cache_gb="
                f"{self._limit_bytes / 1e9:g} allows; raise it"
            )
        cache.require_space(self._folder, nbytes + _SPARE_BYTES, "a share of the model")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class Digests:
    """Checksums of files that stay as they are, each computed once. Kept in a JSON file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._known = _read(path)

    def of(self, path: str) -> Content:
        stat = os.stat(path)
        stamp = [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns]
        entry = self._known.get(path)
        if entry is None or entry[:3] != stamp:
            entry = self._known[path] = [*stamp, _sha256(Path(path))]
        return Content(entry[3], stat.st_size)

    def save(self) -> None:
        """For the next time; files that are gone are forgotten."""
        with cache.explain_write_errors(self._path.parent):
            cache.write_json(self._path, {k: v for k, v in self._known.items() if Path(k).exists()})


def _read(path: Path) -> dict[str, list]:
    import json

    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
