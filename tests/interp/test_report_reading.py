"""The files of a run -> records: joins, fallbacks, and what is refused."""

import json
from pathlib import Path

import pytest
import report_run

from interp.errors import UserError
from interp.report.interval import Interval
from interp.report.reading import interval, number, read_run, read_summary


def test_intervals_are_per_dimension_of_the_row_s_own_model() -> None:
    row = read_summary(report_run.summary()).primary_rows[0]
    record = report_run.packing_record(32)
    assert row.model.name == "ladder/d032"
    assert row.per_dim == Interval(record["per_dim"], record["ci_low"] / 32, record["ci_high"] / 32)
    assert row.twin is not None
    assert row.twin.per_dim.value == pytest.approx(report_run.TWIN[32])
    assert row.twin.per_dim.high == pytest.approx(1.5 * report_run.TWIN[32])


def test_primary_rows_are_one_per_model_by_width_at_the_named_place() -> None:
    rows = read_summary(report_run.summary()).primary_rows
    assert [row.model.d_model for row in rows] == list(report_run.WIDTHS)
    assert {(row.layer, row.about, row.estimator) for row in rows} == {
        (1, "contextual", "reproducible")
    }


def test_the_primary_dictionary_size_is_a_ratio_of_each_width() -> None:
    data = report_run.summary()
    other = report_run.packing_record(32) | {"d_sae": 16 * 32, "per_dim": 99.0}
    data["packing"].insert(0, other)
    assert read_summary(data).primary_rows[0].d_sae == 8 * 32


def test_a_converged_row_is_preferred_among_equals() -> None:
    data = report_run.summary()
    data["primary"] = {"estimator": "reproducible", "about": "contextual", "layer_fraction": 0.5}
    data["packing"].append(
        report_run.packing_record(32) | {"d_sae": 16 * 32, "converged": False, "per_dim": 9.0}
    )
    assert read_summary(data).primary_rows[0].d_sae == 8 * 32


@pytest.mark.parametrize("in_words_only", [False, True])
@pytest.mark.parametrize(
    ("converged", "identified", "reason", "counts", "censored"),
    [
        (True, True, None, True, False),
        (True, False, "censored at D", True, True),
        (True, False, "too few sizes", False, False),
        (False, False, "undertrained", False, False),
        (None, True, None, False, False),
    ],
)
def test_what_counts(
    converged: bool | None,
    identified: bool,
    reason: str | None,
    counts: bool,
    censored: bool,
    in_words_only: bool,
) -> None:
    data = report_run.summary()
    said = None if in_words_only else censored
    verdict = {"converged": converged, "identified": identified, "reason": reason}
    data["packing"] = [report_run.packing_record(32) | verdict | {"censored": said}]
    (row,) = read_summary(data).primary_rows
    assert (row.counts, row.censored) == (counts, censored)


def test_an_interval_is_read_however_it_was_written() -> None:
    expected = Interval(1.0, 0.5, None)
    nested = {"alpha": {"value": 1, "ci_low": 0.5, "ci_high": None}}
    flat = {"alpha": 1, "alpha_ci_low": 0.5, "alpha_ci_high": None}
    assert interval(nested, "alpha") == interval(flat, "alpha") == expected
    assert interval(nested["alpha"]) == expected


def test_only_finite_numbers_are_numbers() -> None:
    assert number(3) == 3.0
    assert [number(x) for x in (None, True, "3", float("nan"), float("inf"))] == [None] * 5


def test_an_empty_summary_reads_as_nothing_known() -> None:
    summary = read_summary({})
    assert summary.primary_rows == ()
    assert summary.exponent.beta == Interval()
    assert not summary.scaling.drawn


def test_a_row_of_an_unlisted_model_takes_its_width_from_its_numbers() -> None:
    data = report_run.summary() | {"models": []}
    assert read_summary(data).primary_rows[0].model.d_model == 32


def test_a_folder_without_summary_is_refused_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no summary\.json") as caught:
        read_run(tmp_path)
    assert "\n" not in str(caught.value)
    assert str(tmp_path) in str(caught.value)


@pytest.mark.parametrize("name", ["summary.json", "manifest.json", "results.parquet"])
def test_a_damaged_file_is_named(tmp_path: Path, name: str) -> None:
    report_run.write_run(tmp_path)
    (tmp_path / name).write_bytes(b"{ not what it was")
    with pytest.raises(UserError, match="damaged") as caught:
        read_run(tmp_path)
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_summary_that_is_no_object_is_refused(tmp_path: Path) -> None:
    (tmp_path / "summary.json").write_text(json.dumps([1]))
    with pytest.raises(UserError, match="no JSON object"):
        read_run(tmp_path)


def test_only_the_summary_is_indispensable(tmp_path: Path) -> None:
    run = read_run(report_run.write_run(tmp_path, complete=False))
    assert run.results is None
    assert run.manifest == {}
    assert run.config_text == ""
