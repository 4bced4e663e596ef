"""How the toy model's features overlap: two figures, of trained rows beside random directions."""

from __future__ import annotations

import altair as alt
import pandas as pd

from interp.report import marks
from interp.report.marks import Figure
from interp.toy.marks import (
    RULE,
    each,
    gradient,
    law_in_words,
    log_y,
    mean_over_seeds,
    ticks,
    widths,
)


def overlap_against_width(models: pd.DataFrame) -> Figure | None:
    """Mean squared overlap of represented features in strong superposition, 1/m and the floor."""
    if "mean_squared_overlap" not in models:
        return None
    strong = models[(models.regime == "strong") & (models.density == 1)]
    strong = strong[strong.mean_squared_overlap.notna()]
    if strong.m.nunique() < 2:
        return None
    rows = [
        {"m": int(r.m), "y": r.mean_squared_overlap, "law": law_in_words(r)} for r in each(strong)
    ]
    floor = mean_over_seeds(strong[strong.welch_floor > 0], ["m", "n"], "welch_floor")
    x, y = widths(rows), log_y("y", "mean squared overlap", (r["y"] for r in rows))
    random = [{"m": m, "y": 1 / m} for m in sorted({row["m"] for row in rows})]
    low = [{"m": f["m"], "y": f["welch_floor"], "n": f["n"]} for f in floor]
    laws = sorted({row["law"] for row in rows})
    shape = alt.Shape("law:N", sort=laws, legend=alt.Legend(columns=6))
    return Figure(
        name="overlap_against_width",
        title="Strong superposition: mean squared overlap against width",
        subtitle="line: 1/m, random directions; dashed: Welch floor, the least there can be",
        alt="Mean squared overlap of represented features by width, beside 1/m: "
        + "; ".join(f"m {r['m']}, {r['law']}: {r['y'] * r['m']:.2f}/m" for r in rows)
        + ".",
        spec=marks.specification(
            [
                marks.layer(random).mark_line(style="reference").encode(x, y),
                marks.layer(low)
                .mark_line(style="reference", strokeDash=[4, 4])
                .encode(x, y, detail="n:N"),
                marks.layer(rows)
                .mark_point(style="band", size=70, strokeWidth=2, opacity=1)
                .encode(x, y, shape),
            ],
            height=360,
        ),
    )


def overlap_distribution(overlaps: pd.DataFrame, models: pd.DataFrame) -> Figure | None:
    """Quantiles of squared overlaps in strong superposition against those of random directions."""
    keys = [c for c in models.columns if c in overlaps.columns]
    strong = models[(models.regime == "strong") & (models.density == 1)]
    if overlaps.empty or strong.empty:
        return None
    shown = overlaps.merge(strong[keys], on=keys)
    # One law is enough to look at: the middle one of those with most models.
    laws = sorted(strong[strong.n == strong.n.min()].parameter.unique())
    law = laws[len(laws) // 2]
    shown = shown[(shown.level >= 0.1) & (shown.n == shown.n.min()) & (shown.parameter == law)]
    rows = [
        {
            "m": int(r.m),
            "x": r.random * r.m,
            "y": r.squared_overlap * r.m,
            "line": int(r.m),
        }
        for r in each(shown)
    ]
    if not rows:
        return None
    rows = [row for row in rows if row["y"] > 0]
    x = alt.X(
        "x:Q",
        title="quantile of m cos², random directions (log scale)",
        scale=alt.Scale(**RULE, padding=20),
        axis=alt.Axis(format="~g", values=ticks(r["x"] for r in rows)),
    )
    y = log_y("y", "quantile of m cos², trained rows", (r["y"] for r in rows))
    ends = [f(row["x"] for row in rows) for f in (min, max)]
    return Figure(
        name="overlap_distribution",
        title="Squared overlaps against Beta(1/2, (m-1)/2)",
        subtitle=f"p ~ i^-{law:g}, strong superposition, quantiles from 10% to 99.99%; "
        "grey: the same distribution",
        alt="Quantiles of squared overlaps of trained rows against those of random directions, "
        "by width.",
        spec=marks.specification(
            [
                marks.layer([{"x": v, "y": v} for v in ends])
                .mark_line(style="reference")
                .encode(x, y),
                marks.layer(rows)
                .mark_line(strokeWidth=1.5, point={"size": 24})
                .encode(
                    x,
                    y,
                    alt.Color(
                        "m:Q",
                        scale=alt.Scale(type="log", range="ramp"),
                        legend=gradient("width m", [r["m"] for r in rows]),
                    ),
                    detail="line:N",
                ),
            ],
            height=380,
        ),
    )
