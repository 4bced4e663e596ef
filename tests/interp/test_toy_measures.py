"""Measures of toy models on weights whose answers are known, and the tables made of them."""

from __future__ import annotations

import json
from dataclasses import asdict, replace

import numpy as np
import pandas as pd
import pytest

from interp.toy.exponents import fit_exponent, left_out_exponent
from interp.toy.frequencies import Frequencies
from interp.toy.measures import measure, measure_overlaps
from interp.toy.model import Scratch, ToyConfig, ToyModel
from interp.toy.reproduction import reproduction, table
from interp.toy.tables import KEYS, lines, quantities, wide

CONFIG = ToyConfig(
    Frequencies("power", 1.5, 200), m=20, decay=0.1, batch_size=512, n_steps=10, warmup_steps=1,
    lr_W=0.01, lr_b=0.01, eps=1e-8,
)  # fmt: skip


def one_hot(config: ToyConfig = CONFIG) -> ToyModel:
    """The first m features on an axis each, the others left out, no bias."""
    model = ToyModel(config)
    model.W = np.eye(config.frequencies.n, config.m, dtype=np.float32)
    model.b = np.zeros_like(model.b)
    return model


def test_one_hot_rows_lose_what_they_leave_out() -> None:
    """No overlap, no bias: L = (4/3) sum of p_i over i > m, since E v^2 = 4/3; each by itself."""
    found = measure(one_hot(), 300, Scratch())
    p = CONFIG.frequencies.probabilities()
    assert found.weak_prediction == pytest.approx(4 / 3 * p[20:].sum())
    assert found.loss == pytest.approx(found.weak_prediction, abs=4 * found.loss_se)
    assert found.loss_se < 0.01 * found.loss
    np.testing.assert_array_equal(found.feature_loss[:20], 0)
    # E v^4 = 16/5 gives the variance of the mean.
    error = (16 / 5 * p[20:] / (300 * 512)) ** 0.5
    assert (np.abs(found.feature_loss[20:] - 4 / 3 * p[20:]) < 5 * error).all()
    assert found.phi_half == 20 / 200
    assert found.dimensions_per_feature == pytest.approx(1.0)
    np.testing.assert_allclose(found.capacities, [1.0] * 20 + [0.0] * 180)
    assert found.overlaps is not None
    assert found.overlaps.mean == pytest.approx(0, abs=1e-12)
    assert found.overlaps.welch_floor == 0.0


def test_a_half_is_not_more_than_a_half() -> None:
    model = one_hot()
    model.W[0] *= 0.5
    model.W[1] *= 0.5001
    assert measure(model, 2, Scratch()).phi_half == 19 / 200


def test_an_output_that_its_own_input_cannot_wake_is_silent() -> None:
    """x_i <= 2 and ||W_i|| = 1: silent from b_i = -2 on. It costs all of its (4/3) p_i; its row is
    long, so it counts as represented."""
    model = one_hot()
    model.b[:3] = (-2.0, -1.999, -5.0)
    found = measure(model, 300, Scratch())
    p = CONFIG.frequencies.probabilities()
    assert found.phi_half == 20 / 200
    assert found.silent_fraction == pytest.approx(2 / 20)
    assert found.silent_loss == pytest.approx(4 / 3 * (p[0] + p[2]))
    assert found.feature_loss[0] == pytest.approx(4 / 3 * p[0], rel=0.02)
    # Features that are not represented are not counted, whatever their bias.
    model.b[20:] = -9.0
    assert measure(model, 2, Scratch()).silent_fraction == pytest.approx(2 / 20)


def doubled(config: ToyConfig) -> ToyModel:
    """Two features on each axis, of which the second is silent."""
    model, m = one_hot(config), config.m
    model.W[m : 2 * m] = np.eye(m)
    model.b[m : 2 * m] = -3.0
    return model


