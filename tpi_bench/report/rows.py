"""Every column of every table, once: its name, type, unit and meaning.

A record is made of these rows (`measure/record.py`), the Parquet files carry units and meanings,
and the list in `results/README.md` is written from here (`columns.py`). What was not measured is
NaN for a number of seconds or bytes, and null for anything else.
"""

from __future__ import annotations

import functools
import math
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, Self

SETTINGS = "system_settings"  # the field that stands for a column a setting
SETTING_PREFIX = "system_"
BUSY_SHARE = 0.2  # of the cores: a host of which others take more is called busy
STOLEN_SHARE = 0.02  # and one whose hypervisor gives more of its time to others


def column(unit: str, meaning: str) -> Any:
    """A field of a row."""
    return field(metadata={"unit": unit, "meaning": meaning})


@dataclass(frozen=True, kw_only=True)
class Row:
    """Some columns. Each must be given: one that is forgotten cannot be written. What is measured
    stays as it is: another value makes another row (`dataclasses.replace`).
    """

    @classmethod
    def unmeasured(cls) -> Self:
        """All columns empty."""
        empty: dict[Any, Any] = {float: math.nan, dict[str, str]: {}}
        return cls(
            **{name: empty.get(hint) for name, hint in _hints(typing.cast(Any, cls)).items()}
        )

    @classmethod
    def from_cells(cls, cells: Mapping[str, Any]) -> Self:
        """As stored; columns that an older record lacks are empty, others that it has are lost."""
        known = vars(cls.unmeasured())
        return cls(**(known | {name: cells[name] for name in known if name in cells}))


@functools.cache
def _hints(cls: type[Row]) -> dict[str, Any]:
    """The types of its columns: a sweep asks for thousands of rows."""
    hints = typing.get_type_hints(cls)
    return {each.name: hints[each.name] for each in fields(cls)}


@dataclass(frozen=True, kw_only=True)
class Asked(Row):
    """What the point is."""

    experiment: str = column("", "the name that was given to the sweep (`name=`)")
    point: str = column("", "names the point: a digest of its configuration")
    config_hash: str = column("", "the same without the repeat and the experiment's name")
    overrides: str | None = column(
        "", "as typed or swept: the point again, behind `python -m tpi_bench task=measure`"
    )
    repeat: int = column("", "which of the repeats it is")
    system: str = column("", "`system=`")
    label: str = column("", "how figures call the system")
    variant: str = column("", "behind the label: settings that make it another line")
    is_library: bool = column("", "somebody else's program: a real library, a server")
    system_settings: dict[str, str] = column("", "the system's own setting of that name")
    model: str = column("", "name of the model")
    dtype: str = column("", "what the system computes in")
    weights: str = column("", "what it holds weights in: `float32` .. `q4`")
    workload: str | None = column("", "`workload.name`")
    num_devices: int = column("", "devices, the master included")
    topology: str = column("", "`network.topology`")
    link_latency_ms: float = column("ms", "asked latency of one hop")
    jitter_ms: float = column("ms", "largest deviation of one hop's latency")
    bandwidth_mbps: float = column("Mbit/s", "rate of each link; 0 is unlimited")
    clock: str = column("", "`wall`, or `virtual`: simulated time")
    cost: str = column("", "of a computation: `real`, `measured` (here, alone), `modelled`")
    note: str = column("", "what must be known of the row before it is used")
    memory_mb: float = column("MB", "asked memory of a device, the smallest where they differ")
    timeout_s: float = column("s", "asked bound on the run's wall time")


@dataclass(frozen=True, kw_only=True)
class Ended(Row):
    """How it went."""

    started: str = column("", "time of day, UTC")
    status: str = column("", "`ok`, `oom`, `timeout`, `device_lost` or `error`")
    error: str | None = column("", "the reason, where the status is not `ok`")
    wall_s: float = column("s", "from the start of the devices to the end of the last")
    num_events: int | None = column("", "events of a run in virtual time, else 0")


