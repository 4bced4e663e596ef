"""Association of packing with loss for few models: exact rank tests, and refusals with a reason.

The statistic across widths is the packing exponent, in `exponent` beside this file.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy import stats

from interp.exponent import ExponentDifference, ExponentFit, difference, fit_exponent

__all__ = [
    "Association",
    "ExponentDifference",
    "ExponentFit",
    "difference",
    "fit_exponent",
    "partial_spearman",
    "spearman_exact",
]

MAX_EXACT = 9
MAX_ARRANGEMENTS = math.factorial(MAX_EXACT)
MONTE_CARLO_DRAWS = 100_000
_ROUNDING = 1e-9


@dataclass(frozen=True)
class Association:
    """A rank correlation over models. No NaN: None, and `reason` says why."""

    value: float | None
    p: float | None
    """Two-sided: share of arrangements with |rho| at least as large."""
    ci_low: float | None
    ci_high: float | None
    n_models: int
    method: str
    """How p was computed: exact, monte carlo, exact within groups, ..."""
    reason: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain types for `json.dumps(..., allow_nan=False)`."""
        return asdict(self)


def spearman_exact(
    x: Float[np.ndarray, " model"],
    y: Float[np.ndarray, " model"],
    *,
    generator: torch.Generator | None = None,
) -> Association:
    """Spearman's rho with its permutation p and a 95% interval.

    p is exact up to 9 models (all n! arrangements of mid-ranks, ties included), Monte Carlo with
    100,000 arrangements beyond, for which a generator must be given. The smallest two-sided p that
    n models can reach is 2/n!: n = 4: .083, n = 5: .017, n = 6: .0028. So four models cannot reach
    .05, whatever they show.
    Interval: Fisher z with variance (1 + rho^2/2)/(n - 3) (Bonett & Wright 2000, Psychometrika
    65:23), approximate at such n; None at |rho| = 1, where it has no width, and below 4 models.
    Raises ValueError on unequal lengths or values that are not finite.
    """
    rx, ry = _ranks(x), _ranks(y)
    n = len(rx)
    if len(ry) != n:
        raise ValueError(f"spearman_exact got {n} and {len(ry)} values")
    if n < 3:
        return _undefined(n, f"{n} models; a rank correlation needs three")
    if rx.std() == 0 or ry.std() == 0:
        return _undefined(n, "all values are equal on one side")
    rho = _pearson(rx, ry)
    if n <= MAX_EXACT:
        method, blocks = "exact", _arrangements([np.arange(n)])
    elif generator is None:
        raise ValueError(f"spearman_exact of {n} models draws arrangements; give a generator")
    else:
        method, blocks = "monte carlo", _shuffles([np.arange(n)], n, generator)
    p = _share_as_extreme(rx, ry, blocks, counted=method != "exact")
    low, high, reason = _fisher_interval(rho, n)
    return Association(rho, p, low, high, n, method, reason)


def partial_spearman(
    x: Float[np.ndarray, " model"],
    y: Float[np.ndarray, " model"],
    given: Float[np.ndarray, " model"],
    *,
    generator: torch.Generator | None = None,
) -> Association:
    """Spearman's rho of x and y given a third (d_model), with a p from arrangements within groups.

    rho_xy.z = (r_xy - r_xz r_yz) / sqrt((1 - r_xz^2)(1 - r_yz^2)) on mid-ranks.
    Null with a reason when x or y is a function of the third in this sample, that is when no two
    models of equal d_model differ in it: then nothing is left once d_model is known, and a number
    would only show how far the relation to d_model is from a straight line in ranks. This is so for
    every ladder with one model per width.
    p: y is rearranged among models of equal d_model only, which is exact under conditional
    independence; None beyond 9! arrangements without a generator. No interval is offered.
    """
    rx, ry, rz = _ranks(x), _ranks(y), _ranks(given)
    n = len(rx)
    if not len(ry) == len(rz) == n:
        raise ValueError(f"partial_spearman got {n}, {len(ry)} and {len(rz)} values")
    if n < 5:
        return _undefined(n, f"{n} models; a partial correlation needs five")
    groups = [np.flatnonzero(rz == level) for level in np.unique(rz)]
    for name, ranks in (("y (loss)", ry), ("x (packing)", rx)):
        if all(np.ptp(ranks[group]) == 0 for group in groups):
            return _undefined(n, f"{name} is a function of d_model in this sample")
    if len(groups) == 1:
        return _undefined(n, "d_model is the same in all models; use the plain correlation")
    r_xy, r_xz, r_yz = _pearson(rx, ry), _pearson(rx, rz), _pearson(ry, rz)
    left = (1 - r_xz**2) * (1 - r_yz**2)
    rho = float(np.clip((r_xy - r_xz * r_yz) / math.sqrt(left), -1, 1))
    # r_xz and r_yz do not change within groups, so r_xy - r_xz * r_yz orders the arrangements.
    offset = r_xz * r_yz * n * rx.std() * ry.std()
    if math.prod(math.factorial(len(g)) for g in groups) <= MAX_ARRANGEMENTS:
        method, blocks = "exact within d_model", _arrangements(groups)
    elif generator is None:
        return Association(rho, None, None, None, n, "none", "p draws arrangements: no generator")
    else:
        method, blocks = "monte carlo within d_model", _shuffles(groups, n, generator)
    p = _share_as_extreme(rx, ry, blocks, counted=method[:5] != "exact", offset=offset)
    return Association(rho, p, None, None, n, method, "no interval for a partial rank correlation")


