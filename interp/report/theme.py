"""Light and dark: one specification per figure, two Vega configurations to draw it with.

Specifications name no colour. They ask for a role (a position in a range, a mark style), and the
configuration answers, so that the page can follow the reader's preference and the files for print
are always light. Colours are Okabe and Ito's, told apart under the common colour-blindnesses; and
no distinction rests on colour: trained is a circle, twin a diamond, what enters no fit is hollow.
"""

from typing import Any

FONT = "Helvetica Neue, Helvetica, Arial, Liberation Sans, sans-serif"

# The kinds of point, in legend order; scales give each its stroke, fill and shape by position.
KINDS = (
    "trained",
    "trained, enters no fit",
    "untrained twin",
    "untrained twin, not settled",
)
SHAPES = ("circle", "circle", "diamond", "diamond")

# What was varied in a model of the constant-width arm; each a shape and a colour by position.
LEVERS = ("base", "seed", "row decay", "matrix decay", "tokens", "projects", "other")
LEVER_SHAPES = (
    "circle", "cross", "triangle-up", "square", "diamond", "triangle-down", "triangle-right",
)  # fmt: skip


def light() -> dict[str, Any]:
    """Vega configuration on white: files, print, and the page by day."""
    return _config(
        paper="#ffffff",
        ink="#1b1f24",
        muted="#59636e",
        grid="#e4e7eb",
        trained="#0072b2",
        twin="#d55e00",
        ramp=["#7fb8dc", "#0072b2", "#00304d"],
        cells=["#eaf3fa", "#56a5d6"],
        levers=["#1b1f24", "#59636e", "#0072b2", "#d55e00", "#00835d", "#b0418a", "#8a6d00"],
    )


def dark() -> dict[str, Any]:
    """Vega configuration on the page's dark ground."""
    return _config(
        paper="#15191e",
        ink="#e8eaed",
        muted="#a3adb8",
        grid="#2b323a",
        trained="#56b4e9",
        twin="#e69f00",
        ramp=["#2d6a94", "#56b4e9", "#cdeafb"],
        cells=["#1d2b36", "#28688f"],
        levers=["#e8eaed", "#a3adb8", "#56b4e9", "#e69f00", "#2fc79a", "#e8a0c8", "#f0e442"],
    )


def _config(
    *,
    paper: str,
    ink: str,
    muted: str,
    grid: str,
    trained: str,
    twin: str,
    ramp: list[str],
    cells: list[str],
    levers: list[str],
) -> dict[str, Any]:
    return {
        "background": paper,
        "font": FONT,
        "view": {"stroke": None},
        "padding": 8,
        "title": {
            "anchor": "start",
            "frame": "group",
            "color": ink,
            "fontSize": 17,
            "fontWeight": 600,
            "offset": 16,
            "subtitleColor": muted,
            "subtitleFontSize": 12.5,
            "subtitlePadding": 5,
        },
        "axis": {
            "domainColor": muted,
            "tickColor": muted,
            "gridColor": grid,
            "labelColor": ink,
            "titleColor": ink,
            "labelFontSize": 12,
            "titleFontSize": 12.5,
            "titleFontWeight": 500,
            "titlePadding": 10,
            "labelPadding": 5,
        },
        "axisX": {"grid": False, "labelFlush": False},
        "axisY": {
            "domain": False,
            "ticks": False,
            # Upright above the axis: read without turning the head, and no width lost on a phone.
            "titleAngle": 0,
            "titleAlign": "left",
            "titleAnchor": "end",
            "titleBaseline": "bottom",
            "titleX": -28,
            "titleY": -10,
        },
        "legend": {
            "orient": "bottom",
            "title": None,
            "columns": 4,
            "labelColor": ink,
            "labelFontSize": 12,
            "labelLimit": 260,
            "symbolSize": 90,
            "symbolStrokeWidth": 2,
            "columnPadding": 18,
            "padding": 4,
            "offset": 14,
        },
        # "diverging" holds the colours of LEVERS; "heatmap" shades under numbers in ink.
        # "category" strokes and "ordinal" fills of KINDS: hollow is filled with paper, so that the
        # interval does not run through the mark.
        "range": {
            "category": [trained, trained, twin, twin],
            "ordinal": [trained, paper, twin, paper],
            "ramp": ramp,
            "heatmap": cells,
            "diverging": levers,
        },
        "concat": {"spacing": 26},
        "style": {
            "interval": {"strokeWidth": 2, "strokeCap": "round"},
            "connector": {"color": muted, "strokeWidth": 1, "strokeDash": [1, 4]},
            "reference": {"color": muted, "strokeWidth": 1.5},
            "twin": {"color": twin, "strokeWidth": 1.5, "strokeDash": [5, 4]},
            "hollow": {"fill": paper},
            "cell": {"stroke": paper, "strokeWidth": 2},
            "seeds": {"color": muted, "opacity": 0.18},
            "band": {"color": trained},
            "fit": {"color": ink, "strokeWidth": 1.5},
            "arrow": {"strokeWidth": 2, "strokeCap": "round"},
            "label": {"color": ink, "fontSize": 12, "fontWeight": 600, "font": FONT},
            "note": {"color": muted, "fontSize": 12, "font": FONT, "fontStyle": "italic"},
            # Paper under the letters, where a line passes behind them.
            "halo": {"color": paper, "stroke": paper, "strokeWidth": 4, "strokeJoin": "round"},
        },
    }
