"""Device profiles: what one device can do, for the virtual testbed. Pure arithmetic.

The `device` group holds one YAML a device, every number with its source; `task=calibrate` makes
the one of this host. What a computation takes by them says `roofline.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from itertools import groupby
from math import inf
from pathlib import Path
from typing import Any, Literal, Protocol

from tpi_bench.contract.model import DTYPES, WEIGHTS
from tpi_bench.contract.setting import needed, setting

_OF_PRECISION = [
    *(f"{name}_{unit}" for unit in ("gb_per_s", "gflops") for name in WEIGHTS[1:]),
    *(f"{name}_rows_gb_per_s" for name in WEIGHTS),
    *(f"{name}_few_gflops" for name in WEIGHTS),
    *(f"{name}_attention_gflops" for name in DTYPES),
    *(f"{name}_decode_attention_gflops" for name in DTYPES),
    *(f"{name}_states_gb_per_s" for name in DTYPES),
]
_OF_DISK = ("disk_computing_gb_per_s", "disk_shared_gb_per_s")
_WITHOUT_LIMIT = (
    "disk_probe_gb_per_s",
    "paging_gb_per_s",
    "memory_shared_gb_per_s",
    "message_gb_per_s",
    "receive_gb_per_s",
    "asking_gb_per_s",
    "streamed_gb_per_s",
)
_OVERHEADS = (
    "product_overhead_us",
    "attention_overhead_us",
    "half_overhead_us",
    "receive_overhead_us",
    "read_overhead_us",
    "wake_overhead_us",
    "step_overhead_us",
    "cold_overhead_us",
    "streamed_overhead_us",
    "swept_overhead_us",
    "swept_read_overhead_us",
    "disk_gap_us",
    "disk_shared_gap_us",
)
COLD_REST_NS = 4_000_000  # the wait that `cold_overhead_us` is of


@dataclass(frozen=True, kw_only=True)
class DeviceProfile:
    """The `device` group. GB and GFLOPS are 1e9; rates are sustained ones, in fp32, of all cores.

    `q4_gb_per_s` and its like are the bytes of weights a second in products of so held matrices
    with one vector; null is the memory bandwidth. `bfloat16_gflops` and its like are the arithmetic
    of products with many vectors; null is `peak_gflops`.

    With `used_cores` below `cores` arithmetic rates fall in proportion, and so does a rate of
    unpacking; the memory bandwidth does below half of the cores, which are taken to saturate it (an
    assumption).
    """

    name: str = needed("how rows call it")
    cores: int = needed("cores it has")
    memory_gb: float = needed("memory, in 1e9 bytes")
    memory_gb_per_s: float = needed("memory bandwidth of all cores")
    peak_gflops: float = needed("arithmetic in fp32 of all cores")
    op_overhead_us: float = needed("of each operator, on top of the roofline")
    disk_gb_per_s: float = needed("rate of large reads")
    disk_latency_us: float = needed("of a read")
    disk_queue_depth: int = needed("reads that the disk serves at once")
    message_overhead_us: float = needed(
        "CPU time to send or receive a message, or to ask for a read"
    )
    product_overhead_us: float | None = setting(
        None, "of each product with weights, on top of the roofline; null: op_overhead_us"
    )
    attention_overhead_us: float | None = setting(
        None, "of attention of one position, on top of the roofline; null: op_overhead_us"
    )
    half_overhead_us: float = setting(
        0.0, "of an operator on float16 or bfloat16 states, on top of these"
    )
    disk_computing_gb_per_s: float | None = setting(
        None, "rate of large reads while the device computes; null: disk_gb_per_s"
    )
    disk_shared_gb_per_s: float | None = setting(
        None,
        "rate of large reads for all devices together that read from one disk at once; null: "
        "disk_gb_per_s",
    )
    disk_gap_us: float = setting(
        0.0, "between the end of a read and the first bytes of the next, which was asked for before"
    )
    disk_shared_gap_us: float | None = setting(
        None, "the same while several devices read from one disk at once; null: disk_gap_us"
    )
    disk_probe_gb_per_s: float | None = setting(
        None,
        "what a probe of the disk gave beside its other rates, with many reads at once; null: not "
        "known",
    )
    paging_gb_per_s: float | None = setting(
        None,
        "bytes of mapped files a second by which paging in prolongs computing, where other pages "
        "must go for them; null: by nothing, so that only the disk counts",
    )
    memory_shared_gb_per_s: float | None = setting(
        None,
        "memory bandwidth of all devices together that compute from one memory at once; null: each "
        "has its own",
    )
    message_gb_per_s: float | None = setting(
        None, "bytes a second that sending copies, beside message_overhead_us; null: in no time"
    )
    receive_gb_per_s: float | None = setting(
        None, "bytes a second that receiving copies, beside its overhead; null: in no time"
    )
    receive_overhead_us: float | None = setting(
        None, "CPU time to receive a message that is there; null: message_overhead_us"
    )
    read_overhead_us: float | None = setting(
        None, "CPU time to ask for a read; null: message_overhead_us"
    )
    asking_gb_per_s: float | None = setting(
        None, "bytes a second of a read that is asked for, beside its overhead; null: in no time"
    )
    wake_overhead_us: float = setting(
        0.0, "CPU time that a message to a device that has slept for long takes its sender on top"
    )
    step_overhead_us: float | None = setting(
        None,
        "Python of a rank program between two computations, messages or reads; null: "
        "op_overhead_us",
    )
    swept_overhead_us: float = setting(
        0.0,
        "Python directly behind a computation of a millisecond or more, on top of step_overhead_us",
    )
    swept_read_overhead_us: float | None = setting(
        None, "the same where it asks for a read, that included; null: swept_overhead_us"
    )
    cold_overhead_us: float = setting(
        0.0,
        "of a computation after the device has waited for 4 ms, on top; after other waits in "
        "proportion, up to 10 ms",
    )
    streamed_overhead_us: float = setting(
        0.0, "of a computation with weights that were just read, on top"
    )
    streamed_gb_per_s: float | None = setting(
        None,
        "bytes of weights that were just read a second by which computing with them takes longer, "
        "beside that overhead; null: by nothing",
    )
    source: str = setting("", "where the numbers come from")
    used_cores: int | None = setting(None, "fewer than all, to see what cores are worth")
    float16_gb_per_s: float | None = setting(
        None,
        "bytes a second of float16 weights in products with one vector; null: the memory bandwidth",
    )
    bfloat16_gb_per_s: float | None = setting(
        None,
        "bytes a second of bfloat16 weights in products with one vector; null: "
        "the memory bandwidth",
    )
    q8_gb_per_s: float | None = setting(
        None, "bytes a second of q8 weights in products with one vector; null: the memory bandwidth"
    )
    q4_gb_per_s: float | None = setting(
        None, "bytes a second of q4 weights in products with one vector; null: the memory bandwidth"
    )
    float16_gflops: float | None = setting(
        None, "arithmetic of products with many vectors in float16; null: peak_gflops"
    )
    bfloat16_gflops: float | None = setting(
        None, "arithmetic of products with many vectors in bfloat16; null: peak_gflops"
    )
    q8_gflops: float | None = setting(
        None, "arithmetic of products with many vectors in q8; null: peak_gflops"
    )
    q4_gflops: float | None = setting(
        None, "arithmetic of products with many vectors in q4; null: peak_gflops"
    )

    float32_rows_gb_per_s: float | None = setting(
        None,
        "bytes a second of float32 weights in products with several rows, before any arithmetic "
        "(laid out anew, or widened); null: as with one vector",
    )
    float16_rows_gb_per_s: float | None = setting(
        None,
        "bytes a second of float16 weights in products with several rows, before any arithmetic "
        "(laid out anew, or widened); null: as with one vector",
    )
    bfloat16_rows_gb_per_s: float | None = setting(
        None,
        "bytes a second of bfloat16 weights in products with several rows, before any arithmetic "
        "(laid out anew, or widened); null: as with one vector",
    )
    q8_rows_gb_per_s: float | None = setting(
        None,
        "bytes a second of q8 weights in products with several rows, before any arithmetic "
        "(laid out anew, or widened); null: as with one vector",
    )
    q4_rows_gb_per_s: float | None = setting(
        None,
        "bytes a second of q4 weights in products with several rows, before any arithmetic "
        "(laid out anew, or widened); null: as with one vector",
    )

    float32_few_gflops: float | None = setting(
        None,
        "arithmetic of each further one of a few vectors in products with float32 weights; null: "
        "peak_gflops",
    )
    float16_few_gflops: float | None = setting(
        None,
        "arithmetic of each further one of a few vectors in products with float16 weights; null: "
        "peak_gflops",
    )
    bfloat16_few_gflops: float | None = setting(
        None,
        "arithmetic of each further one of a few vectors in products with bfloat16 weights; null: "
        "peak_gflops",
    )
    q8_few_gflops: float | None = setting(
        None,
        "arithmetic of each further one of a few vectors in products with q8 weights; null: "
        "peak_gflops",
    )
    q4_few_gflops: float | None = setting(
        None,
        "arithmetic of each further one of a few vectors in products with q4 weights; null: "
        "peak_gflops",
    )

    float32_attention_gflops: float | None = setting(
        None, "arithmetic of a prompt's attention in float32; null: peak_gflops"
    )
    float16_attention_gflops: float | None = setting(
        None, "arithmetic of a prompt's attention in float16; null: float16_gflops"
    )
    bfloat16_attention_gflops: float | None = setting(
        None, "arithmetic of a prompt's attention in bfloat16; null: bfloat16_gflops"
    )

    float32_decode_attention_gflops: float | None = setting(
        None,
        "arithmetic of one position's attention, beside reading a cache of float32; null: bytes "
        "and peak_gflops, whichever takes longer",
    )
    float16_decode_attention_gflops: float | None = setting(
        None,
        "arithmetic of one position's attention, beside reading a cache of float16; null: bytes "
        "and float16_gflops, whichever takes longer",
    )
    bfloat16_decode_attention_gflops: float | None = setting(
        None,
        "arithmetic of one position's attention, beside reading a cache of bfloat16; null: bytes "
        "and bfloat16_gflops, whichever takes longer",
    )
    float32_states_gb_per_s: float | None = setting(
        None, "bytes of float32 states a second between a prompt's products; null: memory_gb_per_s"
    )
    float16_states_gb_per_s: float | None = setting(
        None, "bytes of float16 states a second between a prompt's products; null: memory_gb_per_s"
    )
    bfloat16_states_gb_per_s: float | None = setting(
        None, "bytes of bfloat16 states a second between a prompt's products; null: memory_gb_per_s"
    )

    # What each round of its calibration found, by name of the number; none where it was given.
    rounds: tuple[tuple[tuple[str, float], ...], ...] = field(default=(), repr=False)

    def __post_init__(self) -> None:
        own = f"device.{self.name}"
        for name in ("cores", "disk_queue_depth"):
            if getattr(self, name) < 1:
                raise ValueError(f"{own}.{name}={getattr(self, name)} must be at least 1")
        for name in ("memory_gb", "memory_gb_per_s", "peak_gflops", "disk_gb_per_s"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{own}.{name}={getattr(self, name)} must be above 0")
        for name in (*_OF_PRECISION, *_OF_DISK):
            rate = getattr(self, name)
            if rate is not None and not 0 < rate < inf:
                usual = "memory_gb_per_s" if name.endswith("gb_per_s") else "peak_gflops"
                usual = "disk_gb_per_s" if name in _OF_DISK else usual
                raise ValueError(f"{own}.{name}={rate} must be above 0, or null for {usual}")
        for name in _WITHOUT_LIMIT:
            rate = getattr(self, name)
            if rate is not None and not rate > 0:
                raise ValueError(f"{own}.{name}={rate} must be above 0, or null")
        for name in ("op_overhead_us", "disk_latency_us", "message_overhead_us", *_OVERHEADS):
            if not 0 <= (getattr(self, name) or 0.0) < inf:
                raise ValueError(f"{own}.{name}={getattr(self, name)} must be at least 0")
        if self.memory_gb == inf:
            raise ValueError(f"{own}.memory_gb=inf must be a number of GB")
        if self.used_cores is not None and not 1 <= self.used_cores <= self.cores:
            raise ValueError(
                f"{own}.used_cores={self.used_cores} must be 1 to {self.cores}, or null for all"
            )

    def load(self, cache_dir: Path) -> DeviceProfile:
        """As a `ProfileSource`: it is there."""
        return self

    def as_given(self) -> dict[str, Any]:
        """What a YAML of it says: all but the rounds."""
        return {each.name: getattr(self, each.name) for each in fields(self) if each.metadata}

    @property
    def memory_bps(self) -> float:
        """Bytes a second that the used cores read."""
        return self.memory_gb_per_s * 1e9 * min(1.0, 2 * self.num_used / self.cores)

    @property
    def disk_bps(self) -> float:
        return self.disk_gb_per_s * 1e9

    @property
    def disk_gap_ns(self) -> float:
        return self.disk_gap_us * 1e3

    @property
    def disk_shared_gap_ns(self) -> float:
        given = self.disk_shared_gap_us
        return self.disk_gap_ns if given is None else given * 1e3

    @property
    def num_used(self) -> int:
        """Cores that compute."""
        return self.used_cores or self.cores

    @property
    def memory_bytes(self) -> int:
        return round(self.memory_gb * 1e9)

    @property
    def message_ns(self) -> int:
        return round(self.message_overhead_us * 1e3)

    @property
    def receive_ns(self) -> int:
        given = self.receive_overhead_us
        return self.message_ns if given is None else round(given * 1e3)

    @property
    def asking_ns(self) -> int:
        """Of a read."""
        given = self.read_overhead_us
        return self.message_ns if given is None else round(given * 1e3)

    @property
    def ns_per_sent_byte(self) -> float:
        return _ns_per_byte(self.message_gb_per_s)

    @property
    def ns_per_received_byte(self) -> float:
        return _ns_per_byte(self.receive_gb_per_s)

    @property
    def ns_per_asked_byte(self) -> float:
        return _ns_per_byte(self.asking_gb_per_s)

    @property
    def ns_per_streamed_byte(self) -> float:
        return _ns_per_byte(self.streamed_gb_per_s)

    @property
    def streamed_ns(self) -> int:
        return round(self.streamed_overhead_us * 1e3)

    @property
    def ns_per_paged_byte(self) -> float:
        return _ns_per_byte(self.paging_gb_per_s)

    @property
    def wake_ns(self) -> int:
        return round(self.wake_overhead_us * 1e3)

    @property
    def step_ns(self) -> int:
        given = self.step_overhead_us
        return round((self.op_overhead_us if given is None else given) * 1e3)

    @property
    def swept_ns(self) -> int:
        return round(self.swept_overhead_us * 1e3)

    @property
    def swept_asking_ns(self) -> int:
        given = self.swept_read_overhead_us
        return self.swept_ns if given is None else round(given * 1e3)

    def cold_after_ns(self, waited_ns: int) -> int:
        """Of a computation after such a wait, on top."""
        return round(self.cold_overhead_us * 1e3 * waited_ns / COLD_REST_NS)

    @property
    def strength(self) -> float:
        """What a plan divides by: memory bandwidth, which bounds decoding."""
        return self.memory_bps

    def overhead_s(self, dtype: str, kind: Literal["product", "attention"] | None = None) -> float:
        """Of an operator that computes in `dtype`: a product with weights, attention of one
        position, or any other.
        """
        given = getattr(self, f"{kind}_overhead_us", None)
        plain_us = self.op_overhead_us if given is None else given
        return 1e-6 * (plain_us if dtype == DTYPES[0] else plain_us + self.half_overhead_us)

    def read_bps(self, weights: str | None = None) -> float:
        """Bytes a second of an operator that reads a matrix held in `weights`, or none."""
        given = self._given(weights, "gb_per_s")
        return self.memory_bps if given is None else given * 1e9 * self._used_share

    def states_bps(self, dtype: str) -> float:
        """Bytes a second of an operator on states, such as a norm or a gate."""
        given = self._given(f"{dtype}_states", "gb_per_s")
        return self.memory_bps if given is None else given * 1e9 * self._used_share

    def rows_bps(self, weights: str | None = None) -> float:
        """Bytes a second of a product with several rows, before any arithmetic."""
        given = self._given(f"{weights}_rows" if weights else None, "gb_per_s")
        return self.read_bps(weights) if given is None else given * 1e9 * self._used_share

    def flops_per_s(self, precision: str = "float32") -> float:
        """Operations a second of products with matrices held in `precision`."""
        given = self._given(precision, "gflops")
        return (self.peak_gflops if given is None else given) * 1e9 * self._used_share

    def few_flops_per_s(self, weights: str | None) -> float:
        """Operations a second of each further one of a few rows: in fp32, whatever is held."""
        given = self._given(f"{weights}_few" if weights else None, "gflops")
        return (self.peak_gflops if given is None else given) * 1e9 * self._used_share

    def attention_flops_per_s(self, dtype: str) -> float:
        """Operations a second of a prompt's queries with keys, and of their shares with values."""
        given = self._given(f"{dtype}_attention", "gflops")
        return self.flops_per_s(dtype) if given is None else given * 1e9 * self._used_share

    def decode_attention_flops_per_s(self, dtype: str) -> float | None:
        """Operations a second of attention of one position, or a few, over a cache, beside reading
        that; None where it is not known.
        """
        given = self._given(f"{dtype}_decode_attention", "gflops")
        return None if given is None else given * 1e9 * self._used_share

    def _given(self, precision: str | None, unit: str) -> float | None:
        """What the profile says of a precision, if it does; fp32 is what all else is said in."""
        return getattr(self, f"{precision}_{unit}", None)

    @property
    def _used_share(self) -> float:
        return self.num_used / self.cores


