"""A device of one's own: the form of conf/device/README.md, and what is told of a bad one."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest

from tests.helpers.command_line import run
from tests.helpers.settings import settings_of
from tpi_bench.app.points import refuse_unread
from tpi_bench.contract.device import DeviceProfile

README = Path(__file__).resolve().parents[2] / "conf" / "device" / "README.md"
FORM = re.search(r"```yaml\n(.*?)```", README.read_text(), re.DOTALL)[1]  # type: ignore[index]
FIELDS = [field.name for field in dataclasses.fields(DeviceProfile) if field.metadata]
NEEDED = [
    field.name
    for field in dataclasses.fields(DeviceProfile)
    if field.default is dataclasses.MISSING
]


def typed(folder: Path, text: str, device: str = "device=my_board") -> list[DeviceProfile]:
    """The profiles of `device=...`, with this file in a folder of configs."""
    (folder / "device").mkdir()
    (folder / "device" / "my_board.yaml").write_text(text)
    search = f"hydra.searchpath=[file://{folder}]"
    found = settings_of("testbed=virtual", "model=debug", "workload.prompt_ids=[1]", search, device)
    return [source.load(folder) for source in found.profiles]


def without(*names: str) -> str:
    kept = [line for line in FORM.split("\n") if line.partition(":")[0] not in names]
    return "\n".join(kept)


def test_the_form_has_every_field_and_so_has_the_table() -> None:
    given = [line.partition(":")[0] for line in FORM.split("\n") if ":" in line and line[0] != "#"]
    assert sorted(given) == sorted(["_target_", *FIELDS])
    rows = [line for line in README.read_text().split("\n") if line.startswith("| `")]
    named = [name for row in rows for name in re.findall(r"`(\w+)`", row.split("|")[1])]
    assert sorted(named) == sorted(FIELDS)


def test_the_form_is_a_device(tmp_path: Path) -> None:
    (profile,) = typed(tmp_path, FORM)
    assert (profile.name, profile.cores, profile.disk_gb_per_s) == ("my_board", 4, 0.8)


def test_beside_another_one(tmp_path: Path) -> None:
    profiles = typed(tmp_path, FORM, "device=[phone_2024,my_board,my_board]")
    assert [profile.name for profile in profiles] == ["phone_2024", "my_board", "my_board"]


def test_what_may_be_left_out(tmp_path: Path) -> None:
    (profile,) = typed(tmp_path, without(*(name for name in FIELDS if name not in NEEDED)))
    assert profile.used_cores is None


@pytest.mark.parametrize("lacking", [("cores", "disk_latency_us", "peak_gflops"), ("memory_gb",)])
def test_all_that_is_missing_is_told_in_one_sentence(
    tmp_path: Path, lacking: tuple[str, ...]
) -> None:
    with pytest.raises(ValueError, match="missing; give") as caught:
        typed(tmp_path, without(*lacking))
    line = str(caught.value)
    assert "\n" not in line
    told = re.findall(r"device\.my_board\.(\w+)", line)
    assert sorted(told) == sorted(lacking)


@pytest.mark.parametrize(
    ("line", "instead", "words"),
    [
        (
            "peak_gflops: 60",
            "peak_gflop: 60",
            "device.my_board.peak_gflops is missing; give it a value; there is no "
            "device.my_board.peak_gflop: did you mean device.my_board.peak_gflops?",
        ),
        ("memory_gb: 8.6", "memory_gb: null", "device.my_board.memory_gb=null has the wrong type"),
        ("name: my_board", "name: board", "device.my_board.name=board is the name of another"),
    ],
)
@pytest.mark.parametrize("device", ["device=my_board", "device=[phone_2024,my_board]"])
def test_a_line_that_is_wrong_is_named(
    tmp_path: Path, line: str, instead: str, words: str, device: str
) -> None:
    assert f"\n{line}" in FORM
    with pytest.raises(ValueError, match=re.escape(words)):
        typed(tmp_path, FORM.replace(f"\n{line}", f"\n{instead}"), device)


@pytest.mark.parametrize("first", ["", "# @package device.phone_2024\n"])
@pytest.mark.parametrize("device", ["device=my_board", "device=[phone_2024,my_board]"])
def test_the_first_line_is_told_of(tmp_path: Path, first: str, device: str) -> None:
    """Left out, or as it was in the file that was copied."""
    _, _, rest = FORM.partition("\n")
    with pytest.raises(ValueError, match=r"first line of its file must be '# @package device\.my"):
        typed(tmp_path, first + rest, device)


@pytest.mark.parametrize(
    "text",
    ["device=raspberry_pi_5", "device=[phone_2024,this_host]", "device.paper_emulated.cores=2"],
)
@pytest.mark.parametrize("task", ["generate", "measure", "chat"])
def test_a_profile_that_nobody_reads_is_refused(
    text: str, task: str, cache_dir: Path, tmp_path: Path
) -> None:
    """The devices of testbed=processes are this machine, whatever a profile says."""
    given = (f"task={task}", "model=debug", "workload.prompt_ids=[1]", f"results_dir={tmp_path}")
    done = run(*given, text, cache_dir=cache_dir)
    assert done.returncode == 2
    assert done.stderr == (
        f"error: {text} changes nothing here, where devices are processes of this machine; add "
        "testbed=virtual to simulate it\n"
    )
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "given",
    [
        ("device.memory_mb=500",),
        ("device=raspberry_pi_5", "testbed=virtual"),
        ("testbed.num_devices=3",),
    ],
)
def test_a_profile_that_is_read_is_not(given: tuple[str, ...]) -> None:
    refuse_unread(settings_of("model=debug", "workload.prompt_ids=[1]", *given))
