"""What counts that had not settled would say of an arm: read, and in words."""

from collections.abc import Mapping
from typing import Any

from interp.report.arm_names import lever_name
from interp.report.arm_records import Unsettled
from interp.report.interval import Interval
from interp.report.json_values import number, whole_number
from interp.report.wording import in_prose, listed, percent, significant


def read_unsettled(data: Mapping[str, Any] | None) -> Unsettled | None:
    """`summary["arm"]["unsettled"]`; None where every count had settled, or the run did not ask."""
    if not data or (n_models := whole_number(data.get("n_models"))) is None:
        return None
    growth = number(data.get("growth_low")), number(data.get("growth_high"))
    return Unsettled(
        n_models=n_models,
        n_settled=whole_number(data.get("n_settled")) or 0,
        growth=None if growth[0] is None or growth[1] is None else (growth[0], growth[1]),
        order_kept=number(data.get("order_kept")),
        spearman=Interval(*(number(data.get(key)) for key in ("spearman", "ci_low", "ci_high"))),
        p=number(data.get("p")),
        within_levers=number(data.get("within_levers")),
        p_within_levers=number(data.get("p_within_levers")),
        spearman_half=number(data.get("spearman_half")),
        p_half=number(data.get("p_half")),
        moving=_levers(data, moves=True),
        still=_levers(data, moves=False),
    )


def _levers(data: Mapping[str, Any], *, moves: bool) -> tuple[str, ...]:
    found = data.get("dose_response") or ()
    return tuple(str(r.get("lever")) for r in found if r.get("moves") is moves)


def unsettled_sentences(found: Unsettled | None) -> str:
    """What came out with them let in, said to be no part of the test; "" without any."""
    if found is None or found.spearman.value is None:
        return ""
    left_out = found.n_models - found.n_settled
    text = (
        f"Not the test that was declared: with the {left_out} counts let in that lack nothing but "
        f"training ({found.n_models} models"
    )
    if found.growth is not None:
        low, high = (percent(end) for end in found.growth)
        text += f"; from half of it to all of it they changed by {low} to {high}"
    if found.order_kept is not None:
        text += f", their order before and after agreeing at {significant(found.order_kept, 2)}"
    text += (
        f"), Spearman of loss and packing is {in_prose(found.spearman)}, "
        f"p {significant(found.p, 2)}"
    )
    if found.within_levers is not None:
        text += (
            f", and within levers {significant(found.within_levers, 2)} "
            f"(p {significant(found.p_within_levers, 2)})"
        )
    if found.spearman_half is not None:
        text += (
            f"; the counts after half of the training give "
            f"{significant(found.spearman_half, 2)} (p {significant(found.p_half, 2)})"
        )
    return f"{text}.{_moves(found)}"


def _moves(found: Unsettled) -> str:
    if not found.moving:
        return " Packing then moves with no lever beyond chance." if found.still else ""
    text = f" Packing then moves with {listed([lever_name(lever) for lever in found.moving])}"
    if found.still:
        text += f", and not beyond chance with {listed([lever_name(v) for v in found.still])}"
    return f"{text}."
