"""Values in groups of 32 int8 with one float16 scale, and back: the arithmetic of the wire `q8`.

A payload is packed flat, whatever its shape: (T, h) in the order in which it lies in memory, so
along the rows where h is a multiple of 32; the last group is filled up with zeros. A message is all
int8 values, then all scales. A float16 times an int8 has at most 19 significant bits, so unpacking
is exact in fp32, on any CPU, whether it fuses the sum or not.

Whole groups of fp32 go through compiled kernels (`packing_kernels.py`), a few microseconds for a
token; else torch gives the same bits with some small operators. On the meta device and under a
dispatch mode, where operators are counted, packing is one operator of torch and so is unpacking.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import library

from tpi_bench.contract.model import GROUP
from tpi_bench.engine.compiled import kernels
from tpi_bench.engine.task import OUT, SCALES, VALUES, Task, X
from tpi_bench.engine.wire import GROUP_BYTES, LEAST_SCALE, STEP

_num_modes = torch._C._len_torch_dispatch_stack  # TorchDispatchModes that are active


class Groups:
    """A message (uint8) as its two parts: int8 (g, 32) and float16 scales (g, 1).

    A value is off by at most half its group's scale, which is at most max|x| / 127 * (1 + 2**-9) +
    2**-23. A group with a value beyond 8e6, or one that is no number, unpacks to nothing finite.
    """

    def __init__(self, message: torch.Tensor) -> None:
        num_groups = message.numel() // GROUP_BYTES
        self._num_values = num_groups * GROUP
        quants, scales = message.split((self._num_values, num_groups * 2))
        self.quants = quants.view(torch.int8).view(num_groups, GROUP)
        self.scales = scales.view(torch.float16).view(num_groups, 1)
        self._kernels = {} if message.is_meta else kernels()
        if self._kernels:
            self._task = Task(1, self._num_values)
            self._task.point(VALUES, self.quants)
            self._task.point(SCALES, self.scales)

    def pack(self, values: torch.Tensor) -> None:
        """Values of any float type into the message."""
        if _is_counted(values):
            torch.ops.tpi_bench.pack(values, self.quants, self.scales)
        elif not self._run("pack_groups", X, values):
            _pack(values, self.quants, self.scales)

    def unpack(self, values: torch.Tensor) -> None:
        """The message's values into `values`."""
        if _is_counted(values):
            torch.ops.tpi_bench.unpack(self.quants, self.scales, values)
        elif not self._run("unpack_groups", OUT, values):
            _unpack(self.quants, self.scales, values)

    def add(self, total: torch.Tensor) -> None:
        """The message's values to `total`."""
        if not _is_counted(total) and self._run("add_groups", OUT, total):
            return
        if total.dtype == torch.float32 and total.numel() == self._num_values:
            total.view(self.quants.shape).addcmul_(self.quants, self.scales)
        else:
            total.view(-1).add_(_values(self.quants, self.scales, total.numel()))

    def _run(self, name: str, field: int, values: torch.Tensor) -> bool:
        """Whether there is a kernel for it, which has run then."""
        kernel = self._kernels.get(name)
        if kernel is None or values.dtype != torch.float32 or values.numel() != self._num_values:
            return False
        assert values.is_contiguous()
        self._task.point(field, values)
        kernel(self._task.place)
        return True


def _is_counted(values: torch.Tensor) -> bool:
    """Whether operators are counted, or there is no data."""
    return values.is_meta or bool(_num_modes())


def _pack(values: torch.Tensor, quants: torch.Tensor, scales: torch.Tensor) -> None:
    flat = values.view(-1).float()
    if flat.numel() != quants.numel():
        flat = F.pad(flat, (0, quants.numel() - flat.numel()))
    groups = flat.view(quants.shape)
    scales.copy_(groups.abs().amax(1, keepdim=True).mul_(STEP).add_(LEAST_SCALE))
    quants.copy_(groups.mul(scales.float().reciprocal_()).round_())


def _unpack(quants: torch.Tensor, scales: torch.Tensor, values: torch.Tensor) -> None:
    values.view(-1).copy_(_values(quants, scales, values.numel()))


def _values(quants: torch.Tensor, scales: torch.Tensor, num_values: int) -> torch.Tensor:
    return torch.mul(quants, scales.float()).view(-1)[:num_values]


def _without_data(*_tensors: torch.Tensor) -> None:
    """On the meta device there is nothing to do."""


for _name, _function, _written in (
    ("pack", _pack, ("quants", "scales")),
    ("unpack", _unpack, ("values",)),
):
    _operator = library.custom_op(f"tpi_bench::{_name}", _function, mutates_args=_written)
    _operator.register_fake(_without_data)
