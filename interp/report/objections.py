"""What a referee would say, and what this run can reply: fixed objections, generated replies.

A reply that the run cannot give says so. Nothing here depends on how the numbers came out.
"""

from collections.abc import Callable, Sequence

from interp.report.answering import at_widths, rows_in_the_answer
from interp.report.arm_answering import arm_correlation
from interp.report.arm_names import NEARLY_ONE, could_have_shown
from interp.report.class_tables import (
    at_equal_strictness,
    strictness_rows,
    token_sentence,
    with_strictness,
)
from interp.report.composites import composites_reply
from interp.report.contrast import Verdict, contrast
from interp.report.records import Control, PackingRow, Summary
from interp.report.tables import ARCHITECTURES
from interp.report.unconverged import NOT_DECLARED, told
from interp.report.wording import known_values, listed, plural, significant, span, whole

Objection = tuple[str, str]
_NO_TWIN = (
    "Not answered: no model whose count may be used has a count of an untrained twin beside it."
)


def objections(summary: Summary) -> tuple[Objection, ...]:
    """(objection, reply) in the order in which they would end the matter."""
    rows = rows_in_the_answer(summary) or tuple(
        row for row in summary.primary_rows if row.per_dim.value is not None
    )
    asked = [
        ("An untrained network gives the same count.", _untrained(rows)),
        ("Model and twin were not reconstructed equally well.", _reconstruction(rows)),
        ("What is counted is a small part of the stream.", _part(summary, rows)),
        ("The latents only name the current token.", _tokens(summary)),
        ("The model does not use what is counted.", _used(rows)),
        ("With other thresholds of a match the answer is another.", _strictness(summary)),
        ("At another k the answer is another.", _other_k(summary)),
        ("Another kind of SAE finds other features.", _other_architecture(summary)),
        ("The dictionaries were not trained long enough.", _training(summary)),
        ("The count is the size of the dictionary.", _size(summary, rows)),
        ("Random directions would match as well.", _chance(rows)),
        ("Latents that stand for two others are counted too.", composites_reply(summary, rows)),
        ("Nobody knows whether such a count is right.", _calibrated(rows)),
        ("Width drives both packing and loss.", _width(summary)),
    ]
    if summary.arm is not None:
        asked.append(("So few models can show nothing.", _power(summary)))
    return tuple(asked)


def _untrained(rows: Sequence[PackingRow]) -> str:
    pairs = [c for row in rows if (c := contrast(row)) is not None]
    if not pairs:
        return _NO_TWIN
    more = [c.row for c in pairs if c.verdict is Verdict.MORE]
    differences = known_values(c.difference for c in pairs)
    text = (
        f"Trained minus twin is {span(differences)} per dimension; its interval lies above zero "
        f"for {len(more)} of {plural(len(pairs), 'pair')}."
    )
    open_twins = [
        c.row for c in pairs if c.row.twin is not None and c.row.twin.converged is not True
    ]
    if open_twins:
        rising = [row for row in open_twins if row.twin is not None and row.twin.rising]
        text += (
            f" {plural(len(open_twins), 'twin')} ({at_widths(open_twins)}) had not converged"
            + (f", {len(rising)} of them still rising" if rising else "")
            + ": there this is a difference at equal training, and not a settled one."
        )
    return text


def _reconstruction(rows: Sequence[PackingRow]) -> str:
    twins = _twins(rows)
    if not twins:
        return _NO_TWIN
    fvus = [row.fvu for row in rows if row.fvu is not None]
    of_twins = [twin.fvu for twin in twins if twin.fvu is not None]
    if not fvus or not of_twins:
        return "Not answered: the run did not record FVU."
    off = sum(twin.fvu_matched is not True for twin in twins)
    return (
        f"Each has the k that brings it to one FVU: {_places(fvus)} in the models"
        f"{_at_k([row.k for row in rows])}, {_places(of_twins)} in the twins"
        f"{_at_k([twin.k for twin in twins])}. "
        + ("All twins reached it." if not off else f"{plural(off, 'twin')} did not reach it.")
    )


