"""The one file that speaks with Ray: a cluster's nodes, and an agent on each that is needed.

A program has one connection to one cluster; agents stay from point to point, and end with it.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import signal
import socket
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tpi_bench.cluster.agent import NodeAgent, own_addresses
from tpi_bench.cluster.nodes import Node, Place

_REACH_S = 5.0
_START_S = 60.0  # of an agent, whose interpreter is new
_MOST_CALLS = 8  # of an agent at once
_DEVICE = "device:"
_NOT_NEEDED = ("/.git", "/.venv", "/results", "/tests", "/experiments")
_ROOT = Path(__file__).resolve().parents[2]


class NodeLost(RuntimeError):
    """A node, or Ray's worker there, is gone or does not answer. The text begins with the node."""

    def __init__(self, node: Node, reason: str) -> None:
        super().__init__(f"node {node.address} {reason}")
        self.node = node
        self.reason = reason


@functools.lru_cache(maxsize=1)
def cluster_at(address: str, ship_code: bool) -> RayCluster:
    """The connection of this program, made when it is first asked for. Raises ValueError."""
    return RayCluster(address, ship_code)


class RayCluster:
    """What is asked of Ray. Raises ValueError where there is none."""

    def __init__(self, address: str, ship_code: bool) -> None:
        try:
            import ray
        except ImportError:
            raise ValueError(
                "testbed=cluster and hydra/launcher=ray need Ray, which is not installed; "
                "pip install -c constraints.txt '.[cluster]' here and on each machine"
            ) from None
        if address != "auto":
            _refuse_silent(address)
        if ray.is_initialized():
            raise ValueError(
                f"testbed.address={address} and testbed.ship_code={str(ship_code).lower()} are not "
                "those of the point before, and a program joins Ray once; measure in two programs"
            )
        self._ray = ray
        self._agents: dict[Node, Any] = {}
        self.places: dict[str, list[Place]] = {}  # as they were last found, by what was asked
        try:
            with _own_signals():
                ray.init(
                    address=address,
                    namespace="tpi_bench",
                    log_to_driver=False,
                    logging_level=logging.ERROR,
                    configure_logging=False,
                    runtime_env=_own_code() if ship_code else None,
                )
        except (ConnectionError, RuntimeError, ValueError, OSError) as error:
            reason = str(error).strip().split("\n")[0]
            raise ValueError(
                f"testbed.address={address}: Ray cannot be joined: {reason}; start it on this "
                "machine too (ray start --address=HOST:PORT, or --head on one), with the same "
                "versions of Python and Ray"
            ) from None
        # News of nodes would come on standard output, where only results may be.
        if hasattr(ray._private.worker, "_worker_logs_enabled"):
            ray._private.worker._worker_logs_enabled = False

    @property
    def own_address(self) -> str:
        """Of this host, which is a node as a driver's host must be."""
        return self.nodes()[0].address

    def has_agent(self, node: Node) -> bool:
        return node in self._agents

    def nodes(self) -> list[Node]:
        """Those that Ray holds for alive: this host's first, then by address."""
        found = [
            Node(
                each["NodeID"],
                each["NodeManagerAddress"],
                tuple(sorted(name for name in each["Resources"] if name.startswith(_DEVICE))),
            )
            for each in self._ray.nodes()
            if each["Alive"]
        ]
        own = own_addresses()

        def place(node: Node) -> tuple[bool, list[int], str]:
            is_number = node.address.replace(".", "").isdigit()
            parts = [int(part) for part in node.address.split(".")] if is_number else []
            return node.address not in own, parts, node.id

        return sorted(found, key=place)

    def call(self, node: Node, method: str, *args: Any, timeout_s: float, **named: Any) -> Any:
        """Ask a node's agent. Raises NodeLost, or what the agent raised."""
        return self.take(node, self.ask(node, method, *args, **named), timeout_s)

    def call_all(
        self, calls: Sequence[tuple[Node, str, Sequence[Any]]], timeout_s: float
    ) -> list[Any]:
        """Ask several at once; the answers in that order. Raises as `call` for the first."""
        asked = [(node, self.ask(node, method, *args)) for node, method, args in calls]
        return [self.take(node, answer, timeout_s) for node, answer in asked]

    def ask(self, node: Node, method: str, *args: Any, **named: Any) -> Any:
        """The answer to come, for `take`."""
        return getattr(self._agent(node), method).remote(*args, **named)

    def take(self, node: Node, answer: Any, timeout_s: float | None) -> Any:
        """Wait for an answer. Raises as `call`."""
        errors = self._ray.exceptions
        try:
            return self._ray.get(answer, timeout=timeout_s)
        except errors.RayTaskError as error:
            cause = error.cause if isinstance(error.cause, BaseException) else error
            raise cause from None
        except errors.GetTimeoutError:
            raise NodeLost(node, f"has not answered for {timeout_s:g} s") from None
        except errors.RayError as error:
            self.forget(node)
            raise NodeLost(node, _reason(error)) from None

    def forget(self, node: Node) -> None:
        """End its agent. The next call makes another."""
        agent = self._agents.pop(node, None)
        if agent is not None:
            self.end(agent)

    def ready(self, answers: Sequence[Any]) -> Sequence[Any]:
        """Those of the answers that are there, at least one."""
        found, _ = self._ray.wait(list(answers), num_returns=1)
        more, _ = self._ray.wait(list(answers), num_returns=len(answers), timeout=0)
        return list(dict.fromkeys([*found, *more]))

    def actor(self, node: Node, cls: type, max_concurrency: int = 1) -> Any:
        """One of a class on a node. Cores are counted here, not by Ray."""
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        place = NodeAffinitySchedulingStrategy(node.id, soft=False)
        options = {"num_cpus": 0, "max_concurrency": max_concurrency, "scheduling_strategy": place}
        return self._ray.remote(cls).options(**options).remote()

    def end(self, actor: Any) -> None:
        with contextlib.suppress(Exception):  # it is gone with its node
            self._ray.kill(actor)

    def _agent(self, node: Node) -> Any:
        if node not in self._agents:
            self._agents[node] = self.actor(node, NodeAgent, _MOST_CALLS)
        return self._agents[node]


