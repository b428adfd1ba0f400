"""A server that speaks OpenAI's API: llama.cpp's real one, and how others are said to answer."""

from __future__ import annotations

import json
import math
import re
import socket
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx2
import pytest

from baselines import endpoint
from baselines.endpoint import EndpointSystem, laid_evenly
from baselines.openai_api import Server, ServerFailed, base_url
from tests.helpers.command_line import report_of, run
from tests.helpers.llama_server import llama_server
from tests.helpers.local_runtime import LocalRuntime
from tests.helpers.models_zoo import VARIANTS, make_checkpoint
from tests.helpers.tokenizers import byte_level, save_tokenizer
from tpi_bench.contract.job import Output
from tpi_bench.contract.request import Generation, Request
from tpi_bench.contract.runtime import Explained
from tpi_bench.models.checkpoints import FolderCheckpoint
from tpi_bench.models.gguf.writer import write_gguf
from tpi_bench.models.hf_config import read_config
from tpi_bench.report.folder import read_runs

URL = "http://server/v1"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with a tokenizer, whose random answers cut characters in two."""
    made = make_checkpoint(tmp_path_factory.mktemp("served"), VARIANTS["tied"])
    save_tokenizer(byte_level(), made)
    return made


@pytest.fixture(scope="module")
def server(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """llama.cpp's, on one thread."""
    pytest.importorskip("xllamacpp")
    path = tmp_path_factory.mktemp("gguf") / "served.gguf"
    write_gguf(path, FolderCheckpoint(folder, read_config(folder)), folder, "F32")
    with llama_server(path) as address:
        yield address


def typed(
    server: str | None, folder: Path, results: Path, cache_dir: Path, *more: str
) -> dict[str, Any]:
    """What is said of a measured point, as a user types it; without a server, in this process."""
    system = ["system=llamacpp"] if server is None else ["system=endpoint", f"system.url={server}"]
    done = run(
        "task=measure",
        *system,
        "model=hf",
        f"model.path={folder}",
        "workload.num_new_tokens=24",
        "workload.prompt_tokens=5",
        "report=json",
        f"results_dir={results}",
        *more,
        cache_dir=cache_dir,
    )
    return report_of(done) | {"status": done.returncode, "stderr": done.stderr}


def test_a_real_server_beside_the_same_model_in_process(
    server: str, folder: Path, tmp_path: Path, cache_dir: Path
) -> None:
    """Same tokens, checked against Transformers too, and times of the same size."""
    asked = ("check=true", "workload.prompt_tokens=40")
    found = typed(server, folder, tmp_path, cache_dir, *asked)
    here = typed(None, folder, tmp_path, cache_dir, *asked)
    assert found["status"] == here["status"] == 0, found["stderr"]
    assert found["tokens_equal"] is True
    assert found["token_ids"] == here["token_ids"]
    assert len(found["token_ids"]) == 24
    row, own = (read_runs(Path(each["results"])).iloc[0] for each in (found, here))
    assert row.clock == "wall"
    assert row.device == f"a server at {server}/v1"
    assert row.prompt_tokens == 40
    assert row.note == "another program, by the clock of this client"
    assert math.isnan(row.limit_token_s)
    # Tokens of a model as small as this take less than what other tests do to the host.
    assert 0 < row.token_latency_s < own.token_latency_s + 5e-3
    assert 0 < row.ttft_s < own.ttft_s + 20e-3


@pytest.mark.parametrize("prompt_as", ["text", "chat"])
def test_a_text_of_so_many_tokens(
    server: str, folder: Path, tmp_path: Path, cache_dir: Path, prompt_as: str
) -> None:
    """What counts is what the real server counts, its template included."""
    more = (f"system.prompt_as={prompt_as}", "workload.prompt_tokens=90")
    found = typed(server, folder, tmp_path, cache_dir, *more)
    assert found["status"] == 0, found["stderr"]
    row = read_runs(Path(found["results"])).iloc[0]
    assert row.prompt_tokens == 90
    assert row.num_tokens == 24
    assert "a text of 90 tokens stands for the prompt's ids" in row.note


