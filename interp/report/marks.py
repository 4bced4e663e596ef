"""The marks all figures share: points of a kind, their intervals, censoring arrows, twins' strings.

Every datum drawn is a plain dict with `kind` (of `theme.KINDS`), `model`, `x`, `y` and, where
known, `low`, `high` (interval along y), `x_low`, `x_high`, `label`, `reading` (for the tooltip).
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import altair as alt

from interp.report.interval import Interval
from interp.report.records import PackingRow
from interp.report.theme import KINDS, SHAPES
from interp.report.wording import with_interval

Row = dict[str, Any]

ARROW = "M0,-0.6L0,-2.5M-0.45,-1.95L0,-2.5L0.45,-1.95"


@dataclass(frozen=True)
class Figure:
    """`spec` has no colours and no width: theme and place decide. `name` is its file name.

    `alt` tells the whole figure in words, for those who cannot see it.
    """

    name: str
    title: str
    subtitle: str
    alt: str
    spec: dict[str, Any] = field(repr=False)

    def _repr_svg_(self) -> str:
        """What Jupyter shows: the figure as it is written to files."""
        from interp.report.static import svg  # which imports this module

        return svg(self)


def specification(layers: Sequence[Any], *, height: int) -> dict[str, Any]:
    """Layers -> Vega-Lite specification as a dict; layers that are None are left out."""
    chart = alt.layer(*[layer for layer in layers if layer is not None]).properties(height=height)
    # Altair's own theme would set colours and sizes; ours come with the configuration.
    with alt.theme.enable("none"):
        return chart.to_dict()


def layer(data: Sequence[Row]) -> alt.Chart:
    """A chart whose data travel inside it."""
    return alt.Chart(alt.InlineData(values=list(data)))


def width_axis(widths: Iterable[int]) -> alt.X:
    """Logarithmic model width with a tick at every model; one width stands in the middle."""
    ticks = sorted(set(widths))
    scale = alt.Scale(type="log", base=2, nice=False, padding=26)
    if len(ticks) == 1:
        # Or what lies beside it would be as far away as the axis is long.
        scale = alt.Scale(type="log", base=2, nice=False, domain=[ticks[0] / 1.5, ticks[0] * 1.5])
    return alt.X(
        "x:Q",
        title="model width d_model (log scale)",
        scale=scale,
        axis=alt.Axis(values=ticks, format="d", labelOverlap="greedy", labelSeparation=4),
    )


def per_dimension_axis(points: Sequence[Row]) -> alt.Y:
    """Features per dimension from zero, so that heights compare and a twin's zero is seen."""
    scale = alt.Scale(domain=[0, headroom(points)], nice=False)
    axis = alt.Axis(tickCount=6)
    return alt.Y("y:Q", title="features per dimension", scale=scale, axis=axis)


def headroom(points: Sequence[Row]) -> float:
    """Where an axis from zero ends: room for a label, and for the arrow of a censored point."""
    return max(_top(point) * (1.25 if point.get("arrow") else 1.1) for point in points) or 1.0


def packing_points(
    rows: Sequence[PackingRow],
    place: Callable[[PackingRow], Interval],
    *,
    twin_beside: float = 1.0,
) -> list[Row]:
    """One datum per row and one per twin, at the x that `place` gives the row.

    `twin_beside` moves the twins along x by that factor, where they might lie upon their models.
    """
    points = []
    for row in rows:
        x = place(row)
        shared = {"model": row.model.name, "x": x.value, "label": row.model.label}
        reading = [with_interval(row.per_dim)]
        if row.censored:
            reading.append("the dictionary is full: a lower bound")
        elif row.reason:
            reading.append(row.reason)
        twin = row.twin.per_dim.value if row.twin is not None else None
        points.append(
            {
                **shared,
                "kind": KINDS[0] if row.counts else KINDS[1],
                "x_low": x.low,
                "x_high": x.high,
                "y": row.per_dim.value,
                "low": row.per_dim.low,
                "high": row.per_dim.value if row.censored else row.per_dim.high,
                "arrow": row.censored,
                "twin": twin,
                "reading": ", ".join(reading),
            }
        )
        if row.twin is not None and twin is not None:
            points.append(
                {
                    **shared,
                    "x": None if x.value is None else x.value * twin_beside,
                    "kind": KINDS[2] if row.twin.converged else KINDS[3],
                    "y": twin,
                    "low": row.twin.per_dim.low,
                    "high": twin if row.twin.censored else row.twin.per_dim.high,
                    **({"arrow": True} if row.twin.censored else {}),
                    "reading": with_interval(row.twin.per_dim)
                    + (", the dictionary is full: a lower bound" if row.twin.censored else ""),
                }
            )
    return points


