"""`from tpi_bench import run, sweep, load`: in this process, in scripts, and light to import."""

from __future__ import annotations

import json
import logging
import math
import os
import shutil
import subprocess
import sys
import textwrap
from dataclasses import FrozenInstanceError, replace
from pathlib import Path
from typing import Any

import hydra
import pandas as pd
import pytest
from hydra.core.global_hydra import GlobalHydra
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from tests.helpers.command_line import ROOT
from tests.helpers.models_zoo import oracle
from tpi_bench import Result, Results, load, run, sweep
from tpi_bench.report.columns import columns_of

MODELLED = ("testbed=virtual", "model=debug", "workload.prompt_tokens=8")
TOKENS = "workload.num_new_tokens=4"


def test_run_gives_typed_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = run(*MODELLED, TOKENS, "testbed.num_devices=2", "testbed.trace=true")
    assert isinstance(result, Result)
    assert result.status == "ok"
    assert result.row.num_devices == 2
    assert 0 < result.row.token_latency_s < result.row.ttft_s
    assert [token.token_index for token in result.tokens] == [0, 1, 2, 3]
    assert [device.rank for device in result.devices] == [0, 1]
    assert {"compute", "sync"} <= {span.kind for span in result.spans}
    assert result.text is None  # modelled tokens mean nothing
    assert "token latency" in str(result)
    tokens = result.table("tokens")
    assert tokens.gap_s.tolist() == [token.gap_s for token in result.tokens]
    with pytest.raises(ValueError, match="no table nope; choose one of runs, tokens, devices"):
        result.table("nope")
    assert not list(tmp_path.iterdir())  # nothing is written


def test_a_table_of_nothing_has_its_columns() -> None:
    result, stored = run(*MODELLED, TOKENS), load(ROOT / "results" / "fig_latency")
    for name in ("spans", "links"):
        declared = [column.name for column in columns_of(name)]
        for table in (result.table(name), stored.table(name)):
            assert table.empty
            assert list(table) == declared
    assert stored.spans.groupby("kind").end_ns.max().empty


def test_what_was_measured_is_not_changed_by_accident() -> None:
    """Rows of a point that was run, and of results that were stored; another value is another."""
    result, stored = run(*MODELLED, TOKENS, "testbed.trace=true"), load(ROOT / "results/fig_token")
    parts = [result, result.record, stored]
    rows = [result.row, result.tokens[0], result.devices[0], result.spans[0], stored.rows[0]]
    for each in [*parts, *rows, *stored.device_rows(stored.rows[0])]:
        name = next(iter(vars(each)))
        with pytest.raises(FrozenInstanceError):
            setattr(each, name, None)
    assert replace(result.row, repeat=7).repeat == 7
    assert result.row.repeat == 0


def test_run_answers_with_the_real_tokens(checkpoints: dict[str, Path], cache_dir: Path) -> None:
    folder = checkpoints["gqa"]
    pieces: list[str] = []
    result = run(
        "model=hf",
        f"model.path={folder}",
        "workload.prompt_ids=[1,2,3]",
        "workload.num_new_tokens=6",
        f"cache_dir={cache_dir}",
        on_text=pieces.append,
    )
    expected = oracle(folder, (1, 2, 3), 6)[0]
    assert result.token_ids == expected
    assert "".join(pieces).split() == [str(token) for token in expected]


