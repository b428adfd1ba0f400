"""`task=chat` as one types it: lines in, answers out, and what scripts are told."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import pytest

from tests.helpers.command_line import ROOT, run
from tests.helpers.models_zoo import oracle
from tpi_bench.app import chat as app_chat
from tpi_bench.app.chat import _Desk
from tpi_bench.contract.job import Outcome
from tpi_bench.contract.request import Turn


def test_lines_in_and_answers_out(checkpoints: dict[str, Path], cache_dir: Path) -> None:
    """A model without a tokenizer is talked with in token ids; `prompt=` is the first turn."""
    folder = checkpoints["gqa"]
    done = subprocess.run(
        [
            *(sys.executable, "-m", "tpi_bench", "task=chat", "report=json", "prompt=1 2 3"),
            *("model=hf", f"model.path={folder}", "workload.num_new_tokens=5", "system=pipeline"),
            f"cache_dir={cache_dir}",
        ],
        input="\nhello\n4 5\n",
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    first, second = report["turns"]
    assert first["token_ids"] == oracle(folder, (1, 2, 3), 5)[0]
    whole = (1, 2, 3, *first["token_ids"], 4, 5)
    assert second["token_ids"] == oracle(folder, whole, 5)[0]
    assert (second["prompt"], second["num_fed"], second["num_cached"]) == ("4 5", 3, 7)
    assert len(second["token_latencies_s"]) == 4
    assert first["is_cut"]  # this model ends nothing
    assert second["is_cut"]
    assert (report["status"], report["exit_reason"]) == ("ok", "ok")
    assert report["text"] == second["text"] == " ".join(map(str, second["token_ids"]))
    assert "error: model=" in done.stderr  # hello is no token id; the conversation goes on
    assert "has no tokenizer, so a turn is token ids" in done.stderr
    assert "Ctrl-C stops an answer or else ends, as Ctrl-D" in done.stderr


def test_ctrl_c_stops_an_answer_and_the_conversation_goes_on(
    checkpoints: dict[str, Path], cache_dir: Path
) -> None:
    """Without an answer under way it ends the conversation."""
    folder = checkpoints["gqa"]
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "tpi_bench", "task=chat", "prompt=1 2 3", "model=hf"),
            *(f"model.path={folder}", "network.link_latency_ms=4", f"cache_dir={cache_dir}"),
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        start_new_session=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stderr is not None
    first = [_word(process.stdout) for _ in range(3)]
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    while (word := _word(process.stdout)) != "":
        first.append(word)
    process.stdin.write("4 5\n")
    process.stdin.flush()
    second = [_word(process.stdout) for _ in range(3)]
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    errors = [process.stderr.readline() for _ in range(3)]
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    _, last = process.communicate(timeout=60)
    assert process.returncode == 130, last
    said = oracle(folder, (1, 2, 3), len(first))[0]
    assert list(map(int, first)) == said
    assert list(map(int, second)) == oracle(folder, (1, 2, 3, *said, 4, 5), 3)[0]
    assert len(first) < 20  # of 256
    assert ["tokens, stopped, TTFT " in line for line in errors] == [False, True, True]


class Conversation:
    """Stops, as a person would who is impatient while a turn is encoded."""

    def __init__(self, turns: Iterator[Turn | Exception]) -> None:
        self.desk: _Desk | None = None
        self.stopped: list[bool] = []
        self._turns = turns

    def ask(self, text: str) -> Turn:
        assert self.desk is not None
        self.stopped.append(self.desk.stop())
        turn = next(self._turns)
        if isinstance(turn, Exception):
            raise turn
        return turn

    def stream(self) -> None:
        return None


def test_ctrl_c_counts_from_the_line_on(capsys: pytest.CaptureFixture[str]) -> None:
    """Before its first token too, which takes longest; not at the prompt after a mistake."""
    turn = Turn(position=0, token_ids=[1], num_new_tokens=3)
    conversation = Conversation(iter([ValueError("no token"), turn]))
    told: list[bool] = []

    def read() -> str:
        told.append(conversation.desk.stop())
        return "1"

    conversation.desk = _Desk(conversation, None, read, is_text=True)
    assert conversation.desk.next_turn(None) == turn
    assert told == [False, False]
    assert conversation.stopped == [True, True]
    assert conversation.desk.on_token(5)
    assert not conversation.desk.stop()  # asked twice: somebody wants it to end
    assert capsys.readouterr() == ("5 ", "error: no token\n")


@pytest.mark.parametrize("is_random", [True, False])
def test_random_weights_are_told_in_the_greeting(
    checkpoints: dict[str, Path],
    cache_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
    is_random: bool,
) -> None:
    monkeypatch.setattr(app_chat, "talk", lambda *said: Outcome(status="ok"))
    model = ["model=debug"] if is_random else ["model=hf", f"model.path={checkpoints['gqa']}"]
    done = run("task=chat", *model, cache_dir=cache_dir)
    assert done.returncode == 0
    words = "debug has random weights: what it answers means nothing\n"
    assert (words in done.stderr) == is_random


def _word(stream: IO[str]) -> str:
    """The next token as it comes; "" at the end of a line."""
    word = ""
    while (letter := stream.read(1)) not in (" ", "\n", ""):
        word += letter
    return word


def test_a_first_turn_that_cannot_be_is_refused_before_anything_is_made(
    checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    folder = checkpoints["gqa"]
    done = run(
        "task=chat", "prompt=hello", "model=hf", f"model.path={folder}", cache_dir=tmp_path / "new"
    )
    assert done.returncode == 2
    assert "has no tokenizer, so a turn is token ids of 0 to" in done.stderr
    assert not list((tmp_path / "new").rglob("*.safetensors"))  # as its blocks are
