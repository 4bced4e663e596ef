"""A fitted law with its residuals, and forecasts beside what came true."""

from pathlib import Path
from typing import Any

import altair as alt
import pandas as pd

from interp.report import panels
from interp.report.marks import between, layer

_SIZES = {"params": ("n_params", "parameters"), "width": ("d_model", "model width d_model")}


def fit_figure(table: pd.DataFrame, fit: dict[str, Any]) -> dict[str, Any]:
    """What width removes, loss minus all other terms, on the fitted line; below, the residuals.

    Losses at or under the other terms have no place on a log axis and are counted in the subtitle.
    """
    column, size_name = _SIZES["params" if fit["form"] == "params" else "width"]
    A, alpha = fit["A"]["value"], fit["alpha"]["value"]
    names = _series(table, fit)
    families = list(dict.fromkeys(names))
    points = []
    for row, name, fitted in zip(table.to_dict("records"), names, fit["fitted"], strict=True):
        excess = A * row[column] ** -alpha
        points.append(
            {
                "family": name,
                "x": row[column],
                "y": row["loss"] - (fitted - excess),
                "residual": row["loss"] - fitted,
            }
        )
    above = [p for p in points if p["y"] > 0]
    sizes = [p["x"] for p in points]
    line = [{"x": s, "y": A * s**-alpha} for s in between(min(sizes), max(sizes))]
    scale = alt.Scale(type="log", nice=False, padding=18)
    ticks = panels.log_ticks(sizes)
    axis = alt.Axis(values=ticks, format="," if max(sizes) < 1e5 else "~s", labelOverlap=True)
    x = alt.X("x:Q", title=f"{size_name} (log scale)", scale=scale, axis=axis)
    bare = alt.X("x:Q", title=None, scale=scale, axis=alt.Axis(values=ticks, labels=False))
    rest = "all other terms" if fit["terms"] else "fitted offset"
    y = alt.Y(
        "y:Q",
        title=f"loss minus {rest}, nats (log scale)",
        scale=alt.Scale(type="log", nice=False, padding=12),
        axis=alt.Axis(values=panels.log_ticks([p["y"] for p in above] or [1.0]), format="~g"),
    )
    colour, shape = panels.by_family(families)
    law = layer(above).mark_point(size=52, strokeWidth=1.6, opacity=0.85).encode(
        bare, y, colour, shape
    ) + layer(line).mark_line(style="fit", clip=True).encode(bare, y)
    residual = alt.Y("residual:Q", title="loss minus fit, nats", axis=alt.Axis(tickCount=5))
    zero = [{"residual": v} for v in (0.0,)]
    spread = [{"residual": s * 2 * fit["residual_sd"]} for s in (-1, 1)]
    residuals = (
        layer(spread).mark_rule(style="connector").encode(residual)
        + layer(zero).mark_rule(style="reference").encode(residual)
        + layer(points)
        .mark_point(size=52, strokeWidth=1.6, opacity=0.85)
        .encode(x, residual, colour, shape)
    )
    both = alt.vconcat(
        law.properties(width=panels.WIDTH, height=300),
        residuals.properties(width=panels.WIDTH, height=150),
        spacing=34,
    )
    dropped = len(points) - len(above)
    notes = [
        f"{fit['law']}: {fit['n_losses']} losses of {fit['n_models']} models",
        f"alpha {alpha:.3f} {_ends(fit['alpha'], '')}"
        + (f", over models {_ends(fit['alpha'], '_bootstrap')}" if fit["n_bootstrap"] else ""),
        "dotted: two residual standard deviations"
        + (f"; {dropped} under the offset, in the lower panel only" if dropped else ""),
    ]
    if not fit["identified"]:
        notes.insert(2, f"not identified ({fit['reason']})")
    title = f"Loss against size, fitted jointly: {Path(fit['table']).name}"
    return panels.specification(both, title=title, subtitle=notes)


def _series(table: pd.DataFrame, fit: dict[str, Any]) -> list[str]:
    """The family of every row; with its number of tokens where the law has a term in them, for
    whether tokens and width add up is what the residuals show."""
    families = [str(family) for family in table["family"]]
    if "c_D" not in fit["terms"]:
        return families
    both = zip(families, table["train_tokens"], strict=True)
    named = [f"{family}, {_tokens(float(n))} tokens" for family, n in both]
    return named if len(set(named)) <= len(panels.FAMILIES) else families


def _tokens(n: float) -> str:
    """12.6M, 300B."""
    return f"{n / 1e9:.3g}B" if n >= 1e9 else f"{n / 1e6:.3g}M"


def forecast_figure(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """One line per model left out: the interval from the smaller ones, and the loss it had."""
    families = list(dict.fromkeys(row["family"] for row in rows))
    top = max(v for r in rows for v in (r["predicted"], r["actual"]) if v is not None)
    shown = [
        {
            "family": row["family"],
            "label": _label(row),
            "predicted": row["predicted"],
            "low": row["ci_low"],
            # An open interval runs off the picture.
            "high": 1.6 * top if row["ci_high"] is None else row["ci_high"],
            "actual": row["actual"],
        }
        for row in rows
    ]
    low = min(p["low"] for p in shown)
    high = max(min(p["high"], 1.6 * top) for p in shown)
    margin = 0.04 * (high - low)
    order = [p["label"] for p in shown]
    y = alt.Y("label:N", sort=order, title=None, axis=alt.Axis(labelLimit=260, domain=False))
    scale = alt.Scale(domain=[max(low - margin, 0), high + margin], nice=False)

    axis = alt.Axis(tickCount=7, grid=True)

    def x(field: str) -> alt.X:
        return alt.X(f"{field}:Q", title="loss, nats", scale=scale, axis=axis)

    colour, _ = panels.by_family(families, legend=False)
    with_actual = [p for p in shown if p["actual"] is not None]
    chart = (
        layer(shown).mark_rule(strokeWidth=2, clip=True).encode(x("low"), y, colour, x2="high:Q")
    )
    chart += (
        layer(shown).mark_tick(thickness=3, size=15, opacity=1).encode(x("predicted"), y, colour)
    )
    if with_actual:
        chart += (
            layer(with_actual)
            .mark_point(size=64, filled=True, shape="circle", style="label", opacity=1)
            .encode(x("actual"), y)
        )
    inside = [row["covered"] for row in rows if row["covered"] is not None]
    notes = ["line: 95% prediction interval from narrower models; tick: prediction"]
    if inside:
        notes[0] += "; dot: actual loss"
        notes.append(f"{sum(inside)} of {len(inside)} actual losses inside")
    return panels.specification(
        chart.properties(width=panels.WIDTH, height=max(24 * len(shown), 60)),
        title="Larger models forecast from smaller ones",
        subtitle=notes,
    )


def _label(row: dict[str, Any]) -> str:
    if row["actual"] is None:
        return f"{row['family']} at d {row['d_model']:,} on {row['dataset']}"
    return f"{row['model']} (d {row['d_model']:,}) on {row['dataset']}"


def _ends(estimate: dict[str, Any], kind: str) -> str:
    ends = [estimate[f"ci_{side}{kind}"] for side in ("low", "high")]
    return "[{}, {}]".format(*("…" if end is None else f"{end:.2f}" for end in ends))