def test_silent_outputs_are_set_apart_from_the_overlaps() -> None:
    """m of the m (2m - 1) pairs are parallel, none without the silent half."""
    rows = []
    for m in (10, 15, 25):
        config = replace(CONFIG, decay=-1.0, m=m)
        found = measure(doubled(config), 2, Scratch())
        assert found.overlaps is not None
        assert found.overlaps.mean == pytest.approx(1 / (2 * m - 1))
        assert found.speaking_overlap == pytest.approx(0, abs=1e-12)
        rows += quantities(config, replace(found, loss=2 * found.silent_loss))
    models = wide(pd.DataFrame(rows))
    claims = {claim.quantity: claim for claim in reproduction(models)}
    silent = claims["silent outputs (2 norm^2 + b <= 0), strong"]
    assert (silent.low, silent.high) == (0.5, 0.5)
    assert claims["(4/3) sum of p_i of silent outputs / loss, strong"].ours == pytest.approx(0.5)
    others = claims["mean squared overlap of the others in units of 1/m, strong"]
    assert others.ours == pytest.approx(0, abs=1e-9)
    # Tables of before have no such columns, and are read as before.
    before = models.drop(columns=["silent_fraction", "silent_loss", "speaking_overlap"])
    assert len(reproduction(before)) == len(claims) - 3


def test_capacity_is_shared_by_parallel_features() -> None:
    """Two features on one axis have half a dimension each; a scale of all rows changes nothing."""
    model = one_hot()
    model.W[20] = model.W[0]
    model.W *= 3
    found = measure(model, 2, Scratch())
    assert found.capacities[0] == pytest.approx(0.5)
    assert found.capacities[20] == pytest.approx(0.5)
    assert found.capacities.sum() == pytest.approx(20)


def test_random_directions_have_the_overlaps_of_chance() -> None:
    """2,000 Gaussian rows: mean 1/m within five standard errors, the Beta distribution too."""
    m = 32
    rows = np.random.default_rng(0).standard_normal((2000, m))
    found = measure_overlaps(rows * np.linspace(0.5, 9, 2000)[:, None])
    assert found is not None
    pairs = 2000 * 1999 / 2
    assert found.mean == pytest.approx(1 / m, abs=5 * (found.random_variance / pairs) ** 0.5)
    assert found.variance == pytest.approx(found.random_variance, rel=0.02)
    assert found.ks < 0.002
    np.testing.assert_allclose(found.quantiles, found.random_quantiles, rtol=0.05)
    assert found.welch_floor < found.mean
    # Drawn pairs say the same as all of them: 3,000 rows have more pairs than are looked at.
    many = measure_overlaps(np.random.default_rng(1).standard_normal((3000, m)))
    assert many is not None
    assert many.ks < 0.002


def test_an_orthoplex_reaches_its_known_overlaps() -> None:
    """Plus and minus the axes in 8 dimensions: 8 of 120 pairs at 1, the others at 0; not chance."""
    found = measure_overlaps(np.concatenate([np.eye(8), -np.eye(8)]))
    assert found is not None
    assert found.mean == pytest.approx(8 / 120)
    assert found.mean == pytest.approx(found.welch_floor)
    assert found.variance == pytest.approx(8 / 120 - (8 / 120) ** 2)
    assert found.ks > 0.5


def test_too_few_rows_have_no_overlaps() -> None:
    assert measure_overlaps(np.ones((1, 4))) is None
    assert measure_overlaps(np.ones((5, 1))) is None


def test_exponent_of_an_exact_law_and_its_coverage() -> None:
    m = np.array([10, 15, 25, 39, 63, 100])
    exact = fit_exponent(m, 3 * m**-0.7)
    assert exact.value == pytest.approx(0.7)
    assert exact.ci_high - exact.ci_low < 1e-6
    generator = np.random.default_rng(0)
    noisy = [fit_exponent(m, 3 * m**-0.7 * np.exp(0.05 * generator.normal(size=6)))
             for _ in range(800)]  # fmt: skip
    covered = np.mean([f.ci_low <= 0.7 <= f.ci_high for f in noisy])
    assert covered == pytest.approx(0.95, abs=0.025)


def test_what_is_left_out_falls_like_a_minus_one_only_far_below_n() -> None:
    """Near n the sum falls off faster; with n = 10^6 the slope is a - 1."""
    three = Frequencies("power", 2.0, 4)
    p = three.probabilities()
    left = [p[1:].sum(), p[2:].sum(), p[3:].sum()]
    slope = -np.polyfit(np.log([1, 2, 3]), np.log(left), 1)[0]
    assert left_out_exponent(three, [3, 1, 2, 2]) == pytest.approx(slope)
    assert left_out_exponent(three, [1, 2, 4]) is None
    wide_enough = left_out_exponent(Frequencies("power", 2.0, 10**6), [100, 150, 200])
    assert wide_enough == pytest.approx(1.0, abs=0.01)
    assert left_out_exponent(Frequencies("power", 1.5, 1000), [10, 15, 25, 39, 63, 100]) == (
        pytest.approx(0.607, abs=0.001)
    )


