"""Does an outcome move when a lever is pulled: a trend in order, and a spread beyond the seeds'."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from scipy import stats

from interp.holm import holm
from interp.kendall import order_test, tau_b, theil_sen

ALPHA = 0.05
MIN_DOSES = 3
DOUBLING = "doubling"


@dataclass(frozen=True)
class DoseResponse:
    """One outcome against one lever, over models of one width. No NaN: None, with `reason`."""

    lever: str
    outcome: str
    n_models: int
    n_doses: int
    tau: float | None
    """Kendall's tau-b of outcome and dose."""
    p_trend: float | None
    """Exact, two-sided (Jonckheere-Terpstra where doses repeat); None where no order of these
    models could reach .05."""
    slope: float | None
    """Median over pairs of models (Theil-Sen), per `slope_per`."""
    slope_ci_low: float | None
    slope_ci_high: float | None
    slope_per: str
    """doubling, or unit of the lever."""
    spread_over_seeds: float | None
    """Standard deviation between doses over that between seeds of the base recipe."""
    p_spread: float | None
    """F test that the two are one; assumes normal scatter."""
    decided_by: str | None = None
    """trend or spread; see `corrected`."""
    p_holm: float | None = None
    """Of that one, corrected over all levers of this outcome."""
    moves: bool | None = None
    """Whether the outcome moved beyond chance: `p_holm` is at most .05."""
    reason: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain types for `json.dumps(..., allow_nan=False)`."""
        return asdict(self)


def dose_response(
    lever: str,
    outcome: str,
    doses: Float[np.ndarray, " model"],
    values: Float[np.ndarray, " model"],
    is_replicate: Sequence[bool],
    *,
    replicates: Float[np.ndarray, " seed"],
    doubling: bool = False,
    generator: torch.Generator,
) -> DoseResponse:
    """Trend and spread of `values` over `doses`.

    is_replicate: which of these models is the base recipe, and so among `replicates` too: those are
    the outcomes of the base under several seeds, and stand for what chance alone does.
    doubling: doses are amounts, and slopes are per doubling. The trend sees what only rises or only
    falls; an outcome that is best in the middle shows in the spread alone. Spread: one-way analysis
    of variance in which only the base is replicated, F(doses, seeds - 1); one seed has no spread.
    """
    doses, values = np.asarray(doses, dtype=float), np.asarray(values, dtype=float)
    scale = np.log2(doses) if doubling else doses
    n_doses = len(np.unique(doses))
    reasons = []
    tau = p_trend = None
    slope = low = high = None
    if n_doses < MIN_DOSES:
        reasons.append(f"values of the lever: {n_doses} (a trend needs {MIN_DOSES})")
    elif np.ptp(values) == 0:
        reasons.append("the outcome is the same in all models")
    else:
        tau = tau_b(scale, values)
        p_trend, _ = order_test(scale, values, generator=generator)
        # Where even this order could not show, an order that does not show says nothing.
        at_best, _ = order_test(np.sort(scale), np.sort(values), generator=generator)
        if at_best is not None and at_best > ALPHA:
            p_trend = None
            reasons.append(f"no trend of these doses can reach {ALPHA:g} ({at_best:.2g} at best)")
        line = theil_sen(scale, values)
        slope, low, high = line.value, line.ci_low, line.ci_high
        reasons += [f"slope: {line.reason}"] if line.reason else []
    own = values[~np.asarray(is_replicate, dtype=bool)]
    ratio, p_spread, why = _spread(own, np.asarray(replicates, dtype=float))
    reasons += [why] if why else []
    return DoseResponse(
        lever=lever,
        outcome=outcome,
        n_models=len(values),
        n_doses=n_doses,
        tau=tau,
        p_trend=p_trend,
        slope=slope,
        slope_ci_low=low,
        slope_ci_high=high,
        slope_per=DOUBLING if doubling else "unit",
        spread_over_seeds=ratio,
        p_spread=p_spread,
        reason="; ".join(reasons) or None,
    )


def corrected(responses: Sequence[DoseResponse]) -> list[DoseResponse]:
    """With what decides on each lever, its p corrected by Holm over the levers of the outcome.

    An amount (told in doublings) is expected to act in one direction, and its trend decides: exact,
    and with few seeds far stronger than the spread. A signed lever need not (a pull to unit norm
    and a decay both shorten long rows), so its spread over the seeds' decides. The other stands in
    where one could not be tested; None where neither could.
    """
    found = list(responses)
    for outcome in dict.fromkeys(r.outcome for r in responses):
        places = [i for i, r in enumerate(responses) if r.outcome == outcome]
        deciding = [_deciding(responses[i]) for i in places]
        adjusted = holm([p for _, p in deciding])
        for i, (name, _), p in zip(places, deciding, adjusted, strict=True):
            found[i] = replace(
                found[i], decided_by=name, p_holm=p, moves=None if p is None else p <= ALPHA
            )
    return found


def _deciding(response: DoseResponse) -> tuple[str | None, float | None]:
    """(which test, its p)."""
    tests = [("trend", response.p_trend), ("spread", response.p_spread)]
    if response.slope_per != DOUBLING:
        tests.reverse()
    return next(((name, p) for name, p in tests if p is not None), (None, None))


def _spread(
    own: Float[np.ndarray, " model"], replicates: Float[np.ndarray, " seed"]
) -> tuple[float | None, float | None, str | None]:
    """Ratio of standard deviations, its p, and why there is none."""
    if len(replicates) < 2:
        return None, None, f"seeds of the base recipe: {len(replicates)} (a spread needs two)"
    if not len(own):
        return None, None, "no model in which the lever was moved"
    by_chance = float(replicates.var(ddof=1))
    if by_chance == 0:
        return None, None, "all seeds of the base recipe gave the same"
    everyone = np.concatenate([own, replicates])
    between = float(((everyone - everyone.mean()) ** 2).sum()) - by_chance * (len(replicates) - 1)
    f = between / len(own) / by_chance
    return float(np.sqrt(f)), float(stats.f.sf(f, len(own), len(replicates) - 1)), None
