"""What was typed, as Hydra can read it: prompts and paths are text, options may stand anywhere.

Hydra has a grammar of its own for values, in which a quote, a comma or a parenthesis mean
something. A prompt is text, and so is a path that Hydra would read as something else: they go
through it percent-encoded behind a mark, and `compose.py` takes them out again (`plain_text`).
Whatever runs a sweep's points finds them in their overrides.
"""

from __future__ import annotations

import re
import urllib.parse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException

from tpi_bench.app.choices import GROUPS
from tpi_bench.app.devices import plain_choices, with_devices

_MARK = "%text:"
_AS_THEY_ARE = " /"  # beside letters, digits and _ . - which mean nothing to Hydra
_HOME = re.compile(r"(?:^|(?<=,))~(?=/)")  # where one value of a list begins
_PROMPT, _FILE = "prompt", "prompt_file"
_PATHS = ("output_dir", "results_dir", "cache_dir", "resume")  # one each, whatever is in it
_SWEPT_PATHS = ("model.path", "workload.text", "system.url")  # a comma may stand between two
_OTHER_NAMES = {"endpoint": "system"}  # of a group, as people call it
_AS_HYDRA_READS = re.compile(r"""null$|(['"]).*\1$|(?:choice|glob|shuffle|sort)\(""", re.I)
_FLAGS = {"-h", "--help", "--hydra-help", "--version", "--resolve", "-r", "--run"}
_FLAGS |= {"-m", "--multirun", "-sc", "--shell-completion", "-i", "--info"}
_WITH_VALUE = {"-c", "--cfg", "-p", "--package", "-cp", "--config-path", "-cn", "--config-name"}
_WITH_VALUE |= {"-cd", "--config-dir", "--experimental-rerun"}
_OF_INFO = ("all", "config", "defaults", "defaults-tree", "plugins", "searchpath")
_EMPTY = (
    'the prompt is empty; give prompt="some text", prompt=- for standard input, prompt_file=FILE, '
    "or workload.prompt_ids=[1,2,3]"
)


def for_hydra(typed: Sequence[str], read_input: Callable[[], str]) -> list[str]:
    """Values first and options behind them; prompts and paths in a form that no grammar changes.

    `read_input` is asked for `prompt=-`. Raises ValueError.
    """
    values, options = _sorted(typed)
    values = [_in_its_group(text) for text in values]
    return [_with_path(text) for text in _with_prompt(values, read_input)] + options


def options_last(arguments: Sequence[str]) -> list[str]:
    """Hydra takes no value behind an option. Raises ValueError."""
    values, options = _sorted(arguments)
    return [*values, *options]


def plain_text(value: Any) -> Any:
    """A value of the configuration with the texts that it stands for."""
    if isinstance(value, dict):
        return {key: plain_text(each) for key, each in value.items()}
    if isinstance(value, str) and value.startswith(_MARK):
        return urllib.parse.unquote(value.removeprefix(_MARK))
    return value


def as_typed(argument: str) -> str:
    """`KEY=VALUE` as a person would type it, also where it was given to a point of a sweep.

    As it is where it means something else when typed: `prompt=-` is standard input.
    """
    is_of_devices = argument.startswith("device=")
    return plain_choices(argument) if is_of_devices else with_plain_text(argument)


def with_plain_text(argument: str) -> str:
    """The same, with the devices as Hydra knows them."""
    key, _, value = argument.partition("=")
    if not value.startswith(_MARK.rstrip(":")):  # Hydra has its own way to write the colon
        return argument
    text = plain_text(OverridesParser.create().parse_override(f"text={value}").value())
    return argument if text == "-" else f"{key}={text}"


def prompt_override(text: str) -> str:
    """`prompt=text` for Hydra. Raises ValueError where there is nothing but space."""
    if not text.strip():
        raise ValueError(_EMPTY)
    try:
        return f"{_PROMPT}={_encoded(text)}"
    except UnicodeEncodeError as error:
        raise ValueError(f"the prompt is no text in UTF-8 ({error.reason})") from error


def _encoded(text: str) -> str:
    quoted = urllib.parse.quote(text, safe=_AS_THEY_ARE).replace("~", "%7E")
    if quoted.endswith(" "):  # which Hydra would drop
        quoted = quoted.rstrip(" ") + "%20" * (len(quoted) - len(quoted.rstrip(" ")))
    return f"{_MARK}{quoted}"


