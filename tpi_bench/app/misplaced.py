"""A choice that a YAML makes as it would be typed: `device: NAME`, without its defaults list.

Hydra takes the name for the settings of the group. Where it can compose that, `compose.py` asks
here what to say; where not, `unknown.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tpi_bench.app.choices import GROUPS
from tpi_bench.app.typed_folders import experiments_typed


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
    said = (misplaced(values) for values in experiments_typed(arguments))
    return next((sentence for sentence in said if sentence), None)
