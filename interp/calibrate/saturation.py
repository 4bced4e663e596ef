"""N of every replicate, from its counts by dictionary size: fitted when a calibration is judged.

The counts take hours and the fits none, so another fit needs no other training.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from interp.calibrate.cells import CalibrationConfig, Cell
from interp.estimate import InsufficientData
from interp.saturation import saturation

FITS = {
    "saturation": ("reproducible", True),
    "saturation_atoms": ("reproducible_atoms", True),
    "saturation_all": ("reproducible_all", True),
    "saturation_unchecked": ("reproducible", False),
    "saturation_atoms_unchecked": ("reproducible_atoms", False),
    "saturation_all_unchecked": ("reproducible_all", False),
}
"""Name -> the count it is fitted to, and whether only sizes that converged enter, as in a study."""


def saturation_rows(
    rows: Sequence[dict[str, Any]], cell: Cell, config: CalibrationConfig
) -> list[dict[str, Any]]:
    """One row per fit of `FITS`, from the rows of one replicate."""
    found = []
    made = {r["estimator"] for r in rows}
    for name, (count, checked) in FITS.items():
        if count not in made:  # of an older version
            continue
        counts = [r for r in rows if r["estimator"] == count and r["se"] is not None]
        usable = [r for r in counts if r["converged"] or not checked]
        D, S, se = (
            np.array([r[key] for r in usable], dtype=float) for key in ("d_sae", "value", "se")
        )
        try:
            estimate = saturation(D, S, se, d_in=cell.d_in, n_seeds=config.n_seeds, k=cell.k)
        except InsufficientData as refusal:
            estimate = refusal.partial
        steady = all(r["converged"] for r in counts) and bool(counts)
        full = replace(estimate, estimator=name, converged=steady).to_json()
        found.append(
            {"d_sae": config.sizes(cell)[-1]}
            | {key: full.get(key) for key in rows[0] if key != "d_sae"}
        )
    return found
