"""The arm's test with counts that had not settled: is it their training that hides a relation?

The declared test leaves them out. Where counts of all models still grow alike, their order is that
of settled ones, and a rank test needs no more; so it is made with them too, beside the order after
half of the training. It decides nothing: that counts enter before they have settled was never
declared.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from interp.correlate import spearman, spearman_within

Record = dict[str, Any]


def could_settle(record: Mapping[str, Any]) -> bool:
    """A count that lacks nothing but training: at the FVU asked for, its dictionary not full."""
    return (
        record["value"] is not None
        and record.get("value_half") is not None
        and record["fvu_matched"] is True
        and not record["censored"]
    )


def with_unsettled(
    rows: Sequence[Mapping[str, Any]],
    losses: Sequence[float] | np.ndarray,
    groups: Sequence[Hashable],
    *,
    generator: torch.Generator,
) -> Record:
    """Packing of `rows` (see `could_settle`) against loss, and against itself at half the training.

    groups: the lever that each model is of. `growth_low` and `growth_high`: least and greatest
    share by which a count grew with the last doubling, of those that half the training gave any.
    `order_kept`: Spearman's rho of the counts after half and after all of the training;
    `spearman_half`: of the former with the losses.
    """
    after, before = (
        np.array([r[key] for r in rows], dtype=float) for key in ("value", "value_half")
    )
    losses = np.asarray(losses, dtype=float)
    rank = spearman(after, losses, generator=generator)
    within = spearman_within(after, losses, groups, generator=generator)
    half = spearman(before, losses, generator=generator)
    kept = spearman(before, after, generator=generator)
    growth = after[before > 0] / before[before > 0] - 1
    reasons = {"spearman": rank, "within levers": within, "half": half, "order": kept}
    return {
        "n_models": len(rows),
        "n_settled": sum(r["converged"] is True for r in rows),
        "growth_low": float(growth.min()) if len(growth) else None,
        "growth_high": float(growth.max()) if len(growth) else None,
        "order_kept": kept.value,
        "spearman": rank.value,
        "p": rank.p,
        "ci_low": rank.ci_low,
        "ci_high": rank.ci_high,
        "within_levers": within.value,
        "p_within_levers": within.p,
        "spearman_half": half.value,
        "p_half": half.p,
        "reason": "; ".join(
            f"{name}: {found.reason}" for name, found in reasons.items() if found.value is None
        )
        or None,
    }
