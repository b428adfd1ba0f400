"""This host's disk: what a round of a calibration reads, and what is made of it."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tpi_bench.contract.blocks import Extent
from tpi_bench.measure import disk_rates, probe
from tpi_bench.measure.disk_rates import _Read


def test_a_disk_is_read_alone_and_beside_products(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(disk_rates, "_DISK_BYTES", 8 << 20)
    monkeypatch.setattr(disk_rates, "_TURNS_S", 0.01)
    found = disk_rates.disk_rates(tmp_path)
    assert list(found) == [
        "disk_gb_per_s",
        "disk_gap_us",
        "disk_latency_us",
        "disk_computing_gb_per_s",
        "disk_probe_gb_per_s",
    ]
    assert found.pop("disk_gap_us") >= 0
    assert all(value > 0 for value in found.values())
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("small_us", "large_us", "gap_us"),
    [
        (100 + 500, 100 + 2000, 100),
        (500, 2400, 0),  # small reads were faster
        (900, 800, 400),  # large ones were: no more than half
    ],
)
def test_a_gap_is_what_reads_of_two_sizes_do_not_differ_by(
    small_us: int, large_us: int, gap_us: int
) -> None:
    small, large = _Read(1 << 20, 1e3 * small_us), _Read(4 << 20, 1e3 * large_us)
    gap_ns, gb_per_s = disk_rates._gap_and_rate(small, large)
    assert gap_ns / 1e3 == pytest.approx(gap_us)
    assert gb_per_s == pytest.approx((4 << 20) / (large_us - gap_us) / 1e3)


def test_a_disk_beside_computing_has_the_gap_that_it_has_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """All of it is read once before anything is measured. Of 4 MB, 2 ms are bytes and 0.1 the gap
    alone; 4 ms are beside computing.
    """
    once: list[Sequence[Extent]] = []

    def in_turns(given: Sequence[Extent]) -> dict[str, _Read]:
        assert once == [blocks]
        return {
            "probe": _Read(4e6, 1.6e6),
            "small": _Read(1e6, 0.6e6),
            "large": _Read(4e6, 2.1e6),
            "computing": _Read(4e6, 4.1e6),
        }

    blocks = [Extent("there", 0, 4 << 20)] * 4
    monkeypatch.setattr(disk_rates, "_in_turns", in_turns)
    monkeypatch.setattr(disk_rates, "_page_s", lambda blocks: 1e-4)
    monkeypatch.setattr(disk_rates, "_read_once", once.append)
    monkeypatch.setattr(disk_rates, "in_helper", lambda fn, *given: fn(*given))
    assert disk_rates._rates_of(blocks) == pytest.approx(
        {
            "disk_gb_per_s": 2.0,
            "disk_gap_us": 100,
            "disk_latency_us": 100,
            "disk_computing_gb_per_s": 1.0,
            "disk_probe_gb_per_s": 2.5,
        }
    )


def test_ways_to_read_take_turns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """5 MB of each way, of blocks of 2 and 3 MB, and another turn, as a turn takes 0.4 s here: as
    many reads at once as there are blocks, as a probe has them, else two; products only beside the
    last.
    """
    path = tmp_path / "blocks"
    path.write_bytes(bytes(5 << 20))
    blocks = [Extent(str(path), 0, 2 << 20), Extent(str(path), 2 << 20, 3 << 20)] * 2
    read: list[tuple[list[int], int, bool]] = []
    real = disk_rates._read_queued

    def read_all(
        reader: Any, area: Any, extents: Sequence[Extent], queued: int, products: Any
    ) -> None:
        sizes = [extent.nbytes >> 20 for extent in extents]
        read.append((sizes, queued, products is not None))
        real(reader, area, extents, queued, products)

    monkeypatch.setattr(disk_rates, "_read_queued", read_all)
    clock_ns = itertools.count(0, 100_000_000)
    clock = SimpleNamespace(monotonic_ns=lambda: next(clock_ns))
    monkeypatch.setattr(disk_rates, "time", clock)
    monkeypatch.setattr(disk_rates, "_TURNS_S", 0.5)
    monkeypatch.setattr(disk_rates, "_TURN_BYTES", 5 << 20)
    threads = torch.get_num_threads()
    found = disk_rates._in_turns(blocks)
    torch.set_num_threads(threads)
    turn = [
        ([2, 3], 4, False),
        ([1] * 5, 2, False),
        ([2, 3], 2, False),
        ([2, 3], 2, True),
    ]
    assert read == [*turn, *turn]
    sizes = {way: each.nbytes / (1 << 20) for way, each in found.items()}
    assert sizes == {"probe": 2.5, "small": 1.0, "large": 2.5, "computing": 2.5}
    assert [each.taken_ns for each in found.values()] == [50e6, 20e6, 50e6, 50e6]


def test_a_disk_is_read_by_the_block_files_that_are_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of one model at a time, in blocks of 8 to 16 MB; models with few are left out."""
    monkeypatch.setattr(disk_rates, "_DISK_BYTES", 32 << 20)
    monkeypatch.setattr(disk_rates, "_write_random", None)
    for model, sizes in {
        "one": (9, 13),
        "other": (30, 21),
        "small": (3, 7, 7, 7),
        "few": (15,),
    }.items():
        folder = tmp_path / "shards" / model
        folder.mkdir(parents=True)
        for number, size in enumerate(sizes):
            (folder / f"rank0.{number}.safetensors").write_bytes(bytes(size << 20))
    read: list[list[Extent]] = []
    monkeypatch.setattr(disk_rates, "_rates_of", lambda blocks: read.append(blocks) or {})
    for _ in range(50):
        disk_rates.disk_rates(tmp_path)
    found = {
        Path(blocks[0].path).parent.name: [
            (Path(b.path).name[6], b.offset >> 20, b.nbytes >> 20) for b in blocks
        ]
        for blocks in read
    }
    assert found == {
        "one": [("0", 0, 9), ("1", 0, 13)],
        "other": [("0", 0, 16), ("0", 16, 14), ("1", 0, 16)],
    }


def test_a_disk_is_probed_for_as_long_as_is_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three passes of 1, 2, 3 ... s at least; where no file is there, none."""
    path = tmp_path / "blocks"
    path.write_bytes(bytes(8192))
    extents = [Extent(str(path), 0, 4096), Extent(str(path), 4096, 4096)]
    for go_on_s, taken_s in ((0.0, [1, 2, 3]), (6.0, [1, 2, 3]), (6.5, [1, 2, 3, 4])):
        times = itertools.count(1)
        monkeypatch.setattr(probe, "seconds", lambda fn, times=times: float(next(times)))
        found = probe.disk_passes(extents, go_on_s)
        assert found == (8192, taken_s)
        assert found.best_bps == 8192
        assert found.mean_bps == 8192 * len(taken_s) / sum(taken_s)
    assert found.spread == 1 - 1 / 2.5
    none = probe.disk_passes([Extent(str(tmp_path / "no"), 0, 4096)], 9.0)
    assert none.taken_s == []
    assert math.isnan(none.best_bps)
    assert math.isnan(none.mean_bps)
    assert none.spread == 0
