"""Rank tests against scipy's permutations, the packing exponent against ordinary regression."""

import json
import math
from itertools import permutations, product

import numpy as np
import pytest
import torch
from scipy import optimize, stats

from interp.correlate import (
    ExponentFit,
    difference,
    fit_exponent,
    kendall,
    partial_spearman,
    spearman,
    spearman_exact,
    spearman_within,
)
from interp.kendall import order_test

WIDTHS = np.array([32.0, 48, 64, 96, 128, 160, 192, 256])


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# ---- Spearman


@pytest.mark.parametrize(("n", "least"), [(3, 1 / 3), (4, 0.083), (5, 0.017), (6, 0.0028)])
def test_least_p_that_n_models_can_reach(n, least):
    found = spearman_exact(np.arange(n), np.exp(np.arange(n)))
    assert found.value == 1
    assert found.p == pytest.approx(2 / math.factorial(n))
    assert found.p == pytest.approx(least, abs=5e-4)
    assert (found.ci_low, found.ci_high) == (None, None)
    assert found.reason is not None
    json.dumps(found.to_json(), allow_nan=False)


def test_p_is_that_of_all_arrangements():
    rng = np.random.default_rng(0)
    for n in (4, 5, 6):
        for _ in range(1 if n == 6 else 3):
            # Small integers: ties on both sides.
            x, y = rng.integers(0, 4, size=(2, n)).astype(float)
            x[0], y[0] = 9, 9
            reference = stats.permutation_test(
                (x,),
                lambda a, y=y: stats.spearmanr(a, y).statistic,
                permutation_type="pairings",
                n_resamples=np.inf,
                alternative="two-sided",
            )
            found = spearman_exact(x, y)
            assert found.value == pytest.approx(reference.statistic)
            # scipy doubles the smaller tail; with ties the two tails may differ.
            null = np.abs(reference.null_distribution)
            assert found.p == pytest.approx(np.mean(null >= abs(found.value) - 1e-9))


def test_invariances_of_spearman():
    x, y = np.random.default_rng(1).normal(size=(2, 7))
    base = spearman_exact(x, y)
    order = np.random.default_rng(2).permutation(7)
    assert spearman_exact(x[order], y[order]) == base
    assert spearman_exact(np.exp(x), y**3) == base
    flipped = spearman_exact(x, -y)
    assert flipped.value == pytest.approx(-base.value)
    assert flipped.p == base.p
    assert flipped.ci_low == pytest.approx(-base.ci_high)


def test_bonett_wright_interval_by_hand():
    x, y = np.arange(8.0), np.array([1.0, 0, 3, 2, 5, 4, 7, 6])
    rho = 1 - 6 * 8 / (8 * 63)
    half = 1.959964 * math.sqrt((1 + rho**2 / 2) / 5)
    found = spearman_exact(x, y)
    assert found.value == pytest.approx(rho)
    assert found.ci_low == pytest.approx(math.tanh(math.atanh(rho) - half))
    assert found.ci_high == pytest.approx(math.tanh(math.atanh(rho) + half))


def test_monte_carlo_beyond_nine():
    rng = np.random.default_rng(3)
    x = rng.normal(size=12)
    y = x + 1.2 * rng.normal(size=12)
    found = spearman_exact(x, y, generator=generator())
    assert found.method == "monte carlo"
    # Edgeworth-accurate t approximation at n = 12.
    assert found.p == pytest.approx(stats.spearmanr(x, y).pvalue, abs=0.01)
    assert found == spearman_exact(x, y, generator=generator())
    with pytest.raises(ValueError, match="give a generator"):
        spearman_exact(x, y)


def test_undefined_correlations_say_why():
    assert spearman_exact([1, 2], [1, 2]).value is None
    flat = spearman_exact([1, 2, 3, 4], [5, 5, 5, 5])
    assert flat.value is None
    assert "equal" in flat.reason
    with pytest.raises(ValueError, match="finite"):
        spearman_exact([1, 2, float("nan")], [1, 2, 3])
    with pytest.raises(ValueError, match="3 and 4"):
        spearman_exact([1, 2, 3], [1, 2, 3, 4])


def test_false_positive_rate_of_the_exact_test():
    """Under independence p <= 1/20 at most 5% of the time: 1500 draws of n = 6, 3 se = 1.7%."""
    rng = np.random.default_rng(0)
    p = [spearman_exact(*rng.normal(size=(2, 6))).p for _ in range(1500)]
    assert 0.01 < np.mean(np.array(p) <= 0.05) < 0.067


