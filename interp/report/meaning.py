"""What the number means and does not mean, in sentences fixed before any run."""

from collections.abc import Mapping
from types import MappingProxyType

from interp.report.records import Summary

ESTIMATORS: Mapping[str, str] = MappingProxyType(
    {
        "reproducible": "latents that dictionaries trained from different seeds find again "
        "({found_by}): matched one to one by direction and by when they fire",
        "saturation": "the level at which the latents found again by several dictionaries stop "
        "growing as the dictionary gets larger",
        "saturation_atoms": "that level once latents that stand for two others are taken out",
        "live_latents_10": "latents of one dictionary that fire often enough, but not all the time",
        "hill_1": "the effective number of latents, exp of the entropy of their share of the "
        "activity, which follows how unequal they are as much as how many",
    }
)


def estimators(summary: Summary) -> tuple[tuple[str, str], ...]:
    """(name, what it counts) of the estimators in the tables."""
    used = dict.fromkeys(row.estimator for row in summary.packing)
    told = ((name, _told(name, summary)) for name in used if name in ESTIMATORS)
    return tuple((name, f"{text[0].upper()}{text[1:]}.") for name, text in told)


def _told(name: str, summary: Summary) -> str:
    return ESTIMATORS[name].replace("{found_by}", summary.found_by)


def meaning(summary: Summary) -> tuple[tuple[str, str], ...]:
    """(catchword, sentences) in the order a reader needs them."""
    rows = summary.primary_rows
    estimator = rows[0].estimator if rows else "reproducible"
    counted = f"what the estimator {estimator} gives"
    if estimator in ESTIMATORS:
        counted = _told(estimator, summary)
    contextual = summary.about == "contextual"
    stream = (
        "Contextual means: what the current token and its position predict on average is taken out "
        "of the activations first. On the raw stream those two alone can make an untrained network "
        "look as rich as a trained one, or richer."
        if contextual
        else "The count is taken on the raw stream, so it includes what the current token and its "
        "position alone bring, and an untrained network can score as high or higher."
    )
    return (
        (
            "Latents, not features.",
            "A feature is a direction that a model is thought to use; nobody can list them. A "
            f"latent is a unit of a sparse autoencoder. The number counts {counted}. It is "
            "evidence about features, not a list of them.",
        ),
        ("Contextual, not all." if contextual else "All, not contextual.", stream),
        (
            "Against an untrained twin.",
            "The twin has the same architecture with fresh random weights and goes through the "
            "same steps, to the same reconstruction error with as many tokens. Only what stands "
            "above the twin can be credited to training. An untrained network's count may go on "
            "growing with the dictionaries' training; a twin that has not converged is no settled "
            "level.",
        ),
        (
            "Converged, or not counted.",
            "A count stands only if doubling the tokens its dictionaries were trained on changes "
            "it by less than 5% (or by at most 0.05 per dimension) and their FVU (the "
            "share of variance they leave unexplained) by less than 0.01. Otherwise it is "
            "drawn hollow and enters no fit.",
        ),
        (
            "Bounded by the dictionary.",
            "A dictionary of D latents has room for D features, and several of them together show "
            "few more, because two must share one. Where the count fills the dictionary it is "
            "called censored at D; there, and where a larger dictionary finds more, it is a lower "
            "bound.",
        ),
        _explained(summary),
    )


def _explained(summary: Summary) -> tuple[str, str]:
    if summary.arm is not None:
        return (
            "Moved, not yet explained.",
            "All models have one width, and training was varied on purpose: weight decay, tokens, "
            "data, seeds. If packing moves and loss does not follow, packing alone does not set "
            "the loss here, as far as this many models can tell. If both move, that speaks for a "
            "link and no proof: one lever may act on each by a separate route.",
        )
    return (
        "Described, not explained.",
        "Across widths everything moves together: packing, loss, tokens per parameter. A rank "
        "correlation over them says that two lists have the same order, and nothing about what "
        "causes what.",
    )
