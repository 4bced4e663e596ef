"""Numbers as words: significant digits, intervals, units."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from interp.report.interval import Interval
from interp.report.wording import (
    at_its_width,
    duration,
    fixed,
    in_prose,
    listed,
    percent,
    significant,
    size,
    span,
    verdict,
    whole,
    with_interval,
)


@pytest.mark.parametrize(
    ("value", "digits", "text"),
    [
        (1.834, 3, "1.83"),
        (0.0834, 3, "0.0834"),
        (0.0834, 2, "0.083"),
        (0.99996, 3, "1.00"),
        (9.996, 3, "10.0"),
        (1834.4, 3, "1,834"),
        (-1.5, 2, "−1.5"),
        (0, 3, "0"),
        (None, 3, "–"),
        (float("nan"), 3, "–"),
        (float("inf"), 3, "–"),
    ],
)
def test_significant_by_hand(value: float | None, digits: int, text: str) -> None:
    assert significant(value, digits) == text


@given(st.floats(1e-6, 1e9), st.integers(1, 5))
def test_significant_is_the_rounded_number_and_never_an_exponent(x: float, digits: int) -> None:
    text = significant(x, digits)
    assert "e" not in text
    # Half a unit in the last of `digits` places; numbers with more whole digits keep them all.
    assert float(text.replace(",", "")) == pytest.approx(x, rel=0.51 * 10 ** (1 - digits), abs=0.51)


def test_a_rounded_zero_has_no_minus_sign() -> None:
    assert fixed(-0.001, 2) == "0.00"


@pytest.mark.parametrize(
    ("estimate", "text"),
    [
        (Interval(1.834, 1.7, 2.0), "1.83 [1.70, 2.00]"),
        (Interval(1.834, 1.7, None), "1.83 [1.70, …)"),
        (Interval(1.834, None, None), "1.83"),
        (Interval(0, -0.5, 0.5), "0.000 [−0.500, 0.500]"),
        (Interval(0, 0, 0.12), "0.000 [0.000, 0.120]"),
        (Interval(0, 0, 0), "0.00 [0.00, 0.00]"),
        (Interval(None, 1, 2), "–"),
    ],
)
def test_with_interval_by_hand(estimate: Interval, text: str) -> None:
    assert with_interval(estimate) == text


def test_a_difference_of_nothing_has_no_more_decimals_than_mean_something() -> None:
    nothing = Interval(0, -0.00433, 0.00433)
    assert with_interval(nothing) == "0.00000 [−0.00433, 0.00433]"
    assert with_interval(nothing, most=3) == "0.000 [−0.004, 0.004]"
    assert with_interval(Interval(1.834, 1.7, 2.0), most=3) == "1.83 [1.70, 2.00]"


@pytest.mark.parametrize(
    ("estimate", "text"),
    [
        (Interval(0.00094, -0.1178, 0.559), "0.00 [−0.12, 0.56]"),
        (Interval(-0.447, -0.485, -0.31), "−0.45 [−0.48, −0.31]"),
        (Interval(0.2), "0.20"),
        (Interval(0.0, 0.0, 0.0), "0.0 [0.0, 0.0]"),
        (Interval(), "–"),
    ],
)
def test_at_its_width_by_hand(estimate: Interval, text: str) -> None:
    assert at_its_width(estimate) == text


@pytest.mark.parametrize(
    ("estimate", "text"),
    [
        (Interval(1.834, 1.7, 2.0), "1.8 (95% interval 1.7 to 2.0)"),
        (Interval(1.834, 1.7, None), "1.8 (95% interval from 1.7, no upper end)"),
        (Interval(1.834, None, 2.0), "1.8 (95% interval up to 2.0, no lower end)"),
        (Interval(1.834), "1.8 (no interval)"),
        (Interval(), "unknown"),
    ],
)
def test_in_prose_by_hand(estimate: Interval, text: str) -> None:
    assert in_prose(estimate) == text


def test_lists_spans_and_units_by_hand() -> None:
    assert listed([32, 48, 64]) == "32, 48 and 64"
    assert listed(["one"]) == "one"
    assert span([2.9, 1.5]) == "1.5 to 2.9"
    assert span([2.0, 2.0]) == "2.0"
    assert span([32, 256], whole) == "32 to 256"
    assert whole(12_000) == "12,000"
    assert percent(0.034) == "3.4%"
    assert [verdict(flag) for flag in (True, False, None)] == ["yes", "no", "–"]
    assert [duration(s) for s in (4.26, 42, 275, 7500)] == [
        "4.3 s",
        "42 s",
        "4 min 35 s",
        "2 h 5 min",
    ]
    assert [size(b) for b in (12, 1_500, 2_000_000, 1_620_000_000)] == [
        "12 bytes",
        "1.50 kB",
        "2.00 MB",
        "1.62 GB",
    ]
