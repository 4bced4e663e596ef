"""Unconverged counts: let in beside the declared test, and never into it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
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
from interp.report import write_report
from interp.report.answering import answer
from interp.report.arm_records import RankTest
from interp.report.interval import Interval
from interp.report.objections import objections
from interp.report.reading import read_summary
from interp.report.unconverged import unconverged_sentences, unconverged_tables
from interp.spots import HALF
from interp.summary import summarise, tidy
from interp.unconverged import growth, lacks_only_training, why_left_out

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
    tests = {t["of"]: t for t in found["tests"]}
    kept = {lever: [m for m in counts if block(facts[m]) != lever] for lever in ("tokens", "base")}
    for of, one, other in (
        ("all", after, losses),
        ("half", before, losses),
        *(
            (
                f"without {lever}",
                [counts[m]["value"] for m in models],
                [facts[m]["loss_nats_per_token"] for m in models],
            )
            for lever, models in kept.items()
        ),
    ):
        assert tests[of]["spearman"] == pytest.approx(spearmanr(one, other).statistic), of
        assert tests[of]["p"] == pytest.approx(spearmanr(one, other).pvalue, abs=0.05), of
        assert tests[of]["ci_low"] < tests[of]["spearman"] < tests[of]["ci_high"], of
        assert tests[of]["n_models"] == len(other)
    within = spearman_within(
        after, losses, [block(facts[m]) for m in counts], generator=torch.Generator().manual_seed(1)
    )
    assert tests["within levers"]["spearman"] == pytest.approx(within.value)
    assert tests["within levers"]["p"] == pytest.approx(within.p, abs=0.01)
    assert tests["k 8"]["n_models"] == 17
    assert tests["k 8"]["spearman"] == tests["all"]["spearman"]
    # Growth is of those that are unconverged: the converged one grew least.
    still = [i for i, r in enumerate(counts.values()) if not r["converged"]]
    grew = (after / before - 1)[still]
    assert (found["growth_low"], found["growth_high"]) == (
        pytest.approx(1 / 0.98 - 1), pytest.approx(1 / 0.8 - 1),
    )  # fmt: skip
    assert found["growth_with_loss"] == pytest.approx(spearmanr(grew, losses[still]).statistic)
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
    tests = {t["of"]: t for t in unconverged["arm"]["unconverged"]["tests"]}
    for said in (
        "which was not declared and decides nothing, Spearman of packing and loss is −",
        "over 17 models, 16 of them unconverged (left out: ",
        "FVU not at the target",
        f"with the counts after half of the training −{-tests['half']['spearman']:.2f} (p 0.0",
        "the unconverged counts changed by 2.0% to 25.0%; growth and loss have Spearman ",
        "It hangs most on ",
    ):
        assert said in paragraph, (said, paragraph)
    reply = dict(objections(found))[OBJECTION]
    assert "What they would have given, which was not declared and decides nothing" in reply
    converged = read_summary(study({}))
    assert not any("unconverged counts" in s for s in answer(converged).more)
    assert "What they would have given" not in dict(objections(converged))[OBJECTION]
    assert converged.arm is not None
    assert unconverged_tables(converged.arm.unconverged) == {}


def test_the_page_has_the_tables(unconverged: dict[str, Any], tmp_path: Path) -> None:
    folder = arm_run.write_run(tmp_path / "run", unconverged)
    page = write_report(folder).read_text()
    assert "What the unconverged counts would have given" in page
    found = read_summary(unconverged).arm
    assert found is not None
    ranks, levers = unconverged_tables(found.unconverged).values()
    assert [row[0] for row in ranks.rows][:3] == [
        "all", "all, after half of the training", "without base and seeds",
    ]  # fmt: skip
    assert {"without row decay", "within levers", "k 8"} <= {row[0] for row in ranks.rows}
    by_lever = {row[0]: row for row in levers.rows}
    assert by_lever["tokens"][3] == by_lever["tokens"][5] == "yes"
    assert by_lever["projects"][3] == by_lever["projects"][5] == "no"


def test_the_words_follow_what_was_found(unconverged: dict[str, Any]) -> None:
    arm = read_summary(unconverged).arm
    assert arm is not None
    assert arm.unconverged is not None
    found = arm.unconverged
    # So few models show nothing, whatever their order.
    assert unconverged_sentences(replace(found, n_models=4), {}) == ""
    assert unconverged_tables(replace(found, n_models=4)) == {}
    assert unconverged_sentences(None, {}) == ""
    falling = unconverged_sentences(replace(found, growth=(-0.143, 0.02)), {})
    assert "changed by −14.3% to 2.0%; growth and loss" in falling
    assert "A correlation of 0.60 or more among 17 independent models" in unconverged_sentences(
        replace(found, detectable_rho=0.6), {}
    )
    labels = {OFF: "the one off"}
    assert "the one off, FVU not at the target" in unconverged_sentences(found, labels)
    # A lever that could not be tested is no lever that does not move it.
    unknown = tuple(replace(r, moves=None, p_holm=None) for r in found.responses)
    _, table = unconverged_tables(replace(found, responses=unknown, responses_half=())).values()
    assert {row[3:] for row in table.rows} == {("–", "–", "–", "–")}
    bare = replace(
        found, growth=None, left_out={}, detectable_rho=None, responses=(),
        tests=(RankTest("all", 17, Interval(0.1), 0.8),),
    )  # fmt: skip
    assert unconverged_sentences(bare, {}) == (
        "With unconverged counts let in, which was not declared and decides nothing, Spearman of "
        "packing and loss is 0.10 (no interval), p 0.80, over 17 models, 16 of them unconverged."
    )
    undefined = replace(found, tests=(RankTest("all", 17, Interval(), None),))
    assert unconverged_sentences(undefined, {}) == ""


def test_counts_of_none_have_no_growth() -> None:
    rows = [{"value": v, "value_half": h} for v, h in ((0, 0), (4, 0), (5, 4), (9, 6), (8, 8))]
    losses = [3.0, 2.0, 2.5, 1.0, 0.1]

    def found(some: list[dict[str, int]]) -> dict[str, Any]:
        return growth(some, losses[: len(some)], generator=torch.Generator().manual_seed(0))

    made = found(rows)
    assert (made["growth_low"], made["growth_high"]) == (0, pytest.approx(0.5))
    assert made["growth_with_loss"] == pytest.approx(spearmanr([0.25, 0.5, 0], [2.5, 1, 0.1])[0])
    alike = found([{"value": 5, "value_half": 4}] * 5)
    assert alike["growth_low"] == pytest.approx(0.25)
    assert alike["growth_with_loss"] is None
    assert set(found(rows[:1]).values()) == {None}


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
