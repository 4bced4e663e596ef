"""Rows -> summary: what enters a fit, what stands beside a number, and what is said aloud."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest

from interp.config import PRESETS, StudyConfig
from interp.report import headline
from interp.report.reading import read_summary
from interp.summary import COLUMNS, summarise, tidy

WIDTHS = (32, 48, 64, 96, 128, 192)
NAMES = tuple(f"ladder/d{w:03d}" for w in WIDTHS)


def facts(alpha: float = 0.9) -> list[dict[str, Any]]:
    found = []
    for name, width in zip(NAMES, WIDTHS, strict=True):
        loss = 20 / width**alpha + 2.0
        found.append(
            {
                "name": name,
                "family": "ladder",
                "arm": "width",
                "d_model": width,
                "n_layers": 4,
                "n_params": width * 1000,
                "train_tokens": 10**7,
                "loss_nats_per_token": loss,
                "loss_nats_per_byte": loss / 2.4,
                "loss_ci_nats_per_token": [loss - 0.01, loss + 0.01],
                "loss_ci_nats_per_byte": [loss / 2.4 - 0.004, loss / 2.4 + 0.004],
                "tokens_sha256": "one tokenizer",
                "warnings": [],
            }
        )
    return found


def rows(
    beta: float = 1.0,
    *,
    control: str = "trained",
    scale: float = 2.0,
    multiple: int = 8,
    **flags: dict[str, float],
) -> list[dict[str, Any]]:
    """Counts scale * d^beta at the primary layer; `flags` override quantities by model."""
    found = []
    for name, width in zip(NAMES, WIDTHS, strict=True):
        count = scale * width**beta
        base = {"model": name, "control": control, "layer": 1, "about": "contextual",
                "hook_point": "blocks.1.hook_resid_post", "d_sae": multiple * width,
                "k_rule": "fvu", "k": 8,
                "role": "main", "seed": None}  # fmt: skip
        quantities = {
            "reproducible": count, "reproducible_se": 0.02 * count, "converged": 1.0,
            "censored": 0.0, "fvu_mean": 0.2, "fvu_matched": 1.0, "tokens_per_latent": 12_000.0,
            "held_out_tokens": 1e5, "live_latents_10": 1.5 * count, "hill_1": 0.7 * count,
        }  # fmt: skip
        for quantity, value in quantities.items():
            value = flags.get(quantity, {}).get(name, value)
            interval = {"ci_low": 0.96 * value, "ci_high": 1.04 * value}
            seed = 0 if quantity in ("live_latents_10", "hill_1") else None
            found.append(base | interval | {"quantity": quantity, "value": value, "seed": seed})
    return found


def config(**changes: Any) -> StudyConfig:
    return StudyConfig(**({"models": NAMES, "d_sae_per_d_model": (8,)} | changes))


def summary(all_rows: list[dict[str, Any]], **changes: Any) -> dict[str, Any]:
    known = facts()
    return summarise(tidy(pd.DataFrame(all_rows), known), known, config(**changes))


@pytest.mark.parametrize("beta", [0.0, 0.6, 1.0, 1.4])
def test_the_exponent_of_planted_counts_comes_back(beta: float) -> None:
    # Far above the slack of convergence at every width.
    found = summary(rows(beta, scale=40.0))["exponent"]
    assert found["beta"] == pytest.approx(beta, abs=1e-3)
    assert found["ci_low"] < beta < found["ci_high"]
    assert found["n_models"] == 6


def test_an_unconverged_row_enters_nothing_and_is_named() -> None:
    wrong = summary(rows(1.0, reproducible={NAMES[0]: 9_000.0}, converged={NAMES[0]: 0.0}))
    assert wrong["exponent"]["n_models"] == 5
    assert wrong["exponent"]["beta"] == pytest.approx(1.0, abs=1e-3)
    assert wrong["correlation"][0]["n_models"] == 5
    record = next(r for r in wrong["packing"] if r["estimator"] == "reproducible")
    assert record["identified"] is False
    assert "undertrained" in record["reason"]
    assert any("undertrained" in w and NAMES[0] in w for w in wrong["warnings"])


def test_a_count_without_an_interval_enters_nothing() -> None:
    """As from two seeds: the report draws by the same word that the fits go by."""
    planted = rows(1.0)
    for row in planted:
        if row["quantity"] == "reproducible" and row["model"] == NAMES[0]:
            row |= {"ci_low": None, "ci_high": None, "note": "no interval from two seeds"}
    found = summary(planted)
    assert found["exponent"]["n_models"] == found["correlation"][0]["n_models"] == 5
    counts = [r for r in found["packing"] if r["estimator"] == "reproducible"]
    assert [r["usable"] for r in counts] == [False, True, True, True, True, True]
    drawn = read_summary(found).primary_rows
    assert [r.counts for r in drawn] == [r["usable"] for r in counts]
    assert drawn[0].doubt == "no interval"
    headline(found)


def test_bounds_are_counted_for_what_takes_them() -> None:
    flags = dict.fromkeys(NAMES[:3], 1.0)
    found = summary(rows(1.0, censored=flags))
    assert found["correlation"][0]["n_models"] == 3
    assert any("6 enter the exponent, 3 the correlation" in w for w in found["warnings"])


def test_a_censored_row_is_a_bound() -> None:
    """Counts stuck at D in two models: as values they would pull beta down."""
    stuck = dict.fromkeys(NAMES[-2:], 100.0)
    flags = dict.fromkeys(NAMES[-2:], 1.0)
    as_values = summary(rows(1.0, reproducible=stuck))["exponent"]["beta"]
    as_bounds = summary(rows(1.0, reproducible=stuck, censored=flags))
    assert as_values < 0.7
    assert as_bounds["exponent"]["beta"] == pytest.approx(1.0, abs=0.02)
    assert as_bounds["exponent"]["n_censored"] == 2
    assert any("censored" in w for w in as_bounds["warnings"])


def test_a_full_dictionary_has_no_upper_end() -> None:
    """The interval over seeds of a full dictionary is that of its size, and no count's."""
    full = dict.fromkeys(NAMES[:2], 1.0)
    found = summary(rows(1.0, censored=full) + rows(0.5, control="random_init", censored=full))
    for record in (r for r in found["packing"] if r["estimator"] == "reproducible"):
        [twin] = record["controls"]
        for one in (record, twin):
            assert one["censored"] is (record["model"] in full)
            assert (one["ci_high"] is None) is one["censored"]
            assert one["ci_low"] is not None