def test_beside_our_own_systems_in_turns(
    server: str, folder: Path, tmp_path: Path, cache_dir: Path
) -> None:
    """The experiment of baselines/README.md, at this server and with a smaller model."""
    readme = (Path(endpoint.__file__).parent / "README.md").read_text()
    (block,) = re.findall(r"```yaml\n(# @package.*?)```", readme, re.DOTALL)
    experiment = tmp_path / "mine" / "experiment" / "beside.yaml"
    experiment.parent.mkdir(parents=True)
    experiment.write_text(block.replace("http://127.0.0.1:8080", server))
    typed = ("--config-dir", str(tmp_path / "mine"), "+experiment=beside", "repeat=0,1")
    sizes = ("model=hf", f"model.path={folder}", "workload.num_new_tokens=4")
    asked = (f"output_dir={tmp_path / 'rows'}", "workload.prompt_tokens=5")
    done = run(*typed, *sizes, *asked, cache_dir=cache_dir)
    assert done.returncode == 0, done.stderr
    rows = read_runs(tmp_path / "rows")
    assert list(rows.system) == ["llama-server", "tpi", "llamacpp"] * 2
    assert list(rows.repeat) == [0, 0, 0, 1, 1, 1]
    assert set(rows.status) == {"ok"}
    assert set(rows.prompt_tokens) == {5}


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["system.model=gpt-5"], "has no model gpt-5; it has "),
        (
            ["system.key_env=NO_SUCH_KEY"],
            "system.key_env=NO_SUCH_KEY is not set in the environment",
        ),
        (["system.url=127.0.0.1:1"], "cannot reach http://127.0.0.1:1/v1: "),
        (["system.url=ftp://x"], "system.url=ftp://x is no address of a server; give one as"),
        (["system.url=null"], "system.url is missing; give the server's address"),
        (["system.prompt_as=words"], "system.prompt_as=words is unknown; choose one of ids, text"),
        (["system.timeout_s=0"], "system.timeout_s=0 must be above 0 seconds"),
        (["device.memory_mb=500"], "device.memory_mb cannot bound system=endpoint"),
        (["testbed=virtual"], "knows no virtual time; its stand-in there is system=tpi"),
        (["system.window=2"], "there is no system.window with system=endpoint"),
        (["workload.text=page"], "workload.text with system=endpoint, a library that generates"),
        (["task=chat"], "task=chat with system=endpoint, which does not keep its KV cache"),
    ],
)
def test_refused_in_one_line(
    server: str, folder: Path, tmp_path: Path, cache_dir: Path, more: list[str], words: str
) -> None:
    found = typed(server, folder, tmp_path, cache_dir, *more)
    assert found["status"] == (1 if "cannot reach" in words else 2)
    assert words in found["error"]
    assert "\n" not in found["error"]


