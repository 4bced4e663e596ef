"""Features-per-dimension estimators: arrays -> Estimate. And the rule for convergence.

The estimators that need more than one page live beside this file and are imported here:
`reproducibility` (S_>=2 over seeds), `saturation` (N from several dictionary sizes) and `k_rule`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float

from interp.documents import DocumentTotals, document_weights
from interp.estimate import Estimate, InsufficientData
from interp.k_rule import choose_k
from interp.reproducibility import Reproducibility, reproducible_estimate
from interp.saturation import saturation
from saes.latent_set import MAX_DENSITY, MIN_FIRES, LatentSet, live_mask

__all__ = [
    "DocumentTotals",
    "Estimate",
    "InsufficientData",
    "LatentSet",
    "Reproducibility",
    "choose_k",
    "converged",
    "hill",
    "hill_number",
    "live_latents",
    "live_mask",
    "reproducible_estimate",
    "saturation",
]

MAX_CHANGE_IN_COUNT = 0.05
MAX_CHANGE_IN_FVU = 0.01
COUNT_SLACK_PER_DIM = 0.05
"""A smaller change of S_>=2, in features per dimension, is no change (see `converged`); a count
that small is known from above only."""
Z_95 = 1.959964


def live_latents(
    totals: DocumentTotals,
    tau: int = MIN_FIRES,
    *,
    d_in: int,
    k: int,
    generator: torch.Generator,
    n_bootstrap: int = 200,
    max_density: float = MAX_DENSITY,
) -> Estimate:
    """S_tau = #{latents fired on >= tau held-out tokens, density < max_density}, of one SAE.

    Interval: value -+ 1.96 standard deviations of a bootstrap of whole documents (centred on the
    value: a resample repeats documents and so loses latents seen in few). Capped at d_sae; counts
    latents of this dictionary, not features. SCIENCE section 4, a. Raises InsufficientData below
    two documents.
    """

    def count(weights: Float[np.ndarray, " doc"]) -> float:
        fires, n_tokens = weights @ totals.fires, float(weights @ totals.n_tokens)
        return float(live_mask(fires, n_tokens, min_fires=tau, max_density=max_density).sum())

    return _one_sae(f"live_latents_{tau}", count, totals, d_in, k, generator, n_bootstrap)


def hill_number(q: float, weights: Float[np.ndarray, " latent"]) -> float:
    """Effective number qN = (sum p^q)^(1/(1-q)), p = weights / sum; order 1 is exp(entropy).

    Order 0 is the number of positive weights. Raises ValueError where no weight is positive.
    Source: Hill 1973, Ecology 54:427; order 1 on mass: Bereska et al., arXiv 2512.13568.
    """
    weights = np.asarray(weights, dtype=float)
    p = weights[weights > 0] / weights[weights > 0].sum() if (weights > 0).any() else None
    if p is None:
        raise ValueError("hill_number needs a positive weight")
    if q == 1:
        return float(np.exp(-(p * np.log(p)).sum()))
    return float((p**q).sum() ** (1 / (1 - q)))


def hill(
    q: float,
    totals: DocumentTotals,
    decoder_norms: Float[np.ndarray, " d_sae"],
    *,
    d_in: int,
    k: int,
    generator: torch.Generator,
    weighting: Literal["mass", "energy", "frequency"] = "mass",
    n_bootstrap: int = 200,
) -> Estimate:
    """Effective number of live latents of order q, of one SAE, with a document bootstrap.

    weighting: mass sum z*||d||, energy sum z^2*||d||^2, or frequency (firings). Follows the skew
    of the weights and not their count (weights 1/i of 4000 features have order 1 = 425).
    SCIENCE section 4, b. Raises InsufficientData without live latents or below two documents.
    """
    norms, live = np.asarray(decoder_norms, dtype=float), totals.live()
    sums, scale = {
        "mass": (totals.sums, norms),
        "energy": (totals.squares, norms**2),
        "frequency": (totals.fires, np.ones_like(norms)),
    }[weighting]
    name = f"hill_{q:g}" if weighting == "mass" else f"hill_{q:g}_{weighting}"
    if not live.any():
        reason = f"no latent fired on {MIN_FIRES} held-out tokens"
        raise InsufficientData(
            Estimate(name, None, d_sae=len(norms), k=k, identified=False, reason=reason)
        )

    def effective(weights: Float[np.ndarray, " doc"]) -> float:
        shares = ((weights @ sums) * scale)[live]
        return hill_number(q, shares) if shares.any() else 0.0

    return _one_sae(name, effective, totals, d_in, k, generator, n_bootstrap)


def _one_sae(
    name: str,
    statistic: Callable[[Float[np.ndarray, " doc"]], float],
    totals: DocumentTotals,
    d_in: int,
    k: int,
    generator: torch.Generator,
    n_bootstrap: int,
) -> Estimate:
    n_docs, d_sae = totals.fires.shape
    value = statistic(np.ones(n_docs))
    estimate = Estimate(
        name,
        value=value,
        per_dim=value / d_in,
        n_tokens=int(totals.n_tokens.sum()),
        n_seeds=1,
        d_sae=d_sae,
        k=k,
    )
    if n_docs < 2:
        reason = f"no interval from {n_docs} held-out document; at least two are needed"
        raise InsufficientData(replace(estimate, identified=False, reason=reason))
    weights = document_weights(n_docs, n_bootstrap, generator=generator)
    half = Z_95 * float(np.std([statistic(w) for w in weights], ddof=1))
    return replace(estimate, ci_low=max(value - half, 0.0), ci_high=value + half)


def converged(
    s_half: float, s_full: float, fvu_half: float, fvu_full: float, *, count_slack: float = 0.0
) -> bool:
    """Whether doubling an SAE's training tokens left the result as it was.

    |s_full - s_half| < 5% of s_half and |fvu_full - fvu_half| < 0.01 (SCIENCE section 4).
    count_slack: an absolute change of S_>=2 that passes too. At 0 a twin whose count is near zero
    fails on one latent more or less; 0.05 * d_in states that 0.05 features per dimension is no
    change. A count or FVU that is not finite has not converged.
    """
    if not all(map(math.isfinite, (s_half, s_full, fvu_half, fvu_full))):
        return False
    change = abs(s_full - s_half)
    steady = change < MAX_CHANGE_IN_COUNT * s_half or change <= count_slack
    return steady and abs(fvu_full - fvu_half) < MAX_CHANGE_IN_FVU
