"""Is the best learning rate bracketed, or does the search still run downhill at an edge?"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

RATES = {"lr": "rate of embeddings and vectors", "lr_hidden": "rate inside the blocks"}


def best_run(runs: Iterable[Mapping[str, Any]], d_model: int) -> Mapping[str, Any]:
    """The run of this width with the least held-out loss."""
    return min(
        (run for run in runs if run["d_model"] == d_model),
        key=lambda run: run["held_out_loss_nats"],
    )


def open_sides(runs: Iterable[Mapping[str, Any]], d_model: int) -> list[str]:
    """Sides on which nothing worse bounds the best rate, such as `rate inside the blocks, below`.

    A side is closed by two runs that differ in this rate alone, one at the best value and a worse
    one beyond it. The other rate may be another than the best run's: short runs at every
    combination would cost more than the ladder.
    """
    own = [run for run in runs if run["d_model"] == d_model]
    best = best_run(own, d_model)
    found = []
    for rate, name in RATES.items():
        (other,) = RATES.keys() - {rate}
        for side, beyond in (("below", float.__lt__), ("above", float.__gt__)):
            closed = any(
                inner[rate] == best[rate]
                and beyond(float(outer[rate]), float(best[rate]))
                and inner[other] == outer[other]
                and outer["held_out_loss_nats"] > inner["held_out_loss_nats"]
                for inner in own
                for outer in own
            )
            if not closed:
                found.append(f"{name}, {side}")
    return found
