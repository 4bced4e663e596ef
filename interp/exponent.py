"""The packing exponent beta: N ~ d_model^beta over models of several widths."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy import optimize, special, stats

MIN_MODELS = 4
MIN_UNCENSORED = 3
BETA_RANGE = (-10.0, 10.0)
SCATTER = (1e-3, 3.0)
"""Range of tau, the relative scatter between models: 0.1% and up, so that a perfect line is no
singular likelihood."""
Z_95 = 1.959964


@dataclass(frozen=True)
class ExponentFit:
    """N ~ d_model^beta; features per dimension go as d_model^(beta - 1). No NaN: None."""

    beta: float | None
    ci_low: float | None
    ci_high: float | None
    n_models: int
    """Rows used, censored ones included."""
    n_censored: int
    p_against_0: float | None
    """A fixed stock of features."""
    p_against_1: float | None
    """The same packing at every width; also what counts that stay at D give."""
    scatter: float | None
    """tau: standard deviation of log N between models beyond their own intervals."""
    method: str
    reason: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain types for `json.dumps(..., allow_nan=False)`."""
        return asdict(self)


@dataclass(frozen=True)
class ExponentDifference:
    """beta of one set of models minus beta of another (the random twins)."""

    value: float | None
    ci_low: float | None
    ci_high: float | None
    p: float | None
    reason: str | None = None


@dataclass(frozen=True)
class _Rows:
    x: Float[np.ndarray, " model"]
    """log d_model, centred."""
    y: Float[np.ndarray, " model"]
    """log N, or the log of its bound."""
    sigma: Float[np.ndarray, " model"]
    """Standard error of y from the model's own interval."""
    side: Int[np.ndarray, " model"]
    """0: y is N; +1: N is at least y; -1: N is at most y."""


def fit_exponent(
    d_model: Float[np.ndarray, " model"],
    counts: Float[np.ndarray, " model"],
    ci_low: Float[np.ndarray, " model"] | None = None,
    ci_high: Float[np.ndarray, " model"] | None = None,
    censored: Bool[np.ndarray, " model"] | None = None,
) -> ExponentFit:
    """Slope of log N on log d_model by maximum likelihood, censored rows treated as censored.

    log N_i = a + beta log d_i + e_i, e_i ~ N(0, sigma_i^2 + tau^2). sigma_i comes from the model's
    95% interval by the delta method, (ci_high - ci_low) / (2 * 1.96 * N), 0 where none is given
    (NaN); tau, the scatter of models about the line, is estimated. A censored row says N >= count
    and enters with the probability of that (Tobit). A count of zero or less has no logarithm: it
    enters as N <= its ci_high and is left out where that is not positive either.
    Interval and p: profile likelihood over a and tau, at the cut n log(1 + F_(1, n-2)/(n-2)) with n
    uncensored rows instead of 3.84: exact for a plain regression, where 3.84 would cover about 85%
    at six models; conservative where the models' own intervals dominate. A limit outside BETA_RANGE
    is None. Source: Tobin 1958, Econometrica 26:24, with known measurement error added.

    beta is None with a reason below MIN_MODELS rows, MIN_UNCENSORED uncensored rows or three
    widths. Raises ValueError on unequal lengths or widths that are not positive.
    """
    rows, dropped, n_widths = _rows(d_model, counts, ci_low, ci_high, censored)
    n, n_exact = len(rows.y), int((rows.side == 0).sum())
    method = "profile likelihood, censored normal" if n_exact < n else "profile likelihood, normal"
    lost = f"; {dropped} rows have no positive count or bound" if dropped else ""
    refusal = None
    if n < MIN_MODELS:
        refusal = f"{n} models with a count; beta needs {MIN_MODELS}{lost}"
    elif n_exact < MIN_UNCENSORED:
        refusal = (
            f"{n - n_exact} of {n} counts are only bounds; beta needs {MIN_UNCENSORED} that are not"
        )
    elif n_widths < 3:
        refusal = f"{n_widths} widths with a count; beta needs three"
    if refusal:
        return ExponentFit(None, None, None, n, n - n_exact, None, None, None, "none", refusal)

    def deviance(beta: float) -> float:
        return _profile(rows, beta)[0]

    grid = np.linspace(*BETA_RANGE, 41)
    profile = np.array([deviance(b) for b in grid])
    near = int(np.argmin(profile))
    bounds = grid[max(near - 1, 0)], grid[min(near + 1, len(grid) - 1)]
    best = optimize.minimize_scalar(deviance, bounds=bounds, method="bounded")
    beta, least = (
        (float(best.x), float(best.fun))
        if best.fun <= profile[near]
        else (float(grid[near]), float(profile[near]))
    )
    freedom = n_exact - 2
    cut = n_exact * math.log1p(stats.f.ppf(0.95, 1, freedom) / freedom)

    def p_against(value: float) -> float:
        excess = max(deviance(value) - least, 0.0) / n_exact
        return float(stats.f.sf(freedom * math.expm1(min(excess, 700)), 1, freedom))

    low = _crossing(deviance, least + cut, beta, grid[::-1], profile[::-1])
    high = _crossing(deviance, least + cut, beta, grid, profile)
    unbounded = [name for name, limit in (("lower", low), ("upper", high)) if limit is None]
    reasons = [f"{' and '.join(unbounded)} limit unbounded"] if unbounded else []
    reasons += [lost.removeprefix("; ")] if lost else []
    return ExponentFit(
        beta=beta,
        ci_low=low,
        ci_high=high,
        n_models=n,
        n_censored=n - n_exact,
        p_against_0=p_against(0.0),
        p_against_1=p_against(1.0),
        scatter=_profile(rows, beta)[1],
        method=method,
        reason="; ".join(reasons) or None,
    )


