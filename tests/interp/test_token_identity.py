"""Token entropy of classes: by hand, against plain formulas, and what must not move it."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats

from interp import token_identity as module
from interp.reproducibility import half_width
from interp.token_identity import (
    TokenIdentity,
    entropy_bits,
    explained_by_token,
    random_positions,
    token_identity,
)
from saes.latent_set import LatentSet
from saes.matching import reproducible
from saes.sae import SparseActs

LN2 = math.log(2)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def plain_bits(tokens: np.ndarray) -> float:
    """Miller and Madow's estimate, written out from the shares."""
    shares = np.unique(tokens, return_counts=True)[1] / len(tokens)
    return float(stats.entropy(shares, base=2)) + (len(shares) - 1) / (2 * len(tokens) * LN2)


# Entropy


def test_entropy_by_hand() -> None:
    # Shares 1/2, 1/4, 1/4 of 4: 1.5 bits, and (3 - 1) / (2 * 4 ln 2) on top. One kind: nothing.
    found = entropy_bits(np.array([2.0, 1, 1, 7, 3, 3]), np.array([0, 3, 4]))
    assert found == pytest.approx([1.5 + 2 / (8 * LN2), 0.0, 1 + 1 / (12 * LN2)])


def test_entropy_by_sample_leaves_out_kinds_that_a_sample_has_not() -> None:
    counts = np.array([[2.0, 0, 0], [2.0, 6, 0]])
    found = entropy_bits(counts, np.array([0]))
    assert found[0, 0] == pytest.approx(1 + 1 / (8 * LN2))
    assert found[0, 1] == 0
    assert np.isnan(found[0, 2])


def test_the_correction_takes_out_most_of_the_bias() -> None:
    """Of 64 equally likely tokens, 200 draws: 6 bits, less 63 / (400 ln 2) = .23 without it."""
    rng = np.random.default_rng(0)
    draws = [rng.integers(0, 64, 200) for _ in range(400)]
    corrected = np.mean([plain_bits(d) for d in draws])
    counts = [np.unique(d, return_counts=True)[1].astype(float) for d in draws]
    found = np.mean([entropy_bits(c, np.array([0]))[0] for c in counts])
    assert found == pytest.approx(corrected)
    plug_in = np.mean([stats.entropy(c, base=2) for c in counts])
    # Standard error of the means: .003.
    assert plug_in - 6 == pytest.approx(-63 / (400 * LN2), abs=0.05)
    assert abs(found - 6) < 0.05


# What the token explains


def plain_explained(fires: np.ndarray, tokens: np.ndarray) -> float:
    """I(token; fires) / H(fires) from the joint table."""
    joint = np.array([np.bincount(tokens[fires == f], minlength=tokens.max() + 1) for f in (0, 1)])
    p = joint / joint.sum()
    mutual = stats.entropy(p.sum(axis=0)) + stats.entropy(p.sum(axis=1)) - stats.entropy(p.ravel())
    return float(mutual / stats.entropy(p.sum(axis=1)))


def test_what_a_token_explains_by_hand() -> None:
    # 16 positions, 4 of each of four tokens. The first fires on two tokens, always: 1. The second
    # on 3 of one and 1 of another: H(fires) = H(1/4) = .811, given the token 2/4 of H(1/4).
    counts, held = np.array([4.0, 4, 3, 1]), np.full(4, 4.0)
    found = explained_by_token(counts, held, np.array([0, 2]), 16.0)
    assert found == pytest.approx([1.0, 0.5])
    assert np.isnan(explained_by_token(held, held, np.array([0]), 16.0)[0]), "fires everywhere"


def test_a_token_and_what_it_explains_from_the_joint_table() -> None:
    rng = np.random.default_rng(3)
    tokens = rng.integers(0, 9, 500)
    fires = (rng.random(500) < tokens / 12).astype(int)
    kinds, counts = np.unique(tokens[fires == 1], return_counts=True)
    held = np.bincount(tokens)[kinds].astype(float)
    [found] = explained_by_token(counts.astype(float), held, np.array([0]), 500)
    assert 0.05 < found < 0.9
    assert found == pytest.approx(plain_explained(fires, tokens))


# Random positions