@dataclass(frozen=True, kw_only=True)
class Circumstances(Row):
    """On what it ran, and what it was given."""

    hidden: int | None = column("", "the model's hidden size")
    prompt_tokens: int | None = column(
        "", "tokens of the prompt; of `endpoint`, as the server counts"
    )
    prefill_chunk: int | None = column("", "most of them that one step takes; empty: all")
    num_tokens_asked: int | None = column("", "tokens that were to be generated")
    threads_per_device: int | None = column("", "threads that a device computes with")
    pinned: bool | None = column("", "whether devices were pinned to cores")
    cores: int | None = column("", "cores of this host that may be used")
    devices_share_cores: bool | None = column(
        "", "more threads than cores: real devices would be faster"
    )
    device: str | None = column("", "device profiles, `this host`, or the server that was asked")
    kernel: str | None = column("", "what multiplies a weight with one vector on the master")
    cores_per_device: float = column("", "cores of the first profile that compute")


@dataclass(frozen=True, kw_only=True)
class HostNoise(Row):
    """What else this host did, where its speed is in the row; `measure/noise.py` looks."""

    busy_cores_start: float = column(
        "", "cores of this host that others kept busy just before it was measured"
    )
    busy_cores_end: float = column("", "the same just after")
    steal_share: float = column(
        "", "share of its cores' time, from before to after, that the hypervisor gave to others"
    )
    clock_mhz_start: float = column("MHz", "clock rate just before, as the system tells it")
    clock_mhz_end: float = column("MHz", "the same just after")
    memory_bps_start: float = column("bytes/s", "memory bandwidth as probed just before")
    memory_bps_end: float = column("bytes/s", "the same just after")
    disk_bps_start: float = column("bytes/s", "disk bandwidth as probed just before")
    disk_bps_end: float = column("bytes/s", "the same just after")


@dataclass(frozen=True, kw_only=True)
class Speed(Row):
    """One definition for all systems; `measure/metrics.py` computes it."""

    ttft_s: float = column("s", "from the request at the master to the first sampled token")
    warmup_ttft_s: float = column("s", "the same of the warm-up, which counts nowhere else")
    token_latency_s: float = column("s", "mean gap between later tokens: (last - first) / (n - 1)")
    token_latency_p50_s: float = column(
        "s", "median of these gaps; of tokens that come together all but the first have gap 0"
    )
    token_latency_p95_s: float = column("s", "95th percentile of these gaps")
    token_latency_p99_s: float = column("s", "99th percentile of these gaps")
    token_jitter_s: float = column(
        "s", "how uneven they are: mean difference of a gap and the gap before it; empty of one gap"
    )
    ttft_low_s: float = column(
        "s",
        "low end of an 80 % interval: virtual time with what a device did in each round of its "
        "calibration (`testbed.interval`)",
    )
    ttft_high_s: float = column("s", "its high end")
    token_latency_low_s: float = column("s", "low end of the same for the token latency")
    token_latency_high_s: float = column("s", "its high end")
    num_tokens: int | None = column("", "tokens that were generated")
    compute_share: float = column("", "median share of a gap that the master computes")
    sync_share: float = column("", "the same of sending, receiving and adding up")
    load_wait_share: float = column("", "the same of asking and waiting for weights")
    sampling_share: float = column("", "the same of sampling")
    unexplained_share: float = column(
        "", "median share of a gap that its spans on the master do not cover"
    )


@dataclass(frozen=True, kw_only=True)
class Energy(Row):
    """What the host used, where it tells; `measure/energy.py` asks."""

    joules_per_token: float = column(
        "J", "of the whole host, of tokens after the first; empty where it does not tell"
    )
    energy_source: str | None = column(
        "", "`rapl`: counters of processor and memory; `battery`: its power; of this host"
    )


@dataclass(frozen=True, kw_only=True)
class Speculated(Row):
    """How tokens were drafted, and how many a pass gave; `measure/metrics.py` counts."""

    speculation: str | None = column("", "`workload.speculation`: none, lookup or draft")
    draft_tokens: int | None = column("", "tokens that a pass proposes at most; empty without")
    draft_model: str | None = column("", "the model that drafts, and what its weights are held in")
    num_passes: int | None = column(
        "", "passes over all weights after the first token; empty where a library does not say"
    )
    pass_latency_s: float = column("s", "mean time of these passes: (last - first) / passes")
    tokens_per_pass: float = column("", "tokens after the first, over these passes")
    num_proposed: int | None = column("", "tokens that were drafted; empty where none are")
    num_accepted: int | None = column("", "of these, what is in the answer")
    acceptance: float = column("", "accepted over proposed")
    acceptance_asked: float = column("", "`workload.acceptance`, where none is real")


