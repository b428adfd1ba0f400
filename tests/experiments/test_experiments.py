"""Every experiment's YAML runs tiny, and its table and figure come out of the stored rows."""

from __future__ import annotations

import importlib
from pathlib import Path

import pandas as pd
import pytest

from tests.helpers.command_line import ROOT, run, run_module
from tpi_bench.report.drawing import Drawing

EXPERIMENTS = sorted(path.stem for path in (ROOT / "conf" / "experiment").glob("*.yaml"))


TINY = {
    "fig_latency": [
        "model=debug",
        "repeat=0",
        "network.link_latency_ms=0.5",
        "system=tpi,tpi_window2,pipeline",
    ],
    "fig_speculation": [
        "model=debug",
        "repeat=0",
        "workload=code",
        "workload.prompt_ids=[7,8,9,7,8,9,7,8]",
        "workload.draft_model=debug",
        "workload.draft_weights=float32",
        "network.link_latency_ms=0.5",
        "system=tpi_direct",
        "hydra.sweeper.draw=10",  # a case of each grid
    ],
    "fig_allreduce": [
        "system.collective=star,direct",
        "testbed.num_devices=3",
        "network.link_latency_ms=0.5",
    ],
    "fig_scaling": [
        "model=debug",
        "workload.prompt_tokens=3",
        "device.paper_emulated.used_cores=1",
        "network.bandwidth_mbps=50",
    ],
    "fig_precision": [
        "model=debug",
        "workload.prompt_tokens=3",
        "model.weights=float32,q4",
        "network.link_latency_ms=0.5",
        "system=tpi_direct,pipeline",
    ],
    "tab_overview": [
        "model=debug",
        "workload.prompt_tokens=3",
        "device.paper_emulated.disk_gb_per_s=1.2,2.4",
    ],
    "tab_memory": ["model=debug", "workload.prompt_tokens=3"],
    "fig_fidelity": [
        "model=debug",
        "repeat=0",
        "network.link_latency_ms=0.5",
        "system=tpi,tpi_window2,pipeline",
        "hydra.sweeper.draw=4",  # a case of each grid that is left
    ],
    "fig_twin": [  # without a cluster: processes of this host stand for it
        "model=debug",
        "repeat=0",
        "network=none",
        "testbed=processes,twin",
        "model.weights=float32",
        "workload.prompt_tokens=8",
        "system=tpi,pipeline",
    ],
    "fig_comparison": [
        "model=debug",
        "repeat=0",
        "device.memory_mb=null",
        "network.link_latency_ms=0",
        "model.weights=float32",
        "system=tpi,galaxy,accelerate,llamacpp",
    ],
    "bench_engine": [
        "model=debug",
        "repeat=0",
        "model.weights=float32",
        "workload.prompt_tokens=3",
        "testbed.threads_per_device=1",
        "hydra.sweeper.draw=10",  # a case of each grid
    ],
    "bench_profile": [
        "model=debug",
        "repeat=0",
        "model.weights=float32",
        "workload.prompt_tokens=3",
        "testbed.threads_per_device=1",
        "hydra.sweeper.draw=6",  # a case of each grid
    ],
    "bench_waits": [
        "model=debug",
        "repeat=0",
        "model.weights=float32",
        "workload.prompt_tokens=3",
        "testbed.threads_per_device=1",
        "device.memory_mb=400",
        "hydra.sweeper.draw=5",  # a case of each grid, and one more
    ],
    "bench_virtual": [
        "model=debug",
        "model.hidden=128",
        "model.num_heads=8",
        "model.num_kv_heads=8",
        "model.weights=float32",
        "workload.prompt_tokens=3",
        "network.link_latency_ms=0.3",
        "network.bandwidth_mbps=300",
    ],
    "fig_overlap": [
        "model=debug",
        "network.link_latency_ms=1",
        "device.paper_emulated.memory_gb_per_s=0.1",
        "device.paper_emulated.disk_gb_per_s=0.01",
        "device.memory_mb=null",
        "system=tpi,tpi_window2",
    ],
    "fig_window": ["model=debug", "system=tpi", "system.window=1,2,off"],
    "fig_lan": [
        "model=debug",
        "network=switch",
        "network.bandwidth_mbps=100",
        "network.link_latency_ms=1",
        "testbed.num_devices=2",
    ],
    "fig_token": ["model=debug", "system=tpi,pipeline", "device.memory_mb=null"],
    "fig_breakdown": [
        "model=debug",
        "model.hidden=128",
        "model.num_heads=8",
        "model.num_kv_heads=8",
        "repeat=0",
        "network.link_latency_ms=0.5",
        "hydra.sweeper.draw=6",  # a case of each grid
    ],
    "fig_standalone": [
        "model=debug",
        "model.weights=float32",
        "repeat=0",
        "network=switch",
        "device.memory_mb=1500",
        "system=tpi,pipeline",
    ],
    "fig_roofline": [
        "model=debug",
        "model.weights=float32",
        "repeat=0",
        "device.paper_emulated.memory_gb_per_s=0.1",
        "network.link_latency_ms=0.02",
        "system=tpi_direct,pipeline",
    ],
    "fig_rivals": [
        "model=debug",
        "repeat=0",
        "model.weights=float32",
        "system=tpi_direct,pipeline",
        "network.link_latency_ms=0.5",
        "device.memory_mb=null",
        "prompt=null",
    ],
    "tab_case_study": [
        "model=debug",  # whose heads do not divide into groups of 32 for four devices
        "model.hidden=128",
        "model.num_heads=8",
        "model.num_kv_heads=4",
        "repeat=0",
        "system=tpi_window4,tpi,pipeline",
        "device.memory_mb=null",
        "hydra.sweeper.draw=12",  # a case of each grid, and each system
    ],
    "tab_equivalence": [
        "model=debug",
        "prompt=one",
        "model.weights=float32,q8",
        "system=galaxy,llamacpp",
    ],
    "fig_prima": [
        "model=debug",
        "model.name=debug",
        "model.num_layers=8",
        "model.hidden=128",
        "model.num_heads=8",
        "model.num_kv_heads=8",
        "model.intermediate=256",
        "model.vocab=200",
        "device.memory_mb=1",
        "network.link_latency_ms=0.5",
        "system=prima",
        "system.rounds=2",
    ],
    "fig_hybrid": [
        "model=debug",
        "model.hidden=128",
        "model.num_heads=8",
        "model.num_kv_heads=8",
        "model.intermediate=256",
        "model.num_layers=8",
        "repeat=0",
        "model.weights=float32",
        "hydra.sweeper.draw=8",  # a case of each grid
    ],
    "fig_prefill": [
        "model=debug",
        "model.hidden=128",
        "model.num_heads=8",
        "model.num_kv_heads=8",
        "workload.prompt_tokens=6,12",
        "network.link_latency_ms=0.5",
        "network.bandwidth_mbps=100",
        "hydra.sweeper.draw=16",  # among them each system
    ],
    "fig_keep": [
        "model=debug",
        "device=raspberry_pi_5",
        "device.memory_mb=1.9,9",
        "workload.prompt_tokens=3",
    ],
    "exactness": ["model=debug", "system=tpi_direct"],
    "exactness_product": [
        "model=debug",
        "system=tpi",
        "system.collective=tree",
        "system.window=2",
        "workload.prompt_tokens=3",
    ],
}


