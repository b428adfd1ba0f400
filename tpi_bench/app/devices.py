"""What `device=` may name beside the profiles of `conf/device/`, made choices for Hydra.

- `2*raspberry_pi_5`: two of them;
- `old_pc(4,8,20,0.5)`: a device described in a line, by cores, GB of memory, GB/s of memory and of
  its disk; by name any number of a profile: `old_pc(cores=4,...,q4_gb_per_s=15)`;
- `home/laptop.json`: what `task=calibrate` wrote on that machine; `home/`: all that are in there,
  or in `home/devices/` where `task=survey` wrote them.

A description or a file becomes a choice with its signs percent-encoded, of which the profile is
made wherever it is composed: in a worker, or when a sweep is taken up again.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import re
import urllib.parse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore

from tpi_bench.app.choices import choices_of
from tpi_bench.app.typed import did_you_mean
from tpi_bench.contract.device import DeviceProfile

_KEY = "device="
_SURVEYED = "devices"  # where `measure/survey.py` writes
_IN_ORDER = ("cores", "memory_gb", "memory_gb_per_s", "disk_gb_per_s")
_WHOLE = ("cores", "used_cores", "disk_queue_depth")
FIELDS = tuple(
    field.name
    for field in dataclasses.fields(DeviceProfile)
    if field.metadata and field.name not in ("name", "source")
)
# Of a device that is described in a line: between a Raspberry Pi 5 and a laptop of 2020.
_GFLOPS_A_CORE = 20.0
_TAKEN = {
    "op_overhead_us": 4.0,
    "message_overhead_us": 15.0,
    "disk_latency_us": 100.0,
    "disk_queue_depth": 8,
}
# No machine of today comes near: where more is typed, another unit was meant.
_FAR_BEYOND = {"memory_gb": 2000.0, "memory_gb_per_s": 10_000.0, "disk_gb_per_s": 100.0}
_SEVERAL = re.compile(r"(\d+)\*(.+)")
_DESCRIBED = re.compile(r"([A-Za-z]\w*)\(([^()]*)\)")
_FORM = "NAME(cores, memory in GB, GB/s of memory, GB/s of the disk)"
_ENCODED = re.compile(r"[\w.%+-]*%[0-9A-F]{2}[\w.%+-]*")
_EMPTY = re.compile(r"(?:[\[,]|^),|,(?:\]|$)")
_OF_HYDRA = re.compile(r"(?:choice|glob|range|interval|sort|shuffle|tag|extend_list)\(")


def with_devices(text: str) -> str:
    """`device=...` as Hydra reads it; anything else as it is. Raises ValueError."""
    key, equals, value = text.partition("=")
    if key + equals != _KEY or _OF_HYDRA.match(value):
        return text
    found, depth = list[str](), 0
    for part in _parts(value):
        depth += {"[": 1, "]": -1}.get(part, 0)
        _refuse_bracket(part, found, depth, text)
        if part in ("[", "]", ","):
            found.append(part)
        elif part.strip():
            names = list(_expanded(part.strip(), text))
            is_list = depth > 0 or (len(names) == 1 and "*" not in part)
            listed = ",".join(names)
            found.append(listed if is_list else f"[{listed}]")
    if depth:
        raise ValueError(f"{text}: the bracket is not closed; a list is written device=[A,B]")
    listed = "".join(found)
    if "[]" in listed or listed == ",":
        raise ValueError(f"{text}: there is no device in the list; give its devices: device=[A,B]")
    if _EMPTY.search(listed):
        raise ValueError(f"{text}: a comma too many; a list is written device=[A,B]")
    return _KEY + listed


def _refuse_bracket(part: str, before: Sequence[str], depth: int, text: str) -> None:
    """Of a part of a list, with how many brackets are open then; any other part is none."""
    if part == "[" and before and before[-1] not in ("[", ","):
        raise ValueError(f"{text} is no device; {_how_described()}")
    if depth not in (0, 1):
        raise ValueError(
            f"{text}: a bracket too many {'opens' if depth > 1 else 'closes'}; a list is written "
            "device=[A,B]"
        )


def _how_described() -> str:
    return (
        f"one is described as {_FORM}, NAME in letters, digits and _, as old_pc(4,8,20,0.5), and "
        "several are written [A,B]"
    )


def surveyed_folder(choices: Sequence[str]) -> Path | None:
    """The folder of `task=survey` whose devices these are, all of them in their order."""
    paths = [Path(_plain(choice)) for choice in choices]
    folder = paths[0].parent.parent if paths else Path()
    is_whole = bool(paths) and paths == _calibrations(folder)
    return folder if is_whole and (folder / "network" / "survey.yaml").is_file() else None


def register_devices(arguments: Sequence[str]) -> None:
    """Make the described devices and those of files choices of `device=`. Raises ValueError."""
    named: dict[str, str] = {}
    for text in arguments:
        if not text.startswith(_KEY):
            continue
        for choice in _ENCODED.findall(text.removeprefix(_KEY)):
            name, values = _profile_of(choice)
            if named.setdefault(name, choice) != choice:
                raise ValueError(
                    f"{_plain(choice)} and {_plain(named[name])} are both called {name}; give "
                    "each device a name of its own"
                )
            ConfigStore.instance().store(
                group="device", name=choice, node=values, package=f"device.{name}"
            )


def notes_on(arguments: Sequence[str]) -> list[str]:
    """What is odd about devices that are described in a line, one sentence a device."""
    listed = " ".join(text for text in arguments if text.startswith(_KEY))
    notes = []
    for plain in dict.fromkeys(map(_plain, _ENCODED.findall(listed))):
        profile = _described(plain) if _DESCRIBED.fullmatch(plain) else None
        odd = [
            f"{field}={getattr(profile, field):g}"
            for field, most in _FAR_BEYOND.items()
            if profile is not None and getattr(profile, field) > most
        ]
        if odd:
            notes.append(
                f"note: {plain} is far beyond any machine ({', '.join(odd)}); memory is in GB, the "
                "rates of memory and disk in GB/s"
            )
    return notes


def name_of(choice: str) -> str:
    """What the profile behind a choice of `device=` is called."""
    if not _ENCODED.fullmatch(choice):
        return choice
    plain = _plain(choice)
    described = _DESCRIBED.fullmatch(plain)
    return described[1] if described else _name_of_file(Path(plain))


def names_of(value: str) -> list[str]:
    """What the profiles are called that a value of `device=` lists, each once."""
    choices = [choice for choice in re.split(r"[\[\],]", value) if choice]
    return list(dict.fromkeys(map(name_of, choices)))


def plain_choices(text: str) -> str:
    """A text in which devices are named as Hydra knows them, with what was typed."""
    return _ENCODED.sub(lambda found: _plain(found[0]), text)


def as_typed(choices: Sequence[str]) -> str:
    """`device=` of these choices, one a device, as a person would type it."""
    groups = [(_plain(name), len(list(same))) for name, same in itertools.groupby(choices)]
    listed = ",".join(f"{count}*{name}" if count > 1 else name for name, count in groups)
    return f"{_KEY}[{listed}]"


def _parts(value: str) -> Iterator[str]:
    """Brackets and commas of lists, and what stands between them; not those in parentheses."""
    depth, begin = 0, 0
    for place, sign in enumerate(value):
        depth += {"(": 1, ")": -1}.get(sign, 0)
        if sign in "[]," and not depth:
            yield value[begin:place]
            yield sign
            begin = place + 1
    yield value[begin:]


def _expanded(part: str, text: str) -> Iterator[str]:
    """The choices that a part of a list stands for."""
    several = _SEVERAL.fullmatch(part)
    if _ENCODED.fullmatch(part):  # as stored by a run before
        yield part
    elif several:
        count = int(several[1])
        if count < 1:
            raise ValueError(f"{text}: {part} is no device; give 1*{several[2]} or more")
        yield from [*_expanded(several[2], text)] * count
    elif _DESCRIBED.fullmatch(part):
        yield _encoded(re.sub(r"\s", "", part))
    elif part.endswith(".json"):
        yield _encoded(str(Path(part).expanduser()))
    elif "/" in part:
        files = _calibrations(Path(part).expanduser())
        if not files:
            raise ValueError(
                f"{text}: {part} holds no calibration; gather there the files that "
                "task=calibrate names, one a machine, called as the machine"
            )
        yield from (_encoded(str(path)) for path in files)
    elif re.search(r"[(){}]", part):
        raise ValueError(f"{text}: {part} is no device; {_how_described()}")
    else:
        yield part


def _calibrations(folder: Path) -> list[Path]:
    """Of a folder, or of a survey in it."""
    return sorted(folder.glob("*.json")) or sorted((folder / _SURVEYED).glob("*.json"))


def _encoded(part: str) -> str:
    return urllib.parse.quote(part, safe="").replace("~", "%7E")


def _plain(choice: str) -> str:
    return urllib.parse.unquote(choice)


def _profile_of(choice: str) -> tuple[str, dict[str, Any]]:
    """A device's name, and its profile as a YAML of `conf/device/` would say it."""
    name, plain = name_of(choice), _plain(choice)
    if name in choices_of("device"):
        raise ValueError(
            f"device={plain}: there is a profile called {name} already; take another name, or "
            f"change its numbers: device={name} device.{name}.memory_gb=16"
        )
    if _DESCRIBED.fullmatch(plain):
        profile = _described(plain)
    elif plain.endswith(".json"):
        from tpi_bench.measure.calibrate import read_profile

        profile = read_profile(Path(plain), name)
    else:
        raise ValueError(f"device={plain} is no device; describe one as old_pc(4,8,20,0.5)")
    target = f"{DeviceProfile.__module__}.{DeviceProfile.__qualname__}"
    return name, {"_target_": target, **profile.as_given()}


