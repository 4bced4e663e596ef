"""The tables of the classes behind the counts: tokens that they name, and other matching."""

from collections.abc import Sequence
from dataclasses import replace
from math import isclose

from interp.report.contrast import contrast
from interp.report.records import PackingRow, Strictness, Summary, TokenIdentity
from interp.report.tables import CONTROLS, Table, folded
from interp.report.wording import ABSENT, percent, significant, whole, with_interval

TESTS = {"cosine": "cosine of directions", "correlation": "correlation of activations"}


def token_table(summary: Summary) -> Table | None:
    """One line per count and control of it; None in runs that did not look."""
    columns = ("Model", "Weights", "Hook point", "Stream", "D", "Classes",
               "On one token, share [95%]", "Bits over random positions [95%]", "Bits",
               "Bits of all positions", "Note")  # fmt: skip
    lines = []
    for row in summary.packing:
        controls = [one for one in (row.twin, *row.other_controls) if one is not None]
        measured = [("trained", row.token_identity)]
        measured += [(one.name, one.token_identity) for one in controls]
        lines += [_line(row, weights, found) for weights, found in measured if found is not None]
    return folded(columns, lines, {"Stream", "Bits of all positions", "Note"}) if lines else None


def _line(row: PackingRow, weights: str, found: TokenIdentity) -> tuple[str, ...]:
    return (
        row.model.name,
        CONTROLS.get(weights, weights),
        row.hook_point,
        row.about,
        whole(row.d_sae),
        whole(found.n_classes),
        with_interval(found.detectors, 2),
        with_interval(found.relative, 2),
        significant(found.bits),
        significant(found.all_bits),
        found.reason or ABSENT,
    )


def token_sentence(summary: Summary) -> str | None:
    """How many classes fire on one token, contextual against raw; None in runs that did not look.

    Over all models at the primary layer, one count per model and stream.
    """
    rows = _at_the_primary_layer(summary)
    said = {
        about: [_share([r.token_identity for r in mine]), _share([
            r.twin.token_identity for r in mine if r.twin is not None
        ])]
        for about in ("contextual", "all")
        if (mine := [row for row in rows if row.about == about])
    }  # fmt: skip
    if not any(share for shares in said.values() for share in shares):
        return None
    where = {"contextual": "on the contextual stream", "all": "on the raw stream"}
    parts = [
        f"{where[about]} {own or 'none was looked at'} in trained models"
        + (f", {twins} in untrained twins" if twins else "")
        for about, (own, twins) in said.items()
    ]
    return (
        "Classes of latents that fire on essentially one token (its identity has less than 1 bit): "
        f"{'; '.join(parts)}."
    )


def _at_the_primary_layer(summary: Summary) -> list[PackingRow]:
    """The plain counts of both streams, the smallest dictionary of each model."""
    layers = {(row.model.name, row.layer) for row in summary.primary_rows}
    chosen: dict[tuple[str, str], PackingRow] = {}
    for row in summary.packing:
        at = (row.model.name, row.about)
        if row.estimator == "reproducible" and (row.model.name, row.layer) in layers:
            chosen[at] = min(chosen.get(at, row), row, key=lambda r: r.d_sae or 0)
    return list(chosen.values())


def _share(found: Sequence[TokenIdentity | None]) -> str | None:
    """`34.1% of 1,204`, over all classes together."""
    known = [one for one in found if one is not None]
    if not known:
        return None
    n = sum(one.n_classes for one in known)
    detectors = sum((one.detectors.value or 0.0) * one.n_classes for one in known)
    return f"{percent(detectors / n)} of {whole(n)}" if n else "there are no classes"


def strictness_table(summary: Summary) -> Table | None:
    """One line per primary count and threshold, beside the twin's; None where none was tried."""
    columns = ("Model", "Test", "At least", "Per dimension [95%]", "Untrained twin [95%]",
               "Minus twin [95%]", "By chance", "By chance, twin", "Headline")  # fmt: skip
    lines = []
    for row in strictness_rows(summary):
        for mine, twins in at_equal_strictness(row):
            difference = contrast(with_strictness(row, mine, twins))
            lines.append(
                (
                    row.model.name,
                    TESTS.get(mine.by, mine.by),
                    significant(mine.at, 3),
                    with_interval(mine.per_dim),
                    ABSENT if twins is None else with_interval(twins.per_dim, 2),
                    ABSENT if difference is None else with_interval(difference.difference),
                    whole(mine.null),
                    ABSENT if twins is None else whole(twins.null),
                    "yes" if mine.headline else "",
                )
            )
    return folded(columns, lines, set()) if lines else None


def strictness_rows(summary: Summary) -> list[PackingRow]:
    """The counts that were matched otherwise too, by width."""
    rows = [row for row in summary.packing if row.strictness]
    return sorted(rows, key=lambda row: row.model.d_model or 0)


def at_equal_strictness(row: PackingRow) -> list[tuple[Strictness, Strictness | None]]:
    """Every setting of a count with its twin's; as the headline matches, each at its own cosine."""
    twins = row.twin.strictness if row.twin is not None else ()

    def same(one: Strictness, other: Strictness) -> bool:
        at_one = other.headline if one.headline else isclose(one.at, other.at)
        return one.by == other.by and at_one

    return [(one, next((t for t in twins if same(one, t)), None)) for one in row.strictness]


def with_strictness(row: PackingRow, mine: Strictness, twins: Strictness | None) -> PackingRow:
    """The row as it would be had the headline matched so."""
    twin = row.twin and replace(row.twin, per_dim=twins.per_dim) if twins is not None else None
    return replace(row, per_dim=mine.per_dim, twin=twin)
