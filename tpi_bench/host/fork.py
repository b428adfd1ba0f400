"""Work that needs torch or transformers, done in a helper process so the launcher stays small.

The launcher imports neither: it starts in a moment, keeps little memory and sleeps while devices
are timed. Helpers are forked from the same clean interpreter as the devices.
"""

from __future__ import annotations

import contextlib
import functools
import multiprocessing
import os
import signal
import sys
import tempfile
import threading
import traceback
import types
from collections.abc import Callable, Iterator
from multiprocessing import forkserver, resource_tracker, util
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any, TypeVar

from tqdm import tqdm

from tpi_bench.host.cache import CacheError

T = TypeVar("T")
# The one name of a room above, by word and not by import: what devices need is loaded once.
_PRELOADED = "tpi_bench.processes.preload"
_ENDS = "tpi_bench.host.fork_server"  # which only the fork server may import
_disguise = threading.Lock()


def fork_context() -> multiprocessing.context.ForkServerContext:
    """The fork server's context; its interpreter loads torch and the engine once.

    It is started with SIGINT blocked, and so are its children until they unblock it: Ctrl-C goes to
    the whole process group, and while they start they could only die of it with a traceback.
    Raises CacheError where the folder for temporary files has too long a name for a socket in it.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([_ENDS, _PRELOADED])
    _end_server_at_exit()
    resource_tracker.ensure_running()  # its start unblocks SIGINT
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        forkserver.ensure_running()
    except OSError as error:
        if "path too long" not in str(error):  # which has no number of its own
            raise
        raise CacheError(
            f"{tempfile.gettempdir()} is too long a path for the sockets by which processes are "
            "started; set TMPDIR to a shorter one, such as /tmp"
        ) from error
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
    return context


@functools.cache
def _end_server_at_exit() -> None:
    """Once a process, when its children have ended and before their folder is removed."""
    util.Finalize(None, _end_server, exitpriority=-1)


def _end_server() -> None:
    """By itself it notices that nobody is left only once it has loaded torch."""
    pid = vars(forkserver._forkserver).get("_forkserver_pid")
    if pid is not None:
        with contextlib.suppress(ProcessLookupError, ChildProcessError):  # it has ended before
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


class HelperDied(RuntimeError):
    """The helper process ended without an answer."""


def ended(fn: Callable[..., Any], status: int | None) -> HelperDied:
    """Of a helper that was to call `fn`.

    An error that torch raises in C++ inside a greenlet is a segmentation fault: it notes where it
    is raised, and the stack of a greenlet has no end that it could find.
    """
    words = f"{fn.__name__} ended with exit status {status}"
    if status == -signal.SIGSEGV:
        words += ", as errors of torch do in virtual time; testbed=processes tells which it is"
    return HelperDied(words)


class InterpreterLost(HelperDied):
    """The interpreter that processes are forked from ended while it was to fork one."""


def start_process(process: BaseProcess) -> None:
    """Start a process of `fork_context`, which learns nothing of the program that starts it.

    multiprocessing would make it import the main module again, which runs a script without a guard
    a second time and cannot be done for a notebook or standard input, and set the same start method
    as here, which it cannot in a worker of joblib.
    Raises InterpreterLost; the next context has a new one.
    """
    try:
        with _disguised():
            process.start()
    except (EOFError, OSError) as error:
        reason = str(error) or type(error).__name__
        raise InterpreterLost(
            f"{process.name} could not be started: the interpreter that devices are forked from "
            f"has ended; it may have run out of memory ({reason})"
        ) from error


@contextlib.contextmanager
def _disguised() -> Iterator[None]:
    """What multiprocessing tells of this program: an empty main module, and how we start ours."""
    with _disguise:
        main, method = sys.modules["__main__"], multiprocessing.get_start_method(allow_none=True)
        sys.modules["__main__"] = types.ModuleType("__main__")
        multiprocessing.set_start_method("forkserver", force=True)
        try:
            yield
        finally:
            sys.modules["__main__"] = main
            multiprocessing.set_start_method(method, force=True)


def in_helper(fn: Callable[..., T], *args: Any, timeout_s: float | None = None) -> T:
    """Call the module-level function `fn(*args)` in a fresh process; its result is pickled.

    Nothing is left running. Raises what `result_of` does, and TimeoutError when there is no result
    after `timeout_s`. A helper, which may have no children, calls it itself.
    """
    if multiprocessing.current_process().daemon:
        return called_here(fn, *args)
    context = fork_context()
    ours, theirs = context.Pipe()
    process = context.Process(target=_work, args=(fn, args, theirs), name=fn.__name__, daemon=True)
    try:
        start_process(process)
    finally:
        theirs.close()
    try:
        if not ours.poll(timeout_s):
            raise TimeoutError
        kind, value = ours.recv()
    except EOFError:
        process.join()
        raise ended(fn, process.exitcode) from None
    finally:
        process.join(0.5)
        if process.is_alive():
            os.kill(process.pid or 0, signal.SIGINT)  # lets it remove what it has half written
            process.join(5.0)
            process.kill()
        ours.close()
    return result_of(fn, kind, value)


def called_here(fn: Callable[..., T], *args: Any) -> T:
    """`fn(*args)` in this process. Raises what `result_of` does."""
    try:
        return fn(*args)
    except Exception as error:
        kind, value = failure_of(error)
    found: T = result_of(fn, kind, value)
    return found


def result_of(fn: Callable[..., Any], kind: str, value: Any) -> Any:
    """What a helper answered. Its ValueError and OSError are a ValueError of the same text here.

    One of the cache folder stays a CacheError: a full disk is nothing that was typed wrongly.
    Raises HelperDied for a defect.
    """
    if kind == "ok":
        return value
    if kind == "cache":
        raise CacheError(value)
    if kind == "invalid":
        raise ValueError(value)
    raise HelperDied(f"{fn.__name__} failed: {value}")


def failure_of(error: Exception) -> tuple[str, str]:
    """In the helper: what `result_of` is told. A defect is printed in full."""
    if isinstance(error, (ValueError, OSError)):
        return "cache" if isinstance(error, CacheError) else "invalid", str(error)
    traceback.print_exc()
    return "failed", f"{type(error).__name__}: {error}"


def _work(fn: Callable[..., Any], args: tuple[Any, ...], answer: Connection) -> None:
    threading.Thread(target=_end_with_the_launcher, args=(answer,), daemon=True).start()
    tqdm.set_lock(threading.RLock())  # its own is a semaphore, which a killed process leaks
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in a shell's background
    try:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})  # see fork_context
        answer.send(("ok", fn(*args)))
    except BrokenPipeError:
        os._exit(1)
    except KeyboardInterrupt:
        os._exit(1)  # whoever asked is gone; what was half written is removed by now
    except Exception as error:
        answer.send(failure_of(error))


def _end_with_the_launcher(answer: Connection) -> None:
    """The launcher sends nothing, so a read ends only when it is gone: stop then, and tidy up."""
    try:
        answer.recv_bytes()
    except (EOFError, OSError):
        os.kill(os.getpid(), signal.SIGINT)
