"""Latents that stand for two others: how many were counted, and what is left without them."""

from collections.abc import Sequence

from interp.report.records import PackingRow, WithoutComposites
from interp.report.wording import known_values, span

RULE = (
    "a latent whose direction lies between those of two that matter more, within a cosine of 0.95 "
    "of their plane"
)


def composites_reply(rows: Sequence[PackingRow]) -> str:
    """To the objection that such latents are no features of their own."""
    found = [(row.without_composites, row.d_sae) for row in rows]
    own = [(one, d_sae) for one, d_sae in found if one is not None and d_sae]
    if not own:
        return "Not answered: this run did not look for them."
    twins = [
        (row.twin.without_composites, row.d_sae)
        for row in rows
        if row.twin is not None and row.twin.without_composites is not None and row.d_sae
    ]
    if not any(one.n_composites for one, _ in own + twins):
        return f"There are none: {RULE}, was found in no dictionary."
    told, counted = (
        text if not twins else f"{text} and {of_twins}"
        for text, of_twins in (
            (f"{_share(own)} in the models", f"{_share(twins)} in the twins" if twins else ""),
            (f"the models count {_left(own)}", f"the twins {_left(twins)}" if twins else ""),
        )
    )
    return (
        f"Of the latents of a dictionary such are {told} ({RULE}). Without them {counted} per "
        "dimension."
    )


def _share(found: Sequence[tuple[WithoutComposites, float]]) -> str:
    return span([100 * one.n_composites / d_sae for one, d_sae in found], _percent)


def _left(found: Sequence[tuple[WithoutComposites, float]]) -> str:
    known = known_values(one.per_dim for one, _ in found)
    return span(known) if known else "nothing that could be counted"


def _percent(value: float) -> str:
    return f"{value:.1f}%"
