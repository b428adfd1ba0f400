"""A conversation: what is cached stays, and every answer is the one that the whole would get."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from baselines.galaxy import GalaxySystem
from baselines.pipeline import PipelineSystem
from tests.helpers.models_zoo import oracle, prompt_of
from tests.helpers.running import make_job
from tests.helpers.settings import settings_of
from tpi_bench.contract.job import NextTurn
from tpi_bench.contract.network import NetworkConfig
from tpi_bench.contract.request import Generation, Request, Turn, Workload
from tpi_bench.contract.system import System
from tpi_bench.engine.tpi import TpiSystem
from tpi_bench.measure.talk import Full, Talk, prepare_talk
from tpi_bench.models.tokenizer import encode_conversation
from tpi_bench.processes.launcher import run_job

WORDS = (prompt_of(5), (7, 8, 9), (11,), tuple(range(40, 60)))
SLOW = NetworkConfig(topology="switch", link_latency_ms=5)
PIECE = 8  # shorter than the last of them


def asked(folder: Path, answers: list[list[int]], wait_s: float = 0.0) -> NextTurn:
    """One of WORDS after another, each behind all that was said."""
    said: list[int] = []

    def next_turn(answer: Generation | None) -> Turn | None:
        time.sleep(wait_s)
        if answer is not None:
            answers.append(answer.token_ids)
            said.extend(answer.token_ids)
        if len(answers) == len(WORDS):
            return None
        cached = max(0, len(said) - 1)
        said.extend(WORDS[len(answers)])
        return Turn(position=cached, token_ids=said[cached:], num_new_tokens=6)

    return next_turn


def job_of(system: System, folder: Path, cache_dir: Path, num_devices: int, **extra):
    request = Request(prompt_ids=(1,) * PIECE, num_new_tokens=6, positions=100)
    return make_job(
        system, folder, cache_dir, num_devices=num_devices, request=request, talks=True, **extra
    )


def expected_of(folder: Path) -> list[list[int]]:
    said: tuple[int, ...] = ()
    found = []
    for words in WORDS:
        said += words
        found.append(oracle(folder, said, 6)[0])
        said += tuple(found[-1])
    return found


@pytest.mark.parametrize(
    ("system", "num_devices"),
    [
        (TpiSystem(), 3),
        (TpiSystem(window=2, collective="direct"), 2),
        (TpiSystem(name="mmap", loading="mmap"), 1),
        (PipelineSystem(), 2),
        (GalaxySystem(), 3),
    ],
    ids=["tpi", "window", "mmap", "pipeline", "galaxy"],
)
def test_answers_are_those_of_the_whole_conversation(
    system: System, num_devices: int, checkpoints: dict[str, Path], cache_dir: Path
) -> None:
    folder = checkpoints["gqa"]
    answers: list[list[int]] = []
    outcome = run_job(job_of(system, folder, cache_dir, num_devices), None, asked(folder, answers))
    assert outcome.status == "ok", outcome.error
    assert answers == expected_of(folder)


def test_one_who_thinks_longer_than_a_time_out_is_waited_for(
    checkpoints: dict[str, Path], cache_dir: Path
) -> None:
    folder = checkpoints["gqa"]
    job = job_of(TpiSystem(), folder, cache_dir, 2, network=NetworkConfig(timeout_s=0.2))
    answers: list[list[int]] = []
    outcome = run_job(job, None, asked(folder, answers, wait_s=0.5))
    assert outcome.status == "ok", outcome.error
    assert answers == expected_of(folder)


def model_without_tokenizer(vocab: int = 100):
    config = SimpleNamespace(vocab=vocab, context_length=64)
    return SimpleNamespace(name="tiny", folder=None, config=config)


def talk_of(positions: int, eos_ids: tuple[int, ...] = ()) -> Talk:
    """With answers of up to 8 tokens."""
    request = SimpleNamespace(positions=positions, eos_ids=eos_ids)
    return Talk(model_without_tokenizer(), request, Workload(prompt_ids=[1], num_new_tokens=8))


def answer_of(*token_ids: int) -> Generation:
    times = [10 * (i + 1) for i in range(len(token_ids))]
    return Generation(token_ids=list(token_ids), request_ns=0, token_ns=times, account=[])


def test_only_what_is_new_is_fed() -> None:
    talk = talk_of(positions=20)
    assert talk.ask("1 2 3") == Turn(position=0, token_ids=[1, 2, 3], num_new_tokens=8)
    answer = talk.take(answer_of(50, 51))
    assert (answer.num_fed, answer.num_cached, answer.text) == (3, 0, "50 51")
    # the last token of an answer has not been fed
    assert talk.ask("[4,5]") == Turn(position=4, token_ids=[51, 4, 5], num_new_tokens=8)
    assert talk.take(answer_of(52)).num_cached == 4
    # 8 positions are taken: the answer may fill what is left
    assert talk.ask("6 7 8 9 10 11 12").num_new_tokens == 5


@pytest.mark.parametrize(
    ("token_ids", "eos_ids", "was_asked", "is_cut", "is_stopped"),
    [
        ([50, 51], (), True, False, True),
        ([50, 51], (51,), True, False, False),  # it ended by itself first
        ([50] * 8, (), True, True, False),
        ([50, 51], (), False, False, False),  # out of time
        ([50] * 8, (50,), False, False, False),
        ([50] * 8, (), False, True, False),
    ],
)
def test_how_an_answer_ended(
    token_ids: list[int],
    eos_ids: tuple[int, ...],
    was_asked: bool,
    is_cut: bool,
    is_stopped: bool,
) -> None:
    talk = talk_of(20, eos_ids)
    talk.ask("1 2 3")
    answer = talk.take(answer_of(*token_ids), was_asked)
    assert (answer.is_cut, answer.is_stopped) == (is_cut, is_stopped)


def test_an_answer_ends_when_it_is_enough(checkpoints: dict[str, Path], cache_dir: Path) -> None:
    """What was there before it is kept, and what was said too late ends no other answer."""
    folder = checkpoints["gqa"]
    job = job_of(TpiSystem(), folder, cache_dir, 2, network=SLOW)
    found: list[Generation] = []
    turns = [
        Turn(position=0, token_ids=[1, 2, 3], num_new_tokens=60),
        Turn(position=3, token_ids=[], num_new_tokens=3),
        Turn(position=0, token_ids=[1, 2, 3], num_new_tokens=3),
    ]
    seen: list[int] = []

    def next_turn(answer: Generation | None) -> Turn | None:
        if answer is not None:
            found.append(answer)
        if len(found) == 1:  # what was stopped is said again
            stopped = found[0].token_ids
            turns[1] = replace(turns[1], token_ids=[stopped[0]])
        seen.clear()
        return turns[len(found)] if len(found) < len(turns) else None

    def on_token(token: int) -> bool:
        seen.append(token)
        is_last = len(found) == 1 and len(seen) == 3  # it ends by itself
        return is_last or (not found and len(seen) == 4)

    outcome = run_job(replace(job, stream=True), on_token, next_turn)
    assert outcome.status == "ok", outcome.error
    whole = oracle(folder, (1, 2, 3), 60)[0]
    first, second, third = (answer.token_ids for answer in found)
    assert 4 <= len(first) < 60
    assert first == whole[: len(first)]
    assert second == whole[1:4]
    assert third == whole[:3]


def test_what_cannot_be_asked() -> None:
    talk = talk_of(positions=8)
    for text in ("hello", "1 100", "1 -2"):
        with pytest.raises(ValueError, match="a turn is token ids of 0 to 99"):
            talk.ask(text)
    with pytest.raises(Full, match=r"room for 8; begin anew, or give workload\.positions=16"):
        talk.ask("1 2 3 4 5 6 7 8")
    talk.ask("1")  # what was refused has left nothing behind
    assert talk.take(answer_of(3)).num_positions == 2


class TokenizerOfCharacters:
    """Ids are characters; the template of SmolLM2, shortened."""

    chat_template = "there is one"

    def apply_chat_template(self, said, **options):
        return "".join(f"<{m['role'][0]}>{m['content']};" for m in said) + "<a>"

    def encode(self, text: str, **options) -> list[int]:
        return [ord(character) for character in text]


def test_the_chat_template_has_both_sides(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tpi_bench.models.tokenizer._tokenizer", lambda _: TokenizerOfCharacters())
    ids = encode_conversation(Path(), ("hi", "yes?", "bye"), True)
    assert "".join(map(chr, ids)) == "<u>hi;<a>yes?;<u>bye;<a>"
    ids = encode_conversation(Path(), ("hi", "yes?", "bye"), False)
    assert "".join(map(chr, ids)) == "hi\nyes?\nbye\n"


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("testbed=virtual",), "use testbed=processes"),
        (("system=transformers",), "does not keep its KV cache from one turn to the next"),
        (("system=allreduce",), "does not keep its KV cache"),
        (("timeout_s=5",), "leave it out"),
        (("check=true",), "leave out check and text"),
        (("workload.positions=513",), "must be 96 .* to 512 .the model's context."),
    ],
)
def test_what_cannot_be_talked_with(
    arguments: tuple[str, ...], reason: str, cache_dir: Path
) -> None:
    settings = settings_of("task=chat", "model=debug", f"cache_dir={cache_dir}", *arguments)
    with pytest.raises(ValueError, match=reason):
        prepare_talk(settings)