def _described(plain: str) -> DeviceProfile:
    """`NAME(4,8,20,0.5)`, or with names; what is not said is taken as `_TAKEN` has it, and told."""
    match = _DESCRIBED.fullmatch(plain)
    assert match is not None
    where, given = f"device={plain}", dict[str, Any]()
    for place, part in enumerate(match[2].split(",")):
        field, equals, value = part.rpartition("=")
        if not equals:
            if place >= len(_IN_ORDER):
                raise ValueError(f"{where}: only {', '.join(_IN_ORDER)} go without their names")
            field = _IN_ORDER[place]
        if field not in FIELDS:
            raise ValueError(f"{where}: there is no {field}; {did_you_mean(field, FIELDS)}")
        if field in given:
            raise ValueError(f"{where}: {field} is given twice; leave out one of them")
        given[field] = _number(where, field, value)
    missing = [field for field in _IN_ORDER if field not in given]
    if missing:
        raise ValueError(
            f"{where}: {', '.join(missing)} must be given: {_FORM}, as old_pc(4,8,20,0.5)"
        )
    defaults = {"peak_gflops": _GFLOPS_A_CORE * given["cores"], **_TAKEN}
    taken = {field: value for field, value in defaults.items() if field not in given}
    told = ", ".join(f"{field} {value:g}" for field, value in taken.items())
    source = "as typed" + (f"; taken, as not said: {told}" if taken else "")
    return DeviceProfile(name=match[1], source=source, **(taken | given))


def _number(where: str, field: str, value: str) -> float | int:
    kind = "a whole number" if field in _WHOLE else "a finite number"
    try:
        number = int(value) if field in _WHOLE else float(value)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(f"{where}: {field}={value} must be {kind}")
    return number


def _name_of_file(path: Path) -> str:
    """Of the machine: as the file is called, in letters that a setting may have."""
    name = re.sub(r"\W", "_", path.stem)
    return name if name[:1].isalpha() else f"device_{name}"
