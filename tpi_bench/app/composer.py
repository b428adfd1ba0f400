"""The configurations of a sweep's points, composed quickly.

Hydra reads all files again for every point, which takes longer than many a simulation. Points that
choose the same files differ in plain values alone: the first of them is composed by Hydra, and the
others are copies of it in which those values are set as Hydra sets them.
"""

from __future__ import annotations

import functools
import pickle
from collections.abc import Sequence
from typing import Any

from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, OmegaConf, open_dict, read_write
from omegaconf.errors import OmegaConfBaseException

_MOST_KEPT = 64  # configurations


class Composer:
    """Of one sweep. `compose` gives what `config_loader.load_sweep_config` gives.

    Also once the sweep's `config` has got further plain values of Hydra's own, as its folder.
    """

    def __init__(self, config_loader: ConfigLoader, config: DictConfig) -> None:
        self._loader = config_loader
        self._config = config
        self._parser = OverridesParser.create(config_loader)
        self._parsed = functools.cache(self._parse)
        self._is_group = functools.cache(self._find_group)
        self._firsts: dict[object, tuple[bytes, int]] = {}  # pickled, and Hydra's overrides then

    def compose(self, overrides: Sequence[str]) -> DictConfig:
        """A point's whole configuration. Raises Hydra's errors."""
        plain = {text: self._parsed(text) for text in overrides if self._is_plain(text)}
        kept = tuple(None if text in plain else text for text in overrides)
        keys = tuple(override.key_or_group for override in plain.values())
        first, num_known = self._first_like((kept, keys), overrides)
        # A deep copy would be the same, and take five times as long.
        config: DictConfig = pickle.loads(first)
        since = list(self._config.hydra.overrides.hydra)[num_known:]
        try:
            for override in [*map(self._parsed, since), *plain.values()]:
                OmegaConf.update(config, override.key_or_group, override.value(), merge=True)
        except OmegaConfBaseException:  # Hydra says it better
            return self._composed(overrides)
        config.hydra.overrides.hydra.extend(since)
        self._tell(config, overrides)
        return config

    def _first_like(self, like: object, overrides: Sequence[str]) -> tuple[bytes, int]:
        first = self._firsts.get(like)
        if first is None:
            if len(self._firsts) == _MOST_KEPT:
                del self._firsts[next(iter(self._firsts))]  # the oldest
            num_known = len(self._config.hydra.overrides.hydra)
            first = self._firsts[like] = pickle.dumps(self._composed(overrides)), num_known
        return first

    def _composed(self, overrides: Sequence[str]) -> DictConfig:
        return self._loader.load_sweep_config(self._config, list(overrides))

    def _find_group(self, key: str) -> bool:
        """Hydra's own answer would take a copy of all that it knows."""
        return any(source.is_group(key) for source in self._loader.get_sources())

    def _parse(self, text: str) -> Override:
        (override,) = self._parser.parse_overrides([text])
        return override

    def _is_plain(self, text: str) -> bool:
        """Whether it sets a value that is there, a number, a text or a list: no more can differ."""
        override = self._parsed(text)
        return (
            not (override.is_add() or override.is_force_add() or override.is_delete())
            and not override.is_hydra_override()
            and not override.is_sweep_override()
            and override.package is None
            and not isinstance(override.value(), dict)
            and not self._is_group(override.key_or_group)
        )

    def _tell(self, config: DictConfig, overrides: Sequence[str]) -> None:
        """What Hydra says in a configuration of the overrides that it was made with."""
        own = [text for text in overrides if not self._parsed(text).is_hydra_override()]
        job: Any = config.hydra.job
        how = job.config.override_dirname
        named = [text for text in own if self._parsed(text).key_or_group not in how.exclude_keys]
        name = how.item_sep.join(sorted(named)).replace("=", how.kv_sep)
        with read_write(config.hydra), open_dict(config.hydra):
            config.hydra.overrides.task = own
            job.override_dirname = name


class SharesComposer:
    """A launcher whose points are composed in this process, by the sweeper's where it has one."""

    composer: Composer | None = None
