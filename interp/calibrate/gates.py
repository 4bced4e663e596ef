"""Rows of replicates -> what each estimator does in each cell, and whether the gates hold."""

from __future__ import annotations

import math
from importlib.resources import files
from typing import Any

import pandas as pd
import yaml

from interp.calibrate.cells import CalibrationConfig
from interp.calibration import biases, with_biases

GATES_FILE = "gates.yaml"
WITH_BIASES = "worst_coverage_with_biases"
NOT_COUNTS = (
    "capacity", "overlap", "distinct_latents",
    *(f"reproducible{which}_{what}" for which in ("", "_atoms", "_all")
      for what in ("hits", "strays")),
)  # fmt: skip


def gates_text() -> dict[str, Any]:
    """The gates and their words. Limits were fixed before anything was run; the file says which
    estimators were added after trials."""
    return yaml.safe_load(files("interp.calibrate").joinpath(GATES_FILE).read_text())


def cell_records(rows: pd.DataFrame, config: CalibrationConfig) -> list[dict[str, Any]]:
    """One record per cell: what it is, n, and under `estimators` one per estimator and size.

    bias: mean of value/n - 1; spread: standard deviation of value/n, None with one replicate; both
    over identified replicates (a lower bound claims nothing), as is coverage: the share whose 95%
    interval holds n. mean_bound is the mean of all values, bounds included. The estimators that do
    not count have no bias. What the gates judge has under `with_biases` how many intervals hold n
    when they are widened by the biases in all other cells, as a report does for a model, of which
    nobody knows what cell it is; without the replicates that were seen before that was settled.
    """
    records: list[dict[str, Any]] = []
    for cell in config.cells:
        own = rows[rows["cell"] == cell.name]
        if own.empty:
            continue
        records.append(
            cell.model_dump()
            | {
                "cell": cell.name,
                "structure": cell.structure,
                "group": config.group(cell),
                "k": cell.k,
                "n_features": cell.n_features,
                "n_seeds": config.n_seeds,
                "n_replicates": int(own["replicate"].nunique()),
                "estimators": [
                    _estimator(str(name), int(str(d_sae)), group, cell.n_features)
                    for (name, d_sae), group in own.groupby(["estimator", "d_sae"], sort=True)
                ],
            }
        )
    for record in records:
        _widen(record, [other for other in records if other is not record], rows)
    return records


def _widen(record: dict[str, Any], others: list[dict[str, Any]], rows: pd.DataFrame) -> None:
    """Adds `with_biases` to a cell's estimators of N."""
    text = gates_text()
    first, last = text["seen"]
    of_cell = rows[(rows["cell"] == record["cell"]) & ~rows["replicate"].between(first, last)]
    for estimator in record["estimators"]:
        name = estimator["estimator"]
        if name not in text["estimators"]:
            continue
        elsewhere = [e for other in others for e in other["estimators"] if e["estimator"] == name]
        known = biases(elsewhere)
        own = of_cell[of_cell["estimator"] == name]
        claimed = own[own["identified"].astype(bool) & own["value"].notna()]
        ends = claimed[["ci_low", "ci_high"]].dropna().to_numpy(dtype=float)
        widened = [with_biases(low, high, known) for low, high in ends]
        n_covering = int(sum(low <= record["n_features"] <= high for low, high in widened))
        estimator["with_biases"] = {
            "n_replicates": len(own),
            "n_identified": len(claimed),
            "n_biases": len(known),
            "n_with_interval": len(ends),
            "n_covering": n_covering,
            "coverage": n_covering / len(ends) if len(ends) and known else None,
        }


