"""What the launcher holds of one device: its process, the pipe to it, and how far it has come."""

from __future__ import annotations

from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext

from tpi_bench.contract.job import Job
from tpi_bench.host.fork import InterpreterLost, start_process
from tpi_bench.processes.caps import Cap, Limit
from tpi_bench.processes.control import Control

_FAREWELL_S = 2.0


class DeviceHandle:
    """Starts the device. Of what it has told, `limit`, `port`, `services` and whether it is done.

    Raises InterpreterLost when there is nothing to fork it from.
    """

    def __init__(self, rank: int, job: Job, cap: Cap, context: ForkServerContext) -> None:
        ours, theirs = context.Pipe()
        self.rank = rank
        self.control = Control(ours)
        self.limit: Limit | None = None  # until it has entered its cap
        self.port: int | None = None
        self.services: list[int] = []  # ports of what it serves
        self.is_done = False
        self.is_closed = False  # nothing more is heard of it
        self._process = context.Process(
            target=_run_device, args=(rank, job, cap, theirs), name=f"rank {rank}", daemon=True
        )
        try:
            start_process(self._process)
        except InterpreterLost:
            ours.close()
            raise
        finally:
            theirs.close()

    @property
    def is_running(self) -> bool:
        return not self.is_closed and not self.is_done

    @property
    def pid(self) -> int:
        return self._process.pid or 0

    def exit_code(self) -> int | None:
        """Of a device that has hung up, once it is known."""
        self._process.join(1.0)
        return self._process.exitcode

    def end(self, *, in_peace: bool) -> None:
        """No device outlives its job; one that is done may come to its own end."""
        self._process.join(_FAREWELL_S if in_peace else 0.0)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()
        self.control.connection.close()
        self._process.close()


def _run_device(rank: int, job: Job, cap: Cap, connection: Connection) -> None:
    """Runs in the child, where the fork server has loaded torch; the launcher never does."""
    from tpi_bench.processes.device import device_main

    device_main(rank, job, cap, connection)