WITH_PROMPT = ("fig_latency", "fig_rivals", "fig_fidelity", "exactness", "tab_equivalence")

DRAWN_AGAIN = ("fig_latency", "tab_memory")

OWN_DEVICES = (
    "fig_breakdown",
    "fig_prima",
    "fig_keep",
    "fig_hybrid",
    "fig_allreduce",
    "tab_case_study",
    "bench_engine",
    "bench_profile",
    "bench_waits",
)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.product] * name.endswith("_product"))
        for name in EXPERIMENTS
    ],
)
def test_an_experiment_runs_tiny(name: str, cache_dir: Path, tmp_path: Path) -> None:
    done = run(
        f"+experiment={name}",
        "workload.num_new_tokens=3",
        *TINY[name],
        *(["workload.prompt_ids=[1,2,3]"] if name in WITH_PROMPT else []),
        *(["testbed.num_devices=2"] if name not in OWN_DEVICES else []),
        f"results_dir={tmp_path}",
        cache_dir=cache_dir,
    )
    assert done.returncode == 0, done.stderr
    (folder,) = (tmp_path / name).iterdir()
    figure = name.removesuffix("_product")
    assert (folder / f"{figure}.png").stat().st_size > 10_000
    assert (folder / f"{figure}.pdf").stat().st_size > 5_000
    runs = pd.read_parquet(folder / "runs.parquet")
    assert (runs.status == "ok").all()
    if name == "fig_latency":
        assert set(runs.clock) == {"wall", "virtual"}
    if figure == "exactness":
        assert runs.tokens_equal.all()
        assert runs.max_logit_diff.max() < 1e-3
    if name in DRAWN_AGAIN:
        again = run_module(f"experiments.{figure}", str(folder))
        assert again.returncode == 0, again.stderr
        assert done.stdout.strip() in again.stdout
    else:  # the table alone, which is quicker
        drawing: Drawing = importlib.import_module(f"experiments.{figure}").DRAWING
        assert done.stdout.strip() == drawing.text(drawing.stored(folder)).strip()
