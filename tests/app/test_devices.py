"""What `device=` may name: several, described in a line, calibrated elsewhere; and bad ones."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tests.helpers.command_line import run
from tpi_bench.app.api import settings_of
from tpi_bench.app.arguments import for_hydra
from tpi_bench.app.devices import as_typed, with_devices
from tpi_bench.contract.device import DeviceProfile

VIRTUAL = ("testbed=virtual", "model=debug", "workload.prompt_ids=[1]")
CALIBRATED = {
    "machine": {"name": "annas-laptop", "memory_gb": 16.5},
    "threads": {
        "1": [{"name": "memory_gb_per_s", "typical": 11.0, "rounds": [11.0]}],
        "8": [
            {"name": "memory_gb_per_s", "typical": 31.0, "rounds": [31.0]},
            {"name": "peak_gflops", "typical": 200.0, "rounds": [200.0]},
            {"name": "q4_gb_per_s", "typical": 25.0, "rounds": [25.0]},
            {"name": "op_overhead_us", "typical": 3.0, "rounds": [3.0]},
        ],
    },
    "host": [
        {"name": "disk_gb_per_s", "typical": 2.0, "rounds": [2.0]},
        {"name": "disk_latency_us", "typical": 80.0, "rounds": [80.0]},
        {"name": "message_overhead_us", "typical": 12.0, "rounds": [12.0]},
    ],
}


def profiles(*typed: str) -> list[DeviceProfile]:
    found = settings_of(for_hydra([*VIRTUAL, *typed], lambda: ""))
    return [source.load(Path()) for source in found.profiles]


def keep(folder: Path, *names: str, **changes: object) -> Path:
    folder.mkdir(exist_ok=True)
    for name in names:
        (folder / name).write_text(json.dumps(CALIBRATED | changes))
    return folder


def test_several_of_one() -> None:
    found = profiles("device=[macbook_pro_m1,2*raspberry_pi_5]")
    assert [each.name for each in found] == ["macbook_pro_m1", *["raspberry_pi_5"] * 2]
    assert [each.name for each in profiles("device=2*phone_2024")] == ["phone_2024"] * 2
    swept = with_devices("device=[phone_2024,2*this_host],3*raspberry_pi_5")
    assert swept == (
        "device=[phone_2024,this_host,this_host],[raspberry_pi_5,raspberry_pi_5,raspberry_pi_5]"
    )


def test_described_in_a_line() -> None:
    old, other = profiles("device=[old_pc(4, 8, 20, 0.5),nas(2,16,9,0.2,q4_gb_per_s=6)]")
    assert (old.name, old.cores, old.memory_gb) == ("old_pc", 4, 8.0)
    assert (old.memory_gb_per_s, old.disk_gb_per_s) == (20.0, 0.5)
    assert old.source == (
        "as typed; taken, as not said: peak_gflops 80, op_overhead_us 4, message_overhead_us 15, "
        "disk_latency_us 100, disk_queue_depth 8"
    )
    assert (other.name, other.q4_gb_per_s) == ("nas", 6.0)
    named = profiles(
        "device=x(cores=2,memory_gb=4,memory_gb_per_s=10,disk_gb_per_s=1,peak_gflops=9)"
    )
    assert named[0].peak_gflops == 9.0
    assert "peak_gflops" not in named[0].source


def test_its_numbers_can_be_changed_as_a_profiles() -> None:
    (old,) = profiles("device=[old_pc(4,8,20,0.5)]", "device.old_pc.used_cores=2")
    assert old.used_cores == 2


@pytest.mark.parametrize(
    "typed", ["[old-pc(4,8,20,0.5)]", "old_pc(4,8,20", "[2*my pc(4,8,20,0.5)]"]
)
def test_what_is_no_description_says_how_one_is_written(typed: str) -> None:
    """Else Hydra's parser would tell of tokens."""
    with pytest.raises(ValueError, match=r"is no device; one is described as NAME\(cores, memory"):
        with_devices(f"device={typed}")


