"""A number with its 95% interval, as the report knows it."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Interval:
    """A number with its 95% interval; any of the three may be unknown."""

    value: float | None = None
    low: float | None = None
    high: float | None = None

    def over(self, d: float | None) -> "Interval":
        """The same per dimension: every part divided by `d`."""
        if not d:
            return Interval()
        parts = (self.value, self.low, self.high)
        return Interval(*(None if part is None else part / d for part in parts))


UNKNOWN = Interval()
"""Of which nothing is known."""
