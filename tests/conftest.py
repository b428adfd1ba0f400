"""Shared fixtures: one cache folder a test session, and random models of every variant."""

from __future__ import annotations

import gc
import os
import signal
from collections.abc import Iterator
from multiprocessing import forkserver
from pathlib import Path

# As many workers as cores, each with a torch whose threads would wait for each other awake.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import pytest

from tests.helpers.calibration import PLAIN, keep
from tests.helpers.slowest import pytest_terminal_summary  # noqa: F401
from tpi_bench.app.kept_files import files_are_kept
from tpi_bench.host import fork, helper, page_cache
from tpi_bench.host.machine import available_cpus
from tpi_bench.measure import limits, noise, point


def pytest_configure() -> None:
    """Collections were a tenth of the time of tests, which load more than they throw away."""
    gc.set_threshold(50_000, 50, 1000)
    gc.disable()


def pytest_collection_finish() -> None:
    """What is loaded by now stays: each full collection would go through it for half a second."""
    gc.collect()
    gc.freeze()
    gc.enable()


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Of torch in this process: models of tests are small, and each worker has a core."""
    import torch  # not before: whoever hands out tests to workers runs none

    torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def files_of_conf() -> Iterator[None]:
    """Parsed once, also where a test composes without the application."""
    with files_are_kept():
        yield


@pytest.fixture(scope="session", autouse=True)
def probes() -> Iterator[tuple[float, ...]]:
    """What a host that is busy is probed again with: here other workers' tests keep it so.

    Of little memory, as what tests assert of rates holds of any.
    """
    pauses_s, point._PAUSES_S = point._PAUSES_S, (0.0,)
    look_s, noise._LOOK_S = noise._LOOK_S, 0.01
    limits._CACHED_BYTES = 1 << 20
    yield pauses_s
    point._PAUSES_S, noise._LOOK_S = pauses_s, look_s


@pytest.fixture(scope="session", autouse=True)
def modelled_runs() -> None:
    """Their process stays for all tests of this worker, that have others in between."""
    helper.shared_helper()._worker._idle_s = 3600.0


@pytest.fixture(scope="session", autouse=True)
def preloaded() -> Iterator[str]:
    """What tests fork from, see `helpers/preload.py`; that of a user."""
    of_a_user, fork._PRELOADED = fork._PRELOADED, "tests.helpers.preload"
    yield of_a_user
    fork._PRELOADED = of_a_user


@pytest.fixture(scope="module")
def as_a_user_forks(preloaded: str) -> Iterator[None]:
    """From an interpreter with no more in its memory than a user's.

    That of the tests, whose imports take a while, waits meanwhile.
    """
    server = vars(forkserver._forkserver)
    of_tests = dict(server)
    helper.shared_helper().end()  # its next process is forked from the other
    server.update(vars(forkserver.ForkServer()))
    fork._PRELOADED = preloaded
    yield
    helper.shared_helper().end()
    forkserver._forkserver._stop()
    server.update(of_tests)
    fork._PRELOADED = "tests.helpers.preload"


@pytest.fixture(scope="session", autouse=True)
def own_turns(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Measured points of this worker's tests wait for no other program on this host."""
    folder = tmp_path_factory.mktemp("runtime")
    folder.chmod(0o700)
    os.environ["XDG_RUNTIME_DIR"] = str(folder)


@pytest.fixture(scope="session", autouse=True)
def memory_stays_as_it_is() -> None:
    """Putting it together takes half a second, and whoever runs tests as root need not pay it."""
    page_cache._COMPACT = Path("/dev/null")


@pytest.fixture(scope="session", autouse=True)
def ctrl_c_is_heard() -> None:
    """What a shell starts in the background ignores Ctrl-C, and so would all that tests start."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def cache_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With a calibration of this host, which takes half a minute (`measure/test_calibrate.py`)."""
    folder = tmp_path_factory.mktemp("cache")
    keep(folder, **{f"t{threads}": PLAIN for threads in (1, 2, len(available_cpus()))})
    return folder


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A Hugging Face folder with random weights for each variant."""
    from tests.helpers.models_zoo import VARIANTS, make_checkpoint

    root = tmp_path_factory.mktemp("checkpoints")
    return {name: make_checkpoint(root / name, variant) for name, variant in VARIANTS.items()}


@pytest.fixture(scope="session")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose rows are whole quantised blocks."""
    from tests.helpers.models_zoo import WIDE, Variant, make_checkpoint

    return make_checkpoint(tmp_path_factory.mktemp("wide"), Variant(changes=WIDE))
