"""The tables of the constant-width arm: levers, other counts, and what goes through packing."""

from interp.report.arm_names import OUTCOMES, lever_name
from interp.report.arm_records import Arm
from interp.report.tables import Table
from interp.report.wording import at_its_width, percent, significant, verdict, whole, with_interval

AMOUNT = 1_000
"""Lever values above it are counts, and are told without decimals."""


def lever_value(value: float | None) -> str:
    """0.3 -> 0.3; 3145728 -> 3.1M."""
    if value is None or abs(value) < AMOUNT:
        text = significant(value)
        return text.rstrip("0").rstrip(".") if "." in text else text
    return f"{value / 1e6:.3g}M" if value >= 1e6 else f"{value / 1e3:.3g}k"


def dose_table(arm: Arm) -> Table | None:
    """One line per lever and outcome; None without levers."""
    columns = (
        "Lever", "Outcome", "Models", "Kendall", "Trend p", "Slope [95%]", "Per",
        "Over seeds", "Spread p", "Decided by", "Holm", "Moves", "Note",
    )  # fmt: skip
    rows = tuple(
        (
            lever_name(r.lever),
            OUTCOMES.get(r.outcome, r.outcome) + (", nats" if r.outcome == "loss" else ""),
            whole(r.n_models),
            significant(r.tau, 2),
            significant(r.p_trend, 2),
            at_its_width(r.slope),
            r.slope_per,
            significant(r.spread_over_seeds, 2),
            significant(r.p_spread, 2),
            r.decided_by or "",
            significant(r.p_holm, 2),
            verdict(r.moves),
            r.reason or "",
        )
        for r in arm.responses
    )
    return Table(columns, rows) if rows else None


def secondary_table(arm: Arm) -> Table | None:
    """Other measures against the loss; None where there are none."""
    columns = ("Estimator", "Stream", "Depth", "D", "Models", "Spearman [95%]", "p", "Holm", "Note")
    rows = tuple(
        (
            OUTCOMES.get(s.estimator, s.estimator),
            s.about,
            percent(s.layer_fraction),
            whole(s.d_sae),
            whole(s.n_models),
            with_interval(s.spearman),
            significant(s.p, 2),
            significant(s.p_holm, 2),
            s.reason or "",
        )
        for s in arm.secondary
    )
    return Table(columns, rows) if rows else None


def mediation_table(arm: Arm) -> Table | None:
    """Each lever's effect from the base to its furthest value; None where nothing was fitted."""
    columns = ("Lever", "To", "On packing", "On loss, nats", "At equal packing", "By packing [95%]")
    rows = tuple(
        (
            lever_name(e.lever),
            lever_value(e.value),
            significant(e.on_packing, 2),
            significant(e.total, 2),
            significant(e.direct, 2),
            at_its_width(e.indirect),
        )
        for e in arm.effects
    )
    return Table(columns, rows) if rows else None
