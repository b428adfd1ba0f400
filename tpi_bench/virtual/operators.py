"""What a computation does: floating-point operations and bytes of each of its operators.

Counted as torch dispatches them, on real tensors or on the meta device, where tensors have shapes
and no data. `costs.py` asks once for each kind of computation and charges a profile's roofline.

The engine's products with weights are one operator, `tpi_bench::product(x, values, scales)` of
`engine/matrix.py`, whatever kernel runs it; it says what the weights are held in.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Literal, TypeVar

import torch
from torch._ops import OpOverload, OpOverloadPacket
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from tpi_bench.contract.roofline import Operator, Work

T = TypeVar("T")
_UNTOUCHED = ("empty", "empty_like", "new_empty", "empty_strided")
# The first is one fused operator on a CPU, many on the meta device.
_ATTENTION: dict[str, Literal["prefill", "decode"]] = {
    "scaled_dot_product_attention": "prefill",
    "attend": "decode",
}
_GATHERS = ("index", "index_select", "embedding", "gather")
_PRODUCT = "tpi_bench::product"
_QUANTISED = {torch.int8: "q8", torch.uint8: "q4"}


def count_work(fn: Callable[[], T]) -> tuple[T, Work]:
    """Run `fn` and count its operators."""
    counter = CountOperators()
    with counter:
        result = fn()
    return result, tuple(counter.work)


class CountOperators(TorchDispatchMode):
    """Floating-point operations and bytes of every operator that touches data.

    Views are free. A gather reads what it returns, not the whole table.
    """

    def __init__(self) -> None:
        super().__init__()
        self.work: list[Operator] = []

    def __torch_dispatch__(
        self, func: OpOverload, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        packet = func.overloadpacket
        if func.namespace != "tpi_bench" and not _has_flops(packet):
            with self:  # inference mode leaves `linear` and its like whole
                parts = func.decompose(*args, **kwargs)
            if parts is not NotImplemented:
                return parts
        out = func(*args, **kwargs)
        if not _is_view(func) and packet.__name__ not in _UNTOUCHED:
            nbytes = _nbytes(packet, args, kwargs, out)
            if func.name().startswith(_PRODUCT):
                self.work.append(_product(nbytes, *args))
            else:
                flops, dtype = _flops(packet, args, kwargs, out), _dtype_of(out)
                attention = _ATTENTION.get(packet.__name__)
                self.work.append(Operator(flops, nbytes, dtype=dtype, attention=attention))
        return out


def _product(
    nbytes: int, x: torch.Tensor, values: torch.Tensor, scales: torch.Tensor | None = None
) -> Operator:
    """x (T, i) times a matrix (o, i); at 4 bits `values` (o, i / 2) holds two in a byte."""
    held = _QUANTISED.get(values.dtype) or _name(values.dtype)
    flops = 2 * x.numel() * values.shape[0]
    state_bytes = x.nbytes + x.shape[0] * values.shape[0] * x.itemsize
    return Operator(flops, nbytes, held, _name(x.dtype), x.shape[0], state_bytes)


def _has_flops(packet: OpOverloadPacket) -> bool:
    return packet in flop_registry or packet.__name__ in _ATTENTION


def _dtype_of(out: Any) -> str:
    """What an operator computes in: the type of its first result."""
    found = (leaf for leaf in tree_leaves(out) if isinstance(leaf, torch.Tensor))
    first = next(found, None)
    return "float32" if first is None else _name(first.dtype)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _flops(packet: OpOverloadPacket, args: Any, kwargs: Any, out: Any) -> int:
    if _ATTENTION.get(packet.__name__) == "prefill":
        queries, keys = args[:2]  # two products of every one with every other, later ones too
        return int(4 * queries.numel() * keys.shape[-2])
    if packet not in flop_registry:
        return 0
    return int(flop_registry[packet](*args, **kwargs, out_val=out))


def _nbytes(packet: OpOverloadPacket, args: Any, kwargs: Any, out: Any) -> int:
    written = _tensor_bytes(out)
    if packet.__name__ in _GATHERS:
        return 2 * written
    inputs = args[1:] if packet.__name__ == "copy_" else args
    return written + _tensor_bytes((inputs, kwargs))


def _tensor_bytes(values: Any) -> int:
    return sum(leaf.nbytes for leaf in tree_leaves(values) if isinstance(leaf, torch.Tensor))


@functools.lru_cache(maxsize=4096)
def _is_view(func: OpOverload) -> bool:
    """Whether an operator only looks at its input another way."""
    returns = func._schema.returns
    aliases = [r.alias_info for r in returns]
    if not returns or any(alias is None or alias.is_write for alias in aliases):
        return func.name() in ("aten::detach", "aten::_unsafe_view", "aten::lift_fresh")
    return True
