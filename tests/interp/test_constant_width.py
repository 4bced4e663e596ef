"""The constant-width arm in a summary: what was planted comes back, and nothing else."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import arm_run
import numpy as np
import pandas as pd
import pytest
from scipy.stats import spearmanr

from interp import levers
from interp.config import StudyConfig
from interp.summary import summarise, tidy

Data = dict[str, Any]


@pytest.fixture(scope="module")
def planted() -> Data:
    """Row decay and tokens move packing, and loss goes with it."""
    return arm_run.summary(
        arm_run.decay_packs, arm_run.loss_follows, layers=(0, 1, 2), streams=("contextual", "all")
    )


@pytest.fixture(scope="module")
def null() -> Data:
    return arm_run.summary(arm_run.nothing, arm_run.nothing)


def moved(data: Data, outcome: str) -> dict[str, bool | None]:
    responses = data["arm"]["dose_response"]
    return {r["lever"]: r["moves"] for r in responses if r["outcome"] == outcome}


def test_the_records_are_complete_and_plain(planted: Data) -> None:
    json.dumps(planted, allow_nan=False)
    [entry] = planted["correlation"]
    assert entry["arm"] == "constant_width"
    # The contract's fields, and partial null: d_model does not vary.
    assert {"estimator", "layer_fraction", "n_models", "spearman", "p_exact", "ci_low", "ci_high",
            "reason"} <= set(entry)  # fmt: skip
    assert entry["partial_spearman_given_d_model"] is None
    assert {"dose_response", "mediation", "power", "leave_one_out", "holm"} <= set(planted["arm"])
    assert planted["models"][0]["lever"] is None
    assert planted["models"][0]["lever_base"]["tokens"] == arm_run.BASE["tokens"]


def test_models_of_the_usual_k_are_tested_alone(planted: Data) -> None:
    """All of one k: the primary test again. Others of another k: without them."""
    same = planted["arm"]["equal_k"]
    assert (same["least"], same["most"], same["k"], same["n_models"]) == (8, 8, 8, 19)
    assert same["spearman"] == planted["correlation"][0]["spearman"]
    known = arm_run.facts(arm_run.loss_follows)
    made = arm_run.rows(known, arm_run.decay_packs)
    few = set(arm_run.names()[:7])
    for row in made:
        row["k"] = 4 if row["model"] in few else 6
    config = StudyConfig(
        arm="constant_width", models=tuple(arm_run.names()), d_sae_per_d_model=(8,)
    )
    found = summarise(tidy(pd.DataFrame(made), known), known, config)
    packing = {
        r["model"]: r["per_dim"]
        for r in found["packing"]
        if r["estimator"] == "reproducible" and r["model"] not in few
    }
    losses = {f["name"]: f["loss_nats_per_token"] for f in known}
    expected = spearmanr(list(packing.values()), [losses[name] for name in packing]).statistic
    same = found["arm"]["equal_k"]
    assert (same["least"], same["most"], same["k"], same["n_models"]) == (4, 6, 6, 12)
    assert same["spearman"] == pytest.approx(expected)


def with_cosines(own: Callable[[str], float], at: dict[float, Callable[[float], float]]) -> Data:
    """The planted study with each model's own least cosine and its counts at others."""
    known = arm_run.facts(arm_run.loss_follows)
    made = arm_run.rows(known, arm_run.decay_packs)
    for row in [r for r in made if r["quantity"] == "reproducible"]:
        others = {f"reproducible_cosine_{c:g}": f(row["value"]) for c, f in at.items()}
        for name, value in {"match_threshold": own(row["model"]), **others}.items():
            made.append(row | {"quantity": name, "value": value})
    config = StudyConfig(
        arm="constant_width", models=tuple(arm_run.names()), d_sae_per_d_model=(8,)
    )
    return summarise(tidy(pd.DataFrame(made), known), known, config)


def test_latents_of_all_models_are_matched_from_one_cosine_on(planted: Data) -> None:
    """Taken is the least cosine that is below no model's own."""
    strict = arm_run.names()[3]
    at = {0.7: lambda count: 1.0, 0.8: lambda count: -count, 0.9: lambda count: count**2}
    found = with_cosines(lambda name: 0.78 if name == strict else 0.72, at)
    same = found["arm"]["equal_strictness"]
    assert (same["least"], same["most"], same["cosine"]) == (0.72, 0.78, 0.8)
    [primary] = planted["correlation"]
    assert same["spearman"] == pytest.approx(-primary["spearman"])
    assert same["n_models"] == 19
    # One's own is above all that were measured: the greatest.
    found = with_cosines(lambda name: 0.95 if name == strict else 0.72, at)
    same = found["arm"]["equal_strictness"]
    assert (same["most"], same["cosine"]) == (0.95, 0.9)
    assert same["spearman"] == pytest.approx(primary["spearman"])
    assert planted["arm"]["equal_strictness"]["reason"] == "counts matched in one way"


