"""Hydra, started with arguments instead of `sys.argv`, for the command line and for Python alike.

`hydra.main` reads `sys.argv`, gives nothing back, and does not even start on Python 3.14 (Hydra's
issue 3121: argparse there refuses a help text that is no string). So the options are declared here,
and Hydra's own methods are called as `hydra.main` calls them.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

from hydra import version
from hydra._internal.hydra import Hydra
from hydra._internal.utils import create_config_search_path
from hydra.core.config_search_path import SearchPathElement
from hydra.core.global_hydra import GlobalHydra
from hydra.types import RunMode, TaskFunction

from tpi_bench.app import point_launcher, ray_launcher, sweeper
from tpi_bench.app.config_folders import CONFIG_FOLDER, register_systems
from tpi_bench.app.config_loader import ConfigLoader
from tpi_bench.app.devices import register_devices
from tpi_bench.app.kept_files import files_are_kept
from tpi_bench.app.quoting import quoted

CONFIG_NAME = "config"
SWEEP = "hydra.mode=MULTIRUN"
_INFO = ("all", "config", "defaults", "defaults-tree", "plugins", "searchpath")


def start(arguments: Sequence[str], task: TaskFunction, *, sets_logging: bool = True) -> Any:
    """Do what the arguments ask for: `task` once or for every point of a sweep, or tell something.

    Raises ValueError and Hydra's errors for arguments that cannot be; errors of the task as they
    are.
    """
    given = options().parse_intermixed_args(list(arguments))
    overrides = with_config_dir(given.overrides, given.config_dir)
    given.overrides = overrides
    with hydra_of_ours(overrides) as hydra:
        if given.help:
            hydra.config_loader = _loader(given.config_dir)  # whose choices are listed too
            return hydra.app_help(CONFIG_NAME, options(), given)
        if given.hydra_help:
            return hydra.hydra_help(CONFIG_NAME, options(), given)
        if given.cfg:
            how = (given.cfg, given.package, given.resolve)
            return hydra.show_cfg(CONFIG_NAME, overrides, *how)
        if given.shell_completion:
            return hydra.shell_completion(CONFIG_NAME, overrides)
        if given.info:
            return hydra.show_info(given.info, CONFIG_NAME, overrides)
        if given.multirun:
            overrides = [*overrides, SWEEP]
            return hydra.multirun(CONFIG_NAME, task, overrides, with_log_configuration=sets_logging)
        mode = hydra.get_mode(CONFIG_NAME, overrides) or RunMode.RUN
        run = hydra.run if mode == RunMode.RUN else hydra.multirun
        return run(CONFIG_NAME, task, overrides, with_log_configuration=sets_logging)


@contextmanager
def hydra_of_ours(overrides: Sequence[str] = ()) -> Iterator[Hydra]:
    """A Hydra that knows our configuration, and the devices that `overrides` describe; one that
    the caller may use himself comes back.
    """
    register_systems()
    register_devices(overrides)
    sweeper.register()
    point_launcher.register()
    ray_launcher.register()
    version.setbase("1.3")
    before = GlobalHydra.instance().hydra
    GlobalHydra.instance().clear()
    try:
        with files_are_kept():
            hydra = Hydra("tpi_bench", _loader())
            GlobalHydra.instance().initialize(hydra)
            yield hydra
    finally:
        GlobalHydra.instance().hydra = before


def _loader(own_folder: str | None = None) -> ConfigLoader:
    """Of our configuration, and what a folder of the user's own adds to it."""
    where = create_config_search_path(str(CONFIG_FOLDER))
    if own_folder is not None:
        path = Path(own_folder).expanduser().resolve()
        where.get_path().insert(-1, SearchPathElement("--config-dir", f"file://{path}"))
    return ConfigLoader(where)


def with_config_dir(overrides: Sequence[str], folder: str | Path | None) -> list[str]:
    """The overrides with a folder of configurations of the user's own, looked up after ours.

    As an override it is kept with a sweep's results and told to a launcher's workers. Raises
    ValueError where there is no such folder.
    """
    if folder is None:
        return list(overrides)
    path = Path(folder).expanduser().resolve()
    if not path.is_dir():
        raise ValueError(
            f"--config-dir {folder} is no folder; give one that holds groups as conf/ does, such "
            "as system/ and experiment/"
        )
    return [*overrides, f"hydra.searchpath=[{quoted(f'file://{path}')}]"]


class _Options(argparse.ArgumentParser):
    """What cannot be is an exception, said in one line as all others are."""

    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{message}; python -m tpi_bench --help lists what there is")


def options() -> argparse.ArgumentParser:
    """Of the command line, beside KEY=VALUE."""
    parser = _Options(prog="tpi_bench", add_help=False, allow_abbrev=False)
    add = parser.add_argument
    add("overrides", nargs="*", metavar="KEY=VALUE", help="any value of the configuration")
    add("-h", "--help", action="store_true", help="what can be set, and the values in force")
    add("-m", "--multirun", action="store_true", help="sweep over lists of values")
    add("-cd", "--config-dir", metavar="DIR", help="a folder of your own beside conf/")
    add("-c", "--cfg", choices=["job", "hydra", "all"], help="show the configuration, run nothing")
    add("-p", "--package", metavar="GROUP", help="with --cfg: only this part of it")
    add("--resolve", action="store_true", help="with --cfg: with references followed")
    add("-i", "--info", nargs="?", const="all", choices=_INFO, help="what Hydra knows")
    add("--hydra-help", action="store_true", help="Hydra's own help")
    add("-sc", "--shell-completion", action="store_true", help="see --hydra-help")
    return parser