def false_positives(n: int, n_draws: int, test) -> float:
    rng = np.random.default_rng(0)
    return float(np.mean([test(*rng.normal(size=(2, n))).p <= 0.05 for _ in range(n_draws)]))


def monte_carlo(gen: torch.Generator):
    return lambda x, y: spearman_exact(x, y, generator=gen, n_draws=999)


def test_false_positive_rate_of_the_monte_carlo_test():
    """2,000 draws of n = 14: 5%, with 3 standard errors of 1.5 points."""
    assert false_positives(14, 2_000, monte_carlo(generator())) == pytest.approx(0.05, abs=0.015)


@pytest.mark.slow
def test_false_positive_rates_over_ten_thousand_draws():
    """3 standard errors of 10,000 draws are .65 points, about each test's own size."""
    assert false_positives(14, 10_000, monte_carlo(generator())) == pytest.approx(0.05, abs=0.0066)
    # Sizes of the exact tests, which may not use all of .05: (values with p <= .05) / n!.
    for n, size in ((5, 2 / 120), (6, 24 / 720)):
        found = false_positives(n, 10_000, spearman_exact)
        assert found <= 0.05 + 0.0066
        assert found == pytest.approx(size, abs=0.0066)


def test_a_drawn_p_is_never_zero():
    """The observed order is one of those drawn: 99 draws cannot say less than 1/100."""
    found = spearman_exact(np.arange(12), np.arange(12), generator=generator(), n_draws=99)
    assert (found.p, found.method) == (0.01, "monte carlo")


def test_the_bootstrap_interval_covers():
    """200 draws of n = 12 at rho .6: 95%, with 3 standard errors of 4.6 points."""
    rng, gen = np.random.default_rng(0), generator()
    r, covered = 2 * math.sin(math.pi * 0.6 / 6), 0
    for _ in range(200):
        x, noise = rng.normal(size=(2, 12))
        found = spearman(x, r * x + math.sqrt(1 - r * r) * noise, generator=gen, n_draws=10)
        covered += found.ci_low <= 0.6 <= found.ci_high
    assert 0.904 <= covered / 200 < 1


def test_both_correlations_of_an_arm():
    rng = np.random.default_rng(3)
    x = rng.normal(size=14)
    y = x + rng.normal(size=14)
    rank, tau = spearman(x, y, generator=generator()), kendall(x, y, generator=generator())
    base = spearman_exact(x, y, generator=generator())
    assert (rank.value, rank.p) == (base.value, base.p)
    assert rank.ci_low < rank.value < rank.ci_high
    reference = stats.kendalltau(x, y, method="exact")
    assert (tau.value, tau.p) == pytest.approx((reference.statistic, reference.pvalue))
    assert tau.ci_low < tau.value < tau.ci_high
    assert rank == spearman(x, y, generator=generator())
    order = rng.permutation(14)
    assert kendall(x[order], y[order], generator=generator()).p == tau.p
    assert kendall(np.exp(x), y**3, generator=generator()) == tau


def test_undefined_intervals_of_an_arm_say_why():
    perfect = spearman(np.arange(8), np.arange(8), generator=generator())
    assert (perfect.ci_low, perfect.reason) == (None, "no interval at |rho| = 1")
    few = kendall([1, 2, 3, 4, 5], [1, 3, 2, 5, 4], generator=generator())
    assert few.ci_low is None
    assert "needs 6" in few.reason
    assert "needs three" in kendall([1, 2], [1, 2], generator=generator()).reason
    assert "equal" in kendall([1, 2, 3], [1, 1, 1], generator=generator()).reason
    with pytest.raises(ValueError, match="finite"):
        kendall([1, 2, float("nan")], [1, 2, 3], generator=generator())


# ---- within levers


LEVERS = ["rows"] * 5 + ["tokens"] * 4 + ["base"] * 3


