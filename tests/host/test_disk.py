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


class ScriptedAio(aio.KernelAio):
    """A kernel that starts what it is given, and ends what the test says."""

    def __init__(self) -> None:
        super().__init__()
        self.ended: list[str] = []

    def _call(self, number: int, *arguments: int) -> int:
        if number == getattr(self, "_submit", None):
            return arguments[1]
        if number != getattr(self, "_getevents", None):
            return super()._call(number, *arguments)
        for index, name in enumerate(self.ended):
            slot = next(slot for slot, each in self._flying.items() if name_of(each) == name)
            aio._EVENT.pack_into(self._events, index * aio._EVENT.size, slot, 0, each_bytes(), 0)
        count, self.ended = len(self.ended), []
        return count

    @property
    def started(self) -> list[str]:
        return [name_of(each) for each in self._flying.values()]


def each_bytes() -> int:
    return 2 * MB


def name_of(request: aio.ReadRequest) -> str:
    return f"{request.block}{request.offset // each_bytes()}"


def block(name: str, num_pieces: int) -> list[aio.ReadRequest]:
    each, whole = each_bytes(), num_pieces * each_bytes()
    starts = range(0, whole, each)
    return [aio.ReadRequest(0, 0, each, at, lambda result: None, name, whole) for at in starts]


@pytest.fixture
def scripted() -> ScriptedAio:
    try:
        return ScriptedAio()
    except OSError:
        pytest.skip("the kernel does not read asynchronously here")


def test_a_block_is_not_slowed_down_by_those_behind_it(scripted: ScriptedAio) -> None:
    """Others begin beside the last 4 MB of the oldest, and none while somebody waits for it."""
    scripted.start(block("a", 8))
    scripted.start(block("b", 8))
    assert scripted.started == [f"a{number}" for number in range(8)]
    scripted.ended = [f"a{number}" for number in range(5)]
    scripted.notice(wait=False)
    assert scripted.started == ["a5", "a6", "a7"]
    scripted.ended = ["a5"]
    scripted.notice(wait=False)
    assert scripted.started == ["a6", "a7", "b0"]
    scripted.ended = ["a6"]
    scripted.notice(wait=True)
    assert scripted.started == ["a7", "b0"]
    scripted.ended = ["a7"]
    scripted.notice(wait=True)
    assert scripted.started == [f"b{number}" for number in range(8)]


def test_beside_a_small_block_others_begin_with_its_last_quarter(scripted: ScriptedAio) -> None:
    scripted.start(block("a", 4))
    scripted.start(block("b", 1))
    scripted.ended = ["a0", "a1"]
    scripted.notice(wait=False)
    assert scripted.started == ["a2", "a3"]
    scripted.ended = ["a2"]
    scripted.notice(wait=False)
    assert scripted.started == ["a3", "b0"]
    scripted.ended = ["a3"]
    scripted.start(block("c", 1))  # b is a single piece
    assert scripted.started == ["b0"]
    scripted.ended = ["b0"]
    scripted.notice(wait=False)
    assert scripted.started == ["c0"]


def test_the_disk_is_told_how_much_is_wanted_together(
    file: Path, reader: DirectReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader.open([str(file)])
    if reader._aio is None or reader.mode != "direct":
        pytest.skip("the kernel does not read asynchronously here")
    told: list[int] = []
    start = reader._aio.start

    def started(requests: list[aio.ReadRequest], first: bool) -> None:
        told.extend(request.block_bytes for request in requests)
        start(requests, first)

    monkeypatch.setattr(reader._aio, "start", started)
    nbytes = 3 * MB
    reader.read(Extent(str(file), 0, nbytes), anonymous_area(nbytes), lambda a, b: None).wait()
    assert told == [nbytes, nbytes]  # in pieces of 2 MB


def test_who_computes_next_has_the_disk_at_work_meanwhile(scripted: ScriptedAio) -> None:
    for name in "abc":
        scripted.start(block(name, 3))
    assert scripted.started == ["a0", "a1", "a2"]
    scripted.run_ahead()
    assert scripted.started == ["a0", "a1", "a2", "b0", "b1", "b2", "c0", "c1"]
    assert len(scripted.started) == aio._DEPTH


def test_requests_that_are_first_come_before_those_that_are_queued(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
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

    monkeypatch.setattr(reads, "notice", lambda wait: None)  # none of them is known to have ended
    reads.start([request(name) for name in range(aio._DEPTH + 2)])
    reads.start([request(100), request(101)], first=True)
    monkeypatch.undo()
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
