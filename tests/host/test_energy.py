"""Energy from made-up counters: RAPL that wraps, a battery, and hosts that tell nothing."""

from __future__ import annotations

import math
import time
from pathlib import Path

import pytest

from tpi_bench.contract.job import Outcome
from tpi_bench.contract.request import Generation
from tpi_bench.host.energy import Battery, EnergyMeter, Rapl, counter
from tpi_bench.measure.energy import energy_of


def zone(sys: Path, folder: str, name: str, microjoules: int, most: int = 999_999) -> Path:
    path = sys / "class" / "powercap" / folder
    path.mkdir(parents=True)
    (path / "name").write_text(f"{name}\n")
    (path / "energy_uj").write_text(f"{microjoules}\n")
    (path / "max_energy_range_uj").write_text(f"{most}\n")
    return path / "energy_uj"


def battery(sys: Path, **values: str | int) -> Path:
    path = sys / "class" / "power_supply" / "BAT0"
    path.mkdir(parents=True)
    for name, value in {"type": "Battery", "status": "Discharging", **values}.items():
        (path / name).write_text(f"{value}\n")
    return path


def test_packages_and_memory_count_and_their_parts_do_not(tmp_path: Path) -> None:
    package = zone(tmp_path, "intel-rapl:0", "package-0", 100)
    other = zone(tmp_path, "intel-rapl:1", "package-1", 0)
    memory = zone(tmp_path, "intel-rapl:0:1", "dram", 50)
    zone(tmp_path, "intel-rapl:0:0", "core", 0)
    zone(tmp_path, "intel-rapl:2", "psys", 0)
    found = counter(tmp_path)
    assert isinstance(found, Rapl)
    package.write_text("400100")
    other.write_text("300000")
    memory.write_text("50050")
    assert found.joules() == pytest.approx(0.75)


def test_a_counter_that_begins_anew(tmp_path: Path) -> None:
    package = zone(tmp_path, "intel-rapl:0", "package-0", 900_000)
    found = Rapl.found(tmp_path)
    assert found is not None
    package.write_text("100000")
    assert found.joules() == pytest.approx(0.2)
    package.write_text("150000")
    assert found.joules() == pytest.approx(0.25)


def test_what_may_not_be_read_is_not_guessed(tmp_path: Path) -> None:
    zone(tmp_path, "intel-rapl:0", "package-0", 5)
    unreadable = zone(tmp_path, "intel-rapl:1", "package-1", 5)
    unreadable.unlink()
    assert counter(tmp_path) is None
    assert counter(tmp_path / "nothing") is None


@pytest.mark.parametrize(
    "values",
    [{"power_now": 12_000_000}, {"voltage_now": 12_000_000, "current_now": -1_000_000}],
)
def test_a_battery_tells_its_power(tmp_path: Path, values: dict[str, int]) -> None:
    battery(tmp_path, **values)
    found = counter(tmp_path)
    assert isinstance(found, Battery)
    begun = time.monotonic()
    time.sleep(0.05)
    used, took = found.joules(), time.monotonic() - begun
    assert 12 * 0.05 <= used <= 12 * took + 0.1


@pytest.mark.parametrize("status", ["Charging", "Full", "Not charging", "Unknown"])
def test_on_the_mains_a_battery_tells_nothing(tmp_path: Path, status: str) -> None:
    battery(tmp_path, status=status, power_now=1)
    assert counter(tmp_path) is None


class Steady:
    """A source of 100 W."""

    name = "rapl"

    def joules(self) -> float:
        return 100 * time.monotonic()


def answer(first_ns: int, last_ns: int) -> Outcome:
    tokens = [first_ns, (first_ns + last_ns) // 2, last_ns]
    generation = Generation(token_ids=[1, 2, 3], request_ns=first_ns, token_ns=tokens, account=[])
    return Outcome(status="ok", generation=generation)


def test_joules_a_token_are_those_between_the_first_and_the_last() -> None:
    with EnergyMeter(Steady()) as meter:
        time.sleep(0.05)
        first = time.monotonic_ns()
        time.sleep(0.2)
        last = time.monotonic_ns()
    found = energy_of(meter, answer(first, last))
    assert found.joules_per_token == pytest.approx(100 * (last - first) / 1e9 / 2, rel=1e-3)
    assert found.energy_source == "rapl"
    early = energy_of(meter, answer(first - 10**10, last))
    assert math.isnan(early.joules_per_token)
    assert early.energy_source is None


def test_without_a_source_nothing_is_told() -> None:
    with EnergyMeter(None) as meter:
        pass
    now = time.monotonic_ns()
    found = energy_of(meter, answer(now, now + 1))
    assert math.isnan(found.joules_per_token)
    assert found.energy_source is None


def test_a_source_that_ends_tells_nothing(tmp_path: Path) -> None:
    folder = battery(tmp_path, power_now=5_000_000)
    with EnergyMeter(counter(tmp_path)) as meter:
        first = time.monotonic_ns()
        (folder / "status").write_text("Charging\n")
        time.sleep(0.15)
        last = time.monotonic_ns()
    assert math.isnan(energy_of(meter, answer(first, last)).joules_per_token)
