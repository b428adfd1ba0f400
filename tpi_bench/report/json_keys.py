"""The keys of the objects that `report=json` prints, with units and meanings.

`columns.py` writes them into `results/README.md`; tests hold the program to them.
"""

from __future__ import annotations

from collections.abc import Sequence

# Of every object.
COMMON = {
    "status": "`ok`; else what went wrong: `oom`, `timeout`, `device_lost`, `error`",
    "exit_reason": "the exit status in words: `ok`, `error`, `usage`, `out_of_memory`, `timeout`, "
    "`points_failed`, `stopped`; `busy` where another run has the host or the folder; of "
    "task=compare `slower`, or `missing` where b lacks a point and none is slower, or `undecided`",
    "text": "what was generated; null where the model has no tokenizer",
    "results": "the folder with the rows; null where none were kept",
    "error": "one line, as on standard error; absent where all went well",
}
# Of one point: task=generate, and task=measure without -m.
POINT = {
    "token_ids": "of the answer",
    "ttft_s": "from the request to the first token, in s",
    "token_latencies_s": "each later token after the one before, in s",
    "devices": "of each, the master first: `rank`, `peak_anon_bytes`, `peak_file_bytes`, "
    "`weight_bytes_read`, as in the table of devices",
    "link_round_trip_s": "measured between master and first worker, in s",
    "limit_token_s": "no token can be faster by what was measured of memory, links and disk, in s",
    "tokens_equal": "with check=true: whether the oracle has the same tokens",
    "max_logit_diff": "with check=true: the largest difference from the oracle's logits",
    "num_passes": "with speculation: passes over the layers",
    "num_proposed": "with speculation: tokens drafted",
    "num_accepted": "with speculation: drafted tokens that were right",
    "overrides": "with -m and a task that keeps no rows, an object a point: what it is of",
}
# Of a sweep: -m task=measure, or an experiment.
SWEEP = {
    "points": "rows that were written",
    "ok": "points with an answer",
    "oom": "points that did not fit",
    "timeout": "points that took longer than timeout_s",
    "failed": "points that are not ok",
    "left_out": "points whose settings do not go together; not among `points`",
}


def counts_of(statuses: Sequence[str], num_left_out: int = 0) -> dict[str, int]:
    """The keys of a sweep whose rows have these statuses; of none, one that has not begun."""
    num_ok = statuses.count("ok")
    return {
        "points": len(statuses),
        "ok": num_ok,
        "oom": statuses.count("oom"),
        "timeout": statuses.count("timeout"),
        "failed": len(statuses) - num_ok,
        "left_out": num_left_out,
    }


def markdown() -> str:
    """All of them as Markdown."""
    titles = {
        "every object": COMMON,
        "one point (`task=generate`, `task=measure`)": POINT,
        "a sweep (`-m task=measure`, or an experiment)": SWEEP,
    }
    lines = []
    for title, keys in titles.items():
        lines += [f"**{title}**", "", "| key | meaning |", "|---|---|"]
        lines += [f"| `{key}` | {meaning} |" for key, meaning in keys.items()]
        lines.append("")
    return "\n".join(lines)