def test_text_is_what_is_streamed(
    checkpoints: dict[str, Path], tmp_path: Path, cache_dir: Path
) -> None:
    folder = shutil.copytree(checkpoints["tied"], tmp_path / "model")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(["abc"], trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    pieces: list[str] = []
    asked = [
        *("model=hf", f"model.path={folder}", "prompt=It's abc, isn't it? a=b ${x}"),
        *("workload.chat=false", "workload.num_new_tokens=8", "testbed.num_devices=1"),
        f"cache_dir={cache_dir}",
    ]
    result = run(*asked, on_text=pieces.append)
    assert result.text
    assert result.text == "".join(pieces)
    assert result.is_cut
    said = "the answer is cut at workload.num_new_tokens=8; give more for a longer one"
    assert said in str(result)
    ends = json.dumps({"eos_token_id": result.token_ids[-1]})
    other = shutil.copytree(folder, tmp_path / "ending")
    (other / "generation_config.json").write_text(ends)
    ended = run(*asked, f"model.path={other}")
    assert ended.token_ids[-1] == result.token_ids[-1]
    assert not ended.is_cut
    assert "the answer is cut" not in str(ended)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["system=nope"], "there is no system=nope; "),
        (["system.windw=3"], "there is no system.windw; did you mean system.window?"),
        (["testbed.num_devices=0"], "testbed.num_devices=0 must be at least 1"),
        (["task=calibrate"], "task=calibrate is no single point"),
        (["system=tpi,pipeline"], "system=tpi,pipeline names several values; run() takes one"),
        (["device=a(4,8,20,0.5),this_host"], "device=a(4,8,20,0.5),this_host names several"),
        (["no value"], "'no value' is no KEY=VALUE"),
        (["-m"], "-m is an option of the command line; give KEY=VALUE"),
        (["--config-dir", "own"], "--config-dir is an option of the command line; give KEY=VALUE"),
        (["testbed.num_devices=7"], "more than the model's 6 attention heads"),
    ],
)
def test_what_cannot_be_run_is_a_value_error_of_one_line(arguments: list[str], words: str) -> None:
    with pytest.raises(ValueError, match=r"^[^\n]*$") as caught:
        run(*MODELLED, *arguments)
    assert words in str(caught.value)


def test_settings_are_text() -> None:
    with pytest.raises(ValueError, match=r"\['system=tpi'\] is no text; give settings as they"):
        run(["system=tpi"])  # type: ignore[arg-type]


def test_a_device_that_fails_is_a_result() -> None:
    result = run(*MODELLED, TOKENS, "testbed.num_devices=2", "testbed.fail_rank=1")
    assert result.status == "device_lost"
    assert result.row.error in str(result)
    assert result.tokens == []


def test_sweep_and_load(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A failed point is a row; nothing of the caller's is changed."""
    monkeypatch.chdir(tmp_path)
    argv, root, handlers = list(sys.argv), logging.getLogger(), list(logging.getLogger().handlers)
    with hydra.initialize_config_dir(str(tmp_path), version_base="1.3"):
        own = GlobalHydra.instance().hydra
        results = sweep(*MODELLED, TOKENS, "system=tpi,pipeline", "testbed.num_devices=2,9")
        assert GlobalHydra.instance().hydra is own
    assert (sys.argv, root.handlers) == (argv, handlers)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "pipeline" in captured.err
    assert isinstance(results, Results)
    assert results.folder.parent == Path("results/runs/measure")
    assert len(results) == 4
    assert results.table("devices").equals(results.devices)
    assert sorted(results.runs.system) == ["pipeline", "pipeline", "tpi", "tpi"]
    assert {row.num_devices for row in results.failed} == {9}
    good = next(row for row in results.rows if row.status == "ok")
    assert [token.token_index for token in results.token_rows(good)] == [0, 1, 2, 3]
    assert [device.rank for device in results.device_rows(good)] == [0, 1]
    pd.testing.assert_frame_equal(load(results.folder).runs, results.runs)


def test_a_sweep_is_resumed(tmp_path: Path) -> None:
    first = sweep(*MODELLED, TOKENS, "testbed.num_devices=1,2", f"results_dir={tmp_path}")
    kept, removed = sorted((first.folder / "points").glob("*.json"))
    removed.unlink()
    before = kept.stat().st_mtime_ns
    again = sweep("-m", f"resume={first.folder}", show=False)
    assert again.folder == first.folder
    assert removed.exists()
    assert kept.stat().st_mtime_ns == before
    assert len(again) == 2


def test_a_sweep_that_cannot_be_is_a_value_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ValueError, match="must be at least 1"):
        sweep(*MODELLED, "testbed.num_devices=0,1", f"results_dir={tmp_path}", show=False)
    with pytest.raises(ValueError, match="give task=measure"):
        sweep(*MODELLED, TOKENS, "task=generate", f"results_dir={tmp_path}", show=False)
    with pytest.raises(ValueError, match="holds no results"):
        load(tmp_path)
    assert capsys.readouterr() == ("", "")