def test_random_positions_have_the_expected_entropy_at_every_number() -> None:
    """Exactly: each token's share is hypergeometric. 4,000 shuffles spread by less than .01."""
    tokens = np.repeat([7, 3, 9, 100], [9, 4, 2, 1])
    found, explained = random_positions(tokens, generator=generator(), n_shuffles=4_000)
    assert np.isnan([found[0], explained[0], explained[16]]).all()
    assert len(found) == len(explained) == 17
    for n in range(1, 17):
        expected, given_token = math.log2(n) - 1 / (2 * n * LN2), 0.0
        for held in (9, 4, 2, 1):
            c = np.arange(1, min(n, held) + 1)
            p = stats.hypergeom.pmf(c, 16, held, n)
            expected -= float(p @ (c * np.log2(c))) / n
            expected += float(p.sum()) / (2 * n * LN2)
            given_token += float(p @ stats.entropy([c / held, 1 - c / held], base=2)) * held
        assert found[n] == pytest.approx(expected, abs=0.02), n
        if n < 16:
            alone = 16 * stats.entropy([n / 16, 1 - n / 16], base=2)
            assert explained[n] == pytest.approx(1 - given_token / alone, abs=0.02), n
    assert found[16] == pytest.approx(plain_bits(tokens))


def test_token_numbers_do_not_matter() -> None:
    tokens = np.random.default_rng(0).integers(0, 300, 2_000)
    one = random_positions(tokens, generator=generator())
    other = random_positions(tokens * 1_000 + 70_000, generator=generator())
    for mine, its in zip(one, other, strict=True):
        assert np.array_equal(mine, its, equal_nan=True)


# Classes

N, N_DOCS = 6_000, 30
RNG = np.random.default_rng(0)
TOKENS = (RNG.zipf(1.5, N) % 200).astype(np.int64)
DOCS = np.arange(N) // (N // N_DOCS)
PLACES = np.arange(N) % 50
N_CLASSES = 24
"""The first half are detectors of one token each, the second fire at random positions."""


def events(seed: int) -> list[np.ndarray]:
    """Where each feature fires: the same in every seed but for a tenth of its positions."""
    rng = np.random.default_rng(seed)
    frequent = np.argsort(-np.bincount(TOKENS))[:12]
    found = [np.flatnonzero(t == TOKENS) for t in frequent]
    found += [np.sort(np.random.default_rng(i).choice(N, 60, replace=False)) for i in range(12)]
    return [np.sort(rng.permutation(at)[: max(12, int(0.9 * len(at)))]) for at in found]


def latent_set(seed: int, order: np.ndarray | None = None) -> LatentSet:
    """One latent per feature, on the axis of its number; slots beyond a token's own are unused."""
    order = np.arange(N_CLASSES) if order is None else order
    indices = np.zeros((N, N_CLASSES), dtype=np.int64)
    values = np.zeros((N, N_CLASSES))
    for i, at in enumerate(events(seed)):
        indices[:, i], values[at, i] = order[i], 1.0
    W = torch.eye(N_CLASSES)[np.argsort(order)]
    acts = SparseActs(torch.from_numpy(indices), torch.from_numpy(values))
    return LatentSet.from_acts(W, acts, max_density=1.0)


def identity(dicts: list[LatentSet], classes: np.ndarray | None = None) -> TokenIdentity:
    if classes is None:
        classes = reproducible(dicts, 0.7).classes
    of_tokens = map(torch.from_numpy, (TOKENS, PLACES, DOCS))
    return token_identity(dicts, classes, *of_tokens, duplicate_cosine=0.7, generator=generator())


@pytest.fixture(scope="module")
def planted() -> TokenIdentity:
    return identity([latent_set(seed) for seed in range(3)])


def test_planted_detectors_and_planted_indifference(planted: TokenIdentity) -> None:
    assert len(planted.bits) == N_CLASSES
    assert planted.bits[:12] == pytest.approx(np.zeros(12))
    relative = planted.bits / planted.random_bits
    # 54 firings spread by .095 about their expectation, the mean over twelve classes by .03.
    assert relative[12:] == pytest.approx(np.ones(12), abs=0.35)
    assert relative[12:].mean() == pytest.approx(1, abs=0.09)
    # A detector fires on nine in ten of its token's occurrences: nearly all is explained.
    assert (planted.explained_share[:12] > 0.75).all()
    assert planted.explained_share[12:] == pytest.approx(np.zeros(12), abs=0.1)
    assert planted.explained_by_place.value == pytest.approx(0, abs=0.02)
    assert planted.detectors.value == 0.5
    assert planted.all_bits == pytest.approx(plain_bits(TOKENS))
    assert (planted.random_bits < planted.all_bits).all()


