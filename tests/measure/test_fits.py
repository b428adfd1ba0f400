"""What is said where memory is too small: at once, how much is needed, and only what helps."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.helpers.settings import settings_of
from tpi_bench.contract.plan import DoesNotFit
from tpi_bench.measure.fits import advice, refuse_too_little
from tpi_bench.measure.planned import devices_of, load_model, planned_job, request_of
from tpi_bench.measure.point import measure
from tpi_bench.measure.prepare import prepare
from tpi_bench.measure.settings import Settings

pytestmark = pytest.mark.usefixtures("as_a_user_forks")

# 345 MB of weights in fp32, beside about 190 that a device starts with and grows by.
LARGE = (
    *("model=debug", "model.num_layers=24", "model.hidden=480", "model.intermediate=2048"),
    *("workload.prompt_ids=[1,2,3]", "workload.num_new_tokens=4"),
)
OPTION = r"(?:model|system|testbed|device)\.\w+=[\w.]+"


def planned(*given: str, cache_dir: Path):
    settings = settings_of(*LARGE, f"cache_dir={cache_dir}", *given)
    devices = devices_of(settings, cache_dir)
    model = load_model(settings.model, cache_dir)
    request = request_of(settings, model)
    return settings, model, planned_job(settings, model, request, devices), devices


def refusal(*given: str, cache_dir: Path) -> str:
    with pytest.raises(DoesNotFit) as caught:
        refuse_too_little(*planned(*given, cache_dir=cache_dir))
    return str(caught.value)


@pytest.mark.parametrize(
    "given",
    [
        ("testbed.num_devices=1", "device.memory_mb=300"),
        ("testbed.num_devices=2", "device.memory_mb=260"),
        ("testbed.num_devices=1", "device.memory_mb=400", "system=pipeline"),
        ("testbed.num_devices=1", "device.memory_mb=300", "system=galaxy"),
    ],
)
def test_what_is_advised_fits(given: tuple[str, ...], cache_dir: Path) -> None:
    said = refusal(*given, cache_dir=cache_dir)
    options = re.findall(OPTION, said.partition("; what fits: ")[2])
    assert options[-1].startswith("device.memory_mb=")
    assert len(options) >= 2
    for option in options:
        key = option.partition("=")[0]
        kept = [text for text in given if not text.startswith(f"{key}=")]
        refuse_too_little(*planned(*kept, option, cache_dir=cache_dir))  # raises if it does not


def test_what_would_not_help_is_not_advised(cache_dir: Path) -> None:
    given = ("testbed.num_devices=1", "device.memory_mb=300")
    said = refusal(*given, cache_dir=cache_dir)
    assert re.match(r"device\.memory_mb=300 is too little for device 0, which needs \d+ MB: ", said)
    assert "model.dtype=bfloat16" not in said  # half of the weights is too much, too
    assert "does not" not in said
    refusal(*given, "model.dtype=bfloat16", cache_dir=cache_dir)
    galaxy = refusal(*given, "system=galaxy", cache_dir=cache_dir)
    assert "system.window" not in galaxy  # it has none
    listed = refusal("testbed.num_devices=2", "device.memory_mb=[260,250]", cache_dir=cache_dir)
    assert "testbed.num_devices" not in listed  # there is no saying what a third one would have


@pytest.mark.parametrize("system", ["tpi_auto", "tpi"])
def test_devices_with_memory_of_their_own_are_named(system: str, cache_dir: Path) -> None:
    """Nobody typed device.memory_mb."""
    given = [*LARGE, "testbed=virtual", f"system={system}", f"cache_dir={cache_dir}"]
    given += ["device=[raspberry_pi_4,phone_2024]", "workload.ignore_eos=true"]
    error = measured(settings_of(*given, "device.raspberry_pi_4.memory_gb=0.002"))
    assert "memory_mb" not in error
    least = re.findall(r"device\.raspberry_pi_4\.memory_gb=[\d.]+\d", error)[-1]
    assert not measured(settings_of(*given, least))


def measured(settings: Settings) -> str:
    """The error of a point, if it has one."""
    try:
        return measure(prepare(settings)).run.error or ""
    except DoesNotFit as error:
        return str(error)


def test_what_may_fit_is_tried(cache_dir: Path) -> None:
    refuse_too_little(
        *planned("testbed.num_devices=1", "device.memory_mb=700", cache_dir=cache_dir)
    )
    refuse_too_little(*planned("testbed.num_devices=1", cache_dir=cache_dir))


def test_where_this_host_has_no_more(cache_dir: Path) -> None:
    """More devices would share the same memory, and there is no cap that could be larger."""
    settings, model, job, devices = planned("testbed.num_devices=2", cache_dir=cache_dir)
    said = advice(settings, model, job, devices)
    names = [option.partition("=")[0] for option in re.findall(OPTION, said)]
    assert names == ["model.dtype", "model.weights", "model.weights", "system.window"]
    assert "system.window=2 (" in said


def test_a_library_is_told_of_what_it_can_hold_less_of(cache_dir: Path) -> None:
    given = ("system=transformers", "device.memory_mb=450")
    settings, model, job, devices = planned(*given, cache_dir=cache_dir)
    said = advice(settings, model, job, devices)
    assert re.findall(OPTION, said) == ["model.dtype=bfloat16"]  # it knows no q8, and no window
    assert said.endswith("or a larger device.memory_mb")


def test_who_runs_out_in_virtual_time_is_told_what_fits(cache_dir: Path) -> None:
    settings = settings_of(
        *(*LARGE, "testbed=virtual", "testbed.num_devices=1", "device.memory_mb=200"),
        f"cache_dir={cache_dir}",
    )
    run = measure(prepare(settings)).run
    assert run.status == "oom"
    assert run.error is not None
    options = re.findall(OPTION, run.error.partition("; what fits: ")[2])
    assert "model.dtype=bfloat16" in options
    for option in options:
        others = () if option.startswith("device") else ("device.memory_mb=200",)
        again = settings_of(
            *(*LARGE, "testbed=virtual", "testbed.num_devices=1", *others, option),
            f"cache_dir={cache_dir}",
        )
        assert measure(prepare(again)).run.status == "ok", option


def test_of_unequal_devices_the_one_with_the_least_to_spare_is_named(cache_dir: Path) -> None:
    """What the largest holds says nothing of the smallest: each option stands beside a memory."""
    laptops = "device=[macbook_air_i5,dell_i7_1165g7,raspberry_pi_5]"
    given = ("testbed=virtual", laptops, "model=llama3.1_8b", "workload.prompt_tokens=32")
    settings = settings_of(*given, f"cache_dir={cache_dir}")
    devices = devices_of(settings, cache_dir)
    model = load_model(settings.model, cache_dir)
    job = planned_job(settings, model, request_of(settings, model), devices)
    said = advice(settings, model, job, devices)
    options = re.findall(r"(\S+) \((\d+) of (\d+) MB on device (\d)\)", said)
    assert [name for name, *_ in options][-1] == "system.window=auto"
    assert len(options) == 4
    for _, needed, memory, rank in options:
        assert int(needed) <= int(memory) == job.memory_of(int(rank)) / 1e6
    enough = re.findall(r"device\.(\w+)\.memory_gb=([\d.]+)", said)
    assert [name for name, _ in enough] == ["macbook_air_i5", "raspberry_pi_5"]  # not who has it
    assert all(float(memory_gb) > 8.6 for _, memory_gb in enough)


@pytest.mark.parametrize(("window", "is_noted"), [(10, True), (9, False)])
def test_a_window_as_large_as_all_is_noted(window: int, is_noted: bool, cache_dir: Path) -> None:
    """Of 4 layers the master has 10 blocks."""
    settings = settings_of(
        *("model=debug", "workload.prompt_ids=[1]", "testbed=virtual", "testbed.num_devices=1"),
        *(f"system.window={window}", f"cache_dir={cache_dir}"),
    )
    note = settings.system.note(prepare(settings).job)
    assert ("a device has 10 blocks at most, and holds them as with system.window=off" in note) is (
        is_noted
    )
