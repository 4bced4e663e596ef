"""Two figures of the bridge: counted against represented features, and packing against loss."""

from __future__ import annotations

from typing import Any

import altair as alt

from interp.report import marks
from interp.report.marks import Figure
from interp.report.theme import KINDS
from interp.report.wording import significant

NAMES = {KINDS[0]: "counted", KINDS[1]: "counted, a lower bound", KINDS[2]: "represented"}


def bridge_figures(summary: dict[str, Any]) -> list[Figure]:
    """Both, or none where nothing was counted."""
    counted = [c for c in summary["cells"] if c["counted"] is not None]
    if not counted:
        return []
    return [_true_against_counted(counted, summary), _packing_against_loss(counted, summary)]


def _true_against_counted(cells: list[dict[str, Any]], summary: dict[str, Any]) -> Figure:
    points = [_point(c, c["represented_per_dim"], c["counted_per_dim"]) for c in cells]
    top = 1.15 * max(max(p["x"], p["y"], p["high"] or 0) for p in points)
    scale = alt.Scale(domain=[0, top], nice=False)
    x = alt.X("x:Q", title="represented features per dimension (norm above 1/2)", scale=scale)
    y = alt.Y("y:Q", title="counted features per dimension", scale=scale)
    line = marks.layer([{"x": 0, "y": 0}, {"x": top, "y": top}])
    rho = summary["counted_with_represented"]["value"]
    return Figure(
        name="bridge_true_against_counted",
        title="Counted against represented features of the toy model",
        subtitle="line: the truth; bars: 95% intervals",
        alt=f"Counted against represented features per dimension; rank correlation "
        f"{significant(rho, 2)}. " + "; ".join(p["reading"] for p in points) + ".",
        spec=marks.specification(
            [
                line.mark_line(style="reference", strokeDash=[6, 4]).encode(x, y),
                marks.intervals(points, x, y, legend=_legend(points)),
                marks.symbols(points, x, y, legend=_legend(points)),
            ],
            height=400,
        ),
    )


def _packing_against_loss(cells: list[dict[str, Any]], summary: dict[str, Any]) -> Figure:
    points = [_point(c, c["loss"], c["counted_per_dim"]) for c in cells]
    truth = [
        {"kind": KINDS[2], "model": "represented", "x": c["loss"], "y": c["represented_per_dim"],
         "reading": f"represented: {significant(c['represented_per_dim'])}"}
        for c in cells
    ]  # fmt: skip
    x = alt.X("x:Q", title="loss of the toy model", scale=alt.Scale(zero=False, padding=20))
    y = marks.per_dimension_axis([*points, *truth])
    alike = [
        p | {"group": c["n_per_dim"], "decay": c["decay"]}
        for p, c in zip(truth, cells, strict=True)
    ]
    ends = [max(group, key=lambda p: p["x"]) | {"label": f"n/m {per_dim}"}
            for per_dim in dict.fromkeys(p["group"] for p in alike)
            if (group := [p for p in alike if p["group"] == per_dim])]  # fmt: skip
    ours, theirs = (summary["within_per_dim"][key]["value"] for key in ("counted", "represented"))
    legend = _legend([*points, *truth])
    return Figure(
        name="bridge_packing_against_loss",
        title="Packing of the toy model against its loss",
        subtitle="lines: data of one n/m, decay varied; rank correlation within them: "
        f"counted {_rho(ours)}, represented {_rho(theirs)}",
        alt="Counted and represented features per dimension against the loss. "
        + "; ".join(p["reading"] for p in points)
        + ".",
        spec=marks.specification(
            [
                marks.layer(alike)
                .mark_line(style="reference")
                .encode(x, y, detail="group:N", order="decay:Q"),
                marks.layer(ends)
                .mark_text(style="label", dx=14, align="left")
                .encode(x, y, text="label:N"),
                marks.intervals(points, x, y, legend=legend),
                marks.symbols([*points, *truth], x, y, legend=legend),
            ],
            height=380,
        ),
    )


def _legend(points: list[dict[str, Any]]) -> alt.Legend:
    """The kinds that occur, by what they are here."""
    there = {p["kind"] for p in points}
    names = ", ".join(f"'{kind}': '{name}'" for kind, name in NAMES.items())
    return alt.Legend(
        values=[kind for kind in NAMES if kind in there], labelExpr=f"({{{names}}})[datum.label]"
    )


def _rho(value: float | None) -> str:
    return "undefined" if value is None else significant(value, 2)


def _point(cell: dict[str, Any], x: float, y: float) -> dict[str, Any]:
    m = cell["m"]
    low, high = (None if cell[end] is None else cell[end] / m for end in ("ci_low", "ci_high"))
    said = f"{cell['n_per_dim']} per dimension, decay {cell['decay']:g}"
    at_least = "at least " if cell["bound"] else ""
    return {
        "kind": KINDS[1] if cell["bound"] else KINDS[0],
        "model": said,
        "x": x,
        "y": y,
        "low": low,
        "high": high,
        "reading": f"{said}: {at_least}{significant(y)} counted, "
        f"{significant(cell['represented_per_dim'])} represented, loss {significant(cell['loss'])}",
    }