def _estimator(name: str, d_sae: int, rows: pd.DataFrame, n: int) -> dict[str, Any]:
    claimed = rows[rows["identified"].astype(bool) & rows["value"].notna()]
    values = claimed["value"].to_numpy(dtype=float)
    bounded = claimed[claimed["ci_low"].notna() & claimed["ci_high"].notna()]
    covers = (bounded["ci_low"] <= n) & (n <= bounded["ci_high"])
    counts = len(values) > 0 and name not in NOT_COUNTS
    seen = rows["value"].dropna().to_numpy(dtype=float)
    return {
        "estimator": name,
        "d_sae": d_sae,
        "n_replicates": len(rows),
        "n_identified": len(values),
        "mean": _finite(values.mean()) if len(values) else None,
        "mean_low": _finite(bounded["ci_low"].mean()) if len(bounded) else None,
        "mean_high": _finite(bounded["ci_high"].mean()) if len(bounded) else None,
        "mean_bound": _finite(seen.mean()) if len(seen) else None,
        "bias": _finite(values.mean() / n - 1) if counts else None,
        "spread": _finite(values.std(ddof=1) / n) if counts and len(values) > 1 else None,
        "n_with_interval": len(bounded),
        "n_covering": int(covers.sum()) if name not in NOT_COUNTS else None,
        "coverage": _finite(covers.mean()) if counts and len(bounded) else None,
        # A refusal that says "at least so many" and is wrong.
        "n_false_bounds": int(((rows["ci_low"] > n) & ~rows["identified"].astype(bool)).sum())
        if name not in NOT_COUNTS
        else None,
        "n_converged": int(rows["converged"].fillna(False).astype(bool).sum()),
        "fvu": _finite(rows["fvu"].mean()) if rows["fvu"].notna().any() else None,
    }


def verdicts(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """{name, value, limit, passed, verdict, cell} of every gate; passed None where undecided."""
    text = gates_text()
    found = []
    known = {e["estimator"] for r in records for e in r["estimators"]}
    for estimator, called in text["estimators"].items():
        if records and estimator not in known:  # of an older version
            continue
        for gate in text["gates"]:
            groups = [gate["cells"]] if gate["cells"] != "any" else text["any"]
            of = [
                (r["cell"], e["with_biases"] if gate["value"] == WITH_BIASES else e)
                for r in records
                if r["group"] in groups
                for e in r["estimators"]
                if e["estimator"] == estimator
            ]
            value, cell, can = _value(gate, of, text | gate)
            low, high = gate["limit"]
            passed = None if value is None else low <= value <= high
            if passed is not None and not can[passed]:
                passed = None
            words = {True: gate["passed"], False: gate["failed"], None: text["undecided"]}[passed]
            found.append(
                {
                    "name": f"{estimator}: {gate['name']}",
                    "value": value,
                    "limit": gate["limit"],
                    "passed": passed,
                    "verdict": words.replace("<N>", called),
                    "cell": cell,
                    "n_cells": len(of),
                }
            )
    return found


def _value(
    gate: dict[str, Any], of: list[tuple[str, dict[str, Any]]], rules: dict[str, Any]
) -> tuple[float | None, str | None, dict[bool, bool]]:
    """A gate's value, the cell that it is of, and whether it can pass and fail yet.

    A pass needs every cell in full; a failure what no more replicates of other cells could mend.
    """
    min_replicates = rules["min_replicates"]
    what, never = gate["value"], {True: False, False: False}
    if not of:
        return None, None, never
    full = all(e["n_replicates"] >= min_replicates for _, e in of)

    def often(e: dict[str, Any]) -> bool:
        return bool(e["n_identified"] >= rules["min_identified"] * e["n_replicates"])

    if what == "least_identified":
        value, cell, worst = min(
            ((e["n_identified"] / e["n_replicates"], cell, e) for cell, e in of),
            key=lambda found: found[0],
        )
        # As if all that is missing were identified.
        total = max(worst["n_replicates"], min_replicates)
        refused = worst["n_replicates"] - worst["n_identified"]
        return value, cell, {True: full, False: 1 - refused / total < gate["limit"][0]}
    key, right = {
        "worst_bias": ("bias", 0.0),
        "worst_coverage": ("coverage", 0.95),
        WITH_BIASES: ("coverage", 1.0),
    }[what]
    known = [(e[key], cell, e) for cell, e in of if e[key] is not None]
    if not known:
        return None, None, never
    low, high = gate["limit"]
    judged = [f for f in known if f[2]["n_replicates"] >= min_replicates and often(f[2])]
    failing = [found for found in judged if not low <= found[0] <= high]
    value, cell, _ = max(failing or known, key=lambda found: abs(found[0] - right))
    return value, cell, {True: full and len(judged) == len(of), False: bool(failing)}


def _finite(number: float) -> float | None:
    return float(number) if math.isfinite(number) else None
