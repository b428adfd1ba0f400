"""The sliding window's order of loads, waits and releases, seen through a scripted runtime."""

from __future__ import annotations

import pytest

from tests.helpers.blocks import blocks
from tests.helpers.local_runtime import LocalRuntime
from tpi_bench.contract.blocks import BlockFile
from tpi_bench.engine.streaming import WindowConfig, window_of
from tpi_bench.engine.window import WeightSource, Window, weight_source


def visit(window: WeightSource, count: int, tokens: int = 1) -> None:
    for _ in range(tokens):
        for index in range(count):
            window.acquire(index)
            window.release(index)


def make(own: list[BlockFile], **config) -> tuple[LocalRuntime, Window]:
    rt = LocalRuntime(0, {(0, 0): None})
    return rt, Window(rt, own, window_of(own, WindowConfig(**config)))


def test_window_of_two_loads_one_block_ahead() -> None:
    own = blocks(2)
    rt, window = make(own, size=2)
    visit(window, 4)
    assert [event for event in rt.events if event[0] != "alloc"] == [
        ("read", "attn_0"),
        ("read", "ffn_0"),
        ("wait", "attn_0"),
        ("read", "attn_1"),
        ("wait", "ffn_0"),
        ("read", "ffn_1"),
        ("wait", "attn_1"),
        ("read", "attn_0"),  # wraps around into the next token
        ("wait", "ffn_1"),
        ("read", "ffn_0"),
    ]


def test_window_of_one_never_loads_ahead() -> None:
    rt, window = make(blocks(2), size=1)
    visit(window, 4)
    kinds = [kind for kind, _ in rt.events if kind != "alloc"]
    assert kinds == ["read", "wait"] * 4 + ["read"]


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5])
def test_never_more_than_the_window_is_held(size: int) -> None:
    own = blocks(3, master=True)
    rt, window = make(own, size=size)
    for _ in range(3):
        for index in range(len(own)):
            window.acquire(index)
            reads = sum(kind == "read" for kind, _ in rt.events)
            waits = sum(kind == "wait" for kind, _ in rt.events)
            assert reads - (waits - 1) <= size
            window.release(index)
    assert sum(kind == "alloc" for kind, _ in rt.events) == 1  # one area, for the whole run


def test_off_reads_everything_once() -> None:
    own = blocks(2, master=True)
    rt, window = make(own)
    visit(window, len(own), tokens=3)
    assert sum(kind == "read" for kind, _ in rt.events) == len(own)


def test_blocking_reads_when_a_block_is_needed() -> None:
    rt, window = make(blocks(1), size=1, loading="blocking")
    assert not [event for event in rt.events if event[0] == "read"]
    visit(window, 2, tokens=2)
    assert [event for event in rt.events if event[0] != "alloc"] == [
        ("read", "attn_0"),
        ("wait", "attn_0"),
        ("read", "ffn_0"),
        ("wait", "ffn_0"),
    ] * 2


def test_blocking_may_keep_embedding_and_head() -> None:
    rt, window = make(blocks(1, master=True), size=1, loading="blocking", resident_io=True)
    assert [event for event in rt.events if event[0] == "read"] == [
        ("read", "input"),
        ("read", "output"),
    ]
    visit(window, 4, tokens=2)
    assert [event[1] for event in rt.events if event[0] == "read"][2:] == ["attn_0", "ffn_0"] * 2


def test_faulted_weights_are_mapped_anew_for_each_use() -> None:
    own = blocks(1, master=True)
    rt = LocalRuntime(0, {(0, 0): None})
    config = WindowConfig(loading="faulted", resident_io=True)
    source = weight_source(rt, own, window_of(own, config), 1)
    visit(source, 4, tokens=2)
    assert [event for event in rt.events if event[0] == "read"] == [
        ("read", "input"),
        ("read", "output"),
    ]
    assert rt.events[-4:] == [("map anew", "attn_0 4096"), ("map anew", "ffn_0 8192")] * 2


def test_mapped_weights_ask_for_each_use() -> None:
    own = blocks(1, master=True)
    rt = LocalRuntime(0, {(0, 0): None})
    source = weight_source(rt, own, window_of(own, WindowConfig(loading="mmap")), 1)
    visit(source, 4)
    assert rt.events == [
        *[("map", f"{block.key} 0") for block in own],
        ("map", "input 4096"),  # only the rows that are looked up
        ("map", "attn_0 4096"),
        ("map", "ffn_0 8192"),
        ("map", "output 40960"),
    ]