@pytest.mark.parametrize(
    ("timeouts", "words"),
    [
        (["timeout_s=0.2", "system.timeout_s=1"], "was silent for 0.2 s (timeout_s)"),
        (["timeout_s=9", "system.timeout_s=0.2"], "was silent for 0.2 s (system.timeout_s)"),
    ],
)
def test_a_silent_server_is_waited_for_no_longer_than_the_run_may_take(
    cache_dir: Path, timeouts: list[str], words: str
) -> None:
    """One that takes connections and never answers, before a device starts."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"system.url=127.0.0.1:{silent.getsockname()[1]}"
        typed = ("system=endpoint", url, "model=debug", "workload.prompt_ids=[1]", *timeouts)
        done = run(*typed, cache_dir=cache_dir)
    assert done.returncode == 1
    assert words in done.stderr


def test_the_name_that_a_user_may_try(cache_dir: Path) -> None:
    """`endpoint.url` is `system.url` of that system."""
    typed = ("endpoint.url=127.0.0.1:1", "endpoint.model=a", "workload.prompt_ids=[1]")
    done = run("system=endpoint", "model=debug", *typed, cache_dir=cache_dir)
    assert done.returncode == 1  # the server's fault, for all that is known
    assert "cannot reach http://127.0.0.1:1/v1" in done.stderr


# --- Servers as they are described, without a socket -------------------------------------------

Answer = Callable[[httpx2.Request, dict[str, Any]], httpx2.Response]


def stream_of(*messages: Any) -> httpx2.Response:
    lines = [f"data: {json.dumps(message)}\n\n" for message in messages] + ["data: [DONE]\n\n"]
    return httpx2.Response(
        200, headers={"content-type": "text/event-stream"}, content="".join(lines).encode()
    )


def said(text: str, **more: Any) -> dict[str, Any]:
    return {"choices": [{"text": text, "finish_reason": None, **more}]}


def usage(prompt: int, answer: int, cached: int = 0) -> dict[str, Any]:
    details = {"cached_tokens": cached}
    counts = {"prompt_tokens": prompt, "completion_tokens": answer}
    return {"usage": counts | {"prompt_tokens_details": details}}


def ask(answer: Answer, request: Request, **settings: Any) -> Generation:
    """What the system makes of a server that answers like this. `/models` has one, `m`."""

    def handle(http: httpx2.Request) -> httpx2.Response:
        if http.url.path.endswith("/models"):
            return httpx2.Response(200, json={"data": [{"id": "m"}]})
        return answer(http, json.loads(http.content))

    system = EndpointSystem(url=URL, **settings)
    server = Server(
        url=URL,
        model=system.model,
        prompt_as=system.prompt_as,
        key=None,
        timeout_s=5.0,
        transport=httpx2.MockTransport(handle),
    )
    runtime: Any = LocalRuntime(0, {(0, 0): None})
    client = endpoint._Client(runtime, server, system.prompt_as, request, system.counts)
    client.begin()
    return endpoint.warmed_up(request, Output(), client.answer)


REQUEST = Request(prompt_ids=(5, 6, 7), num_new_tokens=4, eos_ids=(0,))


def test_token_ids_are_taken_from_the_stream() -> None:
    """As llama.cpp and vLLM tell them; two in one chunk have its time."""
    asked: list[dict[str, Any]] = []

    def answer(http: httpx2.Request, body: dict[str, Any]) -> httpx2.Response:
        asked.append(body)
        if body["max_tokens"] == 1:
            return stream_of(said("a", token_ids=[9]), usage(3, 1))
        return stream_of(
            said("a", token_ids=[11]),
            {"choices": [{"text": ""}], "__verbose": {"tokens": [12, 13]}},
            said("d", token_ids=[14]),
            usage(3, 4),
        )

    found = ask(answer, REQUEST)
    assert found.token_ids == [11, 12, 13, 14]
    assert found.token_ns[1] == found.token_ns[2] < found.token_ns[3]
    assert found.prompt_tokens == 3
    assert found.note == ""
    assert found.warmup_ttft_ns is not None
    warmup, real = asked
    assert warmup["prompt"] == [6, 7, 5]  # the server's cache of it is no help
    assert real["prompt"] == [5, 6, 7]
    assert real["model"] == "m"
    assert real["temperature"] == 0
    assert real["max_tokens"] == 4
    assert "ignore_eos" not in real  # the workload ends at the end of the text


def test_a_fixed_length_is_asked_for() -> None:
    def answer(http: httpx2.Request, body: dict[str, Any]) -> httpx2.Response:
        assert body["ignore_eos"] is True
        assert body["min_tokens"] == body["max_tokens"]
        ids = list(range(body["max_tokens"]))
        return stream_of(*(said("a", token_ids=[i]) for i in ids), usage(3, len(ids)))

    found = ask(answer, Request(prompt_ids=(5, 6, 7), num_new_tokens=4))
    assert len(found.token_ids) == 4


def test_an_end_of_the_text_that_the_server_does_not_know() -> None:
    def answer(http: httpx2.Request, body: dict[str, Any]) -> httpx2.Response:
        return stream_of(*(said("a", token_ids=[i]) for i in (5, 0, 6)), usage(3, 3))

    assert ask(answer, REQUEST).token_ids == [5, 0]


def test_what_openai_does_not_have_is_left_out_once_it_is_refused() -> None:
    """A strict server's text ends where it likes, and the row says so."""
    bodies: list[dict[str, Any]] = []

    def answer(http: httpx2.Request, body: dict[str, Any]) -> httpx2.Response:
        bodies.append(body)
        if "ignore_eos" in body or "stream_options" in body:
            return httpx2.Response(400, json={"error": {"message": "unknown field"}})
        return stream_of(said("a"), said("b"), usage(3, 2))

    found = ask(answer, Request(prompt_ids=(5, 6, 7), num_new_tokens=4))
    assert len(bodies) == 4  # all, standard, least; then it is known
    assert found.token_ids == [-1, -1]
    assert "2 of 4 tokens, as the server takes no ignore_eos" in found.note