def test_what_is_explained_is_adjusted_for_random_positions(planted: TokenIdentity) -> None:
    by_chance = random_positions(TOKENS, generator=generator()).explained
    for i in (3, 20):
        expected = []
        for seed in range(3):
            at = events(seed)[i]
            fires = np.zeros(N, dtype=int)
            fires[at] = 1
            chance = by_chance[len(at)]
            expected.append((plain_explained(fires, TOKENS) - chance) / (1 - chance))
        assert planted.explained_share[i] == pytest.approx(np.mean(expected))


def test_a_class_of_many_tokens_has_many_bits_and_is_explained_all_the_same() -> None:
    """What a small dictionary makes of raw activations: tokens in groups, and of places too."""
    groups = [np.flatnonzero(i == TOKENS % 20) for i in range(6, 20)]
    groups += [np.flatnonzero((a <= PLACES) & (a + 3 > PLACES)) for a in range(0, 45, 3)]
    indices = torch.arange(len(groups)).expand(N, -1)
    values = torch.zeros(N, len(groups))
    for i, at in enumerate(groups):
        values[at, i] = 1.0
    W = torch.eye(len(groups))
    dicts = [LatentSet.from_acts(W, SparseActs(indices, values), max_density=1.0)] * 3
    found = identity(dicts, np.arange(len(groups))[:, None].repeat(3, axis=1))
    assert found.explained_share[:14] == pytest.approx(np.ones(14))
    assert (found.bits[:14] > 1).any()
    assert found.explained_by_place.value == pytest.approx(1), "more classes of places than tokens"
    assert found.explained.value == pytest.approx(0, abs=0.02)


def test_a_class_has_the_mean_over_its_members(planted: TokenIdentity) -> None:
    for i in (0, 15, 23):
        members = [plain_bits(TOKENS[events(seed)[i]]) for seed in range(3)]
        assert planted.bits[i] == pytest.approx(np.mean(members))


def test_neither_seeds_nor_latents_have_an_order(planted: TokenIdentity) -> None:
    orders = [np.random.default_rng(9 + seed).permutation(N_CLASSES) for seed in range(3)]
    dicts = [latent_set(seed, orders[seed]) for seed in (2, 0, 1)]
    found = identity(dicts)
    assert np.sort(found.bits) == pytest.approx(np.sort(planted.bits))
    assert found.detectors == planted.detectors
    assert found.relative.value == pytest.approx(planted.relative.value)
    assert found.relative.ci_low == pytest.approx(planted.relative.ci_low)


def test_strength_does_not_matter_and_blocks_do_not_show(
    planted: TokenIdentity, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "BLOCK_FIRINGS", 50)
    strong = [latent_set(seed) for seed in range(3)]
    strong = [
        LatentSet(d.W_dec, SparseActs(d.acts.indices, d.acts.values * 7), d.live) for d in strong
    ]
    found = identity(strong)
    assert np.array_equal(found.bits, planted.bits)
    assert (found.relative, found.detectors) == (planted.relative, planted.detectors)


def test_a_merged_duplicate_fires_with_its_absorber() -> None:
    """A latent held twice, each copy on half of its tokens: one class, on all of them."""
    tokens = torch.arange(400) % 2
    halves = torch.where(torch.arange(400) < 200, 0, 1)[:, None]
    spare = torch.full((400, 1), 2)
    acts = SparseActs(torch.cat([halves, spare], 1), torch.tensor([[1.0, 0.0]]).repeat(400, 1))
    W = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    dicts = [LatentSet.from_acts(W, acts, max_density=1.1) for _ in range(2)]
    classes = np.array([[0, 0]])
    place, doc = torch.arange(400) % 40, torch.arange(400) // 40
    found = token_identity(
        dicts, classes, tokens, place, doc, duplicate_cosine=0.7, generator=generator()
    )
    assert found.bits == pytest.approx([1 + 1 / (800 * LN2)])


def test_the_interval_is_that_of_seeds_and_documents(planted: TokenIdentity) -> None:
    # All seeds agree on which classes are detectors, whatever the documents.
    assert (planted.detectors.ci_low, planted.detectors.ci_high) == (0.5, 0.5)
    low, value, high = (
        planted.relative.ci_low, planted.relative.value, planted.relative.ci_high
    )  # fmt: skip
    assert low < value < high
    assert value - low == pytest.approx(high - value)