def symbols(
    points: Sequence[Row],
    x: alt.X,
    y: alt.Y,
    *,
    size: int = 100,
    legend: bool | alt.Legend = True,
) -> alt.Chart:
    """The points, and the legend of the kinds that occur, or another one."""
    shown = _shown(points, legend)
    return (
        layer(points)
        .mark_point(size=size, strokeWidth=2, opacity=1)
        .encode(
            x,
            y,
            stroke=alt.Stroke("kind:N", scale=_by_kind("category"), legend=shown),
            fill=alt.Fill("kind:N", scale=_by_kind("ordinal"), legend=shown),
            shape=alt.Shape("kind:N", scale=_by_kind(list(SHAPES)), legend=shown),
            tooltip=[
                alt.Tooltip("model:N", title="model"),
                alt.Tooltip("kind:N", title="kind"),
                alt.Tooltip("reading:N", title="value"),
            ],
        )
    )


def intervals(
    points: Sequence[Row], x: alt.X, y: alt.Y, *, along: str = "y", legend: bool | alt.Legend = True
) -> alt.Chart | None:
    """95% intervals as lines along one axis; None where there is none.

    `legend` as in `symbols`: layers that disagree on it lose the legend altogether.
    """
    low, high = ("x_low", "x_high") if along == "x" else ("low", "high")
    known = [p for p in points if p.get(low) is not None and p.get(high) is not None]
    if not known:
        return None
    marks = layer(known).mark_rule(style="interval")
    shown = _shown(points, legend)
    colour = alt.Stroke("kind:N", scale=_by_kind("category"), legend=shown)
    if along == "x":
        return marks.encode(at(x, low), y, colour, x2=f"{high}:Q")
    return marks.encode(x, at(y, low), colour, y2=f"{high}:Q")


def arrows(points: Sequence[Row], x: alt.X, y: alt.Y) -> alt.Chart | None:
    """An arrow up from every censored point."""
    censored = [point for point in points if point.get("arrow")]
    if not censored:
        return None
    colour = alt.Stroke("kind:N", scale=_by_kind("category"), legend=_legend(points))
    return (
        layer(censored)
        .mark_point(shape=ARROW, size=420, style="arrow", opacity=1)
        .encode(x, y, colour)
    )


def ceiling(per_dim: float | None, y: alt.Y) -> list[alt.Chart]:
    """A dashed line at the number of latents per dimension, which one seed cannot exceed."""
    if per_dim is None:
        return []
    line = layer([{"y": per_dim}])
    return [line.mark_rule(style="reference", strokeDash=[5, 4]).encode(y)]


def connectors(points: Sequence[Row], x: alt.X, y: alt.Y) -> alt.Chart | None:
    """A dotted string from each model down (or up) to its twin."""
    pairs = [point for point in points if point.get("twin") is not None]
    if not pairs:
        return None
    return layer(pairs).mark_rule(style="connector").encode(x, y, y2="twin:Q")


def labels(points: Sequence[Row], x: alt.X, y: alt.Y) -> list[alt.Chart]:
    """Each trained model's width, above its interval or arrow."""
    named = [
        {**point, "top": _top(point), "lift": bool(point.get("arrow"))}
        for point in points
        if point["kind"] in KINDS[:2]
    ]
    height = alt.expr("datum.lift ? -34 : -11")
    return [
        layer(named).mark_text(style=style, dy=height).encode(x, at(y, "top"), text="label:N")
        for style in (["label", "halo"], "label")
    ]


def spread(values: Sequence[float], gap: float) -> list[float]:
    """The values moved apart to at least `gap`, order kept, groups staying about their mean.

    For labels at line ends. [1, 1.1, 3] with gap 1 -> [0.55, 1.55, 3].
    """
    # Blocks of touching labels as (members, centre), merged until no two overlap.
    blocks: list[tuple[list[int], float]] = []
    for index in sorted(range(len(values)), key=values.__getitem__):
        members, centre = [index], values[index]
        while blocks and centre - (len(members) - 1) * gap / 2 < (
            blocks[-1][1] + (len(blocks[-1][0]) - 1) * gap / 2 + gap
        ):
            before, _ = blocks.pop()
            members = before + members
            centre = sum(values[i] for i in members) / len(members)
        blocks.append((members, centre))
    moved = [0.0] * len(values)
    for members, centre in blocks:
        for position, index in enumerate(members):
            moved[index] = centre + (position - (len(members) - 1) / 2) * gap
    return moved


def between(low: float, high: float, n: int = 64) -> list[float]:
    """`n` numbers from low to high, evenly spaced on a log scale."""
    if low == high:
        return [low]
    step = math.log(high / low) / (n - 1)
    return [low * math.exp(i * step) for i in range(n)]


def _shown(points: Sequence[Row], legend: bool | alt.Legend) -> alt.Legend | None:
    if isinstance(legend, bool):
        return _legend(points) if legend else None
    return legend


def _legend(points: Sequence[Row]) -> alt.Legend:
    present = {point["kind"] for point in points}
    return alt.Legend(values=[kind for kind in KINDS if kind in present])


def _by_kind(by_position: Any) -> alt.Scale:
    return alt.Scale(domain=list(KINDS), range=by_position)


def _top(point: Row) -> float:
    return max(float(point[key]) for key in ("y", "high") if point.get(key) is not None)


def at(channel: Any, field: str) -> Any:
    """The same axis for another field: layers share a scale only if they agree on its settings."""
    moved = channel.copy()
    moved.shorthand = f"{field}:Q"
    return moved
