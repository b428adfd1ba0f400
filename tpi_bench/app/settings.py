"""Every setting once: its name, what it may be, and what it means.

Those of a group are said beside the fields of its dataclass (`contract/setting.py`), the others in
`PLAIN` below. `--help` shows those in force; `python -m tpi_bench.app.settings` prints README's
table, and with `all` the file `conf/README.md`.
"""

from __future__ import annotations

import dataclasses
import sys
import textwrap
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tpi_bench.app.choices import GROUPS, choices_of
from tpi_bench.app.notices import VERBOSITIES
from tpi_bench.app.typed import describe, load_class, shown
from tpi_bench.contract.request import Workload
from tpi_bench.host import page_cache

TASKS = ("generate", "chat", "measure", "advise", "perplexity", "calibrate", "survey")
REPORTS = ("text", "json")
_CLASS_OF = {"workload": Workload}  # a group that names no class
_COLUMN, _WIDTH = 40, 110  # characters of --help: where meanings begin, and of a line
_MAX_VALUE = 34


@dataclass(frozen=True)
class Setting:
    """One setting. `hint` is its type; `choices` say it better where there are some."""

    name: str
    default: Any
    hint: Any
    meaning: str
    choices: tuple[str, ...] = ()
    is_common: bool = False

    @property
    def allowed(self) -> str:
        """What it may be, in words."""
        return ", ".join(self.choices) or describe(self.hint)


PLAIN = (
    Setting(
        "task",
        "generate",
        str,
        "generate answers one prompt, chat goes on; measure leaves a row; advise tells the fastest "
        "way of running a model on device=[...], a list of NAME, N*NAME and of devices described "
        "as NAME(cores,memory GB,memory GB/s,disk GB/s); perplexity tells that of a text by "
        "precision; "
        "calibrate makes this host's device profile, survey those of a cluster and its network; of "
        "results folders, task=compare a=DIR b=DIR tells what became faster or slower "
        "(fail_above=5%: status 1 if anything did), task=trace DIR makes spans a file for "
        "Perfetto, task=report DIR a page of all, task=ledger DIR tells which claims hold; "
        "task=reproduce runs the experiments of them all again",
        TASKS,
        True,
    ),
    Setting(
        "prompt",
        "What is the capital of France?",
        str,
        "text as the shell gives it, whatever is in it; - reads standard input",
        (),
        True,
    ),
    Setting("prompt_file", None, str | None, "a file whose text is the prompt", (), True),
    Setting("report", "text", str, "json: one JSON object on standard output", REPORTS, True),
    Setting("name", "measure", str, "of the experiment; names the results folder"),
    Setting(
        "verbosity",
        "normal",
        str,
        "quiet: results and failures only; debug: also times of steps, and where errors come from",
        VERBOSITIES,
        True,
    ),
    Setting("progress", True, bool, "show progress bars on a terminal"),
    Setting(
        "output_dir",
        None,
        str | None,
        "exactly this folder for the results, which must be new or empty",
        (),
        True,
    ),
    Setting(
        "wait",
        True,
        bool | float,
        "measured points wait for another program's on this host; false: they are refused, a "
        "number: after so many seconds",
    ),
    Setting("results_dir", "results/runs", str, "where results folders are made"),
    Setting(
        "resume", None, str | None, "a results folder: do only what is missing there", (), True
    ),
    Setting(
        "cache_dir",
        None,
        str | None,
        "for converted models and block files; null is the user's cache folder",
        (),
        True,
    ),
    Setting(
        "device.memory_mb",
        None,
        float | list[float] | None,
        "memory of each device in 1e6 bytes, enforced, or a list, one each; in virtual time, that "
        "of the profile",
        (),
        True,
    ),
    Setting(
        "cache",
        "cold",
        str,
        "of real processes: cold drops a point's files from the page cache first, warm leaves them",
        page_cache.MODES,
        True,
    ),
    Setting(
        "timeout_s",
        None,
        float | None,
        "wall seconds that a point may run once it has its turn and its files; with task=advise "
        "all of it, null: 26",
        (),
        True,
    ),
    Setting("repeat", 0, int, "swept by experiments; repeats of a point are separate runs"),
    Setting("check", False, bool, "compare tokens and logits with Transformers'", (), True),
    Setting("figure", None, str | None, "the module of experiments/ that draws the results"),
)


def settings_of(group: str, cls: type) -> list[Setting]:
    """Of a group's dataclass, in the order that a reader wants: its own fields first."""
    hints = typing.get_type_hints(cls)
    found = []
    for field in filter(lambda field: field.metadata, dataclasses.fields(cls)):
        default = field.default
        if field.default_factory is not dataclasses.MISSING:
            default = field.default_factory()
        found.append(
            Setting(
                f"{group}.{field.name}",
                default,
                hints[field.name],
                field.metadata.get("meaning", ""),
                tuple(map(str, field.metadata.get("choices", ()))),
                field.metadata.get("common", False),
            )
        )
    return found