def _undefined(n: int, reason: str) -> Association:
    return Association(None, None, None, None, n, "none", reason)


def _ranks(values: Sequence[float] | np.ndarray) -> Float[np.ndarray, " model"]:
    array = np.asarray(values, dtype=float)
    if array.ndim != 1 or not np.isfinite(array).all():
        raise ValueError("rank correlations need one finite value per model")
    return stats.rankdata(array)


def _pearson(a: np.ndarray, b: np.ndarray) -> float:
    a, b = a - a.mean(), b - b.mean()
    return float(np.clip((a @ b) / math.sqrt((a @ a) * (b @ b)), -1, 1))


def _fisher_interval(rho: float, n: int) -> tuple[float | None, float | None, str | None]:
    if n < 4:
        return None, None, f"no interval from {n} models"
    if abs(rho) > 1 - _ROUNDING:
        return None, None, "no interval at |rho| = 1"
    half = stats.norm.ppf(0.975) * math.sqrt((1 + rho**2 / 2) / (n - 3))
    z = math.atanh(rho)
    return math.tanh(z - half), math.tanh(z + half), None


def _share_as_extreme(
    rx: np.ndarray,
    ry: np.ndarray,
    blocks: Iterator[Int[np.ndarray, "arrangement model"]],
    *,
    counted: bool,
    offset: float = 0.0,
) -> float:
    """Share of arrangements of y with |sum rx ry - offset| at least that observed.

    counted: the observed one is added to a Monte Carlo sample, which keeps the test valid.
    """
    rx, ry = rx - rx.mean(), ry - ry.mean()
    observed = abs(rx @ ry - offset) - _ROUNDING
    extreme, total = int(counted), int(counted)
    for block in blocks:
        extreme += int((np.abs(ry[block] @ rx - offset) >= observed).sum())
        total += len(block)
    return extreme / total


def _arrangements(groups: list[np.ndarray]) -> Iterator[Int[np.ndarray, "arrangement model"]]:
    """Every rearrangement of positions within groups, as one block."""
    orders = [_permutations(len(group)) for group in groups]
    block = np.empty((math.prod(map(len, orders)), sum(map(len, groups))), dtype=np.int64)
    which = np.unravel_index(np.arange(len(block)), [len(order) for order in orders])
    for group, order, chosen in zip(groups, orders, which, strict=True):
        block[:, group] = group[order[chosen]]
    yield block


def _permutations(n: int) -> Int[np.ndarray, "permutation n"]:
    """All orders of 0..n-1, each made from one of n-1 by inserting the last."""
    if n <= 1:
        return np.zeros((1, n), dtype=np.int64)
    shorter = _permutations(n - 1)
    return np.concatenate([np.insert(shorter, at, n - 1, axis=1) for at in range(n)])


def _shuffles(
    groups: list[np.ndarray], n: int, generator: torch.Generator
) -> Iterator[Int[np.ndarray, "arrangement model"]]:
    """Random rearrangements within groups, MONTE_CARLO_DRAWS in all."""
    for _ in range(MONTE_CARLO_DRAWS // 10_000):
        block = np.tile(np.arange(n), (10_000, 1))
        for group in groups:
            keys = torch.rand(10_000, len(group), generator=generator)
            block[:, group] = group[keys.argsort(dim=1).numpy()]
        yield block
