"""Points composed quickly are those that Hydra composes."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict

from tpi_bench.app.choices import GROUPS
from tpi_bench.app.compose import build_settings
from tpi_bench.app.composer import Composer
from tpi_bench.app.hydra_app import CONFIG_NAME, hydra_of_ours
from tpi_bench.app.launchers import fix_folder
from tpi_bench.app.place import ResultsPlace
from tpi_bench.app.resolvers import register
from tpi_bench.app.sweeper import jobs_of_grids

CONF = Path(__file__).resolve().parents[2] / "conf"


@contextmanager
def sweep(*arguments: str) -> Iterator[tuple[Any, DictConfig, list[list[str]]]]:
    """Hydra's loader, the sweep's configuration, and its jobs."""
    register(ResultsPlace(), arguments)
    given = [*arguments, "hydra.mode=MULTIRUN", "hydra.sweep.dir=x"]
    with hydra_of_ours() as hydra:
        config = hydra.compose_config(CONFIG_NAME, given, RunMode.MULTIRUN)
        parts = config.hydra.sweeper
        typed = [str(text) for text in config.hydra.overrides.task]
        jobs, _ = jobs_of_grids(parts.get("params") or {}, parts.get("grids") or [{}], typed)
        yield hydra.config_loader, config, jobs


def plain(config: DictConfig) -> Any:
    return OmegaConf.to_container(config, resolve=False)


def assert_the_same(
    loader: Any, config: DictConfig, jobs: Sequence[list[str]], composer: Composer | None = None
) -> None:
    composer = composer or Composer(loader, config)
    for job in jobs:
        quick, slow = composer.compose(job), loader.load_sweep_config(config, job)
        assert plain(quick) == plain(slow)
        assert list(quick) == list(slow)
        assert OmegaConf.is_struct(quick) == OmegaConf.is_struct(slow)
        quick.hydra.job.id = "changed"  # and it is nobody else's
        with open_dict(quick):
            quick["more"] = 1


def some(names: Sequence[str]) -> list[Any]:
    """Every third of them; the others with the whole product."""
    others = pytest.mark.product
    return [pytest.param(name, marks=[others] * (n % 3 > 0)) for n, name in enumerate(names)]


@pytest.mark.parametrize(
    "name", some([path.stem for path in sorted(CONF.glob("experiment/*.yaml"))])
)
def test_points_of_every_experiment(name: str) -> None:
    """The last of those that are copies of the first, or else the last."""
    with sweep(f"+experiment={name}") as (loader, config, jobs):
        chosen = [{text.partition("=")[0] for text in job} for job in jobs]
        files = [{text for text in job if text.partition("=")[0] in GROUPS} for job in jobs]
        like = [n for n in range(len(jobs)) if (chosen[n], files[n]) == (chosen[0], files[0])]
        composer = Composer(loader, config)
        composer.compose(jobs[0])
        assert_the_same(loader, config, [jobs[like[-1] or -1]], composer)


@pytest.mark.parametrize(
    "arguments",
    [
        ("network.link_latency_ms=0,1,2", "testbed.num_devices=1,2"),
        ("system=tpi,pipeline", "system.window=2,off", "repeat=0,1"),
        ("prompt='a=b, c','${name}',plain", "timeout_s=1,null"),
        (
            "device=[paper_emulated,dell_i7_1165g7],[macbook_pro_m1]",
            "device.memory_mb=[1,2],5,null",
        ),
        ("workload.prompt_ids=[1,2,3],[4]", "+workload={seed:1},{seed:2}"),
        ("~timeout_s,repeat",),
        ("testbed.proportions=[1,1],[2,1],strength", "model.weights=q4,float32"),
    ],
    ids=lambda arguments: arguments[0].partition("=")[0],
)
def test_points_of_all_kinds_of_values(arguments: tuple[str, ...]) -> None:
    try:
        with sweep("testbed=virtual", *arguments) as (loader, config, jobs):
            assert len(jobs) > 1
            assert_the_same(loader, config, jobs)
    except HydraException:
        assert arguments[0].startswith("~")


def test_files_are_read_once_for_points_that_choose_the_same() -> None:
    texts = [f"network.link_latency_ms={n}" for n in range(4)]
    with sweep(f"{texts[0]},1,2,3", "system=tpi,pipeline") as (loader, config, jobs):
        composer, loaded = Composer(loader, config), []
        whole = loader.load_sweep_config
        loader.load_sweep_config = lambda *given: loaded.append(given) or whole(*given)
        latencies = [composer.compose(job).network.link_latency_ms for job in jobs]
    assert sorted(latencies) == sorted(itertools.chain(*[range(4)] * 2))
    assert len(loaded) == 2


def test_once_the_sweep_has_its_folder() -> None:
    """As the sweeper fixes it when all points are accepted: points composed before are as new."""
    with sweep("system=tpi,pipeline", "repeat=0,1") as (loader, config, jobs):
        composer = Composer(loader, config)
        before = [composer.compose(job) for job in jobs]
        config.hydra.sweep.dir = "there, (it) is"
        fix_folder(config)
        after = [composer.compose(job) for job in jobs]
        assert [plain(each) for each in after] == [
            plain(loader.load_sweep_config(config, job)) for job in jobs
        ]
    assert {each.hydra.sweep.dir for each in before} == {"x"}
    assert {each.hydra.sweep.dir for each in after} == {"there, (it) is"}


def test_what_cannot_be_is_said_by_hydra() -> None:
    with sweep("system=tpi,galaxy", "system.window=2,4") as (loader, config, jobs):
        composer = Composer(loader, config)
        composer.compose(jobs[0])
        with pytest.raises(HydraException, match=r"Could not override 'system\.window'"):
            composer.compose(["system=galaxy", "system.window=2"])


def test_settings_of_a_point_need_no_copy_without_hydras_own() -> None:
    given = ("testbed=virtual", "network.link_latency_ms=1,2", "name=${task}", "timeout_s=null")
    with sweep(*given) as (loader, config, jobs):
        point = Composer(loader, config).compose(jobs[0])
    copied = OmegaConf.masked_copy(point, [key for key in point if key != "hydra"])
    found = build_settings(point, jobs[0])
    assert found == build_settings(copied, jobs[0])
    assert found.raw["name"] == "generate"
    assert "hydra" not in found.raw
    assert "hydra" in point
    point.name = "???"
    with pytest.raises(ValueError, match=r"name=\?\?\? names a folder"):
        build_settings(point, jobs[0])