@dataclass(frozen=True, kw_only=True)
class Limits(Row):
    """What a token costs at least; `measure/limits.py` computes it. Where a pass gives several, it
    is a pass's cost over them.
    """

    memory_bps: float = column(
        "bytes/s",
        "memory bandwidth, of the host with threads as compute at once, or of the slowest profile",
    )
    disk_bps: float = column("bytes/s", "disk bandwidth, of the host or the slowest profile")
    limit_memory_s: float = column("s", "a token's weight bytes over memory bandwidth")
    limit_disk_s: float = column("s", "a token's streamed bytes over disk bandwidth")
    limit_network_s: float = column("s", "what the links cost a token at least")
    limit_token_s: float = column("s", "nothing can be faster, whatever overlaps")
    limit_spread: float = column(
        "",
        "how far below the best the middle one of the probe's passes was, of memory or of disk: a "
        "share of the rate; 0 where rates are given",
    )
    busy_cores_probe: float = column(
        "", "cores that others kept busy during the quietest of the probes of memory and disk"
    )
    beats_limit: bool | None = column(
        "", "faster than the limit by more than this spread: the host was slower when it was probed"
    )
    raw_round_trip_s: float = column(
        "s",
        "a hidden state between two plain processes and back, measured before the point where "
        "links are not emulated",
    )


@dataclass(frozen=True, kw_only=True)
class Links(Row):
    """An empty message from the master to a worker and back, and what was sent in all."""

    asked_round_trip_s: float = column("s", "as the network was asked for")
    link_round_trip_s: float = column("s", "median of those measured before the request")
    link_round_trip_min_s: float = column("s", "the least of them")
    tls: bool | None = column("", "whether all that devices send is encrypted (TLS 1.3)")
    bytes_sent: int | None = column(
        "bytes", "from device to device: warm-up, prompt and answer, all devices together"
    )


@dataclass(frozen=True, kw_only=True)
class Exactness(Row):
    """Beside the oracle, with `check=true`; `measure/oracle.py` compares."""

    tokens_equal: bool | None = column("", "whether all tokens are the oracle's")
    num_same_tokens: int | None = column("", "tokens that are the oracle's at their places")
    num_leading_tokens: int | None = column("", "tokens before the first that differs")
    max_logit_diff: float = column("", "largest difference of logits up to the first other token")
    logit_bound: float = column(
        "", "what rounding alone may make of it; `measure/rounding.py` computes it"
    )


@dataclass(frozen=True, kw_only=True)
class Quality(Row):
    """How good the model is at this precision, with `workload.text`."""

    perplexity: float = column("", "of the text: exp of the mean of -ln p over its tokens")


@dataclass(frozen=True, kw_only=True)
class PageCache(Row):
    """What the kernel kept of the point's files."""

    cache: str | None = column(
        "", "`cold`: dropped before the run, if the system can; `warm`: left; `virtual`: none"
    )
    cached_bytes_start: float = column("bytes", "of the point's files in the cache at the start")
    large_free_bytes: float = column(
        "bytes", "free memory of this host in pieces of 2 MB at least, at the start"
    )
    page_cache: str | None = column("", "how files were read, as `read_mode` of the devices")


@dataclass(frozen=True, kw_only=True)
class Memory(Row):
    """The largest of all devices; the device table has each."""

    peak_anon_bytes: float = column("bytes", "anonymous pages, Python and torch included")
    peak_file_bytes: float = column("bytes", "pages of mapped files")
    memory_cap: str | None = column("", "what enforced the cap")
    peak_cgroup_bytes: float = column(
        "bytes", "charged to the device's cgroup beside what it started with, page cache included"
    )
    pss_interval_s: float = column("s", "longest time between two looks at `peak_pss_bytes`")
    ledger_bytes: float = column("bytes", "what the rank program entered as held")
    kept_bytes: float = column("bytes", "weights that are loaded once and kept, as planned")
    streamed_bytes: float = column("bytes", "weights that each token reads anew, as planned")
    window_bytes: float = column("bytes", "the memory that these pass through")


