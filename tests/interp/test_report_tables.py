"""The tables: averages, fallbacks, folded columns."""

import math

import pandas as pd
import report_run

from interp.report.reading import read_summary
from interp.report.tables import (
    correlation_table,
    dictionary_table,
    packing_table,
    record_table,
    sensitivity_table,
)


def column(table: object, name: str) -> list[str]:
    position = table.columns.index(name)  # type: ignore[attr-defined]
    return [row[position] for row in table.rows]  # type: ignore[attr-defined]


def test_primary_counts_say_once_what_never_changes() -> None:
    table = packing_table(read_summary(report_run.summary()).primary_rows)
    shared = dict(table.shared)
    assert shared["Hook point"] == "blocks.1.hook_resid_post"
    assert shared["Calibration"] == "uncalibrated"
    assert shared["Seeds"] == "5"
    assert "Hook point" not in table.columns
    assert column(table, "D") == ["256", "384", "512", "768", "1,024", "1,280", "1,536", "2,048"]
    assert column(table, "Per dimension [95%]")[0] == "1.83 [1.70, 1.94]"
    assert column(table, "Per dimension [95%]")[-1] == "2.86 [2.66, …)"


def test_the_sensitivity_to_k_lists_the_primary_rule_first() -> None:
    data = report_run.summary()
    own = [report_run.packing_record(w) | {"k_rule": "fvu", "k": w // 10} for w in (64, 32)]
    other = [report_run.packing_record(w) | {"k_rule": "proportional", "k": w // 8} for w in (32,)]
    data["sensitivity"] = other + own
    table = sensitivity_table(read_summary(data).sensitivity)
    assert table is not None
    assert [row[0] for row in table.rows] == ["ladder/d032", "ladder/d032", "ladder/d064"]
    assert column(table, "Rule for k") == [
        "nearest to the target FVU",
        "an eighth of the width",
        "nearest to the target FVU",
    ]
    assert column(table, "k") == ["3", "4", "6"]


def test_one_rule_for_k_needs_no_table() -> None:
    data = report_run.summary()
    assert sensitivity_table(read_summary(data).sensitivity) is None
    data["sensitivity"] = [report_run.packing_record(32)]
    assert sensitivity_table(read_summary(data).sensitivity) is None


def test_each_count_says_why_it_may_not_be_believed() -> None:
    table = packing_table(read_summary(report_run.summary()).primary_rows)
    assert column(table, "Identified")[-2:] == ["no: undertrained", "no: censored at D"]
    assert column(table, "Converged") == ["yes"] * 6 + ["no", "yes"]
    assert table.hollow == (False,) * 6 + (True, False)
    assert column(table, "Untrained twin [95%]")[:2] == ["0.12 [0.07, 0.18]", "not measured"]
    quality = column(table, "Twin's dictionaries")
    assert quality[:2] == ["FVU 0.341, not matched", "–"]
    assert quality[2] == "FVU 0.341, not matched, not converged"
    assert column(table, "Minus twin")[1] == "–"


def test_a_single_row_folds_nothing() -> None:
    table = packing_table(read_summary(report_run.summary()).primary_rows[:1])
    assert table.shared == ()
    assert "Hook point" in table.columns


def test_dictionaries_are_averaged_over_seeds_of_the_main_role_only() -> None:
    table = dictionary_table(report_run.results(report_run.summary()))
    assert table is not None
    # Two seeds at 0.14 and 0.15; the half-trained ones at 0.9 stay out.
    assert set(column(table, "FVU")) == {"0.145"}
    assert set(column(table, "Dead latents")) == {"3.1%"}
    assert len(table.rows) == len(report_run.WIDTHS) + len(report_run.TWIN_WIDTHS)
    assert column(table, "Weights")[:2] == ["trained", "untrained twin"]
    # Undefined for the twins of the fixture: no number, not zero.
    assert column(table, "CE loss recovered")[:2] == ["0.942", "–"]


def test_a_loss_measured_once_per_model_stands_in_each_of_its_rows() -> None:
    results = report_run.results(report_run.summary())
    clean = results[results["quantity"] == "ce_loss_clean"].drop_duplicates(["model", "control"])
    rest = results[results["quantity"] != "ce_loss_clean"]
    once = clean.assign(d_sae=math.nan, k=math.nan, seed=math.nan, about=None, role=None)
    table = dictionary_table(pd.concat([rest, once]))
    direct = dictionary_table(results)
    assert table is not None
    assert direct is not None
    assert column(table, "CE loss, clean") == column(direct, "CE loss, clean")


def test_without_measurements_there_is_no_table() -> None:
    assert dictionary_table(None) is None
    assert dictionary_table(pd.DataFrame({"model": [], "quantity": [], "value": []})) is None
    assert dictionary_table(pd.DataFrame({"something": [1]})) is None


def test_the_correlation_is_reported_with_its_reason_and_no_star() -> None:
    table = correlation_table(read_summary(report_run.summary()))
    assert table is not None
    (row,) = table.rows
    assert "−0.964" in row[4]
    assert row[-1] == "loss is a function of d_model in this sample"
    assert not any("*" in cell for cell in row)
    assert correlation_table(read_summary({})) is None


def test_records_are_flattened_with_units() -> None:
    lines = dict(record_table(report_run.MANIFEST | {"steps": [{"a": 1}, {"a": 2}], "gpu": None}))
    assert lines["versions / torch"] == "2.13.0"
    assert lines["peak_memory_bytes"] == "1.62 GB"
    assert lines["wall_time_seconds"] == "1 h 30 min"
    assert lines["seeds"] == "0, 1, 2, 3, 4"
    assert lines["steps / 2 / a"] == "2"
    assert lines["gpu"] == "–"
