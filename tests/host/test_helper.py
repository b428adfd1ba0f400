"""A process that several calls share: kept between them, begun again when it is gone."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.helpers.virtual import IDEAL, virtual_job
from tpi_bench.engine.tpi import TpiSystem
from tpi_bench.host.cache import CacheError
from tpi_bench.host.fork import HelperDied, in_helper
from tpi_bench.host.helper import SharedHelper, in_place
from tpi_bench.virtual.testbed import VirtualTestbed


@pytest.fixture
def helper() -> Iterator[SharedHelper]:
    shared = SharedHelper()
    yield shared
    shared.end()


def refuse(text: str) -> None:
    raise ValueError(text)


def find_it_full(text: str) -> None:
    raise CacheError(text)


def break_down() -> None:
    raise RuntimeError("broken")


def kill_itself(path: Path, how: signal.Signals) -> None:
    path.write_text(f"{path.read_text() if path.exists() else ''}x")
    os.kill(os.getpid(), how)


def test_what_is_loaded_before_the_fork_is_left_out_of_collections() -> None:
    """Of devices and helpers: it stays, and looking through it would copy its pages."""
    frozen = in_helper(eval, "__import__('gc').get_freeze_count()")
    tracked = in_helper(eval, "len(__import__('gc').get_objects())")  # without what is frozen
    assert frozen > 50_000
    assert tracked < frozen / 5


def test_calls_share_a_process_whatever_they_end_with(helper: SharedHelper) -> None:
    first = helper.call(os.getpid)
    assert first != os.getpid()
    with pytest.raises(ValueError, match="not like this"):
        helper.call(refuse, "not like this")
    with pytest.raises(CacheError, match="which has no room"):  # nothing that was typed wrongly
        helper.call(find_it_full, "which has no room")
    with pytest.raises(HelperDied, match="break_down failed: RuntimeError: broken"):
        helper.call(break_down)
    assert helper.call(os.getpid) == first


def test_one_that_was_killed_meanwhile_is_replaced(helper: SharedHelper) -> None:
    first = helper.call(os.getpid)
    os.kill(first, signal.SIGKILL)
    second = helper.call(os.getpid)
    assert second != first
    assert helper.call(os.getpid) == second


@pytest.mark.parametrize(
    ("how", "words"),
    [
        (signal.SIGKILL, "kill_itself ended with exit status -9$"),
        # Of an error that torch raises inside a greenlet, where nothing can be told of it.
        (signal.SIGSEGV, "status -11, as errors of torch do in virtual time; testbed=processes"),
    ],
)
def test_a_call_that_kills_it_is_tried_once_more(
    helper: SharedHelper, tmp_path: Path, how: signal.Signals, words: str
) -> None:
    with pytest.raises(HelperDied, match=words):
        helper.call(kill_itself, tmp_path / "calls", how)
    assert (tmp_path / "calls").read_text() == "xx"
    assert helper.call(abs, -3) == 3


def test_a_call_that_takes_too_long_ends_it(helper: SharedHelper) -> None:
    first = helper.call(os.getpid)
    with pytest.raises(TimeoutError):
        helper.call(time.sleep, 60, timeout_s=0.2)
    with pytest.raises(ProcessLookupError):
        os.kill(first, 0)
    assert helper.call(os.getpid, timeout_s=30) != first


def test_nobody_is_left_when_there_is_nothing_to_do() -> None:
    helper = SharedHelper(idle_s=0.2)
    process = psutil.Process(helper.call(os.getpid))
    deadline = time.monotonic() + 20
    while process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert helper.call(os.getpid) != process.pid
    helper.end()


def test_modelled_runs_share_it_and_measured_ones_do_not(
    checkpoints: dict[str, Path], cache_dir: Path
) -> None:
    pids: dict[str, set[int]] = {}
    answers = []
    for cost in ("modelled", "measured"):
        job = virtual_job(TpiSystem(), checkpoints["gqa"], cache_dir, 2, IDEAL)
        outcomes = [VirtualTestbed(cost=cost).run(job, None, cache_dir) for _ in range(2)]
        assert all(outcome.status == "ok" for outcome in outcomes)
        pids[cost] = {device.pid for outcome in outcomes for device in outcome.devices}
        answers.append(outcomes[0].generation == outcomes[1].generation)
    assert (len(pids["modelled"]), len(pids["measured"])) == (1, 2)
    assert answers[0]  # what was traced before does not change what is charged


def test_a_helper_of_its_own_ends_in_the_same_ways() -> None:
    with pytest.raises(CacheError, match="which has no room"):
        in_helper(find_it_full, "which has no room")
    with pytest.raises(ValueError, match="not like this"):
        in_helper(refuse, "not like this")
    with pytest.raises(HelperDied, match="break_down failed: RuntimeError: broken"):
        in_helper(break_down)


def nested() -> int:
    return in_helper(os.getpid)


def test_a_helper_calls_its_helpers_itself(helper: SharedHelper) -> None:
    """It may have no children."""
    assert helper.call(nested) == helper.call(os.getpid)


def test_a_call_in_place_ends_in_the_same_ways() -> None:
    assert in_place(abs, -3, timeout_s=5) == 3
    assert in_place(os.getpid) == os.getpid()
    with pytest.raises(ValueError, match="not like this"):
        in_place(refuse, "not like this", timeout_s=5)
    with pytest.raises(HelperDied, match="break_down failed: RuntimeError: broken"):
        in_place(break_down)


def never_end() -> None:
    """It holds on to whatever it is told."""
    while True:
        with contextlib.suppress(Exception):
            time.sleep(0.01)


def test_a_call_in_place_that_takes_too_long_is_broken_off() -> None:
    before = signal.getsignal(signal.SIGALRM)
    with pytest.raises(TimeoutError):
        in_place(never_end, timeout_s=0.2)
    assert signal.getsignal(signal.SIGALRM) == before
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)
