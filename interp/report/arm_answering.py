"""The answer of a study at constant width: does packing move, and does loss move with it?"""

from collections.abc import Sequence
from math import isclose

from interp.report.arm_names import ALPHA, MIN_MODELS, could_have_shown, lever_name
from interp.report.arm_records import Arm, Secondary
from interp.report.contrast import Verdict, contrast
from interp.report.interval import Interval
from interp.report.records import Control, Correlation, PackingRow, Summary
from interp.report.unconverged import unconverged_sentences
from interp.report.wording import in_prose, known_values, listed, plural, significant, span

FEWER = {Verdict.FEWER}


def arm_correlation(summary: Summary) -> Correlation | None:
    """The primary test within the arm."""
    return next((c for c in summary.correlation if c.arm == "constant_width"), None)


def arm_sentence(summary: Summary, arm: Arm, rows: Sequence[PackingRow], noun: str) -> str:
    """The first sentence; `rows` are those that count, of which full dictionaries enter no test."""
    tested = [row for row in rows if not row.censored]
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
            f"{_like_untrained(rows)}{where}, {_packing(arm, tested, noun)}"
            f"{_loss(arm, found, found.spearman.value)}."
        )
    return opening + (sentence if opening else sentence[0].upper() + sentence[1:])


def arm_more(summary: Summary, arm: Arm, rows: Sequence[PackingRow]) -> list[str]:
    """The sentences under it."""
    found = arm_correlation(summary)
    parts = [_levers(arm), _rows(arm)]
    if found is not None and found.spearman.value is not None:
        rho = found.spearman.value
        parts += [
            _within(found, rho),
            _left_out(arm),
            _same_k(arm),
            _same_strictness(arm),
            _slope(found),
            _secondary(arm),
        ]
    labels = {row.model.name: row.model.label for row in summary.primary_rows}
    parts.append(unconverged_sentences(arm.unconverged, labels))
    return [*(part for part in parts if part), *_twin(summary, rows), _mediation(arm)]


def _like_untrained(rows: Sequence[PackingRow]) -> str:
    """What the first sentence must not leave out: a count that an untrained network has too.

    Said of the models that have a twin, which in an arm is the base.
    """
    pairs = [c for row in rows if (c := contrast(row)) is not None]
    if not pairs:
        return ""
    of = listed([_who(c.row) for c in pairs])
    verdicts = {c.verdict for c in pairs}
    if Verdict.SAME in verdicts:
        return f"packing of {of} is not distinguishable from an untrained network's, and "
    return f"{of} packs fewer than its untrained twin, and " if verdicts == FEWER else ""


def _who(row: PackingRow) -> str:
    return "the base model" if row.model.base else row.model.label


def _packing(arm: Arm, rows: Sequence[PackingRow], noun: str) -> str:
    values = known_values(row.per_dim for row in rows)
    extent = f"{span(values)} {noun} per dimension over {plural(len(rows), 'model')}"
    moving = [lever_name(lever) for lever in arm.moving("packing")]
    still, untested = arm.still("packing"), arm.untested("packing")
    if moving:
        return f"packing moves with {listed(moving)} ({extent})"
    if not still:
        return f"no test says whether packing moves ({extent})"
    if not untested:
        return f"no lever moves packing beyond chance ({extent})"
    tried = listed([lever_name(lever) for lever in still])
    return (
        f"packing does not move beyond chance with {tried}, and with no other could be tested "
        f"({extent})"
    )


def _loss(arm: Arm, found: Correlation, rho: float) -> str:
    moves = bool(arm.moving("packing"))
    numbers = f"Spearman {_numbers(found.spearman, found.p_exact)}"
    if found.p_exact is not None and found.p_exact <= ALPHA:
        way = "falls where packing rises" if rho < 0 else "rises where packing rises"
        return f", {'and' if moves else 'yet'} loss {way} ({numbers})"
    text = f", {'but' if moves else 'and'} there is no evidence that loss moves with it ({numbers})"
    if arm.detectable_rho is not None:
        text += f"; {could_have_shown(arm.detectable_rho)}"
    return text


def _numbers(estimate: Interval, p: float | None) -> str:
    value = in_prose(estimate).replace(" (", ", ").removesuffix(")")
    return value if p is None else f"{value}, p {significant(p, 2)}"


def _levers(arm: Arm) -> str:
    """What each lever moves; what could not be tested is never said to stand still."""
    if not any(r.moves is not None for r in arm.responses if r.outcome in ("packing", "loss")):
        return "Whether any lever moves packing or loss could not be tested."
    packing, loss = arm.moving("packing"), arm.moving("loss")
    no_packing, no_loss = arm.still("packing"), arm.still("loss")
    parts = [
        f"{what} with {listed([lever_name(lever) for lever in levers])}"
        for what, levers in (
            ("packing and loss both move", [v for v in packing if v in loss]),
            ("packing alone moves", [v for v in packing if v in no_loss]),
            ("loss alone moves", [v for v in loss if v in no_packing]),
            ("loss moves", [v for v in loss if v not in packing and v not in no_packing]),
            ("packing moves", [v for v in packing if v not in loss and v not in no_loss]),
        )
        if levers
    ]
    text = f"{'; '.join(parts)} (beyond chance, Holm over levers)"
    if not parts:
        both = ("packing", no_packing), ("loss", no_loss)
        text = (
            f"no lever moves {' or '.join(what for what, tested in both if tested)} beyond chance"
        )
    unknown = [
        f"whether {what} moves with {listed([lever_name(lever) for lever in levers])} could not be "
        "tested"
        for what, levers in ((what, arm.untested(what)) for what in ("packing", "loss"))
        if levers
    ]
    text = "; ".join([text, *unknown])
    return f"{text[0].upper()}{text[1:]}."


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


