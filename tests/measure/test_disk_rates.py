"""This host's disk: what a round of a calibration reads, and what is made of it."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path

import pytest

from tpi_bench.contract.blocks import Extent
from tpi_bench.measure import at_once, disk_rates


def test_a_disk_is_read_alone_and_beside_products(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(disk_rates, "_DISK_BYTES", 8 << 20)
    monkeypatch.setattr(disk_rates, "_READING_S", 0.05)
    found = disk_rates.disk_rates(tmp_path)
    names = ["disk_gb_per_s", "disk_gap_us", "disk_latency_us", "disk_computing_gb_per_s"]
    assert list(found)[:4] == names
    gaps = {name: found.pop(name) for name in list(found) if "gap" in name}
    assert all(value >= 0 for value in gaps.values())
    assert all(value > 0 for value in found.values())
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("num_readers", [1, 2])
@pytest.mark.parametrize(
    ("small_us", "large_us", "gap_us"),
    [
        (100 + 500, 100 + 2000, 100),
        (500, 2400, 0),  # small reads were faster
        (900, 800, 400),  # large ones were: no more than half
    ],
)
def test_a_gap_is_what_reads_of_two_sizes_do_not_differ_by(
    small_us: int,
    large_us: int,
    gap_us: int,
    num_readers: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """First all read small ones, then large ones."""
    took_us = {1: small_us, 4: large_us}
    read: list[set[int]] = []

    def together(
        fn: object, given: list[tuple[list[Extent], bool]], take_s: float
    ) -> tuple[list[list[int]], int, int]:
        all_ends = []
        for blocks, _ in given:
            sizes = [block.nbytes >> 20 for block in blocks]
            read.append(set(sizes))
            each_us = (len(given) * took_us[size] for size in sizes)
            all_ends.append([1000 * us for us in itertools.accumulate(each_us, initial=0)])
        return all_ends, 0, all_ends[0][-1]

    monkeypatch.setattr(at_once, "at_once", together)
    blocks = [Extent("there", number << 22, 4 << 20) for number in range(9)]
    gap_ns, gb_per_s = disk_rates._gap_and_rate([blocks] * num_readers)
    assert read == [{1}] * num_readers + [{4}] * num_readers
    assert gap_ns / 1e3 == pytest.approx(gap_us)
    assert gb_per_s == pytest.approx((4 << 20) / (large_us - gap_us) / 1e3)


def test_a_disk_beside_computing_has_the_gap_that_it_has_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """All of it is read once before anything is measured."""
    monkeypatch.setattr(disk_rates, "_gap_and_rate", lambda readers: (1e5 * len(readers), 2.0))
    monkeypatch.setattr(disk_rates, "together", lambda fn, given, take_s: 1 / 4.2943e6)
    monkeypatch.setattr(disk_rates, "_page_s", lambda blocks: 1e-4)
    blocks = [Extent("there", 0, 4 << 20)] * 4
    once: list[Sequence[Extent]] = []
    probed = iter([(3e9, 0.1), (2e9, 0.1)])  # before and after

    def probe(given: Sequence[Extent]) -> tuple[float, float]:
        assert once == [blocks]
        return next(probed)

    monkeypatch.setattr(disk_rates, "_read_once", once.append)
    monkeypatch.setattr(disk_rates, "disk_bandwidth", probe)
    monkeypatch.setattr(disk_rates, "in_helper", lambda fn, *given: fn(*given))
    monkeypatch.setattr(disk_rates, "available_cpus", lambda: [0, 1])
    found = disk_rates._rates_of(blocks)
    assert found["disk_computing_gb_per_s"] == pytest.approx(1.0, rel=1e-3)
    assert (found["disk_gap_us"], found["disk_shared_gap_us"]) == (100, 200)
    assert (found["disk_gb_per_s"], found["disk_shared_gb_per_s"]) == (2.0, 2.0)
    assert found["disk_probe_gb_per_s"] == 2.5


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
