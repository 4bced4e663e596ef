"""What the committed calibration says about an estimate: its bias where the truth was known."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from interp.config import MIN_SEEDS
from interp.estimate import Estimate
from saes.latent_set import DUPLICATE_COSINE

RESULT_FILE = "calibration.json"
UNCALIBRATED = "uncalibrated"
NEIGHBOURHOOD = math.sqrt(2)
"""An estimate belongs to the cells whose n/d is nearest, and at most so many times off."""
ROOM = 2
"""How many times N the largest dictionary must hold, as in the calibration."""
OFTEN = 0.5
"""Share of a cell's replicates in which N must be identified for the cell to have a bias, as the
gates ask (`min_identified`)."""
FEW = 5
"""With so many identified replicates, of however many, a cell's bias widens intervals."""
DIGITS = 3
KEPT = ("n_per_dim", "k_ratio", "zipf", "structure", "noise", "n_seeds", "n_replicates")


def condensed(cells: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Cell records of a calibration -> what `calibrated` needs of N, small enough to ship."""
    return [
        {key: cell[key] for key in KEPT}
        | {
            "duplicate_cosine": DUPLICATE_COSINE,
            "estimator": e["estimator"],
            "bias": e["bias"],
            "n_identified": e["n_identified"],
            "n_false_bounds": e["n_false_bounds"],
        }
        for cell in cells
        for e in cell["estimators"]
        if e["estimator"].startswith("saturation")
    ]


def shipped_file() -> Path:
    """Where the package keeps them."""
    return Path(__file__).parent / RESULT_FILE


@cache
def shipped() -> tuple[dict[str, Any], ...]:
    """The condensed records in the package; empty where none was shipped."""
    file = shipped_file()
    return tuple(json.loads(file.read_text())) if file.is_file() else ()


def widened(low: float, high: float, biases: Iterable[float]) -> tuple[float, float]:
    """An interval of something positive, so wide that it holds what each bias makes of its ends.

    A bias b says that estimates are 1 + b times the truth on average; none narrows the interval,
    and one of -1 or less leaves it without an upper end.
    """
    known = [0.0, *biases]
    most, least = 1 + max(known), 1 + min(known)
    return low / most, high / least if least > 0 else math.inf


def known_biases(records: Iterable[dict[str, Any]]) -> list[float]:
    """Of the records whose N was identified OFTEN, or in FEW replicates at least.

    One that is seldom identified on such data may be what an identified N of a model is like.
    """
    return [
        r["bias"]
        for r in records
        if r["bias"] is not None and (r["n_identified"] >= FEW or _often(r))
    ]


def _often(record: dict[str, Any]) -> bool:
    return bool(record["n_identified"] >= OFTEN * record["n_replicates"])


def calibrated(
    estimate: Estimate,
    records: Sequence[dict[str, Any]] | None = None,
    *,
    min_seeds: int = MIN_SEEDS,
) -> str:
    """The calibrated bias beside an estimate, in words, or "uncalibrated".

    On a model neither the true n/d nor L0 nor the structure of its features is known: the range is
    over all cells at the nearest n/d with this estimator and number of seeds, except where N
    was identified in fewer than half of the replicates. The interval that is told is `widened` by
    the biases of all cells, near or not. A lower bound has no bias and is
    uncalibrated; so is a value farther than NEIGHBOURHOOD from every cell, one whose largest
    dictionary holds less than ROOM times as much less the largest bias, and one of what more than
    two seeds and not all
    of them have to find, which the calibration does not count. So is everything where the records
    are of counts that merged other latents than today's do.
    records: `condensed`; None takes the shipped ones.
    """
    # As `calibrate.saturation.FITS` names them.
    name = estimate.estimator
    if min_seeds != MIN_SEEDS:
        name += "_all" if min_seeds == estimate.n_seeds else "_of_some"
    found = [
        r
        for r in (shipped() if records is None else records)
        if r["estimator"] == name
        and r["n_seeds"] == estimate.n_seeds
        and r.get("duplicate_cosine") == DUPLICATE_COSINE
    ]
    per_dim = estimate.per_dim
    if not found or not estimate.identified or not per_dim or per_dim <= 0:
        return UNCALIBRATED
    known = known_biases(found)
    # The calibration's largest dictionaries hold so many times the truth, which may be less.
    if (estimate.d_sae or 0) < ROOM * widened(estimate.value or 0.0, 0.0, known)[0]:
        return UNCALIBRATED

    def off(record: dict[str, Any]) -> float:
        return abs(math.log(record["n_per_dim"] / per_dim))

    nearest = min(found, key=off)
    if off(nearest) > math.log(NEIGHBOURHOOD):
        return UNCALIBRATED
    cells = [r for r in found if r["n_per_dim"] == nearest["n_per_dim"]]
    near = [r["bias"] for r in cells if r["bias"] is not None and _often(r)]
    if not near:
        return UNCALIBRATED
    ratios = sorted({r["k_ratio"] for r in cells})
    fewest = min(r["n_replicates"] for r in cells)
    text = (
        f"bias {min(near):+.1%} to {max(near):+.1%} in {len(near)} of {len(cells)} cells at "
        f"n/d {nearest['n_per_dim']:g}, k {ratios[0]:g} to {ratios[-1]:g} times the true L0, "
        f"{fewest} replicate{'s' if fewest > 1 else ''} each"
    )
    refused = len(cells) - len(near)
    text += f"; not identified, or seldom, in {refused}" if refused else ""
    return text + _interval(estimate, known, f"{len(known)} of {len(found)} cells")


def _interval(estimate: Estimate, biases: list[float], of: str) -> str:
    if estimate.ci_low is None or estimate.ci_high is None or not estimate.value:
        return ""
    scale = (estimate.per_dim or 0.0) / estimate.value
    low, high = (scale * end for end in widened(estimate.ci_low, estimate.ci_high, biases))
    return (
        f"; 95% interval widened by the biases of {of}: {low:.{DIGITS}g} to {high:.{DIGITS}g} "
        "per dimension"
    )
