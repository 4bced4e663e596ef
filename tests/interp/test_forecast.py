"""Forecasts: exact laws, coverage, refusals; packing beside width; where scaling ends."""

from __future__ import annotations

import json

import numpy as np
import pytest
from published_law import ALPHA, A, one_family, published_table

from interp.errors import UserError
from interp.forecast import forecast_largest, forecast_sizes
from interp.packing_gain import packing_gain
from interp.scaling_end import ends_of, scaling_end

SIZES = np.array([32.0, 48, 64, 96, 128, 160, 192, 256])


def test_an_exact_law_is_forecast_exactly_and_the_largest_was_not_seen() -> None:
    loss = 20 * SIZES**-0.6 + 1.2
    loss[-1] = 9.0  # were it seen, the prediction would move
    [found] = forecast_largest(one_family(loss, SIZES))
    assert found.predicted == pytest.approx(20 * 256**-0.6 + 1.2, rel=1e-5)
    assert (found.model, found.actual, found.covered) == ("m7", 9.0, False)
    assert found.n_known == 7
    assert found.times_wider == pytest.approx(256 / 192)


def test_the_largest_of_every_family_are_left_out_at_once() -> None:
    found = forecast_largest(published_table(0))
    assert [(f.family, f.d_model) for f in found[:4]] == [
        ("opt", 9216), ("qwen", 8192), ("gpt2", 1600), ("pythia", 5120)
    ]  # fmt: skip
    assert len(found) == 16
    assert {f.n_known for f in found} == {23}
    two = forecast_largest(published_table(0), n_largest=2)
    # Both Qwen models of width 5120 are of the second largest width.
    assert sum(f.family == "qwen" for f in two) == 4 * 3
    json.dumps([f.to_json() for f in two], allow_nan=False)


def test_coverage_of_prediction_intervals() -> None:
    """8 tables of 16 forecasts, 95% nominal, half of the noise shared by a model's data sets.

    Forecasts of one table share parameters and noise: the share varies by about 4 points.
    """
    inside = [
        bool(f.covered)
        for seed in range(8)
        for f in forecast_largest(published_table(seed, shared=0.5))
    ]
    assert 0.86 <= np.mean(inside) < 1


@pytest.mark.slow
def test_coverage_is_nominal() -> None:
    """600 tables of one family, 95% within three standard errors of 0.9 points; and 40 of four."""
    covered = 0
    for seed in range(600):
        noise = 0.02 * np.random.default_rng(seed).normal(size=8)
        [found] = forecast_largest(one_family(20 * SIZES**-0.6 + 1.2 + noise, SIZES))
        covered += bool(found.covered)
    assert abs(covered / 600 - 0.95) < 0.027
    for shared in (0.0, 0.6):
        inside = [
            bool(f.covered)
            for seed in range(40)
            for f in forecast_largest(published_table(seed, shared=shared))
        ]
        assert abs(np.mean(inside) - 0.95) < 0.05


def test_sizes_that_do_not_exist() -> None:
    table = published_table(1)
    found = forecast_sizes(table, [16384, 65536])
    assert len(found) == 32
    assert all(f.actual is None and f.covered is None for f in found)
    near, far = (next(f for f in found if f.d_model == d) for d in (16384, 65536))
    assert far.predicted < near.predicted
    assert near.ci_high is not None
    assert far.ci_low is not None
    assert near.ci_low is not None
    assert near.ci_low < near.predicted < near.ci_high
    opt = [f for f in found if f.family == "opt" and f.dataset == "wikitext"]
    assert opt[0].predicted == pytest.approx(A / 16384**ALPHA + 2.2074, abs=0.15)


def test_too_few_smaller_models_are_refused() -> None:
    widths = np.array([768.0, 1024, 1280, 1600])
    loss = A / widths**ALPHA + 2.3
    with pytest.raises(UserError, match="the smaller models on t: 3 losses for 3 parameters"):
        forecast_largest(one_family(loss, widths))
    with pytest.raises(UserError, match="family f has 4 sizes"):
        forecast_largest(one_family(loss, widths), n_largest=3)


