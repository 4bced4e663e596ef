"""The sentences: every verdict, and the caveats that the first sentence must carry."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import report_run

from interp import summary as summary_module
from interp.report import headline
from interp.report.answering import answer, reading_of
from interp.report.caveats import SAID_HERE, caveats, remaining_warnings
from interp.report.contrast import Verdict, contrast
from interp.report.figures import all_figures
from interp.report.interval import Interval
from interp.report.objections import objections
from interp.report.reading import read_summary
from interp.report.records import Exponent

Data = dict[str, Any]


def first(data: Data) -> str:
    return headline(data)


def primary(data: Data) -> list[Data]:
    return [p for p in data["packing"] if p["layer"] == 1 and p["about"] == "contextual"]


def with_twins(ratio: Callable[[int], float], spread: float = 0.3) -> Data:
    """Twins at `ratio(width)` times the trained count, at every width; nothing else in the way."""
    data = report_run.summary()
    data["packing"] = []
    for width in report_run.WIDTHS:
        record = report_run.packing_record(width)
        record |= {
            "converged": True,
            "fvu_matched": True,
            "identified": True,
            "reason": None,
            "censored": False,
            "ci_high": 1.06 * record["value"],
        }
        value = ratio(width) * record["value"]
        record["controls"] = [
            {
                "name": "random_init",
                "value": value,
                "per_dim": value / width,
                "ci_low": value - spread * width,
                "ci_high": value + spread * width,
                "converged": True,
            }
        ]
        data["packing"].append(record)
    return data


def test_the_realistic_run_says_what_was_found() -> None:
    # Width 192 is unconverged (2.33), 256 censored: the span is over the seven that count.
    assert first(report_run.summary()) == (
        "At half depth, 7 trained models of width 32 to 256 pack at least 1.8 to 2.9 contextual "
        "features per dimension (limited by the dictionary at width 256); the untrained twins at 4 "
        "of the widths pack 0.066 to 0.12 (not all converged)."
    )


def test_trained_minus_twin_by_hand() -> None:
    data = with_twins(lambda width: 0.5)
    row = read_summary(data).primary_rows[0]
    found = contrast(row)
    assert found is not None
    a, spread = report_run.CONTEXTUAL[32], 0.3
    assert found.difference.value == pytest.approx(0.5 * a)
    assert found.difference.low == pytest.approx(0.5 * a - np.hypot(0.07 * a, spread))
    assert found.difference.high == pytest.approx(0.5 * a + np.hypot(0.06 * a, spread))
    assert found.verdict is Verdict.MORE


def test_the_interval_of_a_difference_covers_as_it_claims() -> None:
    # Independent normal estimates with exact intervals: MOVER is then the textbook interval.
    rng = np.random.default_rng(0)
    sd_a, sd_b, truth, covered, n = 0.3, 0.5, 0.7, 0, 4000
    for a, b in zip(rng.normal(1.7, sd_a, n), rng.normal(1.0, sd_b, n), strict=True):
        record = report_run.packing_record(32) | {
            "per_dim": a,
            "value": 32 * a,
            "ci_low": 32 * (a - 1.96 * sd_a),
            "ci_high": 32 * (a + 1.96 * sd_a),
            "controls": [
                {
                    "name": "random_init",
                    "value": 32 * b,
                    "per_dim": b,
                    "ci_low": 32 * (b - 1.96 * sd_b),
                    "ci_high": 32 * (b + 1.96 * sd_b),
                }
            ],
        }
        (row,) = read_summary({"models": [], "packing": [record]}).packing
        found = contrast(row)
        assert found is not None
        low, high = found.difference.low, found.difference.high
        assert low is not None
        assert high is not None
        covered += low <= truth <= high
    # The standard error of a 95% coverage over 4,000 draws is 0.35%.
    assert covered / n == pytest.approx(0.95, abs=0.011)


def test_no_difference_from_the_twin_is_the_first_thing_said() -> None:
    text = first(with_twins(lambda width: 1.0))
    assert text.startswith("Packing is not distinguishable from an untrained network's: ")
    assert "trained minus twin includes zero" in text


def test_no_difference_at_some_widths_names_them_first() -> None:
    text = first(with_twins(lambda width: 1.0 if width in (48, 64) else 0.1))
    assert text.startswith(
        "Packing is not distinguishable from an untrained network's at widths 48 and 64 "
        "(2 of 8 models with a twin): "
    )


def test_a_clear_difference_is_not_called_indistinguishable() -> None:
    assert "not distinguishable" not in first(with_twins(lambda width: 0.1))


def test_twins_that_pack_more_are_said_to() -> None:
    text = first(with_twins(lambda width: 2.0))
    assert text.startswith("Trained networks pack fewer than untrained ones: ")


def test_a_censored_count_leaves_the_difference_open_above() -> None:
    data = with_twins(lambda width: 0.1)
    for record in data["packing"]:
        record |= {"censored": True, "ci_high": None, "identified": False}
    row = read_summary(data).primary_rows[0]
    found = contrast(row)
    assert found is not None
    assert found.difference.high is None
    assert found.verdict is Verdict.MORE
    assert "(limited by the dictionary)" in first(data)


def test_counts_that_fill_their_dictionaries_are_said_to() -> None:
    data = with_twins(lambda width: 0.1)
    for record in data["packing"]:
        full = 0.97 * record["d_sae"]
        record |= {"value": full, "per_dim": 7.76, "ci_low": 0.9 * full, "ci_high": None,
                   "censored": True, "identified": False}  # fmt: skip
    text = first(data)
    assert (
        "at least 7.8 contextual features per dimension, about all that their dictionaries " in text
    )
    assert "have room for (8 per dimension); their untrained twins pack 0.1" in text
    assert any(t.startswith("No rank correlation") for t in caveats(read_summary(data)))


def test_what_was_not_tested_is_not_called_unconverged() -> None:
    data = report_run.summary()
    for record in data["packing"]:
        record |= {"converged": None}
    assert "may be used (convergence not tested)" in first(data)
    found = caveats(read_summary(data))
    assert any(t.startswith("Not tested: whether 8 of 8 primary counts") for t in found)
    assert not any(t.startswith("Unconverged") for t in found)
    replies = dict(objections(read_summary(data)))
    assert replies["The dictionaries were not trained long enough."].startswith("Not answered")


def test_a_twin_beside_a_count_that_may_not_be_used_was_measured() -> None:
    data = report_run.summary()
    for record in data["packing"]:
        if record["controls"]:
            record |= {"converged": False, "identified": False, "reason": "undertrained"}
    text = first(data)
    assert "untrained twins were measured at widths 32, 64, 128 and 256 alone" in text
    assert "no untrained twin was measured" not in text


def test_losses_per_byte_are_told_per_byte() -> None:
    """Models of several tokenizers: the study says which loss it compares."""
    data = report_run.summary()
    for model in data["models"]:
        model["loss_ci_nats_per_byte"] = [x / 3.1 for x in model["loss_ci_nats_per_token"]]
    per_token = read_summary(data).models[0].loss
    data["scaling"]["loss"] = "loss_nats_per_byte"
    model = read_summary(data).models[0]
    assert model.loss.value == pytest.approx(per_token.value / 3.1)
    assert model.loss.low == pytest.approx(per_token.low / 3.1)
    said = " ".join((*answer(read_summary(data)).more, *(
        figure.alt for figure in all_figures(read_summary(data)).values())))  # fmt: skip
    assert "nats per byte at width 32" in said
    assert "nats per token" not in said


def test_two_full_dictionaries_tell_nothing_apart() -> None:
    """A twin that fills its dictionary above the model's count packs no more for it."""
    data = with_twins(lambda width: 1.1)
    for record in data["packing"]:
        record |= {"censored": True, "identified": False}
        record["controls"][0] |= {"censored": True}
    found = contrast(read_summary(data).primary_rows[0])
    assert found is not None
    assert found.difference.low is found.difference.high is None
    text = first(data)
    assert "cannot tell a trained network from an untrained one" in text
    assert "pack fewer" not in text
    assert "their untrained twins pack at least" in text
    assert any(text.startswith("Full twins") for text in caveats(read_summary(data)))


