"""The tables of the page: packing, dictionaries, correlation, and what was run."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from interp.report.contrast import contrast
from interp.report.interval import Interval
from interp.report.records import PackingRow, Summary
from interp.report.wording import (
    CONTROLS,
    at_its_width,
    duration,
    percent,
    significant,
    size,
    verdict,
    whole,
    with_interval,
)

QUANTITIES = {
    "fvu": "FVU",
    "l0": "L0",
    "dead_fraction": "Dead latents",
    "ce_loss_clean": "CE loss, clean",
    "ce_loss_sae": "CE loss, SAE",
    "ce_loss_ablated": "CE loss, ablated",
    "ce_loss_recovered": "CE loss recovered",
}


@dataclass(frozen=True)
class Table:
    """Text cells under column names; the first column names the row.

    `shared` holds the columns whose value is the same in every row, as (name, value): said once
    above the table in place of a column. `hollow` marks, per row, those that enter no fit.
    """

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    shared: tuple[tuple[str, str], ...] = ()
    hollow: tuple[bool, ...] = ()


def packing_table(rows: Sequence[PackingRow]) -> Table:
    """One line per packing row: the count, its twin, and what decides whether to believe it."""
    columns = {
        "Model": lambda r: r.model.name,
        "Hook point": lambda r: r.hook_point,
        "Stream": lambda r: r.about,
        "Estimator": lambda r: r.estimator,
        "Per dimension [95%]": lambda r: with_interval(r.per_dim),
        "Untrained twin [95%]": _twin,
        "Minus twin": _minus_twin,
        "Other controls [95%]": _other_controls,
        "Converged": lambda r: verdict(r.converged),
        "Identified": lambda r: verdict(r.identified) + (f": {r.reason}" if r.reason else ""),
        "Calibration": lambda r: r.calibration,
        "Count [95%]": lambda r: with_interval(r.count),
        "D": lambda r: whole(r.d_sae),
        "k": lambda r: whole(r.k),
        "FVU": lambda r: significant(r.fvu),
        "FVU matched": lambda r: _flag_or_number(r.fvu_matched),
        "Tokens per latent": lambda r: whole(r.tokens_per_latent),
        "Held-out tokens": lambda r: whole(r.n_tokens),
        "Seeds": lambda r: whole(r.n_seeds),
        "Twin's dictionaries": _twin_quality,
    }
    if not any(row.other_controls for row in rows):
        del columns["Other controls [95%]"]
    body = [tuple(cell(row) for cell in columns.values()) for row in rows]
    # What a reader scans for stays in the table even where it never changes.
    foldable = set(columns) - {"Model", "Per dimension [95%]", "Count [95%]", "Converged"}
    return folded(tuple(columns), body, foldable, tuple(not row.counts for row in rows))


K_RULES = {
    "fvu": "nearest to the target FVU",
    "constant": "the same at every width",
    "proportional": "an eighth of the width",
}


ARCHITECTURES = {
    "topk": "TopK",
    "batchtopk": "BatchTopK",
    "matryoshka_batchtopk": "Matryoshka BatchTopK",
}


def sensitivity_table(rows: Sequence[PackingRow]) -> Table | None:
    """The count under every rule for k and of every kind of SAE that was run, a line for each.

    None if there was one rule and one kind.
    """
    if len({(row.k_rule, row.architecture) for row in rows}) < 2:
        return None
    columns = {
        "Model": lambda r: r.model.name,
        "k": lambda r: whole(r.k),
        "Rule for k": lambda r: K_RULES.get(r.k_rule, r.k_rule),
        "SAE": lambda r: ARCHITECTURES.get(r.architecture, r.architecture),
        "FVU": lambda r: significant(r.fvu),
        "Per dimension [95%]": lambda r: with_interval(r.per_dim),
        "Untrained twin [95%]": _twin,
        "Converged": lambda r: verdict(r.converged),
        "D": lambda r: whole(r.d_sae),
    }
    if len({row.architecture for row in rows}) < 2:
        del columns["SAE"]
    order = list(K_RULES)
    # By width, and the primary rule before the others.
    ordered = sorted(
        rows,
        key=lambda r: (
            r.model.d_model or 0,
            r.model.name,
            order.index(r.k_rule) if r.k_rule in order else len(order),
            r.architecture,
        ),
    )
    body = [tuple(cell(row) for cell in columns.values()) for row in ordered]
    return folded(tuple(columns), body, set(), tuple(not row.counts for row in ordered))


def dictionary_table(results: pd.DataFrame | None) -> Table | None:
    """FVU, L0, dead latents and CE losses, averaged over seeds; None if nothing was measured.

    One line per model, control, place and dictionary. Losses measured once per model stand in
    every line of that model. A mean over seeds leaves out those that have no number.
    """
    if results is None or not {"quantity", "value", "model"} <= set(results.columns):
        return None
    keys = [
        k
        for k in ("model", "control", "hook_point", "about", "architecture", "d_sae", "k")
        if k in results and (k != "architecture" or results[k].nunique() > 1)
    ]
    roles = results["role"] if "role" in results else pd.Series("main", index=results.index)
    kept = results[results["quantity"].isin(list(QUANTITIES)) & (roles.isna() | (roles == "main"))]
    if kept.empty:
        return None
    # No dictionary in the row: a quantity of the model, such as the clean loss on some runs.
    of_model = kept["d_sae"].isna() if "d_sae" in kept else pd.Series(False, index=kept.index)
    model_keys = [key for key in ("model", "control") if key in keys]
    per_model = kept[of_model].groupby([*model_keys, "quantity"], dropna=False)["value"].mean()
    wide = (
        kept[~of_model]
        .groupby([*keys, "quantity"], dropna=False, sort=False)["value"]
        .mean()
        .unstack("quantity")
    )
    lines = []
    for index, values in wide.iterrows():
        place = dict(zip(keys, index if isinstance(index, tuple) else (index,), strict=True))
        line = [_cell(place[key]) for key in keys]
        for quantity in QUANTITIES:
            value = values.get(quantity)
            if value is None or pd.isna(value):
                value = per_model.get((*(place[key] for key in model_keys), quantity))
            line.append(_quantity(quantity, None if value is None else float(value)))
        lines.append(tuple(line))
    if not lines:
        return None
    names = {"model": "Model", "control": "Weights", "hook_point": "Hook point", "about": "Stream",
             "architecture": "SAE"}  # fmt: skip
    columns = (
        *(names.get(key, {"d_sae": "D"}.get(key, key)) for key in keys),
        *QUANTITIES.values(),
    )
    return folded(columns, models_first(lines), {"Hook point", "Stream", "k"})


def ablation_note(results: pd.DataFrame | None) -> str | None:
    """What stood in for the stream in the ablated loss, as the measurement noted it."""
    if results is None or not {"quantity", "note"} <= set(results.columns):
        return None
    notes = results.loc[results["quantity"] == "ce_loss_ablated", "note"].dropna().unique()
    return "; ".join(sorted(map(str, notes))) or None


def correlation_table(summary: Summary) -> Table | None:
    """Spearman of packing per dimension with loss, by arm; None if none was computed."""
    if not summary.correlation:
        return None
    if summary.arm is not None:
        return _within_arm(summary)
    columns = (
        "Arm",
        "Estimator",
        "Depth",
        "Models",
        "Spearman [95%]",
        "Exact p",
        "Partial, given width",
        "Note",
    )
    rows = tuple(
        (
            c.arm,
            c.estimator,
            percent(c.layer_fraction),
            whole(c.n_models),
            with_interval(c.spearman),
            significant(c.p_exact, 2),
            significant(c.partial_spearman_given_d_model),
            c.reason or "",
        )
        for c in summary.correlation
    )
    return Table(columns, rows)


def _within_arm(summary: Summary) -> Table:
    """The one test of the arm, in both statistics, and what is left of it within levers."""
    columns = ("Statistic", "Estimator", "Depth", "Models", "Value [95%]", "p", "Note")
    rows = []
    for c in summary.correlation:
        where = (c.estimator, percent(c.layer_fraction), whole(c.n_models))
        within = Interval(c.within_levers)
        slope = "nats per feature per dimension; interval by inverting Kendall's test"
        for name, value, p, note in (
            ("Spearman", c.spearman, c.p_exact, c.reason or ""),
            ("Kendall", c.kendall, c.kendall_p, ""),
            ("Spearman within levers", within, c.p_within_levers, "no interval"),
            ("Slope of loss", c.slope, None, slope),
        ):
            rows.append((name, *where, at_its_width(value, 3), significant(p, 2), note))
    return Table(columns, tuple(rows))


def record_table(record: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    """A nested record as (path, text) lines, with units read off the key's ending."""
    return tuple((name, _readable(name, value)) for name, value in _leaves(record, ""))


