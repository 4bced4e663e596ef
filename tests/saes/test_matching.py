"""Matching: null thresholds against the analytic null, assignment against networkx, invariances."""

from itertools import combinations

import networkx as nx
import numpy as np
import pytest
import torch
from scipy import stats

import saes.edges
from saes.assignment import max_weight_matching
from saes.edges import Edges, activation_matrix, cosine_edges, edge_correlations
from saes.errors import SAEError
from saes.latent_set import LatentSet, live_mask, merge_duplicates
from saes.matching import classes_of, match_pair, null_reproducible, null_threshold, reproducible
from saes.null_dictionaries import null_max_cosines
from saes.sae import SparseActs


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def unit(x: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.normalize(x, dim=1)


class World:
    """Known features that fire sparsely; seeds that find some of them, in an order of their own."""

    def __init__(self, n_features=60, d_in=32, n_tokens=3000, k=4, seed=0):
        self.g = generator(seed)
        self.directions = unit(torch.randn(n_features, d_in, generator=self.g))
        scores = torch.rand(n_tokens, n_features, generator=self.g)
        indices = scores.topk(k, dim=1).indices
        values = torch.rand(n_tokens, k, generator=self.g) + 0.5
        self.acts = SparseActs(indices, values)
        rows = self.directions[indices] * values[..., None]
        self.x = rows.sum(dim=1)

    def seed(self, found, d_sae=80, noise=0.05) -> LatentSet:
        """Found features get their direction, the others junk that fires alike."""
        n, d_in = self.directions.shape
        slots = torch.randperm(d_sae, generator=self.g)[:n]
        W = unit(torch.randn(d_sae, d_in, generator=self.g))
        near = self.directions + noise * torch.randn(n, d_in, generator=self.g)
        W[slots[found]] = near[found]
        return LatentSet.from_acts(W, SparseActs(slots[self.acts.indices], self.acts.values))

    def seeds(self, n_seeds, p=0.7):
        found = torch.rand(n_seeds, len(self.directions), generator=self.g) < p
        return found, [self.seed(f) for f in found]


# ---- the null


def chance_of_meeting(d: float, n: int, cosine: float) -> float:
    """P(a random direction meets one of n others) in d isotropic dimensions, from Student's t."""
    t = cosine * np.sqrt((d - 1) / (1 - cosine**2))
    return 1 - (1 - stats.t.sf(t, d - 1)) ** n


@pytest.mark.parametrize(("d", "stated"), [(16, 0.11), (24, 0.009), (32, 0.0007)])
def test_isotropic_null_is_the_analytic_one(d, stated):
    # 64 dictionaries, 32,768 probes: standard error 0.0018 at a rate of 0.11.
    x = torch.randn(4000, d, generator=generator())
    best = null_max_cosines(x, 8 * d, generator=generator(1), n_probes=1 << 15, n_dictionaries=64)
    rate = (best > 0.7).mean()
    assert chance_of_meeting(d, 8 * d, 0.7) == pytest.approx(stated, rel=0.1)
    assert rate == pytest.approx(chance_of_meeting(d, 8 * d, 0.7), rel=0.1, abs=5e-4)


@pytest.mark.parametrize(("d", "stated"), [(24, 0.52), (32, 0.20)])
def test_null_follows_the_covariance(d, stated):
    # Half of the dimensions carry the variance: the crowding of d / 2 dimensions.
    x = torch.randn(4000, d, generator=generator()) * (torch.arange(d) < d // 2)
    rotation = torch.linalg.qr(torch.randn(d, d, generator=generator(2))).Q
    best = null_max_cosines(
        x @ rotation + 5, 8 * d, generator=generator(1), n_probes=1 << 14, n_dictionaries=64
    )
    assert (best > 0.7).mean() == pytest.approx(stated, abs=0.02)


def test_threshold_keeps_the_false_match_rate():
    d = 16
    x = torch.randn(4000, d, generator=generator())
    t = null_threshold(x, 8 * d, 8 * d, generator=generator(1), n_probes=1 << 15)
    assert chance_of_meeting(d, 8 * d, t) == pytest.approx(0.01, rel=0.25)
    assert null_threshold(x, 8, 8 * d, generator=generator(1), n_probes=1 << 15) == t
    assert null_threshold(x, 4, 4, generator=generator(1)) == 0.7
    stricter = null_threshold(x, 8 * d, 8 * d, generator=generator(1), false_match_rate=0.001)
    assert stricter > t + 0.02


def test_threshold_is_floored_and_deterministic():
    x = torch.randn(2000, 64, generator=generator())
    assert null_threshold(x, 256, 256, generator=generator()) == 0.7
    free = [null_threshold(x, 256, 256, generator=generator(3), floor=0.0) for _ in range(2)]
    assert free[0] == free[1]
    assert chance_of_meeting(64, 256, free[0]) == pytest.approx(0.01, rel=0.4)
    assert null_threshold(x * 1000, 256, 256, generator=generator(3), floor=0.0) == pytest.approx(
        free[0], abs=1e-5
    )


def test_threshold_refuses_what_it_cannot_measure():
    x = torch.randn(10, 4)
    with pytest.raises(SAEError, match="NaN"):
        null_threshold(x * float("nan"), 8, 8, generator=generator())
    with pytest.raises(SAEError, match="do not vary"):
        null_threshold(torch.ones(10, 4), 8, 8, generator=generator())
    with pytest.raises(SAEError, match=">= 2 tokens"):
        null_threshold(x[:1], 8, 8, generator=generator())


@pytest.mark.parametrize("d", [16, 24])
def test_random_dictionaries_count_about_nothing(d):
    x = torch.randn(4000, d, generator=generator())
    t = null_threshold(x, 8 * d, 8 * d, generator=generator(1))
    null = null_reproducible(x, [8 * d] * 5, 4, threshold=t, generator=generator(2))
    assert null.s_ge[2] <= 0.02 * 8 * d
    # Negative control: at a careless threshold and without agreement, matching finds more than
    # there are dimensions.
    loose = null_reproducible(
        x, [8 * d] * 5, 4, threshold=0.5, min_correlation=-1.0, generator=generator(2)
    )
    assert loose.s_ge[2] > 2 * d
    assert np.add(loose.n_live, loose.n_merged).tolist() == [8 * d] * 5


def test_null_with_a_seed_without_live_latents():
    x = torch.randn(200, 16, generator=generator())
    null = null_reproducible(x, [0, 16, 16], 2, threshold=0.9, generator=generator())
    assert null.n_live == (0, 16, 16)


# ---- edges


def test_cosine_edges_equal_the_dense_matrix_in_blocks(monkeypatch):
    monkeypatch.setattr(saes.edges, "COSINE_BLOCK_ELEMENTS", 64)
    g = generator()
    a, b = torch.randn(50, 8, generator=g), torch.randn(40, 8, generator=g)
    use_a, use_b = (torch.rand(n, generator=g).numpy() < 0.8 for n in (50, 40))
    edges = cosine_edges(a, b, use_a, use_b, 0.4)
    dense = (unit(a.double()) @ unit(b.double()).T).numpy()
    expected = np.nonzero((dense > 0.4) & use_a[:, None] & use_b)
    np.testing.assert_array_equal(edges.left, expected[0])
    np.testing.assert_array_equal(edges.right, expected[1])
    np.testing.assert_allclose(edges.cosines, dense[expected], atol=1e-6)


def test_opposite_directions_and_zero_rows_are_no_edge():
    a = torch.tensor([[1.0, 0.0], [0.0, 0.0]])
    b = torch.tensor([[-1.0, 0.0], [0.0, 0.0]])
    both = np.ones(2, bool)
    assert len(cosine_edges(a, b, both, both, 0.0).left) == 0
    with pytest.raises(SAEError, match="width 2 and 3"):
        cosine_edges(a, torch.ones(1, 3), both, both[:1], 0.5)


def test_correlations_equal_numpy_in_blocks(monkeypatch):
    monkeypatch.setattr(saes.edges, "PRODUCT_BLOCK_ENTRIES", 300)
    world = World(n_features=12, n_tokens=400)
    z_a = activation_matrix(world.acts, 12)
    z_b = activation_matrix(SparseActs(world.acts.indices.flip(0), world.acts.values), 13)
    left, right = (i.ravel() for i in np.mgrid[:12, :13])
    found = edge_correlations(z_a, z_b, Edges(left, right, np.ones(len(left))))
    dense = np.corrcoef(z_a.toarray().T, z_b.toarray()[:, :12].T)[:12, 12:]
    np.testing.assert_allclose(found.reshape(12, 13)[:, :12], dense, atol=1e-10)
    # The thirteenth never fires: it agrees with nothing.
    np.testing.assert_array_equal(found.reshape(12, 13)[:, 12], 0)


def test_unused_slots_do_not_fire():
    acts = SparseActs(torch.tensor([[0, 1], [0, 1]]), torch.tensor([[1.0, 0.0], [2.0, 3.0]]))
    z = activation_matrix(acts, 2)
    assert z.nnz == 3
    np.testing.assert_array_equal(z.toarray(), [[1, 0], [2, 3]])
    with pytest.raises(SAEError, match="name latent 1 but the dictionary has 1"):
        activation_matrix(acts, 1)


# ---- assignment


@pytest.mark.parametrize("dense_elements", [1 << 20, 0])
def test_matching_is_the_heaviest(dense_elements):
    # dense_elements=0 sends every component through the sparse solver.
    rng = np.random.default_rng(0)
    for _ in range(40):
        shape = tuple(rng.integers(2, 12, size=2))
        left, right = np.nonzero(rng.random(shape) < rng.uniform(0.05, 0.6))
        weights = rng.uniform(0.5, 1, len(left))
        chosen = max_weight_matching(left, right, weights, dense_elements=dense_elements)
        assert len(set(left[chosen])) == len(set(right[chosen])) == len(chosen)
        graph = nx.Graph()
        for i, j, w in zip(left.tolist(), right.tolist(), weights.tolist(), strict=True):
            graph.add_edge(("a", i), ("b", j), weight=w)
        best = nx.max_weight_matching(graph)
        heaviest = sum(graph.edges[e]["weight"] for e in best)
        assert weights[chosen].sum() == pytest.approx(heaviest)


@pytest.mark.filterwarnings("ignore")
def test_a_matching_of_all_pairs_is_sae_lens_s_correlation_coefficient():
    """Without a threshold the heaviest matching of absolute cosines is what sae-lens averages."""
    from sae_lens.synthetic import mean_correlation_coefficient

    g = torch.Generator().manual_seed(3)
    for n_a, n_b in ((12, 12), (9, 15), (20, 7)):
        a, b = (torch.randn(n, 6, generator=g) for n in (n_a, n_b))
        unit = [torch.nn.functional.normalize(x, dim=1) for x in (a, b)]
        cosines = (unit[0] @ unit[1].T).abs().double().numpy()
        left, right = (index.ravel() for index in np.indices(cosines.shape))
        chosen = max_weight_matching(left, right, cosines.ravel())
        assert len(chosen) == min(n_a, n_b)
        expected = mean_correlation_coefficient(a, b)
        assert cosines.ravel()[chosen].mean() == pytest.approx(float(expected), rel=1e-5)


def test_matching_before_threshold_would_lose_a_pair():
    # The best assignment of everything is .69 + .69 > .71 + .6, and at .7 nothing is left of it.
    cosines = np.array([[0.71, 0.69], [0.69, 0.6]])
    left, right = np.nonzero(cosines > 0.7)
    np.testing.assert_array_equal(max_weight_matching(left, right, cosines[left, right]), [0])
    nothing = np.empty(0, dtype=int)
    assert len(max_weight_matching(nothing, nothing, np.empty(0))) == 0


# ---- pairs


def hand_made():
    """Three latents each: 0-1 agree in direction and events, 1-0 in direction only, 2 is dead."""
    W_a = torch.tensor([[1.0, 0, 0], [0, 1.0, 0], [0, 0, 1.0]])
    W_b = torch.tensor([[0, 2.0, 0], [0.8, 0, 0.6], [0, 0, 1.0]])
    acts_a = SparseActs(torch.tensor([[0], [0], [1], [1]]), torch.tensor([[1.0], [2], [1], [1]]))
    acts_b = SparseActs(torch.tensor([[1], [1], [2], [0]]), torch.tensor([[2.0], [4], [1], [1]]))
    return W_a, W_b, acts_a, acts_b


def test_match_pair_by_hand():
    W_a, W_b, acts_a, acts_b = hand_made()
    live = np.array([True, True, False])
    matching = match_pair(W_a, W_b, acts_a, acts_b, live, live, threshold=0.7, min_correlation=0.6)
    np.testing.assert_array_equal(matching.pairs, [[0, 1]])
    np.testing.assert_allclose(matching.cosines, [0.8], rtol=1e-6)
    np.testing.assert_allclose(matching.correlations, [1.0])
    # Latents 1 and 0: (0,0,1,1) and (0,0,0,1), correlation 1/sqrt(3) = .577.
    looser = match_pair(W_a, W_b, acts_a, acts_b, live, live, threshold=0.7, min_correlation=0.57)
    np.testing.assert_array_equal(looser.pairs, [[0, 1], [1, 0]])
    np.testing.assert_allclose(looser.correlations, [1.0, 3**-0.5])
    stricter = match_pair(
        W_a, W_b, acts_a, acts_b, live, live, threshold=0.85, min_correlation=0.57
    )
    np.testing.assert_array_equal(stricter.pairs, [[1, 0]])


def test_different_tokens_are_refused():
    W_a, W_b, acts_a, acts_b = hand_made()
    live = np.ones(3, bool)
    short = SparseActs(acts_b.indices[:3], acts_b.values[:3])
    with pytest.raises(SAEError, match="4 and 3 tokens"):
        match_pair(W_a, W_b, acts_a, short, live, live, threshold=0.7)


def test_live_mask_at_its_edges():
    np.testing.assert_array_equal(
        live_mask(torch.tensor([9, 10, 199, 200]), 1000), [False, True, True, False]
    )
    with pytest.raises(SAEError, match="live mask"):
        LatentSet(torch.ones(3, 2), hand_made()[2], np.ones(2, bool))


# ---- classes


def greedy_reference(n_seeds, seed_pairs, matched):
    """The documented rule, written naively."""
    edges = [
        (-c, n, e, (a, i), (b, j))
        for n, ((a, b), m) in enumerate(zip(seed_pairs, matched, strict=True))
        for e, (i, j, c) in enumerate(zip(*m, strict=True))
    ]
    classes = []
    for *_, one, other in sorted(edges):
        parts = [next((c for c in classes if node in c), {node}) for node in (one, other)]
        if parts[0] is parts[1]:
            continue
        if {s for s, _ in parts[0]} & {s for s, _ in parts[1]}:
            continue
        classes = [c for c in classes if all(c is not p for p in parts)] + [parts[0] | parts[1]]
    rows = [[dict(c).get(s, -1) for s in range(n_seeds)] for c in classes]
    return np.array(sorted(rows)).reshape(-1, n_seeds)


def test_classes_equal_the_naive_greedy_union():
    rng = np.random.default_rng(0)
    for _ in range(60):
        n_seeds = int(rng.integers(2, 6))
        pairs = list(combinations(range(n_seeds), 2))
        matched = []
        for _ in pairs:
            size = int(rng.integers(0, 7))
            ends = (rng.permutation(6)[:size] for _ in range(2))
            matched.append(Edges(*ends, rng.uniform(0.7, 1, size)))
        found = classes_of(n_seeds, pairs, matched)
        np.testing.assert_array_equal(found, greedy_reference(n_seeds, pairs, matched))


def test_no_class_holds_two_latents_of_a_seed():
    # 0:a - 1:b - 2:c - 0:a' would chain a and a' together; the weakest link is refused.
    one = np.array([0])
    matched = [
        Edges(one, one, np.array([0.95])),
        Edges(np.array([1]), one, np.array([0.8])),
        Edges(one, one, np.array([0.9])),
    ]
    classes = classes_of(3, [(0, 1), (0, 2), (1, 2)], matched)
    np.testing.assert_array_equal(classes, [[0, 0, 0]])


@pytest.mark.parametrize("n_seeds", [2, 3, 5])
def test_count_is_the_planted_one(n_seeds):
    world = World()
    found, dicts = world.seeds(n_seeds)
    count = reproducible(dicts, 0.7)
    times = found.sum(dim=0)
    assert count.s_ge[2] > 20
    for r in range(2, n_seeds + 1):
        assert count.s_ge[r] == int((times >= r).sum())
    # Unfound features are junk of one seed each: singletons.
    assert count.s_ge[1] == int((times >= 1).sum() + (~found).sum())
    assert count.class_sizes.tolist() == (count.classes >= 0).sum(axis=1).tolist()
    assert count.mean_cosine is not None
    assert 0.9 < count.mean_cosine < 1
    assert count.mean_correlation == pytest.approx(1)


def test_one_seed_is_refused():
    world = World(n_features=20, n_tokens=200)
    with pytest.raises(SAEError, match="at least two seeds"):
        reproducible([world.seeds(1)[1][0]], 0.7)


# ---- invariances


def permuted(latents: LatentSet, g: torch.Generator) -> LatentSet:
    order = torch.randperm(latents.d_sae, generator=g)
    acts = SparseActs(order.argsort()[latents.acts.indices], latents.acts.values)
    return LatentSet(latents.W_dec[order], acts, latents.live[order.numpy()])


def doubled(latents: LatentSet) -> LatentSet:
    """Every latent twice, firing together."""
    indices, values = latents.acts
    acts = SparseActs(
        torch.cat([indices, indices + latents.d_sae], dim=1), torch.cat([values, values], dim=1)
    )
    W = torch.cat([latents.W_dec, latents.W_dec])
    return LatentSet(W, acts, np.tile(latents.live, 2))


def split(latents: LatentSet) -> LatentSet:
    """Every latent twice, each half firing on every other token."""
    indices, values = latents.acts
    odd = (torch.arange(len(indices)) % 2)[:, None]
    acts = SparseActs(indices + odd * latents.d_sae, values)
    return LatentSet.from_acts(torch.cat([latents.W_dec, latents.W_dec]), acts)


def test_order_and_scale_do_not_matter():
    world = World()
    _, dicts = world.seeds(3)
    expected = reproducible(dicts, 0.7)
    shuffled = reproducible([permuted(d, generator(9)) for d in dicts], 0.7)
    assert shuffled.s_ge == expected.s_ge
    factors = torch.rand(80, 1, generator=generator(4)) * 100 + 0.01
    scaled = [
        LatentSet(
            d.W_dec * factors,
            SparseActs(d.acts.indices, d.acts.values / factors[d.acts.indices, 0]),
            d.live,
        )
        for d in dicts
    ]
    assert reproducible(scaled, 0.7).s_ge == expected.s_ge
    assert reproducible(dicts[::-1], 0.7).s_ge == expected.s_ge


def test_duplicating_latents_adds_no_class():
    world = World()
    _, dicts = world.seeds(3)
    expected = reproducible(dicts, 0.7)
    once = reproducible([doubled(dicts[0]), *dicts[1:]], 0.7)
    assert once.s_ge == expected.s_ge
    assert once.n_merged == (expected.n_live[0], 0, 0)
    everywhere = reproducible([doubled(d) for d in dicts], 0.7)
    assert everywhere.s_ge == expected.s_ge
    # A feature shared out between two latents of one direction is still one feature.
    assert reproducible([split(d) for d in dicts], 0.7).s_ge == expected.s_ge
    # Negative control: unmerged, every class would count twice.
    assert (
        reproducible([doubled(d) for d in dicts], 0.7, duplicate_cosine=1.1).s_ge[2]
        == 2 * expected.s_ge[2]
    )


@pytest.mark.parametrize(("cosine", "counted_twice"), [(0.9, False), (0.75, True)])
def test_near_copies_that_other_seeds_hold_too_are_one(cosine: float, counted_twice: bool):
    """A copy takes every other token of its feature, so the two never fire together."""
    world = World()
    _, dicts = world.seeds(3)
    expected = reproducible(dicts, 0.7)
    d_in = world.directions.shape[1]
    turn = torch.linalg.qr(torch.randn(d_in, d_in, generator=generator(5))).Q
    copied = []
    for found in map(split, dicts):
        first, second = found.W_dec.chunk(2)
        first = unit(first)
        across = first @ turn
        across = unit(across - (across * first).sum(1, keepdim=True) * first)
        second = cosine * first + (1 - cosine**2) ** 0.5 * across
        copied.append(LatentSet(torch.cat([first, second]), found.acts, found.live))
    found = reproducible(copied, 0.7)
    assert found.s_ge[2] == (1 + counted_twice) * expected.s_ge[2]
    # Negative control: merged at 8 degrees, the near copies stay.
    assert reproducible(copied, 0.7, duplicate_cosine=0.99).s_ge[2] == 2 * expected.s_ge[2]


def seeds_of(W: torch.Tensor, fires: list[int]) -> list[LatentSet]:
    """Three seeds of the same dictionary, latent i alone on fires[i] tokens of its own."""
    indices = torch.arange(len(W)).repeat_interleave(torch.tensor(fires))[:, None]
    return [
        LatentSet(W, SparseActs(indices, torch.ones(len(indices), 1)), np.ones(len(W), bool))
    ] * 3


def test_a_latent_between_two_features_makes_one_of_neither_pair():
    a, b, c = torch.eye(3)
    # Heavier than its halves: nearer to both than the threshold that matches seeds.
    even = torch.stack([unit((a + b)[None])[0], a, b])
    assert reproducible(seeds_of(even, [60, 30, 20]), 0.7).s_ge[2] == 3
    # Nearer to one of them: it and the near one are copies, the other stays.
    uneven = torch.stack([unit((2 * a + b)[None])[0], a, b])
    assert reproducible(seeds_of(uneven, [60, 30, 20]), 0.7).s_ge[2] == 2
    # Children that hold half of their parent are not the parent, and not each other.
    children = unit(torch.eye(9)[1:] + torch.eye(9)[0])
    family = torch.cat([torch.eye(9)[:1], children])
    assert reproducible(seeds_of(family, [90, *range(60, 44, -2)]), 0.7).s_ge[2] == 9
    # A heavy latent close to two that are far apart takes one of them.
    third = torch.stack([c, unit((c + 0.7 * a)[None])[0], unit((c - 0.7 * a)[None])[0]])
    assert reproducible(seeds_of(third, [60, 30, 20]), 0.7).s_ge[2] == 2


def test_merging_is_not_a_chain():
    # Directions 6 degrees apart: each is within 8 degrees of the next, not of the one after. So a
    # latent takes one of its neighbours, of equally near ones the first.
    angles = torch.arange(5) * np.deg2rad(6)
    W = torch.stack([angles.cos(), angles.sin()], dim=1)
    indices = torch.arange(5).repeat(20)[:, None]
    mass = torch.tensor([1.0, 5.0, 1.0, 4.0, 1.0])[indices]
    merged = merge_duplicates(LatentSet(W, SparseActs(indices, mass), np.ones(5, bool)), 0.99)
    np.testing.assert_array_equal(merged.live, [False, True, False, True, True])
    z = activation_matrix(merged.acts, 5).sum(axis=0)
    np.testing.assert_allclose(z, [0, 120, 0, 100, 20])


def test_a_seed_of_noise_adds_nothing():
    world = World()
    _, dicts = world.seeds(3)
    expected = reproducible(dicts, 0.7)
    noise = world.seed(torch.zeros(60, dtype=torch.bool))
    with_noise = reproducible([*dicts, noise], 0.7)
    assert [with_noise.s_ge[r] for r in (2, 3, 4)] == [expected.s_ge[2], expected.s_ge[3], 0]


def test_same_direction_with_other_events_is_not_reproduced():
    world = World()
    found = torch.ones(60, dtype=torch.bool)
    one, other = world.seed(found), world.seed(found)
    assert reproducible([one, other], 0.7).s_ge[2] == 60
    elsewhere = SparseActs(other.acts.indices.roll(1, 0), other.acts.values.roll(1, 0))
    assert reproducible([one, LatentSet(other.W_dec, elsewhere, other.live)], 0.7).s_ge[2] == 0