def _sorted(typed: Sequence[str]) -> tuple[list[str], list[str]]:
    """KEY=VALUE in their order, and options with what belongs to them."""
    values: list[str] = []
    options: list[str] = []
    rest = iter(typed)
    for text in rest:
        name = text.partition("=")[0]
        if text in _FLAGS or (name in _WITH_VALUE and name != text):
            options.append(text)
        elif text in _WITH_VALUE:
            options += [text, *_next(rest, text)]
        elif text.startswith("-"):
            raise ValueError(
                f"there is no option {name}; values are given as KEY=VALUE, and "
                "python -m tpi_bench --help lists them"
            )
        elif text in _OF_INFO and options[-1:] in (["-i"], ["--info"]):
            options.append(text)
        elif text.lstrip("+~").startswith("="):
            raise ValueError(f"the argument {text} has no key; values are given as KEY=VALUE")
        elif name.startswith("~") and name[1:] in GROUPS:
            raise ValueError(
                f"{text} takes away what every run needs; choose another one: {name[1:]}=NAME"
            )
        elif "=" in text or text.startswith("~"):
            values.append(text)
        else:
            raise ValueError(
                f"{text!r} is no KEY=VALUE; give for example task=generate or +experiment=NAME, "
                'and a prompt in quotes: prompt="some text"'
            )
    return values, options


def _next(rest: Any, option: str) -> list[str]:
    value = next(rest, None)
    if value is None:
        raise ValueError(f"{option} wants a value behind it")
    return [value]


def _with_prompt(values: Sequence[str], read_input: Callable[[], str]) -> list[str]:
    """The prompt from where it was said to be, in the place of what said so."""
    keys = [text.partition("=")[0] for text in values]
    if _PROMPT in keys and _FILE in keys:
        raise ValueError("prompt= and prompt_file= are both given; leave out one of them")
    found = []
    for key, text in zip(keys, values, strict=True):
        value = text.partition("=")[2]
        if key == _FILE:
            found.append(prompt_override(_read(value)))
        elif key == _PROMPT and value == "-":
            found.append(prompt_override(_without_last_newline(read_input())))
        elif key == _PROMPT and not value.startswith(_MARK):  # as stored by a run before
            found.append(prompt_override(value))
        else:
            found.append(with_devices(_with_home(text)))
    return found


def _in_its_group(text: str) -> str:
    """`endpoint.url=` is the `url` of `system=endpoint`."""
    group, dot, rest = text.partition(".")
    return f"{_OTHER_NAMES.get(group, group)}{dot}{rest}"


def _with_path(text: str) -> str:
    """A path as text: of several between commas each, unless the whole is there."""
    key, _, value = text.partition("=")
    if key not in (*_PATHS, *_SWEPT_PATHS) or _AS_HYDRA_READS.match(value):
        return text
    is_one = key in _PATHS or Path(value).exists()
    parts = [value] if is_one else value.split(",")
    try:
        return f"{key}={','.join(map(_as_text, parts))}"
    except UnicodeEncodeError as error:
        shown = ascii(value)[1:-1]
        raise ValueError(
            f"{key}={shown} is no text in UTF-8 ({error.reason}); give another name, or use a "
            "locale that has its letters, as LC_ALL=C.UTF-8"
        ) from error


def _as_text(path: str) -> str:
    """Encoded only where Hydra would read something else."""
    try:
        read = OverridesParser.create().parse_override(f"path={path}")
        is_text = not read.is_sweep_override() and read.value() == path
    except (HydraException, ValueError):
        is_text = False
    return path if is_text or not path else _encoded(path)


def _with_home(text: str) -> str:
    """`~/` of a path, which shells leave as it is behind an equals sign, and Hydra refuses."""
    key, equals, value = text.partition("=")
    return f"{key}{equals}{_HOME.sub(str(Path.home()), value)}"


def _read(name: str) -> str:
    try:
        return _without_last_newline(Path(name).expanduser().read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ValueError(
            f"prompt_file={name} cannot be read ({reason}); give a text file in UTF-8"
        ) from error


def _without_last_newline(text: str) -> str:
    """A line's end is not part of what it says, as in the shell's $(cat FILE)."""
    return text.rstrip("\r\n")
