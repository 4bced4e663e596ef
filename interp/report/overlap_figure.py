"""Overlap of a run's dictionaries and output heads by width, in units of what is random."""

from collections.abc import Sequence

import altair as alt

from interp.report import marks, panels
from interp.report.interval import Interval
from interp.report.marks import Figure, Row
from interp.report.overlap_records import DictionaryOverlap, HeadOverlap, Overlaps
from interp.report.theme import KINDS
from interp.report.wording import significant, with_interval

TRAINED, TWIN = "trained", "random_init"
_KIND_OF = {TRAINED: KINDS[0], TWIN: KINDS[2]}
BESIDE = 1.035
"""On the log axis of width: a twin to the right of its model, a head to the left."""


def overlap_against_width(overlaps: Overlaps) -> Figure | None:
    """Mean squared overlap times d_model, so that random rows lie at 1 whatever the width.

    Dictionaries of the headline at its first size, the twins beside the models; bars for their
    Welch floors; the output heads. None without a dictionary, or at one width alone.
    """
    primary = [one for one in overlaps.dictionaries if one.headline and one.control in _KIND_OF]
    first = {m: min(o.d_sae for o in primary if o.model == m) for m in {o.model for o in primary}}
    shown = [
        one
        for one in primary
        if one.d_sae == first[one.model] and one.overlap.value and one.welch_floor is not None
    ]
    widths = sorted({one.d_model for one in shown})
    if len(widths) < 2:
        return None
    points = [_dictionary(one) for one in shown]
    heads = [head for head in overlaps.heads if head.overlap and head.d_model]
    raw = [_head(head, head.overlap) for head in heads]
    centred = [_head(head, head.centred) for head in heads if head.centred]
    floors = [
        {"x": one.d_model, "y": floor}
        for one in shown
        if one.control == TRAINED and (floor := _times(one.welch_floor, one.d_model))
    ]
    x = marks.width_axis([*widths, *(head.d_model for head in heads if head.d_model)])
    heights = [p["y"] for p in [*points, *raw, *centred, *floors]]
    y = alt.Y(
        "y:Q",
        title="overlap times d_model (log scale; random rows: 1)",
        scale=alt.Scale(type="log", nice=False, padding=16),
        axis=alt.Axis(values=panels.log_ticks(heights), format="~g"),
    )
    line = [{"x": d, "y": 1.0} for d in (widths[0] / 1.1, widths[-1] * 1.1)]
    squares = [
        marks.layer(some)
        .mark_point(shape="square", size=70, opacity=1, style=style, filled=filled)
        .encode(x, y)
        for some, style, filled in ((centred, ["fit", "hollow"], False), (raw, ["fit"], True))
        if some
    ]
    return Figure(
        name="overlap_against_width",
        title="Overlap of directions against width",
        subtitle="squares: output heads (hollow: mean row removed); line: random rows; "
        "bars: Welch floor",
        alt="Mean squared overlap times d_model, where random rows have 1. " + _said(shown, heads),
        spec=marks.specification(
            [
                marks.layer(line).mark_line(style="reference").encode(x, y),
                marks.layer(floors)
                .mark_tick(orient="horizontal", thickness=3, size=24, style="reference", opacity=1)
                .encode(x, y)
                if floors
                else None,
                *squares,
                marks.intervals(points, x, y),
                marks.symbols(points, x, y),
            ],
            height=340,
        ),
    )


def _dictionary(one: DictionaryOverlap) -> Row:
    scaled = _scaled(one)
    return {
        "kind": _KIND_OF[one.control],
        "model": one.model,
        "x": one.d_model * (BESIDE if one.control == TWIN else 1.0),
        "y": scaled.value,
        "low": scaled.low,
        "high": scaled.high,
        "reading": with_interval(scaled),
    }


def _head(head: HeadOverlap, overlap: float | None) -> Row:
    return {
        "model": head.model,
        "x": (head.d_model or 0) / BESIDE,
        "y": _times(overlap, head.d_model),
    }


def _times(overlap: float | None, d_model: int | None) -> float | None:
    """1 for rows drawn at random."""
    return None if overlap is None or d_model is None else overlap * d_model


def _scaled(one: DictionaryOverlap) -> Interval:
    return one.overlap.over(1 / one.d_model)


def _said(shown: Sequence[DictionaryOverlap], heads: Sequence[HeadOverlap]) -> str:
    """Every point in words."""
    parts = [
        f"{'untrained twin' if one.control == TWIN else 'dictionary'} at width {one.d_model}: "
        f"{with_interval(_scaled(one))}, "
        f"Welch floor {significant(_times(one.welch_floor, one.d_model))}"
        for one in shown
    ]
    parts += [
        f"head at width {head.d_model}: {significant(_times(head.overlap, head.d_model))}, "
        f"centred {significant(_times(head.centred, head.d_model))}"
        for head in heads
    ]
    return "; ".join(parts) + "."
