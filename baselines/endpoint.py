"""Any server that speaks OpenAI's HTTP API, as a system: llama-server, vLLM, Ollama, prima.cpp, ...

It is another program, perhaps on other machines, so only this client's clock is read: the first
token from the request to its arrival, each later one from the one before, connection kept open.
`openai_api.py` speaks with it.

How many tokens there are the server says (`usage`), never the number of chunks. Where it tells the
ids of a chunk's tokens (llama.cpp, vLLM), each token has its chunk's time. Where it does not, a
chunk is a token as long as the numbers agree; else tokens are laid evenly on the chunks behind the
first, which leaves the mean as it is, and the row's note says so.
"""

from __future__ import annotations

import functools
import itertools
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from baselines.openai_api import PATHS, Chunk, Counts, Server, ServerFailed, base_url
from tpi_bench.contract.job import Job, Output
from tpi_bench.contract.model import ModelConfig
from tpi_bench.contract.network import Traffic
from tpi_bench.contract.plan import Site
from tpi_bench.contract.request import Generation, Request
from tpi_bench.contract.runtime import Explained
from tpi_bench.contract.setting import setting
from tpi_bench.contract.system import System
from tpi_bench.engine.generation import should_stop, warmed_up

if TYPE_CHECKING:
    from tpi_bench.contract.runtime import Runtime

_UNKNOWN = "unknown"
_WEIGHTS = (_UNKNOWN, "float32", "float16", "bfloat16", "q8", "q4")
_COUNTERS = ("server", "chunks")
_NO_ID = -1  # of a token that the server did not tell
_WORDS = [
    "the",
    "of",
    "and",
    "to",
    "in",
    "is",
    "that",
    "for",
    "it",
    "with",
    "as",
    "on",
    "be",
    "at",
    "by",
    "this",
    "from",
    "or",
    "an",
    "are",
]
# What a text is made of, from large to small, and what a piece is thought to take at first.
_PIECES = (([f" {word}" for word in _WORDS[1:]], 4.0), ([" a"], 1.0), ([*".,;:!?"], 1.0))
_MOST_TRIES = 12  # with each


@dataclass(frozen=True, kw_only=True)
class EndpointSystem(System):
    """`system=endpoint`. `model=` says what the server is said to serve: its tokenizer makes the
    prompt's ids. The warm-up has the prompt's tokens in another order, so that what the server
    keeps of it does not shorten the prompt that is timed.
    """

    name: str = setting("endpoint", "how rows call it")
    url: str | None = setting(None, "the server's address, as http://127.0.0.1:8080")
    model: str | None = setting(None, "of those it has; null: its only one")
    prompt_as: str = setting(
        "ids",
        "how the prompt goes there: ids (as for all systems) or text to /completions, chat to "
        "/chat/completions, which has a template of its own",
        tuple(PATHS),
    )
    key_env: str | None = setting(
        None, "the environment variable that holds its key, if it wants one"
    )
    weights: str = setting(_UNKNOWN, "what it holds weights in, for its rows", _WEIGHTS)
    counts: str = setting(
        "server",
        "what counts the answer's tokens: the server, or chunks, where it says no numbers but is "
        "known to send each token alone",
        _COUNTERS,
    )
    timeout_s: float = setting(300.0, "a server that is silent for longer has failed")

    talks: ClassVar[bool] = False
    max_devices: ClassVar[int | None] = 1
    is_library: ClassVar[bool] = True
    stand_in: ClassVar[str | None] = "system=tpi"
    uses_torch: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not self.url:
            raise ValueError(
                "system.url is missing; give the server's address, as system.url=http://127.0.0.1:8080"
            )
        base_url(self.url)
        if self.prompt_as not in PATHS:
            raise ValueError(
                f"system.prompt_as={self.prompt_as} is not known; choose one of {', '.join(PATHS)}"
            )
        if not 0 < self.timeout_s < float("inf"):
            raise ValueError(f"system.timeout_s={self.timeout_s} must be above 0 seconds")

    def __getstate__(self) -> dict[str, Any]:
        """With the key, for the device that asks: it may have another environment."""
        return {**self.__dict__, "_sent_key": self._key()}

    @property
    def variant(self) -> str:
        return self.model or ""

    def plan(self, config: ModelConfig, site: Site) -> None:
        """Nothing is divided here."""
        if site.memory_bytes is not None:
            raise ValueError(
                f"device.memory_mb cannot bound system={self.name}, a program that runs by itself; "
                "leave it out"
            )

    def traffic(self, job: Job) -> Traffic:
        return Traffic()

    def place(self, job: Job) -> str:
        return f"a server at {base_url(self.url or '')}"

    def note(self, job: Job) -> str:
        return "another program, by the clock of this client"

    def precision(self, dtype: str, weights: str) -> tuple[str, str]:
        return _UNKNOWN, self.weights

    def num_threads(self, offered: int) -> int:
        return 1

    def look(self, job: Job) -> None:
        """The server must be there, have the model and give a stream."""
        if self.key_env and not self._key():
            raise ValueError(
                f"system.key_env={self.key_env} is not set in the environment; export it, or leave "
                "system.key_env out"
            )
        server = self._server(job.timeout_s)
        try:
            server.choose_model()
            # To its end: some servers fail when a stream is cut off.
            server.stream(_body(self.prompt_as, [1], "Hello", 1), {}, lambda chunk: False)
        except ServerFailed as error:
            raise ConnectionError(str(error)) from error
        except Explained as error:
            raise ValueError(str(error)) from error
        finally:
            server.close()

    def run_device(self, rt: Runtime, job: Job, output: Output) -> Generation | None:
        server = self._server()
        client = _Client(rt, server, self.prompt_as, job.request, self.counts)
        try:
            rt.compute(("load",), client.begin)
            return warmed_up(job.request, output, client.answer)
        finally:
            server.close()

    def _key(self) -> str | None:
        given = self.__dict__.get("_sent_key")
        return given or (os.environ.get(self.key_env) if self.key_env else None)

    def _server(self, within_s: float | None = None) -> Server:
        """Which may be silent for as long as the run may take, if that is less."""
        is_less = within_s is not None and within_s < self.timeout_s
        return Server(
            url=base_url(self.url or ""),
            model=self.model,
            prompt_as=self.prompt_as,
            key=self._key(),
            timeout_s=min(self.timeout_s, within_s or self.timeout_s),
            limit="timeout_s" if is_less else "system.timeout_s",
        )


