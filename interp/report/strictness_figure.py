"""The primary counts and their twins' under looser and stricter matching, by both its tests."""

from collections.abc import Sequence
from typing import Any

import altair as alt

from interp.report import marks
from interp.report.class_tables import strictness_rows
from interp.report.marks import Figure, Row
from interp.report.multiples import side_by_side
from interp.report.records import PackingRow, Strictness, Summary
from interp.report.theme import KINDS
from interp.report.wording import significant, with_interval

HEIGHT = 300
AXES = {
    "cosine": "least cosine of two directions",
    "correlation": "least correlation of their activations",
}


def count_against_strictness(summary: Summary) -> Figure | None:
    """Features per dimension against the threshold of either test. None where none was tried."""
    points = [point for row in strictness_rows(summary) for point in _points(row)]
    if not points:
        return None
    y = marks.per_dimension_axis(points)
    found = [by for by in AXES if len({p["x"] for p in points if p["by"] == by}) > 1]
    noun = "contextual features" if summary.about == "contextual" else "features"
    return Figure(
        name="count_against_strictness",
        title=f"{noun.capitalize()} per dimension against the thresholds of a match",
        subtitle="one line per model, ending in its width; diamonds: untrained twins; large: as "
        "the headline matches; hollow: not settled",
        alt=f"{noun.capitalize()} per dimension by the thresholds that two latents have to pass. "
        + "; ".join(_said(point) for point in points)
        + ".",
        spec=side_by_side([_panel(by, points, y) for by in found], columns=len(found)),
    )


def _points(row: PackingRow) -> list[Row]:
    """Of a model and of its twin, which has a cosine of its own for the headline."""
    shared: Row = {
        "model": row.model.name,
        "label": row.model.label,
        "d_model": row.model.d_model or 1,
    }
    points = [_point(one, KINDS[0 if row.converged is True else 1]) for one in row.strictness]
    if row.twin is not None:
        kind = KINDS[2 if row.twin.converged is True else 3]
        points += [_point(one, kind) for one in row.twin.strictness]
    return [shared | point for point in points if point["y"] is not None]


def _point(one: Strictness, kind: str) -> Row:
    return {
        "kind": kind,
        "by": one.by,
        "x": one.at,
        "y": one.per_dim.value,
        "headline": one.headline,
        "reading": with_interval(one.per_dim),
    }


def _panel(by: str, points: Sequence[Row], y: alt.Y) -> Any:
    mine = [point for point in points if point["by"] == by]
    trained = [point for point in mine if point["kind"] in KINDS[:2]]
    twins = [point for point in mine if point["kind"] in KINDS[2:]]
    x = alt.X(
        "x:Q",
        title=AXES[by],
        scale=alt.Scale(nice=False, zero=False, padding=24),
        axis=alt.Axis(values=sorted({round(p["x"], 1) for p in mine}), format=".1f"),
    )
    shade = alt.Stroke("d_model:Q", scale=alt.Scale(type="log", range="ramp"), legend=None)
    last = list({p["model"]: p for p in sorted(trained, key=lambda p: p["x"])}.values())
    gap = marks.headroom(points) * 14 / HEIGHT
    moved = marks.spread([p["y"] for p in last], gap)
    ends = [{**point, "y": at} for point, at in zip(last, moved, strict=True)]
    layers = [
        marks.layer(twins).mark_line(style="twin").encode(x, y, detail="model:N")
        if twins
        else None,
        marks.layer(trained).mark_line(strokeWidth=2).encode(x, y, shade, detail="model:N"),
        *(
            marks.symbols(some, x, y, legend=False, size=size)
            for size, headline in ((40, False), (120, True))
            if (some := [point for point in mine if point["headline"] is headline])
        ),
        marks.layer(ends).mark_text(style="label", align="left", dx=9).encode(x, y, text="label:N"),
    ]
    return alt.layer(*[one for one in layers if one is not None]).properties(height=HEIGHT)


def _said(point: Row) -> str:
    who = "untrained twin of width" if point["kind"] in KINDS[2:] else "width"
    return f"{who} {point['label']}: {point['reading']} at {point['by']} {significant(point['x'])}"
