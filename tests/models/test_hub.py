"""A model by its id on the hub: fetched once from a hub on this machine, then from the cache."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.command_line import ROOT, report_of, run
from tests.helpers.models_zoo import oracle

COMMIT = "0123456789abcdef0123456789abcdef01234567"
REPOSITORY = "org/name"


class Hub(ThreadingHTTPServer):
    """The part of the hub's HTTP interface that fetching a model needs, for one repository."""

    daemon_threads = True

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files = {path.name: path.read_bytes() for path in sorted(folder.iterdir())}
        self.files["notes.txt"] = b"not needed to run the model"
        self.asked: list[str] = []  # method and path of every request
        self.trouble: str | None = None  # a name in TROUBLES

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def stop(self) -> None:
        self.shutdown()
        self.server_close()


class _Handler(BaseHTTPRequestHandler):
    server: Hub

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        path = self.path.partition("?")[0]
        self.server.asked.append(f"{self.command} {path}")
        if self.server.trouble == "cut":
            self.close_connection = True
            return
        if self.server.trouble == "login page":
            self._send(200, b"<html>Welcome to our network</html>", {"Content-Type": "text/html"})
            return
        if self.server.trouble == "unauthorised":
            self._send(401, b"Invalid username or password.")
            return
        if self.server.trouble == "gated":
            self._send(403, b"", {"X-Error-Code": "GatedRepo"})
            return
        api, resolve = f"/api/models/{REPOSITORY}", f"/{REPOSITORY}/resolve/{COMMIT}/"
        if path in (api, f"{api}/revision/main", f"{api}/revision/{COMMIT}"):
            siblings = [{"rfilename": name} for name in self.server.files]
            self._send_json({"id": REPOSITORY, "sha": COMMIT, "siblings": siblings})
        elif path == f"{api}/tree/{COMMIT}":
            self._send_json(
                [
                    {"type": "file", "path": name, "size": len(data), "oid": _etag(data)}
                    for name, data in self.server.files.items()
                ]
            )
        elif path.startswith(resolve) and path.removeprefix(resolve) in self.server.files:
            self._send(200, self.server.files[path.removeprefix(resolve)])
        else:
            self._send(404, b"Repository not found", {"X-Error-Code": "RepoNotFound"})

    def _send_json(self, value: Any) -> None:
        self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _send(self, status: int, data: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        given = {"ETag": f'"{_etag(data)}"', "X-Repo-Commit": COMMIT} | (headers or {})
        for name, value in (given | {"Content-Length": str(len(data))}).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET" and self.server.trouble == "cut file" and "/resolve/" in self.path:
            self.wfile.write(data[: len(data) // 2])
        elif self.command == "GET":
            self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing on standard error."""


def _etag(data: bytes) -> str:
    return hashlib.sha1(data).hexdigest()


@pytest.fixture
def hub(checkpoints: dict[str, Path]) -> Iterator[Hub]:
    server = Hub(checkpoints["gqa"])
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    yield server
    server.stop()
    thread.join()


def environment(endpoint: str, home: Path) -> dict[str, str]:
    """With `endpoint` as the hub and `home` its cache."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "HUGGING"))}
    return kept | {"HF_ENDPOINT": endpoint, "HF_HOME": str(home), "NO_PROXY": "127.0.0.1"}


def fetched_folder(endpoint: str, home: Path) -> subprocess.CompletedProcess:
    """What the program asks for the model's folder, alone; without pauses between the tries."""
    code = (
        "import sys, time; from tpi_bench.models.hub import hub_folder\n"
        "time.sleep = lambda seconds: None\n"
        f"try: print(hub_folder({REPOSITORY!r}))\n"
        "except ValueError as error: sys.exit(str(error))"
    )
    return subprocess.run(
        [sys.executable, "-c", code],
        env=environment(endpoint, home),
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=60,
    )


def run_from_hub(
    repository: str, endpoint: str, home: Path, cache_dir: Path
) -> subprocess.CompletedProcess:
    """The command line with `model.path=repository`."""
    return run(
        "report=json",
        "model=hf",
        f"model.path={repository}",
        "workload.prompt_ids=[1,2,3]",
        "workload.num_new_tokens=8",
        cache_dir=cache_dir,
        env=environment(endpoint, home),
    )


def test_a_model_is_fetched_once_and_then_runs_without_the_hub(
    hub: Hub, checkpoints: dict[str, Path], cache_dir: Path, tmp_path: Path
) -> None:
    expected = oracle(checkpoints["gqa"], (1, 2, 3), 8)[0]
    first = run_from_hub(REPOSITORY, hub.endpoint, tmp_path, cache_dir)
    assert first.returncode == 0, first.stderr
    report = report_of(first)
    assert (report["status"], report["token_ids"]) == ("ok", expected)
    fetched = {line.rpartition("/")[2] for line in hub.asked if "/resolve/" in line}
    assert "config.json" in fetched
    assert len([name for name in fetched if name.endswith(".safetensors")]) > 1
    assert "notes.txt" not in fetched
    assert not list(tmp_path.rglob("*.incomplete"))

    hub.asked.clear()  # the model's folder is all that a run asks it for
    online = fetched_folder(hub.endpoint, tmp_path)
    assert online.returncode == 0, online.stderr
    assert (Path(online.stdout.strip()) / "config.json").is_file()
    assert hub.asked
    assert not [line for line in hub.asked if "/resolve/" in line]

    hub.stop()
    offline = run_from_hub(REPOSITORY, hub.endpoint, tmp_path, cache_dir)
    assert offline.returncode == 0, offline.stderr
    assert report_of(offline)["token_ids"] == expected


def refusal_of(done: subprocess.CompletedProcess) -> str:
    """The error of a run that was refused with one line, and the same in its JSON report."""
    assert done.returncode == 2
    report = report_of(done)
    assert report["status"] == "error"
    assert done.stderr.strip().split("\n") == [f"error: {report['error']}"]
    return report["error"]


def test_a_repository_that_is_not_there_is_one_line(
    hub: Hub, cache_dir: Path, tmp_path: Path
) -> None:
    error = refusal_of(run_from_hub("org/other", hub.endpoint, tmp_path, cache_dir))
    assert error.startswith("model.path=org/other is no folder on this machine")
    assert "404" in error
    assert "check the name and the connection, or give a local folder" in error


def test_a_hub_that_is_not_there_is_one_line(hub: Hub, cache_dir: Path, tmp_path: Path) -> None:
    hub.stop()
    error = refusal_of(run_from_hub(REPOSITORY, hub.endpoint, tmp_path, cache_dir))
    assert error.startswith(f"model.path={REPOSITORY} is no folder on this machine")
    assert "check the name and the connection, or give a local folder" in error


TROUBLES = {
    "cut": ["Server disconnected", "check the name and the connection, or give a local folder"],
    "login page": ["not that of a hub: Expecting value", "check HF_ENDPOINT", "a login page"],
    "unauthorised": ["401", "the name may be wrong or the model need a login (hf auth login)"],
    "gated": ["403", "the name may be wrong or the model need a login (hf auth login)"],
}


@pytest.mark.parametrize("trouble", TROUBLES)
def test_a_hub_in_trouble_is_one_line(
    hub: Hub, cache_dir: Path, tmp_path: Path, trouble: str
) -> None:
    hub.trouble = trouble
    error = refusal_of(run_from_hub(REPOSITORY, hub.endpoint, tmp_path, cache_dir))
    assert error.startswith(f"model.path={REPOSITORY} is no folder on this machine")
    for part in TROUBLES[trouble]:
        assert part in error


@pytest.mark.parametrize("names", [["notes.txt"], ["config.json", "notes.txt"]])
def test_a_repository_without_a_model_is_one_line(
    hub: Hub, cache_dir: Path, tmp_path: Path, names: list[str]
) -> None:
    hub.files = {name: hub.files[name] for name in names}
    error = refusal_of(run_from_hub(REPOSITORY, hub.endpoint, tmp_path, cache_dir))
    assert error.startswith(f"model.path={REPOSITORY}: the repository on the hub holds no model")


def test_a_file_that_is_cut_is_one_line(
    hub: Hub, checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    """What came of it is thrown away, or gone on with."""
    hub.trouble = "cut file"
    cut = fetched_folder(hub.endpoint, tmp_path)
    assert cut.returncode == 1
    assert "peer closed connection" in cut.stderr
    assert cut.stderr.count("\n") == 1
    hub.trouble = None
    whole = fetched_folder(hub.endpoint, tmp_path)
    assert whole.returncode == 0, whole.stderr
    (sizes, expected) = (
        {path.name: path.stat().st_size for path in folder.glob("*.safetensors")}
        for folder in (Path(whole.stdout.strip()), checkpoints["gqa"])
    )
    assert sizes == expected