@pytest.mark.parametrize(
    ("typed", "words"),
    [
        ("[a(4,8,20,0.5)", "the bracket is not closed; a list is written device=[A,B]"),
        ("[a(4,8,20,0.5)]]", "a bracket too many closes"),
        ("[[a(4,8,20,0.5)],b(4,8,20,0.5)]", "a bracket too many opens"),
        ("a[4,8,20,0.5]", "a[4,8,20,0.5] is no device; one is described as NAME(cores, memory"),
        ("a{4,8,20,0.5}", "is no device; one is described as NAME(cores, memory"),
        ("a(4,8,20,0.5) b(4,8,20,0.5)", "and several are written [A,B]"),
        ("[]", "there is no device in the list"),
        ("[ ]", "there is no device in the list"),
        ("[a(4,8,20,0.5),]", "a comma too many"),
        ("[a(4,8,20,0.5),,phone_2024]", "a comma too many"),
    ],
)
def test_what_is_no_list_says_how_one_is_written(typed: str, words: str) -> None:
    with pytest.raises(ValueError, match=re.escape(words)) as caught:
        with_devices(f"device={typed}")
    assert f"device={typed}" in str(caught.value)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (("task=advise",), "are written in brackets, device=[a(4,8,20,0.5),phone_2024]"),
        (VIRTUAL, "are written in brackets, device=[a(4,8,20,0.5),phone_2024]; add -m to run each"),
    ],
)
def test_several_without_brackets(given: tuple[str, ...], words: str, cache_dir: Path) -> None:
    done = run(*given, "device=a(4,8,20,0.5),phone_2024", cache_dir=cache_dir)
    assert done.returncode == 2
    assert words in done.stderr
    assert "%" not in done.stderr


def test_devices_are_told_as_they_were_typed(cache_dir: Path, tmp_path: Path) -> None:
    """Not as Hydra knows them: by a sweep, its table and rows, and by what refuses them."""
    given = ("task=measure", *VIRTUAL, f"output_dir={tmp_path / 'out'}", "-m")
    done = run(*given, "device=a(4,8,20,0.5),[b(4,8,20,0.5),phone_2024]", cache_dir=cache_dir)
    assert done.returncode == 0, done.stderr
    assert "device=a(4,8,20,0.5)" in done.stderr
    assert "[b(4,8,20,0.5),phone_2024]" in done.stdout
    assert "%" not in done.stderr + done.stdout
    refused = run("model=debug", "device=a(4,8,20,0.5)", cache_dir=cache_dir)
    assert refused.stderr.startswith("error: device=a(4,8,20,0.5) changes nothing here")


@pytest.mark.parametrize(
    ("typed", "words"),
    [
        ("device.lenvo.memory_gb=2", "did you mean device.lenovo?"),
        (
            "device.hp.memory_gb=2",
            "device.hp.memory_gb; there are acer, lenovo, memory_mb, phone_2",
        ),
        ("device.acer.memory_bg=2", "did you mean device.acer.memory_gb?"),
        ("device.raspbery_pi_5.cores=2", "did you mean device.raspberry_pi_5?"),
        ("device.lenovo.used_cores=9", "device.lenovo.used_cores=9 must be 1 to 4"),
    ],
)
def test_settings_of_a_device_name_those_chosen(
    typed: str, words: str, cache_dir: Path, tmp_path: Path
) -> None:
    listed = "device=[lenovo(4,8,20,0.5),2*acer(2,4,10,0.1),phone_2024]"
    done = run(*VIRTUAL, listed, typed, f"results_dir={tmp_path}", cache_dir=cache_dir)
    assert done.returncode == 2
    assert words in done.stderr


@pytest.mark.parametrize("more", [(), ("task=measure", "-m")])
def test_what_no_machine_has_is_noted(
    more: tuple[str, ...], cache_dir: Path, tmp_path: Path
) -> None:
    """Once, on standard error: most likely another unit was meant."""
    described = "device=[a(4,8000,20000,500),b(4,8,20,0.5),c(4,8,20,500)]"
    done = run(*VIRTUAL, *more, described, f"results_dir={tmp_path}", cache_dir=cache_dir)
    assert done.returncode == 0, done.stderr
    notes = [line for line in done.stderr.split("\n") if line.startswith("note: ")]
    assert [note.partition("; ")[0] for note in notes] == [
        "note: a(4,8000,20000,500) is far beyond any machine (memory_gb=8000, "
        "memory_gb_per_s=20000, disk_gb_per_s=500)",
        "note: c(4,8,20,500) is far beyond any machine (disk_gb_per_s=500)",
    ]
    assert "memory is in GB, the rates of memory and disk in GB/s" in notes[0]


