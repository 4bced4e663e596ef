"""N, the number of features that S_>=2 would saturate at, from several dictionary sizes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from jaxtyping import Float
from scipy import optimize, stats

from interp.config import MIN_SIZES
from interp.estimate import Estimate, InsufficientData

SHAPE_BOUNDS = (0.25, 4.0)
"""Range of b: below, the curve has no visible ceiling in any range; above, it is a step."""
REACHED = 0.98
"""Share of N from which a count is at the ceiling. Where most counts are, they say nothing of b."""
STEADY = 0.05
"""Largest difference between counts at one level, as a share of the last of them."""
SLACK_PER_DIM = 0.05
"""Features per dimension that pass as no change, whatever their share."""
ROOM = 0.85
"""Share of a dictionary that a count at a level may take: beyond, it may be held down by D."""
FARTHEST = 1e4
"""N is sought up to this many times the largest count, where the curve is its limit c D^b."""
LM_STEPS = 60


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
    excluded by as much. If it is not, or if b runs into its lower bound and half of the counts are
    not within 2% of N, N is not identified: the value is then the largest count (a lower bound,
    censored at that D) and ci_high None.
    SCIENCE section 4, e.

    Where the curve is refused, for want of sizes too, the counts may have stopped growing all the
    same. If two or more of the largest dictionaries hold one count, N is their mean: counts that
    differ from the last by no more than STEADY of it, or by SLACK_PER_DIM; that take no more than
    ROOM of their dictionaries; that do not grow with D beyond chance (95%, one-sided), where growth
    by twice STEADY per doubling is excluded (95%, two-sided); and that lie below no smaller
    dictionary's beyond its error. The interval has the error of one count, as sizes share their
    data, the spread between them, and above it the growth over one more doubling that is not
    excluded. It is meant for counts that have stopped; where they still creep up it is too low.

    Raises InsufficientData (with that lower bound) below MIN_SIZES distinct sizes with counts,
    unless the largest are at a level.
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
    level = _level(D, S, se, d_in)
    if n_sizes < MIN_SIZES and level is None:
        reason = f"{n_sizes} dictionary sizes with counts; saturation needs {MIN_SIZES}"
        raise InsufficientData(replace(bound, reason=reason))

    D, S, errors = D[usable], S[usable], errors[usable]
    d_largest = int(D.max())

    def identified(value: float, low: float, high: float) -> Estimate:
        return replace(
            bound,
            value=value,
            per_dim=value / d_in,
            ci_low=low,
            ci_high=high,
            d_sae=d_largest,
            identified=True,
            censored=False,
        )

    def without_a_curve(reason: str) -> Estimate:
        if level is None:
            return replace(bound, reason=f"{reason} (censored at D={d_largest})")
        return identified(*level)

    if n_sizes < MIN_SIZES:
        return without_a_curve("")

    def chi2_at(log_n: float) -> float:
        return float(_best_chi2(D, S, errors, np.exp([log_n]))[0][0])

    grid = np.log(S.max()) + np.linspace(-0.5, np.log(FARTHEST), 120)
    profile = _best_chi2(D, S, errors, np.exp(grid))[0]
    near = int(np.argmin(profile))
    inner = grid[max(near - 1, 0)], grid[min(near + 1, len(grid) - 1)]
    best = optimize.minimize_scalar(chi2_at, bounds=inner, method="bounded")
    log_n, least = (best.x, best.fun) if best.fun < profile[near] else (grid[near], profile[near])
    allowed = stats.chi2.ppf(0.95, 1) * max(1.0, least / (len(D) - 3))

    def excess(x: float) -> float:
        return chi2_at(x) - least - allowed

    above = [x for x, c in zip(grid, profile, strict=True) if x > log_n and c - least > allowed]
    below = [x for x, c in zip(grid, profile, strict=True) if x < log_n and c - least > allowed]
    if profile[-1] - least <= allowed:
        return without_a_curve("upper limit unbounded: at least the largest S_>=2 seen")
    shape = float(_best_chi2(D, S, errors, np.exp([log_n]))[1][0])
    if shape < SHAPE_BOUNDS[0] * 1.001 and np.median(S) < REACHED * np.exp(log_n):
        return without_a_curve(f"shape b at its lower bound {SHAPE_BOUNDS[0]}: no visible ceiling")
    return identified(
        float(np.exp(log_n)),
        float(np.exp(optimize.brentq(excess, below[-1], log_n))) if below else 0.0,
        float(np.exp(optimize.brentq(excess, log_n, above[0]))),
    )


def _level(
    D: np.ndarray, S: np.ndarray, se: np.ndarray, d_in: int
) -> tuple[float, float, float] | None:
    """Mean of the counts at the end that are at one level, and its limits; None where they may
    still move, or are too uncertain to tell."""
    order = np.argsort(D)
    D, S, se = D[order], S[order], se[order]
    if len(S) < 2 or S[-1] <= 0:
        return None
    alike = np.abs(S - S[-1]) <= max(STEADY * S[-1], SLACK_PER_DIM * d_in)
    alike &= S <= ROOM * D
    first = len(S)
    while first > 0 and alike[first - 1]:
        first -= 1
    level = S[first:]
    if len(level) < 2 or D[first] == D[-1]:
        return None
    x = np.log2(D[first:])
    x = x - x.mean()
    value = float(level.mean())
    # Half a latent at least, as for the curve.
    error = max(float(np.sqrt(np.mean(se[first:] ** 2))), 0.5)
    growth = float(x @ level / (x @ x)) / value
    of_growth = error / value / float(np.sqrt(x @ x))
    one_sided, two_sided = float(stats.norm.ppf(0.95)), float(stats.norm.ppf(0.975))
    unsure = two_sided * of_growth
    if growth > one_sided * of_growth or abs(growth) + unsure > 2 * STEADY:
        return None
    half = two_sided * float(np.hypot(error, level.std(ddof=1)))
    if (S[:first] - two_sided * se[:first] > value + half).any():
        return None
    return value, max(value - half, 0.0), value + half + value * max(growth + unsure, 0.0)


def _best_chi2(
    D: np.ndarray, S: np.ndarray, errors: np.ndarray, n: np.ndarray
) -> tuple[Float[np.ndarray, " n"], Float[np.ndarray, " n"]]:
    """Least chi2 over D0 and b for each fixed N, and the b that attains it.

    Levenberg-Marquardt in (b, c) of log hazard = b log D + c, all N and three starts at once; b at
    a bound that it presses against is held there while c moves on.
    """
    x = np.log(D / np.exp(np.mean(np.log(D))))
    # One start where the curve, linearised, runs through the counts (kept below N).
    share = np.clip(S / n[:, None], 1e-9, 0.98)
    level = np.log(-np.log1p(-share))
    slope = (level @ x) / (x @ x)
    b = np.clip(np.stack([slope, np.full_like(n, 1.0), np.full_like(n, 2.5)]), *SHAPE_BOUNDS)
    c = np.tile(level.mean(axis=1), (3, 1))

    def residuals(b: np.ndarray, c: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        hazard = np.exp(np.clip(b[..., None] * x + c[..., None], -700, 50))
        slope = n[:, None] * hazard * np.exp(-hazard) / errors
        return (-n[:, None] * np.expm1(-hazard) - S) / errors, slope

    r, g = residuals(b, c)
    chi2, damping = (r**2).sum(axis=-1), np.full_like(b, 1e-3)
    for _ in range(LM_STEPS):
        gx = g * x
        bb, bc, cc = (gx * gx).sum(-1), (gx * g).sum(-1), (g * g).sum(-1)
        down_b, down_c = -(gx * r).sum(-1), -(g * r).sum(-1)
        pressed = ((b <= SHAPE_BOUNDS[0]) & (down_b < 0)) | ((b >= SHAPE_BOUNDS[1]) & (down_b > 0))
        bc, down_b = np.where(pressed, 0, bc), np.where(pressed, 0, down_b)
        bb, cc = bb * (1 + damping) + 1e-12, cc * (1 + damping) + 1e-12
        determinant = bb * cc - bc**2
        new_b = np.clip(b + (cc * down_b - bc * down_c) / determinant, *SHAPE_BOUNDS)
        new_c = c + np.clip((bb * down_c - bc * down_b) / determinant, -5, 5)
        new_r, new_g = residuals(new_b, new_c)
        new_chi2 = (new_r**2).sum(axis=-1)
        better = new_chi2 <= chi2
        b, c, chi2 = (np.where(better, *v) for v in ((new_b, b), (new_c, c), (new_chi2, chi2)))
        r, g = (np.where(better[..., None], *v) for v in ((new_r, r), (new_g, g)))
        damping = np.clip(np.where(better, damping / 5, damping * 4), 1e-12, 1e12)
    best = np.argmin(chi2, axis=0)
    where = best, np.arange(len(n))
    return chi2[where], b[where]
