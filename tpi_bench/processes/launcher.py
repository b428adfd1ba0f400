"""A job run with one OS process a device, started and watched from here.

Devices are forked from one clean interpreter that has torch loaded (multiprocessing's fork
server), so a point starts in a fraction of a second and still in fresh processes; `crew.py` starts
them on this host, another crew elsewhere. While they run,
the launcher sleeps on their control pipes; a device that dies, fails or hangs, or a job that takes
longer than it may, ends the job with its rank and the reason, and nothing is left behind. Control
messages are those of `control.py`; devices talk TCP.
"""

from __future__ import annotations

import contextlib
import secrets
import time
from collections.abc import Callable, Sequence
from multiprocessing.connection import wait

from tpi_bench.contract.job import Job, NextTurn, OnToken, Outcome
from tpi_bench.contract.request import Generation
from tpi_bench.processes.caps import Caps, Limit
from tpi_bench.processes.control import (
    FROM_DEVICE,
    Answered,
    Asked,
    BadMessage,
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
from tpi_bench.processes.crew import Crew
from tpi_bench.processes.handle import Handle
from tpi_bench.processes.verdict import Trouble
from tpi_bench.processes.watch import Watch

_GRACE_S = 0.6  # how long causes are collected after the first sign of trouble
_START_S = 60.0
_ANSWER_S = 0.3  # how long a device may take to say what it was at


def run_job(
    job: Job,
    on_token: OnToken | None = None,
    next_turn: NextTurn | None = None,
    crew: Crew | None = None,
) -> Outcome:
    """Run `job` with one process a device and wait. Never raises for a device's failure.

    A job that talks asks `next_turn` what is next, and `on_token` whether it is enough. Without a
    crew, devices run on this host.
    """
    return Launch(job, on_token, next_turn, crew or Crew(job)).run()


class Launch:
    """One job on its devices, from their start to their end."""

    def __init__(
        self,
        job: Job,
        on_token: OnToken | None,
        next_turn: NextTurn | None,
        crew: Crew,
    ) -> None:
        self._start_s = time.monotonic()
        self._job = job
        self._devices: list[Handle] = []
        self._crew = crew
        self._watch = Watch(job, self._start_s)
        self._hearing = Hearing(crew.caps, self._watch, on_token, next_turn)

    def run(self) -> Outcome:
        outcome, trouble = self._hearing.outcome, self._hearing.trouble
        try:
            self._crew.start(self._devices, trouble)
            self._connect()
            self._follow(until=lambda: all(device.is_done for device in self._devices))
            if trouble and not trouble.is_final:  # the first sign is often a consequence
                self._listen(_GRACE_S, until=lambda: all(d.is_closed for d in self._devices))
            if trouble:
                ended = {device.rank for device in self._devices if device.is_done}
                outcome.status, outcome.error = trouble.verdict(ended)
        finally:
            self._end()
        return outcome

    def _connect(self) -> None:
        """Every device has told its port; tell everyone all ports and the run's secret."""
        deadline_s = time.monotonic() + _START_S
        self._follow(until=lambda: not self._silent() or time.monotonic() > deadline_s)
        trouble, silent = self._hearing.trouble, self._silent()
        if silent and not trouble:
            trouble.lost.append((silent[0], silent[0], "did not start in time"))
        if trouble:
            return
        ports = [device.port for device in self._devices if device.port is not None]
        services = self._crew.reach([device.services for device in self._devices], trouble)
        secret = secrets.token_hex(32)
        self._tell(self._devices, Setup(ports=ports, secret=secret, services=services))
        self._watch.begin(time.monotonic())

    def _silent(self) -> list[int]:
        """Ranks that have not told their port."""
        return [device.rank for device in self._devices if device.port is None]

    def _running(self) -> list[Handle]:
        return [device for device in self._devices if device.is_running]

    def _follow(self, until: Callable[[], bool]) -> None:
        """Handle messages and keep watch until `until()` or a sign of trouble."""
        while not until() and not self._hearing.trouble:
            due_in_s = self._watch.due_in_s(time.monotonic())
            self._hearing.hear(self._devices, min(due_in_s, self._crew.due_in_s()))
            self._crew.look(self._running())
            if not until():
                self._look()

    def _look(self) -> None:
        """End what takes too long; ask for signs of life, and note who gives none."""
        now_s, trouble = time.monotonic(), self._hearing.trouble
        if self._watch.is_late(now_s) and not trouble:
            self._note_late()
        elif self._watch.is_time_to_ask(now_s):
            running = self._running()
            trouble.hangs |= self._watch.hangs([device.rank for device in running], now_s)
            self._tell(running, StatusQuestion())

    def _note_late(self) -> None:
        """Name the first device that is not done, and what it says that it is doing."""
        device = self._running()[0]
        if self._watch.has_begun:
            self._watch.forget(device.rank)
            self._tell([device], StatusQuestion())
            self._listen(_ANSWER_S, until=lambda: self._watch.has_answered(device.rank))
        doing, limit = self._watch.doing(device.rank), f"{self._job.timeout_s:g} s (timeout_s)"
        self._hearing.trouble.late[device.rank] = f"was still {doing} after {limit}"

    def _listen(self, duration_s: float, until: Callable[[], bool]) -> None:
        deadline_s = time.monotonic() + duration_s
        while not until() and (remaining_s := deadline_s - time.monotonic()) > 0:
            self._hearing.hear(self._devices, remaining_s)

    def _tell(self, devices: Sequence[Handle], message: FromLauncher) -> None:
        for device in devices:
            # It has ended where this fails, and what it said is still to be heard.
            with contextlib.suppress(OSError):
                device.control.send(message)

    def _end(self) -> None:
        """No device outlives its job, nor does its group."""
        for device in self._devices:
            device.end(in_peace=device.is_done and not self._hearing.trouble)
        self._hearing.outcome.wall_s = time.monotonic() - self._start_s
        self._crew.end(self._hearing.outcome)


class Hearing:
    """What devices have told, sorted: results, trouble, signs of life."""

    def __init__(
        self,
        caps: Caps,
        watch: Watch,
        on_token: OnToken | None,
        next_turn: NextTurn | None,
    ) -> None:
        self.outcome = Outcome(status="ok")
        self.trouble = Trouble()
        self._caps = caps
        self._watch = watch
        self._on_token = on_token
        self._next_turn = next_turn

    def hear(self, devices: Sequence[Handle], timeout_s: float) -> None:
        """Wait for messages and take in one of each device that has some."""
        by_number = {d.control.connection.fileno(): d for d in devices if not d.is_closed}
        ready = wait(list(by_number), timeout_s)
        for device in [device for number, device in by_number.items() if number in ready]:
            try:
                message = device.control.receive(*FROM_DEVICE)
            except BadMessage as error:
                self.trouble.failed[device.rank] = ("error", str(error))
            except (EOFError, OSError):
                self.note_silence(device)
            else:  # what `on_token` raises is the caller's
                self._take(device, message)

    def note_silence(self, device: Handle) -> None:
        """A device has hung up. If it is not done, it has died, unless the cause is known."""
        device.is_closed = True
        if device.is_done:
            return
        ending = device.how_it_died()
        if self._caps.was_killed(device.rank):
            self._note_out_of_memory(device, None)
        elif not self.trouble.told(device.rank):  # else the cause is known, or elsewhere
            self.trouble.died[device.rank] = ending

    def _take(self, device: Handle, message: FromDevice) -> None:
        rank = device.rank
        match message:
            case Entered(limit):
                device.limit = limit
            case Listening(port, services):
                device.port, device.services = port, services
            case Token(token_id):
                if self._on_token and self._on_token(token_id):
                    with contextlib.suppress(OSError):  # as in `_tell`
                        device.control.send(Enough())
            case Answered(generation):
                self._ask(device, generation)
            case Status():
                self._watch.note(rank, message, time.monotonic())
            case Done():
                device.is_done = True
                self.outcome.devices.append(message.report)
                if rank == 0:
                    self.outcome.generation = message.generation
                    self.outcome.round_trips_ns = message.round_trips_ns
                    self.outcome.clocks = message.clocks
            case Failed("oom", reason):
                self._note_out_of_memory(device, reason)
            case Failed(status, reason):
                self.trouble.failed[rank] = (status, reason)
            case Lost(peer, reason):
                self.trouble.lost.append((rank, peer, reason))

    def _ask(self, device: Handle, answer: Generation | None) -> None:
        """The master waits for its next turn, and everybody for the master. That may take long."""
        assert self._next_turn is not None
        turn = self._next_turn(answer)
        with contextlib.suppress(OSError):  # as in `_tell`
            device.control.send(Asked(turn))
        self._watch.begin(time.monotonic())

    def _note_out_of_memory(self, device: Handle, reason: str | None) -> None:
        if device.limit is None and reason is not None:  # it did not even start
            text = f"ran out of memory: {reason}"
        else:
            text = self._caps.oom_text(device.rank, device.limit or Limit(), reason)
        self.trouble.out_of_memory[device.rank] = text