def help_text(values: Mapping[str, Any]) -> str:
    """Every setting of a composed configuration with the value that it has."""
    testbed = load_class(values["testbed"].get("_target_"), "testbed")
    lines = ["== Settings, as they are now: what else they may be, and what they mean =="]
    for known in PLAIN:
        group, _, key = known.name.rpartition(".")
        where = values.get(group, {}) if group else values
        lines += _help_lines(known, where.get(key))
    for group in GROUPS:
        given = values.get(group, {})
        profiles = {k: v for k, v in given.items() if isinstance(v, Mapping)}
        parts = profiles if group == "device" else {"": given}
        for name, part in parts.items():
            own = f"{group}.{name}" if name else group
            cls = _CLASS_OF.get(group) or load_class(part.get("_target_"), group)
            lines += ["", f"-- {own} --"]
            if group in testbed.ignores:
                first, *others = readers_of(group)
                alone = f"read by testbed={', '.join([first, *others])} alone"
                lines += textwrap.wrap(f"{alone}; its settings: --help testbed={first}", _WIDTH)
                continue
            for known in settings_of(own, cls):
                key = known.name.rpartition(".")[2]
                if key != "name":
                    lines += _help_lines(known, part.get(key, known.default))
    return "\n".join(lines).replace("$", "$$")  # Hydra fills in what stands behind a $


def readers_of(group: str) -> list[str]:
    """The testbeds that read a group's settings."""
    classes = {
        name: load_class(values.get("_target_"), "testbed")
        for name, values in choices_of("testbed").items()
    }
    return [name for name, cls in classes.items() if group not in cls.ignores]


def _help_lines(known: Setting, value: Any) -> list[str]:
    """The value, and in a column of its own what it means."""
    given, words = f"{known.name}={_short(value)}", f"{known.meaning} ({known.allowed})"
    beside = len(given) < _COLUMN
    lines = textwrap.wrap(words, _WIDTH - _COLUMN)
    begun = [f"{given:<{_COLUMN}}{lines[0]}"] if beside else [given, " " * _COLUMN + lines[0]]
    return begun + [" " * _COLUMN + line for line in lines[1:]]


def _short(value: Any) -> str:
    text = _shown(value)
    return text if len(text) <= _MAX_VALUE else f"{text[:_MAX_VALUE]}..."


def _shown(value: Any) -> str:
    """As one would type it."""
    return "" if value is dataclasses.MISSING else shown(value)


def all_settings() -> Iterator[tuple[str, list[Setting]]]:
    """Every group's settings with a heading, those of all its classes."""
    yield "in no group", list(PLAIN)
    for group in GROUPS:
        names: dict[type, list[str]] = {}
        for choice, values in choices_of(group).items():
            cls = _CLASS_OF.get(group) or load_class(values.get("_target_"), group)
            names.setdefault(cls, []).append(choice)
        for cls, choices in names.items():
            where = "device.NAME" if group == "device" else group  # each device has its own
            own = [known for known in settings_of(where, cls) if not known.name.endswith(".name")]
            yield ", ".join(f"{group}={choice}" for choice in choices), own


def common_table() -> str:
    """README's table: the settings that most people want."""
    found: dict[str, Setting] = {}
    for _, settings in all_settings():
        for known in settings:
            if known.is_common:
                found.setdefault(known.name, known)
    return "\n".join(_table(found.values()))


def whole_text() -> str:
    """The text of `conf/README.md`."""
    lines = [
        "# Settings",
        "",
        "A folder is a group, a file in it a choice: `system=pipeline`, and any value of it",
        "`system.window=4`. Made by `python -m tpi_bench.app.settings all > conf/README.md` from",
        "the words beside the code; `python -m tpi_bench --help system=pipeline` shows values in",
        "force.",
    ]
    for heading, settings in all_settings():
        readers = readers_of(heading.partition("=")[0])
        is_for_all = len(readers) == len(choices_of("testbed"))
        where = "" if is_for_all else f", read by testbed={', '.join(readers)} alone"
        if settings:
            lines += ["", f"**{heading}**{where}", "", *_table(settings)]
    return "\n".join(lines) + "\n"


def _table(settings: Iterator[Setting] | Sequence[Setting] | Any) -> list[str]:
    lines = ["| setting | may be | meaning |", "|---|---|---|"]
    for known in settings:
        default = _shown(known.default)
        shown = f"`{known.name}={default}`" if default else f"`{known.name}`"
        lines.append(f"| {shown} | {known.allowed} | {known.meaning} |")
    return lines


if __name__ == "__main__":
    sys.stdout.write(whole_text() if sys.argv[1:] == ["all"] else common_table() + "\n")
