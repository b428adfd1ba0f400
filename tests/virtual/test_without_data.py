"""New tensors have shapes alone, where no device is named, and afterwards data again."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from tests.helpers.command_line import ROOT
from tpi_bench.virtual.without_data import without_data

RARE = {"empty_permuted", "empty_quantized", "range"}


def test_new_tensors_have_no_data_unless_a_device_is_named() -> None:
    with without_data():
        made = [
            torch.empty(2, 3),
            torch.zeros((2, 3), dtype=torch.float16),
            torch.tensor([1, 2]),
            torch.arange(5).float(),
            torch.full((2,), 1.0),
            torch.ones(4, device=None),
        ]
        assert all(tensor.is_meta for tensor in made)
        assert made[0].new_empty(7).is_meta
        header = torch.zeros(2, dtype=torch.int64, device="cpu")
        header[0] = 5
        assert header.tolist() == [5, 0]
    assert torch.zeros(2).tolist() == [0, 0]


def test_torch_is_as_before_whatever_happens() -> None:
    before = dict(vars(torch))
    with pytest.raises(RuntimeError, match="broken"), without_data():
        raise RuntimeError("broken")
    assert {name for name, value in before.items() if getattr(torch, name) is not value} == set()


def test_it_is_what_a_device_of_torch_does() -> None:
    """For all that torch itself sends there, but windows and what is sparse."""
    from torch.utils._device import _device_constructors

    known = {fn.__name__: fn for fn in _device_constructors()}
    public = {name for name, fn in known.items() if getattr(torch, name, None) is fn}
    with without_data():
        left = {name for name in public if getattr(torch, name) is known[name]}
    assert "zeros" in public
    assert {name for name in left if "window" not in name and "sparse" not in name} == RARE


def test_torchs_compiler_is_not_loaded_for_it() -> None:
    """Which takes longer than a simulation; who asks for it gets the real one."""
    code = """
import sys, torch
from tpi_bench.virtual.without_data import without_data
with without_data(), torch.inference_mode():
    x = torch.empty(2, 3)
    assert ((x + x) * 2).roll(1, -1).is_meta
    print("torch._dynamo.config" in sys.modules)
    torch._dynamo.reset()
    print("torch._dynamo.config" in sys.modules)
with without_data():
    print(sys.modules["torch._dynamo"].__file__ is not None)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True
    )
    assert done.stdout.split() == ["False", "True", "True"]