def difference(fit: ExponentFit, twin: ExponentFit) -> ExponentDifference:
    """beta - twin's beta, with Welch's t from the two intervals.

    Standard errors are the half-widths over their own t quantiles (n - 2 degrees of freedom each),
    and the twins are taken as independent of the models. None with a reason where either beta or
    one of its limits is.
    """
    parts = []
    for name, one in (("beta", fit), ("the twin's beta", twin)):
        if one.beta is None or one.ci_low is None or one.ci_high is None:
            return ExponentDifference(
                None, None, None, None, f"{name} is not determined: {one.reason}"
            )
        freedom = one.n_models - one.n_censored - 2
        half = (one.ci_high - one.ci_low) / 2
        parts.append(((half / stats.t.ppf(0.975, freedom)) ** 2, freedom))
    assert fit.beta is not None
    assert twin.beta is not None
    value, total = fit.beta - twin.beta, sum(v for v, _ in parts)
    if total == 0:
        return ExponentDifference(value, None, None, None, "both intervals have no width")
    pooled = total**2 / sum(v**2 / f for v, f in parts)
    half = float(stats.t.ppf(0.975, pooled)) * math.sqrt(total)
    p = float(2 * stats.t.sf(abs(value) / math.sqrt(total), pooled))
    return ExponentDifference(value, value - half, value + half, p)


def _rows(
    d_model: np.ndarray,
    counts: np.ndarray,
    ci_low: np.ndarray | None,
    ci_high: np.ndarray | None,
    censored: np.ndarray | None,
) -> tuple[_Rows, int, int]:
    """Rows that can enter, how many cannot, and how many widths they have."""
    d, count = np.asarray(d_model, dtype=float), np.asarray(counts, dtype=float)
    nothing = np.full(len(d), np.nan)
    low = nothing if ci_low is None else np.asarray(ci_low, dtype=float)
    high = nothing if ci_high is None else np.asarray(ci_high, dtype=float)
    right = np.zeros(len(d), bool) if censored is None else np.asarray(censored, dtype=bool)
    if not len(d) == len(count) == len(low) == len(high) == len(right):
        raise ValueError("fit_exponent needs one d_model, count, interval and flag per model")
    if not (np.isfinite(d).all() and (d > 0).all()):
        raise ValueError(f"d_model must be positive: {d.tolist()}")
    positive = np.isfinite(count) & (count > 0)
    at_most = np.isfinite(count) & (count <= 0) & (high > 0) & ~right
    y = np.log(np.where(positive, count, np.where(at_most, high, 1.0)))
    sigma = (high - low) / (2 * Z_95 * np.where(positive, count, 1.0))
    sigma = np.where(positive & np.isfinite(sigma), np.maximum(sigma, 0), 0.0)
    side = np.where(positive, np.where(right, 1, 0), -1)
    keep = positive | at_most
    x = np.log(d[keep])
    rows = _Rows(x - x.mean() if keep.any() else x, y[keep], sigma[keep], side[keep])
    return rows, int((~keep).sum()), len(np.unique(d[keep]))


def _profile(rows: _Rows, beta: float) -> tuple[float, float]:
    """Least -2 log likelihood at this beta over a and tau, and the tau that attains it."""
    taus = np.geomspace(*SCATTER, 24)
    for _ in range(3):
        deviances = _deviance(rows, beta, taus)
        near = int(np.argmin(deviances))
        best = float(deviances[near]), float(taus[near])
        taus = np.geomspace(taus[max(near - 1, 0)], taus[min(near + 1, len(taus) - 1)], 12)
    return best


def _deviance(rows: _Rows, beta: float, taus: np.ndarray) -> Float[np.ndarray, " tau"]:
    """-2 log likelihood for each tau, at the best intercept."""
    residual = rows.y - beta * rows.x
    s = np.sqrt(rows.sigma**2 + taus[:, None] ** 2)
    exact = rows.side == 0

    def slope(a: np.ndarray) -> np.ndarray:
        """Derivative of the log likelihood in a; falls monotonically, being concave."""
        u = (residual - a[:, None]) / s
        # phi(v) / Phi(v) at v = -side * u, in logarithms because Phi may be tiny.
        v = -rows.side * u
        hazard = np.exp(-0.5 * v**2 - 0.5 * math.log(2 * math.pi) - special.log_ndtr(v))
        return np.where(exact, u / s, rows.side * hazard / s).sum(axis=1)

    if exact.all():
        a = (residual / s**2).sum(axis=1) / (1 / s**2).sum(axis=1)
    else:
        margin = 10 * s.max(axis=1)
        low, high = residual.min() - margin, residual.max() + margin
        for _ in range(32):
            a = (low + high) / 2
            rising = slope(a) > 0
            low, high = np.where(rising, a, low), np.where(rising, high, a)
    u = (residual - a[:, None]) / s
    density = -0.5 * u**2 - np.log(s) - 0.5 * math.log(2 * math.pi)
    bound = special.log_ndtr(-rows.side * u)
    return -2 * np.where(exact, density, bound).sum(axis=1)


def _crossing(
    deviance: Callable[[float], float],
    level: float,
    beta: float,
    outward: np.ndarray,
    profile: np.ndarray,
) -> float | None:
    """Where the profile first exceeds the level, walking along a grid of known values from beta."""
    inside, rising = beta, outward[-1] > outward[0]
    for step, height in zip(outward.tolist(), profile, strict=True):
        if (step <= beta) if rising else (step >= beta):
            continue
        if height > level:
            return float(optimize.brentq(lambda b: deviance(b) - level, inside, step, xtol=1e-7))
        inside = step
    return None
