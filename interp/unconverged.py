"""An arm's test with unconverged counts let in: which could enter, how far they are from settling.

The declared test leaves them out. A rank test needs their order alone, so it can be made with them,
and then decides nothing: their order may still change.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from copy import copy
from typing import Any

import numpy as np
import torch

from interp.constant_width import Arm, Record
from interp.correlate import Association, spearman, spearman_within
from interp.levers import block
from interp.power import detectable


def unconverged(arm: Arm) -> Record | None:
    """The primary test with unconverged counts let in; None where none of them could be.

    `tests`: of all of them, of their counts after half of the training, without each lever, within
    levers, among models of one k, and matched at one cosine. The arm and its draws stay as they
    are.
    """
    rows = [r for r in arm.chosen if lacks_only_training(r)] if len(arm.widths) == 1 else []
    if not rows:
        return None
    there = copy(arm)
    there.generator = torch.Generator().manual_seed(arm.seed)
    there.rows = [r for r in arm.chosen if any(r is one for one in [*rows, *arm.rows])]
    found = {r["model"]: r for r in there.rows}
    halves = {
        name: float(r["value_half"]) / arm.widths[0]
        for name, r in found.items()
        if r.get("value_half") is not None
    }
    packing = {name: float(r["per_dim"]) for name, r in found.items()}
    of_all = {r["model"]: r for r in arm.chosen}
    return {
        "n_models": len(found),
        "n_unconverged": len(rows),
        "left_out": [
            {"model": name, "reason": why_left_out(of_all.get(name))}
            for name in arm.facts
            if name not in found
        ],
        **growth(rows, arm.losses(rows), generator=there.generator),
        "detectable_rho": detectable(len(found)).detectable_rho,
        "tests": _tests(there, packing, halves),
        **{
            key: [r.to_json() for r in there.dose_response([("packing", values)], there.generator)]
            for key, values in (("dose_response", packing), ("dose_response_half", halves))
        },
    }


def _tests(arm: Arm, packing: dict[str, float], halves: dict[str, float]) -> list[Record]:
    """Packing against loss: all models, and parts of them. Values per dimension by model."""
    blocks = {name: block(arm.facts[name]) for name in packing}

    def losses(names: Iterable[str]) -> np.ndarray:
        return np.array([arm.facts[name][arm.loss_key] for name in names], dtype=float)

    def test(values: dict[str, float], of: str) -> Record:
        counts = np.array(list(values.values()))
        return _told(of, spearman(counts, losses(values), generator=arm.generator))

    within = spearman_within(
        np.array(list(packing.values())), losses(packing), list(blocks.values()),
        generator=arm.generator,
    )  # fmt: skip
    same_k, same_cosine = arm.equal_k(), arm.equal_strictness()
    return [
        test(packing, "all"),
        test(halves, "half"),
        *(
            test({n: v for n, v in packing.items() if blocks[n] != left}, f"without {left}")
            for left in dict.fromkeys(blocks.values())
        ),
        _told("within levers", within),
        *(
            {"of": of, "n_models": one["n_models"], "spearman": one["spearman"], "p": one["p"],
             "ci_low": None, "ci_high": None}
            for one, of in (
                (same_k, f"k {same_k['k']}"),
                (same_cosine, f"cosine {same_cosine['cosine'] or 0:.2f}"),
            )
            if one["spearman"] is not None
        ),
    ]  # fmt: skip


def _told(of: str, found: Association) -> Record:
    return {
        "of": of,
        "n_models": found.n_models,
        "spearman": found.value,
        "p": found.p,
        "ci_low": found.ci_low,
        "ci_high": found.ci_high,
    }


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
