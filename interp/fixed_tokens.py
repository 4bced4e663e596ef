"""The exponent of width at each number of training tokens by itself: does it hang on the budget?"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from interp.loss_table import LossTable
from interp.scaling import CommonAlpha, Parameter, common_alpha, fit_power_law


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
    found = []
    for (family, dataset), budgets in _budgets(table).items():
        for n_tokens, (widths, losses) in budgets.items():
            fit = fit_power_law(widths, losses)
            found.append(
                AtTokens(
                    family,
                    dataset,
                    n_tokens,
                    len(widths),
                    fit.alpha,
                    fit.B,
                    fit.identified,
                    fit.reason,
                )
            )
    return tuple(found)


def one_alpha(table: LossTable) -> dict[tuple[str, str], CommonAlpha]:
    """By family and data set: the exponent that all numbers of tokens share, and whether they do.

    The test takes losses for independent, which those that branch off one run are not.
    """
    found = {
        group: common_alpha(list(budgets.values())) for group, budgets in _budgets(table).items()
    }
    return {group: fit for group, fit in found.items() if fit is not None}


def _budgets(
    table: LossTable,
) -> dict[tuple[str, str], dict[float, tuple[np.ndarray, np.ndarray]]]:
    """(family, data set) -> tokens, the fewest first -> widths and losses."""
    if not table.varies_tokens:
        return {}
    found = {}
    for group in table.groups:
        rows = table.rows
        rows = rows[(rows["family"] == group[0]) & (rows["dataset"] == group[1])]
        if rows.groupby("d_model")["train_tokens"].nunique().gt(1).any():
            found[group] = {
                float(np.asarray(n)): (some["d_model"].to_numpy(), some["loss"].to_numpy())
                for n, some in rows.groupby("train_tokens", sort=True)
            }
    return found
