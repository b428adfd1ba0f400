"""Block files on the disk, and their manifest: a JSON file with shapes, offsets and checksums.

The sharder writes and verifies them; a job carries the list that `rank_blocks` gives. What lies
where in a file is in `block_layout.py`.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Callable, Iterator
from io import BufferedWriter
from pathlib import Path
from typing import TypedDict

from tpi_bench.contract.blocks import BlockFile, TensorView
from tpi_bench.models.block_layout import Layout


class TensorPlace(TypedDict):
    """A `TensorView` as JSON."""

    shape: list[int]
    begin: int
    dtype: str


class FileEntry(TypedDict):
    """What the manifest keeps of one file: the block without its path, CRC-32 and stamp."""

    kind: str
    layer: int
    data_offset: int
    nbytes: int
    tensors: dict[str, TensorPlace]
    crc32: int
    stamp: list[int]


class Manifest(TypedDict):
    """`files` by name; `ranks[rank]` are (kind, layer, name of the file) in execution order."""

    complete: bool
    files: dict[str, FileEntry]
    ranks: list[list[tuple[str, int, str]]]


def write_block(
    path: Path,
    layout: Layout,
    data: Iterator[tuple[int, memoryview]],
    progress: Callable[[int], object],
) -> int:
    """Write one block file under a temporary name and rename it; returns the file's CRC-32.

    `data` yields (offset in the data section, contiguous bytes) in rising order.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(layout.header)
            crc, position = zlib.crc32(layout.header), 0
            for offset, chunk in data:
                padding = bytes(offset - position)
                for piece in (padding, chunk):
                    file.write(piece)
                    crc = zlib.crc32(piece, crc)
                position = offset + len(chunk)
                progress(len(chunk))
            tail = bytes(layout.nbytes - position)
            file.write(tail)
            crc = zlib.crc32(tail, crc)
            flush_and_drop(file)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    return crc


def flush_and_drop(file: BufferedWriter) -> None:
    """Onto the disk and out of the page cache, so that a first read comes from the disk."""
    file.flush()
    os.fsync(file.fileno())
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def file_crc(path: Path) -> int:
    """CRC-32 of a whole file, read in pieces."""
    crc = 0
    with path.open("rb") as file:
        while piece := file.read(4 << 20):
            crc = zlib.crc32(piece, crc)
    return crc


def manifest_entry(block: BlockFile, crc: int) -> FileEntry:
    """Of a file that was just written."""
    return {
        "kind": block.kind,
        "layer": block.layer,
        "data_offset": block.data_offset,
        "nbytes": block.nbytes,
        "tensors": {
            name: {"shape": list(view.shape), "begin": view.begin, "dtype": view.dtype}
            for name, view in block.tensors.items()
        },
        "crc32": crc,
        "stamp": _stamp(Path(block.path)),
    }


def _stamp(path: Path) -> list[int]:
    """Size and times of a file: while they stay, its bytes are taken to stay."""
    stat = path.stat()
    return [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns]


def damaged_files(folder: Path, manifest: Manifest) -> dict[str, str]:
    """Files that are not what the manifest says, with the reason. Refreshes stamps of moved ones.

    Only files whose size or times changed are read again; a changed time with the right checksum
    (a restored backup, a copy) is not damage.
    """
    named = {name for blocks in manifest["ranks"] for _, _, name in blocks}
    bad = dict.fromkeys(sorted(named - manifest["files"].keys()), "is missing")
    for name, entry in manifest["files"].items():
        path = folder / name
        if not path.is_file():
            bad[name] = "is missing"
            continue
        stamp = _stamp(path)
        if stamp == entry["stamp"]:
            continue
        if stamp[0] != entry["stamp"][0]:
            bad[name] = f"is truncated or extended ({stamp[0]} bytes, not {entry['stamp'][0]})"
        elif file_crc(path) != entry["crc32"]:
            bad[name] = "was altered (its checksum is wrong)"
        else:
            entry["stamp"] = stamp
    return bad


def rank_blocks(folder: Path, manifest: Manifest, rank: int) -> list[BlockFile]:
    """The blocks of one rank, in execution order; shared layers name one file many times."""
    blocks = []
    for kind, layer, name in manifest["ranks"][rank]:
        entry = manifest["files"][name]
        tensors = {
            n: TensorView(tuple(t["shape"]), t["begin"], t["dtype"])
            for n, t in entry["tensors"].items()
        }
        blocks.append(
            BlockFile(
                path=str(folder / name),
                kind=kind,
                layer=layer,
                data_offset=entry["data_offset"],
                nbytes=entry["nbytes"],
                tensors=tensors,
            )
        )
    return blocks