def _part(summary: Summary, rows: Sequence[PackingRow]) -> str:
    """The primary stream against the other one, which holds what was removed from it, or not."""
    if summary.about != "contextual":
        return "Not answered: the count is of the whole stream, with what token and position bring."
    held = [
        f"{span([100 * one.token for one in known], _percent)} and "
        f"{span([100 * one.position for one in known], _percent)} of the variance {who}"
        for who, found in (
            ("in the models", [row.removed for row in rows]),
            ("in the twins", [row.twin.removed for row in rows if row.twin is not None]),
        )
        if (known := [one for one in found if one is not None])
    ]
    text = ""
    if held:
        text = f"The means of tokens and positions, which are taken out, hold {'; '.join(held)}. "
    raw = [
        row
        for row in summary.packing
        if row.about == "all"
        and row.estimator == "reproducible"
        and row.per_dim.value is not None
        and any(_same_place(row, one) for one in rows)
    ]
    if not raw:
        return f"{text}The whole stream was not counted."
    text += f"On the whole stream trained models count {span(known_values(r.per_dim for r in raw))}"
    twins = known_values(twin.per_dim for twin in _twins(raw))
    pairs = [c for row in raw if (c := contrast(row)) is not None]
    if not pairs:
        return f"{text} per dimension."
    more = sum(c.verdict is Verdict.MORE for c in pairs)
    full = sum(row.censored for row in raw) + sum(twin.censored for twin in _twins(raw))
    notes = [f"{full} of {len(raw) + len(twins)} dictionaries are full"] if full else []
    notes += [f"of the trained ones {unsettled}"] if (unsettled := _unsettled(raw)) else []
    told = f" ({'; '.join(notes)})" if notes else ""
    return (
        f"{text} and twins {span(twins)} per dimension{told}: there trained minus twin lies above "
        f"zero for {more} of {plural(len(pairs), 'pair')}."
    )


def _same_place(one: PackingRow, other: PackingRow) -> bool:
    return (one.model.name, one.layer, one.d_sae) == (other.model.name, other.layer, other.d_sae)


def _used(rows: Sequence[PackingRow]) -> str:
    shares = [row.loss_recovered for row in rows if row.loss_recovered is not None]
    if not shares:
        return "Not answered: the run did not put reconstructions back into the models."
    where = "the stream" if rows[0].about == "all" else "the counted part of the stream"
    return (
        f"Reconstructions in place of {where} recover "
        f"{span([100 * share for share in shares], _percent)} of the loss that leaving it out "
        f"costs (first seed)."
    )


def _tokens(summary: Summary) -> str:
    return token_sentence(summary) or "Not answered: this run did not look at the tokens."


def _strictness(summary: Summary) -> str:
    rows = strictness_rows(summary)
    said: list[str] = []
    differences = []
    for by in ("cosine", "correlation"):
        found = [
            (mine, with_strictness(row, mine, twins))
            for row in rows
            for mine, twins in at_equal_strictness(row)
            if mine.by == by and mine.per_dim.value is not None
        ]
        if not found:
            return "Not answered: latents were matched in one way."
        pairs = [row for _, row in found]
        # The headline's own matching is a point of both tests, and one pair.
        once = [row for mine, row in found if by == "cosine" or not mine.headline]
        differences += [c for row in once if (c := contrast(row)) is not None]
        least = [one.at for row in rows for one in row.strictness if one.by == by]
        text = (
            f"with a {by} of at least {_places(least)} trained models count "
            f"{span(known_values(row.per_dim for row in pairs))}"
        )
        twins = known_values(row.twin.per_dim for row in pairs if row.twin is not None)
        said.append(text + (f" and twins {span(twins)}" if twins else ""))
    reply = f"Per dimension: {'; '.join(said)}."
    n_unusable = sum(not row.counts for row in rows)
    if n_unusable:
        reply += f" The counts of {n_unusable} of these {plural(len(rows), 'model')} enter no test."
    if not differences:
        return reply
    more = sum(c.verdict is Verdict.MORE for c in differences)
    return (
        f"{reply} Trained minus twin lies above zero at {more} of {len(differences)} pairs of a "
        "model and a threshold."
    )


