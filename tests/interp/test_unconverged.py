"""Unconverged counts: let in beside the declared test, and never into it."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import arm_run
import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import spearmanr

from interp.config import StudyConfig
from interp.correlate import spearman_within
from interp.levers import block
from interp.report.answering import answer
from interp.report.arm_records import Response
from interp.report.interval import Interval
from interp.report.objections import objections
from interp.report.reading import read_summary
from interp.report.unconverged import unconverged_sentences
from interp.spots import HALF
from interp.summary import summarise, tidy
from interp.unconverged import drift, lacks_only_training, why_left_out

NAMES = arm_run.names()
CONVERGED, FULL, OFF = NAMES[2], NAMES[5], NAMES[6]
"""One of each; the others lack nothing but training."""
LITTLE, MUCH = NAMES[8], NAMES[7]
OBJECTION = "The dictionaries were not trained long enough."


def study(half: dict[str, float], known: Any = None, **flags: dict[str, float]) -> dict[str, Any]:
    """The planted arm; half: share of each count that half of the training gave."""
    known = known or arm_run.facts(arm_run.loss_follows)
    made = arm_run.rows(known, arm_run.decay_packs, **flags)
    for row in [r for r in made if r["quantity"] == "reproducible" and r["control"] == "trained"]:
        made.append(row | {"role": HALF, "value": row["value"] * half.get(row["model"], 0.9)})
    config = StudyConfig(
        preset="referee", arm="constant_width", models=tuple(NAMES), d_sae_per_d_model=(8,)
    )
    found = summarise(tidy(pd.DataFrame(made), known), known, config)
    return found | {"command": "interp study referee", "wall_time_seconds": 1.0}


@pytest.fixture(scope="module")
def unconverged() -> dict[str, Any]:
    return study(
        {MUCH: 0.8, LITTLE: 0.98, CONVERGED: 0.99},
        converged=dict.fromkeys(NAMES, 0.0) | {CONVERGED: 1.0},
        censored={FULL: 1.0},
        fvu_matched={OFF: 0.0},
    )


def let_in(data: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {
        r["model"]: r
        for r in data["packing"]
        if r["estimator"] == "reproducible" and r["model"] not in (FULL, OFF)
    }


def test_what_lacks_nothing_but_training_is_let_in(unconverged: dict[str, Any]) -> None:
    json.dumps(unconverged, allow_nan=False)
    found = unconverged["arm"]["unconverged"]
    counts = let_in(unconverged)
    assert (found["n_models"], found["n_unconverged"]) == (len(counts), 16) == (17, 16)
    assert {r["model"]: r["reason"] for r in found["left_out"]} == {
        FULL: "censored at the dictionary size",
        OFF: "FVU not at the target",
    }
    facts = {m["name"]: m for m in unconverged["models"]}
    losses = np.array([facts[m]["loss_nats_per_token"] for m in counts])
    after, before = (np.array([r[key] for r in counts.values()]) for key in ("value", "value_half"))
    for name, one, other in (
        ("spearman", after, losses),
        ("spearman_half", before, losses),
        ("order_kept", before, after),
        ("growth_with_loss", after / before - 1, losses),
    ):
        assert found[name] == pytest.approx(spearmanr(one, other).statistic), name
    assert found["order_kept"] < 1
    within = spearman_within(
        after, losses, [block(facts[m]) for m in counts], generator=torch.Generator().manual_seed(1)
    )
    assert found["within_levers"] == pytest.approx(within.value)
    assert found["p_within_levers"] == pytest.approx(within.p, abs=0.01)
    assert found["ci_low"] < found["spearman"] < found["ci_high"]
    # Of those that are unconverged: the converged one grew least.
    assert found["growth_low"] == pytest.approx(1 / 0.98 - 1)
    assert found["growth_high"] == pytest.approx(1 / 0.8 - 1)
    kept = [m for m in counts if block(facts[m]) != "tokens"]
    without = spearmanr([counts[m]["value"] for m in kept],
                        [facts[m]["loss_nats_per_token"] for m in kept])  # fmt: skip
    assert found["without_block"]["tokens"] == pytest.approx(without.statistic)
    assert (found["equal_k"]["k"], found["equal_k"]["n_models"]) == (8, 17)
    for key in ("dose_response", "dose_response_half"):
        moved = {r["lever"]: r["moves"] for r in found[key]}
        assert moved["row_decay"] is moved["tokens"] is True, key


def test_nothing_else_hears_of_it(unconverged: dict[str, Any]) -> None:
    [entry] = unconverged["correlation"]
    assert entry["n_models"] == unconverged["arm"]["n_usable"] == 1
    assert entry["spearman"] is None
    assert all(
        r["moves"] is None for r in unconverged["arm"]["dose_response"] if r["outcome"] == "packing"
    )
    # And its draws are its own: one unconverged count more or less in it leaves all others' alone.
    lacking: dict[str, Any] = {"converged": {LITTLE: 0.0}}
    ones = study({}, **lacking), study({}, **lacking, fvu_matched={LITTLE: 0.0})
    assert ones[0]["arm"]["unconverged"] is not None
    assert ones[1]["arm"]["unconverged"] is None
    assert ones[0]["correlation"] == ones[1]["correlation"]
    for key in ("dose_response", "mediation", "leave_one_out", "holm", "equal_k"):
        assert ones[0]["arm"][key] == ones[1]["arm"][key], key


def test_where_nothing_could_be_let_in_nothing_is_said() -> None:
    assert study({})["arm"]["unconverged"] is None
    beside = study({}, converged={FULL: 0.0}, censored={FULL: 1.0})
    assert beside["arm"]["unconverged"] is None
    assert beside["arm"]["n_usable"] == len(NAMES) - 1
    mixed = arm_run.facts(arm_run.loss_follows)
    mixed[3]["d_model"] = 96
    assert study({}, mixed, converged=dict.fromkeys(NAMES, 0.0))["arm"]["unconverged"] is None


def test_a_report_says_that_it_decides_nothing(unconverged: dict[str, Any]) -> None:
    found = read_summary(unconverged)
    told = answer(found)
    assert told.first.startswith("Not identified")
    [paragraph] = [s for s in told.more if s.startswith("With unconverged counts let in")]
    record = unconverged["arm"]["unconverged"]
    for said in (
        "which was not declared and decides nothing: 17 models, 16 of them unconverged (left out: ",
        "FVU not at the target",
        "these changed by 2.0% to 25.0%",
        f"is −{-record['spearman_half']:.2f} after half of the training, and −",
        f"−{-record['within_levers']:.2f} within levers",
        "Packing moves with row decay and tokens (rising), and not beyond chance with",
    ):
        assert said in paragraph, (said, paragraph)
    assert (
        "With unconverged counts let in (17 models, 2 left out)"
        in dict(objections(found))[OBJECTION]
    )
    converged = read_summary(study({}))
    assert not any("unconverged counts" in s for s in answer(converged).more)
    assert "unconverged counts" not in dict(objections(converged))[OBJECTION]


def test_the_paragraph_follows_what_was_found(unconverged: dict[str, Any]) -> None:
    arm = read_summary(unconverged).arm
    assert arm is not None
    assert arm.unconverged is not None
    found = arm.unconverged
    # So few models show nothing, whatever their order.
    assert unconverged_sentences(replace(found, n_models=4), {}) == ""
    assert unconverged_sentences(None, {}) == ""
    falling = unconverged_sentences(
        replace(found, growth=(-0.143, 0.02), growth_with_loss=-0.5), {}
    )
    assert "changed by −14.3% to 2.0%, growing less where the loss is high" in falling
    assert "growing" not in unconverged_sentences(replace(found, growth_with_loss=0.01), {})
    shown = unconverged_sentences(replace(found, p=0.001, detectable_rho=0.6), {})
    assert "as many independent models" not in shown
    assert "A correlation of 0.60 or more" in unconverged_sentences(
        replace(found, p=0.2, detectable_rho=0.6), {}
    )
    late = replace(found, responses_half=tuple(replace(r, moves=False) for r in found.responses))
    assert "Packing moves after all of the training, and not after half of it, with row decay" in (
        unconverged_sentences(late, {})
    )
    still: tuple[Response, ...] = tuple(replace(r, moves=False) for r in found.responses)
    assert "Packing does not move beyond chance with" in unconverged_sentences(
        replace(found, responses=still), {}
    )
    bare = replace(
        found, growth=None, spearman_half=None, without_block={}, within_levers=None, equal_k=None,
        equal_strictness=None, responses=(), left_out={}, spearman=Interval(0.1), p=0.8,
        detectable_rho=None,
    )  # fmt: skip
    assert unconverged_sentences(bare, {}) == (
        "With unconverged counts let in, which was not declared and decides nothing: 17 models, 16 "
        "of them unconverged. Spearman of packing and loss is 0.10 (no interval), p 0.80."
    )


def test_counts_of_none_and_without_a_half_have_no_growth() -> None:
    rows: list[dict[str, Any]] = [
        {"value": v, "value_half": h, "converged": c}
        for v, h, c in ((0, 0, False), (4, 0, False), (5, 4, False), (9, 6, False), (9, None, True),
                        (10, 10, True))
    ]  # fmt: skip
    losses = [3.0, 2.0, 2.5, 1.0, 0.5, 0.1]

    def found(some: list[dict[str, Any]], at: list[float]) -> dict[str, Any]:
        return drift(some, at, generator=torch.Generator().manual_seed(0))

    made = found(rows, losses)
    assert (made["growth_low"], made["growth_high"]) == (pytest.approx(0.25), pytest.approx(0.5))
    # Of three: .25, .5 and 0, at losses 2.5, 1.0 and 0.1.
    assert made["growth_with_loss"] == pytest.approx(spearmanr([0.25, 0.5, 0], [2.5, 1, 0.1])[0])
    alike = found([{"value": 5, "value_half": 4, "converged": False}] * 6, losses)
    none = found(rows[:1], losses[:1])
    for one in (made, alike, none):
        assert not any(isinstance(v, float) and not math.isfinite(v) for v in one.values())
    assert alike["growth_with_loss"] is alike["order_kept"] is None
    assert none["growth_low"] is none["spearman_half"] is None


@pytest.mark.parametrize(
    ("lack", "why"),
    [
        ({"value": None}, "no count"),
        ({"value_half": None}, "no interval, or no count after half of the training"),
        ({"ci_high": None}, "no interval, or no count after half of the training"),
        ({"fvu_matched": False}, "FVU not at the target"),
        ({"censored": True}, "censored at the dictionary size"),
    ],
)
def test_a_count_that_lacks_more_than_training_stays_out(lack: dict[str, Any], why: str) -> None:
    count = {"value": 3.0, "value_half": 2.0, "ci_low": 2.5, "ci_high": 3.5, "fvu_matched": True,
             "censored": False, "converged": False}  # fmt: skip
    assert lacks_only_training(count)
    assert not lacks_only_training(count | lack)
    assert why_left_out(count | lack) == why
    assert why_left_out(None) == "no count"
    # Whether it converged may never have been asked.
    assert not lacks_only_training(count | {"converged": None})
    assert not lacks_only_training(count | {"converged": True})
