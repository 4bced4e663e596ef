"""The toy model's figures: one specification each, drawn by the report's theme."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import altair as alt
import numpy as np
import pandas as pd

from interp.report import marks
from interp.report.marks import Figure
from interp.toy.exponents import left_out_exponent
from interp.toy.frequencies import Frequencies
from interp.toy.marks import (
    REGIMES,
    RULE,
    each,
    families,
    gradient,
    law_in_words,
    log_y,
    mean_over_seeds,
    points,
    sizes,
    stroke,
    ticks,
    widths,
)
from interp.toy.overlap_figures import overlap_against_width, overlap_distribution


def all_figures(
    models: pd.DataFrame,
    lines: Sequence[dict[str, Any]],
    features: pd.DataFrame,
    overlaps: pd.DataFrame,
) -> list[Figure]:
    """Those that the sweep has numbers for, in reading order."""
    drawn = [
        exponents_against_frequencies(lines),
        *(loss_against_width(part, name) for name, part in families(models)),
        weak_prediction(models),
        phase(lines, "phi_half"),
        phase(lines, "alpha"),
        overlap_against_width(models),
        overlap_distribution(overlaps, models),
        loss_by_feature(features, models),
    ]
    return [figure for figure in drawn if figure is not None]


def exponents_against_frequencies(lines: Sequence[dict[str, Any]]) -> Figure | None:
    """alpha_m over the exponent a of p ~ i^-a in both regimes, with a - 1 and 1 as lines."""
    rows = [
        {
            "kind": line["regime"],
            # Strong to the left, weak to the right, where they would cover one another.
            "x": line["parameter"] + (-0.006 if line["regime"] == "strong" else 0.006),
            "a": line["parameter"],
            "y": line["alpha"]["value"],
            "low": line["alpha"]["ci_low"],
            "high": line["alpha"]["ci_high"],
        }
        for line in lines
        if line["law"] == "power"
        and line["density"] == 1
        and line["n"] == 1000
        and line["regime"] in REGIMES
        and line["alpha"]["value"] is not None
    ]
    exponents = sorted({row["a"] for row in rows})
    if len(exponents) < 2:
        return None
    x = alt.X(
        "x:Q",
        title="exponent a of the feature frequencies, p ~ i^-a",
        scale=alt.Scale(zero=False, nice=False, padding=26),
        axis=alt.Axis(values=exponents, format=".3~g"),
    )
    y = alt.Y("y:Q", title="loss exponent alpha, L ~ m^-alpha", scale=alt.Scale(zero=True))
    ends = [exponents[0], exponents[-1]]
    widths = next(line["m"] for line in lines if line["law"] == "power" and line["n"] == 1000)
    predicted = [
        [{"x": a, "y": 1.0} for a in ends],
        [{"x": a, "y": a - 1} for a in ends],
    ]
    exact = [
        {"x": a, "y": left_out_exponent(Frequencies("power", a, 1000), widths)}
        for a in np.linspace(ends[0], ends[1], 21).tolist()
    ]
    notes = [
        {"x": ends[0], "y": 1.0, "text": "1: overlaps of 1/m"},
        {"x": sum(ends) / 2, "y": sum(ends) / 2 - 1, "text": "a - 1: features left out"},
    ]
    return Figure(
        name="exponents",
        title="Loss exponent against feature frequencies",
        subtitle="bars: 95% intervals over widths; lines: predictions; dashed: a - 1 at this n",
        alt="Loss exponent in width by exponent of the feature frequencies, strong and weak "
        + "superposition. "
        + "; ".join(f"{r['kind']}, a {r['a']:g}: {r['y']:.2f}" for r in rows)
        + ".",
        spec=marks.specification(
            [
                *(marks.layer(p).mark_line(style="reference").encode(x, y) for p in predicted),
                marks.layer(exact).mark_line(style="reference", strokeDash=[4, 4]).encode(x, y),
                marks.layer(notes[:1])
                .mark_text(style="note", align="left", dx=34, dy=-9)
                .encode(x, y, text="text:N"),
                marks.layer(notes[1:])
                .mark_text(style="note", align="left", dx=12, dy=14)
                .encode(x, y, text="text:N"),
                marks.layer(rows)
                .mark_rule(style="interval")
                .encode(x, marks.at(y, "low"), stroke(), y2="high:Q"),
                points(rows, x, y),
            ],
            height=360,
        ),
    )


def loss_against_width(models: pd.DataFrame, family: str) -> Figure | None:
    """Loss by width, one line per decay (or per density, where that varies), on log axes."""
    by = "density" if models.density.nunique() > 1 else "decay"
    chosen = models[models.regime == "strong"] if by == "density" else models
    rows = mean_over_seeds(chosen, ["m", by], "loss")
    if len({row["m"] for row in rows}) < 2:
        return None
    name = {"density": "density E", "decay": "weight decay"}[by]
    x, y = widths(rows), log_y("loss", "loss, summed over features", (r["loss"] for r in rows))
    color = alt.Color(
        f"{by}:Q", scale=alt.Scale(range="ramp"), legend=gradient(name, [r[by] for r in rows])
    )
    first = min(row["m"] for row in rows)
    top = max(row["loss"] for row in rows if row["m"] == first)
    guide = [{"m": m, "loss": top * first / m} for m in (first, max(row["m"] for row in rows))]
    return Figure(
        name=f"loss_against_width_{family}",
        title=f"Loss against width, {law_in_words(models.iloc[0])}",
        subtitle=f"{sizes(models)}; dashed: slope -1",
        alt=f"Loss by width on log axes, one line per {name}; a slope of -1 for comparison.",
        spec=marks.specification(
            [
                marks.layer(guide).mark_line(style="reference", strokeDash=[4, 4]).encode(x, y),
                marks.layer(rows).mark_line(strokeWidth=2).encode(x, y, color, detail=f"{by}:N"),
                marks.layer(rows).mark_point(filled=True, size=60, opacity=1).encode(x, y, color),
            ],
            height=340,
        ),
    )


def weak_prediction(models: pd.DataFrame) -> Figure | None:
    """Loss against (4/3) sum of p_i over unrepresented features, with equality as a line."""
    shown = models[(models.regime.isin(REGIMES)) & (models.weak_prediction > 0)]
    shown = shown[(shown.law == "power") & (shown.density == 1)]
    if not (shown.regime == "weak").any():
        return None
    rows = [
        {"kind": r.regime, "x": r.weak_prediction, "y": r.loss, "m": int(r.m), "a": r.parameter}
        for r in each(shown)
        if r.regime == "weak"
    ]
    x = alt.X(
        "x:Q",
        title="predicted: (4/3) sum of p_i over features with norm at most 1/2",
        scale=alt.Scale(**RULE, padding=20),
        axis=alt.Axis(format="~g", values=ticks(r["x"] for r in rows)),
    )
    y = log_y("y", "loss, summed over features", (r["y"] for r in rows))
    low, high = (f(r["x"] for r in rows) for f in (min, max))
    outer = {f(r["m"] for r in rows) for f in (min, max)}
    color = alt.Color(
        "a:Q",
        scale=alt.Scale(range="ramp"),
        legend=gradient("exponent a of p ~ i^-a", [r["a"] for r in rows]),
    )
    equal = [{"x": v, "y": v} for v in (low, high)]
    return Figure(
        name="weak_prediction",
        title="Weak superposition: loss against what is left out",
        subtitle="one point per model, numbers: least and largest width; grey: equality",
        alt="Loss of models in weak superposition against the activity of the features they do "
        "not represent: " + "; ".join(f"{r['x']:.2g} gives {r['y']:.2g}" for r in rows) + ".",
        spec=marks.specification(
            [
                marks.layer(equal).mark_line(style="reference").encode(x, y),
                marks.layer(rows).mark_point(filled=True, size=60, opacity=1).encode(x, y, color),
                marks.layer([r for r in rows if r["m"] in outer])
                .mark_text(style="note", dx=10, dy=10, align="left")
                .encode(x, y, text="m:N"),
            ],
            height=380,
        ),
    )


def phase(lines: Sequence[dict[str, Any]], quantity: str) -> Figure | None:
    """The plane of weight decay and frequency exponent, coloured by phi_1/2 or by alpha."""
    rows = [
        {
            "decay": line["decay"],
            "a": line["parameter"],
            "value": line["alpha"]["value"] if quantity == "alpha" else line["phi_half"],
        }
        for line in lines
        if line["law"] == "power" and line["density"] == 1 and line["n"] == 1000
    ]
    rows = [row for row in rows if row["value"] is not None]
    if len({r["decay"] for r in rows}) < 2 or len({r["a"] for r in rows}) < 2:
        return None
    named = {
        "alpha": ("Phase picture: loss exponent", "loss exponent alpha in width"),
        "phi_half": ("Phase picture: represented features", "share of rows with norm above 1/2"),
    }
    title, legend = named[quantity]
    x = alt.X("a:O", title="exponent a of the feature frequencies", axis=alt.Axis(labelAngle=0))
    y = alt.Y("decay:O", title="weight decay", sort="descending")
    middle = float(np.mean([min(r["value"] for r in rows), max(r["value"] for r in rows)]))
    for row in rows:
        row["text"] = f"{row['value']:.2f}"
        row["dark"] = row["value"] > middle
    return Figure(
        name=f"phase_{quantity}",
        title=title,
        subtitle=f"{legend}, " + ("over all widths" if quantity == "alpha" else "mean over widths"),
        alt=f"{legend} by weight decay and frequency exponent: "
        + "; ".join(f"decay {r['decay']:g}, a {r['a']:g}: {r['text']}" for r in rows)
        + ".",
        spec=marks.specification(
            [
                marks.layer(rows)
                .mark_rect()
                .encode(x, y, alt.Color("value:Q", scale=alt.Scale(range="ramp"), legend=None)),
                marks.layer(rows)
                .mark_text(fontSize=13, fontWeight=600)
                .encode(
                    x,
                    y,
                    text="text:N",
                    color=alt.condition("datum.dark", alt.value("white"), alt.value("#1b1f24")),
                ),
            ],
            height=320,
        ),
    )


def loss_by_feature(features: pd.DataFrame, models: pd.DataFrame) -> Figure | None:
    """Loss of each feature by rank at the middle width and exponent, in both regimes."""
    ends = models[models.regime.isin(REGIMES) & (models.law == "power") & (models.density == 1)]
    both = sorted(int(m) for m in ends.m.unique() if ends[ends.m == m].regime.nunique() == 2)
    if features.empty or not both:
        return None
    m = both[len(both) // 2]
    laws = sorted(ends[ends.regime == "weak"].parameter.unique())
    a = laws[len(laws) // 2]
    chosen = ends[(ends.m == m) & (ends.parameter == a) & (ends.seed == ends.seed.min())]
    keys = [c for c in chosen.columns if c in features.columns and c != "loss"]
    found = features.merge(chosen[[*keys, "regime"]], on=keys)
    # Evenly on the log axis, so that the marks stay apart.
    ranks = np.unique(np.geomspace(1, found.feature.max(), 60).round().astype(int))
    found = found[found.feature.isin(ranks)]
    rows = [{"kind": r.regime, "x": int(r.feature), "y": max(r.loss, 1e-9)} for r in each(found)]
    null = [{"x": int(r.feature), "y": 4 / 3 * r.p} for r in each(found[found.regime == "weak"])]
    x = alt.X(
        "x:Q",
        title="rank of the feature (log scale)",
        scale=alt.Scale(**RULE, padding=10),
        axis=alt.Axis(format="~g", values=ticks(r["x"] for r in rows)),
    )
    y = log_y("y", "mean squared error of the feature", (r["y"] for r in rows))
    return Figure(
        name="loss_by_feature",
        title=f"Where the loss sits, m = {m}, p ~ i^-{a:g}",
        subtitle="line: 4/3 p_i, the error of a feature that is not represented",
        alt=f"Error of features by rank at width {m}, strong and weak superposition.",
        spec=marks.specification(
            [
                marks.layer(null).mark_line(style="reference").encode(x, y),
                points(rows, x, y, size=36),
            ],
            height=360,
        ),
    )
