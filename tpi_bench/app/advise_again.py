"""The commands that run the best way again: in virtual time, on processes, on the machines."""

from __future__ import annotations

import shlex
import string
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from tpi_bench.app.devices import as_typed
from tpi_bench.app.like import kept_texts, texts_of
from tpi_bench.measure.settings import Settings

if TYPE_CHECKING:
    from tpi_bench.measure.household import Household
    from tpi_bench.measure.ways import Way

_COMMAND = ("python", "-m", "tpi_bench", "task=measure")


def commands(
    base: Settings, changes: Mapping[str, Any], household: Household, way: Way
) -> dict[str, str]:
    """By what each does. `base` is what all points have, `changes` what makes the best of it."""
    texts = kept_texts(base, changes)
    listed = as_typed(changes["device"])
    others = [text for text in texts_of(changes) if not text.startswith("device=")]
    again = {"Again in virtual time": shlex.join([*_COMMAND, *texts, listed, *others])}
    real = _real(base, changes, household, way)
    if len(way.team) == 1:
        alone = [*real, "testbed.num_devices=1"]
        return again | {"For real, on that device itself": shlex.join(alone)}
    emulated = [*real, f"testbed.num_devices={len(way.team)}", *_emulated(household)]
    called = [string.ascii_uppercase[device] for device in way.team]
    nodes = ["testbed=cluster", "testbed.address=ADDRESS:6379"]
    nodes += texts_of({"testbed.nodes": called})
    where = f"on the machines themselves ({', '.join(called)} are their addresses; see README)"
    return again | {
        "For real, as processes of one machine, links emulated": shlex.join(emulated),
        f"For real, {where}": shlex.join([*real, *nodes]),
    }


def _real(base: Settings, changes: Mapping[str, Any], household: Household, way: Way) -> list[str]:
    """What real devices are told; they know no profiles."""
    from tpi_bench.measure.ways import proportions_of

    words = [*_COMMAND, *_model(base)]
    words += [text for text in base.overrides if text.startswith("system")]
    chosen = {key: value for key, value in changes.items() if not key.startswith("device")}
    words += [text for text in texts_of(chosen) if text.startswith(("system", "model."))]
    if len(way.team) > 1 and way.shares is not None:
        shares = proportions_of(household, way.team, way.shares)
        words += texts_of({"testbed.proportions": shares})
    if way.setting("window") == "auto":
        memory_mb = [round(household.profiles[device].memory_gb * 1e3) for device in way.team]
        words += texts_of({"device.memory_mb": memory_mb if len(memory_mb) > 1 else memory_mb[0]})
    return words


def _model(base: Settings) -> list[str]:
    """A shape has no weights: they are the user's."""
    if base.raw["model"].get("_target_", "").endswith(".SyntheticModel"):
        return ["model=hf", "model.path=DIR"]
    return [text for text in base.overrides if text.partition("=")[0] in ("model", "model.path")]


def _emulated(household: Household) -> list[str]:
    """A switch with the least way that there is between two of the devices."""
    network = household.network
    found = {"network": "switch", "network.link_latency_ms": network.one_way_ns / 2e6}
    if network.bandwidth_mbps:
        found["network.bandwidth_mbps"] = network.bandwidth_mbps
    return texts_of(found)
