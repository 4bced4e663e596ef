"""Does measured packing predict loss better than width alone? Exploratory, said either way."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from scipy import stats

from interp.errors import UserError
from interp.fit_comparison import left_out_errors
from interp.laws import problem
from interp.loss_table import LossTable
from interp.scaling_end import NO_COUNTS
from interp.separable import Term

ONLY_BOUNDS = "every count in the table is a lower bound or missing"


@dataclass(frozen=True)
class PackingGain:
    """The width law with and without a linear term in features per dimension."""

    n_models: int
    left_out_rmse_width: float | None
    """Root mean squared error on each model when it is left out."""
    left_out_rmse_with_packing: float | None
    coefficient: float | None
    """Loss per feature per dimension, width held; its sign is free."""
    p_value: float | None
    """F test of the added term; wrong where residuals are shared within a model."""
    sentence: str

    def to_json(self) -> dict[str, Any]:
        """Plain types for `json.dumps(..., allow_nan=False)`."""
        return asdict(self)


def packing_gain(table: LossTable) -> PackingGain:
    """Numbers from the models with a count, or why there are none. Lower bounds are no counts."""
    if "packing" not in table.rows:
        said = f"exploratory: whether packing improves on width alone is not known ({NO_COUNTS})"
        return PackingGain(0, None, None, None, None, said)
    counted = table.rows["packing"].notna()
    if "packing_is_bound" in table.rows:
        counted &= ~(table.rows["packing_is_bound"] > 0)
    kept = table.take(counted.to_numpy())
    if kept.rows.empty:
        said = f"exploratory: whether packing improves on width alone is not known ({ONLY_BOUNDS})"
        return PackingGain(0, None, None, None, None, said)
    n_models = int(kept.model_of_row.max()) + 1
    try:
        packing = kept.rows["packing"].to_numpy(dtype=float)
        plain = problem(kept, "width")
        fuller = problem(kept, "width", extra=(Term("packing", packing, None, signed=True),))
    except (UserError, ValueError) as error:
        said = f"exploratory: {n_models} models with packing do not support the question ({error})"
        return PackingGain(n_models, None, None, None, None, said)
    without, with_it = plain.minimise(), fuller.minimise()
    freedom = len(fuller.y) - fuller.n_parameters
    gained = max(without.squares - with_it.squares, 0.0)
    p_value = None
    if with_it.squares > 0:
        p_value = float(stats.f.sf(gained / (with_it.squares / freedom), 1, freedom))
    errors = [left_out_errors(law, kept.model_of_row) for law in (plain, fuller)]
    rmse = [None if e is None else float(np.sqrt(np.mean(e**2))) for e in errors]
    return PackingGain(
        n_models,
        rmse[0],
        rmse[1],
        with_it.coefficients["packing"],
        p_value,
        _sentence(n_models, rmse[0], rmse[1], p_value),
    )


def _sentence(
    n_models: int, width: float | None, with_packing: float | None, p_value: float | None
) -> str:
    chance = "" if p_value is None else f" (F test of the term: p = {p_value:.2g})"
    if width is None or with_packing is None:
        return (
            f"exploratory: {n_models} models are too few to leave one out, so whether packing "
            f"improves on width alone is not known{chance}"
        )
    verdict = "improves on" if with_packing < width else "does not improve on"
    return (
        f"exploratory: with measured packing the error on models left out is {with_packing:.3g}, "
        f"with width alone {width:.3g}, so packing {verdict} width alone here{chance}; "
        "one table of few models, not a test of the claim"
    )
