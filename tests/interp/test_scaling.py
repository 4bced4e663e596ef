"""L = A / m^alpha + B: recovery, agreement with scipy, coverage, refusals, units."""

import json

import numpy as np
import pytest
from scipy import optimize

from interp.scaling import fit_power_law

WIDTHS = np.array([32.0, 48, 64, 96, 128, 160, 192, 256])


def losses(sd: float, seed: int = 0, A: float = 20.0, alpha: float = 0.6, B: float = 1.2):
    return A * WIDTHS**-alpha + B + sd * np.random.default_rng(seed).normal(size=8)


def test_an_exact_law_is_recovered():
    for A, alpha, B in ((20, 0.6, 1.2), (476, 0.9, 0.0), (3, 0.2, 0.5), (900, 2.5, 3.0)):
        found = fit_power_law(WIDTHS, losses(0.0, A=A, alpha=alpha, B=B))
        assert found.alpha.value == pytest.approx(alpha, rel=1e-4)
        assert found.A.value == pytest.approx(A, rel=1e-4)
        assert found.B.value == pytest.approx(B, abs=1e-4)
        assert found.identified
    assert "alpha at fixed tokens" in found.caption


def test_agrees_with_scipy():
    loss = losses(0.01)
    found = fit_power_law(WIDTHS, loss)
    best, covariance = optimize.curve_fit(
        lambda m, A, alpha, B: A * m**-alpha + B, WIDTHS, loss, p0=(20, 0.6, 1.2)
    )
    parameters = (found.A, found.alpha, found.B)
    np.testing.assert_allclose([p.value for p in parameters], best, rtol=1e-3)
    np.testing.assert_allclose([p.se for p in parameters], np.sqrt(np.diag(covariance)), rtol=0.01)
    residuals = loss - (best[0] * WIDTHS ** -best[1] + best[2])
    np.testing.assert_allclose(found.residuals, residuals, atol=1e-4)
    assert found.residual_sd == pytest.approx(np.sqrt((residuals**2).sum() / 5), rel=1e-3)
    for p in parameters:
        assert p.ci_low < p.value < p.ci_high
    json.dumps(found.to_json(), allow_nan=False)


def test_limits_lie_on_the_profile():
    """At a limit of one parameter the others, refitted by scipy, reach exactly F(.95; 1, 5)."""
    loss = losses(0.01)
    found = fit_power_law(WIDTHS, loss)
    least = np.sum(np.square(found.residuals))
    allowed = least * (1 + 6.6079 / 5)

    def rest(fixed):
        def squares(p):
            values = iter(p)
            A, alpha, B = (next(values) if v is None else v for v in fixed)
            return A * WIDTHS**-alpha + B - loss

        start = [v for v, f in zip((20, 0.6, 1.2), fixed, strict=True) if f is None]
        return 2 * optimize.least_squares(squares, start, x_scale=start, xtol=1e-12).cost

    for position, p in enumerate((found.A, found.alpha, found.B)):
        for limit in (p.ci_low, p.ci_high):
            fixed = [None, None, None]
            fixed[position] = limit
            assert rest(fixed) == pytest.approx(allowed, rel=1e-3)


def test_units_of_loss_and_width():
    loss = losses(0.01)
    base = fit_power_law(WIDTHS, loss)
    bits = fit_power_law(WIDTHS, loss / np.log(2))
    assert bits.alpha.value == pytest.approx(base.alpha.value, rel=1e-4)
    assert bits.alpha.ci_high == pytest.approx(base.alpha.ci_high, rel=1e-4)
    assert bits.B.ci_low == pytest.approx(base.B.ci_low / np.log(2), rel=1e-3)
    heads = fit_power_law(WIDTHS / 16, loss)
    assert heads.alpha.ci_low == pytest.approx(base.alpha.ci_low, rel=1e-4)
    assert heads.A.value == pytest.approx(base.A.value * 16**-base.alpha.value, rel=1e-3)
    order = np.random.default_rng(0).permutation(8)
    assert fit_power_law(WIDTHS[order], loss[order]).alpha.value == pytest.approx(
        base.alpha.value, rel=1e-6
    )


def test_coverage_of_alpha():
    """60 replicates, 95% nominal, standard error 2.8 points: at least 87%."""
    covered = 0
    for seed in range(60):
        alpha = fit_power_law(WIDTHS, losses(0.02, seed)).alpha
        low = 0 if alpha.ci_low is None else alpha.ci_low
        high = np.inf if alpha.ci_high is None else alpha.ci_high
        covered += low <= 0.6 <= high
    assert covered >= 0.87 * 60


def test_more_noise_is_less_certain_and_in_the_end_not_identified():
    spans = []
    for sd in (0.001, 0.01):
        alpha = fit_power_law(WIDTHS, losses(sd)).alpha
        spans.append(alpha.ci_high - alpha.ci_low)
    assert spans[1] > 5 * spans[0]
    noisy = fit_power_law(WIDTHS, losses(0.5, seed=2))
    assert not noisy.identified
    assert noisy.reason is not None


def test_four_widths_say_little():
    loss = losses(0.01)
    eight, four = fit_power_law(WIDTHS, loss), fit_power_law(WIDTHS[::2], loss[::2])
    assert not four.identified or (
        four.alpha.ci_high - four.alpha.ci_low > 3 * (eight.alpha.ci_high - eight.alpha.ci_low)
    )


def test_three_widths_are_refused():
    for widths in (WIDTHS[:3], np.array([32.0, 32, 48, 48, 64])):
        found = fit_power_law(widths, np.linspace(4, 3, len(widths)))
        assert found.alpha.value is None
        assert not found.identified
        assert "3 widths" in found.reason
        json.dumps(found.to_json(), allow_nan=False)


def test_stated_errors_weigh_and_are_a_floor():
    loss = losses(0.0)
    loss[2] += 0.3
    se = np.full(8, 0.01)
    se[2] = 10.0
    assert fit_power_law(WIDTHS, loss, se).alpha.value == pytest.approx(0.6, abs=0.01)
    assert abs(fit_power_law(WIDTHS, loss).alpha.value - 0.6) > 0.05
    # An exact law with stated errors keeps their width; without them it would have none.
    exact = fit_power_law(WIDTHS, losses(0.0), np.full(8, 0.01))
    twice = fit_power_law(WIDTHS, losses(0.0), np.full(8, 0.02))
    assert exact.alpha.se > 0.005
    assert twice.alpha.se == pytest.approx(2 * exact.alpha.se, rel=1e-3)


def test_a_loss_that_does_not_fall_has_no_exponent():
    for loss in (np.full(8, 2.0), WIDTHS**0.1):
        found = fit_power_law(WIDTHS, loss)
        assert found.alpha.value is None
        assert not found.identified
        assert "does not fall" in found.reason
        json.dumps(found.to_json(), allow_nan=False)


def test_the_floor_is_not_negative():
    # A logarithm falls without end: the best B would be negative.
    found = fit_power_law(WIDTHS, 10 - np.log(WIDTHS))
    assert found.B.value == 0
    assert found.B.se is None
    assert found.B.ci_low == 0


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match="8 widths, 7 losses"):
        fit_power_law(WIDTHS, np.ones(7))
    with pytest.raises(ValueError, match="finite losses"):
        fit_power_law(WIDTHS, np.full(8, np.nan))
    with pytest.raises(ValueError, match="finite losses"):
        fit_power_law(-WIDTHS, np.ones(8))
