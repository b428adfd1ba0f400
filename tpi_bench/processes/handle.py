"""What the launcher holds of one device: its process, the pipe to it, and how far it has come."""

from __future__ import annotations

from abc import ABC, abstractmethod
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext

from tpi_bench.contract.job import Job
from tpi_bench.host.fork import InterpreterLost, start_process
from tpi_bench.processes.caps import Cap, Limit
from tpi_bench.processes.control import Control
from tpi_bench.processes.tls import Credentials, TlsConnection
from tpi_bench.processes.verdict import how_it_died

_FAREWELL_S = 2.0


class Handle(ABC):
    """A device that has been started, wherever. Of what it has told, `limit`, `port`, `services`
    and whether it is done.
    """

    def __init__(self, rank: int, connection: Connection | TlsConnection) -> None:
        self.rank = rank
        self.control = Control(connection)
        self.limit: Limit | None = None  # until it has entered its cap
        self.port: int | None = None
        self.services: list[int] = []  # ports of what it serves
        self.is_done = False
        self.is_closed = False  # nothing more is heard of it

    @property
    def is_running(self) -> bool:
        return not self.is_closed and not self.is_done

    @property
    def pid(self) -> int:
        """Of its process, if that is one of this host; else 0."""
        return 0

    @abstractmethod
    def how_it_died(self) -> str:
        """Of a device that has hung up without a word."""

    @abstractmethod
    def end(self, *, in_peace: bool) -> None:
        """No device outlives its job; one that is done may come to its own end."""


class DeviceHandle(Handle):
    """Forks the device. Raises InterpreterLost when there is nothing to fork it from."""

    def __init__(
        self,
        rank: int,
        job: Job,
        cap: Cap,
        context: ForkServerContext,
        theirs: Connection | None = None,
        key: bytes = b"",
        credentials: Credentials | None = None,
    ) -> None:
        """`theirs` is the device's end of a connection to a launcher elsewhere, which `key` and
        `credentials` go with; else the launcher is here.
        """
        ours, end = context.Pipe() if theirs is None else (theirs, theirs)
        super().__init__(rank, ours)
        self._process = context.Process(
            target=_run_device,
            args=(rank, job, cap, end, key, credentials),
            name=f"rank {rank}",
            daemon=True,
        )
        try:
            start_process(self._process)
        except InterpreterLost:
            ours.close()
            raise
        finally:
            end.close()

    @property
    def pid(self) -> int:
        return self._process.pid or 0

    @property
    def is_alive(self) -> bool:
        return self._process.is_alive()

    def how_it_died(self) -> str:
        self._process.join(1.0)
        return how_it_died(self._process.exitcode)

    def end(self, *, in_peace: bool) -> None:
        self._process.join(_FAREWELL_S if in_peace else 0.0)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()
        self.control.connection.close()
        self._process.close()


def _run_device(
    rank: int,
    job: Job,
    cap: Cap,
    connection: Connection,
    key: bytes,
    credentials: Credentials | None,
) -> None:
    """Runs in the child, where the fork server has loaded torch; the launcher never does."""
    from tpi_bench.processes.device import device_main

    device_main(rank, job, cap, connection, key, credentials)
