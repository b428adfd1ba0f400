"""A conversation: what is cached stays, and every answer is the one that the whole would get."""

from __future__ import annotations

import time
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
from tpi_bench.contract.request import Generation, Request, Turn
from tpi_bench.contract.system import System
from tpi_bench.engine.tpi import TpiSystem
from tpi_bench.measure.talk import Full, Talk, prepare_talk
from tpi_bench.models.tokenizer import encode_conversation
from tpi_bench.processes.launcher import run_job

WORDS = (prompt_of(5), (7, 8, 9), (11,), tuple(range(40, 60)))
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


def answer_of(*token_ids: int) -> Generation:
    times = [10 * (i + 1) for i in range(len(token_ids))]
    return Generation(token_ids=list(token_ids), request_ns=0, token_ns=times, account=[])


def test_only_what_is_new_is_fed() -> None:
    talk = Talk(model_without_tokenizer(), positions=20, num_new_tokens=8, chat=True)
    assert talk.ask("1 2 3") == Turn(position=0, token_ids=[1, 2, 3], num_new_tokens=8)
    answer = talk.take(answer_of(50, 51))
    assert (answer.num_fed, answer.num_cached, answer.text) == (3, 0, "50 51")
    # the last token of an answer has not been fed
    assert talk.ask("[4,5]") == Turn(position=4, token_ids=[51, 4, 5], num_new_tokens=8)
    assert talk.take(answer_of(52)).num_cached == 4
    # 8 positions are taken: the answer may fill what is left
    assert talk.ask("6 7 8 9 10 11 12").num_new_tokens == 5


def test_what_cannot_be_asked() -> None:
    talk = Talk(model_without_tokenizer(), positions=8, num_new_tokens=8, chat=True)
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