def test_a_family_without_a_smaller_model_on_a_data_set_is_refused() -> None:
    """Measured there at its largest widths only, its offset is not known; nor is that of a data
    set which only largest models were measured on."""
    table = published_table(0)
    rows = table.rows
    only_large = (rows["family"] == "opt") & (rows["dataset"] == "pile") & (rows["d_model"] < 7168)
    with pytest.raises(UserError, match="family opt has no smaller model on pile"):
        forecast_largest(table.take(~only_large.to_numpy()), n_largest=2)
    gone = (rows["dataset"] == "pile") & ~rows["d_model"].isin([7168, 9216])
    with pytest.raises(UserError, match="family opt has no smaller model on pile"):
        forecast_largest(table.take(~gone.to_numpy()), n_largest=2)


def test_a_missing_column_of_a_larger_model_is_refused() -> None:
    loss = 20 * SIZES**-0.6 + 2 / np.tile([2.0, 4], 4)
    layers = np.array([2.0, 4, 2, 4, 2, 4, 2, np.nan])
    with pytest.raises(UserError, match="n_layers is missing or not positive for model 'm7'"):
        forecast_largest(one_family(loss, SIZES, n_layers=layers), form="depth")


def test_noise_opens_the_interval_and_one_degree_of_freedom_is_said() -> None:
    loss = 20 * SIZES[:5] ** -0.6 + 1.2 + 0.05 * np.array([1, -1, 1, -1, 1])
    [found] = forecast_largest(one_family(loss, SIZES[:5]))
    assert found.reason is not None
    assert "one degree of freedom" in found.reason
    assert found.ci_high is None or found.ci_high - (found.ci_low or 0) > 1


def test_packing_that_explains_the_residual_improves_and_noise_does_not() -> None:
    rng = np.random.default_rng(0)
    packing = rng.uniform(1, 3, 8)
    law = 20 * SIZES**-0.6 + 1.2
    driven = packing_gain(
        one_family(law - 0.1 * packing + 0.002 * rng.normal(size=8), SIZES, packing=packing)
    )
    assert driven.coefficient == pytest.approx(-0.1, abs=0.02)
    assert driven.p_value is not None
    assert driven.p_value < 0.01
    assert "improves on width alone" in driven.sentence
    unrelated = packing_gain(one_family(law + 0.02 * rng.normal(size=8), SIZES, packing=packing))
    assert unrelated.p_value is not None
    assert unrelated.p_value > 0.05
    assert "does not improve on width alone" in unrelated.sentence
    assert unrelated.sentence.startswith("exploratory")


def test_packing_is_reported_missing_or_too_little() -> None:
    law = 20 * SIZES**-0.6 + 1.2
    without = packing_gain(one_family(law, SIZES))
    assert without.p_value is None
    assert "is not known (no features per dimension in the table" in without.sentence
    some = packing_gain(one_family(law, SIZES, packing=np.array([1.0, 2, 3] + [np.nan] * 5)))
    assert some.p_value is None
    assert "3 models with packing do not support the question" in some.sentence
    none = packing_gain(one_family(law, SIZES, packing=np.full(8, np.nan)))
    assert none.n_models == 0
    assert "is not known (every count in the table is a lower bound or missing)" in none.sentence


def test_lower_bounds_are_no_counts_for_the_gain() -> None:
    """Two counts that are bounds, and wrong by much, change nothing but the number of models."""
    law = 20 * SIZES**-0.6 + 1.2 + 0.01 * np.random.default_rng(3).normal(size=8)
    packing = np.random.default_rng(4).uniform(1, 3, 8)
    bound = np.arange(8) >= 6
    wrong = np.where(bound, 50.0, packing)
    table = one_family(law, SIZES, packing=wrong, packing_is_bound=bound.astype(float))
    found = packing_gain(table)
    exact = packing_gain(one_family(law[:6], SIZES[:6], packing=packing[:6]))
    assert (found.n_models, found.coefficient) == (6, exact.coefficient)


def test_the_end_of_scaling_is_where_packing_reaches_one() -> None:
    no_bound = np.zeros(8, dtype=bool)
    # features = 400 d^0.3: one per dimension at 400^(1/0.7) = 5,220.
    exact = scaling_end("f", SIZES, 400 * SIZES**-0.7, no_bound)
    assert exact.d_model == pytest.approx(400 ** (1 / 0.7), rel=1e-3)
    rng = np.random.default_rng(0)
    noisy = scaling_end("f", SIZES, 400 * SIZES**-0.7 * np.exp(0.1 * rng.normal(size=8)), no_bound)
    assert noisy.ci_low is not None
    assert noisy.ci_high is not None
    assert noisy.ci_low < 5220 < noisy.ci_high
    assert noisy.ci_low > 256


