"""What the toy model's figures share: axes, marks of the two regimes, models in words."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import altair as alt
import numpy as np
import pandas as pd

from interp.report import marks

REGIMES = ("strong", "weak")
RULE: dict[str, Any] = {"type": "log", "nice": False}


def points(rows: Sequence[dict[str, Any]], x: alt.X, y: alt.Y, size: int = 90) -> alt.Chart:
    """Strong as filled circles, weak as hollow diamonds."""
    legend = alt.Legend(values=[r for r in REGIMES if any(row["kind"] == r for row in rows)])
    scale = {
        "fill": alt.Scale(domain=list(REGIMES), range="ordinal"),
        "shape": alt.Scale(domain=list(REGIMES), range=["circle", "diamond"]),
    }
    return (
        marks.layer(rows)
        .mark_point(size=size, strokeWidth=2, opacity=1)
        .encode(
            x,
            y,
            stroke(legend),
            alt.Fill("kind:N", scale=scale["fill"], legend=legend),
            alt.Shape("kind:N", scale=scale["shape"], legend=legend),
        )
    )


def stroke(legend: alt.Legend | None = None) -> alt.Stroke:
    """One colour a regime."""
    scale = alt.Scale(domain=list(REGIMES), range="category")
    if legend is None:
        return alt.Stroke("kind:N", scale=scale)
    return alt.Stroke("kind:N", scale=scale, legend=legend)


def families(models: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    """Models of one law and n: those of density 1, and where it was varied those of all of them."""
    for _, part in models.groupby(["law", "parameter", "n"], sort=False):
        first = part.iloc[0]
        name = f"{first.law}_{first.parameter:g}-n{first.n}"
        yield name, part[part.density == 1]
        if part.density.nunique() > 1:
            yield f"{name}-densities", part


def law_in_words(model: Any) -> str:
    """The frequencies of its features, as a legend names them."""
    words = {
        "power": f"p ~ i^-{model.parameter:g}",
        "exponential": f"p ~ exp(-i/{model.parameter:g})",
        "linear": "p ~ n + 1 - i",
    }
    return words[model.law]


def sizes(models: pd.DataFrame) -> str:
    """What models of one family share, for a subtitle."""
    first = models.iloc[0]
    density = f", E {first.density:g}" if models.density.nunique() == 1 else ""
    return f"n {first.n:,}{density}, {first.n_steps:,} steps"


def each(table: pd.DataFrame) -> Iterator[Any]:
    """Its rows, with columns as attributes."""
    return iter(table.itertuples())


def mean_over_seeds(models: pd.DataFrame, by: list[str], quantity: str) -> list[dict[str, Any]]:
    """A record for each setting of `by`."""
    means = models.groupby(by, sort=True)[quantity].mean().reset_index()
    return [{str(k): v for k, v in row.items()} for row in means.to_dict("records")]


def widths(rows: Sequence[dict[str, Any]]) -> alt.X:
    """A log axis of m with the widths themselves as ticks."""
    return alt.X(
        "m:Q",
        title="width m (log scale)",
        scale=alt.Scale(type="log", base=2, nice=False, padding=26),
        axis=alt.Axis(values=sorted({row["m"] for row in rows}), format="d", labelOverlap=True),
    )


def log_y(field: str, title: str, values: Iterable[float]) -> alt.Y:
    """A log axis with round ticks over the values."""
    return alt.Y(
        f"{field}:Q",
        title=f"{title} (log scale)",
        scale=alt.Scale(**RULE, padding=14),
        axis=alt.Axis(format="~g", values=ticks(values)),
    )


def ticks(values: Iterable[float]) -> list[float]:
    """1, 2, 5 in every decade that the values span, more within one, powers of ten over many."""
    known = list(values)
    low, high = np.log10(min(known)), np.log10(max(known))
    spanned = high - low
    digits = (1, 2, 3, 5, 7) if spanned < 1 else (1, 2, 5) if spanned < 2.5 else (1,)
    decades = range(int(np.floor(low)), int(np.ceil(high)) + 1)
    # As written, so that 0.05 is no 0.05000000000000001.
    return [float(f"{digit}e{decade}") for decade in decades for digit in digits]


def gradient(title: str, values: Sequence[float]) -> alt.Legend:
    """A legend below, one symbol a value."""
    present = sorted(set(values))
    return alt.Legend(
        title=title, type="symbol", orient="bottom", values=present, columns=len(present),
        format=".3~g",
    )  # fmt: skip
