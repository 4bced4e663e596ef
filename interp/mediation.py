"""Lever -> packing -> loss at constant width: how much of a lever's effect goes through packing.

Exploratory: the levers were set by hand, packing was not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from scipy import stats

ASSUMPTIONS = (
    "exploratory: it holds only if nothing else that a lever changes moves both packing and loss, "
    "if packing acts on loss and not the reverse, if a unit of packing is worth the same loss "
    "under every lever, and if each side of a lever acts in proportion; none of this was tested"
)
MIN_FREEDOM = 3
N_DRAWS = 20_000
LIMITS = (0.025, 0.975)


@dataclass(frozen=True)
class Effect:
    """From the base recipe to the furthest value on one side of a lever."""

    lever: str
    side: str
    """below or above the base value."""
    value: float
    """That furthest value."""
    on_packing: float
    total: float
    """On loss, by whatever way."""
    direct: float
    """On loss at equal packing."""
    indirect: float
    """on_packing times the loss per unit of packing: total - direct."""
    ci_low: float
    """95%, of the indirect effect."""
    ci_high: float


@dataclass(frozen=True)
class Mediation:
    """Loss per unit of packing at equal levers, and each lever's effect split by it."""

    loss_per_packing: float | None
    ci_low: float | None
    ci_high: float | None
    p: float | None
    """Two-sided t."""
    n_models: int
    n_parameters: int | None
    effects: tuple[Effect, ...]
    assumptions: str = ASSUMPTIONS
    reason: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain types for `json.dumps(..., allow_nan=False)`."""
        return asdict(self) | {"effects": [asdict(effect) for effect in self.effects]}


def mediation(
    packing: Float[np.ndarray, " model"],
    loss: Float[np.ndarray, " model"],
    levers: Sequence[tuple[str, float] | None],
    base_values: dict[str, float],
    *,
    generator: torch.Generator,
) -> Mediation:
    """Two linear regressions over one arm, each lever's two sides apart.

    packing = a0 + sum_s a_s z_s + e and loss = c0 + sum_s c_s z_s + b packing + e', where z_s runs
    from 0 at the base recipe to 1 at the furthest value on side s of a lever. `levers` holds a
    model's lever and value on the scale to be used (logarithms taken), None for base and seeds.
    Indirect effect a_s b; its interval draws a_s and b from their t distributions (the two are
    independent given the levers). Source: MacKinnon, Lockwood & Williams 2004, Multivar. Behav.
    Res. 39:99.

    Null with a reason where a lever's base value is not known, or fewer than 3 models are left over
    after all parameters.
    """
    packing, loss = np.asarray(packing, dtype=float), np.asarray(loss, dtype=float)
    n = len(packing)
    named = list(dict.fromkeys(lever[0] for lever in levers if lever is not None))
    unknown = [name for name in named if name not in base_values]
    if unknown:
        return _refused(n, f"the base model's value of {', '.join(unknown)} is not recorded")
    sides = _sides(levers, base_values)
    if not sides:
        return _refused(n, "no usable model in which a lever was moved")
    freedom = n - 2 - len(sides)
    if freedom < MIN_FREEDOM:
        reason = f"{n} models for {2 + len(sides)} parameters; {MIN_FREEDOM} more are needed"
        return _refused(n, reason, 2 + len(sides))
    design = np.column_stack([np.ones(n), *(z for _, _, _, z in sides)])
    if not all(z.any() for _, _, _, z in sides) or np.ptp(packing) == 0:
        return _refused(n, "packing is the same in all models", design.shape[1] + 1)
    a, a_se, a_freedom = _least_squares(design, packing)
    total, _, _ = _least_squares(design, loss)
    full = np.column_stack([design, packing])
    if np.linalg.matrix_rank(full) < full.shape[1]:
        return _refused(n, "packing is a function of the levers in this sample", full.shape[1])
    c, c_se, b_freedom = _least_squares(full, loss)
    b, b_se = float(c[-1]), float(c_se[-1])
    half = float(stats.t.ppf(LIMITS[1], b_freedom)) * b_se
    of_b = b + b_se * _t(b_freedom, generator)
    effects = []
    for at, (lever, side, value, _) in enumerate(sides, start=1):
        product = (a[at] + a_se[at] * _t(a_freedom, generator)) * of_b
        low, high = np.quantile(product, LIMITS)
        effects.append(
            Effect(
                lever=lever,
                side=side,
                value=value,
                on_packing=float(a[at]),
                total=float(total[at]),
                direct=float(c[at]),
                indirect=float(a[at] * b),
                ci_low=float(low),
                ci_high=float(high),
            )
        )
    p = float(2 * stats.t.sf(abs(b) / b_se, b_freedom)) if b_se else None
    return Mediation(b, b - half, b + half, p, n, full.shape[1], tuple(effects))


def _sides(
    levers: Sequence[tuple[str, float] | None], base_values: dict[str, float]
) -> list[tuple[str, str, float, Float[np.ndarray, " model"]]]:
    """(lever, side, furthest value, z of every model) for each side on which a lever was moved."""
    found = []
    for name in dict.fromkeys(lever[0] for lever in levers if lever is not None):
        base = base_values[name]
        shift = np.array(
            [lever[1] - base if lever and lever[0] == name else 0.0 for lever in levers]
        )
        for side, sign in (("below", -1), ("above", 1)):
            z = np.maximum(sign * shift, 0.0)
            if (reach := float(z.max())) > 0:
                found.append((name, side, base + sign * reach, z / reach))
    return found


def _least_squares(
    design: Float[np.ndarray, "model parameter"], y: Float[np.ndarray, " model"]
) -> tuple[np.ndarray, np.ndarray, int]:
    """Coefficients, their standard errors, and degrees of freedom."""
    freedom = len(y) - design.shape[1]
    inverse = np.linalg.inv(design.T @ design)
    found = inverse @ design.T @ y
    left = y - design @ found
    return found, np.sqrt(np.diag(inverse) * float(left @ left) / freedom), freedom


def _t(freedom: int, generator: torch.Generator) -> Float[np.ndarray, " draw"]:
    """Student's t from normal numbers."""
    normal = torch.randn(N_DRAWS, freedom + 1, generator=generator, dtype=torch.float64).numpy()
    return normal[:, 0] / np.sqrt((normal[:, 1:] ** 2).mean(axis=1))


def _refused(n: int, reason: str, n_parameters: int | None = None) -> Mediation:
    return Mediation(None, None, None, None, n, n_parameters, (), reason=reason)
