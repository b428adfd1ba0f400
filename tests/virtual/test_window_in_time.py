"""Blocks that stream through a window in virtual time, against a trace worked out by hand."""

from __future__ import annotations

from dataclasses import replace

import torch

from tests.helpers.virtual import IDEAL, Scripted, no_work, world_of
from tpi_bench.contract.blocks import BlockFile, TensorView
from tpi_bench.contract.network import NetworkConfig
from tpi_bench.engine.collectives import COLLECTIVES
from tpi_bench.engine.streaming import WindowConfig, window_of
from tpi_bench.engine.window import Window
from tpi_bench.virtual.runtime import VirtualRuntime


def streamed_blocks(layers: int) -> list[BlockFile]:
    """Attention of 4,096 and FFN of 8,192 bytes: as many ns from a disk of 1 GB/s."""
    return [
        BlockFile(
            path="",
            kind=kind,
            layer=layer,
            data_offset=0,
            nbytes=nbytes,
            tensors={"w": TensorView((4,), 0)},
        )
        for layer in range(layers)
        for kind, nbytes in (("attn", 4096), ("ffn", 8192))
    ]


def test_a_load_behind_a_sync_costs_what_does_not_fit() -> None:
    """Attention computes 1,000 ns, FFN 10,000, a sync (direct, one way) is 2,000; window 2.

    At 0 both of layer 0 are asked for: there at 4,096 and 12,288. Attention waits 4,096 and ends
    at 5,096, where its next load queues: 12,288-16,384. Synced at 7,096, the FFN waits 5,192 for
    its own and ends at 22,288, where its next load starts: until 30,480. Synced at 24,288: the
    attention's is there. It ends at 25,288, synced at 27,288; the FFN waits the rest, 3,192, and
    ends at 40,480. From here on alike: an FFN's load hides behind sync, attention and sync, which
    is 5,000 of 8,192; an attention's 4,096 fit behind sync, FFN and sync.
    """
    network = NetworkConfig(topology="switch", link_latency_ms=0.001)
    device = replace(IDEAL, disk_gb_per_s=1)
    world = world_of(device, device, network=network, costs=Scripted(attn=1_000, ffn=10_000))

    def program(rt: VirtualRuntime) -> list[int]:
        own = streamed_blocks(2)
        window = Window(rt, own, window_of(own, WindowConfig(size=2)))
        ends = []
        for _token in range(2):
            for index, block in enumerate(own):
                window.acquire(index)
                rt.compute((block.kind,), no_work)
                ends.append(rt.now())
                window.release(index)
                COLLECTIVES["direct"].run(rt, torch.ones(1))
        return ends

    with torch.device("meta"):  # no bytes, so no files
        results = world.run(program)
    ends = [5_096, 22_288, 25_288, 40_480, 43_480, 58_672, 61_672, 76_864]
    assert results == [ends, ends]
    for runtime in world.runtimes:
        loads = [span for span in runtime.log.spans if span.kind == "load_wait"]
        waits = [s.end_ns - s.start_ns for s in loads if s.key != "request"]
        assert waits == [4_096, 5_192, 0, 3_192, 0, 3_192, 0, 3_192]
        assert runtime.log.totals_ns["load_wait"] == sum(waits)
        assert runtime.log.totals_ns["sync"] == 8 * 2_000
        assert runtime.log.totals_ns["compute"] == 4 * 11_000
