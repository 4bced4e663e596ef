"""Dose and response: planted trends, planted best-in-the-middle, and the rate of false alarms."""

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats

from interp.dose_response import DoseResponse, corrected, dose_response

DOSES = np.array([0.1, -1.0, -0.3, 0.0, 0.3, 1.0])
BASE_FIRST = [True] + [False] * 5


def respond(
    values: Any, seeds: Any, *, lever: str = "rows", doses: Any = DOSES, **how: Any
) -> DoseResponse:
    """`seeds` are the other replicates; the base is the first of `values`."""
    return dose_response(
        lever, "packing", doses, values, BASE_FIRST, replicates=np.array([values[0], *seeds]),
        generator=torch.Generator().manual_seed(0), **how,
    )  # fmt: skip


def test_a_line_is_found_with_its_slope() -> None:
    found = respond(2 - 0.5 * DOSES, [2.0, 1.9])
    assert found.tau == pytest.approx(-1)
    assert found.p_trend == pytest.approx(2 / 720)
    assert found.slope == pytest.approx(-0.5)
    assert (found.n_models, found.n_doses, found.slope_per) == (6, 6, "unit")
    json.dumps(found.to_json(), allow_nan=False)


def test_amounts_are_told_in_doublings() -> None:
    doses = np.array([32.0, 4, 8, 16, 64, 2])
    found = dose_response(
        "tokens", "loss", doses, 5 - 0.2 * np.log2(doses), BASE_FIRST, replicates=np.ones(0),
        doubling=True, generator=torch.Generator(),
    )  # fmt: skip
    assert (found.slope, found.slope_per) == (pytest.approx(-0.2), "doubling")
    assert "seeds of the base recipe: 0" in str(found.reason)


def test_a_trend_that_could_not_show_decides_nothing() -> None:
    """Three models in perfect order have p 1/3: their silence is no evidence."""

    def grow(doses: Any, seeds: Any) -> DoseResponse:
        doses = np.array(doses)
        return dose_response(
            "tokens", "packing", doses, np.log2(doses), [d == 8 for d in doses], doubling=True,
            replicates=np.array(seeds), generator=torch.Generator().manual_seed(0),
        )  # fmt: skip

    few = grow([2.0, 4, 8], [3.0])
    assert few.tau == pytest.approx(1)
    assert few.p_trend is None
    assert "no trend of these doses can reach 0.05 (0.33 at best)" in str(few.reason)
    assert corrected([few])[0].moves is None
    spread = corrected([grow([2.0, 4, 8], [3.0, 3.01, 2.99])])[0]
    assert (spread.decided_by, spread.moves) == ("spread", True)
    assert grow([1.0, 2, 4, 8, 16], [3.0]).p_trend == pytest.approx(2 / 120)


def test_what_is_best_in_the_middle_shows_in_the_spread_alone() -> None:
    values = 2 + 3 * (DOSES - 0.1) ** 2
    found = respond(values, [2.02, 1.98])
    assert found.p_trend is not None
    assert found.p_trend > 0.2
    assert found.p_spread is not None
    assert found.p_spread < 0.01


def test_the_spread_is_an_analysis_of_variance() -> None:
    rng = np.random.default_rng(0)
    values, seeds = rng.normal(size=6), rng.normal(size=3)
    found = respond(values, seeds)
    groups = [[v] for v in values[1:]] + [[values[0], *seeds]]
    reference = stats.f_oneway(*groups)
    assert found.spread_over_seeds == pytest.approx(reference.statistic**0.5)
    assert found.p_spread == pytest.approx(reference.pvalue)


def test_what_is_not_defined_says_why() -> None:
    flat = respond(np.full(6, 2.0), [2.0, 2.0])
    assert (flat.tau, flat.p_trend, flat.p_spread) == (None, None, None)
    assert "same in all" in str(flat.reason)
    assert "gave the same" in str(flat.reason)
    two = dose_response(
        "projects", "loss", np.array([1.0, 2]), np.array([1.0, 2]), [True, False],
        replicates=np.array([1.0, 1.2]), generator=torch.Generator(),
    )  # fmt: skip
    assert "values of the lever: 2" in str(two.reason)
    assert two.p_spread is not None
    none = dose_response(
        "projects", "loss", np.ones(1), np.ones(1), [True], replicates=np.array([1.0, 1.2]),
        generator=torch.Generator(),
    )  # fmt: skip
    assert "no model" in str(none.reason)
    assert corrected([none])[0].moves is None


