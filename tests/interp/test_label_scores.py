"""Labels against latents: hand-worked cases, scipy as reference, planted latents and nulls."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import mannwhitneyu

from interp.label_scores import (
    MIN_SHIFT_TOKENS,
    LabelScore,
    label_latents,
    score_labels,
)
from saes.sae import SparseActs

N, D = 6_000, 12


def from_dense(z: np.ndarray, k: int = 4) -> SparseActs:
    values, indices = torch.from_numpy(z).topk(k, dim=1)
    return SparseActs(indices, values)


def bursts(rng: np.random.Generator, share: float) -> np.ndarray:
    """A label in stretches of eight tokens, as text has them."""
    return np.repeat(rng.random(N // 8) < share, 8)


@pytest.fixture
def data() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Sparse noise with latent 3 planted on label 0; labels 1 and 2 belong to nothing."""
    rng = np.random.default_rng(0)
    z = rng.random((N, D)).astype(np.float32) * (rng.random((N, D)) < 0.08)
    labels = np.stack([bursts(rng, s) for s in (0.1, 0.1, 0.6)], axis=1)
    heard = labels[:, 0] & (rng.random(N) < 0.9)
    z[:, 3] = heard * (1 + rng.random(N)) + z[:, 3]
    halves = (np.arange(N) // 500) % 2 == 0
    return z.astype(np.float32), labels, halves


def scores(
    z: np.ndarray, labels: np.ndarray, halves: np.ndarray, seed: int = 0
) -> list[LabelScore]:
    names = [f"label {i}" for i in range(labels.shape[1])]
    generator = torch.Generator().manual_seed(seed)
    return score_labels(from_dense(z), D, labels, names, halves, generator=generator)


def test_a_planted_latent_is_found_and_nothing_else(data: tuple[np.ndarray, ...]) -> None:
    z, labels, halves = data
    planted, absent, common = scores(z, labels, halves)
    assert (planted.label, planted.latent, planted.dedicated) == ("label 0", 3, True)
    assert planted.f1 > 0.85
    assert planted.auc > 0.9
    assert planted.null_f1 < 0.3
    assert not absent.dedicated
    assert absent.auc == pytest.approx(0.5, abs=0.05)
    assert not common.dedicated
    assert [s.n_tokens for s in (planted, absent, common)] == labels.sum(0).tolist()


def test_f1_and_auc_are_those_of_the_other_half(data: tuple[np.ndarray, ...]) -> None:
    z, labels, halves = data
    found = scores(z, labels, halves)[0]
    x, y = z[~halves, found.latent], labels[~halves, 0]
    # Outside the four largest of a token the latent does not fire.
    x = np.where(x >= np.sort(z[~halves], axis=1)[:, -4], x, 0)
    said = x >= found.threshold
    assert found.f1 == pytest.approx(2 * (said & y).sum() / (said.sum() + y.sum()))
    u = mannwhitneyu(x[y], x[~y]).statistic
    assert found.auc == pytest.approx(u / (y.sum() * (~y).sum()))


def test_a_common_label_needs_more_than_saying_yes() -> None:
    """A latent that fires at random has an F1 of 2 p q / (p + q) on a label of share p."""
    rng = np.random.default_rng(1)
    z = np.zeros((N, D), np.float32)
    z[:, 0] = rng.random(N) < 0.19
    labels = np.ones((N, 1), bool)
    labels[::10] = False
    halves = np.arange(N) < N // 2
    (found,) = scores(z, labels, halves)
    assert found.f1 == pytest.approx(2 * 0.9 * 0.19 / (0.9 + 0.19), abs=0.02)
    assert found.null_f1 >= found.f1 - 0.02
    assert not found.dedicated


def test_the_order_of_latents_changes_nothing(data: tuple[np.ndarray, ...]) -> None:
    z, labels, halves = data
    order = np.random.default_rng(2).permutation(D)
    mine, theirs = scores(z, labels, halves), scores(z[:, order], labels, halves)
    for a, b in zip(mine, theirs, strict=True):
        assert a.f1 == pytest.approx(b.f1)
        assert a.latent == order[b.latent]
        assert a.null_f1 == pytest.approx(b.null_f1)


def test_rare_labels_and_dead_latents_are_left_out(data: tuple[np.ndarray, ...]) -> None:
    z, labels, halves = data
    rare = labels.copy()
    rare[:, 1] = False
    rare[:20, 1] = True
    assert [s.label for s in scores(z, rare, halves)] == ["label 0", "label 2"]
    assert scores(np.zeros_like(z), labels, halves) == []


def test_a_text_too_short_to_shift_shows_nothing() -> None:
    n = 2 * MIN_SHIFT_TOKENS
    z = np.zeros((n, D), np.float32)
    labels = np.zeros((n, 1), bool)
    labels[::10] = True
    z[::10, 0] = 1.0
    (found,) = scores(z, labels, np.arange(n) < n // 2)
    assert found.f1 == 1.0
    assert not found.dedicated


def test_unequal_lengths_are_refused(data: tuple[np.ndarray, ...]) -> None:
    z, labels, halves = data
    with pytest.raises(ValueError, match="do not belong together"):
        scores(z[:-1], labels, halves)


def named(z: np.ndarray, labels: np.ndarray, halves: np.ndarray) -> dict[int, LabelScore]:
    names = [f"label {i}" for i in range(labels.shape[1])]
    generator = torch.Generator().manual_seed(0)
    return label_latents(from_dense(z), D, labels, names, halves, generator=generator)


def test_a_planted_latent_gets_its_label_and_noise_gets_none(data: tuple[np.ndarray, ...]) -> None:
    z, labels, halves = data
    found = named(z, labels, halves)
    assert set(found) == set(range(D))
    assert (found[3].label, found[3].dedicated) == ("label 0", True)
    # Label and latent chose each other, so the score is the one asked of the label.
    assert found[3].f1 == pytest.approx(scores(z, labels, halves)[0].f1)
    assert found[3].n_tokens == labels[:, 0].sum()
    assert not any(found[latent].dedicated for latent in range(D) if latent != 3)


def test_a_label_is_scored_where_it_was_not_chosen(data: tuple[np.ndarray, ...]) -> None:
    z, labels, halves = data
    broken = z.copy()
    broken[~halves, 3] = np.roll(z[~halves, 3], 1_500)
    assert named(z, labels, halves)[3].f1 > 0.85
    assert named(broken, labels, halves)[3].f1 < 0.3


def test_latents_of_a_text_too_short_to_shift_tell_nothing() -> None:
    n = 2 * MIN_SHIFT_TOKENS
    z = np.zeros((n, D), np.float32)
    labels = np.zeros((n, 1), bool)
    labels[::10] = True
    z[::10, 0] = 1.0
    assert not named(z, labels, np.arange(n) < n // 2)[0].dedicated
    assert named(z, np.zeros((n, 1), bool), np.arange(n) < n // 2) == {}
