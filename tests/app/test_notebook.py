"""A notebook: cells in a real Jupyter kernel."""

from __future__ import annotations

from pathlib import Path

import nbformat
from nbclient import NotebookClient

from tests.helpers.command_line import ROOT

CELLS = [
    f"import sys; sys.path.insert(0, {str(ROOT)!r}); from tpi_bench import run, sweep",
    """answer = run("model=debug", "workload.prompt_ids=[1,2]", "workload.num_new_tokens=3",
             "testbed.num_devices=2", "cache_dir={cache_dir}")
answer.status, len(answer.tokens), len(answer.devices)""",
    """results = sweep("testbed=virtual", "model=debug", "workload.prompt_tokens=4",
                "workload.num_new_tokens=2", "system=tpi,pipeline", "cache_dir={cache_dir}")
results.runs[["system", "status"]]""",
]


def test_cells_in_a_kernel(tmp_path: Path, cache_dir: Path) -> None:
    cells = [cell.replace("{cache_dir}", str(cache_dir)) for cell in CELLS]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(c) for c in cells])
    resources = {"metadata": {"path": str(tmp_path)}}
    NotebookClient(notebook, timeout=100, kernel_name="python3", resources=resources).execute()
    outputs = [cell.outputs for cell in notebook.cells]
    assert outputs[0] == []
    (answer,) = outputs[1]
    assert answer.data["text/plain"] == "('ok', 3, 2)"
    shown = [output for output in outputs[2] if output.output_type == "execute_result"]
    assert shown[0].data["text/plain"].count("ok") == 2
    assert {output.name for output in outputs[2] if output.output_type == "stream"} == {"stderr"}
    assert list((tmp_path / "results" / "runs").iterdir())
