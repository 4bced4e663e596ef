"""The tables of overlaps: dictionaries with their controls, and output heads."""

from interp.report.overlap_records import Overlaps
from interp.report.tables import Table, folded, models_first
from interp.report.wording import ABSENT, CONTROLS, significant, whole, with_interval


def dictionary_overlap_table(overlaps: Overlaps) -> Table | None:
    """One line per model, control, place and dictionary size; None where none was measured."""
    columns = ("Model", "Weights", "Hook point", "Stream", "D", "k", "Seeds", "Over random",
               "Over the floor", "Overlap [95%]", "Centred [95%]", "Random rows", "Welch floor",
               "Capacity per dimension [95%]")  # fmt: skip
    rows = [
        (
            one.model,
            CONTROLS.get(one.control, one.control),
            one.hook_point,
            one.about,
            whole(one.d_sae),
            whole(one.k),
            whole(one.n_seeds),
            significant(_ratio(one.overlap.value, one.random_mean)),
            significant(_ratio(one.overlap.value, one.welch_floor)),
            with_interval(one.overlap),
            with_interval(one.centred),
            significant(one.random_mean),
            significant(one.welch_floor),
            with_interval(one.capacity.over(one.d_model)),
        )
        for one in overlaps.dictionaries
    ]
    return folded(columns, models_first(rows), {"Stream", "Seeds"}) if rows else None


def head_overlap_table(overlaps: Overlaps) -> Table | None:
    """One line per model; None where no head was looked at."""
    columns = ("Model", "Rows", "Over random", "Over the floor", "Overlap", "Centred",
               "Leading components removed", "Random rows", "Welch floor", "Note")  # fmt: skip
    rows = [
        (
            one.model,
            whole(one.n),
            significant(_ratio(one.overlap, one.random_mean)),
            significant(_ratio(one.overlap, one.welch_floor)),
            significant(one.overlap),
            significant(one.centred),
            significant(one.top_removed),
            significant(one.random_mean),
            significant(one.welch_floor),
            one.reason or ABSENT,
        )
        for one in overlaps.heads
    ]
    return folded(columns, rows, {"Rows", "Note"}) if rows else None


def _ratio(value: float | None, by: float | None) -> float | None:
    """None where the floor is 0: so few rows can lie at right angles."""
    return value / by if value is not None and by else None