def test_a_count_that_a_larger_dictionary_outgrows_is_a_bound_in_the_exponent() -> None:
    """All of them follow D, which is the same multiple of every width: as counts, a beta of 1."""
    small = rows(1.0, scale=3.0)
    grown = summary(small + rows(1.0, scale=5.0, multiple=16), d_sae_per_d_model=(8, 16))
    assert grown["exponent"]["beta"] is None
    assert "6 of 6 counts are only bounds" in grown["exponent"]["reason"]
    outgrown = [r["outgrown"] for r in grown["packing"] if r["estimator"] == "reproducible"]
    assert outgrown == [True, None] * 6, "nothing is larger than the largest"
    # At equal D per dimension they still compare: the description across widths keeps them.
    assert grown["correlation"][0]["n_models"] == 6

    settled = summary(small + rows(1.0, scale=3.1, multiple=16), d_sae_per_d_model=(8, 16))
    assert settled["exponent"]["beta"] == pytest.approx(1.0, abs=0.02)
    assert [r["outgrown"] for r in settled["packing"] if r["estimator"] == "reproducible"] == [
        False,
        None,
    ] * 6


def test_growth_within_the_errors_outgrows_nothing() -> None:
    noisy = {"reproducible_se": dict.fromkeys(NAMES, 60.0)}
    larger = rows(1.0, scale=3.3, multiple=16, **noisy)
    found = summary(rows(1.0, scale=3.0, **noisy) + larger, d_sae_per_d_model=(8, 16))
    assert not any(r.get("outgrown") for r in found["packing"] if r["model"] != NAMES[-1])
    exact = rows(1.0, scale=3.0) + rows(1.0, scale=3.3, multiple=16)
    assert any(r.get("outgrown") for r in summary(exact, d_sae_per_d_model=(8, 16))["packing"])


