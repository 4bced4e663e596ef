"""N from several dictionary sizes: by its curve, by a level, and refused."""

import json
import math

import numpy as np
import pytest

from interp.estimate import InsufficientData
from interp.saturation import saturation


def curve(D, n, d0, b):
    return n * -np.expm1(-((D / d0) ** b))


SIZES = np.array([64.0, 128, 256, 512, 1024])


def test_saturation_finds_the_ceiling():
    counts = curve(SIZES, 300, 200, 1.2)
    found = saturation(SIZES, counts, 0.02 * counts, d_in=32, n_seeds=5, k=4)
    assert found.identified
    assert found.value == pytest.approx(300, rel=0.01)
    assert found.ci_low < 300 < found.ci_high
    assert found.per_dim == pytest.approx(found.value / 32)
    wider = saturation(SIZES, counts, 0.04 * counts, d_in=32)
    assert wider.ci_high is None or wider.ci_high - wider.ci_low > found.ci_high - found.ci_low
    doubled = saturation(SIZES * 2, counts, 0.02 * counts, d_in=32)
    assert doubled.value == pytest.approx(found.value, rel=1e-3)


def test_saturation_interval_covers():
    """30 noisy replicates at 2% error; 95% nominal, so at least 25 (p < .003 of fewer)."""
    rng = np.random.default_rng(0)
    truth = curve(SIZES, 300, 150, 1.5)
    covered = 0
    for _ in range(30):
        counts = truth * np.exp(0.02 * rng.normal(size=5))
        found = saturation(SIZES, counts, 0.02 * truth, d_in=32)
        covered += found.ci_low <= 300 and (found.ci_high is None or found.ci_high >= 300)
    assert covered >= 25


def test_no_ceiling_is_censored():
    for counts in (0.9 * SIZES, SIZES**0.8):
        found = saturation(SIZES, counts, 0.02 * counts, d_in=32)
        assert not found.identified
        assert found.censored
        assert found.value == counts[-1]
        assert found.ci_high is None
        assert found.ci_low == pytest.approx(counts[-1] * (1 - 1.96 * 0.02), rel=1e-3)
        assert "censored at D=1024" in found.reason
        json.dumps(found.to_json(), allow_nan=False)


def test_three_sizes_are_refused_with_the_bound():
    counts = curve(SIZES[:3], 300, 200, 1.2)
    with pytest.raises(InsufficientData, match="3 dictionary sizes") as refusal:
        saturation(SIZES[:3], counts, 0.02 * counts, d_in=32)
    assert refusal.value.partial.value == counts[-1]
    assert refusal.value.partial.censored
    with pytest.raises(ValueError, match="one finite count"):
        saturation(SIZES, counts, counts, d_in=32)


def test_counts_that_stopped_growing_need_no_curve() -> None:
    """Two sizes are enough; the error is that of one count and the spread between them."""
    found = saturation(
        np.array([384.0, 512.0]), np.array([261.0, 255]), np.array([2.0, 1]), d_in=32
    )
    assert found.identified
    assert not found.censored
    assert (found.value, found.d_sae, found.per_dim) == (258, 512, 258 / 32)
    half = 1.959964 * math.hypot(math.sqrt(2.5), math.sqrt(18))
    assert (found.ci_low, found.ci_high) == pytest.approx((258 - half, 258 + half))
    # 1% more in a doubling, give or take 1.4%: as much may come with the next one.
    flat = saturation(np.array([128.0, 256]), np.array([100.0, 101]), np.array([1.0, 1]), d_in=32)
    half = 1.959964 * math.hypot(1, math.sqrt(0.5))
    assert flat.ci_low == pytest.approx(100.5 - half)
    assert flat.ci_high == pytest.approx(100.5 + half + 1 + 1.959964 * math.sqrt(2))
    # What came before, in whatever order: a smaller dictionary was full.
    longer = saturation(
        np.array([512.0, 64, 384]), np.array([255.0, 60, 261]), np.array([1.0, 2, 2]), d_in=32
    )
    assert (longer.value, longer.ci_low) == (found.value, found.ci_low)


@pytest.mark.parametrize(
    ("sizes", "counts", "errors", "d_in"),
    [
        ((384, 512), (240, 248), 1.0, 32),  # 8% more per doubling
        ((384, 512), (258, 258), 12.0, 32),  # level, but 10% more could not have been seen
        ((384, 512), (380, 384), 1.0, 32),  # no room at the first
        ((192, 384, 512), (150, 251, 238), 1.0, 32),  # falling
        ((128, 256, 512), (54.1, 56.2, 58.5), 0.3, 32),  # 4% more every time, beyond chance
        ((1024, 2048, 4096), (250, 270, 290), 2.0, 512),  # the same within the slack
        ((192, 256, 384), (120, 60, 61), 1.5, 32),  # a smaller dictionary found more
        ((64, 128, 256), (40, 40, 0), 0.5, 32),  # the largest found nothing
        ((256, 256), (60, 60), 0.5, 32),  # one size
    ],
)
def test_counts_that_may_still_move_are_at_no_level(
    sizes: tuple[int, ...], counts: tuple[float, ...], errors: float, d_in: int
) -> None:
    D, S = np.array(sizes, dtype=float), np.array(counts, dtype=float)
    with pytest.raises(InsufficientData, match="saturation needs 4"):
        saturation(D, S, np.full(len(S), errors), d_in=d_in)


@pytest.mark.parametrize(("power", "most"), [(0.1, 0.2), (0.2, 0.01)])
def test_slow_growth_is_rarely_taken_for_a_level(power: float, most: float) -> None:
    """Counts ~ D^power have no ceiling: 7% and 15% more per doubling, errors of 2%, 300 draws."""
    D, rng = 32.0 * np.array([1, 2, 3, 4, 6, 8]), np.random.default_rng(0)
    truth = 50 * (D / 32) ** power
    found = 0
    for _ in range(300):
        counts = truth * np.exp(0.02 * rng.normal(size=6))
        try:  # without the smallest, so that a curve is refused and a level is all there is
            found += saturation(D[-3:], counts[-3:], 0.02 * truth[-3:], d_in=32).identified
        except InsufficientData:
            continue
    assert found / 300 < most


def test_levels_cover() -> None:
    """200 draws of counts about 100 at three sizes, errors of 1.5%, which is less than half a
    slack: nearly all are at a level, and 95% of the intervals cover, less 3 standard errors."""
    rng = np.random.default_rng(1)
    D = np.array([192.0, 256, 384])
    known, covered = 0, 0
    for _ in range(200):
        try:
            one = saturation(D, 100 * np.exp(0.015 * rng.normal(size=3)), np.full(3, 1.5), d_in=32)
        except InsufficientData:
            continue
        known += 1
        covered += one.ci_low <= 100 <= one.ci_high
    assert known > 130
    assert covered / known > 0.9


def test_counts_at_the_ceiling_identify_it() -> None:
    """They say nothing of the shape, which may then be anything; a slow rise stays refused."""
    D = np.array([64.0, 96.0, 128.0, 192.0, 256.0])
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(60):
        flat = np.round(63 + 0.6 * rng.standard_normal(5))
        found = saturation(D, flat, np.full(5, 0.6), d_in=32)
        assert found.identified, found.reason
        covered += found.ci_low <= 63 <= found.ci_high
    assert covered >= 54, "95% intervals"
    slow = 100 * (1 - np.exp(-((D / 256) ** 0.2) * 1.2))
    assert not saturation(D, slow, np.full(5, 0.3), d_in=32).identified
