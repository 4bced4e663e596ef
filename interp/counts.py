"""Tidy rows -> one record per count, the controls' beside it: what a summary lists and fits."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from interp.calibration import UNCALIBRATED, calibrated
from interp.cell import BESIDE, Cell
from interp.config import MIN_SIZES, StudyConfig
from interp.estimate import ATOMS, Estimate, InsufficientData
from interp.hook_points import HookPoint
from interp.packing import MAX_CHANGE_IN_COUNT, saturation
from interp.run import CONTROLS, TRAINED
from interp.spots import layer_depth, primary_layer
from interp.strictness import SETTINGS, quantity_of

Z_95 = 1.959964
MEANS = ("token", "position")
"""What is removed from the contextual stream."""
LEVELS = {"reproducible": "saturation", ATOMS: "saturation_atoms"}
"""The level that each one's counts of growing dictionaries stop at."""


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
    cells: dict[Any, Cell] = {
        key: Cell(group)
        for key, group in results[results["d_sae"].notna()].groupby(
            ["d_model", "model", "layer", "about", "d_sae", "control"], sort=True
        )
    }
    records = []
    by_place: dict[tuple[Any, ...], list[tuple[int, dict[str, Cell]]]] = {}
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
            for quantity in LEVELS:
                found = {
                    control: n
                    for control in (TRAINED, *CONTROLS)
                    if (n := _saturation(sizes, control, quantity, int(d_model), config))
                    is not None
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
    cells: dict[Any, dict[str, Cell]] = {}
    keys = [*place, "architecture", "k_rule", "control"]
    for (*at, control), group in counted.groupby(keys, sort=True):
        cells.setdefault(tuple(at), {})[str(control)] = Cell(group)
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


def _outgrown(cell: Cell, larger: list[Cell]) -> bool | None:
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


def _add_what_was_behind(record: dict[str, Any], by_control: Mapping[str, Cell]) -> None:
    """Beside each count: that of half the training, what chance gave and was subtracted, what the
    SAEs keep of the stream and of the loss, whether its classes name tokens, and the count under
    other matching, where these were looked at."""
    for one, cell in (
        (record, by_control[TRAINED]),
        *((control, by_control[control["name"]]) for control in record["controls"]),
    ):
        one["value_half"] = cell.half()
        one["fvu_half"] = cell.fvu_half
        one["null"] = cell.get("reproducible_null")
        if (passes := cell.get("passes_over_text")) is not None:
            one["passes_over_text"] = passes
        one["ce_loss_recovered"] = cell.get("ce_loss_recovered")
        one |= {f"variance_share_{of}": cell.get(f"variance_share_{of}") for of in MEANS}
        if (n_classes := cell.whole("token_entropy_classes")) is not None:
            one["token_identity"] = _token_identity(cell, n_classes)
        if strictness := _strictness(cell):
            one["strictness"] = strictness
        if cell.get(ATOMS) is not None:
            one["without_composites"] = _without_composites(cell)


def _without_composites(cell: Cell) -> dict[str, Any]:
    """The count of what is left when latents that stand for two others are taken out."""
    return {
        "n_composites": cell.get("composites_mean"),
        **cell.interval(ATOMS),
        "value_half": cell.half(ATOMS),
        "null": cell.get(f"{ATOMS}_null"),
        "converged": cell.flag("converged_atoms"),
        "censored": bool(cell.flag("censored_atoms")),
        "reason": cell.note(ATOMS),
    }


def _token_identity(cell: Cell, n_classes: int) -> dict[str, Any]:
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


def _strictness(cell: Cell) -> list[dict[str, Any]]:
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


def _at_strictness(cell: Cell, by: str, at: float | None, name: str) -> dict[str, Any]:
    reason = cell.note(name)
    record = {"by": by, "at": at, "headline": name == "reproducible", **cell.interval(name)}
    if reason is not None:  # a full dictionary, whose interval is that of its size
        record["ci_high"] = None
    return record | {"null": cell.get(f"{name}_null"), "reason": reason}


def _saturation(
    sizes: list[tuple[int, dict[str, Cell]]],
    control: str,
    quantity: str,
    d_model: int,
    config: StudyConfig,
) -> Estimate | None:
    """The level of a count over dictionary sizes, from converged ones only; None if not counted.

    Where fewer than the estimator needs have converged: the largest converged count, as a bound.
    """
    name, suffix = LEVELS[quantity], BESIDE[quantity]
    cells = [
        (d_sae, by_control[control])
        for d_sae, by_control in sizes
        if control in by_control and by_control[control].has(quantity)
    ]
    if not cells:
        return None
    usable = [
        (d, c)
        for d, c in cells
        if c.flag(f"converged{suffix}") and c.get(f"{quantity}_se") is not None
    ]
    if not usable:
        last = cells[-1][1].estimate(quantity, d_model, cells[-1][0], config.n_seeds)
        return Estimate(
            name, value=None, n_tokens=last.n_tokens, n_seeds=config.n_seeds,
            d_sae=last.d_sae, k=last.k, fvu=last.fvu, converged=False, identified=False,
            reason="no dictionary size converged (undertrained)",
        )  # fmt: skip
    columns = [[d, c.get(quantity), c.get(f"{quantity}_se"), c.get("fvu_mean")] for d, c in usable]
    D, S, se, fvu = np.array(columns, dtype=float).T
    try:
        found = saturation(
            D, S, se, d_in=d_model, n_tokens=usable[0][1].whole("held_out_tokens"),
            n_seeds=config.n_seeds,
        )  # fmt: skip
    except InsufficientData as refusal:
        found = refusal.partial
    return replace(found, estimator=name).with_training(
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