def test_what_was_behind_a_count_stands_beside_it() -> None:
    def half(control: str, value: float) -> list[dict[str, Any]]:
        first = next(r for r in rows(control=control) if r["quantity"] == "reproducible")
        return [first | {"role": "half", "value": value, "ci_low": None, "ci_high": None}]

    def more(quantity: str, value: float, **where: Any) -> list[dict[str, Any]]:
        return [next(iter(rows())) | {"quantity": quantity, "value": value} | where]

    planted = rows(1.0) + rows(0.5, control="random_init") + half("trained", 50.0)
    planted += more("ce_loss_recovered", 0.9, seed=0)
    # Of the stream, and so of no SAE's role.
    planted += more("variance_share_token", 0.6, role=None)
    planted += more("variance_share_position", 0.01, role=None)
    record = next(
        r
        for r in summary(planted + half("random_init", 3.0))["packing"]
        if r["estimator"] == "reproducible"
    )
    assert record["value_half"] == 50.0
    assert record["ce_loss_recovered"] == 0.9
    assert (record["variance_share_token"], record["variance_share_position"]) == (0.6, 0.01)
    [twin] = record["controls"]
    assert (twin["value_half"], twin["k"], twin["d_sae"]) == (3.0, 8, 8 * 32)
    assert twin["tokens_per_latent"] == 12_000


def test_saes_that_training_made_worse_are_named() -> None:
    def half(control: str, fvu: float) -> list[dict[str, Any]]:
        first = next(r for r in rows(control=control) if r["quantity"] == "fvu_mean")
        return [
            first | {"role": "half", "quantity": "fvu", "seed": seed, "value": fvu + shift}
            for seed, shift in enumerate((-0.01, 0.01))
        ]

    def failed(of_twin: float) -> list[str]:
        planted = rows(1.0) + rows(0.5, control="random_init") + half("random_init", of_twin)
        found = summary(planted + half("trained", 0.31))["warnings"]
        return [text for text in found if text.startswith("the second half")]

    reached = next(r["value"] for r in rows() if r["quantity"] == "fvu_mean")
    assert failed(reached + 0.05) == []
    assert failed(reached - 0.001) == []
    [said] = failed(reached - 0.05)
    assert f"{NAMES[0]} random_init (FVU {reached - 0.05:.3f} to {reached:.3f})" in said
    assert said.count("FVU") == 1, "the trained model's improved"


def beside(control: str, **values: float | None) -> list[dict[str, Any]]:
    """More quantities of the first model's count."""
    first = next(r for r in rows(control=control) if r["quantity"] == "reproducible")
    return [first | {"quantity": quantity, "value": value} for quantity, value in values.items()]


def first_count(all_rows: list[dict[str, Any]]) -> dict[str, Any]:
    return next(r for r in summary(all_rows)["packing"] if r["estimator"] == "reproducible")


def test_the_tokens_of_a_count_stand_beside_it_and_beside_its_twins() -> None:
    planted = rows(1.0) + rows(0.5, control="random_init")
    assert "token_identity" not in first_count(planted), "runs that did not look have no word of it"
    own = {"token_entropy_classes": 70.0, "token_entropy_all_bits": 8.5, "token_entropy_bits": 6.0,
           "token_entropy_relative": 0.8, "token_detectors": 0.1, "token_explained": 0.3,
           "position_explained": 0.01}  # fmt: skip
    none = own | dict.fromkeys(list(own)[2:]) | {"token_entropy_classes": 0.0}
    of_twin = [
        row | {"ci_low": None, "ci_high": None, "note": "no reproducible class"}
        for row in beside("random_init", **none)
    ]
    record = first_count(planted + beside("trained", **own) + of_twin)
    found = record["token_identity"]
    assert (found["n_classes"], found["bits"], found["all_bits"]) == (70, 6.0, 8.5)
    assert found["relative"]["value"] == 0.8
    assert found["detectors"]["value"] == 0.1
    assert found["explained"]["value"] == 0.3
    assert found["explained_by_position"]["value"] == 0.01
    assert found["detectors"]["ci_low"] is not None
    [twin] = record["controls"]
    nothing = {"value": None, "ci_low": None, "ci_high": None}
    assert twin["token_identity"] == {
        "n_classes": 0, "bits": None, "all_bits": 8.5, "relative": nothing, "detectors": nothing,
        "explained": nothing, "explained_by_position": nothing, "reason": "no reproducible class",
    }  # fmt: skip


