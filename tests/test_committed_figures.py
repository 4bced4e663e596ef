"""The figures that are committed are what today's code draws from the committed numbers."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from interp.bridge_figures import bridge_figures
from interp.calibrate.figure import calibration_figure
from interp.report import static
from interp.report.figures import all_figures
from interp.report.marks import Figure
from interp.report.reading import read_summary
from interp.toy import figures as toy_figures
from interp.toy.tables import wide

RESULTS = Path(__file__).parents[1] / "results"
STUDIES = sorted(path.parent.name for path in RESULTS.glob("*/models.json"))


def drawn_data(svg: str) -> list[str]:
    """Words and values of every mark; where fonts differ, places do."""
    return re.findall(r'aria-label="([^"]*)"', svg) + re.findall(r"<text[^>]*>([^<]*)<", svg)


@pytest.mark.parametrize("name", STUDIES)
def test_a_studys_figures_are_drawn_again(name: str) -> None:
    summary = read_summary(json.loads((RESULTS / name / "summary.json").read_text()))
    drawn = all_figures(summary)
    folder = RESULTS / name / "figures"
    assert {f"{figure}.svg" for figure in drawn} == {file.name for file in folder.glob("*.svg")}
    for title, figure in drawn.items():
        again = drawn_data(static.svg(figure))
        assert len(again) > 10
        assert again == drawn_data((folder / f"{title}.svg").read_text()), title


def of_bridge(summary: dict[str, Any]) -> list[Figure]:
    return bridge_figures(summary)


def of_calibration(summary: dict[str, Any]) -> list[Figure]:
    figure = calibration_figure(summary["cells"])
    return [] if figure is None else [figure]


@pytest.mark.parametrize(("name", "make"), [("bridge", of_bridge), ("calibration", of_calibration)])
def test_figures_of_known_truth_are_drawn_again(
    name: str, make: Callable[[dict[str, Any]], list[Figure]]
) -> None:
    figures = make(json.loads((RESULTS / name / "summary.json").read_text()))
    folder = RESULTS / name / "figures"
    assert {f"{figure.name}.svg" for figure in figures} == {f.name for f in folder.glob("*.svg")}
    for figure in figures:
        again = drawn_data(static.svg(figure))
        assert again == drawn_data((folder / f"{figure.name}.svg").read_text()), figure.name


OF_LARGE_TABLES = {"loss_by_feature", "overlap_distribution"}
"""Toy figures of one row per feature or quantile; those tables stay with the run."""


@pytest.mark.parametrize("name", ["toy_demo", "toy_reduced"])
def test_the_toy_models_figures_are_drawn_again(name: str) -> None:
    folder = RESULTS / name
    lines = json.loads((folder / "summary.json").read_text())["lines"]
    models = wide(pd.read_parquet(folder / "results.parquet"))
    none = pd.DataFrame()
    committed = {file.stem for file in (folder / "figures").glob("*.svg")} - OF_LARGE_TABLES
    drawn = {
        figure.name: figure
        for figure in toy_figures.all_figures(models, lines, features=none, overlaps=none)
    }
    assert set(drawn) >= committed > {"exponents", "overlap_against_width", "weak_prediction"}
    for title in committed:
        again = drawn_data(static.svg(drawn[title]))
        assert len(again) > 10
        assert again == drawn_data((folder / "figures" / f"{title}.svg").read_text()), title


def test_all_studies_are_among_them() -> None:
    assert {"full", "quick"} <= set(STUDIES)
