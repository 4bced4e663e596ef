"""The constant-width arm, drawn: packing against loss, and both against every lever."""

from collections.abc import Callable, Sequence
from typing import Any

import altair as alt

from interp.report import marks
from interp.report.arm_names import OUTCOMES, lever_name
from interp.report.arm_records import Arm
from interp.report.arm_tables import lever_value
from interp.report.marks import Figure, Row
from interp.report.multiples import side_by_side
from interp.report.placing import place
from interp.report.records import ModelRecord, PackingRow
from interp.report.theme import LEVER_SHAPES, LEVERS
from interp.report.wording import listed, significant, with_interval

HEIGHT = 400
SIDE = 56
PLOT = (620, HEIGHT)
"""Pixels between the outermost points and of the height in a file, for placing labels."""
WIDE = 520
LETTER, LINE = 7.0, 13.0
"""A label's pixels per letter, and its height."""
PANEL_HEIGHT = 170
LOG = ("tokens", "projects")
SEED = "seed"


def arm_against_loss(rows: Sequence[PackingRow], found_by: str) -> Figure | None:
    """Features per dimension against loss within the arm, one mark per model, told by lever.

    found_by: which seeds have to find a latent for it to count.
    """
    shown = [r for r in rows if r.per_dim.value is not None and r.model.loss.value is not None]
    if not shown:
        return None
    points = _labelled([_point(row.model, row, row.model.loss.value) for row in shown])
    noun = _noun(shown[0])
    x = alt.X(
        "x:Q",
        title=f"loss ({shown[0].model.loss_unit}; better models to the left)",
        scale=alt.Scale(zero=False, nice=False, padding=SIDE),
        axis=alt.Axis(tickCount=6),
    )
    twin = _twin_level(shown)
    y = marks.per_dimension_axis([*points, *_level(twin)])
    hollow = "; hollow: enters no test" if _hollow(shown) else ""
    return Figure(
        name="packing_against_loss",
        title=f"{noun.capitalize()} per dimension against loss, at constant width",
        subtitle=f"found by {found_by}; numbers: value of the lever, where there is room; line: "
        f"one lever in order; bars: 95% intervals{hollow}",
        alt=f"{noun.capitalize()} per dimension, found by {found_by}, against loss in "
        f"{shown[0].model.loss_unit}, models of one width. "
        + "; ".join(_said(point) for point in points)
        + "."
        + (f" Untrained twin: {significant(twin)}." if twin is not None else ""),
        spec=marks.specification(
            [
                *_twin_line(twin, y),
                _paths(points, x, y),
                _bars(points, x, y, legend=True),
                *_symbols(points, x, y, legend=True),
                *_labels(points, x, y),
            ],
            height=HEIGHT,
        ),
    )


def dose_response(
    arm: Arm, rows: Sequence[PackingRow], models: Sequence[ModelRecord], found_by: str
) -> Figure | None:
    """Packing, loss and the rows' overlap, one column per lever; a band holds the base's seeds.

    found_by: as in `arm_against_loss`.
    """
    levers = sorted({r.lever for r in arm.responses}, key=_in_order)
    if not levers:
        return None
    packing = {row.model.name: row for row in rows if row.per_dim.value is not None}
    by_outcome: list[tuple[str, list[Row]]] = [
        ("packing", [_point(row.model, row, None) for row in packing.values()]),
        ("loss", [_model_point(m, m.loss.value, 4) for m in models if m.loss.value is not None]),
        ("row_overlap", [_model_point(m, m.row_overlap, 3) for m in models
                         if m.row_overlap is not None]),
    ]  # fmt: skip
    of_loss = f"loss, {models[0].loss_unit}" if models else ""
    units = {"packing": "features per dim.", "loss": of_loss,
             "row_overlap": "rows' squared cosine"}  # fmt: skip
    panels, said = [], []
    for outcome, points in by_outcome:
        if not points:
            continue
        for lever in levers:
            panels.append(_panel(arm, lever, outcome, points, _twin_level(rows), units[outcome]))
            reading = "; ".join(
                f"{lever_value(p['x'])}: {p['reading']}" for p in _along(arm, lever, points)
            )
            said.append(
                f"{OUTCOMES[outcome]} by {lever_name(lever)}: {reading or 'nothing measured'}"
            )
    if not panels:
        return None
    drawn = [OUTCOMES[outcome] for outcome, points in by_outcome if points]
    moved = listed([lever_name(v) for v in arm.moving("packing")] or ["no lever"])
    return Figure(
        name="dose_response",
        title="What the levers move",
        subtitle=f"features found by {found_by}; band: seeds of the base recipe; dashed: untrained "
        "twin; bars: 95% intervals",
        alt=f"{listed(drawn).capitalize()} against each lever (features found by {found_by}). "
        f"Packing moves with {moved}. " + ". ".join(said) + ".",
        spec=side_by_side(panels, columns=len(levers)),
    )


