"""A law of loss fitted jointly over families and data sets, with errors that let all of it move."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Float
from scipy import stats

from interp.fit_comparison import Comparison, compare
from interp.laws import LAWS, problem
from interp.loss_table import LossTable
from interp.scaling import CAPTION
from interp.separable import EXPONENTS, Separable, Solution, crossing

N_BOOTSTRAP = 400
_MIN_RESAMPLES = 50
_MOST_LOST = 0.1
"""Share of resamples that may be left out without a word."""
SHARED = 0.2
"""Intraclass correlation beyond which the reader is sent to the bootstrap over models."""
POOLED = (
    "models of one width with different numbers of training tokens are pooled, so neither alpha "
    "nor its errors mean anything in this form; --form data gives tokens a term of their own"
)
BRANCHES = (
    "losses of one width after different numbers of tokens may share a run; the intervals take "
    "them for models of their own"
)
PUBLISHED_ERROR = (
    "the published way: slope of log(loss - B) on log size, every B held at its fitted value"
)


@dataclass(frozen=True)
class Estimate:
    """One fitted number. No NaN: None where it is not determined."""

    value: float
    ci_low: float | None
    """95% profile-likelihood interval: all other parameters refitted."""
    ci_high: float | None
    se_joint: float | None
    """All parameters free; None at a bound."""
    se_offsets_fixed: float | None = None
    """PUBLISHED_ERROR; of A and alpha only."""
    ci_low_bootstrap: float | None = None
    """95% interval from resampling whole models within their families."""
    ci_high_bootstrap: float | None = None
    se_clustered: float | None = None
    """Standard deviation of the same resamples: residuals that a model shares over data sets."""


@dataclass(frozen=True)
class Offset:
    """The loss of a family on a data set that no width removes."""

    family: str
    dataset: str
    value: float
    ci_low: float | None
    ci_high: float | None
    se_joint: float | None


@dataclass(frozen=True)
class JointFit:
    """A law and what the table says about it; losses and offsets in the table's unit."""

    table: str
    form: str
    law: str
    A: Estimate
    alpha: Estimate
    B: tuple[Offset, ...]
    identified: bool
    """Whether alpha's profile interval is closed on both sides."""
    reason: str | None
    terms: dict[str, Estimate]
    """The other coefficients and exponents of the form."""
    correlation_A_alpha: float | None
    n_losses: int
    n_models: int
    n_parameters: int
    residual_sd: float
    """sqrt(sum of squares / (losses - parameters))."""
    intraclass_correlation: float | None
    """Of the residuals of one model on several data sets; 0: they are independent."""
    n_below_offset: int
    """Losses not above their fitted B, which `se_offsets_fixed` has to leave out."""
    se_offsets_fixed_least_squares: float | None
    """Of alpha, with every B held, but weighing losses as the fit does."""
    n_bootstrap: int
    comparison: tuple[Comparison, ...]
    explanation: tuple[str, ...]
    notes: tuple[str, ...]
    fitted: tuple[float, ...]
    """In the table's order."""

    def to_json(self) -> dict[str, Any]:
        """Plain types for `json.dumps(..., allow_nan=False)`."""
        return asdict(self)


