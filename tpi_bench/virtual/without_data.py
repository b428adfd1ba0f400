"""New tensors without data: how rank programs are run where costs are modelled."""

from __future__ import annotations

import contextlib
import functools
import importlib
import sys
import types
from collections.abc import Callable, Iterator
from typing import Any

import torch

# What programs make new tensors with. Those made from others are where these are.
_MAKERS = (
    *("arange", "as_tensor", "asarray", "empty", "empty_strided", "eye", "full", "linspace"),
    *("logspace", "ones", "rand", "randint", "randn", "randperm", "scalar_tensor", "tensor"),
    *("tril_indices", "triu_indices", "zeros"),
)

_COMPILER = "torch._dynamo"


@contextlib.contextmanager
def without_data() -> Iterator[None]:
    """As `with torch.device("meta")`: new tensors have shapes alone, if no device is named.

    That is a mode of torch, and while one is on, each look at a tensor, if only at its size, is a
    call of Python that takes microseconds: four fifths of a simulation. So only the functions that
    make tensors are replaced. They are so for all threads; a run has its process to itself.
    """
    makers = {name: getattr(torch, name) for name in _MAKERS}
    try:
        sys.modules.setdefault(_COMPILER, _NoCompiler(_COMPILER))
        for name, make in makers.items():
            setattr(torch, name, functools.partial(_on_meta, make))
        yield
    finally:
        for name, make in makers.items():
            setattr(torch, name, make)
        if isinstance(sys.modules.get(_COMPILER), _NoCompiler):
            del sys.modules[_COMPILER]


def _on_meta(make: Callable[..., torch.Tensor], *args: Any, **kwargs: Any) -> torch.Tensor:
    if kwargs.get("device") is None:
        kwargs["device"] = "meta"
    return make(*args, **kwargs)


class _NoCompiler(types.ModuleType):
    """Stands for torch's compiler, which takes 0.8 s to load: nothing is compiled here.

    torch loads it when it works out its first shape, to be told that the function that does so is
    not to be compiled. Whoever wants anything else of it gets the real one.
    """

    def disable(self, function: Callable[..., Any], *_: Any, **__: Any) -> Callable[..., Any]:
        return function

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        sys.modules.pop(_COMPILER, None)
        return getattr(importlib.import_module(_COMPILER), name)
