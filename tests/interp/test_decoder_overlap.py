"""Overlap and capacity: against all pairs formed one by one, and what geometry guarantees."""

import numpy as np
import pytest
import torch

import interp.decoder_overlap
from interp.decoder_overlap import decoder_overlap, overlap_estimates
from interp.estimate import InsufficientData
from saes.errors import SAEError


def rows(n=40, d_in=12, seed=0) -> torch.Tensor:
    g = torch.Generator().manual_seed(seed)
    return torch.randn(n, d_in, generator=g) * torch.rand(n, 1, generator=g).add(0.5)


@pytest.mark.parametrize("centred", [False, True])
def test_equals_all_pairs(centred, monkeypatch):
    monkeypatch.setattr(interp.decoder_overlap, "COSINE_BLOCK_ELEMENTS", 100)
    W = rows()
    found = decoder_overlap(W, centred=centred)
    v = W.double().numpy()
    v = v - v.mean(axis=0) if centred else v
    products = v @ v.T
    norms = np.linalg.norm(v, axis=1)
    cosines = products / np.outer(norms, norms)
    off = ~np.eye(len(v), dtype=bool)
    assert found.mean_squared_cosine == pytest.approx((cosines[off] ** 2).mean(), rel=1e-10)
    np.testing.assert_allclose(found.capacities, norms**4 / (products**2).sum(axis=1), rtol=1e-10)
    np.fill_diagonal(cosines, -1)
    for q, value in found.max_cosine_quantiles.items():
        assert value == pytest.approx(np.quantile(cosines.max(axis=1), q), rel=1e-10)
    eigenvalues = np.linalg.eigvalsh((v / norms[:, None]).T @ (v / norms[:, None]))
    ratio = eigenvalues.sum() ** 2 / (eigenvalues**2).sum()
    assert found.participation_ratio == pytest.approx(ratio, rel=1e-10)


def test_orthogonal_rows_have_all_there_is():
    found = decoder_overlap(torch.eye(6) * torch.arange(1.0, 7)[:, None])
    assert found.mean_squared_cosine == pytest.approx(0, abs=1e-12)
    assert found.welch_floor == 0
    assert found.participation_ratio == pytest.approx(6)
    np.testing.assert_allclose(found.capacities, np.ones(6))


def test_a_tight_frame_reaches_the_welch_floor():
    # Three directions at 120 degrees in the plane: cos^2 = 1/4, and C_i = d/n = 2/3.
    angles = torch.tensor([0.0, 2.0, 4.0]) * torch.pi / 3
    found = decoder_overlap(torch.stack([angles.cos(), angles.sin()], dim=1).double())
    assert found.mean_squared_cosine == pytest.approx(1 / 4)
    assert found.welch_floor == pytest.approx(1 / 4)
    np.testing.assert_allclose(found.capacities, np.full(3, 2 / 3))


def test_random_rows_overlap_as_random_ones_do():
    found = decoder_overlap(torch.randn(2000, 24, generator=torch.Generator().manual_seed(1)))
    # cos^2 is Beta(1/2, 23/2): standard deviation about 1.4 / d; 2e6 pairs, 2000 rows.
    assert found.mean_squared_cosine == pytest.approx(found.random_mean, rel=0.02)
    assert found.welch_floor < found.mean_squared_cosine
    # Rows of length sqrt(24), nearly: capacity d in all, as far as they are isotropic.
    assert found.capacities.sum() < 24
    assert found.capacities.sum() == pytest.approx(24, rel=0.1)


def test_capacity_never_passes_the_dimensions():
    for seed in range(20):
        W = rows(n=30, d_in=5, seed=seed)
        assert decoder_overlap(W).capacities.sum() <= 5 + 1e-9


def test_scale_and_order_do_not_matter():
    W = rows()
    found, other = decoder_overlap(W), decoder_overlap(3 * W.flip(0))
    assert other.mean_squared_cosine == pytest.approx(found.mean_squared_cosine, rel=1e-6)
    np.testing.assert_allclose(other.capacities[::-1], found.capacities, rtol=1e-6)


def test_estimates_over_seeds():
    dictionaries = [rows(seed=s) for s in range(4)]
    overlap, capacity = overlap_estimates(dictionaries, d_sae=64, k=4)
    each = [decoder_overlap(W) for W in dictionaries]
    assert overlap.value == pytest.approx(np.mean([f.mean_squared_cosine for f in each]))
    assert capacity.value == pytest.approx(np.mean([f.capacities.sum() for f in each]))
    assert (overlap.per_dim, capacity.per_dim) == (None, pytest.approx(capacity.value / 12))
    # t(0.975, 3 degrees of freedom) = 3.182.
    half = 3.182446 * np.std([f.capacities.sum() for f in each], ddof=1) / 2
    assert capacity.ci_high == pytest.approx(capacity.value + half)
    centred, _ = overlap_estimates(dictionaries, d_sae=64, k=4, centred=True)
    assert centred.estimator == "overlap_centred"
    with pytest.raises(InsufficientData, match="one seed"):
        overlap_estimates(dictionaries[:1], d_sae=64, k=4)
    with pytest.raises(InsufficientData, match="a seed with 1 live latents"):
        overlap_estimates([dictionaries[0], dictionaries[1][:1]], d_sae=64, k=4)


def test_wrong_rows_are_refused():
    with pytest.raises(ValueError, match="two rows"):
        decoder_overlap(torch.ones(1, 4))
    with pytest.raises(SAEError, match="not zero"):
        decoder_overlap(torch.tensor([[1.0, 0], [0, 0]]))
