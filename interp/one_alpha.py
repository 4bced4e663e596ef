"""Whether models trained on different numbers of tokens share one exponent of width."""

from __future__ import annotations

from interp.loss_table import LossTable
from interp.scaling import CommonAlpha, common_alpha


def one_alpha(table: LossTable) -> dict[tuple[str, str], CommonAlpha]:
    """By family and data set: the exponent that all numbers of tokens share, and whether they do.

    Of families of which models of one width had several; `fixed_tokens` has each number by itself.
    The test takes losses for independent, which those that branch off one run are not.
    """
    if not table.varies_tokens:
        return {}
    found = {}
    for group in table.groups:
        rows = table.rows
        rows = rows[(rows["family"] == group[0]) & (rows["dataset"] == group[1])]
        if not rows.groupby("d_model")["train_tokens"].nunique().gt(1).any():
            continue
        budgets = [
            (some["d_model"].to_numpy(), some["loss"].to_numpy())
            for _, some in rows.groupby("train_tokens", sort=True)
        ]
        if (fit := common_alpha(budgets)) is not None:
            found[group] = fit
    return found
