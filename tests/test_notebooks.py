"""Every notebook runs from top to bottom on the embedded ladder."""

from __future__ import annotations

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_a_notebook_runs(path: Path, tmp_path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": tmp_path}}).execute()
    outputs = [o for cell in notebook.cells for o in cell.get("outputs", [])]
    shown = [o["data"].get("text/html", "") for o in outputs if "data" in o]
    assert any("vega" in html for html in shown), "the notebook draws its figures"
    assert not [o for o in outputs if o.output_type == "error"]


def test_committed_notebooks_hold_no_output() -> None:
    """Outputs would go stale and hide what the code does now."""
    assert NOTEBOOKS
    for path in NOTEBOOKS:
        cells = nbformat.read(path, as_version=4).cells
        assert not [c for c in cells if c.get("outputs") or c.get("execution_count")], path.name