def test_within_groups_by_brute_force():
    rng = np.random.default_rng(6)
    # Groups apart in both, which is to be left out.
    x, y = rng.normal(size=(2, 7)) + 2 * np.array([0, 1, 0, 1, 0, 0, 1])
    groups = ["a", "b", "a", "b", "a", "a", "b"]
    found = spearman_within(x, y, groups, generator=generator())

    def statistic(values):
        ranks = [stats.rankdata(v) for v in (x, values)]
        for r in ranks:
            for g in "ab":
                own = [i for i in range(7) if groups[i] == g]
                r[own] -= r[own].mean()
        return np.corrcoef(*ranks)[0, 1]

    null = []
    for a, b in product(permutations((0, 2, 4, 5)), permutations((1, 3, 6))):
        order = np.arange(7)
        order[[0, 2, 4, 5]], order[[1, 3, 6]] = a, b
        null.append(statistic(y[order]))
    assert found.value == pytest.approx(statistic(y))
    assert found.p == pytest.approx(np.mean(np.abs(null) >= abs(found.value) - 1e-9))
    assert found.method == "exact within groups"


def test_a_lever_that_moves_both_is_found_over_the_arm_and_not_within_levers():
    """400 draws with no relation but through the lever: the negative control of the pooled test."""
    rng, gen = np.random.default_rng(0), generator()
    pooled = within = 0
    shift = np.array([3.0] * 5 + [-3.0] * 4 + [0.0] * 3)
    for _ in range(400):
        x, y = shift + rng.normal(size=(2, 12))
        pooled += spearman_exact(x, y, generator=gen, n_draws=199).p <= 0.05
        within += spearman_within(x, y, LEVERS, generator=gen, n_draws=199).p <= 0.05
    assert pooled / 400 > 0.9
    # 5% with 3 standard errors of 3.3 points.
    assert within / 400 < 0.083


@pytest.mark.slow
def test_false_positive_rates_of_the_arms_other_tests_over_ten_thousand_draws():
    """Kendall over 14 models and the correlation within levers, under a lever that moves both:
    5%, with 3 standard errors of .65 points."""
    rng, gen = np.random.default_rng(1), generator()
    shift = np.array([3.0] * 5 + [-3.0] * 4 + [0.0] * 3)
    tau = within = 0
    for _ in range(10_000):
        tau += order_test(*rng.normal(size=(2, 14)), generator=gen)[0] <= 0.05
        x, y = shift + rng.normal(size=(2, 12))
        within += spearman_within(x, y, LEVERS, generator=gen, n_draws=999).p <= 0.05
    assert tau / 10_000 == pytest.approx(0.05, abs=0.0066)
    assert within / 10_000 == pytest.approx(0.05, abs=0.0066)


def test_within_levers_does_not_leave_out_a_levers_own_dose():
    """200 draws in which the dose moves both and neither the other: what the caption warns of."""
    rng, gen = np.random.default_rng(0), generator()
    dose = np.array([-1.0, -0.5, 0, 0.5, 1, -1, -0.3, 0.3, 1, 0, 0, 0])
    alarms = sum(
        spearman_within(
            *(2 * dose + rng.normal(size=(2, 12))), LEVERS, generator=gen, n_draws=199
        ).p
        <= 0.05
        for _ in range(200)
    )
    assert alarms / 200 > 0.5


def test_groups_that_do_not_vary_say_so():
    flat = spearman_within([1, 1, 2, 2], [1, 2, 3, 4], list("aabb"), generator=generator())
    assert flat.value is None
    assert "no group" in flat.reason
    alone = spearman_within([1, 2, 3], [1, 2, 3], list("abc"), generator=generator())
    assert (alone.value, alone.n_models) == (None, 0)
    with pytest.raises(ValueError, match="3, 3 and 2"):
        spearman_within([1, 2, 3], [1, 2, 3], list("ab"), generator=generator())


# ---- partial


def test_partial_is_null_where_loss_is_a_function_of_width():
    rng = np.random.default_rng(0)
    packing, loss = rng.normal(size=(2, 8))
    found = partial_spearman(packing, loss, WIDTHS)
    assert found.value is None
    assert found.p is None
    assert "function of d_model" in found.reason
    twice = np.repeat([32.0, 64, 96, 128], 2)
    same_loss = partial_spearman(packing, np.repeat([4.0, 3, 2, 1], 2), twice)
    assert "loss" in same_loss.reason
    same_packing = partial_spearman(np.repeat([4.0, 3, 2, 1], 2), loss, twice)
    assert "packing" in same_packing.reason
    assert "plain" in partial_spearman(packing, loss, np.ones(8)).reason
    assert "needs five" in partial_spearman([1, 2, 3, 4], [1, 3, 2, 4], [1, 1, 2, 2]).reason


