"""A server that speaks OpenAI's HTTP API, asked for one stream of tokens at a time.

`endpoint.py` is the system. Nothing here reads a clock: each chunk is handed over as it arrives.
What servers have beside OpenAI's own fields is asked for as long as they accept it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from tpi_bench.contract.runtime import Explained

if TYPE_CHECKING:
    import httpx2

_CONNECT_S = 10.0
_MOST_NAMED = 8
_HERE = ("localhost", "127.0.0.1", "::1")
# How the prompt goes there: the path, and where it stands in the body.
PATHS = {"ids": "completions", "text": "completions", "chat": "chat/completions"}
_COUNT = {"stream_options": {"include_usage": True}}
_ALL, _STANDARD, _LEAST = range(3)  # what a server accepts: any field, OpenAI's, not all of these
_NOT_UNDERSTOOD = (400, 422)
_DONE: dict[str, Any] = {}  # stands for the end of a stream


def base_url(given: str) -> str:
    """With its scheme, and the version's path where only a host was given. Raises ValueError."""
    whole = given if "://" in given else f"http://{given}"
    parts = urlsplit(whole)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(
            f"system.url={given} is no address of a server; give one as http://127.0.0.1:8080"
        )
    path = parts.path.rstrip("/")
    return f"{parts.scheme}://{parts.netloc}{path or '/v1'}"


class ServerFailed(Explained):
    """What is the server's, and not of what was typed."""


@dataclass(frozen=True, kw_only=True)
class Chunk:
    """What arrived at once: text, and the tokens it stands for where the server tells them."""

    text: str
    ids: list[int] | None


@dataclass(kw_only=True)
class Counts:
    """What the server says of a request: its own numbers of tokens, None where it says nothing."""

    prompt: int | None = None
    cached: int | None = None
    answer: int | None = None
    reason: str | None = None  # why it ended

    def take(self, message: dict[str, Any]) -> None:
        usage = message.get("usage") or {}
        self.prompt = _number(usage.get("prompt_tokens"), self.prompt)
        self.answer = _number(usage.get("completion_tokens"), self.answer)
        details = usage.get("prompt_tokens_details") or {}
        self.cached = _number(details.get("cached_tokens"), self.cached)
        if message.get("stop") is True:  # llama.cpp's own format, as of 2024 and of prima.cpp
            self.prompt = _number(message.get("tokens_evaluated"), self.prompt)
            self.answer = _number(message.get("tokens_predicted"), self.answer)
            self.reason = self.reason or "stop"
        for choice in message.get("choices") or []:
            self.reason = choice.get("finish_reason") or self.reason


def _number(told: Any, before: int | None) -> int | None:
    """What is told, if it can be a number of tokens."""
    is_count = isinstance(told, int) and not isinstance(told, bool) and told >= 0
    return told if is_count else before