def _leaves(value: Any, name: str) -> Iterable[tuple[str, Any]]:
    if isinstance(value, Mapping) and value:
        for key, inner in value.items():
            yield from _leaves(inner, f"{name} / {key}" if name else str(key))
    elif isinstance(value, list) and any(isinstance(item, Mapping) for item in value):
        for position, inner in enumerate(value, start=1):
            yield from _leaves(inner, f"{name} / {position}")
    else:
        yield name, value


def _readable(name: str, value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(str(item) for item in value)
    if isinstance(value, int | float) and not isinstance(value, bool):
        if name.endswith("_seconds"):
            return duration(value)
        if name.endswith("_bytes"):
            return size(value)
    return "–" if value is None else str(value)


def _twin(row: PackingRow) -> str:
    return "not measured" if row.twin is None else with_interval(row.twin.per_dim, 2)


def _other_controls(row: PackingRow) -> str:
    return "; ".join(
        f"{CONTROLS.get(one.name, one.name)} {with_interval(one.per_dim, 2)}"
        for one in row.other_controls
    )


def _twin_quality(row: PackingRow) -> str:
    """What may keep the twin's count from being compared."""
    if row.twin is None:
        return "–"
    parts = [f"k {whole(row.twin.k)}"] if row.twin.k is not None else []
    parts += [f"FVU {significant(row.twin.fvu)}"] if row.twin.fvu is not None else []
    if row.twin.fvu_matched is False:
        parts.append("not matched")
    if row.twin.converged is not True:
        before = significant(row.twin.half, 2)
        parts.append("not converged" + (f", from {before}" if row.twin.rising else ""))
    if row.twin.reason and "undertrained" not in row.twin.reason:
        parts.append(row.twin.reason)
    return ", ".join(parts)


def _minus_twin(row: PackingRow) -> str:
    difference = contrast(row)
    return "–" if difference is None else with_interval(difference.difference, most=3)


def _flag_or_number(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return verdict(value)
    return significant(float(value)) if isinstance(value, int | float) else str(value)


def _quantity(quantity: str, value: float | None) -> str:
    return percent(value) if quantity == "dead_fraction" else significant(value)


def _cell(value: Any) -> str:
    if value is None or pd.isna(value):
        return "–"
    if isinstance(value, str):
        return CONTROLS.get(value, ARCHITECTURES.get(value, value))
    return whole(value)


def models_first(lines: Sequence[tuple[str, ...]]) -> list[tuple[str, ...]]:
    """Lines that begin with a model and its weights: each model as it is, then its controls."""
    order = list(dict.fromkeys(line[0] for line in lines))
    return sorted(lines, key=lambda line: (order.index(line[0]), line[1] != "trained"))


def folded(
    columns: Sequence[str],
    rows: Sequence[tuple[str, ...]],
    foldable: set[str],
    hollow: tuple[bool, ...] = (),
) -> Table:
    """Lift the foldable columns that never change out of a table of several rows."""
    constant = {
        position
        for position, name in enumerate(columns)
        if len(rows) > 1 and name in foldable and len({row[position] for row in rows}) == 1
    }
    keep = [position for position in range(len(columns)) if position not in constant]
    return Table(
        columns=tuple(columns[position] for position in keep),
        rows=tuple(tuple(row[position] for position in keep) for row in rows),
        shared=tuple((columns[p], rows[0][p]) for p in sorted(constant) if rows[0][p] != "–"),
        hollow=hollow,
    )