def test_one_core_is_not_told_as_several(cache_dir: Path, tmp_path: Path) -> None:
    given = ("task=advise", "model=debug", "system=tpi", "model.weights=q8", "timeout_s=5")
    done = run(
        *given, "device=a(1,8,20,0.5)", f"output_dir={tmp_path / 'out'}", cache_dir=cache_dir
    )
    assert done.returncode == 0, done.stderr
    assert "A a: 1 core, 8 GB" in done.stdout


def test_calibrated_elsewhere(tmp_path: Path) -> None:
    folder = keep(tmp_path / "home", "annas-laptop.json", "pi.json")
    anna, pi, phone = profiles(f"device=[{folder}/,phone_2024]")
    assert [anna.name, pi.name, phone.name] == ["annas_laptop", "pi", "phone_2024"]
    assert (anna.cores, anna.memory_gb, anna.memory_gb_per_s) == (8, 16.5, 31.0)
    assert (anna.q4_gb_per_s, anna.disk_gb_per_s) == (25.0, 2.0)
    (alone,) = profiles(f"device={folder}/pi.json")
    assert alone.name == "pi"


def test_typed_again_as_it_was_stored() -> None:
    once = for_hydra(["device=[old_pc(4,8,20,0.5),2*a/b.json]"], lambda: "")
    assert for_hydra(once, lambda: "") == once
    choices = once[0].removeprefix("device=[").removesuffix("]").split(",")
    assert as_typed(choices) == "device=[old_pc(4,8,20,0.5),2*a/b.json]"


def test_a_point_of_a_described_device_runs(cache_dir: Path, tmp_path: Path) -> None:
    given = ("task=measure", *VIRTUAL, f"results_dir={tmp_path}", "report=json")
    done = run(*given, "device=[old_pc(4,8,20,0.5),raspberry_pi_5]", cache_dir=cache_dir)
    assert done.returncode == 0, done.stderr
    assert len(json.loads(done.stdout)["devices"]) == 2


@pytest.mark.parametrize(
    ("typed", "words"),
    [
        ("device=raspbery_pi_5", "did you mean device=raspberry_pi_5?"),
        ("device=[raspberry_pi_5,2*raspbery_pi_5]", "did you mean device=raspberry_pi_5?"),
        ("device=old(4,8)", "memory_gb_per_s, disk_gb_per_s must be given: NAME(cores, memory"),
        ("device=old(4,8,20,0.5,9)", "only cores, memory_gb, memory_gb_per_s, disk_gb_per_s go"),
        ("device=old(four,8,20,0.5)", "cores=four must be a whole number"),
        ("device=old(4,8,20,fast)", "disk_gb_per_s=fast must be a finite number"),
        ("device=old(4,8,inf,0.5)", "memory_gb_per_s=inf must be a finite number"),
        ("device=old(4,nan,20,0.5)", "memory_gb=nan must be a finite number"),
        ("device=old(4,8,20,0.5,cores=8)", "cores is given twice"),
        ("device=old(4,8,20,0.5,q4_gbps=3)", "there is no q4_gbps; did you mean q4_gb_per_s?"),
        ("device=old(4,-8,20,0.5)", "device.old.memory_gb=-8.0 must be above 0"),
        ("device=raspberry_pi_5(4,8,20,0.5)", "there is a profile called raspberry_pi_5 already"),
        ("device=[a(4,8,20,0.5),a(4,16,20,0.5)]", "are both called a; give each device a name"),
        ("device=0*raspberry_pi_5", "0*raspberry_pi_5 is no device; give 1*raspberry_pi_5"),
        ("device=nowhere/", "nowhere/ holds no calibration; gather there the files"),
        ("device=nowhere/pi.json", "nowhere/pi.json cannot be read: No such file"),
    ],
)
def test_a_bad_one_is_one_line(typed: str, words: str, cache_dir: Path, tmp_path: Path) -> None:
    given = ("task=measure", *VIRTUAL, f"results_dir={tmp_path}")
    done = run(*given, typed, cache_dir=cache_dir)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert words in done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("text", ["{}", "no JSON", '{"threads": {"1": []}, "host": []}'])
def test_a_file_that_is_no_calibration(text: str, tmp_path: Path) -> None:
    (tmp_path / "pi.json").write_text(text)
    with pytest.raises(ValueError, match=r"pi.json is no calibration of this version; give"):
        profiles(f"device={tmp_path}/pi.json")
