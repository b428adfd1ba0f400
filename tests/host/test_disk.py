"""Reading files: direct reads into buffers, in the order in which they are wanted, and mappings."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tpi_bench.contract.blocks import PAGE, Extent
from tpi_bench.contract.runtime import BlockReadError
from tpi_bench.host import aio
from tpi_bench.host.disk import DirectReader
from tpi_bench.host.memory import anonymous_area

MB = 1 << 20
LARGE = 80 * MB  # more requests than may be in flight


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("disk") / "block"
    path.write_bytes(np.random.default_rng(1).bytes(LARGE))
    return path


@pytest.fixture
def reader(file: Path) -> Iterator[DirectReader]:
    reader = DirectReader()
    reader.open([str(file)])
    yield reader
    reader.close()


def test_bytes_come_to_their_buffer(file: Path, reader: DirectReader) -> None:
    out = anonymous_area(5 * MB)
    ends: list[int] = []
    read = reader.read(
        Extent(str(file), 3 * PAGE, 5 * MB), out, lambda start, end: ends.append(end)
    )
    read.wait()
    assert len(ends) == 1
    assert out.tobytes() == file.read_bytes()[3 * PAGE : 3 * PAGE + 5 * MB]
    assert reader.bytes_read == 5 * MB


def test_a_small_read_does_not_wait_for_all_that_is_read_ahead(
    file: Path, reader: DirectReader
) -> None:
    if reader.mode != "direct" or reader._aio is None:
        pytest.skip("the kernel does not read asynchronously here")
    ends: list[str] = []
    area = anonymous_area(LARGE + PAGE)
    path = str(file)
    large = reader.read(Extent(path, 0, LARGE), area, lambda start, end: ends.append("large"))
    small = reader.read(
        Extent(path, 7 * PAGE, PAGE), area[LARGE:], lambda start, end: ends.append("small")
    )
    small.wait()
    assert ends == ["small"]
    large.wait()
    whole = file.read_bytes()
    assert area[:LARGE].tobytes() == whole
    assert area[LARGE:].tobytes() == whole[7 * PAGE : 8 * PAGE]


def test_requests_that_are_first_come_before_those_that_are_queued(file: Path) -> None:
    """In their own order, and behind those that the disk has been asked for already."""
    try:
        reads = aio.KernelAio()
    except OSError:
        pytest.skip("the kernel does not read asynchronously here")
    number = os.open(file, os.O_RDONLY)
    area = anonymous_area(MB)
    done: list[int] = []

    def request(name: int) -> aio.ReadRequest:
        return aio.ReadRequest(number, area.ctypes.data, PAGE, 0, lambda result: done.append(name))

    reads.start([request(name) for name in range(aio._DEPTH + 2)])
    reads.start([request(100), request(101)], first=True)
    assert [queued.done for queued in reads._queue]
    names = []
    for queued in reads._queue:
        queued.done(PAGE)
        names.append(done.pop())
    assert names == [100, 101, aio._DEPTH, aio._DEPTH + 1]
    while not reads.is_idle:
        reads.notice(wait=True)
    assert sorted(done) == sorted([*range(aio._DEPTH + 2), 100, 101])
    reads.close()
    os.close(number)


def test_mappings(file: Path, reader: DirectReader) -> None:
    extent = Extent(str(file), 2 * PAGE, MB)
    expected = file.read_bytes()[2 * PAGE : 2 * PAGE + MB]
    once = reader.map(extent)
    assert reader.map(extent) is once
    assert reader.mode == "mapped files"
    anew = reader.map_anew(extent)
    assert anew is not reader.map_anew(extent)
    assert once.tobytes() == anew.tobytes() == expected
    assert reader.mode == "mapped files, anew for each use"
    with pytest.raises(BlockReadError, match="ends 4096 bytes early"):
        reader.map_anew(Extent(str(file), LARGE, PAGE))
