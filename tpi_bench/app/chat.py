"""`task=chat`: a line in, an answer out, on devices that keep their KV cache between turns.

Turns are lines of standard input; `prompt=` on the command line is the first one.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import logging
import signal
import statistics
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

from tpi_bench.app.errors import ExitStatus
from tpi_bench.contract.request import Generation, Turn
from tpi_bench.measure.prepare import describe
from tpi_bench.measure.settings import Settings
from tpi_bench.measure.talk import Answer, Full, Talk, prepare_talk, talk
from tpi_bench.models.tokenizer import TextStream

_LOG = logging.getLogger(__name__)
_STATUS = {
    "ok": ExitStatus.OK,
    "oom": ExitStatus.OUT_OF_MEMORY,
    "timeout": ExitStatus.TIMEOUT,
}
ReadLine = Callable[[], str]  # the next line; raises EOFError at the end


def read_line() -> str:
    """From a person, with what a terminal offers to edit it, or from a file or pipe."""
    if sys.stdin.isatty():
        with contextlib.suppress(ImportError):  # not everywhere
            importlib.import_module("readline")  # `input` then knows arrows and earlier lines
        return input("> ")
    if line := sys.stdin.readline():
        return line
    raise EOFError


def chat(settings: Settings, first: str | None, read: ReadLine = read_line) -> ExitStatus:
    """Talk until the lines end. Raises ValueError before it starts."""
    prepared = prepare_talk(settings, first)
    conversation = Talk(prepared.model, prepared.job.request, settings.workload)
    desk = _Desk(conversation, first, read, is_text=settings.report == "text")
    kind = "token ids, as 1 2 3" if conversation.speaks_ids else "a line each"
    _LOG.info("%s; %s, Ctrl-C stops an answer or else ends, as Ctrl-D", describe(prepared), kind)
    if prepared.model.folder is None:
        _LOG.info("%s has random weights: what it answers means nothing", prepared.model.name)
    try:
        with _ctrl_c(desk.stop):
            outcome = talk(prepared, desk.next_turn, desk.on_token)
    finally:
        conversation.end()
    status = _STATUS.get(outcome.status, ExitStatus.ERROR)
    if settings.report == "json":
        text = desk.turns[-1]["text"] if desk.turns else None
        report = {"status": outcome.status, "exit_reason": status.reason, "text": text}
        report |= {"results": None, "turns": desk.turns}
        print(json.dumps(report | ({"error": outcome.error} if outcome.error else {})))
    if outcome.status != "ok":
        print(f"{outcome.status}: {outcome.error}", file=sys.stderr)
    return status


@contextlib.contextmanager
def _ctrl_c(stop: Callable[[], bool]) -> Iterator[None]:
    """What `stop` has no use for is a KeyboardInterrupt, as ever. Without effect in threads."""

    def on_signal(number: int, frame: FrameType | None) -> None:
        if not stop():
            raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, on_signal)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


class _Desk:
    """Asks the person and shows what comes; `turns` is what scripts are told."""

    def __init__(
        self, conversation: Talk, first: str | None, read: ReadLine, *, is_text: bool
    ) -> None:
        self.turns: list[dict[str, Any]] = []
        self._conversation = conversation
        self._first = first
        self._read = read
        self._is_text = is_text
        self._text = ""
        self._stream: TextStream | None = None
        self._is_answering = False
        self._is_stopped = False

    def next_turn(self, answer: Generation | None) -> Turn | None:
        """Show what the answer took, and ask for the next line."""
        self._is_answering = False
        if answer is not None:
            self._show(self._conversation.take(answer, self._is_stopped))
        while (text := self._line()) is not None:
            self._is_answering, self._is_stopped = True, False
            try:
                turn = self._conversation.ask(text)
            except Full as error:
                print(f"end: {error}", file=sys.stderr)
                return None
            except ValueError as error:
                print(f"error: {error}", file=sys.stderr)
                self._is_answering = False
                continue
            self._text, self._stream = text, self._conversation.stream()
            return turn
        return None

    def on_token(self, token: int) -> bool:
        """Show it; whether the person has stopped the answer."""
        if self._is_text:
            piece = self._stream.add(token) if self._stream else f"{token} "
            print(piece, end="", flush=True)
        return self._is_stopped

    def stop(self) -> bool:
        """End the answer that is under way; False where there is none, or it was asked before."""
        was_asked, self._is_stopped = self._is_stopped, self._is_answering
        return self._is_answering and not was_asked

    def _line(self) -> str | None:
        """The next line with something on it; None when there is none."""
        if self._first is not None:
            text, self._first = self._first, None
            return text
        while True:
            try:
                text = self._read().strip("\r\n")
            except EOFError:
                return None
            if text.strip():
                return text

    def _show(self, answer: Answer) -> None:
        self.turns.append({"prompt": self._text} | vars(answer))
        if not self._is_text:
            return
        print(flush=True)
        gaps = answer.token_latencies_s
        speed = f", {1 / statistics.mean(gaps):.1f} tokens/s" if gaps else ""
        cut = ", where it is cut" if answer.is_cut else ", stopped" if answer.is_stopped else ""
        _LOG.info(
            f"  [{len(answer.token_ids)} tokens{cut}, TTFT {answer.ttft_s * 1e3:.0f} ms{speed}; "
            f"{answer.num_fed} fed, {answer.num_cached} were cached]"
        )
