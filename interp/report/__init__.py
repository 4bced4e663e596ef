"""Results of a run -> figures and one self-contained page.

Pure: reads the files of a finished run folder and draws; it never sees a model.
"""

from pathlib import Path
from typing import Any

__all__ = ["headline", "write_report"]


def write_report(run_dir: Path) -> Path:
    """Draw `figures/*.png|svg` and `report.html` in `run_dir`; returns the page's path.

    Raises `UserError` if the folder holds no readable `summary.json`.
    """
    # Late: altair and vl-convert take a second to import, and the command line must not.
    from interp.report.page import write_report as write

    return write(run_dir)


def headline(summary: dict[str, Any]) -> str:
    """The answer in one sentence, generated from the numbers in `summary.json`."""
    from interp.report.answering import answer
    from interp.report.reading import read_summary

    return answer(read_summary(summary)).first