@dataclass(kw_only=True)
class Server:
    """One connection, which stays open from request to request.

    `prompt_as` is ids, text or chat. Raises Explained, in one line, for whatever goes wrong.
    """

    url: str
    model: str | None
    prompt_as: str
    key: str | None
    timeout_s: float
    limit: str = "system.timeout_s"  # the setting that says so
    transport: httpx2.BaseTransport | None = None  # another one in tests
    _accepts: int = field(default=_ALL, init=False)

    def __post_init__(self) -> None:
        import httpx2

        self._client = httpx2.Client(
            headers={"Authorization": f"Bearer {self.key}"} if self.key else {},
            timeout=httpx2.Timeout(self.timeout_s, connect=min(_CONNECT_S, self.timeout_s)),
            trust_env=urlsplit(self.url).hostname not in _HERE,  # no proxy on the way to oneself
            transport=self.transport,
        )

    def close(self) -> None:
        self._client.close()

    @property
    def is_strict(self) -> bool:
        """Whether it has refused what OpenAI's own does not have."""
        return self._accepts != _ALL

    def choose_model(self) -> None:
        """Find the model among those that the server has, the only one where none is named."""
        where = f"{self.url}/models"
        with self._explained():
            response = self._client.get(where)
        if response.status_code in (404, 405, 501):  # it does not say
            if self.model is None:
                raise Explained(
                    f"the server at {self.url} does not list its models; name one with "
                    "system.model=NAME"
                )
            return
        self._check(response, where)
        names = [str(each.get("id")) for each in _json(response).get("data") or []]
        listed = ", ".join(names[:_MOST_NAMED]) + ", ..." * (len(names) > _MOST_NAMED)
        if self.model is None and len(names) == 1:
            self.model = names[0]
        elif self.model is None:
            raise Explained(
                f"the server at {self.url} has {len(names)} models; choose one with system.model=: "
                f"{listed or 'none'}"
            )
        elif self.model not in names and f"{self.model}:latest" not in names:
            raise Explained(
                f"the server at {self.url} has no model {self.model}; it has {listed or 'none'}"
            )

    def stream(
        self, body: dict[str, Any], wanted: dict[str, Any], take: Callable[[Chunk], bool]
    ) -> Counts:
        """Ask, and hand over each chunk as it arrives; `take` says whether it was the last.

        `wanted` is what OpenAI's own server does not have: left out once it has been refused.
        """
        while True:
            whole = self._whole(body, wanted, stream=True)
            with self._explained():
                request = self._client.build_request("POST", self._where, json=whole)
                response = self._client.send(request, stream=True)
                try:
                    is_refused = response.status_code in _NOT_UNDERSTOOD
                    if not is_refused or self._accepts == _LEAST:
                        return self._read(response, take)
                finally:
                    response.close()
            self._accepts += 1

    def count(self, body: dict[str, Any], wanted: dict[str, Any]) -> Counts:
        """Ask for the whole answer at once, for what the server counts."""
        with self._explained():
            whole = self._whole(body, wanted, stream=False)
            response = self._client.post(self._where, json=whole)
        self._check(response, self._where)
        counts = Counts()
        counts.take(_json(response))
        return counts

    def _whole(self, body: dict[str, Any], wanted: dict[str, Any], stream: bool) -> dict[str, Any]:
        whole = body | {"model": self.model, "stream": stream}
        if self._accepts == _ALL:
            whole |= wanted
        return whole | _COUNT if stream and self._accepts != _LEAST else whole

    @property
    def _where(self) -> str:
        return f"{self.url}/{PATHS[self.prompt_as]}"

    def _read(self, response: httpx2.Response, take: Callable[[Chunk], bool]) -> Counts:
        """The events of a stream (server-sent events, a line of data each)."""
        if response.status_code != 200:
            response.read()
        self._check(response, self._where)
        kind = response.headers.get("content-type", "")
        if "text/event-stream" not in kind:
            raise Explained(
                f"{self._where} gives no stream (stream=true was answered with "
                f"{kind or 'no content type'}), so no token can be timed"
            )
        counts = Counts()
        for message in _events(response.iter_lines()):
            if message is _DONE:
                return counts
            if "error" in message:
                raise ServerFailed(f"{self._where} failed: {_reason(message)}")
            counts.take(message)
            chunk = _chunk(message)
            if (chunk.text or chunk.ids) and take(chunk):
                return counts
        if counts.reason is None:
            raise ServerFailed(
                f"{self._where} broke off: its stream ended without [DONE] and without a "
                "finish_reason"
            )
        return counts

    def _check(self, response: httpx2.Response, where: str) -> None:
        code = response.status_code
        if code == 200:
            return
        reason = _reason_of(response)
        if code in (401, 403):
            raise Explained(
                f"{where} wants a key or refuses it ({code}: {reason}); name the environment "
                "variable that holds it: system.key_env=NAME"
            )
        advice = ""
        if where == self._where and code in (404, 405, *_NOT_UNDERSTOOD):
            others = [name for name in PATHS if name != self.prompt_as]
            advice = f"; try system.prompt_as={' or '.join(others)}"
        if code == 503:  # llama-server and prima.cpp, until they have loaded
            advice = "; try again when it is ready"
        kind = ServerFailed if code >= 500 else Explained
        raise kind(f"{where} answered {code}: {reason}{advice}")

    def _explained(self) -> _Explaining:
        return _Explaining(self.url, f"{self.timeout_s:g} s ({self.limit})")


@dataclass(frozen=True)
class _Explaining:
    """What the connection meets, in words."""

    url: str
    patience: str

    def __enter__(self) -> None:
        """Nothing is to be made ready."""

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        import httpx2

        if isinstance(error, (httpx2.ConnectError, httpx2.ConnectTimeout)):
            raise ServerFailed(
                f"cannot reach {self.url}: {str(error) or 'no answer'}; is the server running, "
                "and is system.url= its address?"
            ) from error
        if isinstance(error, httpx2.TimeoutException):
            raise ServerFailed(f"{self.url} was silent for {self.patience}") from error
        if isinstance(error, httpx2.TransportError):
            text = str(error) or type(error).__name__
            raise ServerFailed(f"{self.url} broke off: {text}") from error


def _events(lines: Iterator[str]) -> Iterator[dict[str, Any]]:
    for line in lines:
        name, _, data = line.partition(":")
        if name == "error" and data.strip():  # llama.cpp's older servers
            yield {"error": data.strip()}
        if name != "data":
            continue
        if data.strip() == "[DONE]":
            yield _DONE
            return
        try:
            message = json.loads(data)
        except ValueError:
            message = None
        if not isinstance(message, dict):
            raise Explained(f"the server sent what is no JSON object: {data.strip()[:80]!r}")
        yield message


def _chunk(message: dict[str, Any]) -> Chunk:
    """Of a message's first choice: an answer, or what is thought before it."""
    choice: dict[str, Any] = next(iter(message.get("choices") or []), {})
    delta = choice.get("delta") or {}
    # `content` beside no choice is llama.cpp's own format.
    texts = (
        choice.get("text"),
        message.get("content"),
        *map(delta.get, ("content", "reasoning_content", "reasoning")),
    )
    ids = choice.get("token_ids")
    ids = ids if ids is not None else (message.get("__verbose") or {}).get("tokens")
    return Chunk(text=next(filter(None, texts), ""), ids=ids)


def _json(response: httpx2.Response) -> dict[str, Any]:
    try:
        found = response.json()
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise Explained(f"{response.url} answered what is no JSON object: {response.text[:80]!r}")
    return found


def _reason_of(response: httpx2.Response) -> str:
    try:
        return _reason(response.json())
    except ValueError:
        return " ".join(response.text.split())[:200] or "no reason given"


def _reason(message: Any) -> str:
    error = message.get("error", message) if isinstance(message, dict) else message
    text = error.get("message", error) if isinstance(error, dict) else error
    return " ".join(str(text).split())[:200]
