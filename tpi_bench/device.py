"""One device as an OS process: from a forked interpreter to its report.

Runs in the child. A control thread answers the launcher's status questions, and ends the process
when the launcher is gone, so nothing is ever left running.
"""

from __future__ import annotations

import json
import logging
import math
import os
import signal
import sys
import threading
import traceback
from dataclasses import asdict
from multiprocessing.connection import Connection
from typing import Any

import torch

from tpi_bench import engine  # noqa: F401  (loaded once in the clean interpreter that devices are forked from)
from tpi_bench.caps import Cap, CapTooSmall, is_out_of_memory
from tpi_bench.disk import DirectReader, disk_bytes_read
from tpi_bench.handshake import Listener, connect_mesh
from tpi_bench.job import DeviceReport, Job, Output
from tpi_bench.links import NetworkConfig
from tpi_bench.memory import MemorySampler
from tpi_bench.pss import pss_bytes
from tpi_bench.runtime import BlockReadError, DeviceLost, Runtime
from tpi_bench.tcp import Mesh
from tpi_bench.wall import WallRuntime

_CONNECT_S = 20.0


def device_main(rank: int, job: Job, cap: Cap, control: Connection) -> None:
    """Entry point of a device process; every way it can end is told to the launcher."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the launcher's to handle
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr, format="%(message)s")
    try:
        _run(rank, job, cap, control)
    except DeviceLost as error:
        _tell(control, event="lost", peer=error.rank, reason=error.reason)
    except Exception as error:
        is_oom, is_clear = is_out_of_memory(error), isinstance(error, (BlockReadError, CapTooSmall))
        if not is_oom and not is_clear:
            traceback.print_exc()
        reason = str(error).strip().split("\n")[0]
        if not is_clear:
            reason = f"{type(error).__name__}: {reason}".removesuffix(": ")
        _tell(control, event="failed", status="oom" if is_oom else "error", reason=reason)
    else:
        return
    os._exit(1)


def _run(rank: int, job: Job, cap: Cap, control: Connection) -> None:
    limit = cap.enter()
    _tell(control, event="entered", limit=asdict(limit))
    torch.set_num_threads(job.threads_per_device)
    torch.inference_mode().__enter__()
    if job.cpus and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, job.cpus[rank])
    listener = Listener()
    _tell(control, event="listening", port=listener.port)
    setup = json.loads(control.recv_bytes())
    secret = bytes.fromhex(setup["secret"])
    memory, disk_before = MemorySampler(), disk_bytes_read()
    sockets = connect_mesh(rank, setup["ports"], listener, secret, _CONNECT_S)
    mesh = Mesh(rank, sockets, job.network, is_watched=True)
    reader = DirectReader()
    rt = WallRuntime(rank, job.num_devices, mesh, reader, trace=job.trace)
    threading.Thread(
        target=_serve_control, args=(control, mesh, rt), name="control", daemon=True
    ).start()
    try:
        reader.open(job.blocks[rank] if job.blocks else [])
        round_trips = measure_round_trips(rt, job.network)
        logits: list[torch.Tensor] = []
        output = _master_output(rank, job, control, logits)
        generation = job.program.run_device(rt, job, output)
        if logits and job.logits_path:
            torch.save(torch.stack(logits), job.logits_path)
        memory.sample()
        pss, disk_after = pss_bytes("self"), disk_bytes_read()
    finally:
        reader.close()
        mesh.close()
    peak = memory.stop()
    report = DeviceReport(
        rank=rank,
        pid=os.getpid(),
        num_threads=torch.get_num_threads(),
        start_anon_bytes=peak.start_anon_bytes,
        peak_anon_bytes=peak.peak_anon_bytes,
        peak_file_bytes=peak.peak_file_bytes,
        weight_bytes_read=reader.bytes_read,
        ledger_bytes=dict(rt.ledger_bytes),
        read_mode=reader.mode,
        disk_bytes_read=disk_after - disk_before,
        peak_pss_bytes=pss if job.blocks else math.nan,  # a library has let its model go by now
        memory_limit_bytes=limit.limit_bytes,
        spans=[[s.kind, s.key, s.start_ns, s.end_ns] for s in rt.log.spans],
    )
    result: dict[str, Any] = {"report": asdict(report)}
    if rank == 0:
        assert generation is not None
        result |= {"generation": asdict(generation), "round_trips_ns": round_trips}
    _tell(control, event="done", **result)


def measure_round_trips(rt: Runtime, network: NetworkConfig) -> list[int]:
    """Times of 8-byte messages from the master to a worker and back, every worker in turn, in ns.

    As many as fit in about a quarter of a second on the emulated links; the first of each worker is
    dropped.
    """
    ping = torch.zeros(1, dtype=torch.int64)
    budget = 250_000_000 // max(1, 2 * network.one_way_ns * (rt.world_size - 1))
    count = max(3, min(20, budget))
    times = []
    for worker in range(1, rt.world_size):
        for attempt in range(count):
            if rt.rank == 0:
                start = rt.now()
                rt.send(worker, ping)
                rt.recv(worker, ping)
                if attempt:
                    times.append(rt.now() - start)
            elif rt.rank == worker:
                rt.recv(0, ping)
                rt.send(0, ping)
    return times


def _master_output(rank: int, job: Job, control: Connection, logits: list[torch.Tensor]) -> Output:
    output = Output()
    if rank == 0 and job.logits_path:
        output.on_logits = lambda row: logits.append(row.clone())
    if rank == 0 and job.stream:
        output.on_token = lambda token: _tell(control, event="token", token=token)
    return output


def _serve_control(control: Connection, mesh: Mesh, rt: WallRuntime) -> None:
    """Answer `status` questions; end the process when the launcher is gone."""
    try:
        while True:
            control.recv_bytes()
            _tell(
                control,
                event="status",
                waiting_for=mesh.waiting_for,
                is_computing=rt.is_computing,
                num_steps=rt.num_steps,
            )
    except (EOFError, OSError):
        os._exit(1)


def _tell(control: Connection, **message: Any) -> None:
    try:
        control.send_bytes(json.dumps(message).encode())
    except OSError:  # the launcher is gone, and with it everyone who could be told
        os._exit(1)
