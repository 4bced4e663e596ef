"""Least squares of a loss that is a sum of power laws and one offset per group.

For given exponents everything else is linear and solved exactly (variable projection), so that
only the exponents, one or two, are searched.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import product
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from scipy import optimize

EXPONENTS = (0.01, 10.0)
"""Where exponents are searched."""
_GRID = {1: 64, 2: 20}
"""Tries of each exponent, by how many there are; a sum of squares is smooth in its logarithm."""
_STEPS_OUTWARD = 60


@dataclass(frozen=True, eq=False)
class Term:
    """One summand: coefficient times a column."""

    name: str
    """Of the coefficient."""
    values: Float[np.ndarray, " row"]
    """x of x^-exponent, positive; or the column itself where there is no exponent."""
    exponent: str | float | None
    """The name of a free exponent, a held value, or None."""
    signed: bool = False
    """A loss has only terms that add to it; other columns may have either sign."""


@dataclass(frozen=True)
class Solution:
    """A minimum: exponents by name, coefficients by term, offsets by group."""

    exponents: dict[str, float]
    coefficients: dict[str, float]
    offsets: Float[np.ndarray, " group"]
    squares: float
    """Weighted sum of squared residuals."""


@dataclass(frozen=True, eq=False)
class Separable:
    """y = sum of coefficient * x^-exponent + offset[group]; no term or offset is below zero.

    A loss is a sum of losses, hence the bounds; `Term.signed` lifts them for a column.
    Source: Golub & Pereyra 1973, SIAM J. Numer. Anal. 10:413, for the projection.
    """

    y: Float[np.ndarray, " row"]
    terms: tuple[Term, ...]
    groups: Int[np.ndarray, " row"]
    weights: Float[np.ndarray, " row"] | None = None
    """How often each row counts; None: once."""

    @cached_property
    def free(self) -> tuple[str, ...]:
        """Names of the exponents that are searched."""
        names = [t.exponent for t in self.terms if isinstance(t.exponent, str)]
        return tuple(dict.fromkeys(names))

    @cached_property
    def n_groups(self) -> int:
        return int(self.groups.max()) + 1

    @property
    def n_parameters(self) -> int:
        return len(self.terms) + self.n_groups + len(self.free)

    @cached_property
    def _w(self) -> np.ndarray:
        return np.ones_like(self.y) if self.weights is None else self.weights

    @cached_property
    def _group_weights(self) -> np.ndarray:
        """[group row]: a product with it is the weighted mean of each group."""
        member = (self.groups == np.arange(self.n_groups)[:, None]) * self._w
        return member / np.maximum(member.sum(axis=1, keepdims=True), 1e-300)

    @cached_property
    def _centres(self) -> list[float]:
        """Mean log x of each power term: columns about it keep coefficients apart numerically."""
        return [0.0 if t.exponent is None else float(np.log(t.values).mean()) for t in self.terms]

    def _columns(self, exponents: Mapping[str, np.ndarray], n: int) -> np.ndarray:
        """[try term row], power columns about their centres."""
        columns = np.empty((n, len(self.terms), len(self.y)))
        for place, (term, centre) in enumerate(zip(self.terms, self._centres, strict=True)):
            if term.exponent is None:
                columns[:, place] = term.values
            else:
                power = self._power(term, exponents)
                columns[:, place] = np.exp(np.multiply.outer(-power, np.log(term.values) - centre))
        return columns

    @staticmethod
    def _power(term: Term, exponents: Mapping[str, np.ndarray]) -> np.ndarray:
        if isinstance(term.exponent, str):
            return np.asarray(exponents[term.exponent], dtype=float)
        return np.asarray(term.exponent or 0.0, dtype=float)

    def _scale(self, place: int, exponents: Mapping[str, np.ndarray]) -> np.ndarray:
        """What turns a coefficient of the centred column into one of the column."""
        if self.terms[place].exponent is None:
            return np.asarray(1.0)
        return np.exp(self._power(self.terms[place], exponents) * self._centres[place])

    def solve(
        self,
        exponents: Mapping[str, np.ndarray],
        *,
        hold_term: tuple[str, float] | None = None,
        hold_group: tuple[int, float] | None = None,
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Least squares at each of n tries of the exponents ({name: [try]}).

        Coefficients [try term], offsets [try group] and sums of squares [try]. A coefficient or
        an offset may be held at a value; the rest is fitted.
        """
        n = len(next(iter(exponents.values()))) if exponents else 1
        columns = self._columns(exponents, n)
        y = np.broadcast_to(self.y, (n, len(self.y))).copy()
        held = None
        coefficients = np.zeros((n, len(self.terms)))
        if hold_term is not None:
            held = [t.name for t in self.terms].index(hold_term[0])
            coefficients[:, held] = hold_term[1] / self._scale(held, exponents)
            y -= coefficients[:, held, None] * columns[:, held]
        means = self._group_weights
        if hold_group is not None:
            y -= hold_group[1] * (self.groups == hold_group[0])
            # A held offset leaves nothing to centre in its group.
            means = np.where((np.arange(self.n_groups) == hold_group[0])[:, None], 0.0, means)
        open_terms = [i for i in range(len(self.terms)) if i != held]
        X = columns[:, open_terms]
        y_means, X_means = y @ means.T, X @ means.T
        y_within = y - y_means[:, self.groups]
        X_within = X - X_means[..., self.groups]
        fitted = _small_least_squares(X_within, y_within, self._w)
        offsets = y_means - np.einsum("tj,tjg->tg", fitted, X_means)
        signed = np.array([self.terms[i].signed for i in open_terms], dtype=bool)
        negative = (offsets < 0).any(axis=1) | ((fitted < 0) & ~signed).any(axis=1)
        for t in np.flatnonzero(negative):
            fitted[t], offsets[t] = self._bounded(X[t], y[t], signed, hold_group)
        coefficients[:, open_terms] = fitted
        residual = y - np.einsum("tj,tjr->tr", fitted, X) - offsets[:, self.groups]
        squares = (residual**2) @ self._w
        if hold_group is not None:
            offsets[:, hold_group[0]] = hold_group[1]
        scales = [self._scale(i, exponents) for i in range(len(self.terms))]
        for place, scale in enumerate(scales):
            coefficients[:, place] *= scale
        return coefficients, offsets, squares

    def _bounded(
        self,
        X: np.ndarray,
        y: np.ndarray,
        signed: np.ndarray,
        hold_group: tuple[int, float] | None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """The same with nothing below zero, by non-negative least squares."""
        indicators = self.groups == np.arange(self.n_groups)[:, None]
        if hold_group is not None:
            indicators[hold_group[0]] = False
        stacked = np.concatenate([X, -X[signed], indicators.astype(float)])
        norms = np.maximum(np.linalg.norm(stacked, axis=1), 1e-300)
        root = np.sqrt(self._w)
        found = optimize.nnls((stacked / norms[:, None] * root).T, y * root)[0] / norms
        coefficients = found[: len(X)].copy()
        coefficients[signed] -= found[len(X) : len(X) + int(signed.sum())]
        return coefficients, found[len(X) + int(signed.sum()) :]

    def minimise(
        self,
        *,
        hold: Mapping[str, float] | None = None,
        hold_term: tuple[str, float] | None = None,
        hold_group: tuple[int, float] | None = None,
    ) -> Solution:
        """The least sum of squares over the exponents in EXPONENTS; `hold` fixes some of them.

        The best of a grid, refined between its neighbours.
        """
        fixed = dict(hold or {})
        names = [name for name in self.free if name not in fixed]

        def squares(tries: np.ndarray) -> np.ndarray:
            """Of log exponents [try name]."""
            given = {name: np.exp(tries[:, i]) for i, name in enumerate(names)}
            given |= {name: np.full(len(tries), v) for name, v in fixed.items()}
            return self.solve(given, hold_term=hold_term, hold_group=hold_group)[2]

        log_best = np.zeros(0)
        if names:
            axis = np.log(np.geomspace(*EXPONENTS, _GRID[len(names)]))
            grid = np.array(list(product(axis, repeat=len(names))))
            on_grid = squares(grid)
            log_best = grid[int(np.argmin(on_grid))]
            log_best = _refine(squares, log_best, axis[1] - axis[0], float(on_grid.min()))
        best = {name: float(np.exp(v)) for name, v in zip(names, log_best, strict=True)} | fixed
        coefficients, offsets, least = self.solve(
            {name: np.array([value]) for name, value in best.items()},
            hold_term=hold_term,
            hold_group=hold_group,
        )
        by_name = {t.name: float(c) for t, c in zip(self.terms, coefficients[0], strict=True)}
        return Solution(best, by_name, offsets[0], float(least[0]))

    def fitted(self, solution: Solution) -> Float[np.ndarray, " row"]:
        """The law's value at each row."""
        exponents = {name: np.array([value]) for name, value in solution.exponents.items()}
        columns = self._columns(exponents, 1)[0]
        value = solution.offsets[self.groups].astype(float)
        for place, term in enumerate(self.terms):
            scale = float(self._scale(place, exponents).squeeze())
            value = value + solution.coefficients[term.name] / scale * columns[place]
        return value

    def jacobian(self, solution: Solution) -> tuple[list[str], Float[np.ndarray, "row parameter"]]:
        """Derivatives by coefficients, exponents and offsets; those at their bound 0 left out.

        Names: of terms and exponents as they are, `offset N` for group N.
        """
        exponents = {name: np.array([value]) for name, value in solution.exponents.items()}
        columns = self._columns(exponents, 1)[0]
        by_name: dict[str, np.ndarray] = {}
        slopes = {name: np.zeros_like(self.y) for name in self.free}
        for place, term in enumerate(self.terms):
            column = columns[place] / float(self._scale(place, exponents).squeeze())
            if solution.coefficients[term.name] != 0 or term.signed:
                by_name[term.name] = column
            if isinstance(term.exponent, str):
                slopes[term.exponent] += (
                    -solution.coefficients[term.name] * column * np.log(term.values)
                )
        by_name |= {name: slope for name, slope in slopes.items() if slope.any()}
        for group in range(self.n_groups):
            if solution.offsets[group] > 0:
                by_name[f"offset {group}"] = (self.groups == group).astype(float)
        return list(by_name), np.stack(list(by_name.values()), axis=1)

    def is_identifiable(self) -> bool:
        """Whether the rows can tell the parameters apart at all, at exponents 1/2 and 2/3."""
        tries = {name: 0.5 + i / 6 for i, name in enumerate(self.free)}
        probe = Solution(tries, dict.fromkeys((t.name for t in self.terms), 1.0),
                         np.ones(self.n_groups), 0.0)  # fmt: skip
        _, J = self.jacobian(probe)
        return int(np.linalg.matrix_rank(J / np.linalg.norm(J, axis=0), tol=1e-9)) == J.shape[1]

    def with_rows(self, keep: np.ndarray) -> Separable:
        """The same law on some of the rows, every group still there."""
        return replace(
            self,
            y=self.y[keep],
            groups=self.groups[keep],
            terms=tuple(replace(t, values=t.values[keep]) for t in self.terms),
            weights=None if self.weights is None else self.weights[keep],
        )


def crossing(
    profile: Callable[[float], float],
    level: float,
    best: float,
    step: float,
    bound: float | None,
) -> float | None:
    """Where a profile that is least at `best` first exceeds `level`, going by `step` and doubling.

    `bound`: the parameter's own, where the search ends; None is returned where it ends below the
    level, or after a distance of 2^60 steps.
    """
    inside, width = best, step
    for _ in range(_STEPS_OUTWARD):
        outside = inside + width
        at_bound = bound is not None and (outside - bound) * np.sign(step) >= 0
        if at_bound:
            outside = float(bound or 0.0)
        if profile(outside) > level:
            if profile(inside) > level:
                return inside
            return float(optimize.brentq(lambda v: profile(v) - level, inside, outside, rtol=1e-7))
        if at_bound:
            return None
        inside, width = outside, 2 * width
    return None


def _refine(
    squares: Callable[[np.ndarray], np.ndarray], start: np.ndarray, width: float, least: float
) -> np.ndarray:
    """Log exponents of the minimum in the grid's cells about `start`."""
    low, high = np.log(EXPONENTS)
    bounds: Sequence[tuple[float, float]] = [
        (max(v - width, low), min(v + width, high)) for v in start
    ]
    if len(start) == 1:
        found = optimize.minimize_scalar(
            lambda v: float(squares(np.array([[v]]))[0]),
            bounds=bounds[0],
            method="bounded",
            options={"xatol": 1e-10},
        )
        return np.array([found.x]) if found.fun <= least else start
    minimize: Any = optimize.minimize  # its stubs refuse this call, which scipy documents
    fit = minimize(
        lambda v: float(squares(v[None])[0]),
        start,
        method="Nelder-Mead",
        bounds=[(low, high)] * len(start),
        # Where the exponents have settled so far, sums of squares differ by rounding alone.
        options={"xatol": 1e-9, "fatol": np.inf, "maxiter": 400},
    )
    return fit.x if fit.fun <= least else start


def _small_least_squares(X: np.ndarray, y: np.ndarray, w: np.ndarray) -> np.ndarray:
    """Coefficients [try term] of X [try term row] for y [try row]; zero columns get zero."""
    norms = np.sqrt((X**2) @ w)
    scaled = X / np.maximum(norms, 1e-300)[..., None]
    weighted = scaled * w
    normal = weighted @ np.swapaxes(scaled, 1, 2)
    target = (weighted @ y[..., None])[..., 0]
    if X.shape[1] == 0:
        return np.zeros((len(X), 0))
    if X.shape[1] == 1:
        return target / np.maximum(normal[..., 0], 1e-300) / np.maximum(norms, 1e-300)
    inverse = np.linalg.pinv(normal, rcond=1e-13, hermitian=True)
    return (inverse @ target[..., None])[..., 0] / np.maximum(norms, 1e-300)
