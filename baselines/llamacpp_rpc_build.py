"""llama.cpp with its RPC backend, built once from source: `python -m baselines.llamacpp_rpc_build`.

No wheel has it. The source is llama-cpp-python's distribution on PyPI, of a fixed version; pip
builds it for this CPU (a C++ compiler is needed) into a folder of the user's data, where it stays.
`llamacpp_rpc_library.py` uses it from there; nothing is installed.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections import deque
from collections.abc import Iterable, Iterator
from pathlib import Path

import filelock
import platformdirs
from tqdm import tqdm

VERSION = "0.3.36"
_CMAKE = ("GGML_RPC=on", "GGML_NATIVE=on", "LLAVA_BUILD=off", "MTMD_BUILD=off")
_STEP = re.compile(r"\[(\d+)/(\d+)\]")  # ninja's
_LAST_LINES = 15  # that are shown of a build that failed


def build_folder(given: str | None = None) -> Path:
    """Where the build is, or would be."""
    if given is not None:
        return Path(given).expanduser()
    return platformdirs.user_data_path("tpi_bench") / f"llamacpp_rpc-{VERSION}"


def is_built(folder: Path) -> bool:
    return (folder / "llama_cpp" / "lib" / "libggml-rpc.so").is_file()


def build(folder: Path) -> None:
    """Build into `folder`, if it is not there. Raises RuntimeError with what pip said last."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(folder.parent / f".{folder.name}.lock"):
        if is_built(folder):
            return
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".building-") as scratch:
            target = Path(scratch) / folder.name
            _run_pip(target)
            if not is_built(target):
                raise RuntimeError(f"llama-cpp-python {VERSION} was built without RPC")
            shutil.rmtree(folder, ignore_errors=True)
            target.rename(folder)


def _run_pip(target: Path) -> None:
    command = [sys.executable, "-m", "pip", "install", "--verbose", "--disable-pip-version-check"]
    # A wheel that pip has kept of another build would have other options.
    command += ["--no-cache-dir", "--no-deps", "--no-binary", "llama-cpp-python"]
    command += ["--target", str(target), f"llama-cpp-python=={VERSION}"]
    flags = " ".join(f"-D{option}" for option in _CMAKE)
    with subprocess.Popen(
        command,
        env=os.environ | {"CMAKE_ARGS": flags},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    ) as process:
        assert process.stdout is not None
        last: deque[str] = deque(maxlen=_LAST_LINES)
        with tqdm(desc="building llama.cpp", unit="file", disable=None) as bar:
            for done, total in _steps(_kept(process.stdout, last)):
                bar.total = total
                bar.update(done - bar.n)
    if process.returncode:
        raise RuntimeError("llama.cpp could not be built; the end of it:\n" + "".join(last))


def _kept(lines: Iterable[str], last: deque[str]) -> Iterator[str]:
    for line in lines:
        last.append(line)
        yield line


def _steps(lines: Iterable[str]) -> Iterator[tuple[int, int]]:
    """How many of how many files are compiled, as it goes on."""
    for line in lines:
        if found := _STEP.search(line):
            yield int(found[1]), int(found[2])


def main() -> None:
    folder = build_folder(sys.argv[1] if sys.argv[1:] else None)
    if not is_built(folder):
        print(
            f"building llama.cpp with RPC into {folder}, 4 to 10 minutes on two cores", flush=True
        )
    try:
        build(folder)
    except (RuntimeError, OSError) as error:
        sys.exit(f"error: {error}")
    print(f"llama.cpp with RPC (llama-cpp-python {VERSION}) is in {folder}")


if __name__ == "__main__":
    main()
