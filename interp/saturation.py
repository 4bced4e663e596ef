"""N, the number of features that S_>=2 would saturate at, from several dictionary sizes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from jaxtyping import Float
from scipy import optimize, stats

from interp.estimate import Estimate, InsufficientData

MIN_SIZES = 4
SHAPE_BOUNDS = (0.25, 4.0)
"""Range of b: below, the curve has no visible ceiling in any range; above, it is a step."""
FARTHEST = 1e4
"""N is sought up to this many times the largest count; beyond, only the limit N -> infinity."""


def saturation(
    sizes: Float[np.ndarray, " size"],
    counts: Float[np.ndarray, " size"],
    standard_errors: Float[np.ndarray, " size"],
    *,
    d_in: int,
    n_tokens: int | None = None,
    n_seeds: int | None = None,
    k: int | None = None,
) -> Estimate:
    """N of S_>=2(D) = N (1 - exp(-(D/D0)^b)), with a 95% profile-likelihood interval.

    sizes: d_sae of each dictionary, at matched FVU and converged (the caller's business);
    counts, standard_errors: `Reproducibility.estimate.value` and `.se`, sizes independent.
    Errors are normal with one relative size, the root mean square of those given: an error from
    three or five seeds is itself too noisy to weight single sizes by. Where the curve misses the
    counts by more than that, the errors are scaled up by sqrt(chi2 / (n - 3)).
    N belongs to the interval while its profile chi2 is within 3.84 (scaled) of the least. As N
    grows the curve becomes a power law c D^b, so the upper limit exists only if that law is
    excluded by as much. If it is not, or if b runs into its lower bound, N is not identified: the
    value is then the largest count (a lower bound, censored at that D) and ci_high None.
    SCIENCE section 4, e.

    Raises InsufficientData (with that lower bound) below MIN_SIZES distinct sizes with counts.
    """
    D, S, se = (np.asarray(a, dtype=float) for a in (sizes, counts, standard_errors))
    if not len(D) == len(S) == len(se) or not np.isfinite([*D, *S, *se]).all() or (se < 0).any():
        raise ValueError("saturation needs one finite count and standard error for every size")
    usable = S > 0
    relative = np.sqrt(np.mean((se[usable] / S[usable]) ** 2)) if usable.any() else 0.0
    # Counts are whole: below half a latent an error is no error but luck.
    errors = np.maximum(relative * S, 0.5)
    top = int(np.argmax(S)) if len(S) else -1
    bound = Estimate(
        "saturation",
        value=float(S[top]) if len(S) else None,
        ci_low=max(float(S[top] - stats.norm.ppf(0.975) * errors[top]), 0.0) if len(S) else None,
        per_dim=float(S[top]) / d_in if len(S) else None,
        n_tokens=n_tokens,
        n_seeds=n_seeds,
        d_sae=int(D[top]) if len(S) else None,
        k=k,
        identified=False,
        censored=True,
    )
    n_sizes = len(np.unique(D[usable]))
    if n_sizes < MIN_SIZES:
        reason = f"{n_sizes} dictionary sizes with counts; saturation needs {MIN_SIZES}"
        raise InsufficientData(replace(bound, reason=reason))

    D, S, errors = D[usable], S[usable], errors[usable]
    d_largest = int(D.max())

    def chi2_at(log_n: float) -> float:
        return _best_chi2(D, S, errors, np.exp(log_n))[0]

    grid = np.log(S.max()) + np.linspace(-0.5, np.log(FARTHEST), 120)
    profile = np.array([chi2_at(log_n) for log_n in grid])
    near = int(np.argmin(profile))
    inner = grid[max(near - 1, 0)], grid[min(near + 1, len(grid) - 1)]
    best = optimize.minimize_scalar(chi2_at, bounds=inner, method="bounded")
    log_n, least = (best.x, best.fun) if best.fun < profile[near] else (grid[near], profile[near])
    endless = _power_law_chi2(D, S, errors)
    allowed = stats.chi2.ppf(0.95, 1) * max(1.0, min(least, endless) / max(len(D) - 3, 1))

    def excess(x: float) -> float:
        return chi2_at(x) - least - allowed

    above = [x for x, c in zip(grid, profile, strict=True) if x > log_n and c - least > allowed]
    below = [x for x, c in zip(grid, profile, strict=True) if x < log_n and c - least > allowed]
    if endless - least <= allowed or not above:
        reason = (
            f"upper limit unbounded: at least the largest S_>=2 seen (censored at D={d_largest})"
        )
        return replace(bound, reason=reason)
    shape = _best_chi2(D, S, errors, np.exp(log_n))[1]
    if shape < SHAPE_BOUNDS[0] * 1.001:
        reason = f"shape b at its lower bound {SHAPE_BOUNDS[0]}: no visible ceiling"
        return replace(bound, reason=f"{reason} (censored at D={d_largest})")
    value = float(np.exp(log_n))
    return replace(
        bound,
        value=value,
        per_dim=value / d_in,
        ci_low=float(np.exp(optimize.brentq(excess, below[-1], log_n))) if below else 0.0,
        ci_high=float(np.exp(optimize.brentq(excess, log_n, above[0]))),
        d_sae=d_largest,
        identified=True,
        censored=False,
    )


def _best_chi2(D: np.ndarray, S: np.ndarray, errors: np.ndarray, n: float) -> tuple[float, float]:
    """Least chi2 over D0 and b at fixed N, and the b that attains it."""
    log_d = np.log(D / np.exp(np.mean(np.log(D))))

    def residuals(p: np.ndarray) -> np.ndarray:
        hazard = np.exp(np.clip(p[1] * (log_d - p[0]), -700, 50))
        return (-n * np.expm1(-hazard) - S) / errors

    # Start where the curve, linearised, runs through counts kept below N.
    share = np.clip(S / n, 1e-9, 0.98)
    slope, offset = np.polyfit(log_d, np.log(-np.log1p(-share)), 1)
    fits = []
    for b in {float(np.clip(slope, 0.3, 3.5)), 1.0, 2.5}:
        d0 = float(np.clip(-offset / b, -40, 40))
        fit = optimize.least_squares(
            residuals, [d0, b], bounds=([-60, SHAPE_BOUNDS[0]], [60, SHAPE_BOUNDS[1]])
        )
        fits.append((2 * float(fit.cost), float(fit.x[1])))
    return min(fits)


def _power_law_chi2(D: np.ndarray, S: np.ndarray, errors: np.ndarray) -> float:
    """Least chi2 of S = c D^b, the limit N -> infinity, b in its range."""
    log_d = np.log(D / D.max())

    def chi2(b: float) -> float:
        shape = np.exp(b * log_d) / errors
        c = (shape @ (S / errors)) / (shape @ shape)
        return float(np.sum((c * shape - S / errors) ** 2))

    grid = np.linspace(*SHAPE_BOUNDS, 200)
    near = grid[int(np.argmin([chi2(b) for b in grid]))]
    fit = optimize.minimize_scalar(
        chi2,
        bounds=(max(near - 0.05, SHAPE_BOUNDS[0]), min(near + 0.05, SHAPE_BOUNDS[1])),
        method="bounded",
    )
    return min(float(fit.fun), chi2(near))
