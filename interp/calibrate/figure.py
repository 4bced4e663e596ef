"""One figure of a calibration: true and estimated features per dimension, cell by cell."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import altair as alt

from interp.report import marks
from interp.report.marks import Figure
from interp.report.wording import significant

KINDS = (
    "N",
    "N, not all sizes converged",
    "N without composites",
    "without composites, not all converged",
)
SHAPES = ("circle", "circle", "diamond", "diamond")
FITS = ("saturation", "saturation_atoms")
LETTERS = {"hill_1": "F", "live_latents_10": "L"}
ROW_PIXELS = 46
ASIDE_PIXELS = 8
"""The two N of a cell stand above and below its line, so that neither hides the other."""


def calibration_figure(cells: Sequence[dict[str, Any]]) -> Figure | None:
    """None where no cell has a value."""
    points = [p for cell in cells for p in _points(cell)]
    if not points:
        return None
    names = [_name(cell) for cell in cells]
    truth = [{"cell": _name(cell), "x": cell["n_per_dim"], "kind": KINDS[0]} for cell in cells]
    letters = [letter for cell in cells for letter in _letters(cell)]
    ends = [p["x"] for p in (*points, *truth, *letters)]
    x = alt.X(
        "x:Q",
        title="features per dimension (log scale)",
        scale=alt.Scale(
            type="log", base=2, domain=[min(ends) * 0.85, max(ends) * 1.15], nice=False
        ),
        axis=alt.Axis(values=[0.25, 0.5, 1, 2, 4, 8, 16, 32], format="~g"),
    )
    y = alt.Y(
        "cell:N", sort=names, title=None, axis=alt.Axis(labelLimit=320, domain=False, ticks=False)
    )
    return Figure(
        name="calibration",
        title="Estimated against true features per dimension",
        subtitle="upright line: the truth; F: effective features; L: live latents of the largest "
        "dictionary",
        alt=_in_words(cells),
        spec=marks.specification(
            [
                marks.layer(truth)
                .mark_tick(style="reference", thickness=2.5, height=ROW_PIXELS * 0.7)
                .encode(x, y),
                *(
                    marks.layer(letters).mark_text(style=style).encode(x, y, text="letter:N")
                    for style in (["note", "halo"], "note")
                    if letters
                ),
                *(
                    chart
                    for above in (True, False)
                    for chart in _drawn([p for p in points if p["above"] == above], x, y, points)
                ),
            ],
            height=ROW_PIXELS * len(names),
        ),
    )


def _points(cell: dict[str, Any]) -> list[dict[str, Any]]:
    """N with and without composites; of all sizes, and hollow, where not enough converged."""
    found = {e["estimator"]: e for e in cell["estimators"]}
    points = []
    for place, name in enumerate(FITS):
        fit, hollow = found.get(name), 0
        if fit is None or fit["mean"] is None:
            fit, hollow = found.get(f"{name}_unchecked"), 1
        if fit is None or fit["mean"] is None:
            continue
        d_in, n = cell["d_in"], cell["n_features"]
        half = None if fit["spread"] is None else fit["spread"] * n
        points.append(
            {
                "cell": _name(cell),
                "kind": KINDS[2 * place + hollow],
                "above": place == 0,
                "x": fit["mean"] / d_in,
                "low": (fit["mean_low"] if half is None else fit["mean"] - half),
                "high": (fit["mean_high"] if half is None else fit["mean"] + half),
                "reading": f"{significant(fit['mean'] / d_in)} of {cell['n_per_dim']:g}",
            }
        )
        for end in ("low", "high"):
            value = points[-1][end]
            points[-1][end] = None if value is None else max(value, 1.0) / d_in
    return points


def _letters(cell: dict[str, Any]) -> list[dict[str, Any]]:
    largest = {e["estimator"]: e for e in cell["estimators"]}  # ascending in size
    return [
        {
            "cell": _name(cell),
            "letter": letter,
            "x": largest[name]["mean_bound"] / cell["d_in"],
        }
        for name, letter in LETTERS.items()
        if name in largest and largest[name]["mean_bound"]
    ]


def _name(cell: dict[str, Any]) -> str:
    parts = [f"n/d {cell['n_per_dim']:g}", f"Zipf {cell['zipf']:g}"]
    if cell["k_ratio"] != 1:
        parts.append(f"k {cell['k_ratio']:g} × L0")
    if cell["structure"] != "independent":
        parts.append(cell["structure"])
    return ", ".join(parts)


def _drawn(
    points: Sequence[dict[str, Any]], x: alt.X, y: alt.Y, everything: Sequence[dict[str, Any]]
) -> list[alt.Chart]:
    """Intervals and symbols of the points that stand on one side of their line."""
    if not points:
        return []
    aside = -ASIDE_PIXELS if points[0]["above"] else ASIDE_PIXELS
    legend = alt.Legend(
        values=[k for k in KINDS if k in {p["kind"] for p in everything}], columns=2
    )
    stroke = alt.Stroke("kind:N", scale=_by_kind("category"), legend=legend)
    drawn = []
    known = [p for p in points if p["low"] is not None and p["high"] is not None]
    if known:
        drawn.append(
            marks.layer(known)
            .mark_rule(style="interval", yOffset=aside)
            .encode(marks.at(x, "low"), y, stroke, x2="high:Q")
        )
    drawn.append(
        marks.layer(points)
        .mark_point(size=90, strokeWidth=2, opacity=1, yOffset=aside)
        .encode(
            x,
            y,
            stroke=stroke,
            fill=alt.Fill("kind:N", scale=_by_kind("ordinal"), legend=legend),
            shape=alt.Shape("kind:N", scale=_by_kind(list(SHAPES)), legend=legend),
            tooltip=[
                alt.Tooltip("cell:N", title="cell"),
                alt.Tooltip("kind:N", title="estimator"),
                alt.Tooltip("reading:N", title="per dimension"),
            ],
        )
    )
    return drawn


def _by_kind(by_position: Any) -> alt.Scale:
    return alt.Scale(domain=list(KINDS), range=by_position)


def _in_words(cells: Sequence[dict[str, Any]]) -> str:
    said = [
        f"{_name(cell)}: {point['kind']} {point['reading']}"
        for cell in cells
        for point in _points(cell)
    ]
    return f"True and estimated features per dimension. {'; '.join(said)}."
