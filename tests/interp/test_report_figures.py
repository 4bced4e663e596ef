"""The figures: every number of the run in them, nothing by colour alone, files on white."""

import copy
import itertools
import struct
from typing import Any

import pytest
import report_run

from interp.report import marks, static
from interp.report.figures import all_figures
from interp.report.reading import read_summary
from interp.report.theme import KINDS, SHAPES, dark, light


@pytest.fixture(scope="module")
def figures() -> dict[str, marks.Figure]:
    return all_figures(read_summary(report_run.summary()))


def layers(figure: marks.Figure, mark: str) -> list[dict[str, Any]]:
    return [one for one in figure.spec["layer"] if one["mark"]["type"] == mark]


def values(figure: marks.Figure, layer: dict[str, Any]) -> list[dict[str, Any]]:
    """The data of a layer, which Altair keeps once per specification, under a name."""
    return figure.spec["datasets"][layer["data"]["name"]]


def symbols(figure: marks.Figure) -> list[dict[str, Any]]:
    (found,) = [one for one in layers(figure, "point") if "fill" in one["encoding"]]
    return values(figure, found)


def test_a_full_run_has_every_figure_and_a_bare_one_none(
    figures: dict[str, marks.Figure],
) -> None:
    assert list(figures) == [
        "packing_against_loss",
        "loss_against_width",
        "packing_against_width",
        "exponent",
        "packing_against_width_all",
        "packing_by_layer",
        "packing_by_depth",
        "count_against_strictness",
        "overlap_against_width",
    ]
    assert all_figures(read_summary({})) == {}


def test_the_map_has_a_cell_for_every_model_and_depth_with_its_number(
    figures: dict[str, marks.Figure],
) -> None:
    figure = figures["packing_by_layer"]
    (drawn,) = layers(figure, "rect")
    cells = {(cell["label"], cell["depth"]): cell["text"] for cell in values(figure, drawn)}
    assert len(cells) == 4 * len(report_run.WIDTHS)
    assert cells["32", "50%"] == "1.8"
    assert cells["32", "100%"] == "2.2"
    assert cells["192", "50%"] == "(2.3)", "not converged"
    assert all(cell["text"] for text in layers(figure, "text") for cell in values(figure, text))
    # Wide models on top, as in a plot.
    assert drawn["encoding"]["y"]["sort"] == [str(w) for w in reversed(report_run.WIDTHS)]
    assert drawn["encoding"]["x"]["sort"] == ["25%", "50%", "75%", "100%"]


@pytest.mark.parametrize("config", [light(), dark()], ids=["light", "dark"])
def test_the_numbers_of_the_map_are_readable_on_every_shade(config: dict[str, Any]) -> None:
    ink = config["style"]["label"]["color"]
    # What WCAG asks of small text.
    assert all(contrast_ratio(ink, shade) > 4.5 for shade in config["range"]["heatmap"])


def test_one_width_has_no_loss_curve_and_its_twin_beside_it() -> None:
    data = report_run.summary()
    name = data["models"][0]["name"]
    only = {
        "models": data["models"][:1],
        "packing": [record for record in data["packing"] if record["model"] == name],
    }
    drawn = all_figures(read_summary(data | only))
    assert "loss_against_width" not in drawn
    figure = drawn["packing_against_width"]
    (points,) = [one for one in layers(figure, "point") if "fill" in one["encoding"]]
    low, high = points["encoding"]["x"]["scale"]["domain"]
    model, twin = (point["x"] for point in values(figure, points))
    assert low < model < twin < high
    assert (twin - model) / (high - low) < 0.1


def test_one_depth_or_one_model_needs_no_map() -> None:
    data = report_run.summary()
    one_depth = data | {"packing": [r for r in data["packing"] if r["layer"] == 1]}
    assert "packing_by_layer" not in all_figures(read_summary(one_depth))
    first = data["models"][0]["name"]
    one_model = data | {"packing": [r for r in data["packing"] if r["model"] == first]}
    assert "packing_by_layer" not in all_figures(read_summary(one_model))


