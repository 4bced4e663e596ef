"""Numbers and intervals out of JSON, whichever way they were written."""

import math
from collections.abc import Mapping
from typing import Any

from interp.report.interval import Interval


def interval(record: Mapping[str, Any], key: str | None = None) -> Interval:
    """An interval however it was written.

    `{"value": 1, "ci_low": 0, "ci_high": 2}`, the same nested under `key`, or flat as
    `{key: 1, f"{key}_ci_low": 0, f"{key}_ci_high": 2}`.
    """
    if key is None:
        return Interval(*(number(record.get(part)) for part in ("value", "ci_low", "ci_high")))
    if isinstance(record.get(key), Mapping):
        return interval(record[key])
    return Interval(*(number(record.get(key + part)) for part in ("", "_ci_low", "_ci_high")))


def number(value: Any) -> float | None:
    """A finite float, or None for null, text, NaN and infinity."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if math.isfinite(value) else None


def whole_number(value: Any) -> int | None:
    """The same, rounded."""
    exact = number(value)
    return None if exact is None else round(exact)