def test_exponent_refuses() -> None:
    found = fit_exponent(np.array([10, 10, 20]), np.array([1.0, 1.1, 0.5]))
    assert found.value is None
    assert "2 widths" in str(found.reason)
    with pytest.raises(ValueError, match="positive finite"):
        fit_exponent(np.array([10, 20, 40]), np.array([1.0, 0.0, 0.5]))


def sweep_table(loss_of) -> pd.DataFrame:
    """`tables.wide` of made-up models whose loss is `loss_of(config)`."""
    rows = []
    for decay in (-1.0, -0.5, 0.1, 1.0):
        for m in (10, 15, 25):
            config = replace(CONFIG, decay=decay, m=m)
            found = replace(measure(one_hot(config), 2, Scratch()), loss=loss_of(config))
            rows += quantities(config, found)
    return wide(pd.DataFrame(rows))


def test_regimes_and_lines() -> None:
    models = sweep_table(lambda c: c.m ** (-1.0 if c.decay < 0 else -0.5))
    assert dict(zip(models.decay, models.regime, strict=True)) == {
        -1.0: "strong", -0.5: "between", 0.1: "weak", 1.0: "decayed",
    }  # fmt: skip
    assert len(models) == 12
    assert set(KEYS) <= set(models.columns)
    found = {line["decay"]: line for line in lines(models)}
    assert found[-1.0]["alpha"]["value"] == pytest.approx(1.0)
    assert found[0.1]["alpha"]["value"] == pytest.approx(0.5)
    assert found[0.1]["m"] == [10, 15, 25]
    assert found[0.1]["phi_half"] == pytest.approx(50 / 3 / 200)
    json.dumps(list(found.values()), allow_nan=False)


def test_reproduction_says_agrees_differs_and_not_run() -> None:
    def claims(exponent: float, size: float = 0.001):
        noise = {10: 1 + size, 15: 1 - 2 * size, 25: 1 + size}
        models = sweep_table(lambda c: noise[c.m] * c.m**-exponent)
        return {claim.quantity: claim for claim in reproduction(models)}

    name = "loss exponent, weak, p ~ i^-1.5"
    assert claims(0.5)[name].verdict == "agrees"
    assert claims(5.0)[name].verdict == "differs"
    assert claims(0.5, 0.02)[name].verdict == "too wide to tell"
    found = claims(0.5)
    assert found[name].ours == pytest.approx(0.5, abs=0.05)
    assert found["phi_1/2 in units of m/n, weak"].ours == pytest.approx(1.0)
    assert found["loss exponent, strong, p ~ exp(-i/400)"].verdict == "not run"
    assert found["loss exponent, strong, p ~ exp(-i/400)"].ours is None
    assert found[f"{name}, finite n"].published.startswith("0.683 ")
    json.dumps([asdict(claim) for claim in found.values()], allow_nan=False)
    ratio = found["loss / ((4/3) sum of unrepresented p_i), weak"]
    assert ratio.low <= ratio.ours <= ratio.high
    text = table(list(found.values()))
    assert "| 0.5 (a - 1) |" in text
    # Three laws at the large size, two claims on density; and no rows that had to overlap.
    assert text.count("not run") == 6


def test_reproduction_over_densities() -> None:
    """Loss E / m: slope 1 in E at every width, exponent 1 in m at every density."""
    rows = []
    for density in (1.0, 2.0, 4.0):
        for m in (10, 15, 25):
            frequencies = Frequencies("power", 1.0, 200, density)
            config = replace(CONFIG, frequencies=frequencies, m=m, decay=-1.0)
            found = measure(one_hot(config), 2, Scratch())
            rows += quantities(config, replace(found, loss=density / m))
    models = wide(pd.DataFrame(rows))
    found = {claim.quantity: claim for claim in reproduction(models)}
    slope = found["slope of log loss on log E, strong"]
    assert (slope.ours, slope.low, slope.high) == pytest.approx((1.0, 1.0, 1.0))
    exponents = found["loss exponents over E, strong"]
    assert exponents.ours == pytest.approx(1.0)
    assert exponents.verdict == "agrees"
    one = {c.quantity: c for c in reproduction(models[models.density == 1])}
    assert one["loss exponents over E, strong"].verdict == "not run"
