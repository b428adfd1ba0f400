"""How hidden states and partial sums travel: as they are computed, in fp16, or packed to 8 bits.

`system.wire` names one; systems make each rank's end of it (`packing.py`) and hand it to the
collectives. Whoever sends packed values goes on with what everyone else unpacks, so that all ranks
have the same bits.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from tpi_bench.contract.model import BYTES_PER_VALUE, GROUP
from tpi_bench.contract.setting import setting

if TYPE_CHECKING:
    import torch

    from tpi_bench.contract.job import Job
    from tpi_bench.contract.runtime import Runtime

WIRES = ("auto", "float16", "q8")
# Of q8: an int8 a value and a float16 scale, 1.0625 bytes a value. A scale is max|x| / 127 and a
# little more, so much that it is not too small when it has been rounded to float16, subnormal or
# not. Then no value is beyond 127 steps, and no scale is zero.
GROUP_BYTES = GROUP + 2
STEP = (1 + 2.0**-10) / 127
LEAST_SCALE = 2.0**-24


class Wire:
    """As computed: what is sent is the tensor itself. Base class of the packed ones.

    A *message* is what travels for some values, of any shape. A packed wire has one buffer for
    messages, used again and again: `slot` tells several apart that are needed at once. A runtime's
    `send` takes what it is given, so a message may be overwritten once it is sent and unpacked.
    """

    name = "auto"
    group = 1  # consecutive values of a payload that are packed together and cannot be cut apart

    def pack(self, rt: Runtime, values: torch.Tensor, slot: int = 0) -> torch.Tensor:
        """The message for `values`."""
        return values

    def landing(self, values: torch.Tensor) -> torch.Tensor:
        """Where the message is received that `values` will be unpacked from."""
        return values

    def room(self, values: torch.Tensor, slot: int = 0) -> torch.Tensor:
        """The same, where `values` are still needed beside it, if there are any."""
        return values if values.is_meta else values.new_empty(values.shape)

    def unpack(self, rt: Runtime, message: torch.Tensor, values: torch.Tensor) -> None:
        """Put what a message says in `values`."""

    def add(self, rt: Runtime, message: torch.Tensor, total: torch.Tensor) -> None:
        """Add what a message says to `total`."""
        key = ("reduce", 1, total.numel(), total.dtype)
        rt.compute(key, functools.partial(total.add_, message))

    def add_up(
        self, rt: Runtime, messages: Sequence[torch.Tensor], values: torch.Tensor
    ) -> torch.Tensor:
        """The sum of all messages in their order. `values`, of the same shape, may be used."""

        def in_order() -> torch.Tensor:
            total = messages[0] + messages[1] if len(messages) > 1 else messages[0]
            for message in messages[2:]:
                total += message
            return total

        key = ("reduce", len(messages) - 1, values.numel(), values.dtype)
        return rt.compute(key, in_order)

    def broadcast(self, rt: Runtime, values: torch.Tensor, peers: Sequence[int]) -> None:
        """Send `values` to all peers. Afterwards they are here what they are there."""
        message = self.pack(rt, values)
        for peer in peers:
            rt.send(peer, message)
        self.unpack(rt, message, values)

    def receive(
        self, rt: Runtime, src: int, values: torch.Tensor, onward: Sequence[int] = ()
    ) -> None:
        """Receive `values`, and first of all send the same bytes onward."""
        message = self.landing(values)
        rt.recv(src, message)
        for peer in onward:
            rt.send(peer, message)
        self.unpack(rt, message, values)


AS_COMPUTED = Wire()


def wire_setting() -> Any:
    """The field `wire` of a system."""
    meaning = "what devices send: as computed (auto), half precision, or 8 bits in groups of 32"
    return setting("auto", meaning, WIRES, common=True)


def check_wire(name: str) -> None:
    """Raises ValueError when `system.wire` is none of those that are known."""
    if name not in WIRES:
        raise ValueError(f"system.wire={name} is unknown; choose one of {', '.join(WIRES)}")


def wire_bytes(name: str, num_values: int, bytes_per_value: int) -> int:
    """Bytes of a message for so many values, which take `bytes_per_value` where they are computed.

    Two-byte types travel as they are on a wire of float16: it would save nothing.
    """
    if name == "q8":
        return -(-num_values // GROUP) * GROUP_BYTES
    return num_values * (min(2, bytes_per_value) if name == "float16" else bytes_per_value)


def hidden_bytes(job: Job, name: str) -> int:
    """Of a message for one position's hidden state, on the wire of that name."""
    return wire_bytes(name, job.config.hidden, BYTES_PER_VALUE[job.dtype])


def wire_words(name: str) -> str:
    """As part of a system's variant."""
    return "" if name == "auto" else f"wire {name}"
