"""A synthetic finished run for the tests of the report: realistic numbers, none measured."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml

WIDTHS = (32, 48, 64, 96, 128, 160, 192, 256)
TWIN_WIDTHS = (32, 64, 128, 256)
UNCONVERGED, CENSORED = (192,), (256,)
CONTEXTUAL = dict(zip(WIDTHS, (1.83, 2.04, 2.31, 2.42, 2.58, 2.61, 2.33, 2.86), strict=True))
TWIN = {32: 0.118, 64: 0.083, 128: 0.071, 256: 0.066}


def loss(width: int) -> float:
    """Nats per token by L = 8.4 / m^0.62 + 1.95, with a fixed wobble."""
    return 8.4 / width**0.62 + 1.95 + 0.012 * np.sin(width)


def hook(layer: int) -> str:
    return f"blocks.{layer}.hook_resid_post"


def model_record(width: int) -> dict[str, Any]:
    nats = loss(width)
    return {
        "name": f"ladder/d{width:03d}",
        "family": "ladder",
        "arm": "width",
        "d_model": width,
        "n_layers": 4,
        "n_params": 48 * width**2 + 1280 * width,
        "train_tokens": 25_000_000,
        "loss_nats_per_token": nats,
        "loss_nats_per_byte": nats / 3.1,
        "loss_ci_nats_per_token": [nats - 0.028, nats + 0.031],
    }


def packing_record(width: int, layer: int = 1, about: str = "contextual") -> dict[str, Any]:
    per_dim = CONTEXTUAL[width] * (1 + 0.1 * (layer - 1))
    if about == "all":
        per_dim = 1.9 * per_dim
    unconverged, censored = width in UNCONVERGED, width in CENSORED and layer == 1
    controls = []
    if width in TWIN_WIDTHS and layer == 1:
        twin = TWIN[width] if about == "contextual" else 1.15 * per_dim
        controls = [
            {
                "name": "random_init",
                "value": twin * width,
                "ci_low": 0.6 * twin * width,
                "ci_high": 1.5 * twin * width,
                "per_dim": twin,
                "fvu": 0.341,
                "fvu_matched": False,
                "converged": width != 64,
            }
        ]
    reason = "undertrained" if unconverged else "censored at D" if censored else None
    looked_at: dict[str, Any] = {}
    if layer == 1:
        looked_at["token_identity"] = token_identity(about)
        for control in controls:
            control["token_identity"] = token_identity(about, "random_init")
    if layer == 1 and about == "contextual":
        looked_at["strictness"] = strictness(per_dim * width, 0.74)
        for control in controls:
            control["strictness"] = strictness(TWIN[width] * width, 0.7)
    return {
        **looked_at,
        "model": f"ladder/d{width:03d}",
        "layer": layer,
        "layer_fraction": (layer + 1) / 4,
        "hook_point": hook(layer),
        "estimator": "reproducible",
        "about": about,
        "value": per_dim * width,
        "ci_low": 0.93 * per_dim * width,
        "ci_high": None if censored else 1.06 * per_dim * width,
        "per_dim": per_dim,
        "controls": controls,
        "n_tokens": 200_000,
        "n_seeds": 5,
        "d_sae": 8 * width,
        "k": 8,
        "fvu": 0.142 + width / 1e4,
        "fvu_matched": not unconverged,
        "tokens_per_latent": 12_000 if not unconverged else 3_100,
        "converged": not unconverged,
        "identified": not (unconverged or censored),
        "censored": censored,
        "reason": reason,
        "calibration": "uncalibrated",
    }


def token_identity(about: str, control: str = "trained") -> dict[str, Any]:
    """Raw classes follow the token, those of the twin its position; contextual twins have none."""
    raw, twin = about == "all", control == "random_init"
    if twin and not raw:
        return {"n_classes": 0, "all_bits": 8.3, "reason": "no reproducible class"}
    values = {
        "relative": 0.4 if raw else 0.85,
        "detectors": 0.1 if raw else 0.0,
        "explained": 0.3 if twin else 0.7 if raw else 0.2,
        "explained_by_position": 0.5 if twin else 0.01,
    }
    ends = {name: {"value": v, "ci_low": 0.9 * v, "ci_high": 1.1 * v} for name, v in values.items()}
    return {"n_classes": 40, "bits": 4.0 if raw else 7.0, "all_bits": 8.3, **ends, "reason": None}


def strictness(value: float, calibrated: float) -> list[dict[str, Any]]:
    """A count that falls with either threshold; chance matches at the loosest cosine alone."""
    settings = [("cosine", at) for at in (0.6, 0.7, calibrated, 0.8, 0.9)]
    settings += [("correlation", at) for at in (0.3, 0.4, 0.5, 0.6, 0.7)]
    found = []
    for by, at in dict.fromkeys(settings):
        headline = at == (calibrated if by == "cosine" else 0.5)
        scale = 1.0 if headline else 1.8 - at if by == "cosine" else 1.5 - at
        ends = {
            "value": value * scale,
            "ci_low": 0.9 * value * scale,
            "ci_high": 1.1 * value * scale,
        }
        null = 6.0 if at == 0.6 and by == "cosine" else 0.0
        found.append({"by": by, "at": at, "headline": headline, **ends, "null": null})
    return found


def overlaps() -> dict[str, Any]:
    """Dictionaries a little above random rows, twins closer to them, heads far above."""
    ends = {"value": 1.0, "ci_low": 0.98, "ci_high": 1.02}
    dictionaries = [
        {
            "model": f"ladder/d{width:03d}",
            "control": control,
            "layer": 1,
            "hook_point": hook(1),
            "about": "contextual",
            "headline": True,
            "d_model": width,
            "d_sae": multiple * width,
            "k": 8,
            "n_seeds": 5,
            "overlap": {key: f * by / width for key, by in ends.items()},
            "overlap_centred": {key: 0.95 * f * by / width for key, by in ends.items()},
            "capacity": {"value": 0.7 * width, "ci_low": 0.69 * width, "ci_high": 0.71 * width},
            "welch_floor": (multiple - 1) / (multiple * width - 1),
            "random_mean": 1 / width,
        }
        for width in WIDTHS
        for multiple, control, f in (
            (8, "trained", 1.4), (16, "trained", 1.3), (8, "random_init", 1.1),
        )
        if control == "trained" or width in TWIN_WIDTHS
    ]  # fmt: skip
    heads = [
        {
            "model": f"ladder/d{width:03d}",
            "n": 1024,
            "d_model": width,
            "mean_squared_overlap": 3 / width,
            "mean_squared_overlap_centred": 1.6 / width,
            "mean_squared_overlap_top_removed": 1.5 / width,
            "welch_floor": (1024 - width) / (width * 1023),
            "random_mean": 1 / width,
            "tied": True,
        }
        for width in WIDTHS[1:]
    ]
    gone = {"model": "ladder/d032", "reason": "ladder/d032: the checkpoint has no head"}
    return {"dictionaries": dictionaries, "heads": [gone, *heads]}


def summary() -> dict[str, Any]:
    packing = [packing_record(w, layer) for w in WIDTHS for layer in (0, 1, 2, 3)]
    packing += [packing_record(w, 1, "all") for w in WIDTHS]
    return {
        "preset": "full",
        "preview": False,
        "headline": "",
        "primary": {
            "estimator": "reproducible",
            "about": "contextual",
            "layer_fraction": 0.5,
            "d_sae_per_d_model": 8,
            "k_rule": "smallest k that reaches FVU 0.15, at most d_model / 4",
        },
        "models": [model_record(w) for w in WIDTHS],
        "packing": packing,
        "exponent": {
            "beta": 1.19,
            "ci_low": 1.11,
            "ci_high": 1.27,
            "twin_beta": 0.72,
            "n_models": 7,
            "layer_fraction": 0.5,
        },
        "correlation": [
            {
                "arm": "width",
                "estimator": "reproducible",
                "layer_fraction": 0.5,
                "n_models": 7,
                "spearman": -0.964,
                "p_exact": 0.0028,
                "ci_low": -1.0,
                "ci_high": -0.78,
                "partial_spearman_given_d_model": None,
                "reason": "loss is a function of d_model in this sample",
            }
        ],
        "scaling": {
            "A": {"value": 8.31, "ci_low": 6.9, "ci_high": 10.4},
            "alpha": {"value": 0.61, "ci_low": 0.49, "ci_high": 0.74},
            "B": {"value": 1.94, "ci_low": 1.78, "ci_high": 2.06},
            "identified": True,
            "caption": "alpha at fixed tokens: every width saw the same 25M tokens, so width, "
            "tokens per parameter and optimization change together.",
        },
        "overlap": overlaps(),
        "warnings": [
            "uncalibrated: the estimators were not checked against known feature counts",
            "the token hash of deps differs from the committed one",
        ],
        "command": "interp study full --out runs/full",
        "wall_time_seconds": 5412.7,
    }


def results(data: dict[str, Any]) -> pd.DataFrame:
    """Tidy rows as the study writes them, for the primary layer, two seeds and the twins."""
    rows = []
    for record in data["models"]:
        width = record["d_model"]
        for control in ("trained", "random_init"):
            if control == "random_init" and width not in TWIN_WIDTHS:
                continue
            base = {
                "model": record["name"],
                "family": record["family"],
                "arm": record["arm"],
                "control": control,
                "d_model": width,
                "layer": 1,
                "hook_point": hook(1),
            }
            clean = record["loss_nats_per_token"] if control == "trained" else 6.96
            for seed in (0, 1):
                one = {**base, "about": "contextual", "d_sae": 8 * width, "k": 8, "seed": seed}
                values = {
                    "fvu": 0.14 + 0.01 * seed,
                    "l0": 7.9,
                    "dead_fraction": 0.031,
                    "ce_loss_clean": clean,
                    "ce_loss_sae": clean + 0.11,
                    "ce_loss_ablated": clean + 1.9,
                    "ce_loss_recovered": 0.942 if control == "trained" else float("nan"),
                }
                rows += [
                    {**one, "role": "main", "quantity": q, "value": v} for q, v in values.items()
                ]
                rows[-2]["note"] = "mean ablation"
                rows.append({**one, "role": "half", "quantity": "fvu", "value": 0.9})
            rows.append(
                {**base, "quantity": "loss_nats_per_token", "value": clean, "ci_low": clean - 0.03}
            )
    whole = {"d_model": "Int64", "layer": "Int64", "d_sae": "Int64", "k": "Int64", "seed": "Int64"}
    return pd.DataFrame(rows).astype(whole)


MANIFEST = {
    "versions": {"superscope": "0.1.0", "torch": "2.13.0", "python": "3.11.9"},
    "sha256": {"ladder/d032": "9f2c" * 16, "tokens": "01ab" * 16},
    "seeds": [0, 1, 2, 3, 4],
    "threads": 2,
    "cpu": "x86_64, avx512",
    "peak_memory_bytes": 1_620_000_000,
    "wall_time_seconds": 5412.7,
}
CONFIG = {"models": [f"ladder/d{w:03d}" for w in WIDTHS], "n_seeds": 5}


def write_run(folder: Path, data: dict[str, Any] | None = None, *, complete: bool = True) -> Path:
    """A finished run folder; with `complete=False` only `summary.json` is in it."""
    data = summary() if data is None else data
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "summary.json").write_text(json.dumps(data, allow_nan=False), "utf-8")
    if complete:
        results(data).to_parquet(folder / "results.parquet")
        (folder / "manifest.json").write_text(json.dumps(MANIFEST), "utf-8")
        (folder / "config.resolved.yaml").write_text(yaml.safe_dump(CONFIG), "utf-8")
    return folder
