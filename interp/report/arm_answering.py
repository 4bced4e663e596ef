"""The answer of a study at constant width: does packing move, and does loss move with it?"""

from collections.abc import Sequence

from interp.report.contrast import Verdict, contrast
from interp.report.records import Arm, Correlation, Interval, PackingRow, Summary
from interp.report.wording import in_prose, known_values, listed, plural, significant, span

ALPHA = 0.05
FEWER = {Verdict.FEWER}
MIN_MODELS = 5
"""Fewer cannot reach .05 in any order."""

NAMES = {"row_decay": "row decay", "matrix_decay": "matrix decay", "base": "base and seeds"}
OUTCOMES = {
    "packing": "packing",
    "loss": "loss",
    "row_overlap": "overlap of the embedding's rows",
    "row_length": "length of the embedding's rows",
}


def lever_name(lever: str) -> str:
    """`row_decay` -> row decay."""
    return NAMES.get(lever, lever.replace("_", " "))


def arm_correlation(summary: Summary) -> Correlation | None:
    """The primary test within the arm."""
    return next((c for c in summary.correlation if c.arm == "constant_width"), None)


def arm_sentence(summary: Summary, arm: Arm, rows: Sequence[PackingRow], noun: str) -> str:
    """The first sentence; `rows` are those that count."""
    found = arm_correlation(summary)
    opening = "Preview, not a result: " if summary.preview else ""
    where = f"at constant width {arm.d_model}" if arm.d_model else "at constant width"
    if found is None or found.spearman.value is None or (found.n_models or 0) < MIN_MODELS:
        why = "too few" if arm.n_usable < MIN_MODELS else (found.reason if found else "no test")
        sentence = (
            f"not identified {where}: {arm.n_usable} of {plural(arm.n_models, 'count')} can be "
            f"used ({why}; a count must have converged at the FVU asked for and leave its "
            f"dictionary room), so this run does not say whether loss moves with packing."
        )
    else:
        sentence = (
            f"{_like_untrained(rows)}{where}, {_packing(arm, rows, noun)}"
            f"{_loss(arm, found, found.spearman.value)}."
        )
    return opening + (sentence if opening else sentence[0].upper() + sentence[1:])


def arm_more(summary: Summary, arm: Arm, rows: Sequence[PackingRow]) -> list[str]:
    """The sentences under it."""
    found = arm_correlation(summary)
    parts = [_levers(arm), _rows(arm)]
    if found is not None and found.spearman.value is not None:
        parts += [_within(found), _left_out(arm), _slope(found), _secondary(arm)]
    return [*(part for part in parts if part), *_twin(summary, rows), _mediation(arm)]


def _like_untrained(rows: Sequence[PackingRow]) -> str:
    """What the first sentence must not leave out: a count that an untrained network has too."""
    verdicts = {c.verdict for row in rows if (c := contrast(row)) is not None}
    if Verdict.SAME in verdicts:
        return "packing is not distinguishable from an untrained network's, and "
    return "trained networks pack fewer than untrained ones, and " if verdicts == FEWER else ""


def _packing(arm: Arm, rows: Sequence[PackingRow], noun: str) -> str:
    values = known_values(row.per_dim for row in rows)
    extent = f"{span(values)} {noun} per dimension over {plural(len(rows), 'model')}"
    tested = [r.moves for r in arm.responses if r.outcome == "packing" and r.moves is not None]
    moving = [lever_name(lever) for lever in arm.moving("packing")]
    if moving:
        return f"packing moves with {listed(moving)} ({extent})"
    if tested:
        return f"no lever moves packing beyond chance ({extent})"
    return f"no test says whether packing moves ({extent})"


def _loss(arm: Arm, found: Correlation, rho: float) -> str:
    moves = bool(arm.moving("packing"))
    numbers = f"Spearman {_numbers(found.spearman, found.p_exact)}"
    if found.p_exact is not None and found.p_exact <= ALPHA:
        way = "falls where packing rises" if rho < 0 else "rises where packing rises"
        return f", {'and' if moves else 'yet'} loss {way} ({numbers})"
    text = f", {'but' if moves else 'and'} there is no evidence that loss moves with it ({numbers})"
    if arm.detectable_rho is not None:
        seen = significant(arm.detectable_rho, 2)
        text += f"; a correlation of {seen} or more would have shown four times in five"
    return text


def _numbers(estimate: Interval, p: float | None) -> str:
    value = in_prose(estimate).replace(" (", ", ").removesuffix(")")
    return value if p is None else f"{value}, p {significant(p, 2)}"