class ProfileSource(Protocol):
    """What `device=` names: a profile, or how to get one."""

    @property
    def name(self) -> str:
        """As it is typed, and as rows call it."""
        ...

    def load(self, cache_dir: Path) -> DeviceProfile:
        """The profile, measured if it is missing. Raises ValueError."""
        ...


def _ns_per_byte(gb_per_s: float | None) -> float:
    """None: in no time."""
    return 0.0 if gb_per_s is None else 1 / gb_per_s


def ideal_device(name: str = "ideal") -> DeviceProfile:
    """A device that computes and handles messages in no time, for golden times of networks."""
    return DeviceProfile(
        name=name,
        cores=1,
        memory_gb=1e9,
        memory_gb_per_s=inf,
        peak_gflops=inf,
        op_overhead_us=0.0,
        disk_gb_per_s=inf,
        disk_latency_us=0.0,
        disk_queue_depth=1,
        message_overhead_us=0.0,
    )


def profiles_for(profiles: Sequence[DeviceProfile], num_devices: int) -> list[DeviceProfile]:
    """One profile a device: a single one stands for all, a list names each.

    Raises ValueError when the list has another length.
    """
    if len(profiles) == 1:
        return list(profiles) * num_devices
    if len(profiles) != num_devices:
        names = ",".join(profile.name for profile in profiles)
        raise ValueError(
            f"device=[{names}] names {len(profiles)} devices, but testbed.num_devices="
            f"{num_devices}; name one device, or as many as there are"
        )
    return list(profiles)


def profile_names(profiles: Sequence[DeviceProfile]) -> str:
    """As `2 x dell, raspberry_pi_5`, in order."""
    groups = [(name, len(list(same))) for name, same in groupby(p.name for p in profiles)]
    return ", ".join(f"{count} x {name}" if count > 1 else name for name, count in groups)
