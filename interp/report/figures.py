"""The figures: one Vega-Lite specification each, for the interactive page and the files alike."""

import math
from collections.abc import Sequence

import altair as alt

from interp.report import marks
from interp.report.arm_figures import arm_against_loss, dose_response
from interp.report.exponent import exponent_interval, exponent_lines
from interp.report.heat_map import heat_map
from interp.report.interval import Interval
from interp.report.marks import Figure
from interp.report.overlap_figure import overlap_against_width
from interp.report.profiles import by_depth, by_dictionary_size
from interp.report.records import Exponent, ModelRecord, PackingRow, Scaling, Summary
from interp.report.strictness_figure import count_against_strictness
from interp.report.theme import KINDS
from interp.report.wording import hollow, listed, plural, significant, with_interval

# On a log axis of width: a twin stands a mark's breadth to the right of its model.
TWIN_BESIDE = 1.035


def all_figures(summary: Summary) -> dict[str, Figure]:
    """Every figure that the run has numbers for, by name, in the order of the page."""
    rows = summary.drawn_rows
    layers = {(row.model.name, row.layer) for row in rows}
    # The rest follows the plain count: saturation has one number for all sizes together, and the
    # raw stream is measured at one size.
    plain = [r for r in summary.packing if r.estimator == "reproducible"]
    stream = [row for row in plain if row.about == summary.about]
    raw = [
        row
        for row in plain
        if (row.model.name, row.layer) in layers
        and _at_primary_size(row, summary)
        and row.about == "all" != summary.about
    ]
    if summary.arm is not None:
        # One width: nothing to draw against it, and profiles of twenty models hide each other.
        by = summary.found_by
        within = (arm_against_loss(rows, by), dose_response(summary.arm, rows, summary.models, by))
        return {figure.name: figure for figure in within if figure is not None}
    at_one_size = [row for row in stream if _at_primary_size(row, summary)]
    drawn = (
        packing_against_loss(rows),
        loss_against_width(summary.models, summary.scaling),
        packing_against_width(rows, summary.exponent),
        exponent_interval(summary.exponent),
        packing_against_width(raw, None),
        heat_map(at_one_size),
        by_depth(at_one_size),
        by_dictionary_size([row for row in stream if (row.model.name, row.layer) in layers]),
        count_against_strictness(summary),
        overlap_against_width(summary.overlaps),
    )
    return {figure.name: figure for figure in drawn if figure is not None}


def packing_against_loss(rows: Sequence[PackingRow]) -> Figure | None:
    """The headline: features per dimension against loss, one point per model, beside its twin.

    A twin stands at the loss of the model it mirrors: its own is that of guessing, far off to the
    right. None if no row has both numbers.
    """
    shown = [r for r in rows if r.per_dim.value is not None and r.model.loss.value is not None]
    if not shown:
        return None
    x = alt.X(
        "x:Q",
        title=f"loss ({shown[0].model.loss_unit}; better models to the left)",
        scale=alt.Scale(zero=False, nice=False, padding=30),
        axis=alt.Axis(tickCount=6),
    )
    points = marks.packing_points(shown, lambda row: row.model.loss)
    y = marks.per_dimension_axis(points)
    noun = _noun(shown[0].about)
    return Figure(
        name="packing_against_loss",
        title=f"{noun.capitalize()} per dimension against loss",
        subtitle=_key(shown, numbers_are="model width"),
        alt=f"{noun.capitalize()} per dimension against loss. {_in_words(shown)}",
        spec=marks.specification(
            [
                *marks.ceiling(_room(shown), y),
                marks.connectors(points, x, y),
                marks.intervals(points, x, y, along="x"),
                marks.intervals(points, x, y),
                marks.arrows(points, x, y),
                marks.symbols(points, x, y),
                *marks.labels(points, x, y),
            ],
            height=400,
        ),
    )


