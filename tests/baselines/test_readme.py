"""The example of `baselines/README.md`, as it stands there."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.command_line import ROOT, report_of, run

TEXT = (ROOT / "baselines" / "README.md").read_text()
MINE = re.search(r"`mine\.py`.*?^```python\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)
YAML = re.search(r"`system/mine\.yaml`.*?^```yaml\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)


def written(folder: Path, code: str) -> list[str]:
    """What is typed to run it, once it is written."""
    assert YAML is not None
    (folder / "mine.py").write_text(code)
    (folder / "system").mkdir()
    (folder / "system" / "mine.yaml").write_text(YAML[1])
    return ["--config-dir", ".", "system=mine", "report=json"]


def there(folder: Path) -> dict[str, Any]:
    """Where it is typed; this program is the one beside these tests."""
    return {"cwd": folder, "env": os.environ | {"PYTHONPATH": str(ROOT)}}


def test_its_system_says_what_transformers_says(
    checkpoints: dict[str, Path], cache_dir: Path, tmp_path: Path
) -> None:
    assert MINE is not None
    model = ["model=hf", f"model.path={checkpoints['gqa']}", "workload.prompt_ids=[3,1,4]"]
    more = ["testbed.num_devices=2", "check=true", "workload.num_new_tokens=4"]
    done = run(*written(tmp_path, MINE[1]), *model, *more, cache_dir=cache_dir, **there(tmp_path))
    assert done.returncode == 0, done.stderr
    assert report_of(done)["tokens_equal"] is True


@pytest.mark.parametrize(
    "mode", [pytest.param([], marks=pytest.mark.product), ["-m", "task=measure"]]
)
def test_where_its_error_is_from(mode: list[str], cache_dir: Path, tmp_path: Path) -> None:
    """A slip in it reads as what was typed; so the line says where to look."""
    assert MINE is not None
    wrong = MINE[1].replace("return plans.layer_parallel", 'int("x"); return plans.layer_parallel')
    assert wrong != MINE[1]
    typed = [*written(tmp_path, wrong), "model=debug", "testbed=virtual"]
    typed += ["workload.prompt_ids=[1]", "output_dir=out"]
    done = run(*mode, *typed, cache_dir=cache_dir, **there(tmp_path))
    place = f"({tmp_path / 'mine.py'}:{wrong.partition('int(')[0].count(chr(10)) + 1})"
    assert place in done.stderr
    assert done.returncode == (5 if mode else 2)
