"""Latents that stand for two others: how many were counted, and what is left without them."""

from collections.abc import Sequence
from dataclasses import replace

from interp.report.contrast import Verdict, contrast
from interp.report.records import PackingRow, Summary, WithoutComposites
from interp.report.wording import known_values, plural, span

RULE = (
    "a latent whose direction lies between those of two that matter more, within a cosine of 0.95 "
    "of their plane"
)


def composites_reply(summary: Summary, rows: Sequence[PackingRow]) -> str:
    """To the objection that such latents are no features of their own; rows: the answer's."""
    places = {(row.model.name, row.layer, row.about) for row in rows}
    counted = [
        row
        for row in summary.packing
        if row.without_composites is not None
        and row.d_sae
        and row.estimator == "reproducible"
        and (row.model.name, row.layer, row.about) in places
    ]
    if not counted:
        return "Not answered: this run did not look for them."
    own = [(one, row.d_sae) for row in counted if (one := row.without_composites) and row.d_sae]
    twins = [
        (one, row.d_sae)
        for row in counted
        if row.twin is not None and (one := row.twin.without_composites) and row.d_sae
    ]
    if not any(one.n_composites for one, _ in own + twins):
        return f"There are none: {RULE}, is in none of the counted dictionaries."
    said = f"Such are {_share(own)} of the latents of a model's dictionary"
    said += f" and {_share(twins)} of a twin's" if twins else ""
    said += f" ({RULE}). Without them models count {_left([one for one, _ in own])}"
    said += f" per dimension, with them {span(known_values(row.per_dim for row in counted))}"
    if not twins:
        return f"{said}."
    pairs = [c for row in counted if (c := contrast(_without(row))) is not None]
    more = sum(c.verdict is Verdict.MORE for c in pairs)
    return (
        f"{said}; twins {_left([one for one, _ in twins])}, and trained minus twin lies above zero "
        f"for {more} of {plural(len(pairs), 'pair')}."
    )


def _share(found: Sequence[tuple[WithoutComposites, float]]) -> str:
    return span([100 * one.n_composites / d_sae for one, d_sae in found], _percent)


def _left(found: Sequence[WithoutComposites]) -> str:
    """Counts, and what bars them from fits."""
    known = known_values(one.per_dim for one in found)
    if not known:
        return "nothing that is known"
    barred = [
        f"{n} of {len(found)} {why}"
        for why, n in (
            ("full", sum(one.censored for one in found)),
            ("not converged", sum(one.converged is False for one in found)),
        )
        if n
    ]
    return f"{span(known)} ({', '.join(barred)})" if barred else span(known)


def _without(row: PackingRow) -> PackingRow:
    """The row as it would be had composites not counted."""
    mine, twin = row.without_composites, row.twin
    of_twin = None if twin is None else twin.without_composites
    if mine is None or twin is None or of_twin is None:
        return replace(row, twin=None)
    return replace(row, per_dim=mine.per_dim, twin=replace(twin, per_dim=of_twin.per_dim))


def _percent(value: float) -> str:
    return "under 0.1%" if 0 < value < 0.05 else f"{value:.1f}%"