def test_partial_by_regression_and_its_p():
    rng = np.random.default_rng(4)
    width = np.array([1.0, 1, 1, 2, 2, 2, 3, 3])
    x = width + rng.normal(size=8)
    y = width - 0.8 * x + 0.3 * rng.normal(size=8)
    found = partial_spearman(x, y, width)
    ranks = [stats.rankdata(v) for v in (x, y, width)]
    design = np.stack([np.ones(8), ranks[2]], axis=1)
    left = [r - design @ np.linalg.lstsq(design, r, rcond=None)[0] for r in ranks[:2]]
    assert found.value == pytest.approx(np.corrcoef(*left)[0, 1])
    # 3! 3! 2! = 72 arrangements, by brute force through the statistic itself.
    values = []
    for a, b, c in product(permutations(range(3)), permutations((3, 4, 5)), permutations((6, 7))):
        values.append(partial_spearman(x, y[[*a, *b, *c]], width).value)
    assert len(values) == 72
    assert found.p == pytest.approx(np.mean(np.abs(values) >= abs(found.value) - 1e-9))
    assert found.method == "exact within d_model"


def test_partial_of_a_large_group_needs_a_generator():
    rng = np.random.default_rng(5)
    x, y = rng.normal(size=(2, 14))
    width = np.array([1.0] * 12 + [2.0, 2.0])
    assert partial_spearman(x, y, width).p is None
    found = partial_spearman(x, y, width, generator=generator())
    assert found.method == "monte carlo within d_model"
    assert 0 < found.p <= 1


# ---- the exponent


def ladder(beta: float, scatter: float, seed: int = 0) -> np.ndarray:
    return 3 * WIDTHS**beta * np.exp(scatter * np.random.default_rng(seed).normal(size=8))


def test_without_censoring_it_is_the_regression():
    counts = ladder(0.7, 0.1)
    found = fit_exponent(WIDTHS, counts)
    line = stats.linregress(np.log(WIDTHS), np.log(counts))
    half = stats.t.ppf(0.975, 6) * line.stderr
    assert found.beta == pytest.approx(line.slope, abs=1e-4)
    assert found.ci_low == pytest.approx(line.slope - half, abs=2e-4)
    assert found.ci_high == pytest.approx(line.slope + half, abs=2e-4)
    assert found.p_against_0 == pytest.approx(line.pvalue, rel=0.01)
    t = (line.slope - 1) / line.stderr
    assert found.p_against_1 == pytest.approx(2 * stats.t.sf(abs(t), 6), rel=0.01)
    assert (found.n_models, found.n_censored, found.reason) == (8, 0, None)
    json.dumps(found.to_json(), allow_nan=False)


def test_invariances_of_the_exponent():
    counts = ladder(0.7, 0.1)
    low, high = counts * 0.9, counts * 1.2
    base = fit_exponent(WIDTHS, counts, low, high)
    order = np.random.default_rng(0).permutation(8)
    for other in (
        fit_exponent(WIDTHS * 7, counts, low, high),
        fit_exponent(WIDTHS, counts * 7, low * 7, high * 7),
        fit_exponent(WIDTHS[order], counts[order], low[order], high[order]),
    ):
        assert other.beta == pytest.approx(base.beta, abs=1e-4)
        assert other.ci_high == pytest.approx(base.ci_high, abs=1e-3)
    per_dim = fit_exponent(WIDTHS, counts / WIDTHS, low / WIDTHS, high / WIDTHS)
    assert per_dim.beta == pytest.approx(base.beta - 1, abs=1e-4)
    assert per_dim.p_against_0 == pytest.approx(base.p_against_1, rel=0.01)


def test_a_wide_interval_weighs_less():
    counts = ladder(1.0, 0.02)
    counts[-1] *= 3
    low, high = counts * 0.97, counts * 1.03
    trusted = fit_exponent(WIDTHS, counts, low, high)
    low[-1], high[-1] = 0, counts[-1] * 6
    doubted = fit_exponent(WIDTHS, counts, low, high)
    assert abs(doubted.beta - 1) < 0.1 < abs(trusted.beta - 1)


def test_censored_rows_are_bounds():
    # The truth has slope 1; the widest are cut off at 100.
    counts = ladder(1.0, 0.05) / 3
    censored = counts > 100
    cut = np.minimum(counts, 100.0)
    assert censored.sum() == 4
    naive = fit_exponent(WIDTHS, cut)
    tobit = fit_exponent(WIDTHS, cut, censored=censored)
    assert naive.ci_high < 1
    assert tobit.ci_low < 1
    assert tobit.ci_high is None or tobit.ci_high > 1
    assert tobit.n_censored == 4
    assert "censored" in tobit.method


