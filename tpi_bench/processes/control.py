"""What the launcher and a device say to each other: small records, as JSON over a local pipe.

Never pickle: name, fields and types of what comes out of a pipe are checked before anyone uses it.
`launcher.py` has one end of each pipe, `device.py` the other.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import threading
import types
import typing
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Any, TypeVar

from tpi_bench.contract.job import DeviceReport
from tpi_bench.contract.request import Generation, Turn
from tpi_bench.contract.runtime import ClockReading
from tpi_bench.processes.caps import Limit
from tpi_bench.processes.tls import TlsConnection


@dataclass(frozen=True)
class Entered:
    """From a device: it keeps to its memory cap from here on."""

    limit: Limit


@dataclass(frozen=True)
class Listening:
    """From a device: other devices may connect to it, and to what it serves (`services.py`)."""

    port: int
    services: list[int] = field(default_factory=list)


@dataclass(frozen=True)
class Token:
    """From the master: a token as it comes."""

    token_id: int


@dataclass(frozen=True)
class Answered:
    """From the master: the answer to a turn is whole, or (None) it waits for the first one."""

    generation: Generation | None


@dataclass(frozen=True, kw_only=True)
class Done:
    """From a device: it has come to its end. Only the master has more than a report."""

    report: DeviceReport
    generation: Generation | None
    round_trips_ns: list[int]
    clocks: list[ClockReading]


@dataclass(frozen=True)
class Failed:
    """From a device: it cannot go on. `status` is oom or error."""

    status: str
    reason: str


@dataclass(frozen=True)
class Lost:
    """From a device: another one is gone."""

    peer: int
    reason: str


@dataclass(frozen=True, kw_only=True)
class Status:
    """From a device: an answer to `StatusQuestion`. `num_steps` grows with all that it does."""

    waiting_for: int | None
    is_computing: bool
    num_steps: int


@dataclass(frozen=True, kw_only=True)
class Setup:
    """From the launcher: every device's port, the secret of the run in hexadecimal digits, and
    the ports at which the master reaches what each device serves.
    """

    ports: list[int]
    secret: str
    services: list[list[int]] = field(default_factory=list)


@dataclass(frozen=True)
class StatusQuestion:
    """From the launcher: how are you getting on?"""


@dataclass(frozen=True)
class Asked:
    """From the launcher to the master: the next turn, or (None) that there is none."""

    turn: Turn | None


@dataclass(frozen=True)
class Enough:
    """From the launcher to the master: the answer may end with the pass that is under way."""


FromDevice = Entered | Listening | Token | Answered | Done | Failed | Lost | Status
FromLauncher = Setup | StatusQuestion | Asked | Enough
FROM_DEVICE: tuple[type[FromDevice], ...] = typing.get_args(FromDevice)

M = TypeVar("M", bound=FromDevice | FromLauncher)


class BadMessage(ValueError):
    """What came is none of the messages that were due."""


def encode(message: FromDevice | FromLauncher) -> bytes:
    return json.dumps([type(message).__name__, dataclasses.asdict(message)]).encode()


def decode(data: bytes, *due: type[M]) -> M:
    """The message, if it is one of those that are due. Raises BadMessage."""
    kinds = {kind.__name__: kind for kind in due}
    try:
        name, fields = json.loads(data)
        return _record(kinds[name], fields)
    except (ValueError, TypeError, KeyError) as error:
        raise BadMessage(f"control message {data[:80]!r} is unknown or malformed") from error


class Control:
    """One end of the pipe between the launcher and a device; threads may share it."""

    def __init__(self, connection: Connection | TlsConnection) -> None:
        self.connection = connection
        self._sending = threading.Lock()  # a long message takes several writes

    def send(self, message: FromDevice | FromLauncher) -> None:
        """Raises OSError when the other end is gone."""
        with self._sending:
            self.connection.send_bytes(encode(message))

    def receive(self, *due: type[M]) -> M:
        """Wait for the next message.

        Raises BadMessage, or EOFError or OSError when the other end is gone.
        """
        return decode(self.connection.recv_bytes(), *due)


def _built(hint: Any, value: Any) -> Any:
    """What JSON gave, as the type `hint`. Raises TypeError."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin is types.UnionType:  # with None
        return None if value is None else _built(inner[0], value)
    if origin is list and type(value) is list:
        return [_built(inner[0], item) for item in value]
    if origin is dict and type(value) is dict:
        return {key: _built(inner[1], item) for key, item in value.items()}
    if dataclasses.is_dataclass(hint):
        return _record(hint, value)
    if type(value) is hint or (hint is float and type(value) is int):
        return value
    raise TypeError(f"{value!r} is no {hint}")


def _record(cls: Any, fields: Any) -> Any:
    hints = _hints(cls)
    if type(fields) is not dict or fields.keys() != hints.keys():
        raise TypeError(f"{fields!r} are not the fields of {cls.__name__}")
    return cls(**{name: _built(hints[name], value) for name, value in fields.items()})


@functools.cache
def _hints(cls: Any) -> dict[str, Any]:
    return typing.get_type_hints(cls)
