"""The registry of settings: everything is in it, says what it means, and is shown as it is."""

from __future__ import annotations

import dataclasses
import re

import pytest
import yaml

from tests.helpers.command_line import ROOT
from tpi_bench.app import settings
from tpi_bench.app.choices import GROUPS, choices_of, defaults
from tpi_bench.app.sweeper import CONFIG_FOLDER
from tpi_bench.app.typed import fits, load_class
from tpi_bench.measure.settings import Settings

EVERY = [(head, known) for head, found in settings.all_settings() for known in found]


@pytest.mark.parametrize(
    ("head", "known"), EVERY, ids=[f"{known.name} of {head}"[:60] for head, known in EVERY]
)
def test_every_setting_says_what_it_means(head: str, known: settings.Setting) -> None:
    assert len(known.meaning) > 4, f"give {known.name} a meaning: setting(...) of its dataclass"
    assert "|" not in known.meaning
    if known.default is not dataclasses.MISSING and not known.choices:
        assert fits(known.default, known.hint)


def test_all_that_the_configuration_has_is_in_it() -> None:
    config = yaml.safe_load((CONFIG_FOLDER / "config.yaml").read_text())
    names = {known.name for known in settings.PLAIN}
    missing = config.keys() - names - {"defaults", "hydra", "oracle", "device"}
    assert not missing, f"say in app/settings.py what {missing} mean"
    assert {f"device.{name}" for name in config["device"]} <= names
    of_a_point = {field.name for field in dataclasses.fields(Settings)}
    assert {"task", "report", "check", "cache", "timeout_s", "repeat"} <= of_a_point & names


@pytest.mark.parametrize("group", GROUPS)
def test_every_value_in_conf_is_a_setting(group: str) -> None:
    for choice, values in choices_of(group).items():
        cls = settings._CLASS_OF.get(group) or load_class(values["_target_"], group)
        known = {each.name.rpartition(".")[2] for each in settings.settings_of(group, cls)}
        assert values.keys() - {"_target_"} <= known, choice


def test_the_defaults_are_those_of_the_configuration() -> None:
    config = yaml.safe_load((CONFIG_FOLDER / "config.yaml").read_text())
    for known in settings.PLAIN:
        if "." not in known.name and known.name != "prompt_file":
            assert known.default == config[known.name], known.name


def test_the_help_shows_what_is_in_force() -> None:
    values = {
        "report": "json",
        "prompt": "a price of $5",
        "system": choices_of("system")["pipeline"] | {"window": 4},
        "model": choices_of("model")["debug"],
        "testbed": choices_of("testbed")["virtual"],
        "device": {"memory_mb": 5, "raspberry_pi_4": choices_of("device")["raspberry_pi_4"]},
        "network": choices_of("network")["paper"],
        "workload": choices_of("workload")["chat"],
    }
    text = settings.help_text(values)
    lines = {line.split("=")[0]: line for line in text.split("\n") if "=" in line}
    assert lines["report"].startswith("report=json ")
    assert lines["device.memory_mb"].startswith("device.memory_mb=5 ")
    assert lines["system.window"].startswith("system.window=4  ")
    assert "blocks a device may hold at once" in lines["system.window"]
    assert lines["testbed.cost"].startswith("testbed.cost=modelled ")
    assert lines["device.raspberry_pi_4.cores"].startswith("device.raspberry_pi_4.cores=4 ")
    words = "N*NAME and of devices described as NAME(cores,memory GB,memory GB/s,disk GB/s)"
    assert words in " ".join(text.split())
    assert "a price of $$5" in text  # Hydra makes one of two
    assert "system.collective" not in text  # of another system
    assert "alone; its settings" not in text
    assert max(map(len, text.split("\n"))) <= 110


def test_the_help_says_which_testbed_reads_a_profile() -> None:
    """Real processes read none, so its settings would only be in the way."""
    chosen = {group: choices_of(group)[defaults()[group]] for group in GROUPS}
    values = chosen | {"device": {"paper_emulated": chosen["device"], "memory_mb": 5}}
    lines = settings.help_text(values).split("\n")
    place = lines.index("-- device.paper_emulated --")
    assert lines[place + 1].startswith("read by testbed=virtual")
    assert lines[place + 1].endswith(" alone; its settings: --help testbed=virtual")
    assert lines[place + 2 : place + 4] == ["", "-- network --"]
    assert any(line.startswith("device.memory_mb=5 ") for line in lines)
    assert settings.readers_of("cache") == ["cluster", "processes"]
    assert set(settings.readers_of("network")) == set(choices_of("testbed"))


def test_the_table_in_conf_is_made_of_it() -> None:
    assert (CONFIG_FOLDER / "README.md").read_text() == settings.whole_text(), (
        "python -m tpi_bench.app.settings all > conf/README.md"
    )


def test_readme_says_of_settings_what_the_registry_says() -> None:
    """Every row of its table is of a setting that there is, and a row of ours is word for word."""
    readme = (ROOT / "README.md").read_text()
    names = {known.name for _, known in EVERY}
    rows = re.findall(r"^\| `([\w.]+)=?[^|]*\|.*$", _table_of(readme), re.MULTILINE)
    assert len(rows) > 8
    groups = {*GROUPS}
    assert {name for name in rows if name not in names and name not in groups} == set()
    if "| setting | may be | meaning |" in readme:
        ours = set(settings.common_table().split("\n"))
        theirs = re.findall(r"^\| `[\w.]+=.*$", _table_of(readme), re.MULTILINE)
        assert set(theirs) <= ours


def _table_of(readme: str) -> str:
    """The lines of the table whose first column is `setting`."""
    begin = readme.index("| setting |")
    return readme[begin:].split("\n\n")[0]


def test_the_common_ones_are_one_row_each() -> None:
    lines = settings.common_table().split("\n")[2:]
    names = [line.split("`")[1].split("=")[0] for line in lines]
    assert len(names) == len(set(names))
    assert {"prompt", "system.window", "model.dtype", "device.memory_mb"} <= set(names)
    assert "system.in_a_row" not in names
