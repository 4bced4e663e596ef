"""Every notebook runs from top to bottom on the embedded ladder."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_a_notebook_runs(path: Path, tmp_path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    if path.stem.startswith("05") and not (ROOT / "results" / "referee").exists():
        stand_in_for_the_arm(tmp_path / "runs" / "referee")
    NotebookClient(notebook, timeout=600, resources={"metadata": {"path": tmp_path}}).execute()
    cells = notebook.cells
    drawn = [i for i, cell in enumerate(cells) if any(map(is_figure, cell.get("outputs", [])))]
    assert drawn, "the notebook draws its figures"
    html = [
        o["data"].get("text/html", "") for c in cells for o in c.get("outputs", []) if "data" in o
    ]
    assert not any("<script" in text for text in html), "shown by a script, perhaps from a network"
    if "interp.load(" in cells[1].source:
        warned = [
            o["text"] for c in cells for o in c.get("outputs", []) if o.get("name") == "stderr"
        ]
        assert not any("IProgress" in text for text in warned), "a warning greets the reader"
    for i in drawn:
        assert cells[i + 1].source.startswith("**Reading.**"), f"cell {i} draws a figure unread"


def stand_in_for_the_arm(folder: Path) -> None:
    """A finished study of planted numbers, until there is one that was measured."""
    sys.path.append(str(ROOT / "tests" / "interp"))
    import arm_run

    arm_run.write_run(folder, arm_run.summary(arm_run.decay_packs, arm_run.loss_follows))


def is_figure(output: Any) -> bool:
    """A picture that needs nothing from the network to be seen."""
    data = output.get("data", {})
    return "image/svg+xml" in data or "image/png" in data or "<img" in data.get("text/html", "")


def test_committed_notebooks_hold_no_output() -> None:
    """Outputs would go stale and hide what the code does now."""
    assert NOTEBOOKS
    for path in NOTEBOOKS:
        cells = nbformat.read(path, as_version=4).cells
        assert not [c for c in cells if c.get("outputs") or c.get("execution_count")], path.name
