"""Several processes and a stream of calls: order, both at work, and who dies of what."""

from __future__ import annotations

import itertools
import os
import signal
import sys
import time
from collections.abc import Iterator

import psutil
import pytest

from tpi_bench.host.fork import HelperDied
from tpi_bench.host.workers import Workers


@pytest.fixture
def workers() -> Iterator[Workers]:
    pair = Workers(2, "a worker under test")
    yield pair
    pair.end()


def told(number: int, seconds: float = 0.0) -> tuple[int, int]:
    """The number, and who tells it."""
    time.sleep(seconds)
    return number, os.getpid()


def harmed(number: int, harm: str) -> int:
    if harm == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if harm == "exit":
        sys.exit(0)
    if harm == "raise":
        raise ValueError(f"not {number}")
    if harm == "break":
        raise RuntimeError("broken")
    return number


def test_answers_are_in_the_order_of_the_calls(workers: Workers) -> None:
    """The first takes longer than the five after it, which the other worker answers."""
    began = time.monotonic()
    answers = [a.value for a in workers.answers(told, [(0, 1.0), *((n,) for n in range(1, 6))])]
    assert time.monotonic() - began < 30
    assert [number for number, _ in answers] == list(range(6))
    assert len({pid for _, pid in answers}) == 2


def test_calls_are_asked_for_as_workers_become_free(workers: Workers) -> None:
    asked = itertools.count()
    answers = workers.answers(told, ((number,) for number in asked))
    assert [next(answers).value[0] for _ in range(3)] == [0, 1, 2]
    assert next(asked) <= 3 + 2 * (2 + 8)


def test_workers_serve_one_stream_after_another(workers: Workers) -> None:
    first, second = ([a.value[1] for a in workers.answers(told, [(0, 0.2), (1,)])] for _ in "12")
    assert {*first} == {*second}


@pytest.mark.parametrize(
    ("harm", "reason"),
    [("kill", "harmed ended with exit status -9"), ("exit", "harmed ended with exit status 0")],
)
def test_a_worker_that_dies_costs_the_call_that_it_was_busy_with(
    workers: Workers, harm: str, reason: str
) -> None:
    calls = [(number, harm if number in (2, 5) else "") for number in range(9)]
    answers = list(workers.answers(harmed, calls))
    assert [a.value for a in answers] == [0, 1, None, 3, 4, None, 6, 7, 8]
    assert isinstance(answers[2].error, HelperDied)
    assert str(answers[2].error) == str(answers[5].error) == reason


def test_errors_are_answers(workers: Workers) -> None:
    refused, fine, broken = workers.answers(harmed, [(0, "raise"), (1, ""), (2, "break")])
    assert (type(refused.error), str(refused.error)) == (ValueError, "not 0")
    assert fine.value == 1
    assert str(broken.error) == "harmed failed: RuntimeError: broken"


def test_one_that_ended_between_two_streams_costs_nothing(workers: Workers) -> None:
    before = {a.value[1] for a in workers.answers(told, [(0, 0.2), (1, 0.2)])}
    for pid in before:
        os.kill(pid, signal.SIGKILL)
    while not all(hand.worker.has_ended for hand in workers._hands):
        time.sleep(0.01)
    answers = [a.value for a in workers.answers(told, [(0, 0.2), (1, 0.2)])]
    assert [number for number, _ in answers] == [0, 1]
    assert not before & {pid for _, pid in answers}


def test_who_leaves_early_leaves_nothing_running(workers: Workers) -> None:
    answers = workers.answers(told, ((number, 0.1) for number in itertools.count()))
    pids = {next(answers).value[1] for _ in range(4)}
    answers.close()  # type: ignore[attr-defined]
    assert not any(psutil.pid_exists(pid) for pid in pids)
