"""The answer in words, generated from the numbers and from nothing else.

The first sentence is the one that people quote, so it carries the caveats that change its meaning:
preview, not identified, all that the dictionary has room for, and "not distinguishable from an
untrained network's".
"""

from collections.abc import Sequence
from dataclasses import dataclass

from interp.report.arm_answering import arm_more, arm_sentence, rising_twins
from interp.report.contrast import Contrast, Verdict, contrast
from interp.report.records import TWO_SEEDS, Exponent, PackingRow, Summary
from interp.report.wording import (
    SUBLAYERS,
    doubts,
    in_prose,
    known_values,
    listed,
    plural,
    significant,
    span,
)

QUESTION = "How many features does a layer pack per dimension, and does that go with the loss?"
LIMITED = "limited by the dictionary"
"""Of a count that is censored at D, in words that need no page before them."""


@dataclass(frozen=True)
class Answer:
    """`first` is the headline; `more` the sentences about width and loss under it."""

    first: str
    more: tuple[str, ...]


def answer(summary: Summary) -> Answer:
    """The sentences at the top of the report."""
    rows = rows_in_the_answer(summary)
    if summary.arm is not None:
        first = arm_sentence(summary, summary.arm, rows, _noun(summary))
        return Answer(first, (*arm_more(summary, summary.arm, rows), *_bound(summary, rows)))
    rising = at_widths([r for r in rows if r.twin is not None and r.twin.rising])
    more = [
        *rising_twins(rows, rising),
        *_bound(summary, rows),
        _width(summary, rows),
        _loss(summary),
    ]
    return Answer(_packing(summary, rows), tuple(text for text in more if text))


def in_short(summary: Summary) -> tuple[str, ...]:
    """What a first page has room for: the headline, what bounds it, and the loss."""
    rows = rows_in_the_answer(summary)
    said = answer(summary)
    if summary.arm is not None:
        return (said.first, *_bound(summary, rows))
    return (said.first, *_bound(summary, rows), *(text for text in [_loss(summary)] if text))


def rows_in_the_answer(summary: Summary) -> tuple[PackingRow, ...]:
    """The primary rows that count; in a preview where none does, all that have a number."""
    counting = tuple(row for row in summary.primary_rows if row.counts)
    if counting or not summary.preview:
        return counting
    return tuple(row for row in summary.primary_rows if row.per_dim.value is not None)


def feature_noun(about: str) -> str:
    """`contextual features`, or plain `features` where token and position are in the count."""
    return "contextual features" if about == "contextual" else "features (token and position too)"


def _noun(summary: Summary) -> str:
    """With the seeds that find them, where more than two have to."""
    noun = feature_noun(summary.about)
    return noun if summary.found_by == TWO_SEEDS else f"{noun} found by {summary.found_by}"


def at_widths(rows: Sequence[PackingRow], *, as_span: bool = False, few: bool = False) -> str:
    """`widths 32, 48 and 64`; `width 32 to 64` as a span; `3 of the widths` where few have room.

    Models of the constant-width arm go by their names.
    """
    if rows and all(row.model.in_arm for row in rows):
        few_names = len(rows) <= 6
        return listed([r.model.label for r in rows]) if few_names else f"{len(rows)} models"
    widths = sorted({row.model.d_model for row in rows if row.model.d_model is not None})
    if not widths:
        return "unknown width"
    if as_span and len(widths) > 2:
        return f"width {widths[0]} to {widths[-1]}"
    if few and len(widths) > 2:
        return f"{len(widths)} of the widths"
    return f"width {widths[0]}" if len(widths) == 1 else f"widths {listed(widths)}"


def _packing(summary: Summary, rows: Sequence[PackingRow]) -> str:
    if not rows:
        return _no_answer(summary)
    opening = ""
    if summary.preview:
        opening = "Preview, not a result: "
        if not any(row.counts for row in rows):
            why = doubts(rows)
            none = "has converged" if why == "not converged" else f"may be used: {why}"
            opening = f"Preview, not a result (no count {none}): "
    sentence = _sentence(summary, rows, [c for row in rows if (c := contrast(row)) is not None])
    return opening + (sentence if opening else sentence[0].upper() + sentence[1:])


def _no_answer(summary: Summary) -> str:
    tried = summary.primary_rows
    name = _noun(summary)
    if not tried:
        return f"Not identified: this run holds no count of {name} at the primary layer."
    none = f"none of the {len(tried)} counts of {name} may be used"
    if len(tried) == 1:
        none = f"the one count of {name} may not be used"
    why = doubts(tried)
    return f"Not identified: {none} ({why}), so this run does not say how many a layer packs."


