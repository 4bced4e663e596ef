"""The packing exponent, drawn twice: as curves behind the counts, and as an interval on a line."""

import math
from collections.abc import Sequence

import altair as alt

from interp.report import marks
from interp.report.marks import Figure, Row
from interp.report.records import Exponent, PackingRow
from interp.report.theme import KINDS
from interp.report.wording import listed, with_interval


def exponent_interval(exponent: Exponent) -> Figure | None:
    """beta and its twin's on one line, against 0 (fixed stock) and 1 (same packing)."""
    if exponent.beta.value is None:
        return None
    points: list[Row] = [
        {
            "kind": kind,
            "model": kind,
            "x": one.value,
            "x_low": one.low,
            "x_high": one.high,
            "y": kind,
            "reading": with_interval(one),
        }
        for kind, one in ((KINDS[0], exponent.beta), (KINDS[2], exponent.twin))
        if one.value is not None
    ]
    ends = [p[key] for p in points for key in ("x", "x_low", "x_high") if p[key] is not None]
    domain = [min(-0.1, *ends) - 0.1, max(1.25, *ends) + 0.25]
    x = alt.X(
        "x:Q",
        title="beta, in: count ~ width^beta",
        scale=alt.Scale(domain=domain),
        axis=alt.Axis(tickCount=6),
    )
    y = alt.Y("y:N", title=None, axis=alt.Axis(grid=False, labelLimit=200), sort=list(KINDS))
    meanings = marks.layer(
        [{"x": 0, "note": "fixed stock of features"}, {"x": 1, "note": "same packing"}]
    )
    return Figure(
        name="exponent",
        title="How the count grows with width",
        subtitle="bar: 95% interval; a mark without a bar has no interval",
        alt="Exponent beta of the feature count with width: "
        + listed([f"{point['reading']} ({point['kind']})" for point in points])
        + "; lines mark 0, a fixed stock of features, and 1, the same packing at every width.",
        spec=marks.specification(
            [
                meanings.mark_rule(style="reference", strokeDash=[5, 4]).encode(x),
                meanings.mark_text(style="note", align="left", baseline="top", dx=6).encode(
                    x, y=alt.value(-15), text="note:N"
                ),
                marks.intervals(points, x, y, along="x", legend=False),
                marks.symbols(points, x, y, legend=False),
            ],
            height=100,
        ),
    )


def exponent_lines(
    rows: Sequence[PackingRow], exponent: Exponent, x: alt.X, y: alt.Y
) -> list[alt.Chart]:
    """Curves c * width^(beta - 1) through the geometric middle of the rows that count."""
    middle = [
        (r.model.d_model, r.per_dim.value)
        for r in rows
        if r.counts and r.model.d_model and r.per_dim.value
    ]
    if len(middle) < 2:
        return []
    at = math.exp(sum(math.log(width) for width, _ in middle) / len(middle))
    level = math.exp(sum(math.log(value) for _, value in middle) / len(middle))
    widths = [row.model.d_model for row in rows if row.model.d_model]
    grid = marks.between(min(widths), max(widths))

    def curve(beta: float) -> list[float]:
        return [level * (width / at) ** (beta - 1) for width in grid]

    layers = []
    low, high = exponent.beta.low, exponent.beta.high
    if exponent.beta.value is not None and low is not None and high is not None:
        ends = [
            {"x": w, "y": a, "high": b}
            for w, a, b in zip(grid, curve(low), curve(high), strict=True)
        ]
        layers.append(
            marks.layer(ends)
            .mark_area(style="band", opacity=0.16, clip=True)
            .encode(x, y, y2="high:Q")
        )
    # Each label where its line leaves the points: beta = 1 at the left end, above a rising count
    # or below a falling one, beta = 0 at the right.
    lift = -9 if (exponent.beta.value or 0) > 1 else 11
    for beta, dash, note, end, dx, dy in (
        (1, [7, 4], "beta = 1: same packing", 0, 10, lift),
        (0, [2, 4], "beta = 0: fixed stock", -1, -10, 11),
    ):
        line = [{"x": w, "y": value} for w, value in zip(grid, curve(beta), strict=True)]
        stroke = marks.layer(line).mark_line(style="reference", strokeDash=dash, clip=True)
        text = marks.layer([{**line[end], "note": note}])
        layers += [
            stroke.encode(x, y),
            text.mark_text(style="note", align="left" if dx > 0 else "right", dx=dx, dy=dy).encode(
                x, y, text="note:N"
            ),
        ]
    return layers
