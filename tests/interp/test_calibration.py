"""The calibrated bias beside an estimate: which cells it comes from, and when there is none."""

import math
from dataclasses import replace
from pathlib import Path

import pytest

import interp
from interp import calibration
from interp.calibrate import run
from interp.calibrate.gates import gates_text
from interp.calibration import OFTEN, UNCALIBRATED, calibrated, condensed, widened
from interp.estimate import Estimate
from saes.latent_set import DUPLICATE_COSINE

ESTIMATE = Estimate("saturation", value=260.0, per_dim=4.1, n_seeds=5, d_sae=1024)


def record(**changes) -> dict:
    return {
        "estimator": "saturation",
        "n_per_dim": 4.0,
        "k_ratio": 1.0,
        "zipf": 0.5,
        "structure": "independent",
        "noise": 0.0,
        "n_seeds": 5,
        "n_replicates": 1,
        "bias": 0.03,
        "n_identified": 1,
        "n_false_bounds": 0,
        "duplicate_cosine": DUPLICATE_COSINE,
    } | changes


RECORDS = [
    record(),
    record(k_ratio=0.5, bias=-0.12),
    record(k_ratio=2.0, bias=None, n_identified=0),
    record(n_per_dim=8.0, bias=0.5),
    record(estimator="saturation_atoms", bias=0.9),
    record(n_seeds=3, bias=0.8),
]


def test_the_range_is_that_of_the_nearest_cells():
    text = calibrated(ESTIMATE, RECORDS)
    assert text.startswith("bias -12.0% to +3.0% in 2 of 3 cells at n/d 4, k 0.5 to 2 times")
    assert text.endswith("the true L0, 1 replicate each; not identified, or seldom, in 1")
    assert "+50.0%" in calibrated(replace(ESTIMATE, per_dim=7.0), RECORDS)


BOUNDED = replace(ESTIMATE, value=256.0, per_dim=4.0, ci_low=240.0, ci_high=280.0)


def test_the_interval_holds_the_biases_of_all_cells():
    # 240 / 64 / 1.5 and 280 / 64 / 0.88: the worst of other kinds too, not of other estimators.
    expected = "; 95% interval widened by the biases of 3 of 4 cells: 2.5 to 4.97 per dimension"
    assert calibrated(BOUNDED, RECORDS).endswith(expected)
    right = [record(bias=0.03), record(bias=0.01)]
    assert "of 2 of 2 cells: 3.64 to 4.38 per" in calibrated(BOUNDED, right)  # narrows nothing
    assert "interval" not in calibrated(replace(BOUNDED, ci_high=None), RECORDS)


@pytest.mark.parametrize(("n_identified", "low"), [(4, "3.75"), (5, "2.5")])
def test_a_kind_that_is_seldom_identified_widens_and_is_not_quoted(n_identified, low):
    seldom = record(bias=0.5, n_identified=n_identified, n_replicates=100)
    text = calibrated(BOUNDED, [record(bias=0.0), seldom])
    assert text.startswith("bias +0.0% to +0.0% in 1 of 2 cells")
    assert f": {low} to 4.38 per dimension" in text


def test_an_interval_is_widened_by_hand():
    assert widened(110.0, 190.0, [0.1, -0.05]) == pytest.approx((100.0, 200.0))
    assert widened(110.0, 190.0, []) == (110.0, 190.0)
    assert widened(110.0, 190.0, [-1.0]) == (110.0, math.inf)


@pytest.mark.parametrize(("d_sae", "told"), [(511, False), (512, True)])
def test_a_bias_upwards_leaves_the_room_that_the_calibration_had(d_sae, told):
    high = replace(BOUNDED, value=281.6, per_dim=4.4, d_sae=d_sae)  # 10% above 256
    assert (calibrated(high, [record(bias=0.1)]) != UNCALIBRATED) is told


@pytest.mark.parametrize(
    "changes",
    [
        {"estimator": "reproducible"},
        {"n_seeds": 4},
        {"identified": False},
        {"d_sae": 346},  # the calibration's largest hold twice the features: 2 * 260 / 1.5
        {"per_dim": None},
        {"per_dim": 4 / 1.45},  # farther than a factor of sqrt(2)
        {"per_dim": 8 * 1.45},
    ],
)
def test_what_was_not_calibrated_says_so(changes):
    assert calibrated(replace(ESTIMATE, **changes), RECORDS) == UNCALIBRATED


def test_what_more_seeds_have_to_find_is_another_count():
    assert calibrated(ESTIMATE, RECORDS, min_seeds=2) != UNCALIBRATED
    assert calibrated(ESTIMATE, RECORDS, min_seeds=5) == UNCALIBRATED
    by_all = [one | {"estimator": "saturation_all", "bias": -0.02} for one in RECORDS]
    assert "bias -2.0% to -2.0%" in calibrated(ESTIMATE, [*RECORDS, *by_all], min_seeds=5)
    assert calibrated(ESTIMATE, [*RECORDS, *by_all], min_seeds=4) == UNCALIBRATED


def test_a_cell_that_mostly_refused_has_no_bias():
    assert gates_text()["min_identified"] == OFTEN
    seldom = record(k_ratio=2.0, bias=0.4, n_identified=49, n_replicates=100)
    often = record(bias=0.02, n_identified=50, n_replicates=100)
    text = calibrated(ESTIMATE, [often, seldom])
    assert text.startswith("bias +2.0% to +2.0% in 1 of 2 cells")
    assert text.endswith("100 replicates each; not identified, or seldom, in 1")


def test_cells_without_a_bias_calibrate_nothing():
    assert calibrated(ESTIMATE, [record(bias=None)]) == UNCALIBRATED
    assert calibrated(ESTIMATE, []) == UNCALIBRATED


def test_counts_that_merged_other_latents_calibrate_nothing():
    older = [{k: v for k, v in one.items() if k != "duplicate_cosine"} for one in RECORDS]
    assert calibrated(ESTIMATE, older) == UNCALIBRATED
    assert calibrated(ESTIMATE, [one | {"duplicate_cosine": 0.99} for one in older]) == UNCALIBRATED


@pytest.fixture
def cell() -> dict:
    """A calibration's record of one cell."""
    estimators = [
        {"estimator": name, "bias": 0.1, "n_identified": 1, "n_false_bounds": 0, "mean": 1.0}
        for name in ("hill_1", "saturation", "saturation_atoms")
    ]
    kept = {k: v for k, v in record().items() if k not in ("estimator", "bias", "n_identified")}
    return kept | {"estimators": estimators, "d_in": 32}


def test_condensed_keeps_n_alone(cell):
    found = condensed([cell])
    assert [r["estimator"] for r in found] == ["saturation", "saturation_atoms"]
    assert found[0] == record(bias=0.1)


def test_what_is_shipped_is_what_reports_read(cell, monkeypatch, tmp_path):
    file = calibration.shipped_file()
    assert file == Path(interp.__file__).parent / "calibration.json"
    assert file.is_file()
    monkeypatch.setattr(calibration, "RESULT_FILE", str(tmp_path / file.name))
    assert run.ship({"cells": [cell]}) == calibration.shipped_file() == tmp_path / file.name
    calibration.shipped.cache_clear()
    try:
        assert list(calibration.shipped()) == condensed([cell])
    finally:
        calibration.shipped.cache_clear()
