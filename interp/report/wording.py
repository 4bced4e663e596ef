"""Numbers and lists as a reader sees them, in prose and in tables."""

import math
from collections.abc import Callable, Iterable, Sequence

from interp.report.interval import Interval
from interp.report.records import PackingRow

ABSENT = "–"
SUBLAYERS = {"hook_attn_out": "what attention adds", "hook_mlp_out": "what the MLP adds"}
"""Hook points that are not the residual stream, by the end of their names."""
CONTROLS = {
    "random_init": "untrained twin",
    "shuffled_tokens": "shuffled tokens",
    "matched_gaussian": "matched Gaussian",
}


def significant(value: float | None, digits: int = 3) -> str:
    """`value` to `digits` significant digits, never in exponent form; "–" for None.

    1.834 -> 1.83; 0.0834 -> 0.0834; 1834 -> 1,834 (whole parts are never rounded away).
    """
    if value is None or not math.isfinite(value):
        return ABSENT
    if value == 0:
        return "0"
    return fixed(value, decimals(value, digits))


def fixed(value: float, places: int) -> str:
    """`value` with `places` decimals, thousands marked, a true minus sign and no minus zero."""
    text = f"{value:,.{places}f}"
    if not any(digit in text for digit in "123456789"):
        return text.removeprefix("-")
    return text.replace("-", "−")


def whole(value: float | None) -> str:
    """12000 -> 12,000; "–" for None."""
    return ABSENT if value is None else f"{value:,.0f}"


def decimals(value: float, digits: int = 3) -> int:
    """Decimal places that show `value` to `digits` significant digits."""
    # The rounded value decides: 0.99996 to 3 digits is 1.00, not 1.000.
    rounded = float(f"{value:.{digits - 1}e}")
    if rounded == 0:
        return digits - 1
    return max(0, digits - 1 - math.floor(math.log10(abs(rounded))))


def with_interval(estimate: Interval, digits: int = 3, *, most: int = 12) -> str:
    """`1.83 [1.71, 1.95]`; an open upper end is `1.83 [1.71, …)`; without an interval, the value.

    One number of decimals throughout, at most `most`, so that the ends can be compared by eye.
    """
    if estimate.value is None:
        return ABSENT
    if estimate.low is None and estimate.high is None:
        return significant(estimate.value, digits)
    places = min(_places(estimate, digits), most)

    def part(value: float | None) -> str:
        return "…" if value is None else fixed(value, places)

    close = ")" if estimate.high is None else "]"
    return f"{part(estimate.value)} [{part(estimate.low)}, {part(estimate.high)}{close}"


def at_its_width(estimate: Interval, digits: int = 2) -> str:
    """`0.00 [−0.12, 0.56]`: decimals by the largest of the three; the value may be near zero."""
    known = [abs(v) for v in (estimate.value, estimate.low, estimate.high) if v is not None]
    if estimate.value is None or estimate.low is None or estimate.high is None or not max(known):
        return with_interval(estimate, digits)
    places = decimals(max(known), digits)
    value, low, high = (fixed(v, places) for v in (estimate.value, estimate.low, estimate.high))
    return f"{value} [{low}, {high}]"


def in_prose(estimate: Interval, digits: int = 2) -> str:
    """`1.8 (95% interval 1.7 to 2.0)`."""
    if estimate.value is None:
        return "unknown"
    places = _places(estimate, digits)
    value = fixed(estimate.value, places)
    if estimate.low is None and estimate.high is None:
        return f"{value} (no interval)"
    if estimate.high is None and estimate.low is not None:
        return f"{value} (95% interval from {fixed(estimate.low, places)}, no upper end)"
    if estimate.low is None and estimate.high is not None:
        return f"{value} (95% interval up to {fixed(estimate.high, places)}, no lower end)"
    low, high = fixed(estimate.low or 0, places), fixed(estimate.high or 0, places)
    return f"{value} (95% interval {low} to {high})"


def _places(estimate: Interval, digits: int) -> int:
    """Decimals by the value, or, where that is zero, by the larger end of its interval."""
    ends = [abs(end) for end in (estimate.low, estimate.high) if end is not None]
    leading = abs(estimate.value or 0) or max(ends, default=0)
    return decimals(leading, digits) if leading else digits - 1


def span(values: Sequence[float], show: Callable[[float], str] | None = None) -> str:
    """`1.5 to 2.9`, or one number if that is all there is; two significant digits by default."""
    low, high = (
        significant(end, 2) if show is None else show(end) for end in (min(values), max(values))
    )
    return low if low == high else f"{low} to {high}"


def listed(items: Sequence[object]) -> str:
    """`32, 48 and 64`."""
    words = [str(item) for item in items]
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def known_values(estimates: Iterable[Interval]) -> list[float]:
    """The values that are known."""
    return [estimate.value for estimate in estimates if estimate.value is not None]


def doubts(rows: Iterable[PackingRow]) -> str:
    """Why rows enter no fit: `not converged or FVU off target`; empty where all of them do."""
    found = sorted({row.doubt for row in rows if row.doubt is not None}, reverse=True)
    return " or ".join(found)


def hollow(rows: Sequence[PackingRow]) -> list[str]:
    """The part of a figure's key that says what is hollow; none where nothing is."""
    why = doubts(rows)
    return [f"hollow: {why}, enters no fit"] if why else []


def unequal_training(rows: Sequence[PackingRow]) -> list[str]:
    """The part of a figure's key that says which depths have longer trained dictionaries.

    Empty where all were trained on as many tokens, or where that is not known. Of several models
    the longest counts.
    """
    tokens: dict[float, float] = {}
    for row in rows:
        if row.layer_fraction is not None and row.tokens_per_latent and row.d_sae:
            most = tokens.get(row.layer_fraction, 0.0)
            tokens[row.layer_fraction] = max(most, row.tokens_per_latent * row.d_sae)
    if not tokens or max(tokens.values()) < 1.01 * min(tokens.values()):
        return []
    longer = [depth for depth in sorted(tokens) if tokens[depth] > 1.01 * min(tokens.values())]
    told = ", ".join(f"{tokens[depth] / 1e6:.1f}M at {depth:.0%}" for depth in longer)
    return [f"SAE tokens {told}, else {min(tokens.values()) / 1e6:.1f}M"]


def plural(n: int, noun: str) -> str:
    """`1 model`, `3 models`."""
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"


def verdict(flag: bool | None) -> str:
    """`yes`, `no`, or `–` where nothing was decided."""
    return ABSENT if flag is None else "yes" if flag else "no"


def percent(value: float | None) -> str:
    """0.034 -> 3.4%."""
    if value is None or not math.isfinite(value):
        return ABSENT
    return f"{100 * value:.1f}%"


def duration(seconds: float) -> str:
    """275 -> 4 min 35 s; 7,500 -> 2 h 5 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.1f} s" if whole < 10 else f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def size(n_bytes: float) -> str:
    """1,620,000,000 -> 1.62 GB (powers of ten)."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if n_bytes >= scale:
            return f"{significant(n_bytes / scale)} {unit}"
    return f"{n_bytes:.0f} bytes"
