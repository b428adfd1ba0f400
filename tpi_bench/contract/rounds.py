"""A device as a round of its calibration found it. Pure arithmetic.

Runs of the engine in that round took longer than virtual time has for them with its numbers, or
less: by these residuals all numbers are moved, so that the runs come out. What devices do by each
round is an interval of what they will do (`testbed.interval`).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from tpi_bench.contract.device import DeviceProfile

# What the runs took, over what virtual time has: to the first token, for a token from memory, and
# for one through a window.
RESIDUALS = ("prompt_residual", "token_residual", "disk_residual")
_OF_DISK = ("disk_", "paging_", "asking_", "read_")
_OF_PROMPTS = ("_rows_gb_per_s", "_states_gb_per_s", "swept_", "message_gb_per_s", "receive_gb_")


def in_round(profile: DeviceProfile, number: int) -> DeviceProfile:
    """The profile with a round's numbers, moved by its residuals; itself where it has no rounds."""
    if not profile.rounds:
        return profile
    found = dict(profile.rounds[number % len(profile.rounds)])
    missed = {name: found.pop(name, 1.0) for name in RESIDUALS}
    moved: dict[str, Any] = {}
    for name, value in found.items():
        factor = missed.get(_residual_of(name), 1.0)
        moved[name] = value * factor if name.endswith("_us") else value / factor
    return replace(profile, **moved, rounds=())


def _residual_of(name: str) -> str:
    """By which of `RESIDUALS` a number of the profile is moved, if by any."""
    if name.startswith("disk_shared_"):  # a run has had its say there (`measure/residuals.py`)
        return ""
    if name.startswith(_OF_DISK):
        return "disk_residual"
    is_few = "_few_" in name or "_decode_" in name
    if any(part in name for part in _OF_PROMPTS) or (name.endswith("_gflops") and not is_few):
        return "prompt_residual"
    return "token_residual"
