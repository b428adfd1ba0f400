"""The JSON object of what could not be run. Light: a stop may come before anything is imported."""

from __future__ import annotations

from typing import Any


def error_report(message: str, exit_reason: str, *, is_point: bool = True) -> dict[str, Any]:
    """The same object when nothing could be run; of several points, without the keys of one."""
    point: dict[str, Any] = {
        "token_ids": [],
        "ttft_s": None,
        "token_latencies_s": [],
        "devices": [],
        "link_round_trip_s": None,
    }
    return {
        "status": {"out_of_memory": "oom", "timeout": "timeout"}.get(exit_reason, "error"),
        "exit_reason": exit_reason,
        "text": None,
        "results": None,
        **(point if is_point else {}),
        "error": message,
    }
