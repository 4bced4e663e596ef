"""Rows of replicates -> what each estimator does in each cell, and whether the gates hold."""

from __future__ import annotations

import math
from importlib.resources import files
from typing import Any

import pandas as pd
import yaml

from interp.calibrate.cells import CalibrationConfig
from interp.calibrate.claims import bounded, claims
from interp.calibrate.widening import with_widened

GATES_FILE = "gates.yaml"
WIDENED = "worst_coverage_widened"
NEVER = {True: False, False: False}
NOT_COUNTS = (
    "capacity", "overlap", "distinct_latents",
    *(f"reproducible{which}_{what}" for which in ("", "_atoms", "_all")
      for what in ("hits", "strays")),
)  # fmt: skip


def gates_text() -> dict[str, Any]:
    """The gates and their words. Limits were fixed before anything was run; the file says which
    estimators, and which gate, were added after."""
    return yaml.safe_load(files("interp.calibrate").joinpath(GATES_FILE).read_text())


def cell_records(rows: pd.DataFrame, config: CalibrationConfig) -> list[dict[str, Any]]:
    """One record per cell: what it is, n, and under `estimators` one per estimator and size.

    bias: mean of value/n - 1; spread: standard deviation of value/n, None with one replicate; both
    over identified replicates (a lower bound claims nothing), as is coverage: the share whose 95%
    interval holds n. mean_bound is the mean of all values, bounds included. The estimators that do
    not count have no bias. `widened`, in what the gates judge, is what `with_widened` adds.
    """
    records = []
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
    text = gates_text()
    return [
        with_widened(
            record, records, rows, estimators=list(text["estimators"]), seen=text["seen_replicates"]
        )
        for record in records
    ]


def _estimator(name: str, d_sae: int, rows: pd.DataFrame, n: int) -> dict[str, Any]:
    values = claims(rows)["value"].to_numpy(dtype=float)
    told = bounded(rows)
    covers = (told["ci_low"] <= n) & (n <= told["ci_high"])
    counts = len(values) > 0 and name not in NOT_COUNTS
    seen = rows["value"].dropna().to_numpy(dtype=float)
    return {
        "estimator": name,
        "d_sae": d_sae,
        "n_replicates": len(rows),
        "n_identified": len(values),
        "mean": _finite(values.mean()) if len(values) else None,
        "mean_low": _finite(told["ci_low"].mean()) if len(told) else None,
        "mean_high": _finite(told["ci_high"].mean()) if len(told) else None,
        "mean_bound": _finite(seen.mean()) if len(seen) else None,
        "bias": _finite(values.mean() / n - 1) if counts else None,
        "spread": _finite(values.std(ddof=1) / n) if counts and len(values) > 1 else None,
        "n_with_interval": len(told),
        "n_covering": int(covers.sum()) if name not in NOT_COUNTS else None,
        "coverage": _finite(covers.mean()) if counts and len(told) else None,
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
            groups = text["gated_groups"] if gate["cells"] == "any" else [gate["cells"]]
            cells = [r for r in records if r["group"] in groups]
            of = [
                (r["cell"], e["widened"] if gate["value"] == WIDENED else e)
                for r in cells
                for e in r["estimators"]
                if e["estimator"] == estimator
            ]
            value, cell, can = _value(
                gate["value"],
                gate["limit"],
                of,
                min_replicates=gate.get("min_replicates", text["min_replicates"]),
                min_identified=text["min_identified"],
            )
            if {r["group"] for r in cells} != set(groups):
                can = NEVER
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
    what: str,
    limit: tuple[float, float],
    of: list[tuple[str, dict[str, Any]]],
    *,
    min_replicates: int,
    min_identified: float,
) -> tuple[float | None, str | None, dict[bool, bool]]:
    """A gate's value, the cell that it is of, and whether it can pass and fail yet.

    A pass needs every cell in full; a failure what no more replicates of other cells could mend,
    which for intervals that others widen are all of them too.
    """
    if not of:
        return None, None, NEVER
    full = all(e["n_replicates"] >= min_replicates for _, e in of)
    low, high = limit

    if what == "least_identified":
        value, cell, worst = min(
            ((e["n_identified"] / e["n_replicates"], cell, e) for cell, e in of),
            key=lambda found: found[0],
        )
        # As if all that is missing were identified.
        total = max(worst["n_replicates"], min_replicates)
        refused = worst["n_replicates"] - worst["n_identified"]
        return value, cell, {True: full, False: 1 - refused / total < low}
    key, right, judged_by = {
        "worst_bias": ("bias", 0.0, "n_identified"),
        "worst_coverage": ("coverage", 0.95, "n_with_interval"),
        WIDENED: ("coverage", 1.0, "n_with_interval"),
    }[what]
    known = [
        (e[key], cell, e)
        for cell, e in of
        if e[key] is not None and e[judged_by] >= min_identified * e["n_replicates"]
    ]
    if not known:
        return None, None, NEVER
    judged = [found for found in known if found[2]["n_replicates"] >= min_replicates]
    failing = [found for found in judged if not low <= found[0] <= high]
    value, cell, _ = max(failing or known, key=lambda found: abs(found[0] - right))
    final = full or what != WIDENED
    return value, cell, {True: full and len(judged) == len(of), False: bool(failing) and final}


def _finite(number: float) -> float | None:
    return float(number) if math.isfinite(number) else None
