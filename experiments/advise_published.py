"""What `task=advise` answers beside what others publish: python -m experiments.advise_published
FOLDER, where FOLDER holds the results of each household (`results/advise`).

`published/advise.csv` says which row of ours is the same way of running the same model; the best
that advise found in that folder stands beside both.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tpi_bench.report.advice_text import seconds_text
from tpi_bench.report.folder import read_runs
from tpi_bench.report.names import system_name

if TYPE_CHECKING:
    import pandas as pd

PUBLISHED = Path(__file__).parent / "published" / "advise.csv"


def side_by_side(folder: Path) -> pd.DataFrame:
    """A line for each published speed whose folder is there: theirs, the same way here, the best
    way here. Raises ValueError where none is.
    """
    import pandas as pd

    lines = [
        _line(theirs, same, _asked(folder, theirs["best_folder"])) for theirs, same in pairs(folder)
    ]
    if not lines:
        names = ", ".join(dict.fromkeys(pd.read_csv(PUBLISHED).folder))
        raise ValueError(f"{folder} holds none of {names}; give results/advise")
    return pd.DataFrame(lines)


def pairs(folder: Path) -> Iterator[tuple[dict[Any, Any], Any]]:
    """Each published speed whose folder is there, and the row that is the same way here; None
    where it was not run.
    """
    import pandas as pd

    for theirs in pd.read_csv(PUBLISHED).to_dict("records"):
        if not (folder / str(theirs["folder"]) / "runs.parquet").is_file():
            continue
        good = _asked(folder, theirs["folder"])
        same = good[(good.label == theirs["like_label"]) & (good.weights == theirs["weights"])]
        same = same[same.num_devices == theirs["like_devices"]]
        yield theirs, same.iloc[0] if len(same) else None


def _asked(folder: Path, name: str) -> pd.DataFrame:
    """What was run of the household as it is, with the shorter prompt, from the fastest on."""
    runs = read_runs(folder / name)
    good = runs[(runs.status == "ok") & (runs.experiment == "advise")]
    return good[good.prompt_tokens == good.prompt_tokens.min()].sort_values("token_latency_s")


def _line(theirs: dict[Any, Any], same: Any, free: pd.DataFrame) -> dict[str, str]:
    best, ratio = free.iloc[0], "-"
    if same is not None:
        ratio = f"{same.token_latency_s / theirs['token_latency_s']:.2f}"
    return {
        "who": theirs["who"],
        "model": f"{theirs['model']} {theirs['weights']}",
        "on": theirs["on"],
        "theirs, a token": seconds_text(theirs["token_latency_s"]),
        "the same way here": seconds_text(same.token_latency_s) if same is not None else "not run",
        "of theirs": ratio,
        "TTFT": seconds_text(theirs["ttft_s"]),
        "here": seconds_text(same.ttft_s) if same is not None else "-",
        "best here": seconds_text(best.token_latency_s),
        "which is": f"{system_name(best.to_dict())}, {best.weights}, {best.device}",
    }


def main() -> None:
    if len(sys.argv) != 2:
        print("usage: python -m experiments.advise_published FOLDER", file=sys.stderr)
        sys.exit(2)
    try:
        print(side_by_side(Path(sys.argv[1])).to_string(index=False))
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
