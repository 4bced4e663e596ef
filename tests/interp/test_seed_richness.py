"""Capture and recapture over seeds: by hand, and against junk that only one seed has."""

import numpy as np
import pytest

from interp.estimate import InsufficientData
from interp.seed_richness import chao2_robust, chapman, robust_singletons, seed_richness
from saes.matching import ReproducibleCount


def count(found: np.ndarray, junk: int = 0) -> ReproducibleCount:
    """From a [kind, seed] table of what each seed found; `junk` more latents of every seed."""
    n_seeds = found.shape[1]
    shared = found[found.sum(axis=1) >= 2]
    classes = np.where(shared, np.arange(len(shared))[:, None], -1)
    n_live = tuple(int(n) + junk for n in found.sum(axis=0))
    sizes = shared.sum(axis=1)
    return ReproducibleCount(
        s_ge={r: int((sizes >= r).sum()) for r in range(2, n_seeds + 1)},
        class_sizes=sizes,
        classes=classes,
        n_seeds=n_seeds,
        n_live=n_live,
        n_merged=(0,) * n_seeds,
        threshold=0.7,
        duplicate_cosine=0.7,
        min_correlation=0.5,
        mean_cosine=None,
        mean_correlation=None,
    )


def simulated(n=400, n_seeds=5, p=0.6, seed=0) -> np.ndarray:
    return np.random.default_rng(seed).random((n, n_seeds)) < p


def by_name(counted: ReproducibleCount) -> dict[str, float]:
    return {e.estimator: e.value for e in seed_richness(counted, d_in=50, d_sae=1024, k=4)}


def test_by_hand():
    assert chapman(9, 7, 3) == pytest.approx(10 * 8 / 4 - 1)
    # 2 * 3 / (3 * 4) * 6^2 / 9 = 2 of five seeds; without Q3 it is 0.5 * 6 * 5.
    assert robust_singletons(6, 9, 5) == pytest.approx(2.0)
    assert robust_singletons(6, 0, 5) == pytest.approx(15.0)
    assert robust_singletons(6, 9, 2) == 0.0
    # Q = 7, 6, 9 and one of four: 16 + 2 + 0.8 * 4 / 12.
    found_by = np.repeat([1, 2, 3, 4], [7, 6, 9, 1])
    assert chao2_robust(found_by, 5) == pytest.approx(16 + 2 + 0.8 * 4 / 12)


def test_singletons_follow_from_the_others_where_kinds_are_alike():
    # Binomial(5, p): Q1 = 5 p q^4, Q2 = 10 p^2 q^3, Q3 = 10 p^3 q^2 of n; the bound is exact.
    n, p = 1000.0, 0.4
    q = 1 - p
    q1, q2, q3 = 5 * p * q**4 * n, 10 * p**2 * q**3 * n, 10 * p**3 * q**2 * n
    assert 2 * 3 / (3 * 4) * q2**2 / q3 == pytest.approx(q1)


def test_all_find_the_number_where_there_is_no_junk():
    found = by_name(count(simulated()))
    for name in ("chapman_seeds", "chao2_seeds", "chao2_seeds_robust"):
        # Of 400; all three scatter by about 2%.
        assert found[name] == pytest.approx(400, rel=0.05), name


def test_junk_inflates_all_but_the_robust_one():
    found = by_name(count(simulated(), junk=120))
    assert found["chapman_seeds"] > 1.4 * 400
    assert found["chao2_seeds"] > 2 * 400
    assert found["chao2_seeds_robust"] == pytest.approx(400, rel=0.05)


def test_intervals_hold_the_number_without_junk():
    # 95% over 100 simulations: four standard errors (0.09) below. Seeds are what is drawn anew.
    covered = []
    for seed in range(100):
        estimates = seed_richness(count(simulated(seed=seed)), d_in=50, d_sae=1024, k=4)
        chapman_seeds = estimates[0]
        assert chapman_seeds.ci_low is not None
        assert chapman_seeds.ci_high is not None
        covered.append(chapman_seeds.ci_low <= 400 <= chapman_seeds.ci_high)
    assert np.mean(covered) > 0.86


def test_seeds_in_another_order_say_the_same():
    table = simulated()
    assert by_name(count(table)) == pytest.approx(by_name(count(table[:, ::-1])))


def test_two_seeds_are_refused_with_the_value():
    with pytest.raises(InsufficientData) as refusal:
        seed_richness(count(simulated(n_seeds=2)), d_in=50, d_sae=1024, k=4)
    partial = refusal.value.partial
    assert partial.value == pytest.approx(400, rel=0.1)
    assert (partial.identified, partial.ci_low) == (False, None)