def test_coverage_of_the_end() -> None:
    """200 replicates, 95% nominal, standard error 1.5 points."""
    inside = 0
    for seed in range(200):
        noise = np.exp(0.1 * np.random.default_rng(seed).normal(size=8))
        end = scaling_end("f", SIZES, 400 * SIZES**-0.7 * noise, np.zeros(8, dtype=bool))
        inside += (end.ci_low or 0.0) <= 400 ** (1 / 0.7) <= (end.ci_high or np.inf)
    assert 0.90 <= inside / 200 <= 0.99


def test_where_packing_does_not_fall_there_is_no_end() -> None:
    flat = scaling_end("f", SIZES, 2 * SIZES**0.1, np.zeros(8, dtype=bool))
    assert flat.d_model is None
    assert flat.reason is not None
    assert "do not fall" in flat.reason
    rng = np.random.default_rng(1)
    unclear = scaling_end(
        "f", SIZES, 2 * SIZES**-0.02 * np.exp(0.2 * rng.normal(size=8)), np.zeros(8, dtype=bool)
    )
    assert unclear.ci_high is None
    # A mean above one and a slope that may be rising or falling: no end near is still excluded.
    for seed in range(5):
        noise = np.exp(0.1 * np.random.default_rng(seed).normal(size=8))
        near = scaling_end("f", SIZES, 4 * SIZES**0.01 * noise, np.zeros(8, dtype=bool))
        assert near.ci_high is None
        assert near.ci_low is not None
        assert near.ci_low > 256


def test_coverage_where_packing_hardly_falls() -> None:
    """200 replicates of 4 d^-0.15, which ends at 10,321: what is open above still has its lower
    limit, and with the upper one covers 95% (standard error 1.5 points)."""
    end, inside, open_above, has_limit = 4 ** (1 / 0.15), 0, 0, 0
    for seed in range(200):
        noise = np.exp(0.15 * np.random.default_rng(seed).normal(size=8))
        found = scaling_end("f", SIZES, 4 * SIZES**-0.15 * noise, np.zeros(8, dtype=bool))
        inside += (found.ci_low or 0.0) <= end <= (found.ci_high or np.inf)
        open_above += found.ci_high is None
        has_limit += found.ci_low is not None
    assert 0.90 <= inside / 200 <= 0.99
    assert open_above > 50
    assert has_limit == 200


def test_lower_bounds_make_a_lower_bound() -> None:
    bound = np.arange(8) >= 6
    end = scaling_end("f", SIZES, 400 * SIZES**-0.7, bound)
    assert end.is_bound
    assert end.ci_high is None
    assert end.reason is not None
    assert "2 of 8 counts are lower bounds" in end.reason


def test_lower_bounds_of_narrow_models_say_nothing_about_the_end() -> None:
    """More features in a narrow model make the line steeper, and its end nearer."""
    counts = 400 * SIZES**-0.7
    bound = np.arange(8) < 2
    as_counted = scaling_end("f", SIZES, counts, np.zeros(8, dtype=bool))
    more = scaling_end("f", SIZES, np.where(bound, 2 * counts, counts), np.zeros(8, dtype=bool))
    assert more.d_model is not None
    assert as_counted.d_model is not None
    assert more.d_model < as_counted.d_model
    end = scaling_end("f", SIZES, counts, bound)
    assert (end.d_model, end.ci_low, end.is_bound) == (None, None, True)
    assert "could lie anywhere" in str(end.reason)


def test_ends_come_from_the_table() -> None:
    law = 20 * SIZES**-0.6 + 1.2
    table = one_family(law, SIZES, packing=400 * SIZES**-0.7, packing_is_bound=np.zeros(8))
    [end] = ends_of(table)
    assert end.n_models == 8
    assert end.d_model == pytest.approx(400 ** (1 / 0.7), rel=1e-3)
    [unknown] = ends_of(one_family(law, SIZES))
    assert (unknown.d_model, unknown.n_models) == (None, 0)
    assert "no features per dimension" in str(unknown.reason)
    few = one_family(law, SIZES, packing=np.array([2.0, 1.9, 1.8] + [np.nan] * 5))
    assert "3 widths" in str(ends_of(few)[0].reason)