class RayWorkers:
    """Actors of a class for a pool, one a slot of a node. Its method is `record`."""

    def __init__(self, cluster: RayCluster, cls: type) -> None:
        self._cluster, self._cls = cluster, cls
        self._actors: dict[Node, dict[int, Any]] = {}

    def begin(self, node: Node, slot: int, arguments: Sequence[Any]) -> Any:
        actors = self._actors.setdefault(node, {})
        if slot not in actors:
            actors[slot] = self._cluster.actor(node, self._cls)
        return actors[slot].record.remote(*arguments)

    def wait(self, tickets: Sequence[Any]) -> Sequence[Any]:
        return self._cluster.ready(tickets)

    def result(self, node: Node, ticket: Any) -> Any:
        return self._cluster.take(node, ticket, None)

    def forget(self, node: Node) -> None:
        for actor in self._actors.pop(node, {}).values():
            self._cluster.end(actor)

    def end(self) -> None:
        for node in list(self._actors):
            self.forget(node)


def _own_code() -> dict[str, Any]:
    """What Ray is to bring: of a clone what points need, of an installation its packages."""
    if (_ROOT / "conf").is_dir():
        return {"working_dir": str(_ROOT), "excludes": list(_NOT_NEEDED)}
    return {"py_modules": [str(_ROOT / name) for name in ("tpi_bench", "baselines")]}


def _refuse_silent(address: str) -> None:
    """Ray itself tries for half a minute."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        raise ValueError(
            f"testbed.address={address} must be HOST:PORT, as `ray start --head` prints it, or auto"
        )
    try:
        socket.create_connection((host, int(port)), timeout=_REACH_S).close()
    except OSError as error:
        raise ValueError(
            f"testbed.address={address} does not answer ({error.strerror or error}); start Ray "
            f"there: ray start --head --port={port}"
        ) from None


@contextlib.contextmanager
def _own_signals() -> Iterator[None]:
    """Ray takes SIGTERM for itself; this program handles it."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)


def _reason(error: Exception) -> str:
    """Of Ray's many lines the one that says what is wrong."""
    text = str(error)
    if "No module named" in text:
        line = next(line for line in text.splitlines() if "No module named" in line)
        module = line.rpartition("No module named")[2].strip()
        return (
            f"has no module {module}; install tpi_bench in the environment that `ray start` was "
            "called in there, or let Ray bring it with testbed.ship_code=true"
        )
    first = next((line.strip() for line in text.splitlines() if line.strip()), "")
    return f"is lost: {first or type(error).__name__}"
