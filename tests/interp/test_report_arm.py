"""The report of a study at constant width: what it concludes, draws and lists."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import arm_run
import pandas as pd
import pytest
import report_run

from interp.config import StudyConfig
from interp.report import headline, page, static
from interp.report.answering import answer
from interp.report.arm_tables import dose_table, lever_value, mediation_table, secondary_table
from interp.report.caveats import caveats
from interp.report.figures import all_figures
from interp.report.marks import Figure
from interp.report.multiples import MARGIN, in_width
from interp.report.objections import objections
from interp.report.placing import place
from interp.report.reading import RunRecords, read_summary
from interp.report.tables import correlation_table
from interp.report.theme import LEVER_SHAPES, LEVERS, dark, light
from interp.summary import summarise, tidy

Data = dict[str, Any]


@pytest.fixture(scope="module")
def whole() -> Data:
    """Packing and loss move together; one model has not converged."""
    return arm_run.summary(
        arm_run.decay_packs, arm_run.loss_follows, converged={arm_run.names()[3]: 0.0}
    )


@pytest.fixture
def planted(whole: Data) -> Data:
    return copy.deepcopy(whole)


def no_relation(data: Data) -> Data:
    data["correlation"][0] |= {"spearman": -0.1, "p_exact": 0.7, "ci_low": -0.5, "ci_high": 0.4}
    return data


def nothing_moves(data: Data) -> Data:
    for response in data["arm"]["dose_response"]:
        response["moves"] = False
    return data


def more(data: Data) -> str:
    return " ".join(answer(read_summary(data)).more)


# ---- the sentence


def test_both_move(planted: Data) -> None:
    text = headline(planted)
    assert text.startswith("At constant width 64, packing moves with row decay and tokens (")
    assert "contextual features per dimension over 18 models), and loss falls where packing" in text
    rho = planted["correlation"][0]["spearman"]
    assert f"(Spearman −{abs(rho):.2f}, 95% interval −" in text
    assert "no evidence" not in text


def test_packing_moves_and_loss_does_not(planted: Data) -> None:
    text = headline(no_relation(planted))
    assert "but there is no evidence that loss moves with it (Spearman −0.10" in text
    # 18 models: the power statement stands in the sentence.
    assert text.endswith(
        "; a correlation of 0.63 or more among as many independent models would have shown four "
        "times in five."
    )


def test_nothing_moves(planted: Data) -> None:
    text = headline(no_relation(nothing_moves(planted)))
    assert "no lever moves packing beyond chance" in text
    assert ", and there is no evidence that loss" in text
    assert "No lever moves packing or loss" in more(planted)


def test_loss_goes_with_packing_though_no_lever_moves_it(planted: Data) -> None:
    planted["correlation"][0] |= {"spearman": 0.6}
    assert "no lever moves packing beyond chance" in headline(nothing_moves(planted))
    assert ", yet loss rises where packing rises (Spearman 0.60" in headline(planted)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"spearman": None, "reason": "spearman: 2 models"}, "18 of 19 counts can be used"),
        ({"n_models": 4}, "so this run does not say whether loss moves with packing"),
    ],
)
def test_too_few_is_not_identified(planted: Data, change: Data, says: str) -> None:
    planted["correlation"][0] |= change
    assert headline(planted).startswith("Not identified at constant width 64: ")
    assert says in headline(planted)


def test_a_preview_says_so_first(planted: Data) -> None:
    planted["preview"] = True
    assert headline(planted).startswith("Preview, not a result: at constant width 64, packing")


@pytest.mark.parametrize(
    ("level", "opening"),
    [
        (1.0, "Packing of the base model is not distinguishable from an untrained network's, and"),
        (3.0, "The base model packs fewer than its untrained twin, and at constant"),
    ],
)
def test_a_twin_that_packs_as_much_comes_first(planted: Data, level: float, opening: str) -> None:
    for record in planted["packing"]:
        for control in record["controls"]:
            control |= {
                "value": level * record["value"],
                "per_dim": level * record["per_dim"],
                "ci_low": 0.9 * level * record["value"],
                "ci_high": 1.1 * level * record["value"],
            }
    assert headline(planted).startswith(opening)


def test_what_goes_under_the_sentence(planted: Data) -> None:
    text = more(planted)
    assert "Packing and loss both move with row decay and tokens; loss alone moves with matrix" in (
        text
    )
    assert "so differences between levers are not all of it" in text
    assert "exploratory" in text
    assert "With any one model left out Spearman lies between −0." in text
    assert "width drives both" not in text
    assert "so differences between levers are not all of it" in text
    planted["correlation"][0] |= {"p_within_levers": 0.4}
    assert "could be all there is to the relation" in more(planted)
    planted["arm"]["mediation"] |= {"loss_per_packing": None, "effects": [], "reason": "too few"}
    assert "goes through packing is not told: too few." in more(planted)


# ---- what must not be said: sentences found false by making up the outcomes they are for


@pytest.fixture
def made() -> Callable[..., Data]:
    """Decay and tokens move packing, and loss with it, where nothing else is said."""

    def make(**how: Any) -> Data:
        return arm_run.summary(arm_run.decay_packs, arm_run.loss_follows, **how)

    return make


def of_lever(*levers: str) -> list[str]:
    short = [arm_run.SHORT.get(lever, lever) for lever in levers]
    return [n for n in arm_run.names() if n.removeprefix("ladder/d064-").split("-")[0] in short]


def test_packing_that_was_not_tested_does_not_stand_still(made: Callable[..., Data]) -> None:
    data = made(converged=dict.fromkeys(arm_run.names(), 0.0))
    assert data["headline"].startswith("Not identified at constant width 64: 0 of 19 counts")
    text = more(data)
    assert "alone" not in text
    assert "Loss moves with matrix decay, row decay and tokens (beyond chance" in text
    assert "whether packing moves with matrix decay, projects, row decay and tokens could not" in (
        text
    )


def test_a_lever_without_counts_is_named_and_not_judged(made: Callable[..., Data]) -> None:
    data = made(converged=dict.fromkeys(of_lever("tokens"), 0.0))
    assert "packing moves with row decay (" in data["headline"]
    text = more(data)
    assert "; loss alone moves with matrix decay; loss moves with tokens (beyond chance" in text
    assert "; whether packing moves with tokens could not be tested." in text
    still = arm_run.summary(
        arm_run.nothing, arm_run.loss_follows, converged=dict.fromkeys(of_lever("tokens"), 0.0)
    )
    assert (
        "packing does not move beyond chance with matrix decay, projects and row decay, and with "
        "no other could be tested (" in still["headline"]
    )


def test_equal_counts_are_no_test_and_have_no_power(made: Callable[..., Data]) -> None:
    data = made(reproducible=dict.fromkeys(arm_run.names(), 150.0))
    assert "Not identified" in data["headline"]
    assert "No lever moves packing" not in more(data)
    said = [reply for _, reply in objections(read_summary(data))]
    assert not any("four times in five" in reply for reply in said)
    assert any("there was nothing to correlate" in reply for reply in said)


def test_full_dictionaries_are_in_no_sentence_and_hollow(made: Callable[..., Data]) -> None:
    full = of_lever("row_decay", "tokens", "projects")
    data = made(censored=dict.fromkeys(full, 1.0))
    left = len(arm_run.names()) - len(full)
    assert data["correlation"][0]["n_models"] == left
    assert f"features per dimension over {left} models)" in data["headline"]
    figure = all_figures(read_summary(data))["packing_against_loss"]
    assert {p["model"] for p in points(figure) if not p["counts"]} == set(full)
    assert "hollow: enters no test" in figure.subtitle


@pytest.mark.parametrize(
    ("over_all", "p", "within", "says"),
    [
        (-0.9, 0.001, 0.67, "runs the other way, and the one over the arm comes from differences"),
        (-0.9, 0.001, -0.67, "so differences between levers are not all of it"),
        (-0.1, 0.7, -0.67, ", which the arm as a whole does not show."),
    ],
)
def test_a_relation_within_levers_is_read_with_its_sign(
    planted: Data, over_all: float, p: float, within: float, says: str
) -> None:
    planted["correlation"][0] |= {
        "spearman": over_all, "p_exact": p, "within_levers": within, "p_within_levers": 0.01,
    }  # fmt: skip
    assert says in more(planted)


def test_no_relation_anywhere_is_explained_by_nothing(planted: Data) -> None:
    planted["correlation"][0] |= {"spearman": 0.1, "p_exact": 0.7, "p_within_levers": 0.5}
    assert "all there is" not in more(planted)


def test_the_range_without_a_lever_hides_no_sign(planted: Data) -> None:
    planted["arm"]["leave_one_out"]["without_block"] = {
        "row_decay": 0.55, "tokens": -0.3, "base": -0.7, "projects": None,
    }  # fmt: skip
    assert (
        "with all models of one lever left out between −0.70 (without base and seeds) and 0.55 "
        "(without row decay)" in more(planted)
    )


def test_other_measures_are_what_was_measured(planted: Data) -> None:
    assert "Of 4 other measures (2 estimators and the embedding's rows)," in more(planted)
    wider = arm_run.summary(
        arm_run.decay_packs, arm_run.loss_follows, layers=(1, 2), streams=("contextual", "all")
    )
    assert "2 depths, 2 streams, 3 estimators and the embedding's rows)" in more(wider)


def test_the_one_twin_is_told_of_its_own_model_and_counted_against_all(planted: Data) -> None:
    assert "The intervals of 18 of 18 models lie above that of the twin." in more(planted)
    (low,) = [r for r in planted["packing"] if r["model"] == "ladder/d064-rows-1"
              and r["estimator"] == "reproducible"]  # fmt: skip
    low |= {"value": 1.0, "per_dim": 1 / 64, "ci_low": 0.9, "ci_high": 1.1}
    assert "The intervals of 17 of 18 models lie above" in more(planted)


def test_models_of_one_k_are_compared_with_each_other(planted: Data) -> None:
    assert "All counts that are used have one k, 8." in more(planted)
    planted["arm"]["equal_k"] |= {
        "least": 3, "most": 5, "k": 4, "n_models": 12, "spearman": -0.4, "p": 0.2,
    }  # fmt: skip
    assert (
        "is 3 to 5, and a count may hang on k; among the 12 models with k 4 Spearman is −0.40"
        in (more(planted))
    )
    planted["arm"]["equal_k"] |= {"spearman": None, "p": None}
    assert "with k 4 there is no correlation to be had." in more(planted)
    planted["arm"]["equal_k"] |= {"n_models": 3}
    assert "a count may hang on k; fewer than 5 models have one k." in more(planted)


def test_models_are_compared_at_one_strictness(planted: Data) -> None:
    assert "Latents match from" not in more(planted)
    same = planted["arm"]["equal_strictness"]
    same |= {"least": 0.7, "most": 0.843, "cosine": 0.9, "n_models": 18, "spearman": -0.3, "p": 0.2}
    assert "cosine of 0.70 to 0.84 on, above what" in more(planted)
    assert "from 0.90 on in all models Spearman is −0.30 (p 0.20)." in more(planted)
    same |= {"spearman": None, "p": None}
    assert "from 0.90 on in all models there is no correlation to be had." in more(planted)
    same |= {"most": 0.7}
    assert "Latents match from a cosine of 0.70 on in all models." in more(planted)


def test_without_the_bases_count_the_rest_is_told(made: Callable[..., Data]) -> None:
    """Only the base has a twin; a study of hours must not end because its count is not settled."""
    data = made(converged={"ladder/d064": 0.0})
    assert data["headline"].startswith("At constant width 64, ")
    assert "over 18 models), yet loss falls where packing rises" in data["headline"]
    assert "stands beside base, whose own count may not be used" in more(data)


def test_n_of_many_sizes_has_no_one_k() -> None:
    config = StudyConfig(
        arm="constant_width", models=tuple(arm_run.names()), d_sae_per_d_model=(2, 4, 8, 16)
    )
    known = arm_run.facts(arm_run.loss_follows)
    rows = arm_run.rows(known, arm_run.decay_packs)
    sized = [row | {"d_sae": m * arm_run.WIDTH} for m in (2, 4, 8, 16) for row in rows]
    made = summarise(tidy(pd.DataFrame(sized), known), known, config)
    assert made["primary"]["estimator"] == "saturation"
    assert made["arm"]["equal_k"]["k"] is None
    assert "one k" not in more(made | {"command": "interp study", "wall_time_seconds": 1.0})


def test_five_models_have_the_power_of_a_perfect_order(made: Callable[..., Data]) -> None:
    kept = ["ladder/d064", *of_lever("projects")]
    data = made(converged={n: 0.0 for n in arm_run.names() if n not in kept})
    no_relation(data)
    assert headline(data).endswith("; so few models can show a perfect order and nothing less.")
    said = [reply for _, reply in objections(read_summary(data))]
    assert "True: so few models can show a perfect order and nothing less." in said


def test_figures_say_who_found_what_they_show(planted: Data) -> None:
    planted["primary"]["found_by"] = "all 5 seeds"
    for figure in all_figures(read_summary(planted)).values():
        assert "found by all 5 seeds" in figure.subtitle
        assert "found by all 5 seeds" in figure.alt


def test_caveats_of_an_arm(planted: Data) -> None:
    found = caveats(read_summary(planted))
    assert any("1 of 19 primary counts (rows-3)" in text for text in found)
    assert any("judged against 3 seeds" in text for text in found)
    assert any("amounts are judged by their trend" in text for text in found)
    assert not any("Too few models" in text for text in found)
    assert any("no independent draws" in text for text in found)
    assert any("One untrained twin stands for all" in text for text in found)
    # One width: that nothing can be fitted over widths is no news.
    assert not any("loss curve" in text or "exponent" in text for text in found)
    assert not any("uncertain by" in text for text in found)
    planted["arm"]["measurement_share"] = 0.4
    planted["arm"]["dose_response"][-1] |= {"p_trend": None}
    assert any("Too few models along tokens" in t for t in caveats(read_summary(planted)))
    assert any("40.0% of the variance" in text for text in caveats(read_summary(planted)))


# ---- figures


def layers(spec: Data, mark: str) -> list[Data]:
    return [one for one in spec["layer"] if one["mark"]["type"] == mark]


def data_of(spec: Data, layer: Data, datasets: Data) -> list[Data]:
    return datasets[layer["data"]["name"]]


def points(figure: Figure) -> list[Data]:
    found = layers(figure.spec, "point")
    return [row for one in found for row in data_of(figure.spec, one, figure.spec["datasets"])]


def test_an_arm_has_its_own_figures(planted: Data) -> None:
    drawn = all_figures(read_summary(planted))
    assert list(drawn) == ["packing_against_loss", "dose_response"]


def test_every_model_is_in_the_scatter_by_lever(planted: Data) -> None:
    figure = all_figures(read_summary(planted))["packing_against_loss"]
    drawn = {p["model"]: p for p in points(figure)}
    assert set(drawn) == set(arm_run.names())
    for model in planted["models"]:
        assert drawn[model["name"]]["x"] == model["loss_nats_per_token"]
    assert drawn["ladder/d064"]["lever"] == "base"
    assert drawn["ladder/d064-rows-1"]["lever"] == "row decay"
    assert [p["model"] for p in drawn.values() if not p["counts"]] == ["ladder/d064-rows-3"]
    (twin,) = [one for one in layers(figure.spec, "rule") if one["mark"].get("style") == "twin"]
    assert data_of(figure.spec, twin, figure.spec["datasets"])[0]["y"] == pytest.approx(0.09, 0.1)
    assert "Untrained twin" in figure.alt
    assert "row decay −1" in figure.alt


def test_a_twin_above_its_models_is_on_the_axis(planted: Data) -> None:
    for record in planted["packing"]:
        for control in record["controls"]:
            control |= {"value": 640.0, "per_dim": 10.0, "ci_low": 600.0, "ci_high": 680.0}
    drawn = all_figures(read_summary(planted))
    scatter = drawn["packing_against_loss"].spec["layer"][0]
    panel = drawn["dose_response"].spec["concat"][0]["layer"][-1]
    for layer in (scatter, panel):
        assert layer["encoding"]["y"]["scale"]["domain"][1] > 10


def test_levers_differ_by_shape_and_not_only_by_colour() -> None:
    assert len(set(LEVER_SHAPES)) == len(LEVERS)
    for theme in (light(), dark()):
        assert len(set(theme["range"]["diverging"])) == len(LEVERS)


def test_small_multiples_hold_the_base_in_every_column(planted: Data) -> None:
    figure = all_figures(read_summary(planted))["dose_response"]
    panels = figure.spec["concat"]
    assert figure.spec["columns"] == 4
    assert len(panels) == 12, "packing, loss and the rows' overlap"
    titles = [panel["layer"][-1]["encoding"]["x"]["title"] for panel in panels]
    assert titles == ["row decay", "matrix decay", "tokens", "projects"] * 3
    for panel, (lever, base) in zip(panels, [(t, 0) for t in titles], strict=True):
        rows = [
            row
            for one in layers(panel, "point")
            for row in data_of(panel, one, figure.spec["datasets"])
        ]
        (found,) = [row for row in rows if row["lever"] == "base"]
        key = {"row decay": "row_decay", "matrix decay": "matrix_decay"}.get(lever, lever)
        assert found["x"] == arm_run.BASE[key]
        assert len(rows) == len(arm_run.LEVERS[key]) + 1, base
    # The panels of one row are compared by height.
    for row in (panels[:4], panels[4:8], panels[8:]):
        scales = [panel["layer"][-1]["encoding"]["y"]["scale"] for panel in row]
        assert all(scale == scales[0] for scale in scales)


def test_panels_fill_their_place(planted: Data) -> None:
    figure = all_figures(read_summary(planted))["dose_response"]
    widths = {panel["width"] for panel in in_width(figure.spec, 800)["concat"]}
    assert widths == {200 - MARGIN}
    assert "width" not in figure.spec["concat"][0]
    assert static.standalone(figure)["title"]["text"] == figure.title


def test_without_losses_or_levers_nothing_is_drawn(planted: Data) -> None:
    for model in planted["models"]:
        model["loss_nats_per_token"] = None
    planted["arm"]["dose_response"] = []
    assert all_figures(read_summary(planted)) == {}


# ---- labels


def test_a_lone_label_stands_above_its_point() -> None:
    assert place([(50, 50)], [(20, 10)], left=0, right=100) == [(0, -12)]


def test_labels_keep_off_points_edges_and_each_other() -> None:
    # A second point just above: the label goes to the side. At the right edge: to the left.
    beside, _ = place([(50, 50), (50, 38)], [(20, 10), (0, 0)], left=0, right=100)
    assert beside == (17, 0)
    (edge, _) = place([(95, 50), (95, 38)], [(20, 10), (0, 0)], left=0, right=100)
    assert edge == (-17, 0)
    one, other = place([(50, 50), (50, 50)], [(20, 10), (20, 10)], left=0, right=100)
    assert one == (0, -12)
    assert other not in (None, one)


def test_a_label_without_room_is_left_out() -> None:
    crowd = [(50.0 + 8 * i, 50.0 + 8 * j) for i in range(-3, 4) for j in range(-3, 4)]
    ordered = [(50.0, 50.0), *[p for p in crowd if p != (50.0, 50.0)]]
    sizes = [(20.0, 10.0), *[(0.0, 0.0)] * 48]
    assert place(ordered, sizes, left=0, right=100)[0] is None


# ---- tables and page


def test_tables_hold_every_test(planted: Data) -> None:
    summary = read_summary(planted)
    assert summary.arm is not None
    doses = dose_table(summary.arm)
    assert doses is not None
    assert len(doses.rows) == 4 * 4, "packing, loss, and the rows' overlap and length"
    assert {row[0] for row in doses.rows} == {"row decay", "matrix decay", "tokens", "projects"}
    others = secondary_table(summary.arm)
    assert others is not None
    assert len(others.rows) == len(planted["arm"]["holm"])
    effects = mediation_table(summary.arm)
    assert effects is not None
    assert ("tokens", "3.15M") in {row[:2] for row in effects.rows}
    tests = correlation_table(summary)
    assert tests is not None
    assert [row[0] for row in tests.rows] == [
        "Spearman", "Kendall", "Spearman within levers", "Slope of loss",
    ]  # fmt: skip


def test_lever_values_as_read() -> None:
    values = (0.1, -1.0, 0.0, 6.0, 48.0, 25_165_824.0, 1_500.0, None)
    assert [lever_value(v) for v in values] == [
        "0.1", "−1", "0", "6", "48", "25.2M", "1.5k", "–",
    ]  # fmt: skip
    assert lever_value(100.0) == "100"


def test_the_page_speaks_of_levers_and_not_of_widths(
    planted: Data, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(page, "_vega", lambda: "/* vega */")
    render: Callable[[Data], str] = lambda data: page.render(  # noqa: E731
        RunRecords(read_summary(data), None, report_run.MANIFEST, "n_seeds: 5\n"),
        drawn := all_figures(read_summary(data)),
        dict.fromkeys(drawn, "<svg/>"),
    )
    text = render(planted)
    assert 'id="arm"' in text
    assert 'id="width"' not in text
    assert "How loss and packing change with width" not in text
    assert "Other measures against the loss (4)" in text
    plain = render(report_run.summary())
    assert 'id="arm"' not in plain
    assert 'id="width"' in plain


def test_a_mixed_model_is_told_where_there_is_one(planted: Data) -> None:
    assert read_summary(planted).mixed is None
    fitted = {"value": -0.2, "ci_low": -0.3, "ci_high": -0.1, "p": 0.002, "n_models": 12,
              "n_families": 3}  # fmt: skip
    mixed = read_summary(planted | {"mixed_model": fitted}).mixed
    line = page._mixed_line(mixed)
    assert "Across 3 families (12 models)" in line
    assert "−0.20 (95% interval −0.30 to −0.10) nats per byte, p 0.0020" in line
    assert page._mixed_line(None) == ""


@pytest.mark.slow
def test_a_run_folder_is_reported_whole(planted: Data, tmp_path: Path) -> None:
    written = page.write_report(arm_run.write_run(tmp_path, planted))
    assert {p.name for p in (written.parent / "figures").iterdir()} == {
        f"{name}.{kind}"
        for name in ("packing_against_loss", "dose_response")
        for kind in ("svg", "png")
    }
    assert json.loads((tmp_path / "summary.json").read_text())["headline"] == planted["headline"]
