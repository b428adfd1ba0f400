"""Control messages: every one there and back, anything else refused and put down to its device."""

from __future__ import annotations

import gc
import json
import typing
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.processes import LONG, no_children_left
from tests.helpers.running import make_job
from tpi_bench.contract.job import DeviceReport, Job, Output
from tpi_bench.contract.request import Generation, Turn
from tpi_bench.contract.runtime import ClockReading, Span
from tpi_bench.engine.tpi import TpiSystem
from tpi_bench.processes import control
from tpi_bench.processes.caps import Limit
from tpi_bench.processes.control import BadMessage, decode, encode
from tpi_bench.processes.launcher import run_job

REPORT = DeviceReport(
    rank=1,
    pid=7,
    num_threads=2,
    kernel="torch",
    start_anon_bytes=100,
    peak_anon_bytes=200.5,
    peak_file_bytes=300.0,
    weight_bytes_read=4096,
    bytes_sent=1024,
    bytes_received=2048,
    ledger_bytes={"window": 512},
    read_mode="direct",
    disk_bytes_read=0.0,
    peak_cgroup_bytes=1.0,
    peak_pss_bytes=2.0,
    memory_limit_bytes=3.0,
    clock_offset_ns=4.0,
    clock_error_ns=5.0,
    memory_bps=6.0,
    disk_bps=7.0,
    spans=[Span("compute", "attn", 1, 2, 1, 0), Span("read", "ffn_0", 3, 4)],
)
GENERATION = Generation(
    token_ids=[5, 6], request_ns=10, token_ns=[20, 30], account=[{"compute": 3}, {"sync": 4}]
)
MESSAGES: dict[str, Any] = {
    '["Entered", {"limit": {"limit_bytes": 1.5, "base_bytes": 2}}]': control.Entered(
        Limit(limit_bytes=1.5, base_bytes=2)
    ),
    '["Listening", {"port": 4711, "services": []}]': control.Listening(4711),
    '["Token", {"token_id": 42}]': control.Token(42),
    '["Failed", {"status": "oom", "reason": "no more"}]': control.Failed("oom", "no more"),
    '["Lost", {"peer": 2, "reason": "sent nothing"}]': control.Lost(2, "sent nothing"),
    '["Status", {"waiting_for": null, "is_computing": true, "num_steps": 9}]': control.Status(
        waiting_for=None, is_computing=True, num_steps=9
    ),
    '["Status", {"waiting_for": 3, "is_computing": false, "num_steps": 9}]': control.Status(
        waiting_for=3, is_computing=False, num_steps=9
    ),
    '["Answered", {"generation": null}]': control.Answered(None),
    '["Asked", {"turn": {"position": 3, "token_ids": [7], "num_new_tokens": 5}}]': control.Asked(
        Turn(position=3, token_ids=[7], num_new_tokens=5)
    ),
    '["Asked", {"turn": null}]': control.Asked(None),
    '["Enough", {}]': control.Enough(),
    '["Setup", {"ports": [4711, 4712], "secret": "00ff", "services": []}]': control.Setup(
        ports=[4711, 4712], secret="00ff"
    ),
    '["StatusQuestion", {}]': control.StatusQuestion(),
}


@pytest.mark.parametrize("text", MESSAGES)
def test_a_message_there_and_back(text: str) -> None:
    message = MESSAGES[text]
    assert encode(message) == text.encode()
    assert decode(text.encode(), type(message)) == message


@pytest.mark.parametrize("generation", [GENERATION, None])
def test_a_result_there_and_back(generation: Generation | None) -> None:
    """With all that is in it: reports, spans, and who has not a thing."""
    done = control.Done(
        report=REPORT,
        generation=generation,
        round_trips_ns=[1, 2],
        clocks=[ClockReading(rank=1, offset_ns=-5, error_ns=2, at_ns=7)],
    )
    data = encode(done)
    assert decode(data, *control.FROM_DEVICE) == done
    assert json.loads(data)[1]["report"]["spans"][0] == {
        "kind": "compute",
        "key": "attn",
        "start_ns": 1,
        "end_ns": 2,
        "cpu_ns": 1,
        "core_wait_ns": 0,
    }


def test_every_message_is_tested() -> None:
    kinds = {control.Done, *(type(message) for message in MESSAGES.values())}
    assert kinds == {*control.FROM_DEVICE, *typing.get_args(control.FromLauncher)}


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x80\x04\x95",  # the beginning of a pickle
        b"status",
        b"null",
        b'{"event": "token", "token": 1}',
        b'["Token"]',
        b'["Surprise", {}]',
        b'[["Token"], {}]',
        b'["Setup", {"ports": [1], "secret": "00"}]',  # the launcher's to send
        b'["Token", 1]',
        b'["Token", {}]',
        b'["Token", {"token_id": 1, "more": 2}]',
        b'["Token", {"token_id": "1"}]',
        b'["Token", {"token_id": true}]',
        b'["Token", {"token_id": 1.0}]',
        b'["Entered", {"limit": null}]',
        b'["Entered", {"limit": {"limit_bytes": 1}}]',
        b'["Status", {"waiting_for": "1", "is_computing": true, "num_steps": 1}]',
    ],
)
def test_anything_else_is_refused(data: bytes) -> None:
    with pytest.raises(BadMessage, match="is unknown or malformed"):
        decode(data, *control.FROM_DEVICE)


class Babbler(TpiSystem):
    """One rank says what is no message when the program starts."""

    def run_device(self, rt: Any, job: Job, output: Output) -> Generation | None:
        if rt.rank == 1:
            own = next(thing for thing in gc.get_objects() if isinstance(thing, control.Control))
            own.connection.send_bytes(b'["Surprise", {}]')
        return super().run_device(rt, job, output)


def test_a_device_that_says_what_is_no_message_has_failed(
    checkpoints: dict[str, Path], cache_dir: Path
) -> None:
    job = make_job(Babbler(), checkpoints["gqa"], cache_dir, num_devices=2, request=LONG)
    outcome = run_job(job)
    reason = """control message b'["Surprise", {}]' is unknown or malformed"""
    assert (outcome.status, outcome.error) == ("error", f"rank 1 failed: {reason}")
    assert no_children_left()