@dataclass(frozen=True, kw_only=True)
class Provenance(Row):
    """Where the row comes from."""

    commit: str = column(
        "", "of this program, `+changes` where files differed from it; its version, if installed"
    )
    host: str = column("", "name of the machine")
    cpu: str = column("", "its processor")
    platform: str = column("", "its system")
    python: str = column("", "version")
    torch_version: str = column("", "version")
    transformers_version: str = column("", "version")
    safetensors_version: str = column("", "version")
    numpy_version: str = column("", "version")


PARTS = (
    Asked,
    Ended,
    Circumstances,
    HostNoise,
    Speed,
    Energy,
    Speculated,
    Links,
    Limits,
    Exactness,
    Quality,
    PageCache,
    Memory,
    Provenance,
)


@dataclass(frozen=True, kw_only=True)
class RunRow(
    Provenance,
    Memory,
    PageCache,
    Quality,
    Exactness,
    Limits,
    Links,
    Speculated,
    Energy,
    Speed,
    HostNoise,
    Circumstances,
    Ended,
    Asked,
):
    """A point that was run: all parts (a dataclass lays its bases' fields from last to first)."""

    @classmethod
    def of(cls, *parts: Row) -> RunRow:
        """From its parts; those left out were not measured."""
        given = {type(part): part for part in parts}
        cells: dict[str, Any] = {}
        for kind in PARTS:
            cells |= vars(given[kind] if kind in given else kind.unmeasured())
        return cls(**cells)

    @classmethod
    def from_cells(cls, cells: Mapping[str, Any]) -> RunRow:
        """The inverse of `cells`."""
        settings = {
            name.removeprefix(SETTING_PREFIX): value
            for name, value in cells.items()
            if name.startswith(SETTING_PREFIX)
        }
        return super().from_cells({**cells, SETTINGS: settings})

    def cells(self) -> dict[str, Any]:
        """Column by column, the system's settings as columns of their own."""
        found: dict[str, Any] = {}
        for each in fields(self):
            value = getattr(self, each.name)
            if each.name == SETTINGS:
                found |= {f"{SETTING_PREFIX}{name}": setting for name, setting in value.items()}
            else:
                found[each.name] = value
        return found

    @property
    def is_answer(self) -> bool:
        """Whether it answers what was asked: also that it does not fit, or takes too long.

        A timeout that `timeout_s` did not bring about is a device that hangs, and no answer.
        """
        took_too_long = self.status == "timeout" and self.wall_s >= self.timeout_s
        return self.status in ("ok", "oom") or took_too_long

    @property
    def was_disturbed(self) -> bool:
        """Whether others took much of the host just before it was measured, or meanwhile."""
        is_busy = self.busy_cores_start > BUSY_SHARE * (self.cores or math.inf)
        return is_busy or self.steal_share > STOLEN_SHARE

    @property
    def probe_was_disturbed(self) -> bool:
        """Whether they did so each time that its limits were probed."""
        return self.busy_cores_probe > BUSY_SHARE * (self.cores or math.inf)

    @property
    def is_of_busy_host(self) -> bool:
        """Whether its times or its limits are."""
        return self.was_disturbed or self.probe_was_disturbed

    @property
    def differs_from_oracle(self) -> bool:
        """Whether it should have the oracle's tokens and has others: what computes in fp32.

        Narrower numbers round differently, and so do libraries with quantised weights and hidden
        states that are packed for the wire: they are compared but not judged.
        """
        is_rounded = self.is_library and self.weights in ("q8", "q4")
        is_packed = self.system_settings.get("wire", "auto") != "auto"
        is_exact = self.dtype == "float32" and not is_rounded and not is_packed
        return is_exact and self.status == "ok" and self.tokens_equal is False


@dataclass(frozen=True, kw_only=True)
class TokenRow(Row):
    """A token, and where on the master the time before it went."""

    token_index: int = column("", "0 is the first")
    token_id: int = column(
        "", "in the model's vocabulary; means nothing where costs are modelled; -1 is not known"
    )
    gap_s: float = column("s", "since the token before, or the request")
    compute_s: float = column("s", "of it, computing")
    sync_s: float = column("s", "of it, sending, receiving and adding up")
    load_wait_s: float = column("s", "of it, asking and waiting for weights")
    sampling_s: float = column("s", "of it, sampling")
    unexplained_s: float = column("s", "the rest")


