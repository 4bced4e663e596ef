"""A synthetic study at constant width: facts and rows as a study writes them, none measured."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import report_run

from interp.config import StudyConfig
from interp.report import headline
from interp.summary import summarise, tidy

WIDTH = 64
BASE = {"row_decay": 0.1, "matrix_decay": 0.1, "tokens": 25_165_824.0, "projects": 96.0}
LEVERS: dict[str, tuple[float, ...]] = {
    "row_decay": (-1.0, -0.3, 0.0, 0.3, 1.0),
    "matrix_decay": (-0.1, 0.0, 0.3, 1.0),
    "tokens": (3_145_728.0, 6_291_456.0, 12_582_912.0),
    "projects": (6.0, 12.0, 24.0, 48.0),
    "seed": (1.0, 2.0),
}
SHORT = {"row_decay": "rows", "matrix_decay": "matrices"}

Outcome = Callable[[str, float], float]
"""(lever, value) -> what it adds to an outcome, in units of the seeds' spread."""


def names() -> list[str]:
    found = ["ladder/d064"]
    for lever, values in LEVERS.items():
        found += [f"ladder/d064-{SHORT.get(lever, lever)}-{i}" for i in range(1, len(values) + 1)]
    return found


def facts(loss_shift: Outcome, *, seed: int = 0) -> list[dict[str, Any]]:
    """One record per model; a seed's unit of loss is 0.01 nats."""
    rng, of_rows = (np.random.default_rng(key) for key in (seed, (seed, 2)))
    levers = [None, *((name, v) for name, values in LEVERS.items() for v in values)]
    found = []
    for name, lever in zip(names(), levers, strict=True):
        shift = 0.0 if lever is None else loss_shift(*lever)
        loss = 3.2 + 0.01 * (shift + rng.normal())
        found.append(
            {
                "name": name,
                "family": "ladder",
                "arm": "constant_width",
                "d_model": WIDTH,
                "n_layers": 4,
                "n_params": 281_000,
                "train_tokens": int(lever[1]) if lever and lever[0] == "tokens" else 25_165_824,
                "loss_nats_per_token": loss,
                "loss_nats_per_byte": loss / 2.4,
                "loss_ci_nats_per_token": [loss - 0.1, loss + 0.1],
                "loss_ci_nats_per_byte": [loss / 2.4 - 0.04, loss / 2.4 + 0.04],
                "tokens_sha256": "one tokenizer",
                "warnings": [],
                "lever": None if lever is None else {"name": lever[0], "value": lever[1]},
                "rows": _of_rows(lever, of_rows),
                **({"lever_base": BASE} if lever is None else {}),
            }
        )
    return found


def _of_rows(lever: tuple[str, float] | None, rng: np.random.Generator) -> dict[str, float]:
    """Of the embedding: decay of the rows shortens them and spreads them out, nothing else does."""
    pulled = lever[1] - 0.1 if lever is not None and lever[0] == "row_decay" else 0.0
    return {
        "norm_mean": 1.7 - 0.5 * pulled + 0.01 * rng.normal(),
        "mean_squared_overlap": 0.03,
        "mean_squared_overlap_centred": 0.02 - 0.01 * pulled + 0.0005 * rng.normal(),
    }


def rows(
    known: list[dict[str, Any]],
    packing_shift: Outcome,
    *,
    per_loss: float = 0.0,
    seed: int = 1,
    scatter: float = 1.0,
    layers: tuple[int, ...] = (1,),
    streams: tuple[str, ...] = ("contextual",),
    **flags: dict[str, float],
) -> list[dict[str, Any]]:
    """Counts about 1.8 per dimension; a seed's unit of packing is 0.05 features per dimension.

    per_loss: units of packing per unit of loss, so that 1 makes them one thing.
    """
    rng = np.random.default_rng(seed)
    found = []
    for fact in known:
        lever = fact["lever"]
        shift = 0.0 if lever is None else packing_shift(lever["name"], lever["value"])
        shift += per_loss * (fact["loss_nats_per_token"] - 3.2) / 0.01 + scatter * rng.normal()
        for layer in layers:
            for about in streams:
                count = WIDTH * (1.8 + 0.05 * shift + 0.1 * (layer - 1))
                count *= 1.5 if about == "all" else 1.0
                found += _cell(fact["name"], layer, about, "trained", count, flags)
                if fact["lever"] is None and about == "contextual" and layer == 1:
                    found += _cell(fact["name"], layer, about, "random_init", 0.05 * count, {})
    return found


def _cell(
    model: str, layer: int, about: str, control: str, count: float, flags: dict[str, Any]
) -> list[dict[str, Any]]:
    base = {"model": model, "control": control, "layer": layer, "about": about,
            "hook_point": report_run.hook(layer), "d_sae": 8 * WIDTH, "k_rule": "fvu", "k": 8,
            "role": "main", "seed": None}  # fmt: skip
    quantities = {
        "reproducible": count, "reproducible_se": 0.01 * count, "converged": 1.0,
        "censored": 0.0, "fvu_mean": 0.3, "fvu_matched": 1.0, "tokens_per_latent": 16_000.0,
        "held_out_tokens": 2.6e5, "live_latents_10": 1.5 * count, "hill_1": 0.7 * count,
    }  # fmt: skip
    found = []
    for quantity, value in quantities.items():
        value = flags.get(quantity, {}).get(model, value)
        interval = {"ci_low": 0.98 * value, "ci_high": 1.02 * value}
        one = 0 if quantity in ("live_latents_10", "hill_1") else None
        found.append(base | interval | {"quantity": quantity, "value": value, "seed": one})
    return found


def summary(
    packing_shift: Outcome,
    loss_shift: Outcome,
    *,
    preview: bool = False,
    **how: Any,
) -> dict[str, Any]:
    """`summary.json` of such a study, made by the study's own code."""
    known = facts(loss_shift)
    config = StudyConfig(
        preset="referee", preview=preview, arm="constant_width", models=tuple(names()),
        d_sae_per_d_model=(8,),
    )  # fmt: skip
    made = summarise(tidy(pd.DataFrame(rows(known, packing_shift, **how)), known), known, config)
    made |= {"command": "interp study referee --out runs/referee", "wall_time_seconds": 21_600.0}
    return made | {"headline": headline(made)}


def nothing(lever: str, value: float) -> float:
    return 0.0


def decay_packs(lever: str, value: float) -> float:
    """Negative decay of the rows packs more, as the MIT study has it; so do more tokens."""
    if lever == "row_decay":
        return -9.0 * (value - 0.1)
    return 4.0 * float(np.log2(value / BASE["tokens"])) if lever == "tokens" else 0.0


def loss_follows(lever: str, value: float) -> float:
    """Loss falls where `decay_packs` says that packing rises, and rises with strong decay."""
    extra = 8.0 * abs(value - 0.1) if lever == "matrix_decay" else 0.0
    return -1.5 * decay_packs(lever, value) + extra


def loss_alone(lever: str, value: float) -> float:
    """Loss moves with tokens and data, whatever packing does."""
    scale = {"tokens": 12.0, "projects": 5.0}.get(lever, 0.0)
    return -scale * float(np.log2(value / BASE[lever])) if scale else 0.0


def write_run(folder: Path, data: dict[str, Any]) -> Path:
    """A finished run folder."""
    return report_run.write_run(folder, data)
