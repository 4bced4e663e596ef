"""A table of losses, from a CSV file, a study or the ladder: what fits and forecasts begin with."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from interp import ladder
from interp.errors import UserError
from interp.ladder.recipe import N_LAYERS

NEEDED = ("family", "dataset", "model", "d_model", "loss")
SIZES = ("d_model", "n_layers", "n_params")
"""What a model has once, on whatever data set it is measured."""
OPTIONAL = ("n_layers", "n_params", "train_tokens", "packing", "packing_is_bound")
"""Numbers; `packing` is features per dimension, and a lower bound where `packing_is_bound` is 1."""
_LARGEST = 1e18
"""Of any number in a table: beyond it, sums of squares are no numbers any more."""
LADDER_TEXTS = ("deps", "stdlib", "held_out_projects")


@dataclass(frozen=True, eq=False)
class LossTable:
    """One row per model and data set; the index counts rows from 0."""

    name: str
    rows: pd.DataFrame
    notes: tuple[str, ...] = ()
    """What was left out, and why a column is missing."""

    @property
    def groups(self) -> list[tuple[str, str]]:
        """(family, data set), in the order in which they first appear."""
        pairs = zip(self.rows["family"], self.rows["dataset"], strict=True)
        return list(dict.fromkeys((str(f), str(d)) for f, d in pairs))

    @property
    def group_of_row(self) -> np.ndarray:
        place = {group: i for i, group in enumerate(self.groups)}
        pairs = zip(self.rows["family"], self.rows["dataset"], strict=True)
        return np.array([place[str(f), str(d)] for f, d in pairs])

    @property
    def model_of_row(self) -> np.ndarray:
        """Number of the model of each row; a model is the same on every data set."""
        names = self.rows["family"].astype(str) + "\0" + self.rows["model"].astype(str)
        return np.asarray(pd.factorize(names)[0])

    def column(self, name: str) -> np.ndarray:
        """Numbers. Raises UserError where the column is missing, incomplete or not positive."""
        if name not in self.rows:
            raise UserError(f"{self.name}: has no column {name}; add it or choose another --form")
        values = self.rows[name].to_numpy(dtype=float)
        if not (np.isfinite(values) & (values > 0)).all():
            raise UserError(
                f"{self.name}: {name} is missing or not positive for model "
                f"{self.rows['model'][int(np.argmin(np.isfinite(values) & (values > 0)))]!r}; "
                "complete the column or choose another --form"
            )
        return values

    def has(self, name: str) -> bool:
        """Whether a column is there, with a positive number in every row."""
        if name not in self.rows:
            return False
        values = self.rows[name].to_numpy(dtype=float)
        return bool((np.isfinite(values) & (values > 0)).all())

    @property
    def varies_tokens(self) -> bool:
        """Whether models of one width, family and data set had different numbers of tokens."""
        if not self.has("train_tokens"):
            return False
        budgets = self.rows.groupby(["family", "dataset", "d_model"])["train_tokens"].nunique()
        return bool((budgets > 1).any())

    def take(self, keep: np.ndarray) -> LossTable:
        """Some of the rows."""
        return LossTable(self.name, self.rows[keep].reset_index(drop=True), self.notes)


def read_table(path: str | Path) -> LossTable:
    """A CSV file with the columns NEEDED (and any of OPTIONAL), a finished study's folder, `ladder`
    (the losses that the embedded models were shipped with), or `ladder-tokens` (those on held-out
    projects, and the recorded ones of the same widths after fewer tokens).

    Raises UserError for a file that is not there or no table, for missing columns, numbers that
    are none, a repeated row, a model of two sizes, and a family that has one model only on a data
    set: its offset and its loss could not be told apart.
    """
    path = Path(path)
    if path.is_dir():
        table = _from_study(path / "summary.json")
    elif path.name == "summary.json" and path.is_file():
        table = _from_study(path)
    elif str(path) == "ladder" and not path.exists():
        table = _from_ladder()
    elif str(path) == "ladder-tokens" and not path.exists():
        table = _from_budgets()
    else:
        table = _from_csv(path)
    return _checked(table)


def _from_csv(path: Path) -> LossTable:
    try:
        rows = pd.read_csv(path, skipinitialspace=True, comment="#")
    except FileNotFoundError as error:
        raise UserError(
            f"{path}: no such file; give a CSV table, a study's folder, ladder or ladder-tokens"
        ) from error
    except (ValueError, OSError) as error:  # pandas' parser errors are ValueErrors
        reason = str(error).strip().split("\n")[0][:120]
        raise UserError(f"{path}: no CSV table ({reason}); {_form()}") from error
    rows.columns = [str(c).strip() for c in rows.columns]
    # pandas would take the first column for names of rows, and number a repeated heading.
    if not isinstance(rows.index, pd.RangeIndex):
        raise UserError(f"{path}: its rows have more fields than its header; {_form()}")
    twice = [c for c in (*NEEDED, *OPTIONAL) if f"{c}.1" in rows]
    if twice:
        raise UserError(f"{path}: has column {twice[0]} twice; keep one of them")
    return LossTable(str(path), rows)


def _from_ladder() -> LossTable:
    """Held-out losses on the texts that the ladder's record names."""
    rows = [
        {
            "family": "ladder",
            "dataset": dataset,
            "model": name,
            "d_model": record["d_model"],
            "loss": record[f"{dataset}_nats_per_token"],
            "n_layers": N_LAYERS,
            "n_params": record["n_params"],
            "train_tokens": record["recipe"]["n_tokens"],
        }
        for dataset in LADDER_TEXTS
        for name in ladder.names()
        for record in [ladder.record(name)]
    ]
    return LossTable("ladder", pd.DataFrame(rows))