def _within(found: Correlation, rho: float) -> str:
    if found.within_levers is None:
        return "Within levers there is nothing left to correlate."
    p, over_all = found.p_within_levers, found.p_exact
    shown = p is not None and p <= ALPHA
    over_arm = over_all is not None and over_all <= ALPHA
    if shown and not over_arm:
        reading = ", which the arm as a whole does not show"
    elif shown and (found.within_levers > 0) != (rho > 0):
        reading = (
            ": within levers the relation runs the other way, and the one over the arm comes from "
            "differences between levers"
        )
    elif shown:
        reading = (
            ", so differences between levers are not all of it (a lever's own dose still may be)"
        )
    elif over_arm:
        reading = ", so a lever that moves both could be all there is to the relation"
    else:
        reading = ""
    return (
        f"Among models that had the same lever pulled the correlation is "
        f"{significant(found.within_levers, 2)} (p {significant(p, 2)}){reading}."
    )


def _left_out(arm: Arm) -> str:
    if arm.leave_one_out is None:
        return ""
    low, high = (significant(end, 2) for end in arm.leave_one_out)
    text = f"With any one model left out Spearman lies between {low} and {high}"
    known = sorted((rho, block) for block, rho in arm.without_block.items() if rho is not None)
    if len(known) > 1:
        (least, one), (most, other) = known[0], known[-1]
        text += (
            f"; with all models of one lever left out between {significant(least, 2)} (without "
            f"{lever_name(one)}) and {significant(most, 2)} (without {lever_name(other)})"
        )
    return text + "."


def _same_k(arm: Arm) -> str:
    """The test again where k, which follows the model, is no reason for a count to differ."""
    same = arm.equal_k
    if same is None:
        return ""
    if same.least == same.most:
        return f"All counts that are used have one k, {same.k}."
    text = (
        f"The k that brings models to one FVU is {same.least} to {same.most}, and a count may hang "
        "on k"
    )
    if same.n_models < MIN_MODELS:
        return f"{text}; fewer than {MIN_MODELS} models have one k."
    text += f"; among the {same.n_models} models with k {same.k} "
    if same.spearman is None:
        return f"{text}there is no correlation to be had."
    return f"{text}Spearman is {significant(same.spearman, 2)} (p {significant(same.p, 2)})."


def _same_strictness(arm: Arm) -> str:
    """The test again where how alike latents must be is no reason for a count to differ."""
    same = arm.equal_strictness
    if same is None or same.n_models < MIN_MODELS:
        return ""
    if isclose(same.least, same.most, abs_tol=0.005):
        return f"Latents match from a cosine of {same.least:.2f} on in all models."
    text = (
        f"Latents match from a cosine of {same.least:.2f} to {same.most:.2f} on, above what random "
        f"dictionaries of a model reach; from {same.cosine:.2f} on in all models "
    )
    if same.spearman is None:
        return f"{text}there is no correlation to be had."
    return f"{text}Spearman is {significant(same.spearman, 2)} (p {significant(same.p, 2)})."


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
        f"Of {plural(len(tested), 'other measure')} ({_kinds(tested)}), {shown or 'none'} "
        f"go{'es' if shown == 1 else ''} with the loss after Holm's correction."
    )


def _kinds(measures: Sequence[Secondary]) -> str:
    """What differs between them, as far as it does."""
    of_rows = [s for s in measures if s.layer_fraction is None]
    counts = [s for s in measures if s.layer_fraction is not None]
    kinds = [
        f"{n} {what}s" if n > 1 else ""
        for what, n in (
            ("depth", len({s.layer_fraction for s in counts})),
            ("stream", len({s.about for s in counts})),
            ("dictionary size", len({s.d_sae for s in counts})),
        )
    ]
    if n := len({s.estimator for s in counts}):
        kinds.append(plural(n, "estimator"))
    kinds.append("the embedding's rows" if of_rows else "")
    return listed([kind for kind in kinds if kind])


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
        f"minus twin is {in_prose(pairs[0].difference)} for {_who(pairs[0].row)}."
        f"{_above(rows, found)}",
        *rising_twins(rows, "this width"),
    ]


def _above(rows: Sequence[PackingRow], twins: Sequence[Control]) -> str:
    """Every model of the arm against the one twin, where both have intervals."""
    ends = [twin.per_dim.high for twin in twins if not twin.censored]
    low = [row.per_dim.low for row in rows if row.per_dim.low is not None]
    if len(ends) != 1 or ends[0] is None or len(low) < 2:
        return ""
    n = sum(end > ends[0] for end in low)
    return f" The intervals of {n} of {len(low)} models lie above that of the twin."


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
