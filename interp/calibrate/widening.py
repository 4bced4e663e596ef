"""Do intervals hold the truth once they are widened by the biases on other kinds of data?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd

from interp.calibrate.claims import bounded, claims
from interp.calibration import known_biases, widened


def with_widened(
    record: dict[str, Any],
    records: Sequence[dict[str, Any]],
    rows: pd.DataFrame,
    *,
    estimators: Sequence[str],
    seen: Sequence[tuple[int, int]],
) -> dict[str, Any]:
    """A cell's record, with `widened` in the named estimators: how many intervals then hold n.

    The biases are those of the cells of other groups, from all of their replicates: nobody knows
    what group a model would be of. The intervals are this cell's, without the replicates whose
    numbers were `seen` (first and last of each range) before the rule was settled.
    """
    own = rows[rows["cell"] == record["cell"]]
    for first, last in seen:
        own = own[~own["replicate"].between(first, last)]
    others = [
        e for other in records if other["group"] != record["group"] for e in other["estimators"]
    ]
    return record | {
        "estimators": [
            e | {"widened": _covering(e["estimator"], own, others, record["n_features"])}
            if e["estimator"] in estimators
            else e
            for e in record["estimators"]
        ]
    }


def _covering(name: str, own: pd.DataFrame, others: list[dict[str, Any]], n: int) -> dict[str, Any]:
    biases = known_biases(e for e in others if e["estimator"] == name)
    rows = own[own["estimator"] == name]
    told = bounded(rows)
    ends = zip(told["ci_low"].astype(float), told["ci_high"].astype(float), strict=True)
    wide = [widened(low, high, biases) for low, high in ends]
    hold = [low <= n <= high for low, high in wide]
    return {
        "n_replicates": len(rows),
        "n_identified": len(claims(rows)),
        "n_biases": len(biases),
        "n_with_interval": len(hold),
        "n_covering": int(sum(hold)),
        "coverage": float(sum(hold) / len(hold)) if hold and biases else None,
    }