def test_the_count_under_other_matching_stands_beside_the_headlines() -> None:
    planted = rows(1.0) + rows(0.5, control="random_init")
    matched = {"match_threshold": 0.72, "match_correlation": 0.5, "reproducible_null": 2.0}
    assert "strictness" not in first_count(planted + beside("trained", **matched))
    others = {"reproducible_cosine_0.9": 20.0, "reproducible_cosine_0.9_null": 0.0,
              "reproducible_cosine_0.6": 80.0, "reproducible_cosine_0.6_null": 9.0,
              "reproducible_correlation_0.3": 90.0}  # fmt: skip
    full = [
        row | {"note": "at the ceiling"}
        for row in beside("trained", **{"reproducible_correlation_0.7": 31.0})
    ]
    record = first_count(planted + full + beside("trained", **(matched | others)))
    found = record["strictness"]
    assert [(one["by"], one["at"], one["headline"]) for one in found] == [
        ("cosine", 0.6, False), ("cosine", 0.72, True), ("cosine", 0.9, False),
        ("correlation", 0.3, False), ("correlation", 0.5, True), ("correlation", 0.7, False),
    ]  # fmt: skip
    assert [one["value"] for one in found] == [80, record["value"], 20, 90, record["value"], 31]
    assert [one["null"] for one in found] == [9, 2, 0, None, 2, None]
    assert [one["ci_high"] is None for one in found] == [False] * 5 + [True]
    assert "strictness" not in record["controls"][0]


def test_the_twin_stands_inside_its_record_and_has_its_own_exponent() -> None:
    found = summary(rows(1.0) + rows(0.5, control="random_init", scale=3.0))
    record = next(r for r in found["packing"] if r["estimator"] == "reproducible")
    [twin] = record["controls"]
    assert twin["name"] == "random_init"
    assert twin["value"] == pytest.approx(3 * 32**0.5)
    assert twin["per_dim"] == pytest.approx(twin["value"] / 32)
    assert found["exponent"]["twin_beta"] == pytest.approx(0.5, abs=1e-3)
    assert found["exponent"]["minus_twin"] == pytest.approx(0.5, abs=2e-3)
    assert found["exponent"]["minus_twin_ci_low"] > 0
    assert not any("no random-init twin" in w for w in found["warnings"])
    assert any("no random-init twin" in w for w in summary(rows())["warnings"])


def test_a_text_that_was_passed_over_again_is_told() -> None:
    """Of the primary layer and stream, whatever the estimator; a little over one pass is none."""

    def again(name: str, value: float, **place: Any) -> list[dict[str, Any]]:
        like = next(r for r in rows() if r["model"] == name and r["quantity"] == "reproducible")
        return [like | {"quantity": "passes_over_text", "value": value, "seed": None} | place]

    found = summary(rows() + again(NAMES[0], 3.2) + again(NAMES[1], 1.04))
    [told] = [w for w in found["warnings"] if w.startswith("a short text")]
    assert "up to 3.2 times" in told
    assert told.endswith(f": {NAMES[0]}")
    [record] = [r for r in found["packing"] if r["model"] == NAMES[0]
                and r["estimator"] == "reproducible" and r["primary_layer"]]  # fmt: skip
    assert record["passes_over_text"] == 3.2
    assert not any(w.startswith("a short text") for w in summary(rows())["warnings"])


def test_a_twins_bound_is_a_bound() -> None:
    """Twins that fill their dictionaries: as counts they would give a beta of exactly 1."""
    full = dict.fromkeys(NAMES, 1.0)
    found = summary(rows(1.0) + rows(1.0, control="random_init", censored=full))["exponent"]
    assert found["twin_beta"] is None
    assert "only bounds" in found["twin_reason"]
    assert found["minus_twin"] is None


