"""Block files on a node: each once, whole or resumed, checked, within a limit."""

from __future__ import annotations

import hashlib
import math
import os
from pathlib import Path

import pytest

from tpi_bench.cluster.store import BlockStore, Content, Digests
from tpi_bench.host import cache


def content_of(data: bytes) -> Content:
    return Content(hashlib.sha256(data).hexdigest(), len(data))


def put(store: BlockStore, data: bytes) -> Content:
    content = content_of(data)
    store.write(content, 0, data)
    store.seal(content)
    return content


def test_what_is_here_is_not_asked_for_again(tmp_path: Path) -> None:
    store = BlockStore(tmp_path, math.inf)
    kept, other = put(store, b"kept" * 1000), content_of(b"other")
    assert store.lacking([kept, other]) == [None, 0]
    assert store.path(kept).read_bytes() == b"kept" * 1000


def test_what_was_broken_off_goes_on_where_it_was(tmp_path: Path) -> None:
    data = bytes(range(256)) * 100
    content = content_of(data)
    BlockStore(tmp_path, math.inf).write(content, 0, data[:10_000])
    store = BlockStore(tmp_path, math.inf)
    assert store.lacking([content]) == [10_000]
    store.write(content, 10_000, data[10_000:20_000])
    store.write(content, 10_000, data[10_000:])  # an answer that got lost: the piece comes again
    store.seal(content)
    assert store.path(content).read_bytes() == data
    assert store.lacking([content]) == [None]


def test_an_altered_file_is_refused_and_forgotten(tmp_path: Path) -> None:
    store, content = BlockStore(tmp_path, math.inf), content_of(b"as it should be")
    store.write(content, 0, b"as it should bE")
    with pytest.raises(ValueError, match="arrived altered"):
        store.seal(content)
    assert store.lacking([content]) == [0]
    assert list(tmp_path.iterdir()) == []


def test_beyond_the_limit_goes_what_was_used_longest_ago(tmp_path: Path) -> None:
    store = BlockStore(tmp_path, 3000)
    first, second, third = (put(store, bytes([n]) * 1000) for n in range(3))
    for age, content in ((50, first), (90, second), (70, third)):
        os.utime(store.path(content), (1e9 - age, 1e9 - age))
    new = content_of(b"n" * 1500)
    assert store.lacking([second, new]) == [None, 0]  # the oldest is wanted, and stays
    assert [store.path(each).exists() for each in (first, second, third)] == [False, True, False]


def test_more_than_the_limit_is_refused_before_anything_is_sent(tmp_path: Path) -> None:
    store = BlockStore(tmp_path, 1e6)
    with pytest.raises(cache.CacheError, match=r"more than testbed.node_cache_gb=0.001 allows"):
        store.lacking([content_of(b"a" * 1_100_000)])


def test_a_full_disk_is_told_before_anything_is_sent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def usage(folder: Path) -> _Usage:
        return _Usage(10**9, 10**9, 1000)

    monkeypatch.setattr("tpi_bench.host.cache.shutil.disk_usage", usage)
    with pytest.raises(cache.CacheError, match=r"a share of the model needs .* free some space"):
        BlockStore(tmp_path, math.inf).lacking([content_of(b"abc")])


class _Usage(tuple):
    def __new__(cls, *numbers: int) -> _Usage:
        return super().__new__(cls, numbers)

    @property
    def free(self) -> int:
        return int(self[2])


def test_a_checksum_is_computed_once_and_again_for_a_changed_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, known = tmp_path / "block", tmp_path / "known.json"
    path.write_bytes(b"first")
    digests = Digests(known)
    assert digests.of(str(path)) == content_of(b"first")
    digests.save()
    monkeypatch.setattr("tpi_bench.cluster.store._sha256", lambda path: "computed again")
    assert Digests(known).of(str(path)) == content_of(b"first")
    path.write_bytes(b"other")
    assert Digests(known).of(str(path)).sha256 == "computed again"
