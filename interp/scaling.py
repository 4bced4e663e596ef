"""Loss against width: L = A / d_model^alpha + B, with honest intervals."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from jaxtyping import Float
from scipy import optimize, stats

CAPTION = (
    "alpha at fixed tokens: every width was trained on the same tokens, so width, data per "
    "parameter and optimization move together; not comparable to an exponent in width alone"
)
MIN_WIDTHS = 4
ALPHA_GRID = np.geomspace(0.01, 10.0, 1500)


@dataclass(frozen=True)
class Parameter:
    """One fitted number. None: not determined, see `ScalingFit.reason`."""

    value: float | None
    ci_low: float | None
    """95% profile-likelihood interval."""
    ci_high: float | None
    se: float | None
    """Joint standard error: the other parameters are free."""


@dataclass(frozen=True)
class ScalingFit:
    """L = A / d_model^alpha + B, loss and B in the units of the loss."""

    A: Parameter
    alpha: Parameter
    B: Parameter
    identified: bool
    """Whether alpha's interval is closed on both sides."""
    n_models: int
    residuals: tuple[float, ...]
    """Loss minus fit, in the order given."""
    residual_sd: float | None
    """sqrt(sum of squares / (n - 3))."""
    caption: str = CAPTION
    reason: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain types for `json.dumps(..., allow_nan=False)`."""
        return asdict(self)


def fit_power_law(
    d_model: Float[np.ndarray, " model"],
    loss: Float[np.ndarray, " model"],
    se: Float[np.ndarray, " model"] | None = None,
) -> ScalingFit:
    """Least squares with A >= 0, B >= 0 and alpha in 0.01..10, and joint profile intervals.

    For each alpha the best A and B are linear; alpha is searched. An interval holds the values of
    one parameter for which the sum of squares, the others refitted, exceeds the least by no more
    than s^2 F_(1, n-3). s^2 is the residual variance: the errors that matter are those of training
    (seed, optimization), which a loss's own document interval does not show, so `se` only weights
    the models and keeps s^2 from falling below what it states. With four widths there is one
    degree of freedom and F is 161: alpha is then rarely identified, which is the truth about four
    widths. B's lower limit may be 0, its bound; a limit that the search does not reach is None.

    `identified` is False with a reason when alpha's interval is open or the loss does not fall.
    Below MIN_WIDTHS distinct widths nothing is fitted: all parameters None, with the reason.
    Raises ValueError on unequal lengths, or values not finite or not positive.
    Source: Liu, Liu & Gore, arXiv 2505.10465, for the form; Hoffmann et al., arXiv 2203.15556.
    """
    m, y = np.asarray(d_model, dtype=float), np.asarray(loss, dtype=float)
    errors = np.ones_like(y) if se is None else np.asarray(se, dtype=float)
    if not len(m) == len(y) == len(errors):
        raise ValueError(f"fit_power_law got {len(m)} widths, {len(y)} losses, {len(errors)} se")
    if not (np.isfinite([m, y, errors]).all() and (m > 0).all() and (errors > 0).all()):
        raise ValueError("fit_power_law needs finite losses and positive widths and errors")
    nothing = Parameter(None, None, None, None)
    n_widths = len(np.unique(m))
    if n_widths < MIN_WIDTHS:
        reason = f"{n_widths} widths; three parameters and an error need {MIN_WIDTHS}"
        return ScalingFit(nothing, nothing, nothing, False, len(m), (), None, reason=reason)

    curve = _Curve(m, y, errors)
    alpha, least = _minimise(curve.free)
    A, B = (float(c[0]) for c in curve.coefficients(np.array([alpha])))
    fitted = A * m**-alpha + B
    freedom = len(m) - 3
    variance = max(least / freedom, 1.0 if se is not None else 0.0)
    level = least + variance * float(stats.f.ppf(0.95, 1, freedom))
    residuals = tuple((y - fitted).tolist())
    sd = float(np.sqrt(np.sum((y - fitted) ** 2) / freedom))
    # Scale-free: a slope of rounding errors is no slope.
    if A * np.ptp(m**-alpha) <= 1e-9 * np.abs(y).max():
        flat = Parameter(float(B), None, None, None)
        reason = "the loss does not fall with width: alpha is undefined"
        return ScalingFit(nothing, nothing, flat, False, len(m), residuals, sd, reason=reason)

    log_A = np.log(A)
    errors_of = curve.standard_errors(A, alpha, B, variance)
    alpha_low = _limit(
        lambda a: float(curve.free(np.array([a]))[0]), level, alpha, ALPHA_GRID[::-1]
    )
    alpha_high = _limit(lambda a: float(curve.free(np.array([a]))[0]), level, alpha, ALPHA_GRID)
    reach = np.geomspace(1e-3, 60, 80)
    A_low = _limit(lambda v: _minimise(curve.with_A(np.exp(v)))[1], level, log_A, log_A - reach)
    A_high = _limit(lambda v: _minimise(curve.with_A(np.exp(v)))[1], level, log_A, log_A + reach)
    span = np.linspace(0, 1, 41)[1:]
    B_low = _limit(lambda v: _minimise(curve.with_B(v))[1], level, B, B - B * span)
    B_high = _limit(lambda v: _minimise(curve.with_B(v))[1], level, B, B + (2 * y.max() - B) * span)
    closed = alpha_low is not None and alpha_high is not None
    open_sides = [n for n, v in (("lower", alpha_low), ("upper", alpha_high)) if v is None]
    return ScalingFit(
        A=Parameter(
            A,
            None if A_low is None else float(np.exp(A_low)),
            None if A_high is None else float(np.exp(A_high)),
            errors_of[0],
        ),
        alpha=Parameter(alpha, alpha_low, alpha_high, errors_of[1]),
        B=Parameter(B, 0.0 if B_low is None else B_low, B_high, errors_of[2]),
        identified=closed,
        n_models=len(m),
        residuals=residuals,
        residual_sd=sd,
        reason=None if closed else f"alpha: {' and '.join(open_sides)} limit unbounded",
    )


@dataclass(frozen=True)
class CommonAlpha:
    """One exponent for several groups of models that keep an A and a B each."""

    alpha: float
    p: float
    """Of F: how often groups of one alpha would fit so much better with one each."""
    freedom: int
    """Degrees of freedom that the exponents of their own leave."""


def common_alpha(
    groups: Sequence[tuple[Float[np.ndarray, " model"], Float[np.ndarray, " model"]]],
) -> CommonAlpha | None:
    """(widths, losses) of each group, tested for one exponent by the F of nested least squares.

    Groups of fewer than MIN_WIDTHS widths, or whose loss does not fall with width, are left out;
    None where fewer than two are left, or nothing remains to fit. Takes residuals for normal and
    independent, within and between groups.
    """
    curves = [
        _Curve(np.asarray(m, dtype=float), np.asarray(y, dtype=float), np.ones(len(m)))
        for m, y in groups
        if len(np.unique(m)) >= MIN_WIDTHS
    ]
    curves = [curve for curve in curves if curve.falls()]
    own = sum(_minimise(curve.free)[1] for curve in curves)
    if len(curves) < 2 or own <= 0:
        return None
    alpha, together = _minimise(lambda a: np.sum([curve.free(a) for curve in curves], axis=0))
    freedom = sum(len(curve.y) - 3 for curve in curves)
    more = len(curves) - 1
    f = max(together - own, 0.0) / more / (own / freedom)
    return CommonAlpha(alpha, float(stats.f.sf(f, more, freedom)), freedom)


class _Curve:
    """Weighted sums of squares of A / m^alpha + B, vectorised over alpha."""

    def __init__(self, m: np.ndarray, y: np.ndarray, errors: np.ndarray) -> None:
        # Widths about their geometric mean keep A and B apart numerically.
        self.scale = float(np.exp(np.mean(np.log(m))))
        self.log_m, self.y, self.w = np.log(m / self.scale), y, 1 / errors**2

    def _shape(self, alpha: np.ndarray) -> np.ndarray:
        return np.exp(-alpha[:, None] * self.log_m)

    def _sum(self, alpha: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        residual = self.y - a[:, None] * self._shape(alpha) - b[:, None]
        return (self.w * residual**2).sum(axis=1)

    def _best(self, alpha: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """A (at the mean width) and B >= 0 of least squares, both in closed form."""
        g, w, y = self._shape(alpha), self.w, self.y
        g_mean, y_mean = (g @ w) / w.sum(), (w @ y) / w.sum()
        centred = g - g_mean[:, None]
        a = (centred * w) @ (y - y_mean) / ((centred**2) @ w)
        b = y_mean - a * g_mean
        through_zero = (g * w) @ y / ((g**2) @ w)
        a = np.where(b < 0, through_zero, a)
        b = np.where(b < 0, 0.0, b)
        return np.where(a < 0, 0.0, a), np.where(a < 0, y_mean, b)

    def coefficients(self, alpha: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """A of L = A / m^alpha + B, and B."""
        a, b = self._best(alpha)
        return a * self.scale**alpha, b

    def free(self, alpha: np.ndarray) -> np.ndarray:
        """Least sum of squares at each alpha."""
        return self._sum(alpha, *self._best(alpha))

    def falls(self) -> bool:
        """Whether loss falls with width. Scale-free: a slope of rounding errors is no slope."""
        alpha, _ = _minimise(self.free)
        a, _ = self._best(np.array([alpha]))
        return bool(a[0] * np.ptp(self._shape(np.array([alpha]))) > 1e-9 * np.abs(self.y).max())

    def with_A(self, A: float) -> Callable[[np.ndarray], np.ndarray]:
        """The same with A held."""

        def held(alpha: np.ndarray) -> np.ndarray:
            a = A * self.scale**-alpha
            b = ((self.y - a[:, None] * self._shape(alpha)) @ self.w) / self.w.sum()
            return self._sum(alpha, a, np.maximum(b, 0.0))

        return held

    def with_B(self, B: float) -> Callable[[np.ndarray], np.ndarray]:
        """The same with B held."""

        def held(alpha: np.ndarray) -> np.ndarray:
            g = self._shape(alpha)
            a = (g * self.w) @ (self.y - B) / ((g**2) @ self.w)
            return self._sum(alpha, np.maximum(a, 0.0), np.full(len(alpha), B))

        return held

    def standard_errors(
        self, A: float, alpha: float, B: float, variance: float
    ) -> tuple[float | None, float | None, float | None]:
        """Of A, alpha, B from the joint Gauss-Newton matrix; B has none at its bound 0."""
        log_m = self.log_m + np.log(self.scale)
        power = np.exp(-alpha * log_m)
        columns = [power, -A * log_m * power] + ([np.ones_like(power)] if B > 0 else [])
        J = np.stack(columns, axis=1) * np.sqrt(self.w)[:, None]
        norms = np.linalg.norm(J, axis=0)
        covariance = variance * np.linalg.pinv((J / norms).T @ (J / norms)) / np.outer(norms, norms)
        found: list[float | None] = [float(v) for v in np.sqrt(np.maximum(np.diag(covariance), 0))]
        return found[0], found[1], (found[2] if B > 0 else None)


def _minimise(squares: Callable[[np.ndarray], np.ndarray]) -> tuple[float, float]:
    """alpha of the least sum of squares: the grid's best, refined between its neighbours."""
    on_grid = squares(ALPHA_GRID)
    near = int(np.argmin(on_grid))
    low, high = ALPHA_GRID[max(near - 1, 0)], ALPHA_GRID[min(near + 1, len(ALPHA_GRID) - 1)]
    fit = optimize.minimize_scalar(
        lambda a: float(squares(np.array([a]))[0]),
        bounds=(low, high),
        method="bounded",
        options={"xatol": 1e-9},
    )
    if fit.fun <= on_grid[near]:
        return float(fit.x), float(fit.fun)
    return float(ALPHA_GRID[near]), float(on_grid[near])


def _limit(
    profile: Callable[[float], float], level: float, best: float, outward: np.ndarray
) -> float | None:
    """First crossing of the level going outward from the best value; None if there is none."""
    inside, rising = best, outward[-1] > outward[0]
    for step in outward:
        if (step <= best) if rising else (step >= best):
            continue
        if profile(float(step)) > level:
            if profile(inside) > level:
                return float(inside)
            return float(optimize.brentq(lambda v: profile(v) - level, inside, float(step)))
        inside = float(step)
    return None
