"""L = A / m^alpha: the exponent of a straight line through log loss and log width."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from scipy import stats

from interp.toy.frequencies import Frequencies

MIN_WIDTHS = 3


@dataclass(frozen=True)
class Exponent:
    """alpha with its 95% interval; None with the reason where it is not determined."""

    value: float | None
    ci_low: float | None
    ci_high: float | None
    n_widths: int
    reason: str | None = None


def fit_exponent(m: Float[np.ndarray, " model"], loss: Float[np.ndarray, " model"]) -> Exponent:
    """Least squares of log loss on log m, with Student's interval.

    The toy model has no irreducible loss, so there is no offset. The interval takes the scatter
    about the line for noise: it also widens where the points bend.
    Raises ValueError on values that are not positive and finite.
    """
    both = np.array([m, loss], dtype=float)
    if not (np.isfinite(both) & (both > 0)).all():
        raise ValueError("fit_exponent needs positive finite widths and losses")
    x, y = np.log(both)
    n_widths = len(np.unique(x))
    if n_widths < MIN_WIDTHS:
        reason = f"{n_widths} widths; a slope and its error need {MIN_WIDTHS}"
        return Exponent(None, None, None, n_widths, reason)
    line = stats.linregress(x, y)
    half = float(line.stderr * stats.t.ppf(0.975, len(x) - 2))
    alpha = -float(line.slope)
    return Exponent(alpha, alpha - half, alpha + half, n_widths)


def left_out_exponent(frequencies: Frequencies, widths: Iterable[int]) -> float | None:
    """Slope at these widths of sum of p_i over i > m: weak superposition with room for m features.

    a - 1 for p_i ~ i^-a only where m is far below n: at n = 1000 and m = 10 .. 100 it is 0.29, 0.61
    and 1.02 for a = 1, 1.5 and 2. None below MIN_WIDTHS or where a width leaves nothing out.
    """
    p = frequencies.probabilities()
    m = sorted(set(widths))
    left_out = np.array([p[width:].sum() for width in m])
    if not (left_out > 0).all():
        return None
    return fit_exponent(np.array(m), left_out).value
