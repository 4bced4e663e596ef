"""Overlaps in the report: what stands where, against the floor, and nothing where none are."""

from typing import Any

import pytest
import report_run

from interp.report import marks
from interp.report.figures import all_figures
from interp.report.overlap_tables import dictionary_overlap_table, head_overlap_table
from interp.report.page import render
from interp.report.reading import RunRecords, read_summary
from interp.report.theme import KINDS


def figure(data: dict[str, Any]) -> marks.Figure | None:
    return all_figures(read_summary(data)).get("overlap_against_width")


def drawn(found: marks.Figure, mark: str) -> list[list[dict[str, Any]]]:
    """The data of every layer of that mark."""
    layers = [one for one in found.spec["layer"] if one["mark"]["type"] == mark]
    return [found.spec["datasets"][one["data"]["name"]] for one in layers]


def test_dictionaries_twins_and_heads_stand_at_their_multiple_of_random_rows() -> None:
    found = figure(report_run.summary())
    assert found is not None
    hollow, filled, dictionaries = drawn(found, "point")
    n = len(report_run.WIDTHS)
    trained = [p for p in dictionaries if p["kind"] == KINDS[0]]
    twins = [p for p in dictionaries if p["kind"] == KINDS[2]]
    # The second size is 1.3, and drawn nowhere: every model has one mark.
    assert [p["y"] for p in trained] == pytest.approx([1.4] * n)
    assert [p["x"] for p in trained] == list(report_run.WIDTHS)
    assert [p["y"] for p in twins] == pytest.approx([1.1] * len(report_run.TWIN_WIDTHS))
    assert (trained[0]["low"], trained[0]["high"]) == pytest.approx((1.4 * 0.98, 1.4 * 1.02))
    assert [p["y"] for p in filled] == pytest.approx([3] * (n - 1))
    assert [p["y"] for p in hollow] == pytest.approx([1.6] * (n - 1))
    (floors,) = drawn(found, "tick")
    # (n - d) / (n - 1) of n = 8 d rows, just above 7/8.
    expected = [7 * w / (8 * w - 1) for w in report_run.WIDTHS]
    assert [p["y"] for p in floors] == pytest.approx(expected)
    assert "dictionary at width 32: 1.40 [1.37, 1.43], Welch floor 0.878" in found.alt
    assert "untrained twin at width 256: 1.10" in found.alt


def test_where_rows_fit_at_right_angles_there_is_no_floor_on_the_log_axis() -> None:
    data = report_run.summary()
    for one in data["overlap"]["dictionaries"]:
        one["welch_floor"] = 0.0
    found = figure(data)
    assert found is not None
    assert drawn(found, "tick") == []
    table = dictionary_overlap_table(read_summary(data).overlaps)
    assert table is not None
    assert {row[table.columns.index("Over the floor")] for row in table.rows} == {"–"}


def test_one_width_gives_tables_and_no_figure() -> None:
    data = report_run.summary()
    data["overlap"]["dictionaries"] = data["overlap"]["dictionaries"][:2]
    assert figure(data) is None
    assert dictionary_overlap_table(read_summary(data).overlaps) is not None


def test_tables_hold_every_dictionary_and_every_head() -> None:
    overlaps = read_summary(report_run.summary()).overlaps
    table = dictionary_overlap_table(overlaps)
    assert table is not None
    assert len(table.rows) == 2 * len(report_run.WIDTHS) + len(report_run.TWIN_WIDTHS)
    rows = [dict(zip(table.columns, row, strict=True)) for row in table.rows]
    # A model before its twin, whatever the order in the file.
    assert [row["Weights"] for row in rows[:3]] == ["trained", "trained", "untrained twin"]
    assert rows[0]["Overlap [95%]"] == "0.0437 [0.0429, 0.0446]"
    assert rows[0]["Over random"] == "1.40"
    assert rows[0]["Over the floor"] == "1.59"
    assert rows[0]["Capacity per dimension [95%]"] == "0.700 [0.690, 0.710]"
    heads = head_overlap_table(overlaps)
    assert heads is not None
    assert heads.rows[0][-1] == "ladder/d032: the checkpoint has no head"
    assert heads.rows[0][1] == "–"
    assert "3.00" in heads.rows[1]


def test_a_run_without_overlaps_has_no_section(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("interp.report.page._vega", lambda: "/* vega */")

    def page(data: dict[str, Any]) -> str:
        run = RunRecords(read_summary(data), None, {}, "")
        figures = all_figures(run.summary)
        return render(run, figures, dict.fromkeys(figures, "<svg/>"))

    data = report_run.summary()
    assert 'id="overlap"' in page(data)
    del data["overlap"]
    assert figure(data) is None
    assert 'id="overlap"' not in page(data)
    assert "#overlap" not in page(data)
