"""Measures of trained toy models as tidy tables, and what a sweep says as plain records."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import numpy as np
import pandas as pd

from interp.toy.exponents import fit_exponent
from interp.toy.measures import LEVELS, Measures
from interp.toy.model import ToyConfig

SWEEP = ["law", "parameter", "n", "density", "batch_size", "n_steps"]
"""Columns that models with the same inputs share."""
KEYS = [*SWEEP, "decay", "m", "seed"]
"""Columns that name one model."""


def keys(config: ToyConfig) -> dict[str, Any]:
    """KEYS of one model."""
    found = {**asdict(config.frequencies), **asdict(config)}
    return {name: found[name] for name in KEYS}


def quantities(config: ToyConfig, found: Measures) -> list[dict[str, Any]]:
    """One row per quantity: value, and a standard error where it is an average over samples."""
    values: dict[str, tuple[float | None, float | None]] = {
        "loss": (found.loss, found.loss_se),
        "phi_half": (found.phi_half, None),
        "norm_mean": (float(found.norms.mean()), None),
        "dimensions_per_feature": (found.dimensions_per_feature, None),
        "capacity_used": (float(found.capacities.sum() / config.m), None),
        "weak_prediction": (found.weak_prediction, None),
        "silent_fraction": (found.silent_fraction, None),
        "silent_loss": (found.silent_loss, None),
    }
    if found.speaking_overlap is not None:
        values["speaking_overlap"] = (found.speaking_overlap, None)
    if found.overlaps is not None:
        overlaps = found.overlaps
        values |= {
            "mean_squared_overlap": (overlaps.mean, None),
            "variance_squared_overlap": (overlaps.variance, None),
            "welch_floor": (overlaps.welch_floor, None),
            "random_mean": (overlaps.random_mean, None),
            "random_variance": (overlaps.random_variance, None),
            "overlap_ks": (overlaps.ks, None),
        }
    return [
        {**keys(config), "quantity": name, "value": value, "se": error}
        for name, (value, error) in values.items()
    ]


def features(config: ToyConfig, found: Measures) -> pd.DataFrame:
    """One row per feature: rank from 1, frequency, norm, dimensions, loss."""
    return pd.DataFrame(keys(config), index=range(config.frequencies.n)).assign(
        feature=np.arange(1, config.frequencies.n + 1),
        p=config.frequencies.probabilities(),
        norm=found.norms,
        dimensions=found.capacities,
        loss=found.feature_loss,
    )


def overlap_quantiles(config: ToyConfig, found: Measures) -> pd.DataFrame | None:
    """One row per level: quantiles of squared overlaps, measured and of random directions."""
    if found.overlaps is None:
        return None
    return pd.DataFrame(keys(config), index=range(len(LEVELS))).assign(
        level=LEVELS,
        squared_overlap=found.overlaps.quantiles,
        random=found.overlaps.random_quantiles,
    )


def wide(rows: pd.DataFrame) -> pd.DataFrame:
    """One row per model, quantities as columns; `regime` says which end of its sweep it is.

    strong: the most negative decay that models with the same inputs had; weak: the least positive
    one, as in the published large runs (0.1); decayed: larger ones, which also drop features that
    would have had room; between: the rest.
    """
    table = rows.pivot(index=KEYS, columns="quantity", values="value").reset_index()
    table.columns.name = None
    least = table.groupby(SWEEP)["decay"].transform("min")
    weakest = table.decay.where(table.decay > 0).groupby([table[c] for c in SWEEP]).transform("min")
    table["regime"] = np.select(
        [(table.decay == least) & (least < 0), table.decay == weakest, table.decay > 0],
        ["strong", "weak", "decayed"],
        "between",
    )
    return table


def lines(models: pd.DataFrame) -> list[dict[str, Any]]:
    """One record per line of widths: its exponent, and phi_1/2 averaged over the line."""
    found = []
    for values, part in models.groupby([*SWEEP, "decay", "regime"], sort=True):
        alpha = fit_exponent(part.m.to_numpy(), part.loss.to_numpy())
        found.append(
            {
                **dict(zip([*SWEEP, "decay", "regime"], _plain(values), strict=True)),
                "m": sorted(int(m) for m in part.m.unique()),
                "alpha": asdict(alpha),
                "phi_half": float(part.phi_half.mean()),
                "m_over_n": float((part.m / part.n).mean()),
                "loss_over_weak_prediction": _ratio(part.loss, part.weak_prediction),
            }
        )
    return found


def _plain(values: Any) -> Iterator[Any]:
    return (v.item() if hasattr(v, "item") else v for v in values)


def _ratio(loss: pd.Series, prediction: pd.Series) -> float | None:
    """Geometric mean over widths; None where everything is represented."""
    if not (prediction > 0).all():
        return None
    return float(np.exp(np.log(loss / prediction).mean()))
