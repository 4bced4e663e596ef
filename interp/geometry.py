"""How a set of vectors overlaps: exact mean squares by Gram matrix, never by pairs.

Mean squared overlap says how isotropic the rows are. It saturates with their number and cannot
count features: random rows already give 1 / d_model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from scipy import special
from scipy.linalg import blas
from torch import Tensor

from interp.toy.measures import REPRESENTED_NORM

_ROWS_AT_ONCE = 512
_ROUNDING = 1e-12
"""A row this much shorter after a projection was removed by it; what is left is rounding."""
_PASSES = 4
N_PAIRS = 1 << 18
"""Pairs sampled for the histogram."""
_BINS = np.linspace(-6, 6, 49)
"""Of the cosine, in units of 1 / sqrt(d_model), its standard deviation between random rows."""
_LEVELS = (0.5, 0.9, 0.99, 0.999)


@dataclass(frozen=True)
class OverlapSample:
    """Cosines of sampled pairs of rows beside those of random directions."""

    n_pairs: int
    bins: tuple[float, ...]
    """Edges in units of 1 / sqrt(d_model); the outer bins take what lies beyond."""
    fraction: tuple[float, ...]
    random_fraction: tuple[float, ...]
    """The same for directions drawn at random: (1 + cos) / 2 ~ Beta((d-1)/2, (d-1)/2)."""
    quantiles: dict[str, float]
    """Of |cosine|."""
    random_quantiles: dict[str, float]


@dataclass(frozen=True)
class Geometry:
    """Overlaps are squared cosines between different rows. Zero rows are left out and counted."""

    n: int
    """Rows that are not zero."""
    n_zero_rows: int
    d_model: int
    mean_squared_overlap: float
    mean_squared_overlap_centred: float | None
    """The mean row subtracted first; None where fewer than two rows are left."""
    mean_squared_overlap_top_removed: float | None
    """The mean row and the `n_removed` leading principal components removed."""
    n_removed: int
    """max(1, d_model / 100), as in Mu & Viswanath, arXiv 1702.01417."""
    top_variance_fraction: float
    """Share of the variance in those components."""
    welch_floor: float
    """(n - d) / (d (n - 1)), the least mean squared overlap of n unit rows; 0 where n <= d."""
    random_mean: float
    """1 / d_model: n random rows, whatever n."""
    random_sd: float
    """Standard deviation of their mean over n(n-1)/2 pairs, which are pairwise independent."""
    ratio_to_welch: float | None
    """None where the floor is 0."""
    ratio_to_random: float
    participation_ratio: float | None
    """(sum of variances)^2 / sum of their squares, over principal components of the rows."""
    norm_mean: float
    norm_std: float
    norm_min: float
    """Of the rows that are not zero."""
    norm_max: float
    mean_row_norm: float
    """||mean row|| / root mean square of the norms: 0 for directions that cancel, 1 for equal."""
    sample: OverlapSample

    def to_json(self) -> dict[str, Any]:
        """Plain types for `json.dumps(..., allow_nan=False)`."""
        reasons = []
        if self.ratio_to_welch is None:
            reasons.append(f"{self.n} rows fit into {self.d_model} dimensions: the floor is 0")
        if None in (self.mean_squared_overlap_centred, self.mean_squared_overlap_top_removed):
            reasons.append("too few directions are left after centring")
        return asdict(self) | ({"reason": "; ".join(reasons)} if reasons else {})


def mean_squared_overlap(rows: Float[Tensor, "row d_model"]) -> float:
    """Mean squared cosine over pairs of different rows that are not zero, exactly.

    The sum over all pairs, the diagonal included, is n^2 tr(C^2) with C = (1/n) sum w w^T over unit
    rows: O(n d^2), accumulated in float64. Raises ValueError below two rows that are not zero.
    """
    gram, n = _gram(_unit(piece) for piece in _pieces(rows))
    return _off_diagonal(gram, n)


def row_overlaps(rows: Float[Tensor, "row d_model"]) -> Float[np.ndarray, " row"]:
    """Mean squared cosine of each row with all others; NaN for a row that is zero.

    u^T G u, with G the sum of u u^T, counts a row's squared overlaps with all and 1 for itself.
    """
    gram, n = _gram(_unit(piece) for piece in _pieces(rows))
    found = [np.zeros(0)]
    for piece in _pieces(rows):
        own = np.full(len(piece), np.nan)
        present = np.any(piece != 0, axis=1)
        unit = _unit(piece)
        own[present] = (np.einsum("rd,rd->r", unit @ gram, unit) - 1) / (n - 1)
        found.append(own)
    return np.concatenate(found)


def row_facts(rows: Float[Tensor, "row d_model"]) -> dict[str, float | None]:
    """What the MIT study's decay is there to move: lengths of rows, and how much they overlap.

    `represented` is phi_1/2 of the toy model (Liu, Liu & Gore, arXiv 2505.10465), of these rows.
    """
    found = geometry(rows)
    norms = torch.linalg.vector_norm(rows.detach().float(), dim=1)
    return {
        "norm_mean": found.norm_mean,
        "represented": float((norms > REPRESENTED_NORM).float().mean()),
        "mean_squared_overlap": found.mean_squared_overlap,
        "mean_squared_overlap_centred": found.mean_squared_overlap_centred,
    }


def geometry(
    rows: Float[Tensor, "row d_model"],
    *,
    generator: np.random.Generator | None = None,
    heartbeat: Callable[[float], None] = lambda share: None,
) -> Geometry:
    """Everything this module says about a matrix of rows of any dtype, in a few passes over it.

    `generator` draws the pairs of the histogram (seeded with 0 by default); `heartbeat` is told the
    share done. Raises ValueError for a row that is not finite, fewer than two rows that are not
    zero, or one dimension, where cosines are all 1.
    """
    n_rows, d = rows.shape
    if d < 2:
        raise ValueError("rows of one dimension; overlaps need at least two")
    done = 0

    def passing(prepare: Callable[[np.ndarray], np.ndarray]) -> Iterator[np.ndarray]:
        nonlocal done
        for piece in _pieces(rows):
            done += len(piece)
            yield prepare(piece)
            heartbeat(done / (_PASSES * n_rows))

    norms = np.concatenate([np.linalg.norm(piece, axis=1) for piece in _pieces(rows)])
    if not np.isfinite(norms).all():
        raise ValueError(f"row {int(np.argmin(np.isfinite(norms)))} is not finite")
    lengths = norms[norms > 0]
    n = len(lengths)
    if n < 2:
        raise ValueError(f"{n} of {n_rows} rows are not zero; overlaps need at least two")
    overlap = _off_diagonal(*_gram(passing(_unit)))

    # A zero row adds nothing to the sum, and is left out before the mean is subtracted.
    mean = sum((piece.sum(axis=0) for piece in _pieces(rows)), np.zeros(d)) / n

    def centre(piece: np.ndarray) -> np.ndarray:
        return piece[np.any(piece != 0, axis=1)] - mean

    smallest = _ROUNDING * float(lengths.max())
    variances, components = np.linalg.eigh(_gram(passing(centre))[0] / n)
    variances = np.maximum(variances[::-1], 0.0)
    total = float(variances.sum())
    n_removed = max(1, d // 100)
    top = components[:, ::-1][:, :n_removed]

    def without_top(piece: np.ndarray) -> np.ndarray:
        moved = centre(piece)
        return moved - (moved @ top) @ top.T

    floor = max((n - d) / (d * (n - 1)), 0.0)
    return Geometry(
        n=n,
        n_zero_rows=n_rows - n,
        d_model=d,
        mean_squared_overlap=overlap,
        mean_squared_overlap_centred=_mean_or_none(
            passing(lambda piece: _unit(centre(piece), smallest))
        ),
        mean_squared_overlap_top_removed=_mean_or_none(
            passing(lambda piece: _unit(without_top(piece), smallest))
        ),
        n_removed=n_removed,
        top_variance_fraction=float(variances[:n_removed].sum() / total) if total else 0.0,
        welch_floor=floor,
        random_mean=1 / d,
        random_sd=float(np.sqrt(2 * (d - 1) / (d**2 * (d + 2)) / (n * (n - 1) / 2))),
        ratio_to_welch=overlap / floor if floor > 0 else None,
        ratio_to_random=overlap * d,
        participation_ratio=total**2 / float((variances**2).sum()) if total else None,
        norm_mean=float(lengths.mean()),
        norm_std=float(lengths.std()),
        norm_min=float(lengths.min()),
        norm_max=float(lengths.max()),
        mean_row_norm=float(np.linalg.norm(mean) / np.sqrt(np.mean(lengths**2))),
        sample=_sample(rows, norms, generator or np.random.default_rng(0)),
    )


def _pieces(rows: Tensor) -> Iterator[Float[np.ndarray, "piece d_model"]]:
    """The rows in float64, some at a time, in one array that is used again for the next."""
    buffer = np.empty((min(_ROWS_AT_ONCE, len(rows)), rows.shape[1]))
    for start in range(0, len(rows), _ROWS_AT_ONCE):
        some = rows[start : start + _ROWS_AT_ONCE].detach().cpu()
        piece = buffer[: len(some)]
        np.copyto(piece, (some.float() if some.dtype == torch.bfloat16 else some).numpy())
        yield piece


def _unit(piece: np.ndarray, smallest: float = 0.0) -> np.ndarray:
    """The rows longer than `smallest`, at unit length; overwrites `piece`."""
    norms = np.sqrt(np.einsum("rd,rd->r", piece, piece))
    if norms.min(initial=np.inf) <= smallest:
        piece, norms = piece[norms > smallest], norms[norms > smallest]
    piece /= norms[:, None]
    return piece


def _gram(pieces: Iterator[np.ndarray]) -> tuple[Float[np.ndarray, "d d"], int]:
    """Sum of w w^T over the rows, and their number."""
    total, n = None, 0
    for piece in pieces:
        if total is None:
            total = np.zeros((piece.shape[1],) * 2, order="F")
        if len(piece):
            # A symmetric update in place: half the operations of a product, and no copy.
            total = blas.dsyrk(1.0, piece.T, beta=1.0, c=total, overwrite_c=1)
        n += len(piece)
    assert total is not None
    return np.triu(total) + np.triu(total, 1).T, n


def _off_diagonal(gram: np.ndarray, n: int) -> float:
    if n < 2:
        raise ValueError(f"{n} rows are not zero; overlaps need at least two")
    return max(float(np.vdot(gram, gram)) - n, 0.0) / (n * (n - 1))


def _mean_or_none(pieces: Iterator[np.ndarray]) -> float | None:
    gram, n = _gram(pieces)
    return _off_diagonal(gram, n) if n >= 2 else None


def _sample(rows: Tensor, norms: np.ndarray, generator: np.random.Generator) -> OverlapSample:
    d = rows.shape[1]
    present = np.flatnonzero(norms > 0)
    first = generator.integers(len(present), size=N_PAIRS)
    # A shift by 1..n-1 never meets the row itself, and every other equally often.
    second = (first + generator.integers(1, len(present), size=N_PAIRS)) % len(present)
    cosines = np.empty(N_PAIRS)
    for start in range(0, N_PAIRS, _ROWS_AT_ONCE):
        pair = slice(start, start + _ROWS_AT_ONCE)
        a, b = (rows[present[i[pair]]].detach().cpu().double().numpy() for i in (first, second))
        cosines[pair] = np.einsum("pd,pd->p", _unit(a), _unit(b))
    inner = np.clip(_BINS[1:-1] / np.sqrt(d), -1, 1)
    counts = np.bincount(np.searchsorted(inner, cosines), minlength=len(_BINS) - 1)
    shape = (d - 1) / 2
    below = np.concatenate([[0.0], special.betainc(shape, shape, (1 + inner) / 2), [1.0]])
    quantiles = np.quantile(np.abs(cosines), _LEVELS)
    random = 2 * special.betaincinv(shape, shape, (1 + np.array(_LEVELS)) / 2) - 1
    return OverlapSample(
        n_pairs=N_PAIRS,
        bins=tuple(_BINS.tolist()),
        fraction=tuple((counts / N_PAIRS).tolist()),
        random_fraction=tuple(np.diff(below).tolist()),
        quantiles={f"{q:g}": float(v) for q, v in zip(_LEVELS, quantiles, strict=True)},
        random_quantiles={f"{q:g}": float(v) for q, v in zip(_LEVELS, random, strict=True)},
    )