def _point(model: ModelRecord, row: PackingRow, x: float | None) -> Row:
    return {
        **_varied(model),
        "x": x,
        "y": row.per_dim.value,
        "low": row.per_dim.low,
        "high": row.per_dim.value if row.censored else row.per_dim.high,
        "counts": _tested(row),
        "reading": with_interval(row.per_dim) + ("" if _tested(row) else ", enters no test"),
    }


def _model_point(model: ModelRecord, value: float | None, digits: int) -> Row:
    """No bar: the loss's interval is over documents, which all models share."""
    reading = significant(value, digits)
    return {**_varied(model), "y": value, "counts": True, "reading": reading}


def _varied(model: ModelRecord) -> Row:
    lever = model.lever
    name = lever.name if lever is not None else "base" if model.base else "other"
    kind = lever_name(name) if lever is not None else name
    return {
        "model": model.name,
        "lever": kind if kind in LEVERS else "other",
        "name": name,
        "value": None if lever is None else lever.value,
        "label": model.label if lever is None else lever_value(lever.value),
    }


def _in_order(lever: str) -> tuple[int, str]:
    name = lever_name(lever)
    return LEVERS.index(name) if name in LEVERS else len(LEVERS), name


def _noun(row: PackingRow) -> str:
    return "contextual features" if row.about == "contextual" else "features of the raw stream"


def _hollow(rows: Sequence[PackingRow]) -> bool:
    return not all(_tested(row) for row in rows)


def _tested(row: PackingRow) -> bool:
    """A full dictionary's count is a bound, and a bound has no rank."""
    return row.counts and not row.censored


def _said(point: Row) -> str:
    what = {"base": "base recipe", "other": point["label"]}.get(
        point["name"], f"{point['lever']} {point['label']}"
    )
    return f"{what}: {point['reading']} at {significant(point['x'], 4)}"


def _twin_level(rows: Sequence[PackingRow]) -> float | None:
    """The twin's count: one for the arm, whose models have one architecture."""
    known = [r.twin.per_dim.value for r in rows if r.twin is not None]
    return next((value for value in known if value is not None), None)


def _labelled(points: list[Row]) -> list[Row]:
    """With a label, and the pixels by which it stands off its point, where there is room.

    The ends of each lever are named; between them its values alone.
    """
    named = [p for p in points if p["name"] != SEED]
    ends = {
        value: lever
        for lever in {p["name"] for p in named}
        for values in [[p["value"] for p in named if p["name"] == lever and p["value"] is not None]]
        if values
        for value in ((lever, min(values)), (lever, max(values)))
    }
    texts = {
        p["model"]: f"{p['lever']} {p['label']}" if (p["name"], p["value"]) in ends else p["label"]
        for p in named
    }
    ordered = sorted(points, key=lambda p: -len(texts.get(p["model"], "")))
    left, right = (end(p["x"] for p in points) for end in (min, max))
    top = marks.headroom(points)
    at = [
        (
            (p["x"] - left) / ((right - left) or 1.0) * PLOT[0],
            (1 - p["y"] / top) * PLOT[1],
        )
        for p in ordered
    ]
    sizes = [(LETTER * len(texts.get(p["model"], "")), LINE) for p in ordered]
    placed = zip(ordered, place(at, sizes, left=-SIDE, right=PLOT[0] + SIDE), strict=True)
    room = {p["model"]: offset for p, offset in placed if p["model"] in texts and offset}
    return [
        {**p, "label": texts[p["model"]], "dx": room[p["model"]][0], "dy": room[p["model"]][1]}
        if p["model"] in room
        else p
        for p in points
    ]


def _by_lever(values: Any) -> alt.Scale:
    return alt.Scale(domain=list(LEVERS), range=values)


def _colour(points: Sequence[Row], *, legend: bool) -> Callable[..., Any]:
    present = {point["lever"] for point in points}
    shown = (
        alt.Legend(values=[v for v in LEVERS if v in present], symbolOpacity=1) if legend else None
    )

    def channel(kind: Any, values: Any) -> Any:
        return kind("lever:N", scale=_by_lever(values), legend=shown)

    return channel


def _symbols(points: Sequence[Row], x: alt.X, y: alt.Y, *, legend: bool) -> list[alt.Chart]:
    """Filled where they count, hollow where not."""
    channel = _colour(points, legend=legend)
    tooltip = [
        alt.Tooltip("model:N", title="model"),
        alt.Tooltip("lever:N", title="varied"),
        alt.Tooltip("label:N", title="to"),
        alt.Tooltip("reading:N", title="value"),
    ]
    both = {
        "stroke": channel(alt.Stroke, "diverging"),
        "shape": channel(alt.Shape, list(LEVER_SHAPES)),
        "tooltip": tooltip,
    }
    counting = [p for p in points if p["counts"]]
    other = [p for p in points if not p["counts"]]
    found = []
    if counting:
        filled = marks.layer(counting).mark_point(size=90, strokeWidth=1.5, opacity=1)
        found.append(filled.encode(x, y, fill=channel(alt.Fill, "diverging"), **both))
    if other:
        hollow = marks.layer(other).mark_point(
            size=90, strokeWidth=2, opacity=1, filled=False, style="hollow"
        )
        found.append(hollow.encode(x, y, **both))
    return found


