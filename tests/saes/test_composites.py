"""Composites: pairs are found, features are not, and the null says how often by chance."""

import numpy as np
import pytest
import torch

from saes.composites import composites, without_composites
from saes.latent_set import LatentSet
from saes.matching import reproducible
from saes.sae import SparseActs


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def unit(x: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.normalize(x, dim=1)


def latent_set(W: torch.Tensor, fires: list[int]) -> LatentSet:
    """Latent i fires fires[i] times with value 1, each time alone on a token."""
    latents = torch.repeat_interleave(torch.arange(len(W)), torch.tensor(fires))
    acts = SparseActs(latents[:, None], torch.ones(len(latents), 1))
    return LatentSet(W, acts, np.ones(len(W), dtype=bool))


def features(n: int, d_in: int = 32, seed: int = 0) -> torch.Tensor:
    return unit(torch.randn(n, d_in, generator=generator(seed)))


def test_a_pair_is_composite_and_its_halves_are_not():
    a, b, c = features(3)
    W = unit(torch.stack([a, b, c, 0.6 * a + 1.2 * b]))
    found = composites(latent_set(W, [40, 30, 20, 10]))
    assert found.tolist() == [False, False, False, True]


def test_a_feature_is_no_difference_of_a_pair_and_its_other_half():
    a, b = features(2)
    # b = (a + b) - a would need a negative share.
    W = unit(torch.stack([a + b, a, b]))
    assert not composites(latent_set(W, [30, 20, 10])).any()


def test_a_pair_that_matters_more_than_its_halves_is_kept():
    a, b = features(2)
    W = unit(torch.stack([a, a + b, b]))
    assert not composites(latent_set(W, [30, 20, 10])).any()


def test_a_near_copy_is_composite():
    a, b, noise = features(3)
    near = unit((a + 0.2 * noise)[None])[0]
    assert float(near @ a) > 0.95
    assert composites(latent_set(torch.stack([a, b, near]), [30, 20, 10])).tolist() == [0, 0, 1]


def test_the_limit_is_the_angle_to_the_plane():
    a, b, off = torch.eye(8)[:3]
    for cosine, expected in ((0.94, False), (0.96, True)):
        inside = (a + b) / 2**0.5
        w = cosine * inside + (1 - cosine**2) ** 0.5 * off
        assert composites(latent_set(torch.stack([a, b, w]), [30, 20, 10]))[2] == expected


def test_dead_latents_are_neither_parents_nor_composites():
    a, b = features(2)
    latents = latent_set(torch.stack([a, b, a + b]), [30, 20, 10])
    unused = LatentSet(latents.W_dec, latents.acts, np.array([True, False, True]))
    assert not composites(unused).any()


def test_order_and_scale_do_not_matter():
    W = features(12)
    W = torch.cat([W, unit(W[:4] + W[4:8])])
    fires = [60 - i for i in range(16)]
    latents = latent_set(W, fires)
    found = composites(latents)
    assert found.tolist() == [False] * 12 + [True] * 4
    order = torch.randperm(16, generator=generator())
    place = order.argsort()
    lengths = torch.linspace(0.2, 5.0, 16)
    scaled = LatentSet(
        (W * lengths[:, None])[order],
        SparseActs(place[latents.acts.indices], 1 / lengths[latents.acts.indices]),
        np.ones(16, dtype=bool),
    )
    assert composites(scaled).tolist() == found[order.numpy()].tolist()


@pytest.mark.parametrize(("d_in", "n"), [(16, 128), (32, 256)])
def test_random_directions_are_no_composites(d_in, n):
    # The null beside COMPOSITE_COSINE: 1e-3 for each of 128 latents in 16 dimensions at most.
    assert composites(latent_set(features(n, d_in), list(range(n, 0, -1)))).sum() <= 1


def test_what_is_left_without_pairs_and_copies_is_distinct():
    """What a calibration calls `distinct_latents`."""
    W = features(20)
    aside = unit(features(20).flip(0) - (features(20).flip(0) * W).sum(1, keepdim=True) * W)
    copies = 0.85 * W[:5] + (1 - 0.85**2) ** 0.5 * aside[:5]
    everything = torch.cat([W, unit(W[:8] + W[8:16]), copies])
    seeds = [latent_set(everything, [60 - i for i in range(33)]) for _ in range(2)]
    assert reproducible([without_composites(s) for s in seeds], 0.7).n_live == (20, 20)


def test_reproduced_pairs_leave_the_count():
    W = features(20)
    pairs = torch.cat([W, unit(W[:8] + W[8:16])])
    fires = [60 - i for i in range(28)]
    seeds = [latent_set(pairs, fires) for _ in range(2)]
    # The same activations, so that matching's other test passes.
    assert reproducible(seeds, 0.7).s_ge[2] == 28
    assert reproducible([without_composites(s) for s in seeds], 0.7).s_ge[2] == 20
