"""A referee's objections: each has a reply made of the run's numbers, or says that it has none."""

from typing import Any

import arm_run
import pytest
import report_run

from interp.report.objections import objections
from interp.report.reading import read_summary

Data = dict[str, Any]


def replies(data: Data) -> dict[str, str]:
    return dict(objections(read_summary(data)))


def about(data: Data, word: str) -> str:
    [reply] = [reply for said, reply in replies(data).items() if word in said]
    return reply


@pytest.fixture
def run() -> Data:
    data = report_run.summary()
    for record in data["packing"]:
        record |= {"null": 1.0, "value_half": 0.5 * record["value"]}
        for control in record["controls"]:
            control |= {"k": 4, "d_sae": record["d_sae"]}
    return data


def test_every_objection_has_a_reply_whatever_there_is(run: Data) -> None:
    asked = [said for said, _ in objections(read_summary(run))]
    for data in (run, {}, run | {"packing": []}):
        found = objections(read_summary(data))
        assert [said for said, _ in found] == asked
        assert all(reply.endswith(".") and "None" not in reply for _, reply in found)
    assert about({}, "untrained").startswith("Not answered: no model whose count may be used has a")
    assert about({}, "equally well").startswith("Not answered")
    assert about({}, "dictionaries were not trained").startswith("Not answered")


def test_the_twin_is_answered_with_the_differences(run: Data) -> None:
    # Four widths have twins; the one of width 64 had not converged.
    reply = about(run, "untrained network")
    assert "above zero for 4 of 4 pairs" in reply
    assert "1 twin (width 64) had not converged: there" in reply
    for record in run["packing"]:
        for control in record["controls"]:
            control |= {"value_half": 0.0}
    assert "1 of them still rising" in about(run, "untrained network")


def test_reconstruction_is_answered_with_fvu_and_k(run: Data) -> None:
    reply = about(run, "equally well")
    assert "0.15 to 0.17 in the models (k 8), 0.34 in the twins (k 4)" in reply
    assert "4 twins did not reach it" in reply


def test_what_was_taken_out_and_what_the_rest_is_worth(run: Data) -> None:
    whole = about(run, "small part")
    assert whole.startswith("On the whole stream trained models count 3.5 to 5.4 and twins 4.0 to ")
    assert "above zero for 0 of 4 pairs" in whole
    assert about(run, "does not use").startswith("Not answered")
    for record in run["packing"]:
        record |= {"ce_loss_recovered": 0.875}
        if record["about"] == "contextual":
            for one in (record, *record["controls"]):
                of = 0.66 if one is record else 0.42
                one |= {"variance_share_token": of, "variance_share_position": 0.01}
    assert about(run, "small part").startswith(
        "The means of tokens and positions, which are taken out, hold 66% and 1% of the variance "
        "in the models; 42% and 1% of the variance in the twins. On the whole stream"
    )
    assert "recover 88% of the loss" in about(run, "does not use")


def test_other_rules_for_k(run: Data) -> None:
    assert about(run, "another k") == "Not answered: one rule for k was run."
    primary = [r for r in run["packing"] if r["layer"] == 1 and r["about"] == "contextual"]
    run["sensitivity"] = [r | {"k_rule": "fvu"} for r in primary] + [
        r | {"k_rule": "constant", "k": 4, "per_dim": 1.25, "controls": []} for r in primary
    ]
    reply = about(run, "another k")
    assert "1.2 with the same k at every width (k 4; 1 of 8 not converged)" in reply
    assert reply.index("stated FVU") < reply.index("every width")
    assert reply.endswith("Untrained twins were counted with the first rule alone.")
    assert "differ at once" not in reply
    # As a summary has them: in the order of the rules' names, and with fewer tokens.
    run["sensitivity"] = [
        r | {"tokens_per_latent": r["tokens_per_latent"] / (4 if r["k_rule"] == "constant" else 1)}
        for r in run["sensitivity"][::-1]
    ]
    again = about(run, "another k")
    assert again.index("stated FVU") < again.index("every width")
    assert "so k and training differ at once" in again
    for record in run["sensitivity"]:
        record["controls"] = []
    assert "twins" not in about(run, "another k")


def test_training_is_answered_with_what_moved(run: Data) -> None:
    reply = about(run, "trained long enough")
    assert "7 of 8 counts stayed" in reply
    assert "(12,000 tokens per latent)" in reply, "the one that moved had 3,100"
    assert "counted 1.2 per dimension after half of them and 2.3 after all" in reply


def test_the_size_of_the_dictionary(run: Data) -> None:
    reply = about(run, "size of the dictionary")
    assert "The counts are 23% to 36% of D" in reply
    assert "1 of 7 is a lower bound, limited by the dictionary" in reply
    for record in run["packing"]:
        record |= {"censored": False, "reason": None, "identified": True, "converged": True}
    assert "no larger dictionary was trained" in about(run, "size of the dictionary")
    run["packing"] += [r | {"d_sae": 2 * r["d_sae"]} for r in run["packing"]]
    assert "hardly more" in about(run, "size of the dictionary")
    run["packing"][1] |= {"outgrown": True}
    assert "finds more at width 32" in about(run, "size of the dictionary")


def test_chance_and_calibration(run: Data) -> None:
    assert about(run, "Random directions").endswith("is subtracted: 1 latents here.")
    assert about(run, "such a count is right").startswith("Not answered by this run")
    run["packing"][1]["calibration"] = "bias +1.0%"
    one = run["packing"][1]["model"]
    reply = about(run, "such a count is right")
    assert reply.startswith(f"Of 7 counts 1 is calibrated; reproducible of {one} at blocks.")
    assert reply.endswith("hook_resid_post (contextual): bias +1.0%.")
    for record in run["packing"]:
        record["calibration"] = "bias +1.0%"
    reply = about(run, "such a count is right")
    assert reply.startswith("Of 7 counts 7 are calibrated; for example, reproducible of ")


def test_an_arm_is_asked_for_its_power() -> None:
    found = arm_run.summary(arm_run.decay_packs, arm_run.loss_follows)
    rho = found["arm"]["power"]["detectable_rho"]
    assert f"a correlation of {rho:.2f} or more among" in about(found, "So few models")
    assert "same lever pulled" in about(found, "Width drives both")
    assert "descriptive and tests nothing" in about(report_run.summary(), "Width drives both")
