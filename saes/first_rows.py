"""What the first chunk of a stream fixes: the initial decoder bias and the scale of the rows."""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from saes.errors import SAEError
from saes.metrics import RunningVariance

BLOCK_ROWS = 8192
MEDIAN_STEPS = 100
MEDIAN_TOLERANCE = 1e-6
"""Of the last step, as a share of the rows' root mean square distance from the mean."""


class FirstRows(NamedTuple):
    """Statistics of the rows that a stream begins with."""

    centre: Float[Tensor, " d_in"]
    """float64, on the rows' device."""
    scale: float
    """Factor that makes the rows' total variance d_in."""


def first_rows(
    rows: Float[Tensor, "token d_in"],
    hook_point: str,
    kind: Literal["mean", "geometric_median"] = "mean",
) -> FirstRows:
    """Centre and scale of the rows. Raises SAEError, naming `hook_point`, where all are equal."""
    variance = RunningVariance(rows.shape[1])
    for block in rows.split(BLOCK_ROWS):
        variance.update(block)
    if variance.sum_of_squares == 0:
        raise SAEError(
            f"{hook_point}: all {len(rows)} rows of the first chunk are equal; "
            "give activations that vary"
        )
    centre = variance.mean.to(rows.device)
    if kind == "geometric_median":
        spread = math.sqrt(variance.sum_of_squares / len(rows))
        centre = geometric_median(rows, centre, tolerance=MEDIAN_TOLERANCE * spread)
    return FirstRows(centre, math.sqrt(rows.shape[1] * len(rows) / variance.sum_of_squares))


def geometric_median(
    rows: Float[Tensor, "token d_in"], start: Float[Tensor, " d_in"], *, tolerance: float
) -> Float[Tensor, " d_in"]:
    """The point with the least sum of distances to the rows, in float64.

    Weiszfeld's iteration: the mean weighted by 1 / distance, from `start` until a step is shorter
    than `tolerance`, at most 100 times. Rows at the point itself get the weight of that tolerance.
    """
    point = start
    for _ in range(MEDIAN_STEPS):
        total, weight_sum = torch.zeros_like(point), torch.zeros_like(point[0])
        for block in rows.split(BLOCK_ROWS):
            distances = torch.linalg.vector_norm(block.double() - point, dim=1)
            weights = 1 / distances.clamp_min(tolerance)
            total += weights @ block.double()
            weight_sum += weights.sum()
        moved = total / weight_sum
        step = torch.linalg.vector_norm(moved - point)
        point = moved
        if step <= tolerance:
            break
    return point
