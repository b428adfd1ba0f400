"""One device as an OS process: from a forked interpreter to its report.

Runs in the child; `handle.py` starts it. A control thread answers the launcher's status questions,
and ends the process when the launcher is gone, so nothing is ever left running.
"""

from __future__ import annotations

import functools
import hmac
import logging
import os
import queue
import signal
import socket
import sys
import threading
import traceback
from multiprocessing.connection import Connection
from typing import TypeVar

import torch

from tpi_bench.contract.job import DeviceReport, Job
from tpi_bench.contract.request import Generation, Turn
from tpi_bench.contract.runtime import DeviceLost, Explained
from tpi_bench.engine import device_model  # noqa: F401  (loaded once, where devices are forked)
from tpi_bench.engine.matrix import kernel_name
from tpi_bench.engine.rank import run_rank
from tpi_bench.host.disk import DirectReader, disk_bytes_read
from tpi_bench.host.machine import share_cores
from tpi_bench.host.memory import MemoryPeak, MemorySampler, keep_freed_memory, pss_bytes
from tpi_bench.processes.binding import bind_threads
from tpi_bench.processes.caps import Cap, CapTooSmall, Limit, is_out_of_memory
from tpi_bench.processes.control import (
    Answered,
    Asked,
    BadMessage,
    Control,
    Done,
    Enough,
    Entered,
    Failed,
    FromDevice,
    FromLauncher,
    Listening,
    Lost,
    Setup,
    Status,
    StatusQuestion,
    Token,
)
from tpi_bench.processes.handshake import LOOPBACK, Listener, connect_mesh
from tpi_bench.processes.mesh import Mesh
from tpi_bench.processes.runtime import WallRuntime
from tpi_bench.processes.services import Services, addresses, round_trips_ns
from tpi_bench.processes.tls import Credentials, Tls, TlsConnection

_CONNECT_S = 20.0
M = TypeVar("M", bound=FromLauncher)


def device_main(
    rank: int,
    job: Job,
    cap: Cap,
    connection: Connection,
    key: bytes = b"",
    credentials: Credentials | None = None,
) -> None:
    """Entry point of a device process; every way it can end is told to the launcher.

    `key` is what the run's secret is made with where control messages cross a network, and
    `credentials` what all that crosses it is encrypted with.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the launcher's to handle
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr, format="%(message)s")
    tls = None if credentials is None else Tls(credentials)
    control = Control(connection if tls is None else _encrypted(connection, job, tls))
    try:
        _run(rank, job, cap, control, key, tls)
    except DeviceLost as error:
        _tell(control, Lost(error.rank, error.reason))
    except Exception as error:
        _tell(control, _failure(error))
    else:
        return
    os._exit(1)


def _encrypted(connection: Connection, job: Job, tls: Tls) -> TlsConnection:
    """The connection to the launcher, which knows where it is not what it should be."""
    plain = socket.socket(fileno=os.dup(connection.fileno()))
    connection.close()
    try:
        return TlsConnection(tls.secured(plain, job.num_devices, _CONNECT_S, is_caller=True))
    except OSError:
        os._exit(1)


def _failure(error: Exception) -> Failed:
    """In one line; what nobody foresaw is printed in full."""
    reason = str(error).strip().split("\n")[0]
    if isinstance(error, CapTooSmall):
        return Failed("oom", reason)
    is_oom, is_clear = is_out_of_memory(error), isinstance(error, Explained)
    if not is_oom and not is_clear:
        traceback.print_exception(error)
    if not is_clear:
        reason = f"{type(error).__name__}: {reason}".removesuffix(": ")
    return Failed("oom" if is_oom else "error", reason)


def _run(rank: int, job: Job, cap: Cap, control: Control, key: bytes, tls: Tls | None) -> None:
    limit = cap.enter()
    _tell(control, Entered(limit))
    torch.set_num_threads(job.threads_per_device)
    torch.inference_mode().__enter__()
    if job.blocks:  # libraries run as their users run them
        keep_freed_memory()
    has_cores = _may_be_awake() and not share_cores(job.num_beside(rank) * job.threads_per_device)
    if job.cpus and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, job.cpus[rank])
    services = Services(job.program.server(job, rank))
    listener = Listener(job.hosts[rank] if job.hosts else LOOPBACK)
    _tell(control, Listening(listener.port, services.ports))
    setup = _hear(control, Setup)
    memory, disk_before = MemorySampler(), disk_bytes_read()
    secret = hmac.digest(key, bytes.fromhex(setup.secret), "sha256")
    sockets = connect_mesh(rank, setup.ports, listener, secret, _CONNECT_S, job.hosts, tls)
    mesh = Mesh(rank, sockets, job.network, is_watched=True, spins=has_cores)
    reader = DirectReader()
    others = addresses(setup.services)
    rt = WallRuntime(rank, job.num_devices, mesh, reader, trace=job.trace, addresses=others)
    asked = _Asked()
    threading.Thread(
        target=_serve_control, args=(control, mesh, rt, asked), name="control", daemon=True
    ).start()
    try:
        reader.open(block.path for block in job.blocks_of(rank))
        if has_cores and job.blocks:
            bind_threads(job.threads_per_device)
        on_token = functools.partial(_tell_token, control) if job.stream else None
        next_turn = functools.partial(_next_turn, control, asked) if job.talks else None
        served = [] if rank else round_trips_ns(setup.services, job.network)
        result = run_rank(rt, job, on_token, next_turn, asked.is_enough.is_set)
        memory.sample()
        pss, disk_after = pss_bytes("self"), disk_bytes_read()
    finally:
        reader.close()
        mesh.close()
    assert result.generation is not None or rank > 0
    kernel = kernel_name(job.weights) if job.blocks else "of the library"
    report = _report(rt, reader, memory.stop(), limit, kernel)
    report.disk_bytes_read = disk_after - disk_before
    if any(others):  # what passes its own sockets is not in ours
        report.bytes_sent = report.bytes_received = None
    if job.blocks:  # a library has let its model go by now
        report.peak_pss_bytes = pss
    done = Done(
        report=report,
        generation=result.generation,
        round_trips_ns=served or result.round_trips_ns,
        clocks=result.clocks,
    )
    _tell(control, done)


def _may_be_awake() -> bool:
    """Whether its cores are its own while it waits: as OpenMP's threads are told."""
    return os.environ.get("OMP_WAIT_POLICY", "").upper() != "PASSIVE"


