"""Hydra's source of YAML files, which parses each file once in a process.

Hydra reads a file again for every configuration that it composes, with the YAML loader that is
written in Python: a third of the time. A file that has changed is read again.
"""

from __future__ import annotations

import functools
import os
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from hydra._internal.core_plugins import file_config_source as of_hydra
from hydra._internal.sources_registry import SourcesRegistry
from hydra.core.plugins import Plugins
from hydra.plugins.config_source import ConfigLoadError, ConfigResult


@dataclass
class KeptResult(ConfigResult):
    """What a file says, and which file in which state that is."""

    origin: tuple[str | int, ...] = ()


class FileConfigSource(of_hydra.FileConfigSource):
    """Gives what Hydra's gives, each time a copy of its own.

    Of the same name, as workers of a launcher get this process's sources and register Hydra's own
    again, which must be known by it.
    """

    def load_config(self, config_path: str) -> ConfigResult:
        path = os.path.join(self.path, self._normalize_file_name(config_path))
        try:
            now = os.stat(path)
        except OSError as error:
            raise ConfigLoadError(f"Config not found : {path}") from error
        as_it_is = (now.st_ino, now.st_mtime_ns, now.st_size)
        parsed: ConfigResult = pickle.loads(
            _parsed(self.provider, self.path, config_path, as_it_is)
        )
        return KeptResult(**vars(parsed), origin=(path, *as_it_is))


@functools.lru_cache(maxsize=512)
def _parsed(provider: str, folder: str, config_path: str, as_it_is: tuple[int, ...]) -> bytes:
    """Pickled: a deep copy would take several times as long."""
    return pickle.dumps(of_hydra.FileConfigSource(provider, folder).load_config(config_path))


@contextmanager
def files_are_kept() -> Iterator[None]:
    """For all that Hydra composes meanwhile; a caller's own Hydra reads as it did."""
    Plugins.instance()  # which makes the sources known
    sources = SourcesRegistry.instance().types
    scheme = FileConfigSource.scheme()
    before = sources[scheme]
    sources[scheme] = FileConfigSource
    try:
        yield
    finally:
        sources[scheme] = before
