"""Products with weights in every precision: values, bits, other CPUs, and how they are counted."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from gguf.quants import dequantize, quantize
from numba.core.caching import FunctionCache

from tpi_bench.contract.model import FEW, GROUP, QUANTISED, WEIGHTS
from tpi_bench.engine import compiled, matrix, one_position, position_kernels, tiles
from tpi_bench.engine.matrix import Matrix, kernel_name
from tpi_bench.models.quantised import unpack
from tpi_bench.virtual.operators import count_work

UNIT = 2.0**-24  # what rounding to float32 takes from a value at most, as a share of it
UNIT_OF = {torch.float32: 0.0, torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8}
# Whole vectors and groups, and some beyond; the last are too narrow for any kernel, or for q4's.
GROUPED = [(70, 576), (33, 160), (9, 704), (1, 128), (300, 2048), (7, 96), (5, 32)]
UNGROUPED = [(5, 72), (3, 100), (4, 17), (3, 8)]
SHAPES = [(w, s) for w in WEIGHTS for s in GROUPED + UNGROUPED * (w not in QUANTISED)]
GGUF = {"q8": gguf.GGMLQuantizationType.Q8_0, "q4": gguf.GGMLQuantizationType.Q4_0}


def make(weights: str, shape: tuple[int, int], seed: int = 0) -> tuple[Matrix, torch.Tensor]:
    """A matrix, and its values in float64 as the gguf package or torch has them."""
    values = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    if weights not in QUANTISED:
        values = values.to(getattr(torch, weights))
        return Matrix(values), values.double()
    packed = quantize(values.numpy(), GGUF[weights])
    numbers, scales = (torch.from_numpy(array.copy()) for array in unpack(packed, weights))
    return Matrix(numbers, scales), torch.from_numpy(dequantize(packed, GGUF[weights])).double()


def vector(cols: int, seed: int = 1) -> torch.Tensor:
    """One row with values of very different sizes, as hidden states have."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(1, cols, generator=generator) * torch.rand(cols, generator=generator) ** 4


