"""The runtime protocol: all that a rank program may ask of the world it runs in.

Engine, collective, window and baseline code are written once against these verbs and never import
time, socket, threading or asyncio. A runtime decides what a second, a message and a disk are.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol, TypeVar

if TYPE_CHECKING:
    import torch

    from tpi_bench.contract.blocks import BlockFile

T = TypeVar("T")
# What a computation is: key[0] names the kind of work; equal keys mean the same operators on
# tensors of the same shapes and types, so a runtime may know the cost of one from another.
Key = tuple[Hashable, ...]
# Of computations that are not `compute`.
_KINDS: dict[Hashable, str] = {
    "sample": "sampling",
    "lookup": "sampling",
    "reduce": "sync",
    "pack": "sync",
    "unpack": "sync",
}
# Where a token's time goes. `read` (disk activity in the background) is logged but is no part of
# it.
TOKEN_KINDS = ("compute", "sync", "load_wait", "sampling")


class DeviceLost(RuntimeError):
    """A peer is gone or silent. `rank` is the peer that was waited for."""

    def __init__(self, rank: int, reason: str) -> None:
        super().__init__(f"rank {rank} {reason}")
        self.rank = rank
        self.reason = reason


def check_message(buffer: torch.Tensor) -> None:
    """A message is memory as it lies there. Raises ValueError for a tensor with gaps or turns, and
    for what is none.
    """
    try:
        if buffer.is_contiguous():
            return
    except AttributeError:
        kind = type(buffer).__name__
        raise ValueError(f"a message must be a tensor, not of type {kind}") from None
    raise ValueError(
        f"a message must be a contiguous tensor, but one of shape {tuple(buffer.shape)} has "
        f"strides {tuple(buffer.stride())}; send tensor.contiguous(), and receive into a new tensor"
    )


def check_peer(rank: int, peer: int, world_size: int) -> None:
    """Raises ValueError for a rank that there is not, or oneself."""
    if not 0 <= peer < world_size or peer == rank:
        raise ValueError(
            f"rank {rank} exchanges a message with rank {peer}; there are 0 to {world_size - 1}, "
            "and no messages to oneself"
        )


def check_size(src: int, sent_bytes: int, due_bytes: int) -> None:
    """Raises ValueError for a message of another size than the buffer that it is received in."""
    if sent_bytes != due_bytes:
        raise ValueError(
            f"rank {src} sent {sent_bytes} bytes where {due_bytes} are received; a send and its "
            "recv take buffers of one size (an error of the program: no device is lost)"
        )


def ended_early(rank: int, peer: int) -> str:
    """Of a rank program that returned while `peer` was not through with it."""
    advice = "; a master whose workers loop over Steps calls Steps.end before it returns"
    return (
        f"rank {rank} returned from run_device while rank {peer} still exchanges messages with it"
        + advice * (rank == 0)
    )


class Explained(RuntimeError):
    """What a program met outside itself; the message says all that can be said of it."""


class BlockReadError(Explained):
    """A block file could not be read; the message names its path and the reason."""


@dataclass(frozen=True)
class Span:
    """Something that took from `start_ns` to `end_ns` on this device's clock.

    Of that time its thread ran for `cpu_ns`, and for `core_wait_ns` was ready but had no core (what
    it waited just before the span may be in it); the rest it slept. None where nobody counts: in
    virtual time, of reads, and off Linux.
    """

    kind: str
    key: str
    start_ns: int
    end_ns: int
    cpu_ns: int | None = None
    core_wait_ns: int | None = None


@dataclass(frozen=True)
class ClockReading:
    """A worker's clock was `offset_ns` ahead of the master's, give or take `error_ns`, when the
    master's showed `at_ns`.
    """

    rank: int
    offset_ns: int
    error_ns: int
    at_ns: int


@dataclass
class SpanLog:
    """Time by kind, always summed; the single spans are kept only when `trace` is set."""

    trace: bool = False
    totals_ns: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    spans: list[Span] = field(default_factory=list)

    def add(
        self,
        kind: str,
        key: str,
        start_ns: int,
        end_ns: int,
        cpu_ns: int | None = None,
        core_wait_ns: int | None = None,
    ) -> None:
        self.totals_ns[kind] += end_ns - start_ns
        if self.trace:
            self.spans.append(Span(kind, key, start_ns, end_ns, cpu_ns, core_wait_ns))


def kind_of(key: Key) -> str:
    """The kind of a computation: sampling, reducing and packing are not `compute`."""
    return _KINDS.get(key[0], "compute")


class ReadHandle(Protocol):
    def wait(self) -> None:
        """Return when every byte is in the buffer. Raises BlockReadError."""
        ...


class Runtime(Protocol):
    """One rank's world. Buffers are contiguous CPU tensors; times are integer nanoseconds."""

    rank: int
    world_size: int
    log: SpanLog

    def now(self) -> int: ...

    def sleep(self, ns: int) -> None: ...

    def send(self, dst: int, buffer: torch.Tensor) -> None:
        """Hand `buffer` to the network. Never waits; `buffer` may be reused at once."""
        ...

    def recv(self, src: int, out: torch.Tensor) -> None:
        """Wait for the next message from `src` and place it in `out`.

        Raises DeviceLost, or ValueError for a message of another size.
        """
        ...

    def address(self, rank: int) -> str:
        """HOST:PORT at which this device reaches what `rank` serves (`Program.server`)."""
        ...

    def compute(self, key: Key, fn: Callable[[], T]) -> T:
        """Run `fn` on this device and charge its cost (see `Key`)."""
        ...

    def alloc(self, kind: str, nbytes: int) -> torch.Tensor:
        """`nbytes` of page-aligned memory as a uint8 tensor, entered in the ledger under `kind`."""
        ...

    def hold(self, kind: str, nbytes: int) -> None:
        """Enter memory that was not allocated by `alloc` in the ledger."""
        ...

    def read(self, block: BlockFile, out: torch.Tensor) -> ReadHandle:
        """Start to read a block file's data into `out` (uint8, as long as the file's data)."""
        ...

    def map(self, block: BlockFile, nbytes: int, *, anew: bool = False) -> torch.Tensor:
        """A block file's data as mapped memory (uint8) that the kernel pages in when it is touched.

        Asked for before each use, of which `nbytes` from the start are touched. Each file is mapped
        once; with `anew` every use has a mapping of its own, which ends with the tensor, and the
        kernel is told nothing of what is wanted. Raises BlockReadError.
        """
        ...

    def waiting(self, handle: ReadHandle, key: str) -> None:
        """Wait for a read and log the wait as `load_wait`."""
        ...