def test_holm_runs_over_the_levers_of_one_outcome() -> None:
    moved, still = respond(2 - 0.5 * DOSES, [2.0, 1.95]), respond(
        np.array([2.0, 2.1, 1.9, 2.05, 2.0, 1.95]), [2.0, 1.95], lever="matrices"
    )  # fmt: skip
    both = corrected([moved, still])
    # A signed lever: the spread decides, though the trend is perfect.
    assert [r.decided_by for r in both] == ["spread", "spread"]
    assert both[0].p_holm == pytest.approx(2 * (moved.p_spread or 0))
    assert corrected([moved])[0].p_holm == moved.p_spread
    assert [r.moves for r in both] == [(both[0].p_holm or 1) <= 0.05, False]


def test_an_amount_is_decided_by_its_trend_and_a_signed_lever_by_its_spread() -> None:
    values = 2 - 0.5 * DOSES
    signed = respond(values, [2.0, 1.9])
    amount = respond(values, [2.0, 1.9], lever="tokens", doses=2.0**DOSES, doubling=True)
    found = corrected([signed, amount])
    assert [r.decided_by for r in found] == ["spread", "trend"]
    assert found[1].p_trend == pytest.approx(2 / 720)
    # Holm over what decides, whichever it is.
    assert found[1].p_holm == pytest.approx(2 * 2 / 720)
    # Where one cannot be tested the other stands in.
    [alone] = corrected([respond(values, [])])
    assert (alone.decided_by, alone.p_holm) == ("trend", alone.p_trend)
    flat = respond(np.full(6, 2.0), [2.0, 2.0], lever="tokens", doubling=True, doses=2.0**DOSES)
    assert corrected([flat])[0].decided_by is None


@pytest.mark.parametrize("doubling", [False, True])
def test_what_five_seeds_can_see(doubling: bool) -> None:
    """A lever whose furthest value shifts the outcome by 10 seeds' deviations moves it, beside
    three that do nothing, in nine draws of ten (200: 2 standard errors 4 points).

    Signed decay has five values beside the base's, as in the arm, and amounts three.
    """
    rng, generator = np.random.default_rng(0), torch.Generator().manual_seed(0)
    others = np.array([-2.0, -1, 1]) if doubling else DOSES[1:]
    base = 0.0 if doubling else DOSES[0]
    doses = np.concatenate([np.full(5, base), others])
    shift = 10 * (doses - base) / np.abs(doses - base).max()
    moved = 0
    for _ in range(200):
        seeds = rng.normal(size=5)
        found = [
            dose_response(
                lever, "packing", 2.0**doses if doubling else doses,
                np.concatenate([seeds, rng.normal(size=len(others))]) + planted * shift,
                [True] * 5 + [False] * len(others), replicates=seeds, doubling=doubling,
                generator=generator,
            )
            for lever, planted in (("one", 1), ("two", 0), ("three", 0), ("four", 0))
        ]  # fmt: skip
        moved += bool(corrected(found)[0].moves)
    assert moved / 200 > 0.86


@pytest.mark.slow
def test_false_alarms_of_one_lever_over_ten_thousand_draws() -> None:
    """Each way to decide has its nominal rate, from both sides (3 standard errors .65 points): the
    spread 5%, the trend what six values allow, 12 of 720 orders."""
    rng = np.random.default_rng(1)
    spread = trend = 0
    for _ in range(10_000):
        found = respond(rng.normal(size=6), rng.normal(size=2))
        spread += bool(corrected([found])[0].moves)
        trend += bool(corrected([replace(found, slope_per="doubling")])[0].moves)
    assert spread / 10_000 == pytest.approx(0.05, abs=0.0066)
    assert trend / 10_000 == pytest.approx(12 / 720, abs=0.0066)


@pytest.mark.parametrize(
    "draw",
    [
        np.random.Generator.normal,
        pytest.param(np.random.Generator.exponential, marks=pytest.mark.slow),
    ],
)
def test_false_alarms_over_all_levers_of_an_arm(draw: Callable[..., np.ndarray]) -> None:
    """Four levers share the base and three seeds: an alarm in 5% of arms (2,000: 3 se 1.5 points).

    Once as they are in the arm, two signed and two amounts, and once all signed: the trend is exact
    for any scatter; the spread assumes normal, and one-sided tails cost it: 7% (and 32% with Cauchy
    scatter).
    """
    rng = np.random.default_rng(0)
    spread = mixed = 0
    for _ in range(2000):
        base, seeds = draw(rng, size=1), draw(rng, size=2)
        found = [respond(np.concatenate([base, draw(rng, size=5)]), seeds, lever=name)
                 for name in ("rows", "matrices", "tokens", "projects")]  # fmt: skip
        spread += any(r.moves for r in corrected(found))
        amounts = [replace(r, slope_per="doubling") for r in found[2:]]
        mixed += any(r.moves for r in corrected([*found[:2], *amounts]))
    assert mixed / 2000 <= (0.065 if draw is np.random.Generator.normal else 0.08)
    assert spread / 2000 <= (0.065 if draw is np.random.Generator.normal else 0.09)
