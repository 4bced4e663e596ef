"""What a trained toy model represents, how its vectors overlap, and what each feature costs."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from scipy import stats

from interp.toy.batches import EVALUATION, Stream
from interp.toy.model import Scratch, ToyModel

REPRESENTED_NORM = 0.5
"""A feature is represented if its row is longer; rows end near 0 or near 1."""
MOST_PAIRS = 4_000_000
LEVELS = np.array([0.01, 0.05, *np.arange(0.1, 0.91, 0.1), 0.95, 0.99, 0.999, 0.9999])
"""Of the quantiles kept of squared overlaps."""


@dataclass(frozen=True)
class Overlaps:
    """Squared cosines between the represented rows, each pair once, beside what chance gives."""

    mean: float
    """Exact, over all pairs."""
    variance: float
    """Over the pairs, or over MOST_PAIRS of them drawn at random."""
    welch_floor: float
    """(N - m) / (m (N - 1)), the least mean that N vectors can have; 0 if N <= m."""
    random_mean: float
    """1 / m, of Beta(1/2, (m - 1)/2)."""
    random_variance: float
    """2 (m - 1) / (m^2 (m + 2)), of the same."""
    ks: float
    """Largest difference between the pairs' distribution and that Beta distribution."""
    quantiles: Float[np.ndarray, " level"]
    random_quantiles: Float[np.ndarray, " level"]


@dataclass(frozen=True)
class Measures:
    """Of one trained model."""

    loss: float
    """Mean over fresh samples of the sum over features of (y - x)^2."""
    loss_se: float
    """From the differences between batches."""
    feature_loss: Float[np.ndarray, " n"]
    norms: Float[np.ndarray, " n"]
    capacities: Float[np.ndarray, " n"]
    """C_i = ||W_i||^4 / sum_j (W_i . W_j)^2, dimensions given to feature i; at most m in all."""
    phi_half: float
    """Fraction of rows longer than REPRESENTED_NORM."""
    dimensions_per_feature: float | None
    """m / ||W||^2, of the whole matrix (Frobenius); None where W is zero."""
    weak_prediction: float
    """(4/3) sum of p_i over features that are not represented: the loss if those are all it is."""
    silent_fraction: float
    """Of the represented features: those whose output stays at zero even for the largest value of
    their own input alone, 2 ||W_i||^2 + b_i <= 0. Such a ReLU has no gradient to come back by."""
    silent_loss: float
    """(4/3) sum of p_i over those: what they cost where nothing else speaks for them."""
    overlaps: Overlaps | None
    """None with fewer than two represented features or a width of one."""
    speaking_overlap: float | None
    """The mean squared overlap again, without silent features; None as above."""


def measure(model: ToyModel, n_batches: int, scratch: Scratch) -> Measures:
    """Measures on `n_batches` fresh batches (at least two), the same ones for all models of a law.

    Source: Liu, Liu & Gore, arXiv 2505.10465 (phi, weak regime); Elhage et al. 2022 (dimensions per
    feature); Scherlis et al., arXiv 2210.01892, eq. 2 (capacity).
    """
    frequencies, m = model.config.frequencies, model.config.m
    stream = Stream(frequencies, model.config.batch_size, purpose=EVALUATION)
    by_feature = np.zeros(frequencies.n)
    losses = [model.errors(stream.batch(t), scratch, by_feature) for t in range(n_batches)]
    W = model.W.astype(np.float64)
    squares = (W**2).sum(1)
    represented = np.sqrt(squares) > REPRESENTED_NORM
    silent = represented & (2 * squares + model.b <= 0)
    p = frequencies.probabilities()
    # sum_j (W_i . W_j)^2 = W_i^T (W^T W) W_i: pairs are never formed.
    met = np.einsum("ij,jk,ik->i", W, W.T @ W, W, optimize=True)
    return Measures(
        loss=float(np.mean(losses)),
        loss_se=float(np.std(losses, ddof=1) / n_batches**0.5),
        feature_loss=by_feature / (n_batches * model.config.batch_size),
        norms=np.sqrt(squares),
        capacities=np.divide(squares**2, met, out=np.zeros_like(met), where=met > 0),
        phi_half=float(represented.mean()),
        dimensions_per_feature=float(m / squares.sum()) if squares.any() else None,
        weak_prediction=float(4 / 3 * p[~represented].sum()),
        silent_fraction=float(silent.sum() / max(represented.sum(), 1)),
        silent_loss=float(4 / 3 * p[silent].sum()),
        overlaps=measure_overlaps(W[represented]),
        speaking_overlap=_mean_overlap(W[represented & ~silent]),
    )


def measure_overlaps(W: Float[np.ndarray, "row m"]) -> Overlaps | None:
    """Overlaps of the rows' directions; None with fewer than two rows or in one dimension."""
    mean = _mean_overlap(W)
    if mean is None:
        return None
    n, m = W.shape
    unit = _unit(W)
    squares = np.sort(_squared_cosines(unit))
    beta = stats.beta(0.5, (m - 1) / 2)
    expected = beta.cdf(squares)
    count = len(squares)
    ks = max(
        float((np.arange(1, count + 1) / count - expected).max()),
        float((expected - np.arange(count) / count).max()),
    )
    return Overlaps(
        mean=mean,
        variance=float(squares.var()),
        welch_floor=max(n - m, 0) / (m * (n - 1)),
        random_mean=1 / m,
        random_variance=2 * (m - 1) / (m**2 * (m + 2)),
        ks=ks,
        quantiles=np.quantile(squares, LEVELS),
        random_quantiles=beta.ppf(LEVELS),
    )


def _unit(W: Float[np.ndarray, "row m"]) -> Float[np.ndarray, "row m"]:
    return W / np.linalg.norm(W, axis=1, keepdims=True)


def _mean_overlap(W: Float[np.ndarray, "row m"]) -> float | None:
    """Mean squared cosine of different rows, exactly; None as for `measure_overlaps`."""
    n, m = W.shape
    if n < 2 or m < 2:
        return None
    unit = _unit(W)
    # tr((U^T U)^2) is the sum over all ordered pairs, each row with itself included.
    return float((((unit.T @ unit) ** 2).sum() - n) / (n * (n - 1)))


def _squared_cosines(unit: Float[np.ndarray, "row m"]) -> Float[np.ndarray, " pair"]:
    """Of all pairs, or of MOST_PAIRS drawn with replacement where there are more."""
    n = len(unit)
    if n * (n - 1) // 2 <= MOST_PAIRS:
        return ((unit @ unit.T)[np.triu_indices(n, 1)]) ** 2
    generator = np.random.default_rng(0)
    first = generator.integers(0, n, MOST_PAIRS)
    second = (first + generator.integers(1, n, MOST_PAIRS)) % n
    found = np.empty(MOST_PAIRS)
    for start in range(0, MOST_PAIRS, 1 << 16):
        part = slice(start, start + (1 << 16))
        found[part] = np.einsum("pd,pd->p", unit[first[part]], unit[second[part]]) ** 2
    return found
