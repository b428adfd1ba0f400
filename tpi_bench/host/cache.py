"""The user's cache folder: where it is, how it is locked, and what is said when it cannot be used.

Everything the tool keeps between runs (converted models, block files) lives in one folder. Writers
hold a file lock, write to a temporary name and rename, so two runs at once and a run that is
killed leave nothing half-written behind.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import filelock
import platformdirs
from safetensors import SafetensorError
from tqdm import tqdm

_FULL = (errno.ENOSPC, errno.EDQUOT)
_READ_ONLY = (errno.EACCES, errno.EPERM, errno.EROFS)


class CacheError(ValueError):
    """The cache folder cannot be read or written; the message says which one and what to do."""


def cache_folder(configured: str | None) -> Path:
    """The folder in use: `cache_dir=` if given, else the platform's user cache.

    It may be read-only, or not there where it may not be made: a run that finds all it needs, or
    needs nothing, writes nothing, and what is to be written is refused then.
    """
    folder = (
        Path(configured).expanduser() if configured else platformdirs.user_cache_path("tpi_bench")
    )
    with explain_write_errors(folder):
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            if error.errno not in _READ_ONLY:
                raise
            return folder
    if not os.access(folder, os.R_OK | os.X_OK):
        raise CacheError(
            f"cannot read the cache folder {folder}: {os.strerror(errno.EACCES)}; "
            "choose another folder with cache_dir=DIR"
        )
    return folder


@contextlib.contextmanager
def explain_write_errors(folder: Path) -> Iterator[None]:
    """Turn an OSError while writing below `folder` into one line that names the folder."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        is_full = getattr(error, "errno", None) in _FULL or os.strerror(errno.ENOSPC) in reason
        advice = "free some space there or choose" if is_full else "choose"
        raise CacheError(
            f"cannot write to the cache folder {folder}: {reason}; "
            f"{advice} another folder with cache_dir=DIR"
        ) from error


def require_space(folder: Path, num_bytes: int, purpose: str) -> None:
    """Refuse before the work starts when `folder`'s disk has less than `num_bytes` free."""
    free = shutil.disk_usage(folder).free
    if free < num_bytes:
        raise CacheError(
            f"{purpose} needs {_size(num_bytes)} in {folder}, which has {_size(free)} free; "
            "free some space there or choose another folder with cache_dir=DIR"
        )


def progress(num_bytes: int, what: str) -> tqdm[Any]:
    """A bar on the terminal for so many bytes that are written."""
    return tqdm(
        total=num_bytes, desc=what, unit="B", unit_scale=True, leave=False, disable=bars_hidden()
    )


def bars_hidden() -> bool | None:
    """For tqdm's `disable`, in helpers too; None: where standard error is no terminal.

    tqdm's own switch in the environment gives way to what a program says, so it is asked here.
    """
    return True if os.environ.get("TQDM_DISABLE") else None


def _size(num_bytes: int) -> str:
    if num_bytes >= 1e8:
        return f"{num_bytes / 1e9:.2f} GB"
    return f"{num_bytes / 1e6:.1f} MB" if num_bytes >= 1e5 else f"{num_bytes / 1e3:.0f} kB"


@contextlib.contextmanager
def locked(target: Path) -> Iterator[None]:
    """Hold the lock that guards `target`; another process waits until it is given back."""
    with explain_write_errors(target.parent):
        target.parent.mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(target.parent / f".{target.name}.lock")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


@contextlib.contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """Fill a temporary folder that becomes `target` when the body ends well, and vanishes when not.

    The caller holds `locked(target)`, so an old temporary folder can only be a dead run's.
    """
    temporary = target.parent / f".{target.name}.tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    with explain_write_errors(target.parent):
        temporary.mkdir(parents=True)
        try:
            yield temporary
            temporary.rename(target)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def write_json(path: Path, value: Any) -> None:
    """Write `value` as JSON under a temporary name, then rename it into place."""
    write_text(path, json.dumps(value, indent=1))


def write_text(path: Path, text: str) -> None:
    """The same of a text."""
    temporary = path.with_name(f".{path.name}.tmp-{os.getpid()}")
    try:
        temporary.write_text(text)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def digest(value: Any) -> str:
    """A short stable name for a JSON-able value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]
