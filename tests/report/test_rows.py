"""Columns are declared once: records have all of them and no other, tables carry their meaning."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pyarrow.parquet as parquet
import pytest

from tests.helpers.command_line import sweep
from tpi_bench.report import columns, json_keys
from tpi_bench.report.columns import TABLES, columns_of
from tpi_bench.report.failure import error_report
from tpi_bench.report.folder import ResultsFolder, read_runs, tables_of
from tpi_bench.report.rows import (
    PARTS,
    DeviceRow,
    Record,
    Row,
    RunRow,
    SpanRow,
    Speed,
    TokenRow,
)
from tpi_bench.report.text import run_report

SETTINGS = {"window": "2", "collective": "star"}
RUN = replace(
    RunRow.of(), point="a", started="1", system_settings=SETTINGS, status="ok", num_devices=2
)


def test_every_column_has_a_meaning_of_its_own() -> None:
    for table in TABLES:
        found = columns_of(table)
        assert len({column.name for column in found}) == len(found) > 4
        for column in found:
            assert column.meaning
            ending = column.name.rpartition("_")[2]
            unit = {"s": "s", "bytes": "bytes", "bps": "bytes/s", "ms": "ms", "ns": "ns"}
            assert column.unit == unit.get(ending, column.unit), column.name


def test_a_part_that_lacks_or_adds_a_column_is_no_part() -> None:
    cells = vars(Speed.unmeasured())
    with pytest.raises(TypeError, match="ttft_s"):
        Speed(**{name: value for name, value in cells.items() if name != "ttft_s"})
    with pytest.raises(TypeError, match="tokens_per_day"):
        Speed(**cells, tokens_per_day=7.0)


def test_the_run_row_is_its_parts_in_order() -> None:
    names = [name for part in PARTS for name in vars(part.unmeasured())]
    assert names == list(vars(RUN))
    assert set(RunRow.__mro__) >= {*PARTS, Row}


def test_cells_and_back() -> None:
    cells = RUN.cells()
    assert cells["system_window"] == "2"
    assert "system_settings" not in cells
    again = RunRow.from_cells(cells)
    assert again.system_settings == SETTINGS
    assert repr(again) == repr(RUN)
    old = {name: value for name, value in cells.items() if name != "note"}
    assert RunRow.from_cells(old | {"given_up": 1}).note is None
    assert TokenRow.from_cells({"token_index": 3}).token_index == 3


def records() -> list[Record]:
    token = TokenRow(**(vars(TokenRow.unmeasured()) | {"token_index": 0, "token_id": 5}))
    device = DeviceRow(**(vars(DeviceRow.unmeasured()) | {"rank": 0, "pid": 7}))
    failed = replace(RUN, point="b", started="2", status="oom", system_settings={"mmap": "True"})
    checked = replace(RUN, point="c", started="3", tokens_equal=True, num_same_tokens=3)
    return [
        Record(run=RUN, tokens=[token], devices=[device], config={"name": "x"}),
        Record(run=failed),
        Record(run=checked),
    ]


def test_tables_have_the_declared_columns_types_and_meanings(tmp_path: Path) -> None:
    folder = ResultsFolder(tmp_path)
    folder.create()
    for record in records():
        folder.save(record)
    folder.write_tables()
    assert not (tmp_path / "spans.parquet").exists()
    for name in ("runs", "tokens", "devices"):
        schema = parquet.read_schema(tmp_path / f"{name}.parquet")
        settings = ["window", "collective", "mmap"] if name == "runs" else []
        declared = columns_of(name, settings)
        assert schema.names == [column.name for column in declared]
        for field, column in zip(schema, declared, strict=True):
            assert field.metadata[b"unit"].decode() == column.unit
            assert field.metadata[b"meaning"].decode() == column.meaning
    runs = read_runs(tmp_path)
    assert runs.point.tolist() == ["a", "b", "c"]
    assert runs.system_mmap.tolist()[1] == "True"
    assert runs.tokens_equal.notna().tolist() == [False, False, True]
    assert runs.ttft_s.isna().all()
    text = (tmp_path / "runs.csv").read_text().split("\n")[3]
    assert ",True,3," in text  # a whole number beside empty cells stays one
    assert pd.read_csv(tmp_path / "runs.csv").columns.tolist() == runs.columns.tolist()


def test_records_come_back_as_they_were_saved(tmp_path: Path) -> None:
    folder = ResultsFolder(tmp_path)
    folder.create()
    for record in records():
        folder.save(record)
    assert repr(folder.records()) == repr(records())
    assert folder.done("a")
    assert folder.done("b")  # out of memory, which is an answer
    assert not folder.done("d")


@pytest.mark.parametrize(
    ("changes", "bound_s", "is_done"),
    [
        ({"status": "error"}, None, False),
        ({"status": "device_lost"}, None, False),
        ({"status": "timeout", "wall_s": 9.0, "timeout_s": 8.0}, 8.0, True),
        ({"status": "timeout", "wall_s": 9.0, "timeout_s": 8.0}, 5.0, True),
        ({"status": "timeout", "wall_s": 9.0, "timeout_s": 8.0}, 20.0, False),
        ({"status": "timeout", "wall_s": 9.0, "timeout_s": 8.0}, None, False),
        ({"status": "timeout", "wall_s": 9.0, "timeout_s": math.nan}, 5.0, False),
    ],
)
def test_what_is_run_again(
    changes: dict, bound_s: float | None, is_done: bool, tmp_path: Path
) -> None:
    """What failed, and what may take longer now than it did."""
    folder = ResultsFolder(tmp_path)
    folder.create()
    folder.save(Record(run=replace(RUN, **changes)))
    assert (folder.done("a", bound_s) is not None) is is_done


def test_spans_are_a_table_where_there_are_any() -> None:
    span = SpanRow(
        rank=1,
        kind="compute",
        key="attn",
        start_ns=1,
        end_ns=1 << 60,
        cpu_ns=1 << 59,
        core_wait_ns=None,
    )
    table = tables_of([Record(run=RUN, spans=[span])])["spans"]
    assert table.to_pylist() == [{"point": "a"} | vars(span)]


def test_a_measured_record_has_the_declared_columns(cache_dir: Path, tmp_path: Path) -> None:
    """One of each testbed, one that fails, one checked and traced: as written by the program."""
    folder = sweep(
        "model=debug",
        "workload.prompt_ids=[1,2,3]",
        "workload.num_new_tokens=3",
        "testbed=processes,virtual",
        "testbed.num_devices=2",
        "testbed.trace=true",
        "system=tpi,pipeline",
        cache_dir=cache_dir,
        tmp_path=tmp_path,
    )
    paths = list((folder / "points").glob("*.json"))
    assert len(paths) == 4
    for path in paths:
        written = json.loads(path.read_text())
        own = [k for k in written["run"] if k.startswith("system_")]
        declared = [c.name for c in columns_of("runs", [k.removeprefix("system_") for k in own])]
        assert list(written["run"]) == declared
        for table in ("tokens", "devices", "spans"):
            assert written[table]
            for row in written[table]:
                assert ["point", *row] == [column.name for column in columns_of(table)]
        assert written["run"]["status"] == "ok"
        assert written["run"]["label"] in ("TPI star", "pipeline")
        assert math.isfinite(written["run"]["limit_token_s"])


def test_the_list_in_the_readme_is_the_declared_one() -> None:
    """Written by `python -m tpi_bench.report.columns`."""
    text = columns.README.read_text()
    assert columns.with_columns(text) == text
    assert columns.markdown() in text
    assert json_keys.markdown() in text


def test_the_keys_of_json_are_those_that_are_told() -> None:
    """Of a point with everything that a point may have."""
    whole = replace(RUN, tokens_equal=True, max_logit_diff=0.0, num_proposed=1, error="lost")
    report = run_report(Record(run=whole), "error")
    assert report.keys() == (json_keys.COMMON | json_keys.POINT).keys() - {"overrides"}
    assert error_report("no", "usage").keys() <= report.keys()


@pytest.mark.parametrize(
    ("changes", "is_answer"),
    [
        ({"status": "ok"}, True),
        ({"status": "oom"}, True),
        ({"status": "error"}, False),
        ({"status": "timeout", "wall_s": 9.0, "timeout_s": 8.0}, True),
        ({"status": "timeout", "wall_s": 9.0, "timeout_s": math.nan}, False),
    ],
)
def test_what_answers_the_question(changes: dict, is_answer: bool) -> None:
    assert replace(RUN, **changes).is_answer is is_answer


@pytest.mark.parametrize(
    ("changes", "differs"),
    [
        ({}, True),
        ({"weights": "q8"}, True),
        ({"weights": "q8", "is_library": True}, False),
        ({"system_settings": {"wire": "auto"}}, True),
        ({"system_settings": {"wire": "q8"}}, False),
        ({"dtype": "bfloat16"}, False),
        ({"tokens_equal": True}, False),
        ({"tokens_equal": None}, False),
        ({"status": "oom", "tokens_equal": None}, False),
    ],
)
def test_who_is_judged_by_the_oracle(changes: dict, differs: bool) -> None:
    """What computes in fp32, whatever it holds; what was not checked, or failed, is not."""
    judged = replace(
        RUN, dtype="float32", weights="float32", status="ok", tokens_equal=False, is_library=False
    )
    assert replace(judged, **changes).differs_from_oracle is differs


def test_columns_do_not_depend_on_who_began_first() -> None:
    """Points side by side begin in any order."""
    kinds = {"a": {"x": "1", "y": "2"}, "b": {"z": "3", "x": "4"}}
    records = [Record(run=replace(RUN, system=s, system_settings=k)) for s, k in kinds.items()]
    one, two = (tables_of(order)["runs"].column_names for order in (records, records[::-1]))
    assert one == two
    assert [name for name in one if name in ("system_x", "system_y", "system_z")] == [
        "system_x",
        "system_y",
        "system_z",
    ]