def loss_against_width(models: Sequence[ModelRecord], scaling: Scaling) -> Figure | None:
    """Loss of every model by width with its document interval, and L = A/m^alpha + B if fitted.

    None with one width: there is nothing to see along it.
    """
    shown = [(m.d_model, m) for m in models if m.loss.value is not None and m.d_model]
    widths = [width for width, _ in shown]
    if len(set(widths)) < 2:
        return None
    points = [
        {
            "kind": KINDS[0],
            "model": model.name,
            "x": width,
            "y": model.loss.value,
            "low": model.loss.low,
            "high": model.loss.high,
            "reading": with_interval(model.loss),
        }
        for width, model in shown
    ]
    x = marks.width_axis(widths)
    unit = shown[0][1].loss_unit
    y = alt.Y("y:Q", title=f"loss, {unit}", scale=alt.Scale(zero=False, padding=14))
    curve, fitted = None, "no curve could be fitted"
    if scaling.drawn:
        line = [{"x": m, "y": scaling.loss(m)} for m in marks.between(min(widths), max(widths))]
        curve = marks.layer(line).mark_line(style="fit").encode(x, y)
        fitted = (
            f"curve: L = {significant(scaling.A.value)} / m^{significant(scaling.alpha.value, 2)}"
            f" + {significant(scaling.B.value)}"
        )
    readings = listed([f"{significant(m.loss.value)} at width {width}" for width, m in shown])
    return Figure(
        name="loss_against_width",
        title="Loss against width",
        subtitle=f"{fitted}; bars: 95% intervals over documents",
        alt=f"Loss in {unit} by model width; {fitted}. {readings}.",
        spec=marks.specification(
            [
                curve,
                marks.intervals(points, x, y, legend=False),
                marks.symbols(points, x, y, legend=False),
            ],
            height=320,
        ),
    )


def packing_against_width(rows: Sequence[PackingRow], exponent: Exponent | None) -> Figure | None:
    """Features per dimension by width beside the twin.

    With an exponent, also what beta = 0 (a fixed stock of features) and 1 (the same packing) would
    look like through the middle of the counting rows, and the fit with its interval.
    """
    shown = [row for row in rows if row.per_dim.value is not None and row.model.d_model]
    if not shown:
        return None
    about = shown[0].about
    x = marks.width_axis(row.model.d_model or 0 for row in shown)
    points = marks.packing_points(
        shown, lambda row: Interval(row.model.d_model), twin_beside=TWIN_BESIDE
    )
    y = marks.per_dimension_axis(points)
    noun = _noun(about)
    references = []
    if exponent is not None and exponent.beta.value is not None:
        references = exponent_lines(shown, exponent, x, y)
    return Figure(
        name="packing_against_width" if about == "contextual" else f"packing_against_width_{about}",
        title=f"{noun.capitalize()} per dimension against width",
        subtitle=_key(shown, band=bool(references) and _has_interval(exponent)),
        alt=f"{noun.capitalize()} per dimension by model width. {_in_words(shown)}",
        spec=marks.specification(
            [
                *marks.ceiling(_room(shown), y),
                *references,
                marks.intervals(points, x, y),
                marks.arrows(points, x, y),
                marks.symbols(points, x, y),
            ],
            height=360,
        ),
    )


def _at_primary_size(row: PackingRow, summary: Summary) -> bool:
    ratio = summary.primary.get("d_sae_per_d_model")
    if not isinstance(ratio, int | float) or not row.d_sae or not row.model.d_model:
        return True
    return math.isclose(row.d_sae, ratio * row.model.d_model, rel_tol=0.01)


def _room(rows: Sequence[PackingRow]) -> float | None:
    """Latents per dimension of the dictionaries, where all have as many and one is full."""
    ratios = {
        row.d_sae / row.model.d_model if row.d_sae and row.model.d_model else None for row in rows
    }
    return ratios.pop() if len(ratios) == 1 and any(row.full for row in rows) else None


def _noun(about: str) -> str:
    return "contextual features" if about == "contextual" else "features of the raw stream"


def _has_interval(exponent: Exponent | None) -> bool:
    return exponent is not None and None not in (exponent.beta.low, exponent.beta.high)


def _key(rows: Sequence[PackingRow], *, numbers_are: str = "", band: bool = False) -> str:
    """What the marks mean, as far as they occur."""
    parts = [f"numbers: {numbers_are}"] if numbers_are else []
    if any(row.per_dim.low is not None for row in rows):
        parts.append("bars: 95% intervals")
    if any(row.censored or (row.twin is not None and row.twin.censored) for row in rows):
        parts.append("arrow: lower bound")
    if _room(rows) is not None:
        parts.append("dashed: dictionary size")
    parts += hollow(rows)
    if band:
        parts.append("band: interval of beta")
    return "; ".join(parts)


def _in_words(rows: Sequence[PackingRow]) -> str:
    """Every point, said."""
    said = []
    for row in rows:
        text = f"width {row.model.d_model}: {with_interval(row.per_dim)}"
        if row.model.loss.value is not None:
            text += f" at {significant(row.model.loss.value)} {row.model.loss_unit}"
        if row.twin is not None and row.twin.per_dim.value is not None:
            text += f", untrained twin {with_interval(row.twin.per_dim)}"
        if row.censored:
            text += ", a lower bound"
        elif row.doubt:
            text += f", {row.doubt}"
        said.append(text)
    return f"{plural(len(rows), 'model')}. {'; '.join(said)}."