def test_a_share_just_below_zero_lies_in_its_interval() -> None:
    """What random positions explain is subtracted, and half of all such shares end below 0."""
    dicts = [latent_set(seed) for seed in range(3)]
    classes = reproducible(dicts, 0.7).classes
    found = []
    for turn in (1_000, 2_000, 3_000, 4_000):  # tokens that firing has nothing to do with
        turned = map(torch.from_numpy, (np.roll(TOKENS, turn), PLACES, DOCS))
        found.append(
            token_identity(
                dicts, classes, *turned, duplicate_cosine=0.7, generator=generator()
            ).explained
        )
    assert min(one.value for one in found if one.value is not None) < 0
    for one in found:
        assert one.value is not None
        assert one.ci_low is not None
        assert one.ci_high is not None
        assert one.ci_low <= one.value <= one.ci_high


def test_the_jackknife_lets_classes_go_with_their_seeds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Six detectors that the third seed has not: without another seed they are no classes."""

    def unchanged(n_docs: int, n: int, **_: Any) -> list[np.ndarray]:
        return [np.ones(n_docs)] * n

    monkeypatch.setattr(module, "document_weights", unchanged)
    dicts = [latent_set(seed) for seed in range(3)]
    classes = np.arange(N_CLASSES)[:, None].repeat(3, axis=1)
    classes[:6, 2] = -1
    found = identity(dicts, classes).detectors
    without = [6 / 18, 6 / 18, 12 / 24]
    half = half_width(4 / 3 * float(np.var(without, ddof=1)), 0.0, 0.0, 3, 25)
    assert found.value == 0.5
    assert (found.ci_low, found.ci_high) == pytest.approx((max(0.5 - half, 0), 0.5 + half))


def resampled_by_hand(dicts: list[LatentSet], classes: np.ndarray) -> list[float]:
    """The share of detectors in the first samples of documents, tokens repeated outright."""
    g = generator()
    for _ in range(2 * module.N_SHUFFLES):  # tokens, then places
        torch.randperm(N, generator=g)
    shares = []
    for _ in range(5):
        docs = torch.randint(N_DOCS, (N_DOCS,), generator=g).numpy()
        at = np.concatenate([np.flatnonzero(d == DOCS) for d in docs])
        rows = []
        for seed, d in enumerate(dicts):
            dense = np.zeros((N, N_CLASSES), dtype=bool)
            t, slot = np.nonzero(d.acts.values.numpy())
            dense[t, d.acts.indices.numpy()[t, slot]] = True
            rows.append([plain_bits(TOKENS[at][dense[at, latent]]) for latent in classes[:, seed]])
        shares.append(float((np.mean(rows, axis=0) < 1.0).mean()))
    return shares


def test_samples_of_documents_equal_repeated_documents(monkeypatch: pytest.MonkeyPatch) -> None:
    """Against the tokens themselves, at a limit that some classes pass in some samples."""
    dicts = [latent_set(seed) for seed in range(3)]
    classes = reproducible(dicts, 0.7).classes
    seen: list[np.ndarray] = []
    original = module.entropy_bits

    def note(*args: Any) -> np.ndarray:
        seen.append(original(*args))
        return seen[-1]

    monkeypatch.setattr(module, "entropy_bits", note)
    identity(dicts, classes)
    bits = np.mean(seen, axis=0)[:, 1:6]
    assert (bits < 1.0).mean(axis=0) == pytest.approx(resampled_by_hand(dicts, classes))


def test_a_class_that_a_sample_meets_once_says_nothing_there() -> None:
    """One position has no entropy, nor has a random one: 0 / 0 made a whole count fail."""
    bits, random = np.array([[1.0, 0.0], [2.0, 2.0]]), np.array([[2.0, 0.0], [8.0, 8.0]])
    members = module._Members(bits, random, bits, bits)
    assert [len(members.sample(number).bits) for number in (0, 1)] == [2, 1]
    assert (members.sample(1).bits / members.sample(1).random).tolist() == [0.25]


def test_too_few_classes_have_a_value_and_no_interval() -> None:
    dicts = [latent_set(seed) for seed in range(3)]
    classes = reproducible(dicts, 0.7).classes
    few = identity(dicts, classes[:9])
    assert few.detectors.value == 1.0
    assert few.detectors.ci_low is None
    assert "9 classes are left" in (few.detectors.reason or "")
    none = identity(dicts, classes[:0])
    assert (none.relative.value, none.detectors.value) == (None, None)
    assert none.relative.reason == "no reproducible class"
    assert len(none.bits) == 0
    # Two seeds: without either of them no class is left.
    pair = identity(dicts[:2], classes[:, :2])
    assert pair.detectors.value == 0.5
    assert "0 classes are left" in (pair.relative.reason or "")
