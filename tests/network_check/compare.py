"""A case on both sides, and the one assumption that makes the sides equal where they are not.

SimGrid's side is asked under its own assumptions first. While its times are not ours, it is asked
again with the next of `simgrid_networks.py`, which changes one thing more towards our network; the
first that gives our times explains the difference. If none does, nobody knows why.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.network_check.cases import Case
from tests.network_check.times import Times
from tests.network_check.wiring import ways_of

ROOT = Path(__file__).resolve().parent.parent.parent
TIMEOUT_S = 300
ROUNDING_S = 0.5e-9  # ours are whole nanoseconds: of each message at each port of its way
TURNS = "a port passes whole messages in turns, where SimGrid's flows share it"
WHY = {
    "as_is": "",
    "turns": TURNS,
    "turns_then_way": f"{TURNS}; and a message passes its sender's port before it travels on, "
    "where a flow takes all ports at once, after all latencies",
}
WHY_ON_WIFI = WHY | {
    "turns_then_way": f"{TURNS}; and a message takes the channel anew from the access point, when "
    "it is there, where a flow crosses twice at once, after all latencies",
}
UNEXPLAINED = "NOT EXPLAINED"
AskSimGrid = Callable[[Case, str], Times]


@dataclass(frozen=True, kw_only=True)
class Row:
    """A line of the table. Times of the last rank to end; arrivals device by device, in order.

    `assumption`: under which SimGrid's times are ours, within `rest_s`; None where under none.
    `in_packets_differ_by_s`: of arrivals, had our network cut messages into packets.
    """

    case: str
    program: str
    network: str
    devices: int
    message_bytes: int
    ours_s: float
    simgrid_s: float
    arrivals_differ_by_s: float
    assumption: str | None
    rest_s: float
    rounding_s: float
    in_packets_differ_by_s: float | None = None

    @property
    def difference(self) -> float:
        return self.ours_s / self.simgrid_s - 1

    @property
    def explanation(self) -> str:
        if self.assumption is None:
            return UNEXPLAINED
        return (WHY_ON_WIFI if "wifi" in self.case else WHY)[self.assumption]


def compare(
    case: Case, ours: Times, in_packets: Times | None = None, *, ask_simgrid: AskSimGrid
) -> Row:
    """`in_packets`: ours, had messages been cut. Raises RuntimeError when not the same was sent."""
    ways = ways_of(case.network, case.world_size)
    rounding_s = ROUNDING_S * sum(len(ways[src, dst]) for src, dst, *_ in ours.messages)
    as_is = ask_simgrid(case, "as_is")
    explained = None
    for assumption in WHY:
        times = as_is if assumption == "as_is" else ask_simgrid(case, assumption)
        rest_s = differ_by_s(case, ours, times)
        if rest_s <= rounding_s:
            explained = assumption
            break
    return Row(
        case=case.group,
        program=case.program,
        network=case.words,
        devices=case.num_devices,
        message_bytes=case.message_bytes,
        ours_s=ours.end_s,
        simgrid_s=as_is.end_s,
        arrivals_differ_by_s=differ_by_s(case, ours, as_is),
        assumption=explained,
        rest_s=rest_s,
        rounding_s=rounding_s,
        in_packets_differ_by_s=in_packets and differ_by_s(case, in_packets, as_is),
    )


def differ_by_s(case: Case, ours: Times, other: Times) -> float:
    """The largest difference of any arrival or end."""
    if ours.traffic != other.traffic:
        raise RuntimeError(f"{case.name}: SimGrid's side did not send the messages that ours did")
    arrivals = zip(ours.arrivals, other.arrivals, strict=True)
    differences = [abs(one - another) for (_, one), (_, another) in arrivals]
    ends = zip(sorted(ours.ends_s), sorted(other.ends_s), strict=True)
    return max([*differences, *(abs(one - another) for one, another in ends)])


class SimGridPython:
    """A Python that has SimGrid. Raises ValueError, saying how to get it, where it has not."""

    def __init__(self, python: str) -> None:
        self._python = python
        try:
            found = self._run("-c", "import simgrid, sys; assert sys.version_info >= (3, 11)")
            reason = found.stderr.strip().rpartition("\n")[2] if found.returncode else ""
        except OSError as error:
            reason = str(error)
        if reason:
            raise ValueError(
                f"{python} has no SimGrid for Python 3.11 or newer ({reason}); on Debian it comes "
                "with: apt-get install python3-simgrid. Name another Python that has it with: "
                "make validate_network SIMGRID_PYTHON=PATH"
            )

    def ask(self, case: Case, assumption: str) -> Times:
        done = self._run("-m", "tests.network_check.simgrid_side", case.name, assumption)
        if done.returncode:
            raise RuntimeError(f"{case.name}, {assumption}: SimGrid's side failed: {done.stderr}")
        return Times.from_json(done.stdout)

    def _run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [self._python, *arguments],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
        )
