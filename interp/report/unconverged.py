"""What an arm's unconverged counts would say, and why that decides nothing: in words."""

from collections.abc import Mapping

from interp.report.arm_names import ALPHA, MIN_MODELS, could_have_shown, lever_name
from interp.report.arm_records import Response, Unconverged
from interp.report.wording import fixed, in_prose, listed, plural, significant

MOVES_LITTLE = 0.1
"""|rho| of growth with loss below which nothing is said of its sign."""


def unconverged_sentences(found: Unconverged | None, labels: Mapping[str, str]) -> str:
    """The paragraph; "" where fewer than five models could be let in. labels: of the models."""
    if found is None or found.n_models < MIN_MODELS or found.spearman.value is None:
        return ""
    return " ".join(
        part
        for part in (
            _who(found, labels),
            _growth(found),
            _correlation(found),
            _where_it_comes_from(found),
            _power(found),
            _levers(found),
        )
        if part
    )


def _who(found: Unconverged, labels: Mapping[str, str]) -> str:
    text = (
        "With unconverged counts let in, which was not declared and decides nothing: "
        f"{plural(found.n_models, 'model')}, {found.n_unconverged} of them unconverged"
    )
    barred: dict[str, list[str]] = {}
    for model, why in found.left_out.items():
        barred.setdefault(why, []).append(labels.get(model, model))
    told = [f"{listed(sorted(models))}, {why}" for why, models in barred.items()]
    return f"{text} (left out: {'; '.join(told)})." if told else f"{text}."


def _growth(found: Unconverged) -> str:
    if found.growth is None:
        return ""
    low, high = (f"{fixed(100 * end, 1)}%" for end in found.growth)
    text = f"With the last doubling of their training these changed by {low} to {high}"
    rho = found.growth_with_loss
    if rho is None:
        return f"{text}."
    if abs(rho) >= MOVES_LITTLE:
        text += f", growing {'more' if rho > 0 else 'less'} where the loss is high"
    return f"{text} (Spearman {significant(rho, 2)}, p {significant(found.p_growth_with_loss, 2)})."


def _correlation(found: Unconverged) -> str:
    value = f"{in_prose(found.spearman)}, p {significant(found.p, 2)}"
    if found.spearman_half is None:
        return f"Spearman of packing and loss is {value}."
    kept = ""
    if found.order_kept is not None:
        kept = f"; the two orders agree at {significant(found.order_kept, 2)}"
    return (
        f"Spearman of packing and loss is {significant(found.spearman_half, 2)} after half of the "
        f"training, and {value}, after all of it{kept}."
    )


def _where_it_comes_from(found: Unconverged) -> str:
    """The same over fewer models, or with less that differs between them."""
    parts = []
    known = sorted((rho, block) for block, rho in found.without_block.items() if rho is not None)
    if len(known) > 1:
        (least, one), (most, other) = known[0], known[-1]
        parts.append(
            f"{significant(most, 2)} without the models of {lever_name(other)} and "
            f"{significant(least, 2)} without those of {lever_name(one)}"
        )
    if found.within_levers is not None:
        parts.append(
            f"{significant(found.within_levers, 2)} within levers "
            f"(p {significant(found.p_within_levers, 2)})"
        )
    k, cosine = found.equal_k, found.equal_strictness
    if k is not None and k.spearman is not None and MIN_MODELS <= k.n_models < found.n_models:
        parts.append(f"{significant(k.spearman, 2)} among the {k.n_models} models with k {k.k}")
    if cosine is not None and cosine.spearman is not None:
        parts.append(
            f"{significant(cosine.spearman, 2)} with latents of all models matched from a cosine "
            f"of {cosine.cosine:.2f} on"
        )
    return f"It is {'; '.join(parts)}." if parts else ""


def _power(found: Unconverged) -> str:
    if found.detectable_rho is None or found.p is None or found.p <= ALPHA:
        return ""
    said = could_have_shown(found.detectable_rho)
    return f"{said[0].upper()}{said[1:]}."


def _levers(found: Unconverged) -> str:
    """Which levers move these counts, and whether they did after half of the training."""
    before = {r.lever for r in found.responses_half if r.moves is True}
    moving = [r for r in found.responses if r.moves is True]
    still = [lever_name(r.lever) for r in found.responses if r.moves is False]
    always = [_moved(r) for r in moving if r.lever in before]
    late = [_moved(r) for r in moving if r.lever not in before]
    said = [f"with {listed(always)}"] if always else []
    if late:
        said.append(f"after all of the training, and not after half of it, with {listed(late)}")
    if not said:
        return f"Packing does not move beyond chance with {listed(still)}." if still else ""
    beside = f", and not beyond chance with {listed(still)}" if still else ""
    return f"Packing moves {'; '.join(said)}{beside}."


def _moved(response: Response) -> str:
    """A spread has no direction."""
    name = lever_name(response.lever)
    if response.decided_by != "trend" or not response.tau:
        return name
    return f"{name} ({'rising' if response.tau > 0 else 'falling'})"
