"""Where strong-superposition scaling must end: the width that reaches the number of features.

Loss falls as 1/m because n features overlap in m < n dimensions. At m = n nothing need overlap.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float
from scipy import stats

from interp.loss_table import LossTable

MIN_WIDTHS = 4
MAX_FACTOR = 1e6
"""How far beyond the widths seen an end is looked for."""
NO_COUNTS = "no features per dimension in the table; a finished study or a column packing has them"


@dataclass(frozen=True)
class ScalingEnd:
    """The width with one feature per dimension; None where the counts do not tell."""

    family: str
    d_model: float | None
    ci_low: float | None
    """95%, by Fieller's argument on the fitted line; None: open. Stands alone where the counts show
    no end and yet exclude one below."""
    ci_high: float | None
    is_bound: bool
    """The counts are lower bounds, and so is this width."""
    n_models: int
    reason: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain types for `json.dumps(..., allow_nan=False)`."""
        return asdict(self)


def ends_of(table: LossTable) -> list[ScalingEnd]:
    """One per family, from the columns `packing` and `packing_is_bound`."""
    found = []
    for family, rows in table.rows.groupby("family", sort=False):
        if "packing" not in rows:
            found.append(ScalingEnd(str(family), None, None, None, False, 0, NO_COUNTS))
            continue
        counted = rows.dropna(subset=["packing"]).drop_duplicates("model")
        counted = counted[counted["packing"] > 0]
        bound = np.zeros(len(counted), dtype=bool)
        if "packing_is_bound" in counted:
            bound = counted["packing_is_bound"].fillna(0).to_numpy() > 0
        widths = counted["d_model"].to_numpy(dtype=float)
        found.append(
            scaling_end(str(family), widths, counted["packing"].to_numpy(dtype=float), bound)
        )
    return found


def scaling_end(
    family: str,
    d_model: Float[np.ndarray, " model"],
    per_dim: Float[np.ndarray, " model"],
    is_bound: Bool[np.ndarray, " model"],
) -> ScalingEnd:
    """The width at which the line of log features per dimension on log width reaches 0.

    features = per_dim * d_model ~ d_model^beta; the end exists where beta < 1. The interval holds
    every width at which the line does not differ from 0 at 5%; where packing does not clearly fall
    with width it is open above, and begins at the least width that a falling line may reach. Lower
    bounds enter as they are. Of wide models they make the end a lower bound, which has no upper
    limit: more features there only move it away. Of narrow models they could turn the line either
    way, and there is no answer. Source: Fieller 1954, J. R. Stat. Soc. B 16:175.
    """
    n = len(d_model)
    if len(np.unique(d_model)) < MIN_WIDTHS:
        reason = f"{len(np.unique(d_model))} widths with a count; the line needs {MIN_WIDTHS}"
        return ScalingEnd(family, None, None, None, bool(is_bound.any()), n, reason)
    x, y = np.log(d_model), np.log(per_dim)
    centre = x.mean()
    spread = float(np.sum((x - centre) ** 2))
    slope = float(np.sum((x - centre) * (y - y.mean())) / spread)
    residuals = y - y.mean() - slope * (x - centre)
    variance = float(np.sum(residuals**2)) / (n - 2)
    t = float(stats.t.ppf(0.975, n - 2))

    def differs(at: np.ndarray | float) -> np.ndarray:
        """How many half-intervals the line is above (or, negative, below) 0."""
        half = t * np.sqrt(variance * (1 / n + (at - centre) ** 2 / spread))
        return (y.mean() + slope * (at - centre)) / np.maximum(half, 1e-300)

    reach = np.log(MAX_FACTOR)
    tries = np.linspace(x.min() - reach, x.max() + reach, 200_001)
    possible = tries[np.abs(differs(tries)) <= 1]
    end = None if slope >= 0 else centre - y.mean() / slope
    bounded = bool(is_bound.any())
    if bounded and (x[is_bound].min() < centre or (end is not None and end < centre)):
        reason = f"{int(is_bound.sum())} of {n} counts are lower bounds: the end could lie anywhere"
        return ScalingEnd(family, None, None, None, True, n, reason)
    steep = slope + t * np.sqrt(variance / spread) < 0
    above_one = float(differs(centre)) > 1
    if above_one and not steep:
        # What lies on the other side are rising lines, which have no end.
        possible = possible[possible > centre]
    low = high = None
    if len(possible) > 0:
        low = float(np.exp(possible[0])) if possible[0] > tries[0] else None
        high = float(np.exp(possible[-1]))
    if end is None or not tries[0] <= end <= tries[-1]:
        if above_one and len(possible) == 0:
            low = float(np.exp(tries[-1]))
        reason = "features per dimension do not fall with width, so no width reaches their number"
        return ScalingEnd(family, None, low, None, bounded, n, reason)
    if len(possible) == 0:  # a line without scatter
        low = high = float(np.exp(end))
    reasons = []
    if not steep:
        reasons.append("packing does not clearly fall with width: no upper limit")
    if bounded:
        reasons.append(f"{int(is_bound.sum())} of {n} counts are lower bounds, and so is the end")
    return ScalingEnd(
        family,
        float(np.exp(end)),
        low,
        None if reasons else high,
        bounded,
        n,
        "; ".join(reasons) or None,
    )