def _sentence(summary: Summary, rows: Sequence[PackingRow], contrasts: Sequence[Contrast]) -> str:
    trained = _trained(rows, _noun(summary))
    if not contrasts:
        return (
            f"{trained}; {without_twins(summary, rows)}, so this does not show what training adds."
        )
    by_verdict = {
        verdict: [c for c in contrasts if c.verdict is verdict]
        for verdict in Verdict
        if any(c.verdict is verdict for c in contrasts)
    }
    twins = _twins(contrasts, of_all=len(contrasts) == len(rows))
    if set(by_verdict) == {Verdict.MORE}:
        return f"{trained}; {twins}."
    if set(by_verdict) == {Verdict.FEWER}:
        return f"trained networks pack fewer than untrained ones: {trained}; {twins}."
    if set(by_verdict) == {Verdict.SAME}:
        zero = "trained minus twin includes zero"
        if len(contrasts) == 1:
            zero = f"trained minus twin is {in_prose(contrasts[0].difference)}"
        return (
            f"packing is not distinguishable from an untrained network's: {trained}; {twins}; "
            f"{zero}."
        )
    if Verdict.SAME in by_verdict:
        same = at_widths([c.row for c in by_verdict[Verdict.SAME]])
        return (
            f"packing is not distinguishable from an untrained network's at {same} "
            f"({len(by_verdict[Verdict.SAME])} of {plural(len(contrasts), 'model')} with a twin): "
            f"{trained}; {twins}."
        )
    if all(c.row.censored and c.row.twin is not None and c.row.twin.censored for c in contrasts):
        return (
            f"{trained}; {twins}. Both fill their dictionaries, so these counts cannot tell a "
            f"trained network from an untrained one."
        )
    return f"{trained}; {twins}, without an interval that could tell the two apart everywhere."


def without_twins(summary: Summary, rows: Sequence[PackingRow]) -> str:
    """Why no untrained twin stands beside these rows: `no untrained twin was measured`."""
    if any(row.twin is not None for row in rows):
        return "their untrained twins gave no count"
    elsewhere = [row for row in summary.primary_rows if row.twin is not None]
    if not elsewhere:
        return "no untrained twin was measured"
    return (
        f"untrained twins were measured at {at_widths(elsewhere)} alone, where the trained count "
        f"may not be used"
    )


def _trained(rows: Sequence[PackingRow], noun: str) -> str:
    per_dim = known_values(row.per_dim for row in rows)
    at_least = "at least " if all(row.lower_bound for row in rows) and max(per_dim) > 0 else ""
    count = f"{at_least}{span(per_dim)} {noun} per dimension"
    if len(rows) == 1:
        only = rows[0]
        who = f"the trained model of {at_widths(rows)} packs"
        count = f"{at_least}{in_prose(only.per_dim)} {noun} per dimension"
    else:
        who = f"{len(rows)} trained models of {at_widths(rows, as_span=True)} pack"
    censored = [row for row in rows if row.censored]
    ratios = _ratios(rows)
    if all(row.full for row in rows) and len(ratios) == 1:
        its = "its dictionary has" if len(rows) == 1 else "their dictionaries have"
        count += f", about all that {its} room for ({ratios[0]:g} per dimension)"
    elif censored:
        everywhere = len(censored) == len(rows)
        count += f" ({LIMITED}" + ("" if everywhere else f" at {at_widths(censored)}") + ")"
    # The residual stream is what a reader expects; what a part of the block adds has to be said.
    added = {SUBLAYERS.get(row.hook_point.rpartition(".")[2]) for row in rows} - {None}
    where = ", ".join([_place(rows), *(f"in {output}" for output in added)])
    return f"{where}, {who} {count}"


def _twins(contrasts: Sequence[Contrast], *, of_all: bool) -> str:
    controls = [c.row.twin for c in contrasts if c.row.twin is not None]
    values = known_values(control.per_dim for control in controls)
    full = [c.row for c in contrasts if c.row.twin is not None and c.row.twin.censored]
    who = "their untrained twins pack" if of_all else "the untrained twins at "
    if not of_all:
        who += f"{at_widths([c.row for c in contrasts], few=True)} pack"
    if len(contrasts) == 1:
        who = "its untrained twin packs" if of_all else who.replace("twins", "twin") + "s"
    everywhere = len(full) == len(contrasts)
    notes = []
    if full:
        notes.append(LIMITED + ("" if everywhere else f" at {at_widths(full)}"))
    if not all(control.converged for control in controls):
        every = not any(control.converged for control in controls)
        notes.append("not converged" if every else "not all converged")
    text = f"{who} {'at least ' if full and everywhere else ''}{span(values)}"
    return text + (f" ({'; '.join(notes)})" if notes else "")


def _place(rows: Sequence[PackingRow]) -> str:
    fractions = {row.layer_fraction for row in rows}
    if len(fractions) == 1 and (fraction := fractions.pop()) is not None:
        return "at half depth" if fraction == 0.5 else f"at {fraction:.0%} of the depth"
    layers = {row.layer for row in rows}
    if len(layers) == 1 and (layer := layers.pop()) is not None:
        before = all(row.hook_point.endswith("resid_pre") for row in rows)
        return f"{'before' if before else 'after'} layer {layer} (the first is 0)"
    return "at the primary layer"


