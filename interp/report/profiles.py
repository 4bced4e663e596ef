"""Two profiles of the count, one line per model: along the depth, and along the dictionary size."""

from collections.abc import Callable, Sequence

import altair as alt

from interp.report import marks
from interp.report.marks import Figure, Row
from interp.report.records import PackingRow
from interp.report.theme import KINDS
from interp.report.wording import hollow, significant, unequal_training, with_interval

HEIGHT = 340


def by_depth(rows: Sequence[PackingRow]) -> Figure | None:
    """Features per dimension along the depth. None with fewer than two depths."""
    depths = sorted({r.layer_fraction for r in rows if r.layer_fraction is not None})
    if len(depths) < 2:
        return None
    axis = alt.X(
        "x:Q",
        title="depth (share of the layers passed)",
        scale=alt.Scale(nice=False, zero=False, padding=30),
        axis=alt.Axis(format=".0%", values=depths, labelOverlap=True),
    )
    return _profile(rows, lambda row: row.layer_fraction, axis, "packing_by_depth", "by depth")


def by_dictionary_size(rows: Sequence[PackingRow]) -> Figure | None:
    """Has the count stopped growing with D? None with fewer than two sizes."""
    ratios = sorted({ratio for row in rows if (ratio := _ratio(row)) is not None})
    if len(ratios) < 2:
        return None
    axis = alt.X(
        "x:Q",
        title="dictionary size D / d_model (log scale)",
        scale=alt.Scale(type="log", base=2, nice=False, padding=30),
        axis=alt.Axis(values=ratios, format="~g", labelOverlap=True),
    )
    ceiling = ratios if any(row.full for row in rows) else None
    return _profile(
        rows, _ratio, axis, "packing_by_dictionary_size", "by dictionary size", ceiling=ceiling
    )


def _profile(
    rows: Sequence[PackingRow],
    place: Callable[[PackingRow], float | None],
    axis: alt.X,
    name: str,
    of_what: str,
    *,
    ceiling: Sequence[float] | None = None,
) -> Figure:
    """`ceiling`: the places of a dashed line on which a count equals its place."""
    noun = "contextual features" if rows[0].about == "contextual" else "features"
    placed = [
        (x, row) for row in rows if (x := place(row)) is not None and row.per_dim.value is not None
    ]
    points: list[Row] = [
        {
            "kind": KINDS[0] if row.counts else KINDS[1],
            "model": row.model.name,
            "d_model": row.model.d_model or 1,
            "label": str(row.model.d_model or "?"),
            "x": x,
            "y": row.per_dim.value,
            "reading": with_interval(row.per_dim),
        }
        for x, row in sorted(placed, key=lambda pair: (pair[1].model.d_model or 0, pair[0]))
    ]
    last = list({point["model"]: point for point in points}.values())
    y = marks.per_dimension_axis(points)
    # Labels of 12 px in a plot of HEIGHT px, apart by 14.
    gap = marks.headroom(points) * 14 / HEIGHT
    ends = [
        {**point, "y": moved}
        for point, moved in zip(last, marks.spread([p["y"] for p in last], gap), strict=True)
    ]
    # Width as a shade of one colour; each line also ends in its width, so the shade is a help only.
    shade = alt.Stroke("d_model:Q", scale=alt.Scale(type="log", range="ramp"), legend=None)
    return Figure(
        name=name,
        title=f"{noun.capitalize()} per dimension {of_what}",
        subtitle="; ".join(
            [
                "one line per model, ending in its width",
                *(["dashed: dictionary size"] if ceiling else []),
                *hollow([row for _, row in placed]),
                *unequal_training([row for _, row in placed]),
            ]
        ),
        alt=f"{noun.capitalize()} per dimension {of_what}, one line per model. "
        + "; ".join(
            f"width {point['label']}: {point['reading']} at {significant(point['x'])}"
            for point in points
        )
        + ".",
        spec=marks.specification(
            [
                _line_of_equals(ceiling, axis, y) if ceiling else None,
                marks.layer(points)
                .mark_line(strokeWidth=2)
                .encode(axis, y, shade, detail="model:N"),
                marks.symbols(points, axis, y, legend=False, size=50),
                marks.layer(ends)
                .mark_text(style="label", align="left", dx=9)
                .encode(axis, y, text="label:N"),
            ],
            height=HEIGHT,
        ),
    )


def _line_of_equals(places: Sequence[float], x: alt.X, y: alt.Y) -> alt.Chart:
    # Straight between the places, as the counts' own lines are.
    line = [{"x": at, "y": at} for at in places]
    return marks.layer(line).mark_line(style="reference", strokeDash=[5, 4]).encode(x, y)


def _ratio(row: PackingRow) -> float | None:
    if not row.d_sae or not row.model.d_model:
        return None
    return round(row.d_sae / row.model.d_model, 2)
