"""Workers get no token id, no embedding table and no output head (TPI-LLM, section 3.1)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.helpers.virtual import run_here, virtual_job
from tpi_bench.contract.blocks import BlockFile
from tpi_bench.engine.tpi import TpiSystem
from tpi_bench.virtual.runtime import VirtualRuntime


@pytest.mark.parametrize(
    "system",
    [
        TpiSystem(),
        TpiSystem(window=2),
        TpiSystem(collective="direct", wire="q8"),
        TpiSystem(collective="ring"),
        TpiSystem(loading="mmap"),
    ],
    ids=["star", "window", "direct-q8", "ring", "mmap"],
)
def test_frames_and_files(
    system: TpiSystem,
    checkpoints: dict[str, Path],
    cache_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Frames from the master are the step's size and place, and hidden states, in full."""
    sent: list[tuple[int, torch.Tensor]] = []
    opened: dict[int, set[tuple[str, str]]] = {rank: set() for rank in range(3)}
    send, read, mapped = VirtualRuntime.send, VirtualRuntime.read, VirtualRuntime.map

    def recorded_send(rt: VirtualRuntime, dst: int, buffer: torch.Tensor) -> None:
        if rt.rank == 0 and dst:
            sent.append((dst, buffer.clone()))
        send(rt, dst, buffer)

    def recorded_read(rt: VirtualRuntime, block: BlockFile, out: torch.Tensor) -> Any:
        opened[rt.rank].add((block.kind, block.path))
        return read(rt, block, out)

    def recorded_map(rt: VirtualRuntime, block: BlockFile, nbytes: int, **extra: Any) -> Any:
        opened[rt.rank].add((block.kind, block.path))
        return mapped(rt, block, nbytes, **extra)

    monkeypatch.setattr(VirtualRuntime, "send", recorded_send)
    monkeypatch.setattr(VirtualRuntime, "read", recorded_read)
    monkeypatch.setattr(VirtualRuntime, "map", recorded_map)
    job = virtual_job(system, checkpoints["gqa"], cache_dir, 3)
    outcome = run_here(job, cache_dir, cost="measured")
    assert outcome.generation is not None
    assert {kind for kind, _ in opened[0]} == {"input", "attn", "ffn", "output"}
    own = {path for _, path in opened[0]}
    for rank in (1, 2):
        assert {kind for kind, _ in opened[rank]} == {"attn", "ffn"}
        assert not own & {path for _, path in opened[rank]}
    num_prompt, hidden = len(job.request.prompt_ids), job.config.hidden
    fed = range(num_prompt, num_prompt + job.request.num_new_tokens)
    steps = [(num_prompt, 0, 1), *((1, position, 1) for position in fed)]
    for worker in (1, 2):
        frames = [frame for dst, frame in sent if dst == worker]
        headers = [tuple(f.tolist()) for f in frames if f.dtype == torch.int64]
        # The end, and the empty messages whose round trips are measured first.
        assert set(headers) - {(0, 0, 1), (0,)} <= set(steps)
        payloads = [f for f in frames if f.dtype != torch.int64]
        sizes = {num_prompt * hidden, hidden}
        if system.wire == "q8":
            assert {f.numel() for f in payloads} == {-(-n // 32) * 34 for n in sizes}
        elif system.collective == "ring":  # and chunks of them
            assert max(f.numel() for f in payloads) == max(sizes)
        else:
            assert {f.numel() for f in payloads} == sizes
