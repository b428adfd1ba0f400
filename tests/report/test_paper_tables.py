"""The table of a sweep as Markdown and LaTeX, as a results folder has it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from tests.report.test_rows import RUN
from tpi_bench.report.folder import ResultsFolder
from tpi_bench.report.rows import Record


def test_a_folder_has_its_table_for_a_text(tmp_path: Path) -> None:
    folder = ResultsFolder(tmp_path)
    folder.create()
    given = {"ttft_s": 0.5, "token_latency_s": 0.25, "token_latency_p99_s": 0.3}
    for number, typed in enumerate(["'prompt=50% of $a|b_c'", "'prompt=d & e'"]):
        run = replace(
            RUN,
            point=str(number),
            started=str(number),
            config_hash=str(number),
            overrides=typed,
            **given,
        )
        folder.save(Record(run=run))
    folder.write_tables()
    head, line, *rows = (tmp_path / "table.md").read_text().splitlines()
    assert head == "| prompt | status | TTFT ms | ms a token | p99 ms | limit ms |"
    assert line == "| --- " * head.count(" | ") + "| --- |"
    assert rows[0].startswith("| 50% of $a\\|b_c | ok | 500 | 250 | 300 |")
    text = (tmp_path / "table.tex").read_text()
    assert all(rule in text for rule in ("\\toprule", "\\midrule", "\\bottomrule"))
    assert "50\\% of \\$a|b\\_c & ok & 500 & 250 & 300 &" in text
    assert "d \\& e & ok" in text


def test_no_point_no_table(tmp_path: Path) -> None:
    folder = ResultsFolder(tmp_path)
    folder.create()
    folder.write_tables()
    assert not (tmp_path / "table.md").exists()