def test_tokens_are_counted_by_the_server_not_by_chunks() -> None:
    def answer(http: httpx2.Request, body: dict[str, Any]) -> httpx2.Response:
        if body["max_tokens"] == 1:
            return stream_of(said("a"), usage(3, 1))
        return stream_of(said("a"), said("bcd"), usage(3, 4, cached=2))

    found = ask(answer, REQUEST)
    assert len(found.token_ids) == len(found.token_ns) == 4
    assert found.token_ns[1:] == [found.token_ns[1]] * 3
    assert "4 tokens came in 2 chunks, laid evenly" in found.note
    assert "2 tokens of the prompt were in the server's cache" in found.note


def test_a_server_that_counts_only_whole_answers() -> None:
    """As distributed-llama's: no usage in its stream."""

    def answer(http: httpx2.Request, body: dict[str, Any]) -> httpx2.Response:
        if not body["stream"]:
            return httpx2.Response(200, json={"choices": [], **usage(21, 2)})
        return stream_of(*({"choices": [{"delta": {"content": text}}]} for text in "ab"))

    request = Request(prompt_ids=(5, 6, 7), num_new_tokens=2, prompt_text="Hello you")
    found = ask(answer, request, prompt_as="chat")
    assert len(found.token_ids) == 2
    assert found.prompt_tokens == 21


def test_llamacpps_own_format() -> None:
    """As of 2024, and of prima.cpp's server: no choices, and counts in the last message."""

    def answer(http: httpx2.Request, body: dict[str, Any]) -> httpx2.Response:
        words = [{"content": "a", "stop": False} for _ in range(body["max_tokens"])]
        last = {"content": "", "stop": True, "tokens_predicted": len(words), "tokens_evaluated": 3}
        return stream_of(*words, last)

    found = ask(answer, REQUEST)
    assert len(found.token_ids) == 4
    assert found.prompt_tokens == 3
    assert found.note == ""


def test_a_stream_that_breaks_off_is_no_answer() -> None:
    """Its length would be taken from another answer, and its times be those of a part."""

    def answer(http: httpx2.Request, body: dict[str, Any]) -> httpx2.Response:
        if not body["stream"]:
            return httpx2.Response(200, json={"choices": [], **usage(3, body["max_tokens"])})
        whole = stream_of(said("a"), said("b"))
        content = whole.content.replace(b"data: [DONE]\n\n", b"")
        return httpx2.Response(200, headers=whole.headers, content=content)

    with pytest.raises(ServerFailed, match=r"broke off: its stream ended without \[DONE\] and"):
        ask(answer, REQUEST)