def test_a_finished_folder_is_loaded_from_its_tables() -> None:
    """As reference runs are kept: tables, and no record a point."""
    results = load(ROOT / "results" / "fig_latency")
    assert len(results) == len(results.runs) > 100
    row = next(row for row in results.rows if row.status == "ok")
    assert row.label == "TPI star"
    assert math.isnan(row.memory_mb)
    assert row.system_settings["collective"]
    assert results.device_rows(row)


SCRIPT = """
from tpi_bench import run, sweep
print("begins")
result = run("model=debug", "workload.prompt_ids=[1,2]", "workload.num_new_tokens=2", {cache!r})
print(result.status, len(result.devices))
"""
SWEEP = """
results = sweep("testbed=virtual", "model=debug", "workload.prompt_tokens=4", {cache!r},
                "workload.num_new_tokens=2", "testbed.num_devices=1,2", show=False)
print(list(results.runs.status))
"""


@pytest.mark.parametrize(
    "is_script",
    [True, pytest.param(False, marks=pytest.mark.product)],
    ids=["script", "standard input"],
)
def test_works_without_a_guard(tmp_path: Path, cache_dir: Path, is_script: bool) -> None:
    """Devices must not run the script once more, nor look for a file called <stdin>.

    Nor must the process of modelled runs, which is started as they are.
    """
    text = (SCRIPT + SWEEP * is_script).format(cache=f"cache_dir={cache_dir}")
    script = tmp_path / "script.py"
    script.write_text(text)
    done = subprocess.run(
        [sys.executable, str(script) if is_script else "-"],
        input=None if is_script else text,
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "begins\nok 2\n" + "['ok', 'ok']\n" * is_script
    assert done.stderr == ""


def test_a_system_of_the_script_itself_is_refused(tmp_path: Path) -> None:
    """Devices cannot import it."""
    with pytest.raises(ValueError, match="stands in the program itself, which devices do not load"):
        run(*MODELLED, TOKENS, "system._target_=__main__.Mine")


def test_the_example_that_is_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """That of `experiments/README.md`, as it stands there but for smaller models."""
    text = (ROOT / "experiments" / "README.md").read_text()
    blocks = [part.partition("```")[0] for part in text.split("```python\n")[1:]]
    (example,) = (textwrap.dedent(block) for block in blocks if "sweep(" in block)
    smaller = {
        '"prompt=Name three colours."': '"model=debug", "workload.prompt_ids=[1]", "repeat=1"',
        '"model=llama2_70b"': '"model=debug", "workload.num_new_tokens=2"',
        "num_devices=6,8": "num_devices=2,3",
        "results/fig_latency": str(ROOT / "results" / "fig_latency"),
    }
    for shown, used in smaller.items():
        assert shown in example
        example = example.replace(shown, used)
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(example, names)
    assert names["result"].row.repeat == 1
    assert names["results"].runs.weights.unique().tolist() == ["q4"]


def test_the_import_is_light() -> None:
    code = (
        "import sys, tpi_bench; assert 'sweep' in dir(tpi_bench); "
        "print(*sorted({'torch', 'hydra', 'pandas', 'numpy'} & sys.modules.keys())); "
        f"print(len(tpi_bench.load({str(ROOT / 'results' / 'fig_latency')!r}).runs) > 1); "
        "print(*sorted({'torch', 'hydra', 'transformers'} & sys.modules.keys()))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True
    )
    assert done.stdout == "\nTrue\n\n"