def test_a_full_twin_below_a_count_bounds_the_difference_from_above_only() -> None:
    data = with_twins(lambda width: 0.5)
    for record in data["packing"]:
        record["controls"][0] |= {"censored": True}
    found = contrast(read_summary(data).primary_rows[0])
    assert found is not None
    assert found.difference.low is None
    assert found.difference.high is not None
    assert found.verdict is Verdict.UNKNOWN


def test_an_older_summary_has_no_upper_end_where_it_was_full() -> None:
    """Runs that gave the interval of a full dictionary are read as what they can say."""
    data = with_twins(lambda width: 0.1)
    for record in data["packing"]:
        record |= {"censored": True, "identified": False}
    row = read_summary(data).primary_rows[0]
    assert row.per_dim.low is not None
    assert row.per_dim.high is None


def test_twins_that_still_rise_are_no_settled_level() -> None:
    data = with_twins(lambda width: 0.4)
    for record in data["packing"][:2]:
        twin = record["controls"][0]
        twin |= {"converged": False, "value_half": 0.1 * twin["value"]}
    said = answer(read_summary(data)).more
    [text] = [t for t in said if t.startswith("The untrained count has not settled")]
    low, high = (0.4 * report_run.CONTEXTUAL[w] for w in report_run.WIDTHS[:2])
    assert f"at widths 32 and 48: {0.1 * low:.2g} to {0.1 * high:.2g} per dimension" in text
    assert f"{low:.2g} to {high:.2g} after all" in text
    assert any(text.startswith("Twins still rising (widths 32 and 48)") for text in
               caveats(read_summary(data)))  # fmt: skip
    for record in data["packing"][:2]:
        record["controls"][0] |= {"converged": True}
    assert not any("has not settled" in t for t in answer(read_summary(data)).more)