def test_a_planted_relation_is_found(planted: Data) -> None:
    [entry] = planted["correlation"]
    assert entry["n_models"] == len(arm_run.names()) == 19
    assert entry["spearman"] < -0.5
    assert entry["p_exact"] < 0.01
    assert entry["kendall_p"] < 0.01
    assert entry["ci_high"] < 0
    # A seed's unit is .01 nats and .05 features per dimension: 1.5 * .01 / .05 = .3.
    assert entry["slope"] == pytest.approx(-0.3, abs=0.1)
    assert moved(planted, "packing") == {
        "row_decay": True, "tokens": True, "matrix_decay": False, "projects": False
    }  # fmt: skip
    assert moved(planted, "loss")["row_decay"] is True
    assert planted["arm"]["left_out"] == []


def test_what_the_levers_did_to_the_embedding_is_told(planted: Data, null: Data) -> None:
    """Row decay was planted to move the rows, and a null of packing does not hide that it did."""
    for data in (planted, null):
        for outcome in ("row_overlap", "row_length"):
            assert moved(data, outcome) == {
                "row_decay": True, "tokens": False, "matrix_decay": False, "projects": False
            }  # fmt: skip
    secondary = {r["estimator"]: r for r in planted["arm"]["holm"]}
    assert secondary["row_overlap"]["n_models"] == len(arm_run.names())
    # Overlap rises where decay is negative, as packing does, and loss falls.
    assert secondary["row_overlap"]["spearman"] < 0
    without = arm_run.facts(arm_run.nothing)
    for fact in without:
        del fact["rows"]
    config = StudyConfig(arm="constant_width", models=tuple(arm_run.names()))
    rows = tidy(pd.DataFrame(arm_run.rows(without, arm_run.nothing)), without)
    arm = summarise(rows, without, config)["arm"]
    assert {r["outcome"] for r in arm["dose_response"]} == {"packing", "loss"}


def test_nothing_planted_is_nothing_found(null: Data) -> None:
    [entry] = null["correlation"]
    assert entry["p_exact"] > 0.05
    assert entry["ci_low"] < 0 < entry["ci_high"]
    assert not any(moved(null, "packing").values())
    assert null["arm"]["power"]["n_models"] == 19
    assert 0.5 < null["arm"]["power"]["detectable_rho"] < 0.7


def test_the_base_stands_in_every_lever_at_its_own_value(planted: Data) -> None:
    responses = {(r["lever"], r["outcome"]): r for r in planted["arm"]["dose_response"]}
    for lever, values in arm_run.LEVERS.items():
        if lever != levers.SEED:
            # And the two other seeds of the base recipe with it.
            assert responses[lever, "packing"]["n_models"] == len(values) + 3
            assert responses[lever, "packing"]["n_doses"] == len(values) + 1
    assert responses["tokens", "loss"]["slope_per"] == "doubling"
    assert responses["row_decay", "loss"]["slope_per"] == "unit"
    assert planted["arm"]["seeds"]["n_loss"] == 3


def test_secondary_metrics_are_all_the_others(planted: Data) -> None:
    found = planted["arm"]["holm"]
    # Three layers x two streams x three estimators, less the primary one; the embedding's two.
    assert len(found) == 17 + 2
    assert not any(
        r["layer"] == 1 and r["about"] == "contextual" and r["estimator"] == "reproducible"
        for r in found
    )
    assert all(r["p_holm"] >= r["p"] for r in found)
    assert max(r["p_holm"] / r["p"] for r in found) == pytest.approx(19)


def test_mediation_is_told_on_the_scale_of_the_lever(planted: Data) -> None:
    found = planted["arm"]["mediation"]
    assert "exploratory" in found["assumptions"]
    sides = {(e["lever"], e["side"]): e["value"] for e in found["effects"]}
    assert sides["tokens", "below"] == 3_145_728
    assert sides["row_decay", "above"] == 1.0


def test_an_unusable_count_enters_nothing_but_its_loss_does() -> None:
    first, second = arm_run.names()[3:5]
    absurd = {first: 500.0, second: 1.0}
    found = arm_run.summary(
        arm_run.nothing, arm_run.nothing, reproducible=absurd,
        converged={first: 0.0}, fvu_matched={second: 0.0},
    )  # fmt: skip
    arm = found["arm"]
    assert found["correlation"][0]["n_models"] == arm["n_usable"] == 17
    assert arm["left_out"] == [
        {"model": first, "reason": "undertrained"},
        {"model": second, "reason": "FVU not at the target"},
    ]
    responses = {(r["lever"], r["outcome"]): r["n_models"] for r in arm["dose_response"]}
    assert responses["row_decay", "packing"] == 6
    assert responses["row_decay", "loss"] == 8
    assert arm["mediation"]["n_models"] == 17