def test_censored_fit_maximises_the_tobit_likelihood():
    """Independent reference: the joint likelihood by a general optimiser."""
    counts = ladder(0.8, 0.3, seed=3)
    low, high = counts * 0.9, counts * 1.1
    censored = np.arange(8) % 3 == 0
    found = fit_exponent(WIDTHS, counts, low, high, censored)
    x, y, sigma = np.log(WIDTHS), np.log(counts), 0.1 / 1.959964

    def negative(p):
        s = np.sqrt(sigma**2 + np.exp(2 * p[2]))
        u = (y - p[0] - p[1] * x) / s
        return -np.where(censored, stats.norm.logsf(u), stats.norm.logpdf(u) - np.log(s)).sum()

    fits = [
        optimize.minimize(
            negative, [1.0, 0.8, start], method="Nelder-Mead", options={"maxiter": 4000}
        )
        for start in (-3, -1)
    ]
    best = min(fits, key=lambda f: f.fun)
    assert found.beta == pytest.approx(best.x[1], abs=2e-3)
    assert found.scatter == pytest.approx(np.exp(best.x[2]), rel=0.02)


def test_counts_of_nothing_are_upper_bounds():
    counts = np.array([0.0, 0, 1, 5, 2, 8, 3, 4])
    high = counts + 3
    found = fit_exponent(WIDTHS, counts, np.maximum(counts - 3, 0), high)
    assert (found.n_models, found.n_censored) == (8, 2)
    assert found.ci_low < found.beta
    dropped = fit_exponent(WIDTHS, counts)
    assert dropped.n_models == 6
    assert "2 rows have no positive count" in dropped.reason


def test_unbounded_limit_is_null_with_a_reason():
    # Three close widths that disagree, and a bound above: any steep slope remains possible.
    widths, counts = np.array([32.0, 33, 34, 256]), np.array([10.0, 14, 9, 10])
    found = fit_exponent(widths, counts, censored=np.array([False, False, False, True]))
    assert found.ci_high is None
    assert "upper" in found.reason


def test_coverage_of_beta():
    """120 replicates with scatter and noisy intervals; 95% nominal, se 2 points: at least 89%."""
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(120):
        truth = 3 * WIDTHS**0.8 * np.exp(0.08 * rng.normal(size=8))
        counts = truth * (1 + 0.05 * rng.normal(size=8))
        found = fit_exponent(WIDTHS, counts, counts * 0.9, counts * 1.1)
        covered += found.ci_low <= 0.8 <= found.ci_high
    assert covered >= 0.89 * 120


def test_too_few_counts_are_refused():
    three = fit_exponent(WIDTHS[:3], np.ones(3))
    assert three.beta is None
    assert "needs 4" in three.reason
    bounds = fit_exponent(WIDTHS, WIDTHS, censored=np.arange(8) > 1)
    assert "only bounds" in bounds.reason
    assert bounds.beta is None
    two_widths = fit_exponent([32, 32, 64, 64], [1, 2, 3, 4])
    assert "2 widths" in two_widths.reason
    with pytest.raises(ValueError, match="d_model must be positive"):
        fit_exponent([0, 1, 2, 3], [1, 2, 3, 4])
    with pytest.raises(ValueError, match="one d_model, count"):
        fit_exponent(WIDTHS, np.ones(3))


def fit(beta, half, n=8) -> ExponentFit:
    return ExponentFit(beta, beta - half, beta + half, n, 0, 0.5, 0.5, 0.1, "test")


def test_difference_from_the_twin():
    t = stats.t.ppf(0.975, 6)
    found = difference(fit(1.0, t * 0.3), fit(0.5, t * 0.4))
    # Standard errors .3 and .4: .5, Welch degrees of freedom .25^2 / ((.09^2 + .16^2) / 6).
    freedom = 0.25**2 / ((0.09**2 + 0.16**2) / 6)
    assert found.value == pytest.approx(0.5)
    assert found.ci_high - found.value == pytest.approx(0.5 * stats.t.ppf(0.975, freedom))
    assert found.p == pytest.approx(2 * stats.t.sf(1, freedom))
    undetermined = fit_exponent(WIDTHS[:3], np.ones(3))
    refused = difference(fit(1.0, 0.1), undetermined)
    assert refused.value is None
    assert "the twin's beta" in refused.reason