def test_the_bound_says_what_larger_dictionaries_count() -> None:
    data = with_twins(lambda width: 0.1)
    larger = [
        r | {"d_sae": 2 * r["d_sae"], "per_dim": 2 * r["per_dim"], "value": 2 * r["value"],
             "controls": [], "converged": False}
        for r in data["packing"]
    ]  # fmt: skip
    for record in data["packing"]:
        record |= {"outgrown": True}
    [alone] = [t for t in answer(read_summary(data)).more if t.startswith("These are lower")]
    assert "of what larger dictionaries would find again: they are taken with 8 latents" in alone
    assert alone.endswith("latents that stand for two are in it.")
    both = read_summary(data | {"packing": data["packing"] + larger})
    [text] = [t for t in answer(both).more if t.startswith("These are lower bounds")]
    assert "8 latents per dimension" in text
    assert "With 16 per dimension 8 models count 3.7 to 5.7 (8 of them not converged)" in text
    assert "the count still grows with the dictionary." in text
    assert any(t.startswith("Outgrown (widths 32") for t in caveats(both))


def test_a_beta_of_one_from_bounds_may_be_the_dictionaries() -> None:
    data = with_twins(lambda width: 0.1)
    data["exponent"] = {"beta": 1.0, "ci_low": 0.9, "ci_high": 1.1, "n_models": 8}
    held = "Counts held down by dictionaries of one size per dimension would give 1 too."
    assert any(held in t for t in answer(read_summary(data)).more)
    data["exponent"] = {"beta": 0.5, "ci_low": 0.4, "ci_high": 0.6, "n_models": 8}
    assert not any(held in t for t in answer(read_summary(data)).more)
    data["exponent"] = {"beta": 1.0, "ci_low": 0.9, "ci_high": 1.1, "n_models": 8}
    for record in data["packing"]:
        record |= {"estimator": "saturation"}
    data["primary"] = data["primary"] | {"estimator": "saturation"}
    assert not any(held in t for t in answer(read_summary(data)).more)