def _other_k(summary: Summary) -> str:
    names = {row.model.name for row in summary.primary_rows}
    others: dict[str, list[PackingRow]] = {}
    for row in summary.sensitivity:
        of_the_count = row.architecture == summary.architecture
        if row.model.name in names and of_the_count and row.per_dim.value is not None:
            others.setdefault(row.k_rule, []).append(row)
    if len(others) < 2:
        return "Not answered: one rule for k was run."
    by_rule = {rule: others[rule] for rule in dict.fromkeys((*_RULES, *others)) if rule in others}
    said = [
        f"{span(known_values(row.per_dim for row in found))} with {_RULES.get(rule, rule)}"
        f"{_at_k([row.k for row in found], _unsettled(found))}"
        for rule, found in by_rule.items()
    ]
    text = f"Per dimension, trained models: {listed(said)}."
    trained = [{_trained_on(row) for row in found} for found in by_rule.values()]
    if any(one != trained[0] for one in trained):
        text += " The rules were not trained on as many tokens, so k and training differ at once."
    with_twins = [rule for rule, found in by_rule.items() if any(row.twin for row in found)]
    if with_twins == ["fvu"]:
        text += " Untrained twins were counted with the first rule alone."
    return text


def _unsettled(rows: Sequence[PackingRow]) -> str:
    n = sum(row.converged is not True for row in rows)
    if not n:
        return ""
    return f"{'none' if n == len(rows) else f'{n} of {len(rows)} not'} converged"


def _trained_on(row: PackingRow) -> float | None:
    """Tokens that its SAEs were trained on."""
    if row.tokens_per_latent is None or row.d_sae is None:
        return None
    return row.tokens_per_latent * row.d_sae


def _other_architecture(summary: Summary) -> str:
    names = {row.model.name for row in summary.primary_rows}
    found: dict[str, list[PackingRow]] = {}
    for row in summary.sensitivity:
        if row.model.name in names and row.k_rule == "fvu" and row.per_dim.value is not None:
            found.setdefault(row.architecture, []).append(row)
    if len(found) < 2:
        return "Not answered: SAEs of one architecture were trained."
    first = summary.architecture
    said = [
        f"{span(known_values(row.per_dim for row in rows))} with "
        f"{ARCHITECTURES.get(kind, kind)}{_at_k([row.k for row in rows])}"
        for kind, rows in sorted(found.items(), key=lambda item: (item[0] != first, item[0]))
    ]
    return f"Per dimension, trained models, each with the k of the stated FVU: {listed(said)}."


_RULES = {
    "fvu": "the k of the stated FVU",
    "constant": "the same k at every width",
    "proportional": "k an eighth of the width",
}


def _training(summary: Summary) -> str:
    rows = [row for row in summary.primary_rows if row.per_dim.value is not None]
    if not rows:
        return "Not answered: there is no count."
    if all(row.converged is None for row in rows):
        return "Not answered: this run did not train any of them half as long to compare."
    steady = [row for row in rows if row.converged is True]
    # Of those that settled: how many tokens were enough.
    per_latent = [row.tokens_per_latent for row in steady or rows if row.tokens_per_latent]
    text = (
        f"{len(steady)} of {plural(len(rows), 'count')} stayed as they were when the tokens doubled"
    )
    if per_latent:
        text += f" ({span(per_latent, whole)} tokens per latent)"
    moved = [row for row in rows if row.converged is not True and row.half is not None]
    if moved:
        halves = [row.half for row in moved if row.half is not None]
        text += (
            f"; the others counted {span(halves)} per dimension after half of them and "
            f"{span(known_values(row.per_dim for row in moved))} after all, and enter no fit"
        )
    anyway = None if summary.arm is None else summary.arm.unconverged
    if anyway is not None and told(anyway):
        text += f". What they would have given, {NOT_DECLARED}, stands beside the answer"
    return text + "."


