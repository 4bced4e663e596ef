"""Unconverged counts of an arm: which could enter its test, and how far they are from settling.

The declared test leaves them out. A rank test needs their order alone, so it can be made with them,
and then decides nothing: their order may still change.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from interp.correlate import spearman

Record = dict[str, Any]


def lacks_only_training(record: Mapping[str, Any]) -> bool:
    """A packing record that would be usable and uncensored had it converged."""
    return (
        record["converged"] is False
        and record["fvu_matched"] is True
        and not record["censored"]
        and all(record.get(key) is not None for key in ("value", "value_half", "ci_low", "ci_high"))
    )


def why_left_out(record: Mapping[str, Any] | None) -> str:
    """Of a model whose count is neither usable nor `lacks_only_training`."""
    if record is None or record["value"] is None:
        return "no count"
    if record["fvu_matched"] is not True:
        return "FVU not at the target"
    if record["censored"]:
        return "censored at the dictionary size"
    return "no interval, or no count after half of the training"


def growth(
    rows: Sequence[Mapping[str, Any]],
    losses: Sequence[float] | np.ndarray,
    *,
    generator: torch.Generator,
) -> Record:
    """What the last doubling of the training did to counts, of those that half of it gave any.

    `growth_low`, `growth_high`: least and greatest share by which one grew. `growth_with_loss`,
    with its p: Spearman's rho of that share with the losses. Away from zero it says that a relation
    of counts and losses is still moving; near zero it does not say that it is not. The share has
    the count after half in its denominator, whose own error moves both.
    """
    after, before = (np.array([r[k] for r in rows], dtype=float) for k in ("value", "value_half"))
    some = before > 0
    share = after[some] / before[some] - 1
    with_loss = spearman(share, np.asarray(losses, dtype=float)[some], generator=generator)
    return {
        "growth_low": float(share.min()) if len(share) else None,
        "growth_high": float(share.max()) if len(share) else None,
        "growth_with_loss": with_loss.value,
        "p_growth_with_loss": with_loss.p,
    }
