"""Norm, gate and attention of one position: against float64, any threads, and as operators."""

from __future__ import annotations

import itertools

import pytest
import torch

from tests.helpers.attention import DTYPES, HEADS, LENGTH, UNIT, expected, make, random
from tpi_bench.contract.model import FEW
from tpi_bench.contract.plan import Shard
from tpi_bench.engine import attention, one_position
from tpi_bench.engine.attention import HeadMap
from tpi_bench.engine.one_position import gate, rms_norm
from tpi_bench.virtual.operators import count_work


@pytest.fixture(params=["kernel", "torch"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """With kernels, and on a host that has none."""
    if request.param == "torch":
        for module in (attention, one_position):
            monkeypatch.setattr(module, "kernels", dict)
    return request.param


def test_query_heads_meet_their_kv_heads() -> None:
    """Of 9 heads in groups of 3: all of them, and what two devices have."""
    found = {}
    for heads, kv_heads in (((0, 9), (0, 3)), ((0, 5), (0, 2)), ((5, 9), (1, 3))):
        met = HeadMap(Shard(kind="attn", layer=0, heads=heads, kv_heads=kv_heads), 3)
        found[heads] = (met.head_to_kv.tolist(), met.group)
    assert found == {
        (0, 9): ([0, 0, 0, 1, 1, 1, 2, 2, 2], 3),
        (0, 5): ([0, 0, 0, 1, 1], 0),
        (5, 9): ([0, 1, 1, 1], 0),
    }


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("cols", [16, 48, 72, 576, 2048])
def test_rms_norm(cols: int, dtype: torch.dtype, way: str) -> None:
    """Squares are added in float32: the sum is off by (cols / 32 + 5) roundings at most."""
    x, weight = random(1, cols).to(dtype), 1 + random(cols, seed=1) / 10
    wide = x.double()
    exact = wide / (wide.square().mean() + 1e-5).sqrt() * weight.double()
    out = rms_norm(x, weight, 1e-5)
    assert out.dtype == dtype
    roundings = cols / 32 + 10 if way == "kernel" else cols
    bound = (roundings * UNIT[torch.float32] + 3 * UNIT[dtype]) * exact.abs()
    assert ((out.double() - exact).abs() <= bound + 1e-7).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("cols", [16, 100, 1536])
def test_gate(cols: int, dtype: torch.dtype, way: str) -> None:
    """Where silu's exponential is too large for a float32, too."""
    both = random(1, 2 * cols) * 4
    both[0, :4] = torch.tensor([-200.0, 200.0, -88.0, 0.0])
    both = both.to(dtype)
    wide = both.double()
    exact = torch.nn.functional.silu(wide[:, :cols]) * wide[:, cols:]
    out = gate(both)
    assert out.dtype == dtype
    bound = (6 * UNIT[torch.float32] + 3 * UNIT[dtype]) * exact.abs()
    assert ((out.double() - exact).abs() <= bound + 1e-6).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_few_positions_have_the_bits_that_each_has_alone(dtype: torch.dtype) -> None:
    x, weight, both = random(FEW, 576).to(dtype), 1 + random(576, seed=1) / 10, random(FEW, 192)
    alone = torch.cat([rms_norm(row, weight, 1e-5) for row in x.split(1)])
    gated = torch.cat([gate(row) for row in both.to(dtype).split(1)])
    for num_new in range(2, FEW + 1):
        assert torch.equal(rms_norm(x[:num_new], weight, 1e-5), alone[:num_new])
        assert torch.equal(gate(both[:num_new].to(dtype)), gated[:num_new])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("heads", HEADS)
def test_attention_of_a_few_has_the_bits_of_one_after_another(
    heads: str, dtype: torch.dtype
) -> None:
    """Behind a prompt of 5, and over positions that were cached before and are forgotten."""
    (first, last), (first_kv, last_kv), _ = HEADS[heads]
    qkv = random(LENGTH, (last - first + 2 * (last_kv - first_kv)) * 32).to(dtype)
    one_by_one, _ = make(heads, 32, dtype)
    at_once, _ = make(heads, 32, dtype)
    alone = [one_by_one(qkv[:5], 0), *(one_by_one(qkv[i : i + 1], i) for i in range(5, LENGTH))]
    together = [at_once(qkv[:5], 0)]
    for start in range(5, LENGTH - FEW, 3):
        mixed = at_once(qkv[start : start + FEW], start)
        assert torch.equal(mixed, torch.cat(alone)[start : start + FEW])
    assert torch.equal(together[0], alone[0])
    assert torch.equal(
        one_by_one.cache.keys[:, : LENGTH - FEW], at_once.cache.keys[:, : LENGTH - FEW]
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("heads", "d"), [*itertools.product(HEADS, (16, 64)), ("cut", 80)])
def test_attention(heads: str, d: int, dtype: torch.dtype, way: str) -> None:
    """A prompt of 5 positions, then one after another.

    A mixed head is off by what its values and shares are: a share by the error of its score, and a
    score by d roundings of the sizes of queries and keys.
    """
    mix, rotary = make(heads, d, dtype)
    (first, last), (first_kv, last_kv), _ = HEADS[heads]
    width = (last - first + 2 * (last_kv - first_kv)) * d
    qkv = random(LENGTH, width).to(dtype)
    prompt = mix(qkv[:5], 0)
    assert prompt.shape == (5, (last - first) * d)
    unit, largest = UNIT[dtype], float(qkv.abs().max())
    for position in range(5, LENGTH):
        out = mix(qkv[position : position + 1], position)
        assert (out.shape, out.dtype) == ((1, (last - first) * d), dtype)
        exact = expected(qkv[: position + 1], heads, rotary, d)
        bound = 8 * (unit + d * UNIT[torch.float32]) * largest**2
        assert ((out[0].double() - exact).abs() <= bound).all()


def test_both_ways_leave_the_same_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    for dtype in DTYPES:
        caches = []
        for kernels in (attention.kernels, dict):
            monkeypatch.setattr(attention, "kernels", kernels)
            mix, _ = make("cut", 64, dtype)
            mix(random(1, (5 + 2 * 3) * 64).to(dtype), 0)
            mix(random(1, (5 + 2 * 3) * 64, seed=2).to(dtype), 1)
            caches.append(mix.cache)
        assert torch.equal(caches[0].values, caches[1].values)
        error = (caches[0].keys.double() - caches[1].keys.double()).abs()
        assert (error <= 2 * UNIT[dtype] * caches[1].keys.double().abs() + 1e-6).all()
        assert not caches[0].keys[:, 2:].any()


def test_bits_do_not_depend_on_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "_SHORT", 0)
    before, outs = torch.get_num_threads(), []
    for num_threads in (1, 2, 3):
        torch.set_num_threads(num_threads)
        mix, _ = make("even", 64, torch.float32)
        qkv = random(LENGTH, (6 + 2 * 2) * 64)
        outs.append(torch.cat([mix(qkv[at : at + 1], at) for at in range(LENGTH)]))
    torch.set_num_threads(before)
    assert all(torch.equal(out, outs[0]) for out in outs)


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_counted_operators(device: str) -> None:
    x, weight = random(1, 64).to(device), random(64).to(device)
    out, work = count_work(lambda: rms_norm(x, weight, 1e-5))
    assert out.shape == x.shape
    assert [(operator.flops, operator.nbytes) for operator in work] == [(0, 3 * 256)]
    out, work = count_work(lambda: gate(x))
    assert out.shape == (1, 32)
    assert [(operator.flops, operator.nbytes) for operator in work] == [(0, 256 + 128)]


def test_counted_attention() -> None:
    """Everything that is read of the cache, and two products of each head with each position."""
    mix, _ = make("even", 64, torch.float32)
    plain, _ = make("even", 64, torch.float32)
    for position in range(9):
        qkv = random(1, (6 + 2 * 2) * 64, seed=position)
        out, work = count_work(lambda qkv=qkv, at=position: mix(qkv, at))
        assert torch.equal(out, plain(qkv, position))
    (operator,) = work
    assert (operator.flops, operator.attention) == (2 * 2 * 6 * 64 * 9, "decode")
    row, head_map = 64 * 4, 6 * 8
    assert operator.nbytes == row * ((6 + 2 * 2) + 2 * 2 * 9 + 2 + 6) + head_map
    with torch.device("meta"):
        mix, _ = make("even", 64, torch.float32)
        out, same = count_work(lambda: mix(torch.empty(1, 10 * 64), 8))
    assert out.shape == (1, 6 * 64)
    assert same == work
