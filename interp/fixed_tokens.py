"""The exponent of width at each number of training tokens by itself: does it hang on the budget?"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from interp.loss_table import LossTable
from interp.scaling import Parameter, fit_power_law


@dataclass(frozen=True)
class AtTokens:
    """L = A / d_model^alpha + B for the models of one number of training tokens."""

    family: str
    dataset: str
    train_tokens: float
    n_models: int
    alpha: Parameter
    B: Parameter
    """In the table's unit of loss."""
    identified: bool
    reason: str | None
    """Why alpha is not identified."""

    def to_json(self) -> dict[str, Any]:
        """Plain types for `json.dumps(..., allow_nan=False)`."""
        return asdict(self)


def at_fixed_tokens(table: LossTable) -> tuple[AtTokens, ...]:
    """Each family and data set of which models of one width had several numbers of tokens; the
    fewest tokens first. Empty where no table has such, or lacks `train_tokens`.

    Every number of tokens has its own A, alpha and B, with joint profile intervals
    (`scaling.fit_power_law`; its source holds here too). Losses of a width that branch off one run
    share what is particular to it, so exponents at several budgets are no independent draws.
    """
    if not table.varies_tokens:
        return ()
    found = []
    for family, dataset in table.groups:
        rows = table.rows
        rows = rows[(rows["family"] == family) & (rows["dataset"] == dataset)]
        if not rows.groupby("d_model")["train_tokens"].nunique().gt(1).any():
            continue
        for n_tokens, some in rows.groupby("train_tokens", sort=True):
            fit = fit_power_law(some["d_model"].to_numpy(), some["loss"].to_numpy())
            found.append(
                AtTokens(
                    family,
                    dataset,
                    float(np.asarray(n_tokens)),
                    len(some),
                    fit.alpha,
                    fit.B,
                    fit.identified,
                    fit.reason,
                )
            )
    return tuple(found)