def test_the_headline_has_one_point_per_model_and_one_per_twin(
    figures: dict[str, marks.Figure],
) -> None:
    drawn = symbols(figures["packing_against_loss"])
    trained = {point["label"]: point for point in drawn if point["kind"] in KINDS[:2]}
    assert set(trained) == {str(width) for width in report_run.WIDTHS}
    for width in report_run.WIDTHS:
        point = trained[str(width)]
        assert point["x"] == pytest.approx(report_run.loss(width))
        assert point["y"] == pytest.approx(report_run.CONTEXTUAL[width])
    twins = {point["label"]: point for point in drawn if point["kind"] in KINDS[2:]}
    assert set(twins) == {str(width) for width in report_run.TWIN_WIDTHS}
    # A twin stands at the loss of the model it mirrors.
    assert all(twins[label]["x"] == trained[label]["x"] for label in twins)


def test_unconverged_is_hollow_and_censored_has_an_arrow_for_an_upper_end(
    figures: dict[str, marks.Figure],
) -> None:
    figure = figures["packing_against_loss"]
    kinds = {point["label"]: point["kind"] for point in symbols(figure) if "arrow" in point}
    assert kinds["192"] == "trained, enters no fit"
    assert {kinds[label] for label in kinds if label != "192"} == {"trained"}
    twins = {p["label"]: p["kind"] for p in symbols(figure) if "arrow" not in p}
    assert twins["64"] == "untrained twin, not settled"
    (arrow,) = [one for one in layers(figure, "point") if "fill" not in one["encoding"]]
    assert [point["label"] for point in values(figure, arrow)] == ["256"]
    (censored,) = values(figure, arrow)
    assert censored["high"] == censored["y"]


def test_kinds_differ_by_shape_or_fill_and_not_only_by_colour() -> None:
    for theme in (light(), dark()):
        paper = theme["background"]
        hollow = [fill == paper for fill in theme["range"]["ordinal"]]
        assert len(set(zip(SHAPES, hollow, strict=True))) == len(KINDS)


def contrast_ratio(one: str, other: str) -> float:
    """WCAG 2.2 contrast ratio of two #rrggbb colours."""

    def luminance(colour: str) -> float:
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return sum(w * p for w, p in zip((0.2126, 0.7152, 0.0722), linear, strict=True))

    bright, dim = sorted((luminance(one), luminance(other)), reverse=True)
    return (bright + 0.05) / (dim + 0.05)


def test_marks_and_words_stand_out_from_the_paper() -> None:
    assert contrast_ratio("#ffffff", "#000000") == pytest.approx(21)
    for theme in (light(), dark()):
        paper = theme["background"]
        # WCAG: 3 for graphical objects, 4.5 for text.
        assert all(contrast_ratio(paper, stroke) >= 3 for stroke in theme["range"]["category"])
        for words in (theme["axis"]["labelColor"], theme["style"]["note"]["color"]):
            assert contrast_ratio(paper, words) >= 4.5


def test_no_specification_names_a_colour(figures: dict[str, marks.Figure]) -> None:
    def colours(value: Any) -> list[str]:
        if isinstance(value, dict):
            return [c for inner in value.values() for c in colours(inner)]
        if isinstance(value, list):
            return [c for inner in value for c in colours(inner)]
        return [value] if isinstance(value, str) and value.startswith("#") else []

    for figure in figures.values():
        assert colours(figure.spec) == []
        assert "config" not in figure.spec


def test_the_alternative_text_tells_every_point(figures: dict[str, marks.Figure]) -> None:
    text = figures["packing_against_loss"].alt
    assert "width 32: 1.83 [1.70, 1.94] at 2.94 nats per token, untrained twin 0.118" in text
    assert "width 192" in text
    assert "not converged" in text
    assert ", a lower bound" in text
    assert all(figure.alt.endswith(".") for figure in figures.values())