def _size(summary: Summary, rows: Sequence[PackingRow]) -> str:
    if not rows:
        return "Not answered: there is no count."
    if all(row.estimator == "saturation" and not row.censored for row in rows):
        return "It is the level at which the counts of growing dictionaries stop growing."
    filled = [
        row.count.value / row.d_sae for row in rows if row.d_sae and row.count.value is not None
    ]
    text = f"The counts are {span([100 * f for f in filled], _percent)} of D" if filled else ""
    grown = [row for row in rows if row.outgrown]
    full = [row for row in rows if row.censored]
    parts = [text] if text else []
    if full:
        are = "is a lower bound" if len(full) == 1 else "are lower bounds"
        parts.append(f"{len(full)} of {len(rows)} {are}, limited by the dictionary")
    if grown:
        parts.append(
            f"a larger dictionary finds more at {at_widths(grown)}, so there it is a bound"
        )
    if not full and not grown:
        tested = any(
            other.estimator == "reproducible"
            and (other.model.name, other.layer, other.about)
            == (rows[0].model.name, rows[0].layer, rows[0].about)
            and (other.d_sae or 0) > (rows[0].d_sae or 0)
            for other in summary.packing
        )
        parts.append(
            "a larger dictionary finds hardly more"
            if tested
            else "no larger dictionary was trained: compare them only at equal D per dimension"
        )
    return _sentence("; ".join(parts))


def _chance(rows: Sequence[PackingRow]) -> str:
    rule = (
        "The threshold is a cosine of 0.7, or more where random dictionaries with the covariance "
        "of the data would pass that over 1% of the time, latents must fire together too, and what "
        "random ones give is subtracted"
    )
    nulls = [row.null for row in rows if row.null is not None]
    return f"{rule}: {span(nulls, whole)} latents here." if nulls else f"{rule}."


def _calibrated(rows: Sequence[PackingRow]) -> str:
    known = [row for row in rows if row.calibration != "uncalibrated"]
    if not known:
        one_size = all(row.estimator.startswith("reproducible") for row in rows)
        why = (
            "a bias is known only for the level at which counts of growing dictionaries stop "
            "(four sizes or more, five seeds), not for a count at one size"
            if one_size
            else "no cell of the calibration is like these counts"
        )
        return (
            f"Not answered by this run: {why}. Read them as comparisons, not as numbers of "
            "features."
        )
    of = (
        f"{plural(len(rows), 'count')} {len(known)} {'is' if len(known) == 1 else 'are'} calibrated"
    )
    first = known[0]
    which = f"{first.estimator} of {first.model.name} at {first.hook_point} ({first.about})"
    example = "for example, " if len(known) > 1 else ""
    return _sentence(f"Of {of}; {example}{which}: {first.calibration}")


def _width(summary: Summary) -> str:
    if summary.arm is None:
        return (
            "Yes: across widths the correlation is descriptive and tests nothing. Only models of "
            "one width can test it; that is what the referee study is for."
        )
    found = arm_correlation(summary)
    if found is None or found.within_levers is None:
        return "All models have one width. Whether one lever moves both was not told apart."
    return (
        f"All models have one width. A lever can still move both: among models with the same lever "
        f"pulled the correlation is {significant(found.within_levers, 2)} "
        f"(p {significant(found.p_within_levers, 2)}), which leaves out what differs between "
        f"levers and not a lever's own dose."
    )


def _power(summary: Summary) -> str:
    arm, found = summary.arm, arm_correlation(summary)
    if arm is None or arm.detectable_rho is None:
        return "True: fewer than five usable models can reach no p of .05."
    if found is None or found.spearman.value is None:
        return "True: there was nothing to correlate."
    if arm.detectable_rho >= NEARLY_ONE:
        return f"True: {could_have_shown(arm.detectable_rho)}."
    return (
        f"{plural(arm.n_usable, 'model')}: {could_have_shown(arm.detectable_rho)}; a weaker one "
        "can go unseen."
    )


def _twins(rows: Sequence[PackingRow]) -> list[Control]:
    return [row.twin for row in rows if row.twin is not None and row.twin_known]


def _at_k(ks: Sequence[float | None], note: str = "") -> str:
    known = [k for k in ks if k is not None]
    said = [f"k {span(known, whole)}"] if known else []
    said += [note] if note else []
    return f" ({'; '.join(said)})" if said else ""


def _places(values: Sequence[float]) -> str:
    return span(values, _two_places)


_two_places: Callable[[float], str] = "{:.2f}".format


def _percent(value: float) -> str:
    return f"{value:.0f}%"


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."