def _bars(points: Sequence[Row], x: alt.X, y: alt.Y, *, legend: bool) -> alt.Chart | None:
    known = [p for p in points if p.get("low") is not None and p.get("high") is not None]
    if not known:
        return None
    colour = _colour(points, legend=legend)(alt.Stroke, "diverging")
    return (
        marks.layer(known)
        .mark_rule(style="interval")
        .encode(x, marks.at(y, "low"), colour, y2="high:Q")
    )


def _paths(points: Sequence[Row], x: alt.X, y: alt.Y) -> alt.Chart | None:
    """A line through each lever's models in order; seeds have none."""
    ordered = [p for p in points if p["name"] not in ("base", SEED)]
    if not ordered:
        return None
    colour = _colour(points, legend=True)(alt.Stroke, "diverging")
    lines = marks.layer(ordered).mark_line(strokeWidth=1.5, opacity=0.45)
    return lines.encode(x, y, colour, order=alt.Order("value:Q"), detail="name:N")


def _labels(points: Sequence[Row], x: alt.X, y: alt.Y) -> list[alt.Chart]:
    """What was varied, beside each point that has room for it; on a phone none has."""
    named = [p for p in points if "dx" in p]
    shown = alt.expr(f"width < {WIDE} ? 0 : 1")
    return [
        marks.layer([p])
        .mark_text(
            style=style, dx=p["dx"], dy=p["dy"], align="center", baseline="middle", opacity=shown
        )
        .encode(x, y, text="label:N")
        for style in (["label", "halo"], "label")
        for p in named
    ]


def _level(twin: float | None) -> list[Row]:
    """The twin as a point, so that an axis has room for it."""
    return [] if twin is None else [{"y": twin}]


def _twin_line(level: float | None, y: alt.Y, *, note: bool = True) -> list[alt.Chart]:
    if level is None:
        return []
    data = marks.layer([{"y": level, "note": "untrained twin"}])
    text = data.mark_text(style="note", align="right", dy=-9, dx=-4).encode(
        x=alt.value("width"), y=y, text="note:N"
    )
    return [data.mark_rule(style="twin").encode(y), *([text] if note else [])]


def _along(arm: Arm, lever: str, points: Sequence[Row]) -> list[Row]:
    """The models of one lever and the base, by value."""
    base = arm.base_values.get(lever)
    placed = [{**p, "x": p["value"]} for p in points if p["name"] == lever]
    if base is not None:
        placed += [{**p, "x": base} for p in points if p["name"] == "base"]
    return sorted((p for p in placed if p["x"] is not None), key=lambda p: float(p["x"]))


def _panel(
    arm: Arm, lever: str, outcome: str, points: Sequence[Row], twin: float | None, unit: str
) -> Any:
    mine = _along(arm, lever, points)
    doses = [p["x"] for p in mine]
    logarithmic = lever in LOG and all(dose > 0 for dose in doses)
    scale = alt.Scale(type="linear", zero=False, nice=False, padding=14)
    if logarithmic:
        scale = alt.Scale(type="log", base=2, nice=False, padding=14)
    x = alt.X(
        "x:Q",
        title=lever_name(lever),
        scale=scale,
        axis=alt.Axis(
            values=doses,
            format=".2~s" if logarithmic else ".3~g",
            labelOverlap="greedy",
            labelSeparation=5,
        ),
    )
    if outcome == "packing":
        domain = [0.0, marks.headroom([*points, *_level(twin)])]
        y = alt.Y("y:Q", title=unit, axis=alt.Axis(tickCount=4),
                  scale=alt.Scale(domain=domain, nice=False))  # fmt: skip
    else:
        losses = [p["y"] for p in points]
        room = 0.08 * (max(losses) - min(losses) or 0.1)
        domain = [min(losses) - room, max(losses) + room]
        y = alt.Y("y:Q", title=unit, axis=alt.Axis(tickCount=4),
                  scale=alt.Scale(domain=domain, nice=False))  # fmt: skip
    same = [p["y"] for p in points if p["name"] in ("base", SEED) and p["counts"]]
    band = None
    if len(same) > 1:
        band = marks.layer([{"y": min(same), "high": max(same)}])
        band = band.mark_rect(style="seeds").encode(y, y2="high:Q")
    line = None
    if mine:
        pulled = next((p["lever"] for p in mine if p["name"] == lever), "other")
        stroke = _colour(points, legend=False)(alt.Stroke, "diverging")
        drawn = marks.layer([{**p, "lever": pulled} for p in mine])
        line = drawn.mark_line(strokeWidth=1.5, opacity=0.45).encode(x, y, stroke)
    layers = [
        band,
        *(_twin_line(twin, y, note=False) if outcome == "packing" else []),
        line,
        _bars(mine, x, y, legend=False),
        *_symbols(mine, x, y, legend=False),
    ]
    return alt.layer(*[one for one in layers if one is not None]).properties(height=PANEL_HEIGHT)