def fit_jointly(
    table: LossTable,
    form: str = "width",
    *,
    data_exponent: float | None = None,
    n_bootstrap: int = N_BOOTSTRAP,
    generator: np.random.Generator | None = None,
    heartbeat: Callable[[float], None] = lambda share: None,
) -> JointFit:
    """Least squares of a form of `laws.LAWS`, one offset per family and data set.

    Intervals hold the values of one parameter for which the sum of squares, all others refitted,
    exceeds the least by no more than s^2 F(.95; 1, losses - parameters). Where residuals are shared
    by a model's data sets those intervals are too narrow; the bootstrap over models, which is
    drawn within families, is then the one to read. Nothing fitted may be below zero.

    `generator` draws the bootstrap (seeded with 0 by default); `heartbeat` is told the share done.
    Raises UserError where the table cannot support the form.
    """
    law = problem(table, form, data_exponent=data_exponent)
    best = law.minimise()
    size = table.column(LAWS[form].terms[0][1])
    fitted = law.fitted(best)
    residuals = law.y - fitted
    freedom = len(law.y) - law.n_parameters
    variance = best.squares / freedom
    errors, correlation = _joint_errors(law, best, variance)
    level = best.squares + variance * float(stats.f.ppf(0.95, 1, freedom))
    falls = best.coefficients["A"] * np.ptp(size ** -best.exponents["alpha"])
    if falls <= 1e-9 * np.abs(law.y).max():
        reason: str | None = "the loss does not fall with size: alpha is undefined"
        alpha_ci: tuple[float | None, float | None] = (None, None)
    else:
        alpha_ci = profile_interval(law, best, level, "alpha", errors.get("alpha"))
        open_sides = [s for s, v in zip(("lower", "upper"), alpha_ci, strict=True) if v is None]
        reason = f"alpha: {' and '.join(open_sides)} limit unbounded" if open_sides else None
    heartbeat(0.1)
    fixed = _offsets_fixed(law, best, size)
    draws = _bootstrap(table, law, n_bootstrap, generator or np.random.default_rng(0), heartbeat)
    parameters: dict[str, Estimate] = {}
    for name, value in (best.coefficients | best.exponents).items():
        if name == "alpha":
            ci = alpha_ci
        elif reason is not None and name == "A" and alpha_ci == (None, None):
            ci = (None, None)
        else:
            ci = profile_interval(law, best, level, name, errors.get(name))
        se = errors.get(name)
        parameters[name] = _with_bootstrap(Estimate(value, *ci, se, fixed.get(name)), draws, name)
    offsets = tuple(
        Offset(
            family,
            dataset,
            float(best.offsets[group]),
            *profile_interval(law, best, level, f"offset {group}", errors.get(f"offset {group}")),
            errors.get(f"offset {group}"),
        )
        for group, (family, dataset) in enumerate(table.groups)
    )
    heartbeat(0.9)
    result = JointFit(
        table=table.name,
        form=form,
        law=f"L = {LAWS[form].text}[family, dataset]",
        A=parameters.pop("A"),
        alpha=parameters.pop("alpha"),
        B=offsets,
        identified=reason is None,
        reason=reason,
        terms=parameters,
        correlation_A_alpha=correlation,
        n_losses=len(law.y),
        n_models=int(table.model_of_row.max()) + 1,
        n_parameters=law.n_parameters,
        residual_sd=float(np.sqrt(variance)),
        intraclass_correlation=_intraclass(residuals, table.model_of_row),
        n_below_offset=int((law.y <= best.offsets[law.groups]).sum()),
        se_offsets_fixed_least_squares=_least_squares_offsets_fixed(law, best),
        n_bootstrap=_n_draws(draws),
        comparison=compare(table, data_exponent=data_exponent),
        explanation=(),
        notes=(*table.notes, *_tokens(table, form), *_left_out(n_bootstrap, draws)),
        fitted=tuple(fitted.tolist()),
    )
    return replace(result, explanation=_explanation(result))


def profile_interval(
    law: Separable, best: Solution, level: float, name: str, se: float | None
) -> tuple[float | None, float | None]:
    """Values of one parameter (`offset N`, a coefficient or a free exponent) within the level.

    A limit at zero, the bound of coefficients and offsets, is 0; one that the search does not
    reach is None.
    """
    if name.startswith("offset "):
        group = int(name.removeprefix("offset "))
        value = float(best.offsets[group])

        def offset(v: float) -> float:
            return law.minimise(hold_group=(group, max(v, 0.0))).squares

        step = 2 * se if se else 0.05 * float(law.y.max())
        low = crossing(offset, level, value, -step, 0.0) if value > 0 else 0.0
        return (0.0 if low is None else low), crossing(offset, level, value, step, None)
    if name in best.exponents:
        value = best.exponents[name]
        log_bounds = np.log(EXPONENTS)

        def exponent(v: float) -> float:
            return law.minimise(hold={name: float(np.exp(v))}).squares

        step = min(max(2 * se / value, 1e-6), 1.0) if se else 0.3
        logs = [
            crossing(exponent, level, float(np.log(value)), sign * step, float(bound))
            for sign, bound in zip((-1, 1), log_bounds, strict=True)
        ]
        low, high = (None if v is None else float(np.exp(v)) for v in logs)
        return low, high
    value = best.coefficients[name]

    def coefficient(v: float) -> float:
        return law.minimise(hold_term=(name, v)).squares

    if value <= 0:
        return 0.0, crossing(coefficient, level, 0.0, float(law.y.max()), None)

    def log_coefficient(v: float) -> float:
        return coefficient(float(np.exp(v)))

    step = min(max(2 * se / value, 1e-6), 1.0) if se else 0.3
    log_value = float(np.log(value))
    if coefficient(0.0) <= level:
        low = 0.0
    else:
        below = crossing(log_coefficient, level, log_value, -step, None)
        low = 0.0 if below is None else float(np.exp(below))
    # Beyond e^60 of anything a loss can be, the profile is open.
    above = crossing(log_coefficient, level, log_value, step, log_value + 60)
    return low, None if above is None else float(np.exp(above))


