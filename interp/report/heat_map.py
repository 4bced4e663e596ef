"""Where the features are: the count of every model at every depth, as a map with its numbers."""

from collections.abc import Sequence

import altair as alt

from interp.report import marks
from interp.report.marks import Figure
from interp.report.records import PackingRow
from interp.report.wording import hollow, percent, significant, unequal_training, with_interval

ROW_HEIGHT = 34


def heat_map(rows: Sequence[PackingRow]) -> Figure | None:
    """Features per dimension by model and depth. None with fewer than two of either.

    Every cell carries its number, so that the shade is a help only.
    """
    shown = [r for r in rows if r.per_dim.value is not None and r.layer_fraction is not None]
    depths = sorted({row.layer_fraction for row in shown if row.layer_fraction is not None})
    models = list({row.model.name: row.model for row in shown}.values())
    if len(depths) < 2 or len(models) < 2:
        return None
    cells = [
        {
            "model": row.model.name,
            "label": row.model.label,
            "depth": percent_of(row.layer_fraction),
            "value": row.per_dim.value,
            "text": significant(row.per_dim.value, 2)
            if row.counts
            else f"({significant(row.per_dim.value, 2)})",
            "reading": with_interval(row.per_dim),
        }
        for row in shown
    ]
    noun = "contextual features" if shown[0].about == "contextual" else "features"
    x = alt.X(
        "depth:O",
        title="depth (share of the layers passed)",
        sort=[percent_of(depth) for depth in depths],
        axis=alt.Axis(labelAngle=0),
    )
    widths = sorted(models, key=lambda model: model.d_model or 0, reverse=True)
    y = alt.Y("label:O", title="model width d_model", sort=[model.label for model in widths])
    shade = alt.Color("value:Q", scale=alt.Scale(range="heatmap"), legend=None)
    tooltip = [
        alt.Tooltip("model:N"),
        alt.Tooltip("depth:N"),
        alt.Tooltip("reading:N", title="value"),
    ]
    return Figure(
        name="packing_by_layer",
        title=f"{noun.capitalize()} per dimension by model and depth",
        subtitle="; ".join(
            ["the shade follows the number"]
            + [key.replace("hollow", "in brackets") for key in hollow(shown)]
            + unequal_training(shown)
        ),
        alt=f"{noun.capitalize()} per dimension by model and depth. "
        + "; ".join(f"width {c['label']} at {c['depth']}: {c['text']}" for c in cells)
        + ".",
        spec=marks.specification(
            [
                marks.layer(cells).mark_rect(style="cell").encode(x, y, shade, tooltip=tooltip),
                marks.layer(cells).mark_text(style="label").encode(x, y, text="text:N"),
            ],
            height=ROW_HEIGHT * len(models),
        ),
    )


def percent_of(depth: float | None) -> str:
    """0.25 -> 25%."""
    return percent(depth).replace(".0%", "%")