def test_models_from_elsewhere_are_no_replicates() -> None:
    """Of the same width, and named by hand: not one recipe with the base or with each other."""
    known = arm_run.facts(arm_run.nothing)
    strangers = [f for f in known if (f["lever"] or {}).get("name") == "projects"][:2]
    for one in strangers:
        one |= {"lever": None, "loss_nats_per_token": 9.0, "train_tokens": 5}
    rows = tidy(pd.DataFrame(arm_run.rows(known, arm_run.nothing)), known)
    config = StudyConfig(
        arm="constant_width", models=tuple(arm_run.names()), d_sae_per_d_model=(8,)
    )
    arm = summarise(rows, known, config)["arm"]
    before = arm_run.summary(arm_run.nothing, arm_run.nothing)["arm"]
    assert arm["n_usable"] == before["n_usable"]
    assert arm["seeds"]["n_packing"] == before["seeds"]["n_packing"] == 3
    assert arm["seeds"]["loss_sd"] < 0.1
    assert {r["lever"] for r in arm["dose_response"]}.isdisjoint({"other", "base"})
    tokens = [r for r in arm["dose_response"] if r["lever"] == "tokens"]
    assert all(abs(r["slope"] or 0) < 1 for r in tokens)
    assert {one["name"] for one in strangers} <= set(arm["leave_one_out"]["without_block"])
    assert arm["mediation"]["n_models"] == arm["n_usable"] - 2


def test_nothing_converged_leaves_reasons_everywhere() -> None:
    found = arm_run.summary(
        arm_run.nothing, arm_run.nothing, converged=dict.fromkeys(arm_run.names(), 0.0)
    )
    json.dumps(found, allow_nan=False)
    [entry] = found["correlation"]
    assert entry["spearman"] is None
    assert "0 models" in entry["reason"]
    arm = found["arm"]
    for part in (arm["power"], arm["mediation"], arm["leave_one_out"]):
        assert part["reason"]
    assert len(arm["left_out"]) == 19
    assert moved(found, "packing") == dict.fromkeys(
        ("matrix_decay", "projects", "row_decay", "tokens")
    )


def test_widths_are_not_mixed() -> None:
    known = arm_run.facts(arm_run.nothing)
    known[3]["d_model"] = 96
    rows = tidy(pd.DataFrame(arm_run.rows(known, arm_run.nothing)), known)
    config = StudyConfig(arm="constant_width", models=tuple(arm_run.names()))
    found = summarise(rows, known, config)
    assert found["correlation"][0]["spearman"] is None
    assert "mixes widths [64, 96]" in found["correlation"][0]["reason"]
    assert found["arm"]["d_model"] is None


def test_without_base_values_the_levers_stand_on_their_own() -> None:
    known = arm_run.facts(arm_run.loss_follows)
    known[0]["lever_base"] = {}
    rows = tidy(pd.DataFrame(arm_run.rows(known, arm_run.decay_packs)), known)
    config = StudyConfig(
        arm="constant_width", models=tuple(arm_run.names()), d_sae_per_d_model=(8,)
    )
    arm = summarise(rows, known, config)["arm"]
    responses = {(r["lever"], r["outcome"]): r["n_models"] for r in arm["dose_response"]}
    assert responses["row_decay", "packing"] == 5
    # Its tokens are in every record.
    assert responses["tokens", "packing"] == 6
    assert "matrix_decay, projects, row_decay" in arm["mediation"]["reason"]


def test_a_study_without_an_arm_has_none() -> None:
    known = arm_run.facts(arm_run.nothing)
    for fact in known:
        fact["arm"] = "width"
        fact.pop("lever")
        fact.pop("lever_base", None)
    plain = arm_run.facts(arm_run.nothing)
    rows = tidy(pd.DataFrame(arm_run.rows(plain, arm_run.nothing)), known)
    found = summarise(
        rows, known, StudyConfig(models=tuple(arm_run.names()), d_sae_per_d_model=(8,))
    )
    assert "arm" not in found
    assert "lever" not in found["models"][0]
    assert "descriptive" in found["correlation"][0]["caption"]
    assert found["mixed_model"]["reason"] == "1 family; a mixed model needs 3"


def test_the_share_of_measurement() -> None:
    """Intervals of 2% of 1.8 and no scatter between models but that of the seeds, .05."""
    found = arm_run.summary(arm_run.nothing, arm_run.nothing)["arm"]["measurement_share"]
    values = [r["per_dim"] for r in
              arm_run.summary(arm_run.nothing, arm_run.nothing)["packing"]
              if r["estimator"] == "reproducible"]  # fmt: skip
    by_hand = np.mean((0.02 * np.array(values) / 1.96) ** 2) / np.var(values, ddof=1)
    assert found == pytest.approx(by_hand, rel=1e-3)
