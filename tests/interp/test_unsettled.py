"""Counts that had not settled: let in beside the declared test, and never into it."""

from __future__ import annotations

from typing import Any

import arm_run
import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import spearmanr

from interp.config import StudyConfig
from interp.report.answering import answer
from interp.report.objections import objections
from interp.report.reading import read_summary
from interp.spots import HALF
from interp.summary import summarise, tidy
from interp.unsettled import could_settle, with_unsettled

NAMES = arm_run.names()
SETTLED, FULL, OFF = NAMES[2], NAMES[5], NAMES[6]
"""One of each; the others lack nothing but training."""


def study(half: dict[str, float], **flags: dict[str, float]) -> dict[str, Any]:
    """The planted arm; half: share of each count that half of the training gave."""
    known = arm_run.facts(arm_run.loss_follows)
    made = arm_run.rows(known, arm_run.decay_packs, **flags)
    for row in [r for r in made if r["quantity"] == "reproducible" and r["control"] == "trained"]:
        earlier = row["value"] * half.get(row["model"], 0.9)
        made.append(row | {"role": HALF, "value": earlier})
    config = StudyConfig(
        preset="referee", arm="constant_width", models=tuple(NAMES), d_sae_per_d_model=(8,)
    )
    found = summarise(tidy(pd.DataFrame(made), known), known, config)
    return found | {"command": "interp study referee", "wall_time_seconds": 1.0}


@pytest.fixture(scope="module")
def unsettled() -> dict[str, Any]:
    return study(
        {NAMES[7]: 0.8, NAMES[8]: 0.98},
        converged=dict.fromkeys(NAMES, 0.0) | {SETTLED: 1.0},
        censored={FULL: 1.0},
        fvu_matched={OFF: 0.0},
    )


def test_what_lacks_nothing_but_training_is_let_in(unsettled: dict[str, Any]) -> None:
    found = unsettled["arm"]["unsettled"]
    counts = {
        r["model"]: r
        for r in unsettled["packing"]
        if r["estimator"] == "reproducible" and r["model"] not in (FULL, OFF)
    }
    assert (found["n_models"], found["n_settled"]) == (len(counts), 1) == (17, 1)
    losses = {m["name"]: m["loss_nats_per_token"] for m in unsettled["models"]}
    for key, name in (("value", "spearman"), ("value_half", "spearman_half")):
        expected = spearmanr([r[key] for r in counts.values()], [losses[m] for m in counts])
        assert found[name] == pytest.approx(expected.statistic), name
    kept = spearmanr(*([r[key] for r in counts.values()] for key in ("value", "value_half")))
    assert found["order_kept"] == pytest.approx(kept.statistic) != 1
    assert found["growth_low"] == pytest.approx(1 / 0.98 - 1)
    assert found["growth_high"] == pytest.approx(1 / 0.8 - 1)
    assert found["p"] < 0.05
    moved = {r["lever"]: r["moves"] for r in found["dose_response"]}
    assert moved["row_decay"] is moved["tokens"] is True


def test_the_declared_test_does_not_hear_of_it(unsettled: dict[str, Any]) -> None:
    [entry] = unsettled["correlation"]
    assert entry["n_models"] == unsettled["arm"]["n_usable"] == 1
    assert entry["spearman"] is None
    assert all(
        r["moves"] is None for r in unsettled["arm"]["dose_response"] if r["outcome"] == "packing"
    )


def test_where_all_have_settled_there_is_nothing_to_let_in() -> None:
    """And where what had not settled lacks more than training."""
    assert study({})["arm"]["unsettled"] is None
    beside = study({}, converged={FULL: 0.0}, censored={FULL: 1.0})
    assert beside["arm"]["unsettled"] is None
    assert beside["arm"]["n_usable"] == len(NAMES) - 1


def test_a_report_says_that_it_is_not_the_declared_test(unsettled: dict[str, Any]) -> None:
    found = read_summary(unsettled)
    told = answer(found)
    assert told.first.startswith("Not identified")
    [sentence] = [s for s in told.more if s.startswith("Not the test that was declared")]
    assert "with the 16 counts let in" in sentence
    assert "(17 models; from half of it to all of it they changed by 2.0% to 25.0%" in sentence
    assert "Packing then moves with row decay and tokens, and not beyond chance" in sentence
    replies = dict(objections(found))
    assert (
        "not the test that was declared"
        in replies["The dictionaries were not trained long enough."]
    )
    settled = read_summary(study({}))
    assert not any("declared" in s for s in answer(settled).more)


def test_counts_of_none_have_no_growth() -> None:
    rows = [
        {"value": v, "value_half": h, "converged": False}
        for v, h in ((0, 0), (4, 0), (5, 4), (9, 6))
    ]
    made = with_unsettled(
        rows, [3.0, 2.0, 2.5, 1.0], ["a", "a", "b", "b"], generator=torch.Generator().manual_seed(0)
    )
    assert (made["growth_low"], made["growth_high"]) == (pytest.approx(0.25), pytest.approx(0.5))
    none = with_unsettled(rows[:1], [3.0], ["a"], generator=torch.Generator().manual_seed(0))
    assert none["spearman"] is none["growth_low"] is none["order_kept"] is None
    assert none["reason"].count("three") >= 3
    assert not any(isinstance(v, float) and np.isnan(v) for v in none.values())


@pytest.mark.parametrize(
    "lack", [{"value": None}, {"value_half": None}, {"fvu_matched": False}, {"censored": True}]
)
def test_a_count_that_lacks_more_than_training_stays_out(lack: dict[str, Any]) -> None:
    count = {"value": 3.0, "value_half": 2.0, "fvu_matched": True, "censored": False}
    assert could_settle(count)
    assert not could_settle(count | lack)
