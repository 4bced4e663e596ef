"""What an arm's unconverged counts would say, and why that decides nothing: words and tables."""

from collections.abc import Mapping

from interp.report.arm_names import MIN_MODELS, could_have_shown, lever_name
from interp.report.arm_records import Response, Unconverged
from interp.report.tables import Table
from interp.report.wording import (
    ABSENT,
    at_its_width,
    fixed,
    in_prose,
    listed,
    plural,
    significant,
    verdict,
    whole,
)

NOT_DECLARED = "which was not declared and decides nothing"


def unconverged_sentences(found: Unconverged | None, labels: Mapping[str, str]) -> str:
    """The paragraph; "" where fewer than five models could be let in. labels: of the models."""
    if found is None or not told(found):
        return ""
    parts = (_correlation(found, labels), _growth(found), _hangs_on(found), _power(found))
    return " ".join(part for part in parts if part)


def told(found: Unconverged) -> bool:
    """Whether there is a correlation to speak of."""
    whole_arm = found.test("all")
    return (
        found.n_models >= MIN_MODELS
        and whole_arm is not None
        and whole_arm.spearman.value is not None
    )


def unconverged_tables(found: Unconverged | None) -> dict[str, Table]:
    """By title: against loss, and against the levers; none where the paragraph is empty."""
    if found is None or not told(found):
        return {}
    against = "Packing against {}, unconverged counts let in"
    return {against.format("loss"): _ranks(found), against.format("the levers"): _levers(found)}


def _ranks(found: Unconverged) -> Table:
    """Packing against loss, of all models that are let in and of parts of them."""
    rows = tuple(
        (
            _which(one.of),
            whole(one.n_models),
            at_its_width(one.spearman),
            significant(one.p, 2),
        )
        for one in found.tests
    )
    return Table(("Unconverged counts let in", "Models", "Spearman [95%]", "p"), rows)


def _levers(found: Unconverged) -> Table:
    """Whether levers move these counts, after half of the training and after all of it."""
    before = {r.lever: r for r in found.responses_half}
    rows = tuple(
        (
            lever_name(r.lever),
            whole(r.n_models),
            significant(r.tau, 2),
            *_decided(before.get(r.lever)),
            *_decided(r),
        )
        for r in found.responses
    )
    columns = (
        "Lever, unconverged counts let in", "Models", "Kendall", "Moves after half", "Holm p",
        "Moves after all", "Holm p after all",
    )  # fmt: skip
    return Table(columns, rows)


def _decided(response: Response | None) -> tuple[str, str]:
    if response is None:
        return ABSENT, ABSENT
    return verdict(response.moves), significant(response.p_holm, 2)


def _which(of: str) -> str:
    """`without row_decay` -> without the models of row decay."""
    what, _, rest = of.partition(" ")
    if what == "without":
        return f"without {lever_name(rest)}"
    if what == "cosine":
        return f"latents matched from a cosine of {rest} on"
    return {"all": "all", "half": "all, after half of the training"}.get(of, of)


def _correlation(found: Unconverged, labels: Mapping[str, str]) -> str:
    barred: dict[str, list[str]] = {}
    for model, why in found.left_out.items():
        barred.setdefault(why, []).append(labels.get(model, model))
    said = "; ".join(f"{listed(sorted(models))}, {why}" for why, models in barred.items())
    models, after = plural(found.n_models, "model"), found.test("all")
    assert after is not None
    text = (
        f"With unconverged counts let in, {NOT_DECLARED}, Spearman of packing and loss is "
        f"{in_prose(after.spearman)}, p {significant(after.p, 2)}, over {models}, "
        f"{found.n_unconverged} of them unconverged{f' (left out: {said})' if said else ''}"
    )
    half = found.test("half")
    if half is None or half.spearman.value is None:
        return f"{text}."
    return (
        f"{text}; with the counts after half of the training {significant(half.spearman.value, 2)} "
        f"(p {significant(half.p, 2)})."
    )


def _growth(found: Unconverged) -> str:
    if found.growth is None:
        return ""
    low, high = (f"{fixed(100 * end, 1)}%" for end in found.growth)
    text = (
        f"With that last doubling of the training the unconverged counts changed by {low} to {high}"
    )
    if found.growth_with_loss is None:
        return f"{text}."
    return (
        f"{text}; growth and loss have Spearman {significant(found.growth_with_loss, 2)} "
        f"(p {significant(found.p_growth_with_loss, 2)}), and away from zero that says that the "
        "relation is still moving."
    )


def _hangs_on(found: Unconverged) -> str:
    """The lever without which least is left."""
    parts = [
        (abs(one.spearman.value), one)
        for one in found.tests
        if one.of.startswith("without ") and one.spearman.value is not None
    ]
    if len(parts) < 2:
        return ""
    _, least = min(parts, key=lambda part: part[0])
    return (
        f"It hangs most on {lever_name(least.of.removeprefix('without '))}: without those models "
        f"it is {significant(least.spearman.value, 2)} (p {significant(least.p, 2)}, "
        f"{plural(least.n_models, 'model')})."
    )


def _power(found: Unconverged) -> str:
    if found.detectable_rho is None:
        return ""
    said = could_have_shown(found.detectable_rho, str(found.n_models))
    return f"{said[0].upper()}{said[1:]}; these are not independent."
