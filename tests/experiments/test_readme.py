"""What experiments/README.md tells to type: spans are kept, and columns say what they mean."""

from __future__ import annotations

import contextlib
import io
import re
import shlex
from pathlib import Path

import pandas as pd

from tests.helpers.command_line import ROOT, run
from tpi_bench.report.columns import columns_of

README = (ROOT / "experiments" / "README.md").read_text()
COMMANDS = re.findall(r"```\n(python .*?)\n```", README)


def test_what_is_typed_keeps_spans_and_tells_of_columns(cache_dir: Path, tmp_path: Path) -> None:
    told, measured = (shlex.split(command) for command in COMMANDS)
    assert measured[:3] == ["python", "-m", "tpi_bench"]
    done = run(*measured[3:], f"results_dir={tmp_path}", cache_dir=cache_dir)
    assert done.returncode == 0, done.stderr
    (table,) = tmp_path.rglob("spans.parquet")
    spans = pd.read_parquet(table)
    assert list(spans) == [column.name for column in columns_of("spans")]
    assert set(spans["rank"]) == {0, 1}
    assert (spans.end_ns >= spans.start_ns).all()

    assert told[:2] == ["python", "-c"]
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        exec(told[2].replace("FOLDER", str(table.parent)), {})
    lines = {line.split()[0]: line for line in out.getvalue().strip().split("\n")}
    for column in columns_of("runs", ()):
        assert column.meaning in lines[column.name].replace("\\'", "'")
