"""Replicates as one table, and back: what `results.parquet` holds is enough to go on from."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

import pandas as pd

from interp.calibrate.saturation import FITS
from interp.errors import UserError

Record = dict[str, Any]

OF_REPLICATE = ["cell", "replicate", "n_features", "code_sha256", "began", "ended"]
"""Columns that all rows of a replicate share; the rest are its rows', less their `detail`."""
NUMBERS = ("value", "ci_low", "ci_high", "se", "value_half", "fvu", "fvu_half")
FLAGS = ("identified", "censored", "converged")


def tidy(replicates: Iterable[Record]) -> pd.DataFrame:
    """All replicates' rows as one table, in the order of cell, replicate, size and estimator."""
    rows = [
        {
            "cell": r["cell"],
            "replicate": r["replicate"],
            "n_features": r["n_features"],
            "code_sha256": r.get("code_sha256"),
            "began": (r.get("span") or [None, None])[0],
            "ended": (r.get("span") or [None, None])[1],
        }
        | row
        for r in replicates
        for row in r["rows"]
    ]
    # What a count was made of stays with the replicate.
    frame = pd.DataFrame(rows).drop(columns="detail", errors="ignore")
    for column in (*NUMBERS, "began", "ended"):
        frame[column] = frame[column].astype("float64")
    for column in FLAGS:
        frame[column] = frame[column].astype("boolean")
    for column in ("reason", "code_sha256"):
        frame[column] = frame[column].astype("string")
    order = ["cell", "replicate", "d_sae", "estimator"]
    return frame.sort_values(order, kind="stable").reset_index(drop=True)


def read_table(file: Path) -> pd.DataFrame | None:
    """What `tidy` wrote; None without the file. Raises UserError where it is no such table."""
    if not file.exists():
        return None
    try:
        table = pd.read_parquet(file)
    except (OSError, ValueError) as error:  # pyarrow's errors are of these two
        raise UserError(f"{file}: no table ({error}); remove it to go on without it") from None
    if not {"cell", "replicate", "estimator"} <= set(table.columns):
        raise UserError(f"{file}: not a calibration's table; remove it to go on without it")
    return table


def beside(table: pd.DataFrame, asked: Collection[tuple[str, int]]) -> pd.DataFrame:
    """The rows of a table that are of other replicates than those asked for."""
    keys = zip(table["cell"], table["replicate"], strict=True)
    return table[[key not in asked for key in keys]]


def replicates_of(table: pd.DataFrame | None) -> dict[tuple[str, int], Record]:
    """By cell and number, what `tidy` was given, less details and fits, which are made again.

    Without those that do not say which code made them, and when.
    """
    if table is None or not set(OF_REPLICATE) <= set(table.columns):
        return {}
    counted = table[~table["estimator"].isin(list(FITS))].dropna(subset=OF_REPLICATE)
    found: dict[tuple[str, int], Record] = {}
    for row in counted.astype(object).where(counted.notna(), None).to_dict("records"):
        about = {name: row.pop(name) for name in OF_REPLICATE}
        record = found.setdefault(
            (about["cell"], about["replicate"]),
            {
                "cell": about["cell"],
                "replicate": about["replicate"],
                "n_features": about["n_features"],
                "code_sha256": about["code_sha256"],
                "span": [about["began"], about["ended"]],
                "rows": [],
            },
        )
        record["rows"].append(row)
    return found
