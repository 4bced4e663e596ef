"""Tidy rows -> one record per count, the controls' beside it: what a summary lists and fits."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from interp.calibration import UNCALIBRATED, calibrated
from interp.config import MIN_SIZES, StudyConfig
from interp.estimate import Estimate, InsufficientData
from interp.hook_points import HookPoint
from interp.packing import MAX_CHANGE_IN_COUNT, saturation
from interp.run import CONTROLS, TRAINED
from interp.spots import HALF, layer_depth, primary_layer
from interp.strictness import SETTINGS, quantity_of

Z_95 = 1.959964
MEANS = ("token", "position")
"""What is removed from the contextual stream."""


class _Cell:
    """The rows of one model, control, layer, stream and dictionary size, by quantity."""

    def __init__(self, rows: pd.DataFrame) -> None:
        # What was removed from a stream is of the stream, whatever role its SAEs have.
        of_all = rows["role"].isna() | (rows["role"] == "main")
        main = rows[of_all & (rows["seed"].isna() | (rows["seed"] == 0))]
        self._rows = {r["quantity"]: r for r in main.to_dict("records")}
        halves = rows[(rows["role"] == HALF) & (rows["quantity"] == "reproducible")]["value"]
        self.half = None if halves.empty else float(halves.iloc[0])
        """S_>=2 of the same seeds after half of the training tokens."""
        fvus = rows[(rows["role"] == HALF) & (rows["quantity"] == "fvu")]["value"]
        self.fvu_half = None if fvus.empty else float(fvus.mean())
        """Mean over these seeds, then."""

    def get(self, quantity: str, field: str = "value") -> float | None:
        row = self._rows.get(quantity)
        value = None if row is None else row[field]
        return None if value is None or not math.isfinite(value) else float(value)

    def flag(self, quantity: str) -> bool | None:
        value = self.get(quantity)
        return None if value is None else value == 1.0

    def note(self, quantity: str) -> str | None:
        row = self._rows.get(quantity)
        return row["note"] if row is not None and isinstance(row["note"], str) else None

    def interval(self, quantity: str) -> dict[str, float | None]:
        return {field: self.get(quantity, field) for field in ("value", "ci_low", "ci_high")}

    def whole(self, quantity: str, field: str = "value") -> int | None:
        value = self.get(quantity, field)
        return None if value is None else int(value)

    def estimate(self, quantity: str, d_model: int, d_sae: int, n_seeds: int) -> Estimate:
        """One estimator's row with everything that has to stand beside it."""
        value, note = self.get(quantity), self.note(quantity)
        censored = quantity == "reproducible" and bool(self.flag("censored"))
        row = self._rows.get(quantity) or {}
        return Estimate(
            quantity,
            value=value,
            ci_low=self.get(quantity, "ci_low"),
            # The interval of a full dictionary is that of its size: nothing bounds it from above.
            ci_high=None if censored else self.get(quantity, "ci_high"),
            per_dim=None if value is None else value / d_model,
            n_tokens=self.whole("held_out_tokens"),
            n_seeds=n_seeds if quantity == "reproducible" else 1,
            d_sae=d_sae,
            k=None if pd.isna(row.get("k")) else int(row["k"]),
            # A note says why there is no interval, or that the value is only a bound.
            identified=value is not None and note is None and not censored,
            reason=note,
            censored=censored,
        ).with_training(
            fvu=self.get("fvu_mean"),
            fvu_matched=self.flag("fvu_matched"),
            tokens_per_latent=self.get("tokens_per_latent"),
            converged=self.flag("converged"),
        )


def usable(estimate: Estimate) -> bool:
    """Whether it may enter fits and tests.

    Converged at the stated FVU, and known within an interval or as a bound from below.
    """
    return (
        estimate.value is not None
        and estimate.converged is True
        and estimate.fvu_matched is True
        and (estimate.identified or estimate.censored)
    )