def test_a_full_dictionary_is_drawn_as_a_ceiling(figures: dict[str, marks.Figure]) -> None:
    """Where it holds counts down, and not above counts that leave it room."""
    name = "packing_against_loss"
    assert "dashed" not in figures[name].subtitle
    data = report_run.summary()
    for record in data["packing"]:
        full = 0.97 * record["d_sae"]
        record |= {"value": full, "per_dim": 0.97 * 8, "ci_low": 0.9 * full, "ci_high": None}
        record |= {"censored": True, "identified": False, "fvu_matched": True, "converged": True}
    figure = all_figures(read_summary(data))[name]
    assert "dashed: dictionary size" in figure.subtitle
    levels = [values(figure, one) for one in layers(figure, "rule")]
    assert [{"y": 8.0}] in levels
    assert [{"y": 8.0}] not in [values(figures[name], one) for one in layers(figures[name], "rule")]
    # By dictionary size the line is where a count is the size.
    for record in list(data["packing"]):
        data["packing"].append(record | {"d_sae": 2 * record["d_sae"]})
    sizes = all_figures(read_summary(data))["packing_by_dictionary_size"]
    assert "dashed: dictionary size" in sizes.subtitle
    [line] = [one for one in layers(sizes, "line") if "detail" not in one["encoding"]]
    assert values(sizes, line) == [{"x": 8.0, "y": 8.0}, {"x": 16.0, "y": 16.0}]


def test_the_loss_curve_is_the_fitted_formula(figures: dict[str, marks.Figure]) -> None:
    (layer,) = layers(figures["loss_against_width"], "line")
    curve = values(figures["loss_against_width"], layer)
    assert [curve[i]["x"] for i in (0, -1)] == pytest.approx([32, 256])
    assert [p["y"] for p in curve] == pytest.approx([8.31 / p["x"] ** 0.61 + 1.94 for p in curve])


def test_reference_lines_have_the_slopes_they_are_labelled_with(
    figures: dict[str, marks.Figure],
) -> None:
    figure = figures["packing_against_width"]
    ends = [[values(figure, line)[i]["y"] for i in (0, -1)] for line in layers(figure, "line")]
    assert ends[0][0] == pytest.approx(ends[0][1])
    # A fixed stock over eight times the dimensions is an eighth per dimension.
    assert ends[1][0] / ends[1][1] == pytest.approx(8)


def test_without_a_fit_there_is_no_curve_and_without_beta_no_lines() -> None:
    data = report_run.summary()
    data["scaling"], data["exponent"] = {"reason": "three widths"}, {"beta": None}
    found = all_figures(read_summary(data))
    assert layers(found["loss_against_width"], "line") == []
    assert "no curve" in found["loss_against_width"].alt
    assert "exponent" not in found
    assert layers(found["packing_against_width"], "line") == []


def test_missing_numbers_are_left_out_and_not_drawn_at_zero() -> None:
    data = report_run.summary()
    for record in data["packing"]:
        if record["model"] == "ladder/d048":
            record |= {"value": None, "per_dim": None, "ci_low": None, "ci_high": None}
    data["models"][2]["loss_nats_per_token"] = None
    found = all_figures(read_summary(data))
    labels = {point["label"] for point in symbols(found["packing_against_loss"])}
    assert labels == {"32", "96", "128", "160", "192", "256"}


def test_several_sizes_give_a_profile_over_them() -> None:
    data = report_run.summary()
    wider = [report_run.packing_record(w) | {"d_sae": 16 * w} for w in (32, 64)]
    data["packing"] += wider
    found = all_figures(read_summary(data))["packing_by_dictionary_size"]
    assert {point["x"] for point in symbols(found)} == {8, 16}


