"""A rank's end of the wire: as computed, or packed in a buffer that serves for all messages.

Rank programs ask `make_wire` for theirs. The arithmetic of `q8` is in `groups.py`.
"""

from __future__ import annotations

import functools
from abc import abstractmethod
from collections.abc import Callable, Sequence

import torch

from tpi_bench.contract.model import GROUP
from tpi_bench.contract.runtime import Runtime
from tpi_bench.engine.groups import Groups
from tpi_bench.engine.wire import AS_COMPUTED, Wire, wire_bytes

_ALIGNMENT = 64


class PackedWire(Wire):
    """What the packed ones share: the buffer for messages, and that their work is charged."""

    def __init__(self, rt: Runtime, most_values: int, num_messages: int = 1) -> None:
        nbytes = self._nbytes(most_values)
        self._stride = -(-nbytes // _ALIGNMENT) * _ALIGNMENT
        self._buffer = rt.alloc("buffers", self._stride * num_messages)
        self._messages: dict[tuple[int, int], torch.Tensor] = {}

    def room(self, values: torch.Tensor, slot: int = 0) -> torch.Tensor:
        place = (values.numel(), slot)
        if place not in self._messages:
            self._messages[place] = self._new_message(*place)
        return self._messages[place]

    def landing(self, values: torch.Tensor) -> torch.Tensor:
        return self.room(values)

    def pack(self, rt: Runtime, values: torch.Tensor, slot: int = 0) -> torch.Tensor:
        message = self.room(values, slot)
        self._charge(rt, ("pack", 1), values, functools.partial(self._pack, values, message))
        return message

    def unpack(self, rt: Runtime, message: torch.Tensor, values: torch.Tensor) -> None:
        self._charge(rt, ("unpack", 1), values, functools.partial(self._unpack, message, values))

    def add(self, rt: Runtime, message: torch.Tensor, total: torch.Tensor) -> None:
        self._charge(rt, ("reduce", 1), total, functools.partial(self._add, message, total))

    def add_up(
        self, rt: Runtime, messages: Sequence[torch.Tensor], values: torch.Tensor
    ) -> torch.Tensor:
        def in_order() -> None:
            self._unpack(messages[0], values)
            for message in messages[1:]:
                self._add(message, values)

        self._charge(rt, ("reduce", len(messages) - 1), values, in_order)
        return values

    def _charge(
        self, rt: Runtime, work: tuple[str, int], values: torch.Tensor, fn: Callable[[], None]
    ) -> None:
        """Run `fn`, unless there are no values: what is empty is not sent either."""
        if values.numel():
            rt.compute((*work, values.numel(), values.dtype, self.name), fn)

    def _nbytes(self, num_values: int) -> int:
        return wire_bytes(self.name, num_values, torch.float32.itemsize)

    def _new_message(self, num_values: int, slot: int) -> torch.Tensor:
        """Bytes of the buffer, in the type that they are sent in."""
        begin, nbytes = slot * self._stride, self._nbytes(num_values)
        if begin + nbytes > self._buffer.numel():
            raise ValueError(
                f"a message of {num_values} values at place {slot} takes {nbytes} bytes of a "
                f"buffer with {self._buffer.numel()}; tell make_wire of as many values and "
                "messages as there are at once (request.most_new positions)"
            )
        return self._buffer[begin : begin + nbytes]

    @abstractmethod
    def _pack(self, values: torch.Tensor, message: torch.Tensor) -> None: ...

    @abstractmethod
    def _unpack(self, message: torch.Tensor, values: torch.Tensor) -> None: ...

    @abstractmethod
    def _add(self, message: torch.Tensor, total: torch.Tensor) -> None: ...


class Float16Wire(PackedWire):
    """float32 values cast to float16. Beyond 65504 they become infinite."""

    name = "float16"

    def _new_message(self, num_values: int, slot: int) -> torch.Tensor:
        return super()._new_message(num_values, slot).view(torch.float16)

    def _pack(self, values: torch.Tensor, message: torch.Tensor) -> None:
        message.copy_(values.view(-1))

    def _unpack(self, message: torch.Tensor, values: torch.Tensor) -> None:
        values.view(-1).copy_(message)

    def _add(self, message: torch.Tensor, total: torch.Tensor) -> None:
        total.view(-1).add_(message)


class Q8Wire(PackedWire):
    """Groups of 32 values as int8 with a float16 scale, as distributed-llama sends them."""

    name = "q8"
    group = GROUP

    def __init__(self, rt: Runtime, most_values: int, num_messages: int = 1) -> None:
        super().__init__(rt, most_values, num_messages)
        self._groups: dict[torch.Tensor, Groups] = {}  # tensors are found by identity

    def _new_message(self, num_values: int, slot: int) -> torch.Tensor:
        message = super()._new_message(num_values, slot)
        self._groups[message] = Groups(message)
        return message

    def _pack(self, values: torch.Tensor, message: torch.Tensor) -> None:
        self._groups[message].pack(values)

    def _unpack(self, message: torch.Tensor, values: torch.Tensor) -> None:
        self._groups[message].unpack(values)

    def _add(self, message: torch.Tensor, total: torch.Tensor) -> None:
        self._groups[message].add(total)


def make_wire(
    rt: Runtime, name: str, dtype: torch.dtype, most_values: int, num_messages: int = 1
) -> Wire:
    """This rank's end of the wire, for payloads of up to `most_values` computed in `dtype`.

    A packed wire allocates its buffer, for `num_messages` at once, and enters it in the ledger.
    """
    is_as_computed = wire_bytes(name, GROUP, dtype.itemsize) == GROUP * dtype.itemsize
    if rt.world_size == 1 or is_as_computed:
        return AS_COMPUTED
    kind = Q8Wire if name == "q8" else Float16Wire
    return kind(rt, most_values, num_messages)
