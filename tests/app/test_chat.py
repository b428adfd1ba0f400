"""`task=chat` as one types it: lines in, answers out, and what scripts are told."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from tests.helpers.command_line import ROOT, run
from tests.helpers.models_zoo import oracle


def test_lines_in_and_answers_out(checkpoints: dict[str, Path], cache_dir: Path) -> None:
    """A model without a tokenizer is talked with in token ids; `prompt=` is the first turn."""
    folder = checkpoints["gqa"]
    done = subprocess.run(
        [
            *(sys.executable, "-m", "tpi_bench", "task=chat", "report=json", "prompt=1 2 3"),
            *("model=hf", f"model.path={folder}", "workload.num_new_tokens=5", "system=pipeline"),
            f"cache_dir={cache_dir}",
        ],
        input="\nhello\n4 5\n",
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    first, second = report["turns"]
    assert first["token_ids"] == oracle(folder, (1, 2, 3), 5)[0]
    whole = (1, 2, 3, *first["token_ids"], 4, 5)
    assert second["token_ids"] == oracle(folder, whole, 5)[0]
    assert (second["prompt"], second["num_fed"], second["num_cached"]) == ("4 5", 3, 7)
    assert len(second["token_latencies_s"]) == 4
    assert first["is_cut"]  # this model ends nothing
    assert second["is_cut"]
    assert (report["status"], report["exit_reason"]) == ("ok", "ok")
    assert report["text"] == second["text"] == " ".join(map(str, second["token_ids"]))
    assert "error: model=" in done.stderr  # hello is no token id; the conversation goes on
    assert "has no tokenizer, so a turn is token ids" in done.stderr
    assert "Ctrl-D ends (Ctrl-C too, amid an answer)" in done.stderr


def test_a_first_turn_that_cannot_be_is_refused_before_anything_is_made(
    checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    folder = checkpoints["gqa"]
    done = run(
        "task=chat", "prompt=hello", "model=hf", f"model.path={folder}", cache_dir=tmp_path / "new"
    )
    assert done.returncode == 2
    assert "has no tokenizer, so a turn is token ids of 0 to" in done.stderr
    assert not list((tmp_path / "new").rglob("*.safetensors"))  # as its blocks are