def test_an_end_that_is_said_needs_no_done() -> None:
    def answer(http: httpx2.Request, body: dict[str, Any]) -> httpx2.Response:
        ends = {"choices": [{"text": "", "finish_reason": "length"}]}
        whole = stream_of(*[said("a")] * body["max_tokens"], ends, usage(3, body["max_tokens"]))
        content = whole.content.replace(b"data: [DONE]\n\n", b"")
        return httpx2.Response(200, headers=whole.headers, content=content)

    assert len(ask(answer, REQUEST).token_ids) == 4


def test_a_count_that_cannot_be() -> None:
    told: list[Any] = [99999]

    def answer(http: httpx2.Request, body: dict[str, Any]) -> httpx2.Response:
        if not body["stream"]:
            return httpx2.Response(200, json={"choices": [], **usage(3, body["max_tokens"])})
        return stream_of(said("a"), said("b"), usage(3, told[0]))

    with pytest.raises(Explained, match=r"counts 99999 tokens in an answer of \d at most"):
        ask(answer, REQUEST)
    told[0] = "many"  # is no count, so the server is asked for one
    assert len(ask(answer, REQUEST).token_ids) == 4


def test_a_server_that_counts_nothing() -> None:
    def answer(http: httpx2.Request, body: dict[str, Any]) -> httpx2.Response:
        if not body["stream"]:
            return httpx2.Response(200, json={"choices": []})
        return stream_of(said("a"))

    with pytest.raises(Explained, match=r"neither ids nor numbers .* say system\.counts=chunks"):
        ask(answer, REQUEST)
    found = ask(answer, REQUEST, counts="chunks")
    assert len(found.token_ids) == 1
    assert found.prompt_tokens is None
    assert "each chunk was taken for a token (system.counts=chunks)" in found.note


def test_no_ids_and_a_check() -> None:
    def answer(http: httpx2.Request, body: dict[str, Any]) -> httpx2.Response:
        return stream_of(said("a"), usage(3, 1))

    request = Request(prompt_ids=(5,), num_new_tokens=1, keep_logits=True, warmup_tokens=0)
    with pytest.raises(Explained, match=r"this server tells no token ids, which check=true"):
        ask(answer, request)