def _bound(summary: Summary, rows: Sequence[PackingRow]) -> list[str]:
    ratios = _ratios(rows)
    if not rows or not ratios or not all(row.lower_bound for row in rows):
        return []
    if len(ratios) > 1:
        return ["These are lower bounds: the counts were still growing with the dictionary."]
    if summary.found_by != TWO_SEEDS:  # larger dictionaries may split what they agree on
        return [
            f"The counts are taken with {ratios[0]:g} latents per dimension; with larger "
            f"dictionaries so many seeds may agree on more or on fewer."
        ]
    text = (
        f"These are lower bounds of what larger dictionaries would find again: they are taken with "
        f"{ratios[0]:g} latents per dimension."
    )
    no_bound = (
        "They bound such a count, not the number of features: latents that stand for two are in it."
    )
    return [" ".join([text, *_larger(summary, rows), no_bound])]


def _larger(summary: Summary, rows: Sequence[PackingRow]) -> list[str]:
    """What the largest dictionaries of the same places count, where there are larger ones."""
    places = {(row.model.name, row.layer): row for row in rows}
    others = [
        other
        for other in summary.packing
        if other.estimator == "reproducible"
        and other.about == summary.about
        and other.per_dim.value is not None
        and (row := places.get((other.model.name, other.layer))) is not None
        and (other.d_sae or 0) > (row.d_sae or 0)
    ]
    ratios = _ratios(others)
    if not ratios:
        return []
    largest = [other for other in others if _ratios([other]) == ratios[-1:]]
    unsettled = sum(other.converged is not True for other in largest)
    grown = [row for row in rows if row.outgrown]
    text = (
        f"With {ratios[-1]:g} per dimension {plural(len(largest), 'model')} count "
        f"{span(known_values(other.per_dim for other in largest))}"
        + (f" ({unsettled} of them not converged)" if unsettled else "")
    )
    if not grown:
        return [f"{text}, hardly more."]
    where = "" if len(grown) == len(rows) else f" at {at_widths(grown)}"
    return [f"{text}: the count still grows with the dictionary{where}."]


def _ratios(rows: Sequence[PackingRow]) -> list[float]:
    """D / d_model of the rows, ascending."""
    return sorted(
        {round(r.d_sae / r.model.d_model, 1) for r in rows if r.d_sae and r.model.d_model}
    )


def _width(summary: Summary, rows: Sequence[PackingRow]) -> str:
    exponent = summary.exponent
    if exponent.beta.value is None:
        why = f": {exponent.reason}" if exponent.reason else ""
        if exponent.n_models == 0:
            why = ": no count here may be used for that"
        return f"How the count grows with width is not identified{why}." if rows else ""
    text = (
        f"Across {plural(exponent.n_models, 'model') if exponent.n_models else 'the models'} the "
        f"count grows as width to the power {in_prose(exponent.beta)}, {reading_of(exponent)}."
    )
    low, high = exponent.beta.low, exponent.beta.high
    bounded = bool(rows) and all(row.lower_bound for row in rows)
    if bounded and low is not None and high is not None and low <= 1 <= high:
        # SCIENCE section 7: this is also what "stays at D" gives.
        text += " Counts held down by dictionaries of one size per dimension would give 1 too."
    if exponent.twin.value is not None:
        text += f" In the untrained twins the power is {in_prose(exponent.twin)}."
    elif exponent.twin_reason:
        text += f" For the untrained twins it is not identified: {exponent.twin_reason}."
    return text


def reading_of(exponent: Exponent) -> str:
    """What the interval of beta says about its two reference values, 0 and 1."""
    low, high = exponent.beta.low, exponent.beta.high
    if low is None or high is None:
        return "with no interval that would test it"
    stock, same = low <= 0 <= high, low <= 1 <= high
    if stock and same:
        return (
            "too uncertain to tell a fixed stock of features (0) from the same packing at every "
            "width (1)"
        )
    if same:
        return (
            "compatible with the same packing at every width (1), not with a fixed stock of "
            "features (0)"
        )
    if stock:
        return (
            "compatible with a fixed stock of features (0), not with the same packing at every "
            "width (1)"
        )
    if low > 1:
        return "so packing per dimension rises with width"
    if high < 0:
        return "so the count itself falls with width"
    return "so wider models hold more features, but fewer per dimension"


def _loss(summary: Summary) -> str:
    known = [m for m in summary.models if m.loss.value is not None and m.d_model is not None]
    if len(known) < 2:
        return "With one model nothing can be said about packing and loss." if known else ""
    first, last = known[0], known[-1]
    text = (
        f"The loss goes from {significant(first.loss.value)} {first.loss_unit} at width "
        f"{first.d_model} to {significant(last.loss.value)} at width {last.d_model}"
    )
    within = [
        c for c in summary.correlation if c.arm == "constant_width" and c.spearman.value is not None
    ]
    if within:
        one = within[0]
        p = f", exact p {significant(one.p_exact, 2)}" if one.p_exact is not None else ""
        return (
            f"{text}. At constant width, packing and loss have Spearman correlation "
            f"{in_prose(one.spearman)}{p} over {plural(one.n_models or 0, 'model')}."
        )
    return f"{text}; whether packing explains any of it cannot be told here: width drives both."
