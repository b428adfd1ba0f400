"""What arguments say of files, before Hydra has read them: folders, and experiments in them."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException

from tpi_bench.app.choices import read_yaml
from tpi_bench.app.config_folders import CONFIG_FOLDER

_FOLDER = ("-cd", "--config-dir")
_FOLDER_IS = tuple(f"{option}=" for option in _FOLDER)
_SEARCH_PATH = "hydra.searchpath="
_SCHEME = "file://"


def folders_typed(arguments: Sequence[str]) -> tuple[Path, ...]:
    """`conf/`, and behind it the folders of the user's own that are named."""
    own = [text.partition("=")[2] for text in arguments if text.startswith(_FOLDER_IS)]
    own += [given for option, given in itertools.pairwise(arguments) if option in _FOLDER]
    for text in arguments:
        if text.startswith(_SEARCH_PATH):  # as `with_config_dir` writes it
            own += [each.removeprefix(_SCHEME) for each in _listed(text)]
    return (CONFIG_FOLDER, *(Path(given).expanduser() for given in own))


def with_whole_folders(arguments: Sequence[str]) -> list[str]:
    """With `--config-dir` from the root, as results that keep it are resumed from elsewhere."""
    found = list(arguments)
    for number, text in enumerate(found):
        option, _, given = text.partition("=")
        if text in _FOLDER and number + 1 < len(found):
            found[number + 1] = _whole(found[number + 1])
        elif option in _FOLDER and given:
            found[number] = f"{option}={_whole(given)}"
    return found


def _whole(folder: str) -> str:
    """One that is not there stays as it was typed, for the one who says so."""
    path = Path(folder).expanduser()
    return str(path.resolve()) if path.is_dir() else folder


def experiments_typed(arguments: Sequence[str]) -> Iterator[dict[str, Any]]:
    """The YAML of each experiment that is named, by its name in each of the folders."""
    for text in arguments:
        if text.startswith("+experiment="):
            for folder in folders_typed(arguments):
                yield read_yaml(folder / "experiment" / f"{text.partition('=')[2]}.yaml")


def _listed(override: str) -> list[str]:
    try:
        value = OverridesParser.create().parse_override(override).value()
    except HydraException:
        return []
    return [str(each) for each in value] if isinstance(value, list) else []
