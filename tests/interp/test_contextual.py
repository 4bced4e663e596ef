"""Contextual means: planted additive data, least squares as oracle, shrinkage, and noise alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from interp.contextual import ContextualFitter, ContextualMeans
from interp.errors import UserError

V, P, D = 12, 6, 5


def draw(n: int, seed: int = 0, *, noise: float, effects: float = 1.0) -> tuple[Tensor, ...]:
    """x = 3 + a[token] + b[position] + noise, tokens with Zipf frequencies tied to position."""
    generator = torch.Generator().manual_seed(seed)
    planted = torch.Generator().manual_seed(99)
    a = effects * torch.randn(V, D, generator=planted)
    b = effects * torch.randn(P, D, generator=planted)
    positions = torch.randint(0, P, (n,), generator=generator)
    weights = 1.0 / (1 + torch.arange(V, dtype=torch.float32))
    ids = torch.multinomial(weights, n, replacement=True, generator=generator)
    # Unbalanced design: one token likes even positions, so marginal means would be biased.
    ids = torch.where((positions % 2 == 0) & (torch.rand(n, generator=generator) < 0.4), 0, ids)
    x = 3 + a[ids] + b[positions] + noise * torch.randn(n, D, generator=generator)
    return x, ids, positions


def fit(x: Tensor, ids: Tensor, positions: Tensor, *, pieces: int = 1) -> ContextualMeans:
    fitter = ContextualFitter(V, P, D)
    for rows in torch.arange(len(x)).chunk(pieces):
        fitter.update(x[rows], ids[rows], positions[rows])
    return fitter.fit()


def test_planted_additive_data_is_removed() -> None:
    x, ids, positions = draw(4000, noise=1e-3)
    means = fit(x, ids, positions)
    fresh = draw(500, seed=7, noise=0.0)
    assert means.residual(*fresh).abs().max() < 5e-3
    assert means.variance_share.residual < 1e-5
    assert means.variance_share.token > 0.2
    assert means.variance_share.position > 0.2


def test_the_fit_is_penalised_least_squares() -> None:
    """Against a dense solve of the same objective with the same prior counts."""
    x, ids, positions = draw(300, noise=0.7)
    means = fit(x, ids, positions)
    one_hot = np.zeros((300, 1 + V + P))
    one_hot[:, 0] = 1
    one_hot[np.arange(300), 1 + ids] = 1
    one_hot[np.arange(300), 1 + V + positions] = 1
    penalty = np.diag([0.0] + [means.token_prior_count] * V + [means.pos_prior_count] * P)
    solved = np.linalg.solve(one_hot.T @ one_hot + penalty, one_hot.T @ x.double().numpy())
    expected = one_hot @ solved
    np.testing.assert_allclose(means.predict(ids, positions), expected, atol=2e-4)


def test_backfitting_beats_marginal_means_on_an_unbalanced_design() -> None:
    x, ids, positions = draw(4000, noise=0.1)
    means = fit(x, ids, positions)
    overall = x.mean(0)
    marginal = x - overall
    for index, size in ((ids, V), (positions, P)):
        for value in range(size):
            group = index == value
            if group.any():
                marginal[group] -= x[group].mean(0) - overall
    assert means.residual(x, ids, positions).var() < 0.9 * marginal.var()


def test_noise_has_no_means() -> None:
    """Negative control: without effects, almost nothing may be attributed or removed."""
    x, ids, positions = draw(4000, noise=1.0, effects=0.0)
    means = fit(x, ids, positions)
    share = means.variance_share
    # Unshrunk means of noise would take (V + P - 2) / n = 0.4% of the variance.
    assert share.token + share.position < 0.002
    assert share.residual == pytest.approx(1.0, abs=0.002)
    assert means.token_prior_count > 100
    shuffled = fit(
        x, ids[torch.randperm(4000, generator=torch.Generator().manual_seed(0))], positions
    )
    assert shuffled.variance_share.token < 0.002


def test_rare_tokens_are_shrunk_by_the_stated_rule() -> None:
    x, ids, positions = draw(2000, noise=1.0)
    rare = V - 1
    keep = ids != rare
    first = int((ids == rare).nonzero()[0])
    keep[first] = True
    x, ids, positions = x[keep], ids[keep], positions[keep]
    means = fit(x, ids, positions)
    assert 0.1 < means.token_prior_count < 10
    row = int((ids == rare).nonzero()[0])
    # The rule holds for effects that sum to zero over tokens; reported ones average to zero over
    # the data, which moves a constant between them and the mean.
    constant = means.token_mean.mean(0)
    alone = x[row] - (means.mean + constant) - means.pos_mean[positions[row]]
    expected = alone / (1 + means.token_prior_count)
    torch.testing.assert_close(means.token_mean[rare] - constant, expected, atol=1e-3, rtol=0)


def test_prior_counts_are_ratios_of_variances() -> None:
    """Effects and noise of equal variance: about 1; noise of variance 4: about 4."""

    def prior(noise: float) -> float:
        generator = torch.Generator().manual_seed(0)
        effects = torch.randn(400, 8, generator=generator)
        ids = torch.arange(4000) % 400
        positions = torch.zeros(4000, dtype=torch.int64)
        fitter = ContextualFitter(400, 1, 8)
        x = effects[ids] + noise * torch.randn(4000, 8, generator=generator)
        fitter.update(x, ids, positions)
        return fitter.fit().token_prior_count

    # 3200 effect values estimate the ratio to about 3%.
    assert prior(1.0) == pytest.approx(1.0, rel=0.12)
    assert prior(2.0) == pytest.approx(4.0, rel=0.12)


def test_unseen_tokens_have_no_effect() -> None:
    x, ids, positions = draw(500, noise=0.1)
    keep = ids != 3
    means = fit(x[keep], ids[keep], positions[keep])
    assert (means.token_mean[3] == 0).all()
    expected = means.mean + means.pos_mean[2]
    torch.testing.assert_close(means.predict(torch.tensor([3]), torch.tensor([2]))[0], expected)


def test_effects_average_to_zero_and_the_mean_is_the_mean() -> None:
    x, ids, positions = draw(1500, noise=0.5)
    means = fit(x, ids, positions)
    torch.testing.assert_close(means.token_mean[ids].mean(0), torch.zeros(D), atol=1e-5, rtol=0)
    torch.testing.assert_close(means.pos_mean[positions].mean(0), torch.zeros(D), atol=1e-5, rtol=0)
    torch.testing.assert_close(means.mean, x.mean(0), atol=1e-5, rtol=0)


def test_shares_equal_those_computed_from_the_rows() -> None:
    x, ids, positions = draw(1500, noise=0.8)
    means = fit(x, ids, positions)
    total = float(((x - x.mean(0)) ** 2).sum())
    residual = float((means.residual(x, ids, positions) ** 2).sum()) / total
    token = float((means.token_mean[ids] ** 2).sum()) / total
    position = float((means.pos_mean[positions] ** 2).sum()) / total
    share = means.variance_share
    assert share.residual == pytest.approx(residual, abs=1e-5)
    assert share.token == pytest.approx(token, abs=1e-5)
    assert share.position == pytest.approx(position, abs=1e-5)


def test_scale_shift_and_pieces_do_not_matter() -> None:
    x, ids, positions = draw(1500, noise=0.8)
    base = fit(x, ids, positions)
    pieces = fit(x, ids, positions, pieces=7)
    moved = fit(1000 + x, ids, positions)
    scaled = fit(50 * x, ids, positions)
    for other, factor in ((pieces, 1), (moved, 1), (scaled, 50)):
        torch.testing.assert_close(other.token_mean, factor * base.token_mean, atol=2e-3, rtol=1e-3)
        assert other.variance_share.residual == pytest.approx(
            base.variance_share.residual, abs=1e-4
        )


def test_sparse_and_dense_counts_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    x, ids, positions = draw(800, noise=0.5)
    dense = fit(x, ids, positions)
    monkeypatch.setattr("interp.contextual._DENSE_CELLS", 0)
    torch.testing.assert_close(fit(x, ids, positions).token_mean, dense.token_mean)


def test_files_round_trip_and_damage_is_refused(tmp_path: Path) -> None:
    x, ids, positions = draw(500, noise=0.5)
    means = fit(x, ids, positions)
    path = tmp_path / "means.safetensors"
    means.save(path)
    again = ContextualMeans.load(path)
    assert torch.equal(again.residual(x, ids, positions), means.residual(x, ids, positions))
    assert again.variance_share == means.variance_share
    assert (again.token_prior_count, again.n_tokens) == (means.token_prior_count, 500)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(UserError, match="remove it and fit again"):
        ContextualMeans.load(path)
    with pytest.raises(UserError, match="remove it and fit again"):
        ContextualMeans.load(tmp_path / "absent")


def test_the_same_means_are_the_same_bytes(tmp_path: Path) -> None:
    """The hash of this file is an input of all that is trained on the stream."""
    means = fit(*draw(500, noise=0.5))
    found = set()
    for i in range(6):  # safetensors alone: six keys in 720 orders
        means.save(tmp_path / f"{i}.safetensors")
        found.add((tmp_path / f"{i}.safetensors").read_bytes())
    assert len(found) == 1
    assert int.from_bytes(found.pop()[:8], "little") % 8 == 0
    assert ContextualMeans.load(tmp_path / "0.safetensors").n_tokens == means.n_tokens


def test_too_little_data_is_refused() -> None:
    fitter = ContextualFitter(V, P, D)
    with pytest.raises(UserError, match="at least 2 tokens"):
        fitter.fit()


def test_the_input_is_not_changed() -> None:
    x, ids, positions = draw(100, noise=0.5)
    before = x.clone()
    means = fit(x, ids, positions)
    means.residual(x, ids.int(), positions.int())
    assert torch.equal(x, before)
