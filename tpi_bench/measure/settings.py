"""The settings of one point, checked, and what makes it another. `app/compose.py` builds them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote

from tpi_bench.contract.device import DeviceProfile, ProfileSource
from tpi_bench.contract.model import ModelSource
from tpi_bench.contract.network import NetworkConfig
from tpi_bench.contract.request import Workload
from tpi_bench.contract.system import System
from tpi_bench.contract.testbed import Testbed
from tpi_bench.host import cache

# Settings that say how to run and show a point, not what it is.
_NOT_PART_OF_A_POINT = (
    "task",
    "report",
    "resume",
    "results_dir",
    "cache_dir",
    "figure",
    "oracle",
    "prompt",
    "timeout_s",
    "wait",
    "verbosity",
    "progress",
    "output_dir",
)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """One point, checked. `raw` is the plain config it was made from."""

    task: str
    name: str
    report: str
    results_dir: str
    cache_dir: str | None
    figure: str | None
    repeat: int
    check: bool
    system: System
    oracle: System
    model: ModelSource
    testbed: Testbed
    profiles: tuple[ProfileSource, ...]
    memory_mb: float | list[float] | None
    cache: str
    timeout_s: float | None
    network: NetworkConfig
    workload: Workload
    wait: bool | float
    raw: dict[str, Any]
    draft: ModelSource | None = None  # `workload.draft_model`
    overrides: tuple[str, ...] = ()  # as typed or swept

    @property
    def num_devices(self) -> int:
        """Devices of this point: single-process systems use one whatever the testbed offers."""
        offered = self.testbed.num_devices or len(self.profiles)
        return min(offered, self.system.max_devices or offered)

    def shares(self, profiles: Sequence[DeviceProfile]) -> list[float]:
        """The proportions that a plan divides by. Raises ValueError when they make no sense."""
        proportions = self.testbed.proportions
        if self.num_devices == 1:
            return [1.0]
        if isinstance(proportions, str):  # strength
            return [profile.strength for profile in profiles]
        return check_proportions(self.num_devices, proportions)

    @property
    def memory_bytes(self) -> tuple[int, ...] | None:
        """The cap of each device. Raises ValueError when a list has another length."""
        if self.memory_mb is None:
            return None
        each = self.memory_mb
        if not isinstance(each, list):
            each = [each] * self.num_devices
        if len(each) != self.num_devices:
            raise ValueError(
                f"device.memory_mb={each} names {len(each)} devices, but there are "
                f"{self.num_devices}; give one number for all, or one for each"
            )
        return tuple(round(megabytes * 1e6) for megabytes in each)

    @property
    def own_overrides(self) -> list[str]:
        """What was typed or swept for the point, without how it is run and shown."""
        aside = {*_NOT_PART_OF_A_POINT} - {"prompt", "oracle", "timeout_s"}
        own = [text for text in self.overrides if text.partition("=")[0] not in aside]
        return [unquote(text) if text.startswith("device=") else text for text in own]

    @property
    def config_hash(self) -> str:
        """Names the configuration; equal for points that measure the same, whatever the repeat
        and the experiment's name.
        """
        apart = ("repeat", "name")
        return cache.digest({k: v for k, v in self._relevant().items() if k not in apart})

    @property
    def point(self) -> str:
        """Names the point. One device has no links: it is one point at every latency of them."""
        return cache.digest(self._relevant())

    def _relevant(self) -> dict[str, Any]:
        """The config without names of classes, so that moving code changes no point."""
        ignored = (*_NOT_PART_OF_A_POINT, *self.testbed.ignores)
        relevant = {k: _without_targets(v) for k, v in self.raw.items() if k not in ignored}
        if not relevant["network"].get("tls"):  # younger than many rows, which had none
            relevant["network"].pop("tls", None)
        if self.num_devices == 1:
            del relevant["network"]
        if self.system.max_devices == 1:
            testbed = relevant["testbed"].items()
            others = {k: v for k, v in testbed if k not in ("num_devices", "proportions")}
            relevant["testbed"] = others
        return relevant


def _without_targets(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _without_targets(v) for k, v in value.items() if k != "_target_"}
    return [_without_targets(item) for item in value] if isinstance(value, list) else value


def check_proportions(num_devices: int, proportions: Sequence[float] | None) -> list[float]:
    """The proportions in force: equal ones, or the given ones once they are known to make sense."""
    if proportions is None:
        return [1.0] * num_devices
    if len(proportions) != num_devices or any(not p > 0 for p in proportions):
        given, even = (
            ",".join(f"{p:g}" for p in each) for each in (proportions, [1] * num_devices)
        )
        raise ValueError(
            f"testbed.proportions=[{given}] must hold {num_devices} positive numbers, one a "
            f"device, as [{even}] (testbed.num_devices={num_devices})"
        )
    return [float(p) for p in proportions]