def packing_records(
    results: pd.DataFrame, facts: list[dict[str, Any]], config: StudyConfig
) -> list[dict[str, Any]]:
    """One record per model, layer, stream, size and estimator; the controls' stand inside it."""
    cells: dict[Any, _Cell] = {
        key: _Cell(group)
        for key, group in results[results["d_sae"].notna()].groupby(
            ["d_model", "model", "layer", "about", "d_sae", "control"], sort=True
        )
    }
    records = []
    by_place: dict[tuple[Any, ...], list[tuple[int, dict[str, _Cell]]]] = {}
    for (d_model, model, layer, about, d_sae, control), cell in cells.items():
        place = by_place.setdefault((d_model, model, layer, about), [])
        if not place or place[-1][0] != d_sae:
            place.append((d_sae, {}))
        place[-1][1][control] = cell
    for (d_model, model, layer, about), sizes in by_place.items():
        where = _where(facts, config, model, int(layer), about)
        for d_sae, by_control in sizes:
            if TRAINED not in by_control:
                continue
            for quantity in ("reproducible", "live_latents_10", "hill_1"):
                found = {
                    control: cell.estimate(quantity, int(d_model), int(d_sae), config.n_seeds)
                    for control, cell in by_control.items()
                }
                record = where | _record(found, config.architecture, config.min_seeds)
                if quantity == "reproducible":
                    larger = [c[TRAINED] for d, c in sizes if d > d_sae and TRAINED in c]
                    record |= {"outgrown": _outgrown(by_control[TRAINED], larger)}
                    _add_what_was_behind(record, by_control)
                records.append(record)
        if len(sizes) >= MIN_SIZES:
            found = {
                control: n
                for control in (TRAINED, *CONTROLS)
                if (n := _saturation(sizes, control, int(d_model), config)) is not None
            }
            if TRAINED in found:
                records.append(where | _record(found, config.architecture, config.min_seeds))
    return records


def _where(
    facts: list[dict[str, Any]], config: StudyConfig, model: str, layer: int, about: str
) -> dict[str, Any]:
    n_layers = next(f["n_layers"] for f in facts if f["name"] == model)
    return {
        "model": model,
        "layer": layer,
        "layer_fraction": layer_depth(config.hook_kind, layer, n_layers),
        "primary_layer": layer == primary_layer(config, n_layers),
        "hook_point": str(HookPoint(config.hook_kind, layer)),
        "about": about,
    }


def sensitivity_records(
    results: pd.DataFrame, facts: list[dict[str, Any]], config: StudyConfig
) -> list[dict[str, Any]]:
    """S_>=2 under every rule for k and architecture, where any beside the primary ones was run."""
    counted = results[results["d_sae"].notna()]
    place = ["d_model", "model", "layer", "about", "d_sae"]
    cells: dict[Any, dict[str, _Cell]] = {}
    keys = [*place, "architecture", "k_rule", "control"]
    for (*at, control), group in counted.groupby(keys, sort=True):
        cells.setdefault(tuple(at), {})[str(control)] = _Cell(group)
    places = {at[:-2] for at in cells if at[-2:] != (config.architecture, "fvu")}
    records = []
    for (d_model, model, layer, about, d_sae, architecture, rule), by_control in cells.items():
        if (d_model, model, layer, about, d_sae) not in places or TRAINED not in by_control:
            continue
        found = {
            control: cell.estimate("reproducible", int(d_model), int(d_sae), config.n_seeds)
            for control, cell in by_control.items()
        }
        where = _where(facts, config, str(model), int(layer), str(about))
        how = {"k_rule": rule}
        how |= {} if architecture == "topk" else {"architecture": architecture}
        records.append(where | how | _record(found, architecture, config.min_seeds))
    return records


def _outgrown(cell: _Cell, larger: list[_Cell]) -> bool | None:
    """Whether a larger dictionary of the same place finds more: the count is then a lower bound.

    More is beyond chance (95%, the two independent) and by at least what convergence lets pass. A
    larger one need not have converged: what its seeds found again is there. None without one.
    """
    value, se = cell.get("reproducible"), cell.get("reproducible_se")
    others = [
        (more, more_se)
        for c in larger
        if (more := c.get("reproducible")) is not None
        and (more_se := c.get("reproducible_se")) is not None
    ]
    if value is None or se is None or not others:
        return None
    return any(
        more - value > max(Z_95 * math.hypot(se, more_se), MAX_CHANGE_IN_COUNT * value)
        for more, more_se in others
    )


def _add_what_was_behind(record: dict[str, Any], by_control: Mapping[str, _Cell]) -> None:
    """Beside each count: that of half the training, what chance gave and was subtracted, what the
    SAEs keep of the stream and of the loss, whether its classes name tokens, and the count under
    other matching, where these were looked at."""
    for one, cell in (
        (record, by_control[TRAINED]),
        *((control, by_control[control["name"]]) for control in record["controls"]),
    ):
        one["value_half"] = cell.half
        one["fvu_half"] = cell.fvu_half
        one["null"] = cell.get("reproducible_null")
        one["ce_loss_recovered"] = cell.get("ce_loss_recovered")
        one |= {f"variance_share_{of}": cell.get(f"variance_share_{of}") for of in MEANS}
        if (n_classes := cell.whole("token_entropy_classes")) is not None:
            one["token_identity"] = _token_identity(cell, n_classes)
        if strictness := _strictness(cell):
            one["strictness"] = strictness