def test_without_intervals_nothing_is_told_apart() -> None:
    data = with_twins(lambda width: 0.1)
    for record in data["packing"]:
        record["controls"][0] |= {"ci_low": None, "ci_high": None}
    assert "without an interval" in first(data)


def test_without_a_twin_the_sentence_says_so() -> None:
    data = with_twins(lambda width: 0.1)
    for record in data["packing"]:
        record["controls"] = []
    assert "no untrained twin was measured" in first(data)


def test_twins_without_a_count_are_not_twins_that_were_not_measured() -> None:
    data = with_twins(lambda width: 0.1)
    for record in data["packing"]:
        record["controls"][0] |= {"value": None, "per_dim": None, "ci_low": None, "ci_high": None}
    assert "their untrained twins gave no count" in first(data)
    assert any("gave no count" in text for text in caveats(read_summary(data)))


def test_twins_that_did_not_converge_are_said_not_to() -> None:
    data = with_twins(lambda width: 0.1)
    for record in data["packing"]:
        record["controls"][0] |= {"converged": False}
    assert first(data).endswith("(not converged).")


def test_nothing_converged_is_not_identified() -> None:
    data = report_run.summary()
    for record in data["packing"]:
        record |= {"converged": False, "identified": False, "reason": "undertrained"}
    assert first(data) == (
        "Not identified: none of the 8 counts of contextual features may be used (not converged), "
        "so this run does not say how many a layer packs."
    )


def test_a_preview_says_so_first_and_shows_unconverged_numbers() -> None:
    data = report_run.summary() | {"preview": True, "preset": "quick"}
    assert first(data).startswith("Preview, not a result: at half depth, 7 trained models")
    for record in data["packing"]:
        record |= {"converged": False, "identified": False, "reason": "undertrained"}
    text = first(data)
    assert text.startswith("Preview, not a result (no count has converged): at half depth, 8 ")


def test_a_preview_of_the_null_result_says_both() -> None:
    text = first(with_twins(lambda width: 1.0) | {"preview": True})
    assert text.startswith(
        "Preview, not a result: packing is not distinguishable from an untrained"
    )


def test_a_count_of_nothing_is_no_lower_bound() -> None:
    data = with_twins(lambda width: 0.0)
    for record in data["packing"]:
        record |= {"value": 0.0, "per_dim": 0.0, "ci_low": 0.0, "ci_high": 0.0}
    text = first(data)
    assert text.startswith("Packing is not distinguishable from an untrained network's: ")
    assert "pack 0 contextual features per dimension" in text


def test_two_models_are_named_and_not_spanned() -> None:
    data = with_twins(lambda width: 0.1)
    data["packing"] = data["packing"][:2]
    assert "2 trained models of widths 32 and 48 pack" in first(data)


def test_an_empty_run_is_not_identified() -> None:
    assert first({}).startswith("Not identified: this run holds no count")


def test_one_model_has_its_interval_and_no_talk_of_width() -> None:
    data = with_twins(lambda width: 0.1)
    data["packing"], data["models"] = data["packing"][:1], data["models"][:1]
    data["exponent"] = {"beta": None, "reason": "one model"}
    found = answer(read_summary(data))
    assert "the trained model of width 32 packs at least 1.8 (95% interval 1.7 to 1.9)" in (
        found.first
    )
    assert "its untrained twin packs" in found.first
    assert any("one model" in text for text in found.more)
    assert not any("Across" in text for text in found.more)


def test_the_raw_stream_is_never_called_contextual() -> None:
    data = report_run.summary()
    data["primary"] = data["primary"] | {"about": "all"}
    assert "contextual" not in first(data)