class _Client:
    """Asks one prompt of a server, first in another order (the warm-up) and then as it is."""

    def __init__(
        self, rt: Runtime, server: Server, prompt_as: str, request: Request, counts: str
    ) -> None:
        self._rt = rt
        self._server = server
        self._prompt_as = prompt_as
        self._request = request
        self._counts_chunks = counts == "chunks"
        self._text = request.prompt_text or ""
        self._warms_up = request.warmup_tokens > 0

    def begin(self) -> None:
        """Find the model, and a text where there is only a number of tokens."""
        self._server.choose_model()
        if self._prompt_as != "ids" and self._request.prompt_text is None:
            self._text = self._text_of(len(self._request.prompt_ids))

    def answer(self, limit: int, output: Output) -> Generation:
        """Up to `limit` tokens."""
        ids, text, request = list(self._request.prompt_ids), self._text, self._request
        if self._warms_up:
            ids, text = ids[1:] + ids[:1], " ".join(reversed(text.split()))
        self._warms_up = False
        body = _body(self._prompt_as, ids, text, limit) | _sampling(request)
        wanted = _wanted(request, limit)
        result = Generation(token_ids=[], request_ns=self._rt.now(), token_ns=[], account=[])
        arrived = _Arrived(self._rt, request, result, limit, output)
        stream = functools.partial(self._server.stream, body, wanted, arrived.take)
        counts = self._rt.compute(("generate",), stream)
        if self._counts_chunks and counts.answer is None:
            counts.answer = arrived.num_chunks
            arrived.notes.append("each chunk was taken for a token (system.counts=chunks)")
        elif not arrived.has_ids and (counts.answer is None or counts.prompt is None):
            counts = self._server.count(body, wanted)  # it counts where it does not stream
        arrived.settle(counts)
        result.prompt_tokens = counts.prompt
        result.note = "; ".join(self._notes(arrived, counts, limit))
        return result

    def _notes(self, arrived: _Arrived, counts: Counts, limit: int) -> list[str]:
        found = [*arrived.notes]
        request, asked = self._request, len(self._request.prompt_ids)
        if self._prompt_as == "ids" and counts.prompt not in (None, asked):
            found.append(f"the server counts {counts.prompt} tokens in a prompt of {asked}")
        if self._prompt_as != "ids" and request.prompt_text is None:
            found.append(f"a text of {counts.prompt} tokens stands for the prompt's ids")
        if counts.cached:
            found.append(f"{counts.cached} tokens of the prompt were in the server's cache")
        num = len(arrived.result.token_ids)
        if num < limit and not should_stop(request, arrived.result, limit):
            because = "takes no ignore_eos" if self._server.is_strict else "has ended its text"
            found.append(f"{num} of {limit} tokens, as the server {because}")
        return found

    def _text_of(self, num_tokens: int) -> str:
        """A text of so many tokens, as the server counts them. Raises Explained."""
        text = _WORDS[0]
        found = least = self._counted(text)
        for pieces, cost in _PIECES:
            for _ in range(_MOST_TRIES):
                more = math.floor((num_tokens - found) / cost)
                if more < 1:
                    break
                longer = text + "".join(itertools.islice(itertools.cycle(pieces), more))
                counted = self._counted(longer)
                cost = max(1.0, (counted - found) / more)
                if counted <= num_tokens:
                    text, found = longer, counted
        if found == num_tokens:
            return text
        raise Explained(
            f"no text of {num_tokens} tokens was found, as the server counts them (a word alone "
            f"has {least}, with its template); take another workload.prompt_tokens"
        )

    def _counted(self, text: str) -> int:
        found = self._server.count(_body(self._prompt_as, [], text, 1), {}).prompt
        if found is None:
            raise Explained(
                "the server does not count the tokens of a prompt (usage), so that none of a given "
                "length can be made; give prompt=TEXT"
            )
        return found