def _token_identity(cell: _Cell, n_classes: int) -> dict[str, Any]:
    return {
        "n_classes": n_classes,
        "bits": cell.get("token_entropy_bits"),
        "all_bits": cell.get("token_entropy_all_bits"),
        "relative": cell.interval("token_entropy_relative"),
        "detectors": cell.interval("token_detectors"),
        "explained": cell.interval("token_explained"),
        "explained_by_position": cell.interval("position_explained"),
        "reason": cell.note("token_detectors"),
    }


def _strictness(cell: _Cell) -> list[dict[str, Any]]:
    """One record per setting of either test, the headline's own among them; empty where not run."""
    counted = {(by, at): quantity_of(by, at) for by, at in SETTINGS}
    found = [
        _at_strictness(cell, by, at, name)
        for (by, at), name in counted.items()
        if cell.get(name) is not None
    ]
    if not found:
        return []
    for by, own in (("cosine", "match_threshold"), ("correlation", "match_correlation")):
        found.append(_at_strictness(cell, by, cell.get(own), "reproducible"))
    return sorted(found, key=lambda one: (one["by"] != "cosine", one["at"]))


def _at_strictness(cell: _Cell, by: str, at: float | None, name: str) -> dict[str, Any]:
    reason = cell.note(name)
    record = {"by": by, "at": at, "headline": name == "reproducible", **cell.interval(name)}
    if reason is not None:  # a full dictionary, whose interval is that of its size
        record["ci_high"] = None
    return record | {"null": cell.get(f"{name}_null"), "reason": reason}


def _saturation(
    sizes: list[tuple[int, dict[str, _Cell]]], control: str, d_model: int, config: StudyConfig
) -> Estimate | None:
    """N over dictionary sizes, from converged counts only.

    Where fewer than the estimator needs have converged: the largest converged count, as a bound.
    """
    cells = [(d_sae, by_control[control]) for d_sae, by_control in sizes if control in by_control]
    if not cells:
        return None
    usable = [
        (d, c) for d, c in cells if c.flag("converged") and c.get("reproducible_se") is not None
    ]
    if not usable:
        last = cells[-1][1].estimate("reproducible", d_model, cells[-1][0], config.n_seeds)
        return Estimate(
            "saturation", value=None, n_tokens=last.n_tokens, n_seeds=config.n_seeds,
            d_sae=last.d_sae, k=last.k, fvu=last.fvu, converged=False, identified=False,
            reason="no dictionary size converged (undertrained)",
        )  # fmt: skip
    columns = [
        [d, c.get("reproducible"), c.get("reproducible_se"), c.get("fvu_mean")] for d, c in usable
    ]
    D, S, se, fvu = np.array(columns, dtype=float).T
    try:
        found = saturation(
            D, S, se, d_in=d_model, n_tokens=usable[0][1].whole("held_out_tokens"),
            n_seeds=config.n_seeds,
        )  # fmt: skip
    except InsufficientData as refusal:
        found = refusal.partial
    return found.with_training(
        fvu=float(fvu.mean()),
        fvu_matched=all(bool(c.flag("fvu_matched")) for _, c in usable),
        tokens_per_latent=min(c.get("tokens_per_latent") or 0.0 for _, c in usable),
        converged=True,
    )


def _record(found: Mapping[str, Estimate], architecture: str, min_seeds: int) -> dict[str, Any]:
    """The trained model's estimate, with those of the controls inside."""
    keep = (
        "value", "ci_low", "ci_high", "per_dim", "d_sae", "k", "fvu", "fvu_matched",
        "tokens_per_latent", "converged", "identified", "censored", "reason",
    )  # fmt: skip
    own = found[TRAINED]
    # The known feature counts were found again by TopK SAEs, and nothing else has been tried.
    known = calibrated(own, min_seeds=min_seeds) if architecture == "topk" else UNCALIBRATED
    record = own.to_json() | {"calibration": known, "usable": usable(own)}
    record["controls"] = []
    for control in CONTROLS:
        if control in found:
            one = found[control]
            full = one.to_json()
            kept = {key: full[key] for key in keep}
            record["controls"].append({"name": control, **kept, "usable": usable(one)})
    return record