def _from_budgets() -> LossTable:
    """Width and tokens varied together, so that each has a term of its own (`--form data`)."""
    whole = _from_ladder().rows
    whole = whole[whole["dataset"] == "held_out_projects"]
    sizes = whole.set_index("d_model")[["n_params", "model"]]
    rows = [
        {
            "family": "ladder",
            "dataset": "held_out_projects",
            "model": f"{sizes.model[one['d_model']]}, {one['n_tokens'] / 1e6:.1f}M tokens",
            "d_model": one["d_model"],
            "loss": one["held_out_projects_nats_per_token"],
            "n_layers": N_LAYERS,
            "n_params": sizes.n_params[one["d_model"]],
            "train_tokens": one["n_tokens"],
        }
        for one in ladder.budgets()
        if one["d_model"] in sizes.index
    ]
    if not rows:
        raise UserError(
            "ladder-tokens: no losses after fewer tokens are shipped; "
            "`interp ladder budgets --ship` records them"
        )
    return LossTable("ladder-tokens", pd.concat([whole, pd.DataFrame(rows)], ignore_index=True))


def _from_study(file: Path) -> LossTable:
    """The models of the width arm with the study's primary count.

    In nats per token, or per byte where the study compares models of several tokenizers.
    """
    name = str(file.parent)
    try:
        summary = json.loads(file.read_text())
        loss = (summary.get("scaling") or {}).get("loss") or "loss_nats_per_token"
        models = [m for m in summary["models"] if m[loss] is not None]
    except FileNotFoundError as error:
        raise UserError(
            f"{name}: has no summary.json, so it is no finished study; give a CSV table or finish "
            "the study"
        ) from error
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{file}: is no summary of a study; run `interp study` there again"
        ) from error
    notes = []
    others = sorted({m["arm"] for m in models if m["arm"] != "width"})
    if others:
        notes.append(f"models of the arms {', '.join(others)} are left out")
    models = [m for m in models if m["arm"] == "width"]
    if not models:
        why = (
            f"all of its models are of the arms {', '.join(others)}" if others else "it has no loss"
        )
        raise UserError(f"{name}: {why}; give a study of models that differ in width")
    counts = _counts(summary)
    if loss != "loss_nats_per_token":
        notes.append("losses are per byte of text: the models have several tokenizers")
    if not counts:
        notes.append("no packing: the study has no converged count of its primary estimator")
    rows = [
        {
            "family": m["family"],
            "dataset": _text_of(file.parent),
            "model": m["name"],
            "d_model": m["d_model"],
            "loss": m[loss],
            "n_layers": m["n_layers"],
            "n_params": m["n_params"],
            "train_tokens": m["train_tokens"],
        }
        | counts.get(m["name"], {})
        for m in models
    ]
    return LossTable(name, pd.DataFrame(rows), tuple(notes))


