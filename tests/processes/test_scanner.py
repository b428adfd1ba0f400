"""A port scanner at work while a run starts: strangers are refused, the answer stays the same."""

from __future__ import annotations

import contextlib
import itertools
import json
import re
import socket
import struct
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import psutil

from tests.helpers.command_line import ROOT
from tests.helpers.models_zoo import oracle

NUM_DEVICES = 4
NUM_PER_PORT = 40
# what a scanner sends: another protocol, half of a device's first message, or nothing at all
PROBES = [
    b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n" + b"x" * 100,
    struct.pack("<4sI", b"TPI1", 1) + bytes(10),
    b"",
]
# Devices listen from their start until all of them have met. The run's secret is made in between:
# a second more there, and the scanner finds every port.
LATE_LAUNCHER = """
import secrets, time
from tpi_bench.app.main import main
from tpi_bench.measure import point

point._PAUSES_S = (0.0,)  # before its limits are probed again

make_secret = secrets.token_hex

def late(num_bytes):
    time.sleep(1)
    return make_secret(num_bytes)

secrets.token_hex = late
main()
"""


def listening_ports(launcher: psutil.Process) -> set[int]:
    """Ports on which the launcher's descendants listen right now."""
    ports: set[int] = set()
    with contextlib.suppress(psutil.Error):
        for child in launcher.children(recursive=True):
            with contextlib.suppress(psutil.Error):
                connections = child.net_connections(kind="tcp")
                ports |= {c.laddr.port for c in connections if c.status == psutil.CONN_LISTEN}
    return ports


def scan(process: subprocess.Popen, num_per_port: int) -> list[socket.socket]:
    """Connect to each port when it is open, send probes and hold the connections."""
    launcher, probes = psutil.Process(process.pid), itertools.cycle(PROBES)
    held: dict[int, list[socket.socket]] = {}
    deadline = time.monotonic() + 60
    while process.poll() is None and len(held) < NUM_DEVICES and time.monotonic() < deadline:
        for port in listening_ports(launcher) - held.keys():
            held[port] = []
            with contextlib.suppress(OSError):  # it may have closed since
                for probe in itertools.islice(probes, num_per_port):
                    held[port].append(socket.create_connection(("127.0.0.1", port), timeout=1))
                    held[port][-1].sendall(probe)
        time.sleep(0.02)
    return [connection for connections in held.values() for connection in connections]


def test_a_port_scanner_does_not_disturb_a_run(
    checkpoints: dict[str, Path], cache_dir: Path
) -> None:
    """Forty connections to each port."""
    folder = checkpoints["gqa"]
    command = [
        sys.executable,
        "-c",
        LATE_LAUNCHER,
        "report=json",
        "model=hf",
        f"model.path={folder}",
        f"testbed.num_devices={NUM_DEVICES}",
        "network.link_latency_ms=2",
        "workload.prompt_ids=[1,2,3]",
        "workload.num_new_tokens=16",
        f"cache_dir={cache_dir}",
    ]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT
    )
    try:
        held = scan(process, NUM_PER_PORT)
        output, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 0, errors
    report = json.loads(output.strip().split("\n")[-1])
    assert report["status"] == "ok"
    assert report["token_ids"] == oracle(folder, (1, 2, 3), 16)[0]
    assert len(held) == NUM_DEVICES * NUM_PER_PORT
    refused = re.findall(r"rank (\d) refused a connection from 127\.0\.0\.1:(\d+)", errors)
    # the last device is called by nobody, and shuts its door without a look
    ranks = Counter(int(rank) for rank, _ in refused)
    assert ranks == dict.fromkeys(range(NUM_DEVICES - 1), NUM_PER_PORT)
    # only the scanner was refused, no device of the run
    assert {int(port) for _, port in refused} < {sock.getsockname()[1] for sock in held}
    for connection in held:
        connection.close()
