"""What a new system is told when something of it is missing, and how its answers are judged."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import pytest
import torch
from hydra import compose, initialize_config_dir

from tpi_bench import oracle
from tpi_bench.config import build_settings
from tpi_bench.job import Job, Outcome
from tpi_bench.results import differs_from_oracle
from tpi_bench.system import EngineSystem, LibrarySystem
from tpi_bench.workload import Generation, Request

CONF = str(Path(__file__).resolve().parent.parent / "conf")


@dataclass(frozen=True, kw_only=True)
class WithoutSteps(EngineSystem):
    name: str = "unfinished"

    def plan(self, config, site):
        return None

    def run_device(self, rt, job, output):
        return None


class NoDataclass(LibrarySystem):
    def run_device(self, rt, job, output):
        return None


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("WithoutSteps", "does not define sync_steps"),
        ("NoDataclass", "is not a dataclass; give it @dataclass"),
        ("Forgotten", "cannot be loaded: module 'tests.test_systems' has no attribute 'Forgotten'"),
    ],
)
def test_what_is_missing_is_named(name: str, line: str) -> None:
    arguments = ["model=debug", "workload.prompt_ids=[1]"]
    with initialize_config_dir(CONF, version_base="1.3"):
        config = compose("config", arguments)
    config.system = {"_target_": f"tests.test_systems.{name}", "name": "unfinished"}
    with pytest.raises(ValueError, match=re.escape(f"{name} {line}")):
        build_settings(config)


@pytest.mark.parametrize(
    ("found", "max_decode_ns", "is_equal"),
    [
        ([5, 6, 7], None, True),
        ([5, 6], None, False),
        ([5, 6], 10**9, True),
        ([5, 7], 10**9, False),
        ([5, 6, 8], None, False),
    ],
)
def test_an_answer_that_ends_early_is_another(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    found: list[int],
    max_decode_ns: int | None,
    is_equal: bool,
) -> None:
    """Unless the time for decoding was limited."""
    torch.save(torch.zeros(3, 4), tmp_path / "answer.pt")
    (tmp_path / "answer.json").write_text('{"token_ids": [5, 6, 7]}')
    monkeypatch.setattr(oracle, "_oracle_answer", lambda *_: tmp_path / "answer.pt")
    request = Request(prompt_ids=(1,), num_new_tokens=3, max_decode_ns=max_decode_ns)
    generation = Generation(token_ids=found, request_ns=0, token_ns=[], account=[])
    arguments = ["model=debug", "workload.prompt_ids=[1]", f"cache_dir={tmp_path}"]
    with initialize_config_dir(CONF, version_base="1.3"):
        settings = build_settings(compose("config", arguments))
    job = _job(request)
    compared = oracle.compare_with_oracle(
        settings,
        None,  # type: ignore[arg-type]
        job,
        Outcome(status="ok", generation=generation),
    )
    assert compared["tokens_equal"] is is_equal


def _job(request: Request) -> Job:
    job = Job.__new__(Job)
    object.__setattr__(job, "request", request)
    object.__setattr__(job, "logits_path", None)
    return job


def test_who_is_judged_by_the_oracle() -> None:
    """fp32 in values and weights; what was not checked, or failed, is not."""
    rows = [
        ("float32", "nan", "ok", False, True),
        ("float32", "Q8_0", "ok", False, False),
        ("bfloat16", "nan", "ok", False, False),
        ("float32", "nan", "ok", True, False),
        ("float32", "nan", "ok", None, False),
        ("float32", "nan", "oom", None, False),
    ]
    columns = ["dtype", "system_weights", "status", "tokens_equal", "expected"]
    runs = pd.DataFrame(rows, columns=columns)
    assert differs_from_oracle(runs).tolist() == runs.expected.tolist()
    assert not differs_from_oracle(runs.drop(columns="tokens_equal")).any()
