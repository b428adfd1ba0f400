"""A choice that a YAML makes as it would be typed: `device: NAME`, without its defaults list.

Hydra takes the name for the settings of the group. Where it can compose that, `compose.py` asks
here what to say; where not, `unknown.py`.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from tpi_bench.app.choices import GROUPS
from tpi_bench.app.config_folders import CONFIG_FOLDER

_FOLDER = ("-cd", "--config-dir")
_FOLDER_IS = tuple(f"{option}=" for option in _FOLDER)


def misplaced(values: Mapping[str, Any]) -> str | None:
    """A sentence of the first group that is a name or a list; None where all have settings."""
    for group in GROUPS:
        value = values.get(group, {})
        if not isinstance(value, dict):
            said = f"[{', '.join(map(str, value))}]" if isinstance(value, list) else value
            return (
                f"{group}: {said} stands in a YAML where the settings of {group} belong; a choice "
                f"is made in its defaults list: - override /{group}: {said}"
            )
    return None


def misplaced_in_experiments(arguments: Sequence[str]) -> str | None:
    """The same of the experiments that are named, in `conf/` or the folder of `--config-dir`."""
    for path in _experiments(arguments):
        try:
            values = yaml.safe_load(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, yaml.YAMLError):
            continue  # Hydra says what is wrong with it
        if isinstance(values, dict) and (said := misplaced(values)):
            return said
    return None


def _experiments(arguments: Sequence[str]) -> Iterator[Path]:
    names = [text.partition("=")[2] for text in arguments if text.startswith("+experiment=")]
    own = [text.partition("=")[2] for text in arguments if text.startswith(_FOLDER_IS)]
    own += [given for option, given in itertools.pairwise(arguments) if option in _FOLDER]
    for name in names:
        for folder in (CONFIG_FOLDER, *(Path(given).expanduser() for given in own)):
            yield folder / "experiment" / f"{name}.yaml"