def _joint_errors(
    law: Separable, best: Solution, variance: float
) -> tuple[dict[str, float], float | None]:
    """Standard errors by name from the joint Gauss-Newton matrix; correlation of A and alpha."""
    names, J = law.jacobian(best)
    norms = np.linalg.norm(J, axis=0)
    inverse = np.linalg.pinv((J / norms).T @ (J / norms), hermitian=True)
    covariance = variance * inverse / np.outer(norms, norms)
    errors = dict(zip(names, np.sqrt(np.maximum(np.diag(covariance), 0)).tolist(), strict=True))
    if not {"A", "alpha"} <= set(names):
        return errors, None
    a, b = names.index("A"), names.index("alpha")
    scale = float(np.sqrt(covariance[a, a] * covariance[b, b]))
    return errors, float(covariance[a, b] / scale) if scale > 0 else None


def _offsets_fixed(law: Separable, best: Solution, size: np.ndarray) -> dict[str, float]:
    """PUBLISHED_ERROR of alpha and of A, with n - 3 degrees of freedom as published.

    What the other terms of a form add is held too. Source: LLMs/nonlinearfit-3.ipynb of the code
    of arXiv 2505.10465.
    """
    power = best.coefficients["A"] * size ** -best.exponents["alpha"]
    rest = law.fitted(best) - power
    above = law.y > rest
    if power.min() <= 0 or above.sum() <= 3:
        return {}
    errors = np.log(law.y[above] - rest[above]) - np.log(power[above])
    log_size = np.log(size[above])
    spread = float(np.sum((log_size - log_size.mean()) ** 2))
    variance = float(np.sum(errors**2)) / (len(errors) - 3)
    at_zero = np.sqrt(variance * (1 / len(errors) + log_size.mean() ** 2 / spread))
    return {
        "alpha": float(np.sqrt(variance / spread)),
        "A": float(best.coefficients["A"] * at_zero),
    }


def _least_squares_offsets_fixed(law: Separable, best: Solution) -> float | None:
    """Standard error of alpha with A free and all else held, residuals weighing equally."""
    names, J = law.jacobian(best)
    if not {"A", "alpha"} <= set(names):
        return None
    both = J[:, [names.index("A"), names.index("alpha")]]
    norms = np.linalg.norm(both, axis=0)
    inverse = np.linalg.pinv((both / norms).T @ (both / norms), hermitian=True)
    variance = best.squares / (len(law.y) - 2)
    return float(np.sqrt(max(variance * inverse[1, 1], 0.0)) / norms[1])


def _intraclass(residuals: Float[np.ndarray, " row"], model: np.ndarray) -> float | None:
    """Correlation of two residuals of one model: mean product of pairs over mean square."""
    counts = np.bincount(model)
    if not (counts > 1).any() or not residuals.any():
        return None
    sums = np.bincount(model, weights=residuals)
    squares = np.bincount(model, weights=residuals**2)
    pairs = float((counts * (counts - 1)).sum())
    return float((sums**2 - squares).sum() / pairs / np.mean(residuals**2))


