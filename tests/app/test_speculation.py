"""`workload.speculation` as one types it: rows, exactness, virtual time, a talk, and refusals."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from tests.helpers.command_line import ROOT, run, sweep
from tests.helpers.models_zoo import oracle

# What the model answers to a prompt of its own answers is found in them, in part.
REPEATED = "workload.prompt_ids=[5,6,7,5,6,7,5,6,7,5,6]"
VIRTUAL = ("testbed=virtual", "model=debug", "workload.prompt_tokens=8", "testbed.num_devices=2")


def test_every_system_says_what_plain_greedy_says(
    checkpoints: dict[str, Path], cache_dir: Path, tmp_path: Path
) -> None:
    """Ours, and Transformers' own; each row says how many tokens a pass gave."""
    folder = sweep(
        *("model=hf", f"model.path={checkpoints['tied']}", REPEATED, "check=true"),
        *("system=tpi_direct,pipeline,transformers", "workload.num_new_tokens=40"),
        *("workload.speculation=none,lookup", "workload.draft_tokens=3"),
        cache_dir=cache_dir,
        tmp_path=tmp_path,
    )
    runs = pd.read_parquet(folder / "runs.parquet")
    assert runs.tokens_equal.all()
    assert runs.max_logit_diff.max() < 1e-3
    plain, looked_up = runs[runs.speculation == "none"], runs[runs.speculation == "lookup"]
    assert set(plain.num_passes) == {39}
    assert plain.num_proposed.isna().all()
    assert (looked_up.draft_tokens == 3).all()
    assert (looked_up.num_proposed > 0).all()
    assert (looked_up.num_passes + looked_up.num_accepted == 39).all()
    assert (looked_up.tokens_per_pass * looked_up.num_passes).tolist() == pytest.approx([39] * 3)
    share = looked_up.num_accepted / looked_up.num_proposed
    assert looked_up.acceptance.tolist() == pytest.approx(share.tolist())
    own = looked_up[~looked_up.is_library]  # which look up the same
    assert own.num_passes.nunique() == 1
    tokens = pd.read_parquet(folder / "tokens.parquet")
    together = tokens[tokens.point.isin(own.point) & (tokens.gap_s == 0)]
    assert len(together) == own.num_accepted.sum()


@pytest.mark.parametrize(("model", "weights"), [("same", "float32"), ("debug", "float32")])
def test_a_model_drafts(model: str, weights: str, cache_dir: Path, tmp_path: Path) -> None:
    """The same model is always right; one of other random weights hardly ever."""
    drafts = (f"workload.draft_model={model}", f"workload.draft_weights={weights}")
    folder = sweep(
        *("model=debug", "model.seed=1", "workload.prompt_ids=[3,1,4,1,5]", "check=true"),
        *("system=tpi", "workload.speculation=draft", *drafts, "workload.num_new_tokens=12"),
        cache_dir=cache_dir,
        tmp_path=tmp_path,
    )
    (run,) = pd.read_parquet(folder / "runs.parquet").itertuples()
    assert run.tokens_equal
    assert run.draft_model == "debug in float32"
    # Of 11 tokens after the first: three passes of 4 and 1, or one by one but for chance.
    assert (run.acceptance == 1.0) if model == "same" else (run.acceptance < 0.5)
    assert run.num_passes == 3 if model == "same" else run.num_passes > 6


def test_the_draft_model_is_held_beside_the_large_one(cache_dir: Path) -> None:
    """On the master alone, in its ledger and in what a cap must have room for."""
    plain = json.loads(run(*VIRTUAL, "report=json", cache_dir=cache_dir).stdout)
    drafts = ("workload.speculation=draft", "workload.draft_model=debug", "workload.acceptance=0.5")
    drafted = json.loads(run(*VIRTUAL, *drafts, "report=json", cache_dir=cache_dir).stdout)
    assert plain["status"] == drafted["status"] == "ok"
    assert drafted["ttft_s"] > plain["ttft_s"]  # it reads the prompt, too
    refused = run(
        *(*VIRTUAL, *drafts, "workload.draft_weights=float32", "device.memory_mb=1"),
        cache_dir=cache_dir,
    )
    assert refused.returncode != 0
    assert "memory" in refused.stderr or "needs" in refused.stderr