def test_a_count_within_the_slack_is_known_from_above_only() -> None:
    """One latent more or less passes as converged there, which is a factor of e in a logarithm."""
    tiny = dict.fromkeys(NAMES[:3], 1.0)
    found = summary(rows(1.0, scale=3.0, reproducible=tiny))["exponent"]
    assert found["n_models"] == 6
    assert found["n_censored"] == 3


def test_counts_at_another_reconstruction_quality_enter_nothing() -> None:
    found = summary(rows(1.0, fvu_matched={NAMES[0]: 0.0}, reproducible={NAMES[0]: 9_000.0}))
    assert found["exponent"]["n_models"] == 5
    assert found["exponent"]["beta"] == pytest.approx(1.0, abs=1e-3)
    assert any("FVU not at the target" in w and NAMES[0] in w for w in found["warnings"])


def test_of_several_sizes_the_first_is_primary() -> None:
    """Fewer sizes than saturation needs: the plain count, which has an interval against a twin."""
    both = rows(1.0, multiple=8) + rows(1.0, scale=3.0, multiple=16)
    found = summary(both, d_sae_per_d_model=(8, 16))
    assert found["primary"]["estimator"] == "reproducible"
    assert found["exponent"]["n_models"] == 6
    swapped = summary(both, d_sae_per_d_model=(16, 8))
    assert swapped["correlation"][0]["n_models"] == 6


def test_the_full_preset_can_tell_a_model_from_its_twin() -> None:
    full = PRESETS["full"]
    sizes = full.d_sae_per_d_model
    planted = [
        row
        for multiple in sizes
        for row in rows(1.0, multiple=multiple)
        + rows(1.0, scale=0.3, multiple=multiple, control="random_init")
    ]
    found = summary(planted, d_sae_per_d_model=sizes)
    assert found["exponent"]["beta"] is not None
    assert "their untrained twins pack" in headline(found)
    assert "without an interval" not in headline(found)


def test_models_of_another_depth_keep_their_own_primary_layer() -> None:
    known = facts()
    deeper = rows(1.0)
    for fact in known[:2]:
        fact["n_layers"] = 5
    for row in deeper:
        if row["model"] in NAMES[:2]:
            row["layer"] = 1  # 2 of 5 blocks: the lower one of the two nearest to half
    found = summarise(tidy(pd.DataFrame(deeper), known), known, config())
    assert found["exponent"]["n_models"] == 6
    assert "6 trained models" in headline(found)


def test_ten_models_are_not_too_many() -> None:
    names = [f"m{i}" for i in range(11)]
    widths = [32 + 16 * i for i in range(11)]
    known = [
        facts()[0] | {"name": n, "d_model": w, "loss_nats_per_token": 20 / w + 2}
        for n, w in zip(names, widths, strict=True)
    ]
    planted = [
        row | {"model": name, "value": 2.0 * width if row["quantity"] == "reproducible" else
               row["value"], "d_sae": 8 * width}
        for name, width in zip(names, widths, strict=True)
        for row in rows(1.0)
        if row["model"] == NAMES[0]
    ]  # fmt: skip
    found = summarise(tidy(pd.DataFrame(planted), known), known, config(models=tuple(names)))
    assert found["correlation"][0]["n_models"] == 11


def test_the_amplitude_has_no_limit_where_alpha_has_none() -> None:
    known = facts()[:3]
    found = summarise(tidy(pd.DataFrame(rows()[:30]), known), known, config(models=NAMES[:3]))
    assert found["scaling"]["alpha"]["ci_high"] is None
    assert found["scaling"]["A"]["ci_high"] is None
    bounded = summary(rows())["scaling"]
    assert bounded["alpha"]["ci_high"] is not None
    assert bounded["A"]["ci_high"] is not None


