"""Packed payloads: their bytes, errors within half a step, and what is charged and held."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from baselines.allreduce import AllreduceSystem
from baselines.galaxy import GalaxySystem
from baselines.pipeline import PipelineSystem
from tests.helpers.local_runtime import LocalRuntime, run_ranks
from tests.helpers.virtual import IDEAL, world_of
from tpi_bench.engine.compiled import kernels
from tpi_bench.engine.groups import Groups
from tpi_bench.engine.packing import Float16Wire, PackedWire, Q8Wire, make_wire
from tpi_bench.engine.tpi import TpiSystem
from tpi_bench.engine.wire import AS_COMPUTED, WIRES, Wire, wire_bytes
from tpi_bench.virtual.operators import count_work

KINDS = (Float16Wire, Q8Wire)
# Of max|x|: what the step of q8 is at most, with the slack that keeps it from being too small.
LARGEST_STEP = (1 + 2.0**-9) / 127


def runtime() -> LocalRuntime:
    return LocalRuntime(0, {(0, 1): None, (1, 0): None})


def values_of(shape: tuple[int, ...], scale: float = 1.0, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * scale


def there_and_back(kind: type[PackedWire], values: torch.Tensor) -> torch.Tensor:
    """What another device has of them."""
    rt = runtime()
    here, there = kind(rt, values.numel()), kind(rt, values.numel())
    found = torch.empty_like(values)
    message = there.landing(found)
    message.copy_(here.pack(rt, values))
    there.unpack(rt, message, found)
    return found


def grouped(values: torch.Tensor) -> torch.Tensor:
    """(g, 32), as packed: flat, the last one filled up with zeros."""
    flat = values.reshape(-1).double()
    return torch.nn.functional.pad(flat, (0, -flat.numel() % 32)).view(-1, 32)


def test_bytes_of_a_message() -> None:
    assert [wire_bytes(name, 64, 4) for name in WIRES] == [256, 128, 68]
    assert [wire_bytes(name, 72, 4) for name in WIRES] == [288, 144, 102]
    assert [wire_bytes(name, 64, 2) for name in WIRES] == [128, 128, 68]
    assert wire_bytes("q8", 8192, 4) == 8192 * 1.0625


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(1, 1), (1, 31), (1, 32), (5, 72), (3, 128)])
def test_a_message_is_as_long_as_said(kind: type[PackedWire], shape: tuple[int, ...]) -> None:
    values = values_of(shape)
    message = kind(runtime(), values.numel()).pack(runtime(), values)
    assert message.is_contiguous()
    assert message.nbytes == wire_bytes(kind.name, values.numel(), 4)


@pytest.mark.parametrize("scale", [1e-9, 1e-6, 1e-4, 3e-3, 1.0, 700.0, 1e6])
@pytest.mark.parametrize("shape", [(1, 1), (1, 33), (5, 72), (4, 128)])
def test_q8_is_off_by_half_a_step(shape: tuple[int, ...], scale: float) -> None:
    """Also where scales are subnormal in fp16, which is below 0.008 for the largest value."""
    values = values_of(shape, scale)
    found = there_and_back(Q8Wire, values)
    step = grouped(values).abs().amax(1, keepdim=True) * LARGEST_STEP + 2.0**-23
    error = (grouped(found) - grouped(values)).abs()
    assert (error <= step * (0.5 + 1e-5)).all()
    assert error.max() > 0


def test_q8_is_int8_and_scales_in_fp16() -> None:
    """The bytes themselves: 64 int8, then two scales a little above max|x| / 127."""
    values = torch.zeros(1, 64)
    values[0, :3] = torch.tensor([127.0, -127.0, 3.4])
    message = Q8Wire(runtime(), 64).pack(runtime(), values)
    assert message[:64].view(torch.int8).tolist() == [127, -127, 3] + [0] * 61
    assert message[64:].view(torch.float16).tolist() == [1 + 2.0**-10, 2.0**-24]
    found = there_and_back(Q8Wire, values)[0, :4]
    assert found.tolist() == [n * (1 + 2.0**-10) for n in (127, -127, 3, 0)]


def test_the_largest_value_is_never_beyond_127_steps() -> None:
    """One group a magnitude, close together from 1e-9 to 1e6: none wraps around or is cut off."""
    largest = torch.logspace(-9, 6, 20_000)
    values = torch.zeros(len(largest), 32)
    values[:, 0], values[:, 1] = largest, -largest
    rt = runtime()
    message = Q8Wire(rt, values.numel()).pack(rt, values)
    quants = message[: values.numel()].view(torch.int8).view(values.shape)
    scales = message[values.numel() :].view(torch.float16).double()
    assert (scales >= largest.double() / 127).all()
    assert (quants[:, 0] > 0).logical_or(largest < 2.0**-25).all()
    assert torch.equal(quants[:, 0], -quants[:, 1])


def test_unpacking_is_exact_in_fp32() -> None:
    """So that adding gives the same bits, whether the product is rounded on the way or not."""
    values = values_of((3, 96), 5.0)
    rt = runtime()
    wire = Q8Wire(rt, values.numel())
    message = wire.pack(rt, values)
    exact = message[:288].view(torch.int8).double().view(9, 32)
    exact = (exact * message[288:].view(torch.float16).double()[:, None]).view(3, 96)
    total, added = values_of((3, 96), seed=1), values_of((3, 96), seed=1)
    wire.add(rt, message, total)
    assert torch.equal(total, (added.double() + exact).float())
    wire.unpack(rt, message, total)
    assert torch.equal(total.double(), exact)


def test_float16_is_a_cast() -> None:
    values = values_of((5, 72), 100.0)
    assert torch.equal(there_and_back(Float16Wire, values), values.half().float())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 1e9])
def test_what_cannot_be_sent_shows(kind: type[PackedWire], bad: float) -> None:
    """No finite number stands for it; other groups are not touched."""
    values = values_of((1, 96))
    values[0, 40] = bad
    found = there_and_back(kind, values)
    assert not found[0, 40].isfinite()
    assert found[0, :32].isfinite().all()
    assert found[0, 64:].isfinite().all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_packed_too(dtype: torch.dtype) -> None:
    values = values_of((5, 72)).to(dtype)
    found = there_and_back(Q8Wire, values)
    assert found.dtype == dtype
    step = grouped(values).abs().amax(1, keepdim=True) * LARGEST_STEP
    rounding = grouped(found).abs() * torch.finfo(dtype).eps
    assert ((grouped(found) - grouped(values)).abs() <= 0.501 * step + rounding).all()


@pytest.mark.parametrize("kind", KINDS)
def test_one_buffer_serves_all_messages(kind: type[PackedWire]) -> None:
    """Of prefill and decoding, of whole payloads and chunks; slots are apart."""
    rt = runtime()
    wire = kind(rt, 4 * 128, num_messages=2)
    (event,) = rt.events
    prefill, token = values_of((4, 128)), values_of((1, 128), seed=1)
    first = wire.pack(rt, prefill)
    assert event == ("alloc", str(2 * -(-first.nbytes // 64) * 64))
    kept = first.clone()
    other = wire.pack(rt, token, 1)
    assert torch.equal(first, kept)
    assert wire.pack(rt, token).data_ptr() == first.data_ptr()
    assert torch.equal(wire.room(token), other)
    assert wire.room(token) is wire.landing(token)
    assert len(rt.events) == 1


@pytest.mark.parametrize(
    ("name", "dtype", "num_devices", "kind"),
    [
        ("auto", torch.float32, 2, Wire),
        ("float16", torch.float32, 2, Float16Wire),
        ("float16", torch.float16, 2, Wire),
        ("float16", torch.bfloat16, 2, Wire),
        ("q8", torch.bfloat16, 2, Q8Wire),
        ("q8", torch.float32, 1, Wire),
    ],
)
def test_who_packs(name: str, dtype: torch.dtype, num_devices: int, kind: type[Wire]) -> None:
    """Not what is as narrow already, nor a device alone; that is the tensor itself, uncharged."""

    def program(rt: LocalRuntime) -> Wire:
        return make_wire(rt, name, dtype, 64)

    for wire in run_ranks(num_devices, program):
        assert type(wire) is kind
        assert (wire is AS_COMPUTED) == (kind is Wire)


def test_as_computed_touches_nothing() -> None:
    rt, values = runtime(), values_of((2, 72))
    rt.compute = None  # type: ignore[assignment,method-assign]
    assert AS_COMPUTED.pack(rt, values) is values
    assert AS_COMPUTED.landing(values) is values
    before = values.clone()
    AS_COMPUTED.unpack(rt, values, values)
    assert torch.equal(values, before)
    assert AS_COMPUTED.room(values).data_ptr() != values.data_ptr()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("count", [96, 72])
def test_the_work_is_the_same_without_data(kind: type[PackedWire], count: int) -> None:
    """Modelled virtual time counts operators on the meta device: as many, of as many bytes."""

    def work() -> list[Any]:
        rt = runtime()
        rt.alloc = lambda kind, nbytes: torch.empty(nbytes, dtype=torch.uint8)  # type: ignore
        wire, values = kind(rt, count), torch.empty(1, count)
        wire.room(values)
        return [
            count_work(lambda: wire.pack(rt, values))[1],
            count_work(lambda: wire.unpack(rt, wire.room(values), values))[1],
            count_work(lambda: wire.add(rt, wire.room(values), values))[1],
        ]

    real = work()
    with torch.device("meta"):
        assert work() == real
    pack, unpack, add = real
    assert len(pack) == len(unpack) == 1
    assert 1 <= len(add) <= 3


@pytest.mark.parametrize("scale", [1e-9, 1e-6, 3e-3, 1.0, 1e6])
def test_kernels_and_torch_give_the_same_bits(
    monkeypatch: pytest.MonkeyPatch, scale: float
) -> None:
    """Also halves of a step, which are rounded to even."""
    values = values_of((7, 96), scale)
    values[0] = torch.arange(96) % 32 * (scale / 16)
    values[1] = 0.0

    def all_three() -> tuple[torch.Tensor, ...]:
        message = torch.zeros(wire_bytes("q8", values.numel(), 4), dtype=torch.uint8)
        groups = Groups(message)
        unpacked, total = torch.empty_like(values), values_of((7, 96), scale, seed=1)
        groups.pack(values)
        groups.unpack(unpacked)
        groups.add(total)
        return message, unpacked, total

    by_kernel = all_three()
    monkeypatch.setattr("tpi_bench.engine.groups.kernels", dict)
    for one, other in zip(by_kernel, all_three(), strict=True):
        assert torch.equal(one, other)


def test_kernels_come_together() -> None:
    """With those of products, or none: then the test above compares torch with torch."""
    found = kernels().keys()
    assert ("q8" in found) == ({"pack_groups", "unpack_groups", "add_groups"} <= found)


def test_packing_is_synchronising() -> None:
    def program(rt: Any) -> None:
        wire = Q8Wire(rt, 64)
        total = torch.zeros(1, 64)
        message = wire.pack(rt, total)
        wire.add(rt, message, total)
        wire.unpack(rt, message, total)

    world = world_of(IDEAL, IDEAL)
    world.run(program)
    spans = world.runtimes[1].log.spans
    assert [(span.kind, span.key) for span in spans] == [
        ("sync", "pack"),
        ("sync", "reduce"),
        ("sync", "unpack"),
    ]
    assert world.runtimes[1].ledger_bytes == {"buffers": 128}


@pytest.mark.parametrize("system", [TpiSystem, PipelineSystem, GalaxySystem, AllreduceSystem])
def test_settings(system: Any) -> None:
    assert "wire" not in system().variant
    assert system(wire="q8").variant.endswith("wire q8")
    assert system(wire="float16").variant.endswith("wire float16")
    with pytest.raises(ValueError, match=r"^system.wire=q4 is unknown; choose one of auto, float"):
        system(wire="q4")