class _Arrived:
    """The chunks of an answer, each stamped as it arrives, and what tokens they were."""

    def __init__(
        self, rt: Runtime, request: Request, result: Generation, limit: int, output: Output
    ) -> None:
        self.result = result
        self.notes: list[str] = []
        self.has_ids = True  # each chunk's so far
        self._rt = rt
        self._request = request
        self._limit = limit
        self._output = output
        self._chunks_ns: list[int] = []

    @property
    def num_chunks(self) -> int:
        return len(self._chunks_ns)

    def take(self, chunk: Chunk) -> bool:
        """Whether it is enough: told by ids alone, as nothing else counts tokens."""
        now_ns = self._rt.now()
        self._chunks_ns.append(now_ns)
        self.has_ids = self.has_ids and bool(chunk.ids)
        is_over = False
        for token in chunk.ids or [] if self.has_ids else []:
            self.result.token_ns.append(now_ns)
            self.result.token_ids.append(token)
            if self._output.on_token:
                self._output.on_token(token)
            is_over = should_stop(self._request, self.result, self._limit)
        # At the limit the server ends by itself, and then says what it counted.
        return is_over and len(self.result.token_ids) < self._limit

    def settle(self, counts: Counts) -> None:
        """The tokens' times. Raises Explained where nobody knows how many there are, or none is."""
        told = len(self.result.token_ids)
        if counts.answer is not None and counts.answer > told + 1:  # more than an end that is cut
            self.has_ids = False
        num = told if self.has_ids else counts.answer
        if not self._chunks_ns or num == 0:
            raise Explained("the server's answer to the prompt is empty")
        if self.has_ids:
            return
        if num is None:
            raise Explained(
                "the server tells neither ids nor numbers of its tokens (usage), so its speed in "
                "tokens is not known; where each of its chunks is a token, say system.counts=chunks"
            )
        if num > self._limit + 1:  # with an end that is cut
            raise Explained(
                f"the server counts {num} tokens in an answer of {self._limit} at most (usage), "
                "so its count cannot be believed"
            )
        if self._request.keep_logits or self._output.on_token:
            raise Explained(
                "this server tells no token ids, which check=true compares and task=generate "
                "shows; leave out check, and take task=measure"
            )
        if num != len(self._chunks_ns):
            self.notes.append(
                f"{num} tokens came in {len(self._chunks_ns)} chunks, laid evenly on those behind "
                "the first: single gaps are not tokens'"
            )
        self.result.token_ns = laid_evenly(self._chunks_ns, num)
        self.result.token_ids = [_NO_ID] * num


def laid_evenly(chunks_ns: Sequence[int], num_tokens: int) -> list[int]:
    """A time for each token out of those of chunks: the first has the first, the last the last."""
    if num_tokens == 0 or not chunks_ns:
        return []
    last = len(chunks_ns) - 1
    gaps = max(1, num_tokens - 1)
    return [chunks_ns[-(-i * last // gaps)] for i in range(num_tokens)]


def _body(prompt_as: str, ids: list[int], text: str, limit: int) -> dict[str, Any]:
    """What every server understands."""
    if prompt_as == "chat":
        return {"messages": [{"role": "user", "content": text}], "max_tokens": limit}
    return {"prompt": ids if prompt_as == "ids" else text, "max_tokens": limit}


def _sampling(request: Request) -> dict[str, Any]:
    sampling = request.sampling
    if sampling.temperature == 0:
        return {"temperature": 0}
    return {
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "seed": sampling.seed % (1 << 32),
    }


def _wanted(request: Request, limit: int) -> dict[str, Any]:
    """What some have beside it: token ids in the stream (llama.cpp, vLLM), no cache of earlier
    prompts (llama.cpp), top-k, and a fixed length (both).
    """
    wanted: dict[str, Any] = {
        "return_tokens": True,
        "verbose": True,
        "return_token_ids": True,
        "cache_prompt": False,
    }
    if request.sampling.temperature:
        wanted |= {"top_k": request.sampling.top_k, "min_p": 0.0}
    return wanted if request.eos_ids else wanted | {"ignore_eos": True, "min_tokens": limit}
