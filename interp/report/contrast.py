"""Trained minus untrained twin: the difference that carries the meaning of a count."""

import math
from dataclasses import dataclass
from enum import Enum

from interp.report.interval import Interval
from interp.report.records import PackingRow


class Verdict(Enum):
    """Where zero lies in the interval of trained minus twin."""

    MORE = "more"
    SAME = "not distinguishable"
    FEWER = "fewer"
    UNKNOWN = "no interval"


@dataclass(frozen=True)
class Contrast:
    """Features per dimension, trained minus twin, with a 95% interval and what it says."""

    row: PackingRow
    difference: Interval
    verdict: Verdict


def contrast(row: PackingRow) -> Contrast | None:
    """Trained minus twin of one row; None if either number is missing.

    The interval joins the two without assuming symmetry: with estimates a, b and their intervals,
    low = a - b - sqrt((a - a_low)^2 + (b_high - b)^2), high likewise with the other ends. The two
    are taken as independent, which is conservative here: they share the evaluation documents.
    A missing upper end of the trained count (censored) leaves the difference open above, one of the
    twin's leaves it open below: where both dictionaries are full nothing tells the two apart.
    Source: Zou and Donner 2008, Statistics in Medicine 27:1693, eq. 3 (MOVER).
    """
    a = row.per_dim
    b = row.twin.per_dim if row.twin is not None else Interval()
    if a.value is None or b.value is None:
        return None
    value = a.value - b.value
    low = high = None
    if a.low is not None and b.high is not None:
        low = value - math.hypot(a.value - a.low, b.high - b.value)
    if a.high is not None and b.low is not None:
        high = value + math.hypot(a.high - a.value, b.value - b.low)
    return Contrast(row, Interval(value, low, high), _verdict(low, high))


def _verdict(low: float | None, high: float | None) -> Verdict:
    if low is not None and low > 0:
        return Verdict.MORE
    if high is not None and high < 0:
        return Verdict.FEWER
    if low is None:
        return Verdict.UNKNOWN
    return Verdict.SAME