def test_models_of_several_tokenizers_are_compared_per_byte() -> None:
    known = facts()
    known[0]["tokens_sha256"] = "another"
    found = summarise(tidy(pd.DataFrame(rows()), known), known, config())
    assert found["scaling"]["loss"] == found["correlation"][0]["loss"] == "loss_nats_per_byte"
    assert summary(rows())["scaling"]["loss"] == "loss_nats_per_token"


def test_models_of_three_families_get_a_mixed_model() -> None:
    """Families by the models' names: a study has one word for all of its models."""
    names = ["gpt2", "gpt2-medium", "gpt2-large", "facebook/opt-125m", "facebook/opt-1.3b",
             "facebook/opt-2.7b", "EleutherAI/pythia-70m", "EleutherAI/pythia-160m",
             "EleutherAI/pythia-410m"]  # fmt: skip
    rng = np.random.default_rng(0)
    known, planted = [], []
    for i, name in enumerate(names):
        width, per_dim = (64, 96, 160)[i % 3], 2 + rng.normal()
        loss = 1 - 0.1 * per_dim + 0.2 * (i // 3) + 0.001 * rng.normal()
        known.append(
            facts()[0]
            | {"name": name, "family": "custom", "d_model": width, "n_layers": 4 + i % 2}
            | {"loss_nats_per_byte": loss}
        )
        planted += [
            row | {"model": name, "d_sae": 8 * width}
            | ({"value": per_dim * width} if row["quantity"] == "reproducible" else {})
            for row in rows(1.0) if row["model"] == NAMES[0]
        ]  # fmt: skip
    found = summarise(tidy(pd.DataFrame(planted), known), known, config(models=tuple(names)))
    assert found["mixed_model"]["n_families"] == 3
    assert found["mixed_model"]["value"] == pytest.approx(-0.1, abs=0.01)
    assert summary(rows())["mixed_model"]["reason"] == "1 family; a mixed model needs 3"


def test_across_widths_the_correlation_says_what_it_is() -> None:
    [found] = summary(rows(0.7))["correlation"]
    assert found["spearman"] == pytest.approx(1.0)  # beta < 1: packing and loss both fall
    assert found["partial_spearman_given_d_model"] is None
    assert "descriptive" in found["caption"]
    assert "partial" in found["reason"]
    assert summary(rows(1.3))["correlation"][0]["spearman"] == pytest.approx(-1.0)


def test_the_planted_loss_curve_is_fitted() -> None:
    found = summary(rows())["scaling"]
    assert found["alpha"]["value"] == pytest.approx(0.9, abs=0.01)
    assert found["B"]["value"] == pytest.approx(2.0, abs=0.02)
    assert "fixed tokens" in found["caption"]


def test_four_sizes_make_saturation_primary() -> None:
    several = [
        r
        for multiple in (4, 8, 16, 32, 64)
        for r in rows(1.0, scale=3 * (1 - np.exp(-multiple / 6)), multiple=multiple)
    ]
    found = summary(several, d_sae_per_d_model=(8, 4, 16, 32, 64))
    assert found["primary"]["estimator"] == "saturation"
    records = [r for r in found["packing"] if r["estimator"] == "saturation"]
    assert len(records) == 6
    for record, width in zip(records, WIDTHS, strict=True):
        assert record["identified"]
        assert record["value"] == pytest.approx(3 * width, rel=0.03)
    assert found["exponent"]["beta"] == pytest.approx(1.0, abs=0.02)


def test_rows_come_out_in_one_order_with_one_set_of_types() -> None:
    known = facts()
    one = tidy(pd.DataFrame(rows()), known)
    other = tidy(pd.DataFrame(rows()[::-1]), known[::-1])
    pd.testing.assert_frame_equal(one, other)
    assert list(one.columns) == list(COLUMNS)
    assert str(one.dtypes["seed"]) == "Int64"


def test_a_preview_says_so_first_and_few_models_are_counted() -> None:
    found = summary(rows(), preview=True)
    assert found["warnings"][0].startswith("preview")
    few = summary(rows(converged=dict.fromkeys(NAMES[:3], 0.0)))
    assert any("too few models: 3 enter the exponent, 3 the" in w for w in few["warnings"])
    assert few["exponent"]["beta"] is None
    assert few["exponent"]["reason"]
