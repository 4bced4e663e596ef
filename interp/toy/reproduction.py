"""The published claims about the toy model beside ours, each with its interval and its size.

Source of the published figures: Liu, Liu & Gore, arXiv 2505.10465 (v4).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd

from interp.toy.exponents import Exponent, fit_exponent, left_out_exponent
from interp.toy.frequencies import Frequencies

PUBLISHED_EXPONENTS = {
    ("exponential", 400.0): (1.01, 0.05),
    ("power", 1.2): (1.0, 0.1),
    ("linear", 0.0): (0.89, 0.05),
}
PUBLISHED_DENSITY_EXPONENT = (1.1, 0.2)
NOT_RUN = "not run"
UNSTATED = "not stated"
WIDEST = 0.5
"""Of an interval of an exponent that may be said to agree or to differ."""


@dataclass(frozen=True)
class Claim:
    """One row of the reproduction table."""

    quantity: str
    published: str
    ours: float | None
    low: float | None
    high: float | None
    interval: str
    """What low and high are: "95%", or "range" over the models."""
    size: str
    """Of our run."""
    verdict: str
    """agrees, differs or too wide to tell of exponents (`_verdict`); not run; else a dash."""


def reproduction(models: pd.DataFrame) -> list[Claim]:
    """The table, from `tables.wide`; claims without a model that bears on them say so."""
    power = models[(models.law == "power") & (models.density == 1)]
    small = power[power.parameter != 1.2]
    strong, weak = small[small.regime == "strong"], small[small.regime == "weak"]
    left_out = small[small.weak_prediction > 0]
    ratios = left_out.loss / left_out.weak_prediction
    in_weak, in_decayed = left_out.regime == "weak", left_out.regime == "decayed"
    claims = [
        _spread("fraction represented phi_1/2, strong", "about 1", strong, strong.phi_half),
        _spread("phi_1/2 in units of m/n, weak", "about 1", weak, weak.phi_half * weak.n / weak.m),
        _spread(
            "loss / ((4/3) sum of unrepresented p_i), weak",
            "about 1",
            left_out[in_weak],
            ratios[in_weak],
        ),
        _spread("the same at larger decays", "about 1", left_out[in_decayed], ratios[in_decayed]),
        *_weak_exponents(weak),
    ]
    bent = models[(models.regime == "strong") & (models.density == 1)]
    if "mean_squared_overlap" in bent:
        bent = bent[bent.mean_squared_overlap.notna()]
        overlap, variance = bent.mean_squared_overlap, bent.variance_squared_overlap
        claims += [
            _spread("mean squared overlap in units of 1/m, strong", "1", bent, overlap * bent.m),
            _spread(
                "mean squared overlap / Welch floor, strong",
                "at least 1",
                bent[bent.welch_floor > 0],
                (overlap / bent.welch_floor)[bent.welch_floor > 0],
            ),
            _spread(
                "variance of squared overlaps / that of Beta(1/2, (m-1)/2), strong",
                "1",
                bent,
                variance / bent.random_variance,
            ),
            *(_silent(bent) if "speaking_overlap" in bent else ()),
        ]
    return [*claims, *_strong_exponents(models), *_densities(models)]


def _silent(strong: pd.DataFrame) -> Iterator[Claim]:
    """What the overlaps and the loss owe to outputs that no input of their own can wake."""
    yield _spread(
        "silent outputs (2 norm^2 + b <= 0), strong", UNSTATED, strong, strong.silent_fraction
    )
    share = strong.silent_loss / strong.loss
    yield _spread("(4/3) sum of p_i of silent outputs / loss, strong", UNSTATED, strong, share)
    speaking = strong[strong.speaking_overlap.notna()]
    yield _spread(
        "mean squared overlap of the others in units of 1/m, strong",
        "1",
        speaking,
        speaking.speaking_overlap * speaking.m,
    )


def table(claims: list[Claim]) -> str:
    """Markdown, ours beside published."""
    rows = [
        "| quantity | published | ours | interval | size of our run | |",
        "|---|---|---|---|---|---|",
    ]
    for claim in claims:
        ours = interval = "-"
        if claim.ours is not None:
            ours = f"{claim.ours:.3g}"
        if claim.low is not None and claim.high is not None:
            interval = f"{claim.low:.3g} to {claim.high:.3g} ({claim.interval})"
        cells = (claim.quantity, claim.published, ours, interval, claim.size, claim.verdict)
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows) + "\n"


def _weak_exponents(weak: pd.DataFrame) -> Iterator[Claim]:
    """alpha_m = a - 1 for frequencies i^-a, a > 1; and what that is at the n and m that we ran."""
    if not (weak.parameter > 1).any():
        yield _not_run("loss exponent, weak, p ~ i^-a with a > 1", "a - 1")
    for a in sorted(weak.parameter.unique()):
        part = weak[weak.parameter == a]
        alpha = fit_exponent(part.m.to_numpy(), part.loss.to_numpy())
        name = f"loss exponent, weak, p ~ i^-{a:g}"
        if a > 1:
            yield _exponent(name, f"{a - 1:g} (a - 1)", alpha, part, a - 1, 0.0)
        exact = left_out_exponent(Frequencies("power", float(a), int(part.n.iloc[0])), part.m)
        if exact is not None:
            published = f"{exact:.3g} (sum of p_i over i > m at this n)"
            yield _exponent(f"{name}, finite n", published, alpha, part, exact, 0.0)


def _strong_exponents(models: pd.DataFrame) -> Iterator[Claim]:
    for (law, parameter), (value, error) in PUBLISHED_EXPONENTS.items():
        name = {"exponential": "p ~ exp(-i/400)", "power": "p ~ i^-1.2", "linear": "p ~ n - i"}[law]
        quantity = f"loss exponent, strong, {name}"
        published = f"{value:g} ± {error:g} (n = 10,240, m 8 to 1024)"
        part = models[
            (models.law == law) & (models.parameter == parameter) & (models.regime == "strong")
        ]
        if part.empty:
            yield _not_run(quantity, published)
            continue
        alpha = fit_exponent(part.m.to_numpy(), part.loss.to_numpy())
        yield _exponent(quantity, published, alpha, part, value, error)


def _densities(models: pd.DataFrame) -> Iterator[Claim]:
    """Over E at p ~ 1/i: loss in proportion to E, and the exponents of m."""
    swept = models[(models.law == "power") & (models.parameter == 1)]
    part = swept[swept.regime == "strong"]
    value, error = PUBLISHED_DENSITY_EXPONENT
    slope_name, range_name = "slope of log loss on log E, strong", "loss exponents over E, strong"
    # One line per width, and one per density: they differ by more than any of them is uncertain.
    slopes = [fit_exponent(p.density.to_numpy(), p.loss.to_numpy()) for _, p in part.groupby("m")]
    exponents = [
        fit_exponent(p.m.to_numpy(), p.loss.to_numpy()) for _, p in part.groupby("density")
    ]
    alphas = [e.value for e in exponents if e.value is not None]
    against_E = [-s.value for s in slopes if s.value is not None]
    if not against_E or not alphas:
        yield _not_run(slope_name, "1 (loss in proportion to E)")
        yield _not_run(range_name, f"{value:g} ± {error:g}")
        return
    for name, published, found, verdict in (
        (slope_name, "1 (loss in proportion to E)", against_E, "-"),
        (
            range_name,
            f"{value:g} ± {error:g}",
            alphas,
            _verdict(min(alphas), max(alphas), value, error),
        ),
    ):
        yield Claim(
            name,
            published,
            float(np.mean(found)),
            min(found),
            max(found),
            "range",
            _size(part),
            verdict,
        )


def _exponent(
    quantity: str,
    published: str,
    alpha: Exponent,
    part: pd.DataFrame,
    value: float,
    error: float,
) -> Claim:
    verdict = "-"
    if alpha.ci_low is not None and alpha.ci_high is not None:
        verdict = _verdict(alpha.ci_low, alpha.ci_high, value, error)
    return Claim(
        quantity, published, alpha.value, alpha.ci_low, alpha.ci_high, "95%", _size(part), verdict
    )


def _spread(quantity: str, published: str, part: pd.DataFrame, values: pd.Series) -> Claim:
    """Mean and range over models; such a claim has no published error, and gets no verdict."""
    if part.empty:
        return _not_run(quantity, published)
    return Claim(
        quantity, published, float(values.mean()), float(values.min()), float(values.max()),
        "range", _size(part), "-",
    )  # fmt: skip


def _not_run(quantity: str, published: str) -> Claim:
    return Claim(quantity, published, None, None, None, "", "-", NOT_RUN)


def _verdict(low: float, high: float, value: float, error: float) -> str:
    """agrees: our interval, if narrower than WIDEST, and the published one overlap."""
    if high - low > WIDEST:
        return "too wide to tell"
    return "agrees" if low <= value + error and high >= value - error else "differs"


def _size(part: pd.DataFrame) -> str:
    """n, widths, steps and number of models."""
    n, steps = (
        " and ".join(f"{v:,}" for v in sorted(part[name].unique())) for name in ("n", "n_steps")
    )
    models = f"{len(part)} model" + "s" * (len(part) != 1)
    return f"n {n}, m {part.m.min()} to {part.m.max()}, {steps} steps, {models}"
