"""What limits the numbers, said from the numbers: the list a reader must see before quoting one."""

import math
from collections.abc import Sequence

from interp.report.answering import at_widths as where
from interp.report.answering import rows_in_the_answer
from interp.report.arm_names import OUTCOMES, lever_name
from interp.report.contrast import Verdict, contrast
from interp.report.records import PackingRow, Summary
from interp.report.wording import listed, percent, plural, significant

# Warnings of the study that this list says itself, with widths: known by how they begin.
SAID_HERE = (
    "preview:",
    "undertrained",
    "censored at the dictionary size",
    "FVU not at the target",
    "no random-init twin",
    "the twin's SAEs do not reach",
    "uncalibrated:",
    "too few models:",
    "exponent:",
    "loss fit:",
)


def remaining_warnings(summary: Summary) -> tuple[str, ...]:
    """The study's own warnings, less those that `caveats` repeats."""
    return tuple(text for text in summary.warnings if not text.startswith(SAID_HERE))


def caveats(summary: Summary) -> tuple[str, ...]:
    """Sentences, the gravest first; `remaining_warnings` holds what only the study can know."""
    primary = summary.primary_rows
    used = rows_in_the_answer(summary)
    return (
        *_preview(summary),
        *_unconverged(primary),
        *_bounds(primary),
        *_reconstruction(primary),
        *_twins(primary),
        *_uncalibrated(primary),
        *_few(used),
        *_narrow(used),
        *_fits(summary),
        *_confounded(summary),
        *_arm(summary),
    )


def _preview(summary: Summary) -> list[str]:
    if not summary.preview:
        return []
    return [
        f"Preview: the {summary.preset or 'quick'} preset trades certainty for minutes. Its "
        f"numbers show the shape of the answer; quote those of a full run."
    ]


def _unconverged(rows: Sequence[PackingRow]) -> list[str]:
    found = []
    for doubt, what in (
        ("not converged", "Unconverged: {} would still move if the dictionaries were trained "
         "longer"),
        ("convergence not tested", "Not tested: whether {} would move if the dictionaries were "
         "trained longer was not tried"),
        ("no interval", "No interval: {} have none, from too few seeds or documents"),
    ):  # fmt: skip
        hollow = [row for row in rows if row.doubt == doubt]
        if hollow:
            which = f"{len(hollow)} of {plural(len(rows), 'primary count')} ({where(hollow)})"
            found.append(
                f"{what.format(which)}. They are drawn hollow and enter no fit and no correlation."
            )
    return found


def _bounds(rows: Sequence[PackingRow]) -> list[str]:
    found = []
    censored = [row for row in rows if row.censored]
    if censored:
        found.append(
            f"Censored at D ({where(censored)}): the count fills the dictionary, or was still "
            f"growing with it. It is a lower bound; nothing here bounds it from above."
        )
    grown = [row for row in rows if row.outgrown]
    if grown:
        found.append(
            f"Outgrown ({where(grown)}): a larger dictionary finds more there than chance allows. "
            f"The count is a lower bound, and enters the exponent as one."
        )
    if rows and all(row.estimator == "reproducible" for row in rows):
        found.append(
            "One dictionary size: a count at a single D is D/d_model times the share of latents "
            "found again. It moves with D, and compares only with counts at the same D/d_model."
        )
    return found


def _twins(rows: Sequence[PackingRow]) -> list[str]:
    twinned = [row for row in rows if row.twin_known]
    if rows and not twinned:
        tried = any(row.twin is not None for row in rows)
        what = "The untrained twins gave no count" if tried else "No untrained twin was measured"
        return [f"{what}: nothing here can be credited to training."]
    found = []
    if twinned and all(row.model.in_arm for row in rows):
        found.append(
            "One untrained twin stands for all: before training, models of one architecture differ "
            "only in the seed of their initial weights."
        )
    elif len(twinned) < len(rows):
        found.append(
            f"Twins stand beside {len(twinned)} of {plural(len(rows), 'model')} ({where(twinned)})."
        )
    same = [c.row for row in twinned if (c := contrast(row)) and c.verdict is Verdict.SAME]
    if same:
        found.append(
            f"Trained minus twin includes zero ({where(same)}): there packing is not "
            f"distinguishable from an untrained network's."
        )
    full = [row for row in twinned if row.twin is not None and row.twin.censored]
    if full:
        found.append(
            f"Full twins ({where(full)}): the untrained network's dictionaries are full too, so "
            f"its count is a lower bound, and the difference has no lower end."
        )
    rising = [row for row in twinned if row.twin is not None and row.twin.rising]
    if rising:
        found.append(
            f"Twins still rising ({where(rising)}): their counts grew with the last doubling of "
            f"the training tokens. The difference is one at equal tokens, not a settled one."
        )
    apart = [row for row in twinned if row.twin is not None and row.twin.fvu_matched is False]
    if apart:
        found.append(
            f"Reconstruction differs: the twin did not reach the FVU asked for ({where(apart)}), "
            f"so the two counts are taken at different quality."
        )
    return found