def error_bound(weights: str, values: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """For each row, of a sum in float32 in the kernels' order.

    64 partial sums of i / 64 products each, and 6 more when they are added; q4 has 16, of i / 128
    blocks. Scales are multiplied once a group or block. Every term is rounded that often, by UNIT.
    For q4, x is rounded to half a step of 2**-23 of its group's largest value and by four divisions
    and products on the way: 6 UNIT of that value.
    """
    cols = x.shape[1]
    sizes = x.abs().double()
    num_rounded = cols / 64 + 10
    if weights == "q4":
        largest = sizes.view(-1, GROUP).amax(1, keepdim=True).expand(-1, GROUP)
        sizes, num_rounded = largest.reshape(1, cols), num_rounded + 6
    return UNIT * num_rounded * (sizes @ values.abs().T)


@pytest.fixture(params=[1, 2, 3])
def num_threads(request: pytest.FixtureRequest):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.mark.parametrize(("weights", "shape"), SHAPES)
def test_one_row(weights: str, shape: tuple[int, int], num_threads: int) -> None:
    product, values = make(weights, shape)
    assert (product.weights, product.shape) == (weights, shape)
    x = vector(shape[1])
    out = product(x)
    assert (out.shape, out.dtype) == ((1, shape[0]), torch.float32)
    error = (out.double() - x.double() @ values.T).abs()
    assert (error <= error_bound(weights, values, x)).all()


@pytest.mark.parametrize("weights", WEIGHTS)
def test_bits_do_not_depend_on_threads_or_cuts(weights: str) -> None:
    product, _ = make(weights, (333, 704))
    x, before = vector(704), torch.get_num_threads()
    outs = []
    for num_threads in (1, 2, 3):
        torch.set_num_threads(num_threads)
        outs.append(product(x))
    torch.set_num_threads(before)
    scales = product.scales
    parts = [
        Matrix(product.values[rows], None if scales is None else scales[rows])(x)
        for rows in (slice(0, 100), slice(100, 101), slice(101, 333))
    ]
    outs.append(torch.cat(parts, dim=1))
    assert all(torch.equal(out, outs[0]) for out in outs)


@pytest.mark.parametrize(("weights", "shape"), SHAPES)
def test_a_few_rows_have_the_bits_that_each_has_alone(
    weights: str, shape: tuple[int, int], num_threads: int
) -> None:
    """Where there is a kernel: of narrower rows torch makes what it likes."""
    product, _ = make(weights, shape)
    if product._kernel is None:
        pytest.skip("too narrow for a kernel")
    x = torch.cat([vector(shape[1], seed) for seed in range(FEW)])
    alone = torch.cat([product(row) for row in x.split(1)])
    for num_rows in range(2, FEW + 1):
        assert torch.equal(product(x[:num_rows]), alone[:num_rows]), num_rows


LONG = [(w, s) for w in WEIGHTS for s in [(70, 576), (33, 704), (300, 2048)]]
LONG += [(w, s) for w in WEIGHTS if w not in QUANTISED for s in [(21, 520), (3, 777)]]


@pytest.mark.parametrize(("weights", "shape"), LONG)
def test_long_rows_in_parts(
    weights: str, shape: tuple[int, int], num_threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As an AMD Zen takes them, if longer: each part is summed, and added to those before."""
    whole, values = make(weights, shape)
    monkeypatch.setattr(matrix, "most_cols", lambda weights: 256)
    in_parts, _ = make(weights, shape)
    x = torch.cat([vector(shape[1], seed) for seed in range(FEW)])
    alone = torch.cat([in_parts(row) for row in x.split(1)])
    assert not torch.equal(alone, torch.cat([whole(row) for row in x.split(1)]))  # another order
    bounds = torch.cat([error_bound(weights, values, row) for row in x.split(1)])
    assert ((alone.double() - x.double() @ values.T).abs() <= bounds).all()
    for num_rows in range(2, FEW + 1):
        assert torch.equal(in_parts(x[:num_rows]), alone[:num_rows]), num_rows


@pytest.mark.parametrize("weights", WEIGHTS)
def test_parts_of_a_row(weights: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whole blocks, none longer than allowed, as few as can be; on other processors all of it."""
    monkeypatch.setattr(compiled, "is_amd_zen", lambda: True)
    matrix.most_cols.cache_clear()
    most = matrix.most_cols(weights)
    for cols in (16, most, most + 1, most + 96, 2 * most, 14336, 28672, 5 * most + 17):
        part = matrix.cols_at_a_time(weights, cols)
        assert part == cols if cols <= most else part % 128 == 0
        assert part <= most
        assert -(-cols // part) == -(-cols // most)
    monkeypatch.setattr(compiled, "is_amd_zen", lambda: False)
    matrix.most_cols.cache_clear()
    assert matrix.cols_at_a_time(weights, 28672) == 28672
    matrix.most_cols.cache_clear()


@pytest.mark.parametrize("dtype", UNIT_OF)
@pytest.mark.parametrize("num_rows", [1, 2, 33])
@pytest.mark.parametrize("weights", WEIGHTS)
def test_rows_and_types_of_the_vector(weights: str, num_rows: int, dtype: torch.dtype) -> None:
    """A weight's own rounding to the type that torch multiplies in, and the result's, come on top.

    2100 rows are more than one tile.
    """
    product, values = make(weights, (2100, 576))
    x = torch.cat([vector(576, seed) for seed in range(num_rows)]).to(dtype)
    out = product(x)
    assert (out.shape, out.dtype) == ((num_rows, 2100), dtype)
    exact = x.double() @ values.T
    # torch adds in an order of its own.
    bound = UNIT * (576 + 16) * (x.abs().double() @ values.abs().T)
    bound += UNIT_OF[dtype] * (x.abs().double() @ values.abs().T + exact.abs())
    assert ((out.double() - exact).abs() <= bound + 1e-7).all()


@pytest.mark.parametrize("has_mkldnn", [True, False])
@pytest.mark.parametrize(("weights", "shape"), SHAPES)
def test_several_rows(
    weights: str, shape: tuple[int, int], has_mkldnn: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of any shape, with either of torch's libraries; each adds in an order of its own."""
    assert tiles._has_mkldnn() or platform.machine() != "x86_64"
    monkeypatch.setattr(tiles, "_has_mkldnn", lambda: has_mkldnn)
    product, values = make(weights, shape)
    x = torch.cat([vector(shape[1], seed) for seed in range(5)])
    for rows in (x, x.repeat(1, 2)[:, : shape[1]]):  # and where they are not one piece
        error = (product(rows).double() - x.double() @ values.T).abs()
        assert (error <= UNIT * (shape[1] + 6) * (x.abs().double() @ values.abs().T)).all()


@pytest.mark.parametrize("weights", WEIGHTS)
def test_look_up(weights: str) -> None:
    table, values = make(weights, (50, 96))
    indices = torch.tensor([7, 49, 7, 0])
    for dtype in UNIT_OF:
        rows = table.rows(indices, dtype)
        assert rows.dtype == dtype
        assert torch.equal(rows, values[indices].to(dtype))


@pytest.mark.parametrize("weights", WEIGHTS)
def test_any_address_will_do(weights: str) -> None:
    whole, _ = make(weights, (40, 256))
    x, row = vector(256), torch.empty(257)[1:].view(1, 256)
    room = torch.empty(whole.values.nbytes + 128, dtype=torch.uint8)
    start = 64 - room.data_ptr() % 64 + whole.values.itemsize  # one value beyond a cache line
    moved = room[start : start + whole.values.nbytes].view(whole.values.dtype).view_as(whole.values)
    moved.copy_(whole.values)
    row.copy_(x)
    assert torch.equal(Matrix(moved, whole.scales)(row), whole(x))
    strided = torch.stack((x, x), dim=2)[:, :, 0]
    assert torch.equal(whole(strided), whole(x))


@pytest.mark.parametrize("weights", WEIGHTS)
def test_zeros_and_what_is_no_number(weights: str) -> None:
    product, values = make(weights, (8, 256))
    assert (product(torch.zeros(1, 256)) == 0).all()
    x = vector(256)
    x[0, 200] = torch.nan
    assert product(x).isnan().all()
    x[0, 200] = torch.inf
    assert not product(x)[0, values[:, 200] != 0].isfinite().any()


def test_q4_keeps_small_values_beside_large_ones() -> None:
    """Of another group; in its own one a value counts to 2**-23 of the largest."""
    product, values = make("q4", (64, 256))
    x = vector(256) * 1e-6
    x[0, :32] *= 1e9
    error = (product(x).double() - x.double() @ values.T).abs()
    assert (error <= error_bound("q4", values, x)).all()


@pytest.mark.parametrize("weights", WEIGHTS)
def test_without_kernels(weights: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (matrix, tiles):
        monkeypatch.setattr(module, "kernels", dict)
    assert kernel_name(weights) == "torch"
    product, values = make(weights, (64, 160))
    for num_rows in (1, 3):
        x = torch.cat([vector(160, seed) for seed in range(num_rows)])
        error = (product(x).double() - x.double() @ values.T).abs()
        assert (error <= UNIT * (160 + 6) * (x.abs().double() @ values.abs().T)).all()


@pytest.mark.parametrize("error", [RuntimeError("no locator available"), OSError(28, "full")])
@pytest.mark.parametrize("step", ["__init__", "save_overload"])
def test_without_a_place_for_compiled_kernels(
    step: str, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cache that cannot be written costs time, and nothing else."""

    def refuse(*_given: object) -> None:
        raise error

    monkeypatch.setattr(FunctionCache, "load_overload", lambda *_given: None)
    monkeypatch.setattr(FunctionCache, step, refuse)
    kernel = compiled.Kernel(position_kernels.gate)
    monkeypatch.setattr(one_position, "kernels", lambda: {"gate": kernel})
    both = torch.tensor([[1.0, -1.0]]).repeat_interleave(16, dim=1)
    assert one_position.gate(both).allclose(torch.nn.functional.silu(torch.ones(16)) * -1)


@pytest.mark.parametrize("weights", WEIGHTS)
def test_a_kernel_is_there(weights: str) -> None:
    assert kernel_name(weights) == f"numba {weights}"


FEATURES = [
    pytest.param("+avxvnni,+avx2,+fma,+avx,+f16c", marks=pytest.mark.product),
    "+avx2,+fma,+avx,+f16c",
    pytest.param("+avx,+f16c", marks=pytest.mark.product),  # as they were ten years ago
    "",
]


@pytest.mark.skipif(platform.machine() != "x86_64", reason="names of x86 processors")
@pytest.mark.parametrize("features", FEATURES)
def test_kernels_of_other_processors(features: str) -> None:
    """Shorter vectors, bytes multiplied by other instructions or by none; at last, no kernels."""
    code = (
        "import torch\n"
        "from tests.engine.test_kernels import *\n"
        "every = compiled._functions()\n"
        "compiled._functions = lambda: every[:6]\n"  # the products; the others take time too
        "compiled._are_on_disk = lambda functions: True\n"  # compiled here
        "for weights in WEIGHTS:\n"
        f"    assert (kernel_name(weights) == 'torch') == ({features!r} == '')\n"
        "    product, values = make(weights, (40, 704))\n"
        "    x = vector(704)\n"
        "    error = (product(x).double() - x.double() @ values.T).abs()\n"
        "    assert (error <= 20 * error_bound(weights, values, x)).all(), weights\n"
    )
    environment = os.environ | {"NUMBA_CPU_NAME": "x86-64", "NUMBA_CPU_FEATURES": features}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)


def test_a_compiler_that_dies_of_a_kernel_leaves_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """As an LLVM does that does not know an instruction: it ends the process."""
    monkeypatch.setattr(compiled, "_is_missing", lambda function: True)
    monkeypatch.setattr(compiled.sys, "executable", "/bin/false")
    assert compiled._functions()
    assert compiled.kernels.__wrapped__() == {}


def test_one_program_compiles_and_others_find_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of several that start at once, as workers of tests do after an installation."""
    missing, compiling = [True], []

    def compile_slowly(command: list[str], **others: Any) -> subprocess.CompletedProcess[str]:
        compiling.append(command)
        time.sleep(0.2)
        missing.clear()
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(compiled, "_is_missing", lambda function: bool(missing))
    monkeypatch.setattr(compiled.subprocess, "run", compile_slowly)
    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(lambda _: compiled._are_on_disk((print,)), range(3)))
    assert found == [True] * 3
    assert len(compiling) == 1


@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_one_counted_operator(weights: str, device: str) -> None:
    made, _ = make(weights, (64, 256))
    product = Matrix(
        made.values.to(device), None if made.scales is None else made.scales.to(device)
    )
    nbytes = sum(t.nbytes for t in (made.values, made.scales) if t is not None)
    for num_rows in (1, 5):
        x = torch.randn(num_rows, 256).to(device)
        out, work = count_work(lambda x=x: product(x))
        assert (out.shape, out.dtype) == ((num_rows, 64), torch.float32)
        (operator,) = work
        assert operator.flops == 2 * num_rows * 64 * 256
        assert operator.nbytes == nbytes + x.nbytes + out.nbytes
        if device == "cpu":
            assert torch.equal(out, product(x))


def test_numbers_lie_as_in_gguf() -> None:
    """Byte j of a group of 4-bit numbers holds value j low and value j + 16 high."""
    numbers = torch.zeros(1, 64, dtype=torch.uint8) + 0x88  # 128 zeros
    numbers[0, 3], numbers[0, 16 + 5] = 0x8F, 0x18
    scales = torch.tensor([[1.0, 0.5, 1.0, 1.0]]).half()
    row = Matrix(numbers, scales).rows(torch.tensor([0]), torch.float32)[0]
    expected = np.zeros(128, dtype=np.float32)
    expected[3], expected[32 + 16 + 5] = 7, -3.5
    assert np.array_equal(row.numpy(), expected)
    assert torch.equal(Matrix(numbers, scales)(torch.eye(128)[35:54])[:, 0], row[35:54])