def test_depths_whose_dictionaries_were_trained_longer_are_named() -> None:
    data = report_run.summary()
    names = ("packing_by_layer", "packing_by_depth")
    alike = all_figures(read_summary(data))
    assert not any("SAE tokens" in alike[name].subtitle for name in names)
    for row in data["packing"]:
        per_latent = 4.0e6 / row["d_sae"]
        row["tokens_per_latent"] = per_latent * (4 if row["layer_fraction"] == 0.5 else 1)
    told = "SAE tokens 16.0M at 50%, else 4.0M"
    found = all_figures(read_summary(data))
    assert all(told in found[name].subtitle for name in names)


def test_a_figure_keeps_to_its_stream_and_its_dictionary_size() -> None:
    data = report_run.summary()
    for about in ("contextual", "all"):
        data["packing"].append(report_run.packing_record(32, 1, about) | {"d_sae": 16 * 32})
    found = all_figures(read_summary(data))
    n = len(report_run.WIDTHS)
    # Four depths of the contextual stream at the primary size, and no row of the raw one.
    assert len(symbols(found["packing_by_depth"])) == 4 * n
    assert len(symbols(found["packing_by_dictionary_size"])) == n + 1
    raw = [p for p in symbols(found["packing_against_width_all"]) if p["kind"] in KINDS[:2]]
    assert len(raw) == n


def saturated(value: float | None) -> dict[str, Any]:
    """The run with saturation as its primary estimator, over the plain counts."""
    data = report_run.summary()
    data["primary"] = data["primary"] | {"estimator": "saturation"}
    for width in report_run.WIDTHS:
        for about in ("contextual", "all"):
            record = report_run.packing_record(width, 1, about)
            number = None if value is None else value * width
            record |= {"estimator": "saturation", "d_sae": 32 * width}
            record |= {"value": number, "per_dim": value, "ci_low": None, "ci_high": None}
            data["packing"].append(record)
    return data


def test_profiles_follow_the_plain_count_whatever_the_primary_is() -> None:
    found = all_figures(read_summary(saturated(3.5)))
    assert {point["y"] for point in symbols(found["packing_against_loss"])} >= {3.5}
    assert "packing_by_depth" in found
    assert "packing_against_width_all" in found
    assert 3.5 not in {point["y"] for point in symbols(found["packing_by_depth"])}
    raw = {p["y"] for p in symbols(found["packing_against_width_all"]) if p["kind"] in KINDS[:2]}
    assert sorted(raw) == pytest.approx(sorted(1.9 * v for v in report_run.CONTEXTUAL.values()))


def test_where_no_primary_count_has_a_number_the_plain_counts_are_drawn() -> None:
    found = all_figures(read_summary(saturated(None)))
    drawn = {
        point["label"]: point["y"]
        for point in symbols(found["packing_against_loss"])
        if point["kind"] in KINDS[:2]
    }
    assert drawn == {str(w): pytest.approx(v) for w, v in report_run.CONTEXTUAL.items()}


def test_labels_at_line_ends_keep_their_order_and_their_distance() -> None:
    assert marks.spread([1, 1.1, 3], 1) == pytest.approx([0.55, 1.55, 3])
    assert marks.spread([], 1) == []
    heights = [2.0, 2.05, 2.1, 0.1, 2.9, 3.0]
    moved = marks.spread(heights, 0.4)
    order = sorted(range(len(heights)), key=heights.__getitem__)
    gaps = [moved[b] - moved[a] for a, b in itertools.pairwise(order)]
    assert min(gaps) >= 0.4 - 1e-9
    assert sum(moved) == pytest.approx(sum(heights))


def test_files_are_white_and_wide_enough_for_a_readme(figures: dict[str, marks.Figure]) -> None:
    figure = figures["packing_against_loss"]
    before = copy.deepcopy(figure.spec)
    vector = static.svg(figure)
    assert 'fill="#ffffff"' in vector
    assert "Contextual features per dimension against loss" in vector
    picture = static.png(vector)
    assert picture.startswith(b"\x89PNG")
    width, height = struct.unpack(">II", picture[16:24])
    assert width == 1600
    assert 800 < height < 1600
    assert figure.spec == before