@dataclass(frozen=True, kw_only=True)
class DeviceRow(Row):
    """A device of a run."""

    rank: int = column("", "0 is the master")
    pid: int = column("", "process")
    num_threads: int = column("", "threads that it computed with")
    kernel: str = column("", "what multiplies a weight with one vector")
    start_anon_bytes: float = column("bytes", "anonymous pages before the run: Python and torch")
    peak_anon_bytes: float = column("bytes", "anonymous pages, these included")
    peak_file_bytes: float = column("bytes", "pages of mapped files")
    weight_bytes_read: int = column("bytes", "asked of the disk for weights")
    bytes_sent: int | None = column(
        "bytes", "sent to other devices: warm-up, prompt and answer; empty where nobody counts"
    )
    bytes_received: int | None = column("bytes", "received from other devices")
    ledger_bytes: int = column("bytes", "what the rank program entered as held")
    read_mode: str = column("", "`direct`, `buffered, ...`, `mapped files`, `virtual` or `none`")
    disk_bytes_read: float = column("bytes", "what it made the disk read, page-ins included")
    peak_cgroup_bytes: float = column("bytes", "charged to its cgroup beside what it started with")
    peak_pss_bytes: float = column("bytes", "proportional set size; shared pages count in parts")
    memory_limit_bytes: float = column("bytes", "enforced limit, or the profile's memory")
    kept_bytes: float = column("bytes", "weights that are loaded once and kept, as planned")
    streamed_bytes: float = column("bytes", "weights that each token reads anew, as planned")
    window_bytes: float = column("bytes", "the memory that these pass through")
    profile: str = column("", "its device profile, or `this host`, or the node that it is")
    clock_offset_ns: float = column("ns", "how far its clock was ahead of the master's, on a node")
    clock_error_ns: float = column("ns", "give or take so much: half of the fastest round trip")
    memory_bps: float = column("bytes/s", "memory bandwidth of its node, probed before the point")
    disk_bps: float = column("bytes/s", "disk bandwidth of its node, where a token reads from it")


@dataclass(frozen=True, kw_only=True)
class LinkRow(Row):
    """The way from a device to another between machines (`testbed=cluster`)."""

    src: int = column("", "rank of the device that sends")
    dst: int = column("", "rank of the one that receives")
    round_trip_s: float = column("s", "median of empty messages there and back")
    round_trip_min_s: float = column("s", "the least of them")
    bandwidth_mbps: float = column("Mbit/s", "of a long message that is alone")
    tls_round_trip_s: float = column("s", "as `round_trip_s`, under TLS (`network.tls=true`)")
    tls_bandwidth_mbps: float = column("Mbit/s", "as `bandwidth_mbps`, under TLS")


@dataclass(frozen=True, kw_only=True)
class SpanRow(Row):
    """What took from one time to another on a device (`testbed.trace=true`)."""

    rank: int = column("", "of the device")
    kind: str = column("", "`compute`, `sync`, `sampling`, `load_wait`; `read` in the background")
    key: str = column("", "which computation, message or block")
    start_ns: int = column("ns", "on the clock that all devices share; of nodes, the master's")
    end_ns: int = column("ns", "on the clock that all devices share")
    cpu_ns: int | None = column(
        "ns", "of it, its first thread ran; empty in virtual time and for `read`"
    )
    core_wait_ns: int | None = column(
        "ns", "of it, that thread was ready and others had the cores; empty off Linux too"
    )


@dataclass(frozen=True, kw_only=True)
class Record:
    """A point that was measured, or failed: its rows, and the configuration they came from."""

    run: RunRow
    tokens: list[TokenRow] = field(default_factory=list)
    devices: list[DeviceRow] = field(default_factory=list)
    spans: list[SpanRow] = field(default_factory=list)
    links: list[LinkRow] = field(default_factory=list)
    config: dict[str, Any] = field(default_factory=dict)

    def begun(self, started: str) -> Record:
        """As if it had been begun then, for rows that are sorted by it."""
        return replace(self, run=replace(self.run, started=started))