def test_in_virtual_time_acceptance_is_given(cache_dir: Path, tmp_path: Path) -> None:
    """Of 4 tokens, each right with p, a pass gives (1 - p^5) / (1 - p) on average; the same run
    gives the same rows.
    """
    shares = (0.0, 0.5, 1.0)
    rows = []
    for turn in "ab":
        folder = sweep(
            *VIRTUAL,
            *("system=tpi_direct", "network=paper", "network.link_latency_ms=1"),
            *("workload.speculation=lookup", f"workload.acceptance={','.join(map(str, shares))}"),
            "workload.num_new_tokens=401",
            cache_dir=cache_dir,
            tmp_path=tmp_path / turn,
        )
        rows.append(pd.read_parquet(folder / "runs.parquet"))
    first, second = rows
    assert list(first.token_latency_s) == list(second.token_latency_s)
    expected = [1.0, (1 - 0.5**5) / 0.5, 5.0]
    assert list(first.tokens_per_pass) == pytest.approx(expected, rel=0.1)
    # Links are waited for once a pass, and a pass takes what its links and bytes take.
    assert list(first.pass_latency_s) == pytest.approx([first.pass_latency_s[0]] * 3, rel=0.02)
    assert list(first.limit_token_s * first.tokens_per_pass) == pytest.approx(
        [first.limit_token_s[0]] * 3, rel=0.02
    )
    assert not first.beats_limit.any()
    assert (first.token_latency_s > first.limit_token_s).all()


def test_one_run_says_what_its_passes_gave(cache_dir: Path) -> None:
    typed = (*VIRTUAL, "workload.speculation=lookup", "workload.acceptance=1")
    typed = (*typed, "workload.num_new_tokens=11")
    told = run(*typed, cache_dir=cache_dir)
    assert told.returncode == 0
    (line,) = (text for text in told.stdout.splitlines() if "tokens a pass" in text)
    assert line.startswith("lookup              5.00 tokens a pass of ")
    assert line.endswith("(8 of 8 drafted ones were right)")
    report = json.loads(run(*typed, "report=json", cache_dir=cache_dir).stdout)
    found = [report[name] for name in ("num_passes", "num_proposed", "num_accepted")]
    assert found == [2, 8, 8]


def test_a_talk_with_lookup_says_what_one_without_says(
    checkpoints: dict[str, Path], cache_dir: Path
) -> None:
    folder = checkpoints["tied"]
    done = subprocess.run(
        [
            *(sys.executable, "-m", "tpi_bench", "task=chat", "report=json", "prompt=1 2 3"),
            *("model=hf", f"model.path={folder}", "workload.num_new_tokens=12", "system=pipeline"),
            *("workload.speculation=lookup", f"cache_dir={cache_dir}"),
        ],
        input="4 1 2 3\n4 1 2\n",
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    whole: list[int] = []
    for turn in json.loads(done.stdout)["turns"]:
        whole += map(int, turn["prompt"].split())
        assert turn["token_ids"] == oracle(folder, tuple(whole), 12)[0]
        whole += turn["token_ids"]
    assert len(whole) == 3 + 4 + 3 + 3 * 12


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (["workload.speculation=tree"], "workload.speculation=tree is unknown; choose one of none"),
        (
            ["workload.speculation=lookup", "workload.temperature=0.5"],
            "workload.temperature=0.5 with workload.speculation=lookup, which gives what greedy",
        ),
        (["workload.speculation=lookup", "workload.draft_tokens=0"], "draft_tokens=0 must be at"),
        (
            ["workload.speculation=lookup", "workload.draft_tokens=512"],
            "workload.draft_tokens=512 must be below 512, the model's context",
        ),
        (["workload.speculation=draft"], "workload.speculation=draft needs a model that drafts"),
        (
            ["workload.speculation=lookup", "system=accelerate"],
            "workload.speculation=lookup with system=accelerate, which gives one a pass; use tpi",
        ),
        (
            [
                *("workload.speculation=draft", "workload.draft_model=same"),
                "system=transformers",
            ],
            "workload.draft_weights=q4 with system=transformers, which holds weights in what it "
            "computes in; choose one of float32, ",
        ),
        (
            ["workload.speculation=lookup", "testbed=virtual", "testbed.num_devices=2"],
            "workload.speculation=lookup with testbed.cost=modelled, where no token is real",
        ),
        (
            ["workload.speculation=lookup", "workload.acceptance=0.5"],
            "workload.acceptance=0.5 is for testbed.cost=modelled",
        ),
        (
            ["workload.speculation=lookup", "workload.acceptance=1.5"],
            "workload.acceptance=1.5 must be in 0 to 1, or null",
        ),
        (
            ["workload.speculation=draft", "workload.draft_model=llama2_7b"],
            "workload.draft_model=llama2_7b has a vocabulary of 32000 tokens, and model=debug one",
        ),
        (
            ["workload.speculation=draft", "workload.draft_model=/nowhere/there"],
            "workload.draft_model: ",
        ),
        (["workload.speculation=lookup", "workload=score"], "workload.text with workload.spec"),
    ],
)
def test_what_cannot_be_is_told_in_a_line(given: list[str], told: str, cache_dir: Path) -> None:
    done = run("model=debug", "workload.prompt_ids=[1,2]", *given, cache_dir=cache_dir)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert told in line
