"""Unconverged counts of an arm: which could enter its test, and how far they are from settling.

The declared test leaves them out. A rank test needs their order alone, so it can be made with them,
and then decides nothing: the order may still change, above all where growth goes with the loss.
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


def drift(
    rows: Sequence[Mapping[str, Any]],
    losses: Sequence[float] | np.ndarray,
    *,
    generator: torch.Generator,
) -> Record:
    """What the last doubling of the training did to counts that have one after half of it.

    `growth_low`, `growth_high`: least and greatest share by which an unconverged count grew, of
    those that half of the training gave any. `growth_with_loss`, with its `p`: Spearman's rho of
    that share, of all counts, with the losses; unless it is near zero, a relation of counts and
    losses is still moving. `order_kept`: rho of the counts after half and after all of the
    training; `spearman_half`: of the former with the losses.
    """
    losses = np.asarray(losses, dtype=float)
    halved = np.array([r.get("value_half") is not None for r in rows], dtype=bool)
    known = [r for r in rows if r.get("value_half") is not None]
    after, before = (np.array([r[k] for r in known], dtype=float) for k in ("value", "value_half"))
    open_ = np.array([r["converged"] is not True for r in known], dtype=bool)
    some = before > 0
    growth = after[some] / before[some] - 1
    of_open = growth[open_[some]]
    with_loss = spearman(growth, losses[halved][some], generator=generator)
    kept = spearman(before, after, generator=generator)
    half = spearman(before, losses[halved], generator=generator)
    return {
        "growth_low": float(of_open.min()) if len(of_open) else None,
        "growth_high": float(of_open.max()) if len(of_open) else None,
        "growth_with_loss": with_loss.value,
        "p_growth_with_loss": with_loss.p,
        "order_kept": kept.value,
        "spearman_half": half.value,
    }