@pytest.mark.parametrize(
    ("low", "high", "says"),
    [
        (0.8, 1.2, "compatible with the same packing at every width (1), not with"),
        (-0.2, 0.4, "compatible with a fixed stock of features (0), not with"),
        (-0.2, 1.2, "too uncertain"),
        (0.2, 0.8, "more features, but fewer per dimension"),
        (1.1, 1.3, "packing per dimension rises"),
        (-0.4, -0.1, "the count itself falls"),
        (None, None, "no interval"),
    ],
)
def test_beta_is_read_against_zero_and_one(
    low: float | None, high: float | None, says: str
) -> None:
    assert says in reading_of(Exponent(beta=Interval(0.5, low, high)))


def test_no_exponent_without_a_count_is_said_in_plain_words() -> None:
    data = report_run.summary()
    reason = "0 models with a count; beta needs 4"
    data["exponent"] = {"beta": None, "n_models": 0, "reason": reason}
    found = " ".join(answer(read_summary(data)).more)
    assert "grows with width is not identified: no count here may be used for that." in found
    assert f"The packing exponent beta is not identified: {reason}." in caveats(read_summary(data))
    data["exponent"] |= {"n_models": 3}
    assert reason in " ".join(answer(read_summary(data)).more)


def test_one_training_run_per_model_is_said_across_widths_alone() -> None:
    """The arm has seeds of its own, and one model has no curve that a seed could bend."""
    said = "Each model is one training run"
    data = report_run.summary()
    assert any(said in text for text in caveats(read_summary(data)))
    data["packing"] = data["packing"][:1]
    assert not any(said in text for text in caveats(read_summary(data)))


def test_width_is_never_taken_for_an_explanation() -> None:
    assert (
        "cannot be told here: width drives both"
        in answer(read_summary(report_run.summary())).more[-1]
    )


def test_the_constant_width_arm_answers_where_it_ran() -> None:
    data = report_run.summary()
    data["correlation"].append(
        {
            "arm": "constant_width",
            "estimator": "reproducible",
            "n_models": 12,
            "spearman": -0.4,
            "p_exact": 0.2,
            "ci_low": -0.8,
            "ci_high": 0.2,
        }
    )
    last = answer(read_summary(data)).more[-1]
    assert "At constant width, packing and loss have Spearman correlation −0.40" in last
    assert "exact p 0.20 over 12 models" in last


def test_caveats_name_the_widths_they_hold_for() -> None:
    found = caveats(read_summary(report_run.summary()))
    by_word = {text.split(maxsplit=1)[0].rstrip(":"): text for text in found}
    assert "1 of 8 primary counts (width 192)" in by_word["Unconverged"]
    assert "(width 256)" in by_word["Censored"]
    assert "all 8 primary counts" in by_word["Uncalibrated"]
    assert "4 of 8 models (widths 32, 64, 128 and 256)" in by_word["Twins"]
    # Of the seven that count one is a bound, which has no rank.
    assert "with 6 the smallest" in by_word["Few"]
    assert not any("Preview" in text for text in found)


def test_few_models_get_their_smallest_possible_p() -> None:
    data = with_twins(lambda width: 0.1)
    data["packing"] = data["packing"][:4]
    (text,) = [t for t in caveats(read_summary(data)) if t.startswith("Few models")]
    # 2 / 4! by hand.
    assert "is 0.083, so none can reach .05" in text


def test_warnings_that_the_caveats_say_are_not_repeated() -> None:
    summary = read_summary(report_run.summary())
    assert len(summary.warnings) == 2
    assert remaining_warnings(summary) == (summary.warnings[1],)


def test_the_warnings_of_the_study_begin_as_expected() -> None:
    # The study words them in another module: a changed wording would be said twice.
    source = Path(summary_module.__file__).read_text("utf-8")
    for start in SAID_HERE:
        head = start.rstrip(":")
        assert head in source, f"{start!r} is no warning of the study any more"


def test_a_clean_run_has_only_the_caveats_it_deserves() -> None:
    data = with_twins(lambda width: 0.1)
    for record in data["packing"]:
        record |= {"calibration": "bias 1%", "estimator": "saturation", "fvu_matched": True}
    data["primary"] = data["primary"] | {"estimator": "saturation"}
    [said] = caveats(read_summary(data))
    assert said.startswith("Each model is one training run")
