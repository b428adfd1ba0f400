"""The command line as users and scripts meet it: JSON contract, bad input, sweeps, resume."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.helpers.command_line import ROOT, report_of, run, run_here
from tests.helpers.models_zoo import oracle
from tpi_bench.app.errors import MEANINGS
from tpi_bench.app.main import main


def test_help_is_quick_and_names_the_groups() -> None:
    start = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "tpi_bench", "--help"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=True,
    )
    assert (
        time.monotonic() - start < 10
    )  # loose here; the imports it must not make are in test_house
    assert "pipeline, prima, products, reads, reads_free, tpi, tpi_auto, tpi_direct" in done.stdout
    assert "+experiment=fig_latency" in done.stdout
    for status, words in MEANINGS.items():
        assert f"\n{int(status):<5}{words}\n" in done.stdout


def test_the_contract_for_scripts(checkpoints: dict[str, Path], cache_dir: Path) -> None:
    folder = checkpoints["gqa"]
    done = run(
        "task=generate",
        "report=json",
        "system=tpi",
        "model=hf",
        f"model.path={folder}",
        "testbed.num_devices=2",
        "system.window=2",
        "system.collective=star",
        "network.link_latency_ms=1",
        "workload.prompt_ids=[1,2,3]",
        "workload.num_new_tokens=16",
        "workload.ignore_eos=true",
        cache_dir=cache_dir,
    )
    assert done.returncode == 0, done.stderr
    report = report_of(done)
    assert (report["status"], report["exit_reason"]) == ("ok", "ok")
    assert report["text"] is None  # a checkpoint without a tokenizer
    assert report["results"] is None
    assert report["token_ids"] == oracle(folder, (1, 2, 3), 16)[0]
    assert report["ttft_s"] > 6 * 4e-3  # 6 allreduces, each two messages of 2 ms
    assert len(report["token_latencies_s"]) == 15
    assert min(report["token_latencies_s"]) > 6 * 4e-3 * 0.95
    assert [device["rank"] for device in report["devices"]] == [0, 1]
    for device in report["devices"]:
        assert device["weight_bytes_read"] > 0
        assert device["peak_anon_bytes"] > 0
        assert device["peak_file_bytes"] > 0
    assert 0.0038 < report["link_round_trip_s"] < 0.02
    assert "error" not in report


BAD = [
    (["system=nope"], "there is no system=nope; there are accelerate, "),
    (["system.collective=nope"], "choose one of star, tree, ring, direct"),
    (["system.nope=1"], "system.nope"),
    (["system.window=0"], "system.window=0 must be a whole number of at least 1, auto or off"),
    (["testbed.num_devices=0"], "testbed.num_devices=0 must be at least 1"),
    (["testbed.num_devices=10"], "more than the model's 9 attention heads"),
    (["testbed.num_devices=two"], "testbed.num_devices=two has the wrong type"),
    (["testbed.proportions=[1,2,3]"], "must hold 2 positive numbers"),
    (["workload.num_new_tokens=600"], "the model's context is 512"),
    (["workload.prompt_ids=[300]"], "outside the model's vocabulary (0 to 299)"),
    (["workload.prompt_ids=null"], "holds no tokenizer"),
    (["model.path=/nowhere"], "/nowhere does not exist"),
    (["model.dtype=int4"], "model.dtype=int4 is unknown"),
    (["network=nope"], "there is no network=nope; did you mean network=none? It is one of "),
    (["network.link_latency_ms=-1"], "must be a number of at least 0"),
    (["task=nope"], "task=nope is unknown; choose one of generate, chat, measure"),
    (["resume=/nowhere"], "resume=/nowhere: there is no such folder; give the folder of a"),
    (["resume=tests"], "no overrides.json there"),
    (["=3"], "the argument =3 has no key"),
    (["+=3"], "the argument +=3 has no key"),
    (["~system"], "~system takes away what every run needs; choose another one: system=NAME"),
    (["output_dir=/a\udcc3"], "output_dir=/a\\udcc3 is no text in UTF-8 (surrogates not allowed)"),
]


@pytest.mark.parametrize(("arguments", "message"), BAD, ids=[" ".join(a) for a, _ in BAD])
def test_bad_input_is_one_line_and_nothing_starts(
    checkpoints: dict[str, Path], cache_dir: Path, arguments: list[str], message: str
) -> None:
    given = [
        "report=json",
        "model=hf",
        f"model.path={checkpoints['gqa']}",
        "workload.prompt_ids=[1,2]",
    ]
    names = {argument.partition("=")[0] for argument in arguments}
    done = run(
        *[g for g in given if g.partition("=")[0] not in names], *arguments, cache_dir=cache_dir
    )
    assert done.returncode == 2
    report = report_of(done)
    assert report["status"] == "error"
    assert report["exit_reason"] == "usage"
    assert message in report["error"]
    lines = done.stderr.strip().split("\n")
    assert lines == [f"error: {report['error']}"]


def test_check_says_its_verdict(
    checkpoints: dict[str, Path], cache_dir: Path, tmp_path: Path
) -> None:
    done = run(
        "task=measure",
        "check=true",
        "model=hf",
        f"model.path={checkpoints['tied']}",
        "workload.prompt_ids=[1,2,3]",
        f"results_dir={tmp_path}",
        cache_dir=cache_dir,
    )
    assert done.returncode == 0, done.stderr
    assert "tokens equal those of the oracle, largest logit difference" in done.stdout


@pytest.mark.parametrize(
    "arguments",
    [
        ["name=../x"],
        ["verbosity=loud"],
        ["wait=perhaps"],
        ["wait=-1"],
        ["network.timeout_s=inf"],
        ["workload.seed=-1"],
        ["workload.warmup_tokens=9999"],
    ],
)
def test_more_bad_values(
    checkpoints: dict[str, Path], cache_dir: Path, arguments: list[str]
) -> None:
    given = ["model=hf", f"model.path={checkpoints['gqa']}", "workload.prompt_ids=[1,2]"]
    done = run_here(main, [*given, f"cache_dir={cache_dir}", *arguments])
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