def _counts(summary: dict[str, Any]) -> dict[str, dict[str, float]]:
    """Packing of each model as the study's own exponent takes it: its primary count, where that
    has converged at the stated FVU. A count of zero is no count."""
    primary = summary.get("primary") or {}
    widths = {m["name"]: m["d_model"] for m in summary["models"]}
    found: dict[str, dict[str, float]] = {}
    for row in summary.get("packing", []):
        same = all(row.get(key) == primary.get(key) for key in ("estimator", "about"))
        # A summary from before it said so went by these two.
        settled = row.get("converged") is True and row.get("fvu_matched") is True
        usable = row.get("usable", settled)
        if not (same and usable and row.get("primary_layer") and (row.get("per_dim") or 0) > 0):
            continue
        # Counts of dictionaries of different sizes do not compare; saturation draws on all sizes.
        if primary["estimator"] != "saturation" and row["d_sae"] != (
            primary["d_sae_per_d_model"] * widths[row["model"]]
        ):
            continue
        found[row["model"]] = {
            "packing": row["per_dim"],
            "packing_is_bound": float(bool(row.get("censored") or row.get("outgrown"))),
        }
    return found


def _text_of(folder: Path) -> str:
    """The study's text, from its config where that is beside the summary."""
    import yaml

    config = folder / "config.resolved.yaml"
    return str(yaml.safe_load(config.read_text())["text"]) if config.is_file() else "study"


def _checked(table: LossTable) -> LossTable:
    rows, name = table.rows, table.name
    missing = [c for c in NEEDED if c not in rows]
    if missing:
        raise UserError(f"{name}: lacks {_plural(missing)} {', '.join(missing)}; {_form()}")
    if rows.empty:
        raise UserError(f"{name}: holds no row; {_form()}")
    rows = rows.copy()
    for column in ("family", "dataset", "model"):
        if rows[column].isna().any():
            raise UserError(f"{name}: row {_first(rows[column].isna())} has no {column}; name it")
        rows[column] = rows[column].astype(str).str.strip()
    for column in (*NEEDED[3:], *OPTIONAL):
        if column not in rows:
            continue
        numbers = pd.to_numeric(rows[column], errors="coerce").astype(float)
        may_be_zero = column.startswith("packing")
        possible = (numbers >= 0 if may_be_zero else numbers > 0) & (numbers < _LARGEST)
        if column == "d_model":
            possible &= numbers % 1 == 0
        wrong = ~possible if column in NEEDED else rows[column].notna() & ~possible
        if wrong.any():
            at = _first(wrong)
            kind = "positive whole" if column == "d_model" else "positive"
            raise UserError(
                f"{name}: row {at} has {column} {rows[column].iloc[at - 1]}; give a {kind} number "
                f"below {_LARGEST:g}"
            )
        rows[column] = numbers
    repeated = rows.duplicated(["family", "dataset", "model"])
    if repeated.any():
        at = _first(repeated)
        row = rows.iloc[at - 1]
        raise UserError(
            f"{name}: row {at} repeats model {row['model']!r} of {row['family']} on "
            f"{row['dataset']}; keep one loss per model and data set"
        )
    for column in (c for c in SIZES if c in rows):
        various = rows.groupby(["family", "model"])[column].transform("nunique") > 1
        if various.any():
            row = rows.iloc[_first(various) - 1]
            raise UserError(
                f"{name}: model {row['model']!r} of {row['family']} has more than one {column}; "
                "name different models differently"
            )
    return _without_singles(LossTable(name, rows.reset_index(drop=True), table.notes))


def _without_singles(table: LossTable) -> LossTable:
    counts = np.bincount(table.group_of_row)
    if (counts < 2).any():
        family, dataset = table.groups[int(np.argmin(counts))]
        raise UserError(
            f"{table.name}: family {family} has one model on {dataset}, and its offset and its "
            "loss cannot be told apart; add a model of another width or leave the family out"
        )
    return table


def _form() -> str:
    return f"a table has columns {','.join(NEEDED)}, and may have {','.join(OPTIONAL)}"


def _plural(names: Sequence[str]) -> str:
    return "column" if len(names) == 1 else "columns"


def _first(where: pd.Series) -> int:
    """Number of the first row, counted from 1 below the header."""
    return int(np.argmax(where.to_numpy())) + 1