def _bootstrap(
    table: LossTable,
    law: Separable,
    n: int,
    generator: np.random.Generator,
    heartbeat: Callable[[float], None],
) -> dict[str, Float[np.ndarray, " resample"]]:
    """Coefficients and exponents refitted to models drawn with replacement within families."""
    model = table.model_of_row
    family_of_model = np.array(
        [str(table.rows["family"][int(np.argmax(model == m))]) for m in range(model.max() + 1)]
    )
    found: dict[str, list[float]] = {}
    for number in range(n):
        times = np.zeros(len(family_of_model))
        for family in dict.fromkeys(family_of_model):
            members = np.flatnonzero(family_of_model == family)
            times += np.bincount(generator.choice(members, len(members)), minlength=len(times))
        weights = times[model]
        drawn = weights > 0
        # A draw that repeats too few sizes says nothing about the exponent, and one without a row
        # of some data set nothing about its offset.
        if len(np.unique(law.groups[drawn])) < law.n_groups:
            continue
        if not law.with_rows(drawn).is_identifiable():
            continue
        solution = replace(law, weights=weights).minimise()
        for name, value in (solution.coefficients | solution.exponents).items():
            found.setdefault(name, []).append(value)
        heartbeat(0.1 + 0.7 * (number + 1) / n)
    return {name: np.array(values) for name, values in found.items()}


def _with_bootstrap(
    estimate: Estimate, draws: dict[str, Float[np.ndarray, " resample"]], name: str
) -> Estimate:
    values = draws.get(name)
    if values is None or len(values) < _MIN_RESAMPLES:
        return estimate
    low, high = (float(v) for v in np.quantile(values, [0.025, 0.975]))
    searched = name in ("alpha", "b")
    open_low = searched and low <= EXPONENTS[0] * 1.001
    open_high = searched and high >= EXPONENTS[1] * 0.999
    return replace(
        estimate,
        ci_low_bootstrap=None if open_low else low,
        ci_high_bootstrap=None if open_high else high,
        se_clustered=None if open_low or open_high else float(np.std(values, ddof=1)),
    )


def _tokens(table: LossTable, form: str) -> tuple[str, ...]:
    """The caption that an exponent needs where width is not all that differs between models."""
    if not table.has("train_tokens"):
        return ()
    if table.varies_tokens:
        return (BRANCHES,) if form in ("data", "depth-data") else (POOLED,)
    budgets = table.rows.groupby(["family", "dataset"])["train_tokens"].nunique()
    return (CAPTION,) if (budgets == 1).all() else ()


def _n_draws(draws: dict[str, Float[np.ndarray, " resample"]]) -> int:
    return len(next(iter(draws.values()), ()))


def _left_out(asked: int, draws: dict[str, Float[np.ndarray, " resample"]]) -> tuple[str, ...]:
    """What a bootstrap of few models has to leave out."""
    lost = asked - _n_draws(draws)
    if lost <= _MOST_LOST * asked:
        return ()
    return (
        f"{lost} of {asked} resamples of models repeat too few of them to fit the law and are left "
        "out: with so few models the intervals over models are rough",
    )


def _explanation(fit: JointFit) -> tuple[str, ...]:
    """Why the errors of alpha differ, in sentences made from the numbers."""
    alpha, said = fit.alpha, []
    correlation = fit.correlation_A_alpha
    if alpha.se_joint is not None and alpha.se_offsets_fixed is not None:
        held = ""
        if fit.se_offsets_fixed_least_squares is not None:
            held = f" and {fit.se_offsets_fixed_least_squares:.3g} with every B held in this fit"
        said.append(
            f"alpha's standard error is {alpha.se_joint:.3g} when all {fit.n_parameters} "
            f"parameters are free, {alpha.se_offsets_fixed:.3g} in the published way (slope of "
            "log(loss - B) on log size with every B held at its fitted value, which weighs the "
            f"smallest excesses most){held}."
        )
        if correlation is not None:
            said.append(
                "Holding the offsets is what makes the error small: an exponent a little lower, "
                f"with its A (correlation of A and alpha {correlation:.3f}) and lower offsets, "
                "fits almost as well, and the data alone decide between them. Quote the joint "
                "error."
            )
    elif correlation is not None:
        said.append(f"The correlation of A and alpha is {correlation:.3f}.")
    if fit.intraclass_correlation is not None and alpha.se_clustered is not None:
        advice = (
            ": the interval over models is the one to read, the other takes residuals for "
            "independent"
            if fit.intraclass_correlation > SHARED
            else ""
        )
        said.append(
            "Residuals of one model on several data sets correlate by "
            f"{fit.intraclass_correlation:.2f}; with whole models resampled the standard error is "
            f"{alpha.se_clustered:.3g}{advice}."
        )
    if (fit.intraclass_correlation or 0.0) > SHARED and len(fit.comparison) > 1:
        said.append(
            "AICc counts every loss as independent; between forms, read the error on models left "
            "out."
        )
    return tuple(said)
