"""Features-per-dimension estimators: hand-worked values, planted truths, intervals, refusals."""

import json
import math

import numpy as np
import pytest
import torch
from scipy import stats

from interp.packing import (
    DocumentTotals,
    Estimate,
    InsufficientData,
    LatentSet,
    choose_k,
    converged,
    hill,
    hill_number,
    live_latents,
    reproducible_estimate,
)
from interp.reproducibility import Resampler, half_width
from interp.strictness import by_strictness
from saes.matching import reproducible
from saes.sae import SparseActs

THRESHOLD = 0.7


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def unit(x: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.normalize(x, dim=1)


class World:
    """Features firing with Zipf frequencies in documents; seeds that find some of them."""

    def __init__(self, n_features=50, d_in=32, n_docs=40, doc_tokens=30, k=3, zipf=1.0, seed=0):
        self.g = generator(seed)
        n_tokens = n_docs * doc_tokens
        self.doc_ids = torch.arange(n_tokens) // doc_tokens * 7 + 3
        self.directions = unit(torch.randn(n_features, d_in, generator=self.g))
        weights = (torch.arange(n_features) + 1.0) ** -zipf
        indices = torch.multinomial(weights.expand(n_tokens, -1), k, generator=self.g)
        values = torch.rand(n_tokens, k, generator=self.g) + 0.5
        self.acts = SparseActs(indices, values)
        self.x = (self.directions[indices] * values[..., None]).sum(dim=1)

    def seed(self, found, d_sae=64) -> LatentSet:
        n, d_in = self.directions.shape
        slots = torch.randperm(d_sae, generator=self.g)[:n]
        W = unit(torch.randn(d_sae, d_in, generator=self.g))
        near = self.directions + 0.03 * torch.randn(n, d_in, generator=self.g)
        W[slots[found]] = near[found]
        # Each seed sees its own noisy version of the events, so that agreement varies.
        heard = torch.rand(self.acts.values.shape, generator=self.g) < 0.8
        return LatentSet.from_acts(
            W, SparseActs(slots[self.acts.indices], self.acts.values * heard)
        )

    def seeds(self, n_seeds, p=0.7):
        found = torch.rand(n_seeds, len(self.directions), generator=self.g) < p
        return [self.seed(f) for f in found]


# ---- one SAE


def small_totals() -> DocumentTotals:
    """20 tokens in 2 documents; latent 0 fires 10 times, 1 nine, 2 never, 3 once with z = 5."""
    indices = torch.tensor([[0]] * 10 + [[1]] * 9 + [[3]])
    values = torch.tensor([[1.0]] * 10 + [[2.0]] * 9 + [[5.0]])
    return DocumentTotals.of(SparseActs(indices, values), torch.arange(20) // 10, 4)


def test_document_totals_by_hand():
    totals = small_totals()
    np.testing.assert_array_equal(totals.n_tokens, [10, 10])
    np.testing.assert_array_equal(totals.fires.toarray(), [[10, 0, 0, 0], [0, 9, 0, 1]])
    np.testing.assert_array_equal(totals.sums.toarray(), [[10, 0, 0, 0], [0, 18, 0, 5]])
    np.testing.assert_array_equal(totals.squares.toarray(), [[10, 0, 0, 0], [0, 36, 0, 25]])
    with pytest.raises(ValueError, match="3 document ids for 20 tokens"):
        DocumentTotals.of(
            SparseActs(torch.zeros(20, 1, dtype=torch.int64), torch.ones(20, 1)),
            torch.arange(3),
            4,
        )


def test_live_latents_by_hand():
    for tau, expected in ((1, 3), (9, 2), (10, 1), (11, 0)):
        found = live_latents(
            small_totals(), tau, d_in=2, k=1, generator=generator(), max_density=1.1
        )
        assert (found.estimator, found.value) == (f"live_latents_{tau}", expected)
        assert found.per_dim == expected / 2
        assert (found.n_tokens, found.d_sae, found.k) == (20, 4, 1)
    # The density limit, 20% of 20 tokens, leaves only the latent that fired once.
    assert live_latents(small_totals(), 1, d_in=2, k=1, generator=generator()).value == 1


def test_live_interval_is_the_spread_over_documents():
    # Every document fires one latent of its own 10 times: S_10 of a bootstrap is the number of
    # distinct documents, whose variance is known (occupancy).
    n = 50
    indices = torch.arange(n).repeat_interleave(10)[:, None]
    acts = SparseActs(indices, torch.ones(n * 10, 1))
    totals = DocumentTotals.of(acts, indices[:, 0], n)
    found = live_latents(totals, 10, d_in=1, k=1, generator=generator(), n_bootstrap=2000)
    q, r = (1 - 1 / n) ** n, (1 - 2 / n) ** n
    sd = math.sqrt(n * q + n * (n - 1) * r - n**2 * q**2)
    assert found.value == n
    assert found.ci_high - found.value == pytest.approx(1.96 * sd, rel=0.08)
    assert found.value - found.ci_low == pytest.approx(found.ci_high - found.value)


def test_one_document_is_refused_with_the_value():
    acts = SparseActs(torch.zeros(100, 1, dtype=torch.int64), torch.ones(100, 1))
    totals = DocumentTotals.of(acts, torch.zeros(100), 1)
    with pytest.raises(InsufficientData, match="at least two") as refusal:
        live_latents(totals, 10, d_in=4, k=1, generator=generator(), max_density=2)
    assert refusal.value.partial.value == 1
    assert refusal.value.partial.ci_low is None
    assert refusal.value.partial.identified is False


def test_hill_numbers_by_hand():
    assert hill_number(1, np.ones(7)) == pytest.approx(7)
    assert hill_number(2, np.ones(7) * 3) == pytest.approx(7)
    halves = np.array([2.0, 1, 1, 0])
    assert hill_number(0, halves) == 3
    assert hill_number(1, halves) == pytest.approx(2**1.5)
    assert hill_number(2, halves) == pytest.approx(1 / (1 / 4 + 1 / 16 + 1 / 16))
    # Continuous in q through 1.
    assert hill_number(1.0001, halves) == pytest.approx(hill_number(1, halves), rel=1e-4)
    assert hill_number(1, halves * 1e6) == pytest.approx(2**1.5)
    with pytest.raises(ValueError, match="positive weight"):
        hill_number(1, np.zeros(3))


def test_hill_weights():
    # Two live latents, fired 20 times each with z 1 and 3, decoder norms 2 and 1.
    indices = torch.tensor([[0], [1]] * 20 + [[2]] * 200)
    values = torch.tensor([[1.0], [3.0]] * 20 + [[100.0]] * 200)
    totals = DocumentTotals.of(SparseActs(indices, values), torch.arange(240) % 5, 3)
    norms = np.array([2.0, 1.0, 1.0])
    for weighting, weights in (("mass", [2, 3]), ("energy", [4, 9]), ("frequency", [1, 1])):
        found = hill(1, totals, norms, d_in=2, k=1, generator=generator(), weighting=weighting)
        # The third latent is denser than 20% and does not count.
        assert found.value == pytest.approx(hill_number(1, np.array(weights)))
        assert found.per_dim == pytest.approx(found.value / 2)
    assert hill(1, totals, norms, d_in=2, k=1, generator=generator()).estimator == "hill_1"
    quiet = DocumentTotals.of(SparseActs(indices[:5], values[:5]), torch.arange(5), 3)
    with pytest.raises(InsufficientData, match="no latent fired"):
        hill(1, quiet, norms, d_in=2, k=1, generator=generator())


# ---- several seeds


@pytest.mark.parametrize("n_seeds", [3, 5])
def test_reproducible_estimate(n_seeds):
    world = World()
    dicts = world.seeds(n_seeds)
    found = reproducible_estimate(
        dicts, world.doc_ids, world.x, generator=generator(), threshold=THRESHOLD, n_bootstrap=40
    )
    count = reproducible(dicts, THRESHOLD)
    assert found.count.s_ge == count.s_ge
    assert found.estimate.value == count.s_ge[2] - found.null.s_ge[2]
    assert found.estimate.per_dim == found.estimate.value / 32
    assert (found.estimate.n_seeds, found.estimate.d_sae, found.estimate.k) == (n_seeds, 64, 3)
    assert found.estimate.n_tokens == 1200
    # Without each seed: the same count on the others.
    for s, without in enumerate(found.leave_one_out):
        others = [d for i, d in enumerate(dicts) if i != s]
        assert without == reproducible(others, THRESHOLD).s_ge[2]
    jackknife = (n_seeds - 1) / n_seeds * np.var(found.leave_one_out) * n_seeds
    assert found.se_seeds == pytest.approx(math.sqrt(jackknife))
    assert found.se_documents > 0
    width = found.estimate.ci_high - found.estimate.value
    assert width > 1.96 * found.se
    again = reproducible_estimate(
        dicts, world.doc_ids, world.x, generator=generator(), threshold=THRESHOLD, n_bootstrap=40
    )
    assert again.estimate == found.estimate
    json.dumps(found.estimate.to_json(), allow_nan=False)


@pytest.mark.parametrize("min_seeds", [3, 4, 5])
def test_more_seeds_may_have_to_agree(min_seeds):
    """Each latent of the count has them; without one seed all that are left are enough."""
    world = World()
    dicts = world.seeds(5)
    options = {"threshold": THRESHOLD, "n_bootstrap": 20}
    found = reproducible_estimate(
        dicts, world.doc_ids, world.x, min_seeds=min_seeds, generator=generator(), **options
    )
    assert found.estimate.value == found.count.s_ge[min_seeds] - found.null.s_ge[min_seeds]
    assert 0 < found.count.s_ge[min_seeds] < found.count.s_ge[2]
    assert len(found.classes) == found.count.s_ge[min_seeds]
    assert ((found.classes >= 0).sum(axis=1) >= min_seeds).all()
    for s, without in enumerate(found.leave_one_out):
        others = [d for i, d in enumerate(dicts) if i != s]
        assert without == reproducible(others, THRESHOLD).s_ge[min(min_seeds, 4)]
    assert found.estimate.ci_low < found.estimate.value < found.estimate.ci_high
    [alike] = [
        one for one in by_strictness(
            dicts, world.doc_ids, world.x, found.count, min_seeds=min_seeds, k=3,
            generator=generator(), n_bootstrap=5,
        ) if one.quantity == "reproducible_correlation_0.7"
    ]  # fmt: skip
    strict = reproducible(dicts, THRESHOLD, 0.7).s_ge[min_seeds]
    assert alike.estimate.value == strict - alike.null


@pytest.mark.parametrize(("n_seeds", "min_seeds"), [(3, 3), (5, 4), (5, 5)])
def test_interval_over_seeds_covers_where_more_have_to_agree(n_seeds, min_seeds):
    """As `test_interval_over_seeds_covers`, with the chance of each feature known."""
    rng = np.random.default_rng(1)
    p = np.linspace(0.5, 0.98, 200)
    mean = stats.binom.sf(min_seeds - 1, n_seeds, p).sum()
    least = min(min_seeds, n_seeds - 1)
    covered = []
    for _ in range(300):
        found = rng.random((n_seeds, 200)) < p
        without = [(np.delete(found, s, 0).sum(axis=0) >= least).sum() for s in range(n_seeds)]
        v_seeds = (n_seeds - 1) ** 2 / n_seeds * np.var(without, ddof=1)
        half = half_width(float(v_seeds), 0.0, 0.0, n_seeds, 100)
        covered.append(abs((found.sum(axis=0) >= min_seeds).sum() - mean) <= half)
    assert np.mean(covered) > 0.91


def test_a_rare_near_copy_enters_no_resample():
    """With one firing short of ten it is not live; where a document is drawn twice it would be,
    and a count of those documents would merge it."""
    d_in, n_docs = 32, 40
    W = torch.nn.functional.normalize(torch.randn(20, d_in, generator=generator(3)), dim=1)
    aside = torch.randn(20, d_in, generator=generator(4))
    aside -= (aside * W).sum(1, keepdim=True) * W
    copies = 0.9 * W + (1 - 0.9**2) ** 0.5 * torch.nn.functional.normalize(aside, dim=1)
    indices = torch.cat([torch.arange(20).repeat(40), torch.arange(20, 40).repeat(9)])[:, None]
    doc_ids = torch.arange(len(indices)) * n_docs // len(indices)
    acts = SparseActs(indices, torch.ones(len(indices), 1))
    one = LatentSet.from_acts(torch.cat([W, copies]), acts)
    assert one.n_live == 20
    resampler = Resampler([one] * 3, doc_ids, 0.7, 0.5, 10, duplicate_cosine=0.8)
    twice = np.full(n_docs, 2.0)
    assert resampler.count(resampler.matched(twice)) == 20
    # Negative control: with nothing merged, the copies come in.
    apart = Resampler([one] * 3, doc_ids, 0.7, 0.5, 10, duplicate_cosine=0.95)
    assert apart.count(apart.matched(twice)) == 40


def test_resampled_documents_equal_repeated_documents():
    # The sums by document must give what matching the repeated tokens from scratch gives.
    world = World(zipf=1.5)
    dicts = world.seeds(3)
    resampler = Resampler(dicts, world.doc_ids, THRESHOLD, 0.6, 10, duplicate_cosine=0.8)
    unweighted = reproducible(dicts, THRESHOLD, 0.6).s_ge[2]
    assert resampler.count(resampler.matched(np.ones(40))) == unweighted
    rng = np.random.default_rng(0)
    counts = []
    for _ in range(5):
        weights = rng.multinomial(40, np.full(40, 1 / 40)).astype(float)
        repeated = torch.arange(1200).repeat_interleave(
            torch.from_numpy(np.repeat(weights, 30)).long()
        )
        sets = [
            LatentSet.from_acts(
                d.W_dec,
                SparseActs(d.acts.indices[repeated], d.acts.values[repeated]),
                max_density=1.1,
            )
            for d in dicts
        ]
        # Latents that are too dense in the full sample stay out.
        dense = [~d.live & (s_full >= 10) for d, s_full in zip(dicts, fires(dicts), strict=True)]
        sets = [
            LatentSet(s.W_dec, s.acts, s.live & ~out) for s, out in zip(sets, dense, strict=True)
        ]
        counts.append(resampler.count(resampler.matched(weights)))
        assert counts[-1] == reproducible(sets, THRESHOLD, 0.6).s_ge[2]
    assert len(set(counts)) > 1


def fires(dicts: list[LatentSet]) -> list[np.ndarray]:
    return [
        np.bincount(d.acts.indices[d.acts.values > 0].numpy(), minlength=d.d_sae) for d in dicts
    ]


@pytest.mark.parametrize("n_seeds", [3, 5])
def test_interval_over_seeds_covers(n_seeds):
    """Features found independently: the interval must hold the mean count about 95% of the time.

    Lower bound only (300 replicates, standard error 1.3 points): the jackknife may err wide.
    """
    rng = np.random.default_rng(0)
    p = np.linspace(0.02, 0.98, 200)
    mean = sum(1 - (1 - p) ** n_seeds - n_seeds * p * (1 - p) ** (n_seeds - 1))
    covered = []
    for _ in range(300):
        found = rng.random((n_seeds, 200)) < p
        without = [(np.delete(found, s, 0).sum(axis=0) >= 2).sum() for s in range(n_seeds)]
        v_seeds = (n_seeds - 1) ** 2 / n_seeds * np.var(without, ddof=1)
        half = half_width(float(v_seeds), 0.0, 0.0, n_seeds, 100)
        covered.append(abs((found.sum(axis=0) >= 2).sum() - mean) <= half)
    assert np.mean(covered) > 0.91


def test_half_width_by_hand():
    # One source alone has its own degrees of freedom: t(2) = 4.303, t(4) = 2.776.
    assert half_width(4.0, 0.0, 0.0, 3, 100) == pytest.approx(2 * 4.3027, rel=1e-4)
    assert half_width(4.0, 0.0, 0.0, 5, 100) == pytest.approx(2 * 2.7764, rel=1e-4)
    assert half_width(0.0, 4.0, 0.0, 3, 100) == pytest.approx(2 * 1.9842, rel=1e-4)
    assert half_width(0.0, 0.0, 4.0, 3, 100) == pytest.approx(2 * 1.96, rel=1e-4)
    assert half_width(0.0, 0.0, 0.0, 3, 100) == 0


def test_noise_counts_about_nothing():
    world = World(d_in=24)
    noise = [world.seed(torch.zeros(50, dtype=torch.bool)) for _ in range(5)]
    found = reproducible_estimate(
        noise, world.doc_ids, world.x, generator=generator(), n_bootstrap=5
    )
    assert found.count.threshold >= 0.7
    assert found.estimate.value <= 1


def test_every_strictness_is_the_estimate_at_its_thresholds():
    world = World(d_in=16)
    dicts = world.seeds(3)
    headline = reproducible(dicts, 0.8)
    options = {"k": 3, "n_bootstrap": 30}
    found = {
        one.quantity: one
        for one in by_strictness(
            dicts, world.doc_ids, world.x, headline, generator=generator(), **options
        )
    }
    # Four cosines less the calibrated one, and four correlations.
    assert list(found) == [
        "reproducible_cosine_0.6", "reproducible_cosine_0.7", "reproducible_cosine_0.9",
        "reproducible_correlation_0.3", "reproducible_correlation_0.4",
        "reproducible_correlation_0.6", "reproducible_correlation_0.7",
    ]  # fmt: skip
    before = {}
    for name, one in found.items():
        by, at = name.split("_")[1:]
        cosine, correlation = (float(at), 0.5) if by == "cosine" else (0.8, float(at))
        alone = reproducible_estimate(
            dicts, world.doc_ids, world.x, threshold=cosine, min_correlation=correlation,
            duplicate_cosine=headline.duplicate_cosine, generator=generator(), **options,
        )  # fmt: skip
        assert one.null == alone.null.s_ge[2], name
        for field in ("value", "ci_low", "ci_high", "per_dim", "n_tokens", "d_sae", "censored"):
            assert getattr(one.estimate, field) == pytest.approx(getattr(alone.estimate, field)), (
                name
            )
        before[name] = alone.count.s_ge[2]
    assert before["reproducible_correlation_0.3"] > before["reproducible_correlation_0.7"]
    assert found["reproducible_cosine_0.6"].null > 0
    assert found["reproducible_cosine_0.9"].null == 0


def test_too_few_seeds_or_documents_are_refused():
    world = World()
    dicts = world.seeds(3)
    options = {"generator": generator(), "threshold": THRESHOLD, "n_bootstrap": 5}
    with pytest.raises(InsufficientData, match="1 seeds; at least 2 are needed") as refusal:
        reproducible_estimate(dicts[:1], world.doc_ids, world.x, **options)
    assert refusal.value.partial.value is None
    with pytest.raises(InsufficientData, match="fewer than three seeds") as refusal:
        reproducible_estimate(dicts[:2], world.doc_ids, world.x, **options)
    assert refusal.value.partial.value == reproducible(dicts[:2], THRESHOLD).s_ge[2]
    assert refusal.value.partial.identified is False
    with pytest.raises(InsufficientData, match="3 seeds; at least 4 are needed"):
        reproducible_estimate(dicts, world.doc_ids, world.x, min_seeds=4, **options)
    with pytest.raises(ValueError, match="one seed reproduces nothing"):
        reproducible_estimate(dicts, world.doc_ids, world.x, min_seeds=1, **options)
    with pytest.raises(InsufficientData, match="1 held-out documents"):
        reproducible_estimate(dicts, torch.zeros(1200), world.x, **options)


def test_a_full_dictionary_is_censored():
    world = World(zipf=0.0)
    found = torch.ones(50, dtype=torch.bool)
    dicts = [world.seed(found, d_sae=50) for _ in range(3)]
    result = reproducible_estimate(
        dicts, world.doc_ids, world.x, generator=generator(), threshold=THRESHOLD, n_bootstrap=5
    )
    assert result.estimate.value == 50
    assert result.estimate.censored
    assert not result.estimate.identified
    assert "censored at D" in result.estimate.reason


# ---- the record


def test_estimate_refuses_nan_and_keeps_undertrained_out():
    with pytest.raises(ValueError, match="an undefined number is None"):
        Estimate("reproducible", value=float("nan"))
    row = Estimate("reproducible", value=3.0)
    good = row.with_training(fvu=0.1, fvu_matched=True, tokens_per_latent=1e4, converged=True)
    assert (good.identified, good.reason, good.fvu) == (True, None, 0.1)
    bad = row.with_training(fvu=0.1, converged=False)
    assert (bad.identified, bad.reason, bad.converged) == (False, "undertrained", False)
    assert row.with_training(fvu=0.1).identified
    assert row.calibration == "uncalibrated"


# ---- rules


def test_choose_k_interpolates_in_logarithms():
    # FVU = 1.6 / k exactly: .3 is reached at 5.33, and 5 is nearer to it than 6.
    pilots, fvus = [16, 2, 8, 4], [0.1, 0.8, 0.2, 0.4]
    assert choose_k(pilots, fvus, 0.3, 16) == (5, True)
    # Interpolated in k instead of log k this would be 7.
    assert choose_k(pilots, fvus, 0.25, 16) == (6, True)
    assert choose_k(pilots, fvus, 0.2, 16) == (8, True)
    assert choose_k(pilots, fvus, 0.9, 16) == (2, True)
    assert choose_k(pilots, fvus, 0.05, 16) == (16, False)
    assert choose_k(pilots, fvus, 0.05, 64) == (16, False)
    assert choose_k(pilots, fvus, 0.1, 8) == (8, False)
    assert choose_k(pilots, fvus, 0.3, 6) == (5, True)
    assert choose_k(pilots, fvus, 0.3, 5) == (5, False)
    # A pilot that rose is noise.
    assert choose_k([2, 4, 8], [0.3, 0.4, 0.1], 0.3, 8) == (2, True)
    assert choose_k([2, 4, 8, 16], [0.4, 0.2, 0.5, 0.1], 0.15, 16) == (11, True)
    for ks, values in (([], []), ([2, 2], [0.1, 0.2]), ([2, 4], [0.1]), ([2], [float("nan")])):
        with pytest.raises(ValueError, match="choose_k"):
            choose_k(ks, values, 0.1, 8)


def test_converged_at_its_limits():
    assert converged(100, 104, 0.10, 0.109)
    assert not converged(100, 105, 0.10, 0.10)
    assert not converged(100, 94, 0.10, 0.10)
    assert not converged(100, 100, 0.10, 0.111)
    assert not converged(100, 100, 0.111, 0.10)
    assert not converged(2, 3, 0.3, 0.3)
    assert converged(2, 3, 0.3, 0.3, count_slack=1.6)
    assert not converged(2, 5, 0.3, 0.3, count_slack=1.6)
    assert not converged(100, 100, float("nan"), 0.1)
    # Nothing that stays nothing has converged.
    assert converged(0, 0, 0.1, 0.1)