def _levers(arm: Arm) -> str:
    packing, loss = arm.moving("packing"), arm.moving("loss")
    if not any(r.moves is not None for r in arm.responses):
        return "Whether any lever moves packing or loss could not be tested."
    parts = [
        f"{what} with {listed([lever_name(lever) for lever in levers])}"
        for what, levers in (
            ("packing and loss both move", [v for v in packing if v in loss]),
            ("packing alone moves", [v for v in packing if v not in loss]),
            ("loss alone moves", [v for v in loss if v not in packing]),
        )
        if levers
    ]
    if not parts:
        return "No lever moves packing or loss beyond chance."
    text = "; ".join(parts)
    return f"{text[0].upper()}{text[1:]} (beyond chance, Holm over levers)."


def _rows(arm: Arm) -> str:
    """Whether the levers moved what they were to move: without that a null says nothing."""
    told = []
    for outcome, called in (("row_overlap", "overlap"), ("row_length", "length")):
        if any(r.outcome == outcome and r.moves is not None for r in arm.responses):
            moved = [lever_name(lever) for lever in arm.moving(outcome)]
            told.append(f"their {called} moves with {listed(moved or ['no lever'])}")
    if not told:
        return ""
    return f"Whether the levers took hold, by the embedding's rows: {', and '.join(told)}."


def _within(found: Correlation) -> str:
    if found.within_levers is None:
        return "Within levers there is nothing left to correlate."
    p = found.p_within_levers
    shown = p is not None and p <= ALPHA
    reading = (
        "so differences between levers are not all of it (a lever's own dose still may be)"
        if shown
        else "so a lever that moves both could be all there is to any relation"
    )
    return (
        f"Among models that had the same lever pulled the correlation is "
        f"{significant(found.within_levers, 2)} (p {significant(p, 2)}), {reading}."
    )


def _left_out(arm: Arm) -> str:
    if arm.leave_one_out is None:
        return ""
    low, high = (significant(end, 2) for end in arm.leave_one_out)
    text = f"With any one model left out Spearman lies between {low} and {high}"
    known = [(rho, block) for block, rho in arm.without_block.items() if rho is not None]
    if known:
        weakest = min(known, key=lambda pair: abs(pair[0]))
        text += f"; without {lever_name(weakest[1])} it is {significant(weakest[0], 2)}"
    return text + "."


def _slope(found: Correlation) -> str:
    if found.slope.value is None:
        return ""
    return f"A feature more per dimension goes with {in_prose(found.slope)} nats of loss."


def _secondary(arm: Arm) -> str:
    tested = [s for s in arm.secondary if s.p_holm is not None]
    if not tested:
        return ""
    shown = sum(s.p_holm is not None and s.p_holm <= ALPHA for s in tested)
    return (
        f"Of {len(tested)} other measures (depths, streams, estimators, the embedding's rows), "
        f"{shown or 'none'} "
        f"go{'es' if shown == 1 else ''} with the loss after Holm's correction."
    )


def _twin(summary: Summary, rows: Sequence[PackingRow]) -> list[str]:
    pairs = [c for row in rows if (c := contrast(row)) is not None]
    if not pairs:
        beside = [row for row in summary.primary_rows if row.twin is not None]
        why = "No untrained twin was measured"
        if beside:
            names = listed([row.model.label for row in beside])
            why = f"The untrained twin stands beside {names}, whose own count may not be used"
            if any(row.counts for row in beside):
                why = "The untrained twin gave no count"
        return [f"{why}, so this does not show what training adds."]
    found = [c.row.twin for c in pairs if c.row.twin is not None]
    values = known_values(twin.per_dim for twin in found)
    at_least = "at least " if any(twin.censored for twin in found) else ""
    return [
        f"The untrained twin of this width packs {at_least}{span(values)} per dimension; trained "
        f"minus twin is {in_prose(pairs[0].difference)} for the {pairs[0].row.model.label} model.",
        *rising_twins(rows, "this width"),
    ]


def rising_twins(rows: Sequence[PackingRow], where: str) -> list[str]:
    """An untrained network's count that still grows is no level to set a model's count against."""
    twins = [r.twin for r in rows if r.twin is not None and r.twin.rising]
    if not twins:
        return []
    halves = [twin.half for twin in twins if twin.half is not None]
    return [
        f"The untrained count has not settled at {where}: {span(halves)} per dimension after half "
        f"of the dictionaries' training tokens, {span(known_values(t.per_dim for t in twins))} "
        f"after all. What lies between trained and untrained there holds for this much training "
        f"and may shrink with more."
    ]


def _mediation(arm: Arm) -> str:
    if arm.loss_per_packing.value is None:
        why = arm.mediation_reason
        return f"How much of a lever's effect goes through packing is not told: {why}."
    return (
        f"At equal levers a feature more per dimension goes with "
        f"{in_prose(arm.loss_per_packing)} nats; {arm.assumptions}."
    )
