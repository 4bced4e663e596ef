"""How a dictionary's decoder rows lie to each other: overlap, crowding, capacity. No counts.

Everything but the greatest cosine of each row follows from one Gram matrix [d_in, d_in], so pairs
of rows are never formed for it. SCIENCE section 4, f and g.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float
from scipy import stats
from torch import Tensor

from interp.estimate import Estimate, InsufficientData
from saes.edges import COSINE_BLOCK_ELEMENTS
from saes.errors import SAEError

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


@dataclass(frozen=True)
class DecoderOverlap:
    """The geometry of one dictionary's live rows, scaled to length 1."""

    n: int
    mean_squared_cosine: float
    """Over pairs of different rows."""
    welch_floor: float
    """No n unit vectors in d_in dimensions overlap less: (n - d_in) / (d_in (n - 1)), or 0."""
    random_mean: float
    """The expectation for isotropic random rows, 1 / d_in."""
    participation_ratio: float
    """(tr C)^2 / tr C^2 of C = (1/n) sum w w^T: dimensions used, at most d_in."""
    max_cosine_quantiles: dict[float, float]
    """Of the greatest cosine of each row with another."""
    capacities: Float[np.ndarray, " n"]
    """C_i = ||w_i||^4 / sum_j (w_i . w_j)^2 of the rows as they are, not scaled."""


def decoder_overlap(W: Float[Tensor, "n d_in"], *, centred: bool = False) -> DecoderOverlap:
    """Geometry of the rows given (choose the live ones first); `centred` removes their mean row.

    Mean squared cosine and participation ratio measure isotropy and saturate with n: they cannot
    count features. Time n d_in^2, and n^2 d_in for the greatest cosines, in bounded memory.
    Source: capacity, Scherlis et al. arXiv 2210.01892, eq. 1; Welch 1974, IEEE T-IT 20:397.
    Raises ValueError below two rows and SAEError on rows that are zero or not finite.
    """
    rows, unit = _rows_and_units(W, centred=centred)
    n, d_in = rows.shape
    overlap, capacities = _overlap_and_capacities(rows, unit)
    greatest = _greatest_cosines(unit)
    return DecoderOverlap(
        n=n,
        mean_squared_cosine=overlap,
        welch_floor=welch_floor(n, d_in),
        random_mean=1 / d_in,
        participation_ratio=n / (1 + (n - 1) * overlap),
        max_cosine_quantiles={q: float(np.quantile(greatest, q)) for q in QUANTILES},
        capacities=capacities,
    )


def welch_floor(n: int, d_in: int) -> float:
    """The least mean squared cosine of n unit vectors; 0 where they fit at right angles."""
    return max(n - d_in, 0) / (d_in * (n - 1))


def overlap_estimates(
    dictionaries: Sequence[Float[Tensor, "n d_in"]], *, d_sae: int, k: int, centred: bool = False
) -> list[Estimate]:
    """`overlap` (mean squared cosine) and `capacity` (sum of C_i, at most d_in), mean over seeds.

    dictionaries: the live decoder rows of each seed. Interval: Student's t over seeds, which are
    replicates; one dictionary's rows are not independent. `overlap` has no value per dimension.
    Raises InsufficientData, for the first, with one seed and where a seed has fewer than two rows.
    """
    if (fewest := min(map(len, dictionaries))) < 2:
        blank = Estimate("overlap", None, n_seeds=len(dictionaries), d_sae=d_sae, k=k)
        reason = f"a seed with {fewest} live latents; an overlap needs two"
        raise InsufficientData(replace(blank, identified=False, reason=reason))
    found = [_overlap_and_capacities(*_rows_and_units(W, centred=centred)) for W in dictionaries]
    d_in = dictionaries[0].shape[1]
    suffix = "_centred" if centred else ""
    estimates = []
    for name, values, per in (
        (f"overlap{suffix}", [overlap for overlap, _ in found], None),
        (f"capacity{suffix}", [float(capacities.sum()) for _, capacities in found], d_in),
    ):
        value = float(np.mean(values))
        estimate = Estimate(
            name,
            value=value,
            per_dim=value / per if per else None,
            n_seeds=len(found),
            d_sae=d_sae,
            k=k,
        )
        if len(found) < 2:
            reason = "no interval from one seed; at least two are needed"
            raise InsufficientData(replace(estimate, identified=False, reason=reason))
        se = float(np.std(values, ddof=1)) / np.sqrt(len(values))
        half = float(stats.t.ppf(0.975, len(values) - 1) * se)
        estimates.append(replace(estimate, ci_low=max(value - half, 0.0), ci_high=value + half))
    return estimates


def _rows_and_units(
    W: Float[Tensor, "n d_in"], *, centred: bool
) -> tuple[Float[Tensor, "n d_in"], Float[Tensor, "n d_in"]]:
    rows = torch.as_tensor(W).detach().double().cpu()
    if rows.ndim != 2 or len(rows) < 2:
        raise ValueError(f"overlap needs at least two rows, got shape {tuple(rows.shape)}")
    if centred:
        rows = rows - rows.mean(dim=0)
    norms = torch.linalg.vector_norm(rows, dim=1)
    if not (torch.isfinite(norms) & (norms > 0)).all():
        raise SAEError("decoder rows must be finite and not zero; choose the live latents first")
    return rows, rows / norms[:, None]


def _overlap_and_capacities(
    rows: Float[Tensor, "n d_in"], unit: Float[Tensor, "n d_in"]
) -> tuple[float, Float[np.ndarray, " n"]]:
    n = len(rows)
    squared = float((unit.T @ unit).square().sum())
    overlaps = (rows @ (rows.T @ rows) * rows).sum(dim=1)
    capacities = rows.square().sum(dim=1).square() / overlaps
    return (squared - n) / (n * (n - 1)), capacities.numpy()


def _greatest_cosines(unit: Float[Tensor, "n d_in"]) -> Float[np.ndarray, " n"]:
    height = max(1, COSINE_BLOCK_ELEMENTS // len(unit))
    best = []
    for start in range(0, len(unit), height):
        block = unit[start : start + height] @ unit.T
        block[torch.arange(len(block)), torch.arange(start, start + len(block))] = -1.0
        best.append(block.amax(dim=1))
    return torch.cat(best).numpy()