class _WithoutIds(BaseHTTPRequestHandler):
    """A server that streams a text and counts its tokens, as many do."""

    def do_GET(self) -> None:
        self._answer("application/json", json.dumps({"data": [{"id": "m"}]}))

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        text = stream_of(said("a"), said(" b"), usage(3, 2)).text
        self._answer("text/event-stream", text)

    def _answer(self, kind: str, text: str) -> None:
        self.send_response(200)
        self.send_header("content-type", kind)
        self.send_header("content-length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing on standard error."""


@pytest.mark.parametrize("report", ["text", "json"])
def test_an_answer_without_ids_is_no_answer(report: str, folder: Path, cache_dir: Path) -> None:
    """Of a server that tells no ids there is nothing to show, to a person or to a script."""
    with ThreadingHTTPServer(("127.0.0.1", 0), _WithoutIds) as server:
        threading.Thread(target=server.serve_forever, args=(0.05,)).start()
        done = run(
            *("system=endpoint", f"system.url=http://127.0.0.1:{server.server_port}"),
            *("model=hf", f"model.path={folder}", "workload.prompt_ids=[1,2,3]"),
            *("workload.num_new_tokens=2", f"report={report}"),
            cache_dir=cache_dir,
        )
        server.shutdown()
    assert done.returncode == 1
    said_why = report_of(done)["error"] if report == "json" else done.stderr
    assert "this server tells no token ids" in said_why


def test_a_chat_of_an_exact_length() -> None:
    """Its template takes 9 tokens, and every fourth word two."""

    def answer(http: httpx2.Request, body: dict[str, Any]) -> httpx2.Response:
        words = body["messages"][0]["content"].split()
        count = 9 + len(words) + len(words) // 4
        assert body["stream"] or body["max_tokens"] == 1
        if not body["stream"]:
            return httpx2.Response(200, json={"choices": [], **usage(count, 1)})
        return stream_of(*[said("a")] * body["max_tokens"], usage(count, body["max_tokens"]))

    request = Request(prompt_ids=tuple(range(40)), num_new_tokens=3)
    found = ask(answer, request, prompt_as="chat")
    assert found.prompt_tokens == 40
    assert "a text of 40 tokens stands for the prompt's ids" in found.note
    with pytest.raises(Explained, match="no text of 5 tokens was found, as the server counts"):
        ask(answer, Request(prompt_ids=(1,) * 5, num_new_tokens=3), prompt_as="chat")  # < template


@pytest.mark.parametrize(
    ("response", "words"),
    [
        (httpx2.Response(200, json={"choices": []}), "gives no stream (stream=true was answered"),
        (httpx2.Response(404, text="Not Found"), "answered 404: Not Found; try system.prompt_as="),
        (
            httpx2.Response(401, json={"error": {"message": "bad key"}}),
            "wants a key or refuses it (401: bad key); name the environment variable",
        ),
        (httpx2.Response(500, text="a\nb"), "answered 500: a b"),
        (
            httpx2.Response(503, json={"error": {"message": "Loading model"}}),
            "answered 503: Loading model; try again when it is ready",
        ),
        (stream_of({"error": {"message": "too long"}}), "failed: too long"),
    ],
)
def test_what_a_server_may_answer(response: httpx2.Response, words: str) -> None:
    content = response.read()

    def answer(http: httpx2.Request, body: dict[str, Any]) -> httpx2.Response:
        return httpx2.Response(response.status_code, headers=response.headers, content=content)

    with pytest.raises(Explained) as caught:
        ask(answer, REQUEST)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_silent_server() -> None:
    def answer(http: httpx2.Request, body: dict[str, Any]) -> httpx2.Response:
        raise httpx2.ReadTimeout("slow")

    with pytest.raises(Explained, match=r"was silent for 5 s \(system.timeout_s\)"):
        ask(answer, REQUEST)


def test_several_models_are_named() -> None:
    def handle(http: httpx2.Request) -> httpx2.Response:
        return httpx2.Response(200, json={"data": [{"id": "a"}, {"id": "b:latest"}]})

    def choose(model: str | None) -> str | None:
        server = Server(
            url=URL,
            model=model,
            prompt_as="ids",
            key=None,
            timeout_s=1.0,
            transport=httpx2.MockTransport(handle),
        )
        server.choose_model()
        return server.model

    assert choose("b") == "b"
    with pytest.raises(
        Explained, match=r"has 2 models; choose one with system.model=: a, b:latest"
    ):
        choose(None)
    with pytest.raises(Explained, match="has no model c; it has a, b:latest"):
        choose("c")


@pytest.mark.parametrize(
    ("given", "used"),
    [
        ("127.0.0.1:8080", "http://127.0.0.1:8080/v1"),
        ("http://a.b/", "http://a.b/v1"),
        ("https://a.b/api/v3/", "https://a.b/api/v3"),
    ],
)
def test_addresses(given: str, used: str) -> None:
    assert base_url(given) == used


def test_the_key_goes_to_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is no setting, so that no row and no folder has it."""
    monkeypatch.setenv("MY_KEY", "secret")
    system = EndpointSystem(url=URL, key_env="MY_KEY")
    sent = system.__getstate__()
    monkeypatch.delenv("MY_KEY")
    device = EndpointSystem.__new__(EndpointSystem)
    device.__dict__.update(sent)
    assert device._server()._client.headers["authorization"] == "Bearer secret"
    assert "secret" not in repr(system)
    assert "secret" not in repr(device)


def test_tokens_on_chunks() -> None:
    assert laid_evenly([1, 2, 3], 3) == [1, 2, 3]
    assert laid_evenly([10, 20, 30], 5) == [10, 20, 20, 30, 30]
    assert laid_evenly([10, 20, 30, 40], 2) == [10, 40]
    assert laid_evenly([10], 3) == [10, 10, 10]
    assert laid_evenly([], 3) == laid_evenly([10], 0) == []