def _report(
    rt: WallRuntime, reader: DirectReader, peak: MemoryPeak, limit: Limit, kernel: str
) -> DeviceReport:
    return DeviceReport(
        rank=rt.rank,
        pid=os.getpid(),
        num_threads=torch.get_num_threads(),
        kernel=kernel,
        start_anon_bytes=peak.start_anon_bytes,
        peak_anon_bytes=peak.peak_anon_bytes,
        peak_file_bytes=peak.peak_file_bytes,
        weight_bytes_read=reader.bytes_read,
        bytes_sent=rt.bytes_sent,
        bytes_received=rt.bytes_received,
        ledger_bytes=dict(rt.ledger_bytes),
        read_mode=reader.mode,
        memory_limit_bytes=limit.limit_bytes,
        spans=rt.log.spans,
    )


class _Asked:
    """What the launcher wants of a conversation: turns, and that an answer be over."""

    def __init__(self) -> None:
        self.turns: queue.SimpleQueue[Turn | None] = queue.SimpleQueue()
        self.is_enough = threading.Event()


def _serve_control(control: Control, mesh: Mesh, rt: WallRuntime, asked: _Asked) -> None:
    """Answer the launcher's questions for as long as it is there, and take what it asks."""
    while True:
        message = _hear(control, StatusQuestion, Asked, Enough)
        if isinstance(message, Asked):
            asked.is_enough.clear()  # that was of the turn before, which may have ended by itself
            asked.turns.put(message.turn)
            continue
        if isinstance(message, Enough):
            asked.is_enough.set()
            continue
        status = Status(
            waiting_for=mesh.waiting_for, is_computing=rt.is_computing, num_steps=rt.num_steps
        )
        _tell(control, status)


def _next_turn(control: Control, asked: _Asked, answer: Generation | None) -> Turn | None:
    _tell(control, Answered(answer))
    return asked.turns.get()


def _tell_token(control: Control, token_id: int) -> None:
    _tell(control, Token(token_id))


def _tell(control: Control, message: FromDevice) -> None:
    try:
        control.send(message)
    except OSError:  # the launcher is gone, and with it everyone who could be told
        os._exit(1)


def _hear(control: Control, *due: type[M]) -> M:
    """What the launcher says; without it, or in another tongue, there is nothing to go on with."""
    try:
        return control.receive(*due)
    except BadMessage as error:
        _tell(control, Failed("error", str(error)))
    except (EOFError, OSError):
        pass
    os._exit(1)