def _reconstruction(rows: Sequence[PackingRow]) -> list[str]:
    off = [row for row in rows if row.fvu_matched is False]
    if not off:
        return []
    return [
        f"FVU off target ({where(off)}): either no allowed k reaches the reconstruction error "
        f"asked for, or the full runs ended elsewhere than the pilots that chose k; these counts "
        f"are taken at another quality than planned and enter no fit."
    ]


def _uncalibrated(rows: Sequence[PackingRow]) -> list[str]:
    n = sum(row.calibration == "uncalibrated" for row in rows)
    if not n:
        return []
    which = f"{n} of {plural(len(rows), 'primary count')}"
    if n == len(rows):
        which = "the one primary count" if n == 1 else f"all {n} primary counts"
    return [
        f"Uncalibrated: {which} {'comes' if n == 1 else 'come'} from an estimator that was not "
        f"checked on data like these with a known number of features."
    ]


def _few(rows: Sequence[PackingRow]) -> list[str]:
    n = sum(row.counts and not row.censored for row in rows)
    if rows and n == 0 and all(row.censored for row in rows):
        return ["No rank correlation: a bound has no rank, and all counts are bounds."]
    # Beyond seven models the smallest p is under 0.0004 and no longer what limits the run.
    if not 0 < n < 7:
        return []
    if n < 3:
        return [f"Few models: {plural(n, 'model')} can show no relation with width or loss."]
    smallest = 2 / math.factorial(n)
    return [
        f"Few models: with {n} the smallest two-sided exact p of a rank correlation is "
        f"{significant(smallest, 2)}" + (", so none can reach .05." if smallest > 0.05 else ".")
    ]


def _narrow(rows: Sequence[PackingRow]) -> list[str]:
    narrow = [row for row in rows if row.model.d_model is not None and row.model.d_model < 32]
    if not narrow:
        return []
    return [
        f"Narrow models ({where(narrow)}): below width 32 random directions meet too often for a "
        f"match to mean much."
    ]


def _fits(summary: Summary) -> list[str]:
    if summary.arm is not None:
        return []  # one width has no curve
    found = []
    if len(summary.primary_rows) > 1:
        found.append(
            "Each model is one training run: how far another seed of its training would move its "
            "loss and its count is in no interval here."
        )
    if summary.scaling.identified is False or summary.scaling.reason:
        why = f": {summary.scaling.reason}" if summary.scaling.reason else ""
        found.append(f"The loss curve is not identified{why}.")
    if summary.exponent.reason:
        lost = " is not identified" if summary.exponent.beta.value is None else ""
        found.append(f"The packing exponent beta{lost}: {summary.exponent.reason}.")
    return found


def _arm(summary: Summary) -> list[str]:
    arm = summary.arm
    if arm is None:
        return []
    found = [
        "The levers were set, packing was not: a lever may move packing and loss by separate "
        "routes, and then they go together without one acting on the other."
    ]
    if (arm.n_seeds or 0) > 1 and any(r.p_spread is not None for r in arm.responses):
        found.append(
            f"Whether signed decay moves anything is judged against {arm.n_seeds} seeds of one "
            f"recipe, with normal scatter assumed; amounts are judged by their trend, which "
            f"assumes none."
        )
    found.append(
        "Models of the arm are no independent draws: but for the seeds they share the base model's "
        "initial weights, and most its batches, and those of one lever have most in common. The "
        "permutation over the arm takes them to be exchangeable."
    )
    for outcome in dict.fromkeys(r.outcome for r in arm.responses):
        tried = [r for r in arm.responses if r.outcome == outcome and r.tau is not None]
        if short := [lever_name(r.lever) for r in tried if r.p_trend is None]:
            found.append(
                f"Too few models along {listed(short)}: no trend of {OUTCOMES[outcome]} there can "
                f"reach .05, whatever it is."
            )
    if arm.measurement_share is not None and arm.measurement_share > 0.25:
        found.append(
            f"{percent(arm.measurement_share)} of the variance of packing between models is what "
            f"the counts themselves are uncertain by, which hides part of any correlation."
        )
    return found


def _confounded(summary: Summary) -> list[str]:
    if len({model.n_layers for model in summary.models if model.n_layers}) > 1:
        return ["Depth varies with width among these models, so neither effect is seen alone."]
    return []
