"""The tables of the classes behind the counts: tokens that they name, and other matching."""

from collections.abc import Sequence
from dataclasses import replace
from math import isclose

from interp.report.contrast import contrast
from interp.report.records import PackingRow, Strictness, Summary, TokenIdentity
from interp.report.tables import Table, folded
from interp.report.wording import (
    ABSENT,
    CONTROLS,
    at_its_width,
    known_values,
    percent,
    significant,
    span,
    whole,
    with_interval,
)

TESTS = {"cosine": "cosine of directions", "correlation": "correlation of activations"}


def token_table(summary: Summary) -> Table | None:
    """One line per count and control of it; None in runs that did not look."""
    columns = ("Model", "Weights", "Hook point", "Stream", "D", "Classes",
               "Explained by token [95%]", "By position [95%]", "On one token, share [95%]",
               "Bits over random positions [95%]", "Bits", "Bits of all positions",
               "Note")  # fmt: skip
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
        at_its_width(found.explained),
        at_its_width(found.explained_by_position),
        at_its_width(found.detectors),
        at_its_width(found.relative),
        significant(found.bits),
        significant(found.all_bits),
        found.reason or ABSENT,
    )


def token_sentence(summary: Summary) -> str | None:
    """How far token and position decide when a class fires, contextual against raw.

    At the primary layer, one count per model and stream. None in runs that did not look.
    """
    rows, said = _at_the_primary_layer(summary), []
    for about, where in (("contextual", "On the contextual stream"), ("all", "On the raw stream")):
        mine = [row for row in rows if row.about == about]
        trained = [row.token_identity for row in mine]
        twins = [row.twin.token_identity for row in mine if row.twin is not None]
        clauses = [
            _clause([one for one in found if one is not None], who)
            for found, who in ((trained, "in trained models"), (twins, "in untrained twins"))
            if any(one is not None for one in found)
        ]
        said += [f"{where}: {'; '.join(clauses)}."] if clauses else []
    if not said:
        return None
    return (
        f"How far the current token, or its position, decides when a class fires. {' '.join(said)} "
        "Medians over the classes of a model; on one token: less than 1 bit of its identity."
    )


def _clause(found: Sequence[TokenIdentity], who: str) -> str:
    """Of the models with classes enough for an interval; detectors over all classes together."""
    n = sum(one.n_classes for one in found)
    enough = [one for one in found if one.explained.low is not None]
    if not enough:
        return f"{who} too few classes to say ({whole(n)})"
    token, position = (
        span(known_values(values), "{:.0%}".format)
        for values in (
            [one.explained for one in enough],
            [one.explained_by_position for one in enough],
        )
    )
    on_one = sum((one.detectors.value or 0.0) * one.n_classes for one in found)
    share = f"{percent(on_one / n)} of {whole(n)} classes fire on one token"
    return f"{who} {token} by the token and {position} by the position ({share})"


def _at_the_primary_layer(summary: Summary) -> list[PackingRow]:
    """The plain counts of both streams, the smallest dictionary of each model."""
    layers = {(row.model.name, row.layer) for row in summary.primary_rows}
    chosen: dict[tuple[str, str], PackingRow] = {}
    for row in summary.packing:
        at = (row.model.name, row.about)
        if row.estimator == "reproducible" and (row.model.name, row.layer) in layers:
            chosen[at] = min(chosen.get(at, row), row, key=lambda r: r.d_sae or 0)
    return list(chosen.values())


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
