"""The sae-lens folder of one SAE: cfg.json + sae_weights.safetensors, out and in.

`sae_lens.SAE.load_from_disk` reads what `save` writes; sae-lens itself is never imported here.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from saes.config import SAEConfig
from saes.dictionary import Dictionary, without_gate
from saes.durable import writing
from saes.errors import SAEError
from saes.sae import SAE

CONFIG_NAME = "cfg.json"
WEIGHTS_NAME = "sae_weights.safetensors"
OWN_KEY = "superscope"
"""Key of cfg.json's metadata that holds our configuration and training record."""
SAE_LENS_LAYOUT = "6.0.0"
"""The layout of cfg.json, by the first release that reads it; without it sae-lens takes an older
one and drops the metadata, the hook point among them."""
RULES: dict[str, tuple[str, ...]] = {
    "topk": ("b_enc",),
    "standard": ("b_enc",),
    "jumprelu": ("b_enc", "threshold"),
    "gated": ("b_gate", "b_mag", "r_mag"),
    "batchtopk": ("b_enc", "topk_threshold"),
    "matryoshka_batchtopk": ("b_enc", "topk_threshold"),
}
"""sae-lens architectures that `load` knows, and their tensors beside W_enc, W_dec and b_dec. The
last two are those of an unfinished training run; finished ones are saved as jumprelu."""


def save(sae: SAE, path: str | Path) -> None:
    """Write the folder `path`, replacing an SAE already there; never leaves a half-written one.

    Raises SAEError where `path` holds something other than an SAE, and where the disk is full.
    """
    path = Path(path)
    if path.exists() and not _is_replaceable(path):
        raise SAEError(f"{path} exists and is no SAE folder; give a new or empty folder")
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        fresh = Path(tempfile.mkdtemp(prefix=f".{path.name}-", dir=path.parent))
    try:
        with writing(path):
            _write(sae, fresh)
            if path.exists():
                retired = fresh.with_name(fresh.name + "-old")
                os.replace(path, retired)
                os.replace(fresh, path)
                shutil.rmtree(retired)
            else:
                os.replace(fresh, path)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def load(path: str | Path) -> SAE:
    """Read an SAE folder written by `save` or by sae-lens, trained or still in training there.

    sae-lens options that change the function are folded into the weights. Raises SAEError for a
    missing or damaged folder and for architectures or normalizations this project does not have.
    """
    path = Path(path)
    cfg, weights = _read(path)
    architecture = cfg.get("architecture")
    if architecture not in RULES:
        raise SAEError(
            f"{path}: architecture {architecture!r} is not supported; give one of {sorted(RULES)}"
        )
    for option in ("normalize_activations", "reshape_activations"):
        if cfg.get(option, "none") != "none":
            raise SAEError(f"{path}: {option} {cfg[option]!r} is not supported; fold it first")
    missing = {"W_enc", "W_dec", "b_dec", *RULES[architecture]} - weights.keys()
    if missing or (architecture == "topk" and not isinstance(cfg.get("k"), int)):
        raise SAEError(f"{path}: lacks {', '.join(sorted(missing)) or 'k'}; save the SAE again")
    W_enc, W_dec, b_enc, b_dec, threshold = _dictionary(architecture, weights)
    if cfg.get("rescale_acts_by_decoder_norm", False):
        norms = W_dec.norm(dim=1)
        W_enc, b_enc, W_dec = W_enc * norms, b_enc * norms, W_dec / norms[:, None]
    if not cfg.get("apply_b_dec_to_input", True):
        b_enc = b_enc + b_dec @ W_enc
    own = (cfg.get("metadata") or {}).get(OWN_KEY) or {}
    return SAE(
        W_enc,
        W_dec,
        b_enc,
        b_dec,
        k=cfg["k"] if threshold is None else 0,
        cfg=SAEConfig(**own["config"]) if own.get("config") else None,
        metadata=own.get("training"),
        threshold=threshold,
    )


def sae_folders(path: str | Path) -> list[Path]:
    """The SAE at `path`, or all below it. Raises SAEError where there is none.

    Hidden folders are passed over: one holds what a kill left half-saved, or checkpoints.
    """
    path = Path(path)
    found = sorted(
        config.parent
        for config in path.rglob(CONFIG_NAME)
        if not any(part.startswith(".") for part in config.relative_to(path).parts)
    )
    if not found:
        raise SAEError(f"{path}: no SAE there or below; give a folder with {CONFIG_NAME}")
    return found


def hook_name(path: str | Path) -> str | None:
    """The hook point that an SAE's file names, ours or sae-lens's; None where it names none."""
    cfg, _ = _read(Path(path))
    return (cfg.get("metadata") or {}).get("hook_name") or cfg.get("hook_name")


def _dictionary(architecture: str, weights: dict[str, Tensor]) -> Dictionary:
    """The weights in float32 with their rule; a threshold of zero is ReLU."""
    names = ("W_enc", "W_dec", "b_dec", *RULES[architecture])
    weights = {name: weights[name].float() for name in names}
    if architecture == "gated":
        return without_gate(**weights)
    b_enc = weights["b_enc"]
    threshold = weights.pop("topk_threshold", weights.pop("threshold", torch.zeros_like(b_enc)))
    is_topk = architecture == "topk"
    return Dictionary(**weights, threshold=None if is_topk else threshold.expand_as(b_enc).clone())


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    for name in (CONFIG_NAME, WEIGHTS_NAME):
        if not (path / name).is_file():
            raise SAEError(f"{path}: no {name} there; give a folder that holds one SAE")
    try:
        cfg = json.loads((path / CONFIG_NAME).read_text())
    except ValueError as error:
        raise SAEError(f"{path / CONFIG_NAME}: not JSON ({error}); save the SAE again") from None
    if not isinstance(cfg, dict):
        raise SAEError(f"{path / CONFIG_NAME}: holds no JSON object; save the SAE again")
    try:
        weights = load_file(path / WEIGHTS_NAME)
    except SafetensorError as error:
        raise SAEError(f"{path / WEIGHTS_NAME}: damaged ({error}); save the SAE again") from None
    return cfg, weights


def _write(sae: SAE, folder: Path) -> None:
    # mkdtemp makes private folders, and safetensors private files; results are meant to be shared.
    folder.chmod(0o755)
    weights = {
        # A copy: safetensors refuses tied weights, which share memory.
        name: getattr(sae, name).detach().cpu().contiguous().clone()
        for name in ("W_enc", "W_dec", "b_enc", "b_dec", "threshold")
        if getattr(sae, name) is not None
    }
    save_file(weights, folder / WEIGHTS_NAME)
    config = folder / CONFIG_NAME
    config.write_text(json.dumps(_sae_lens_config(sae), indent=2) + "\n")
    (folder / WEIGHTS_NAME).chmod(config.stat().st_mode)


def _sae_lens_config(sae: SAE) -> dict[str, Any]:
    config = sae.cfg.model_dump(mode="json") if sae.cfg else None
    is_topk = sae.threshold is None
    rule: dict[str, Any] = {"architecture": "jumprelu"}
    if is_topk:
        rule = {"architecture": "topk", "k": sae.k, "rescale_acts_by_decoder_norm": False}
    return rule | {
        "d_in": sae.d_in,
        "d_sae": sae.d_sae,
        "dtype": str(sae.W_enc.dtype).removeprefix("torch."),
        "device": "cpu",
        "apply_b_dec_to_input": True,
        "normalize_activations": "none",
        "reshape_activations": "none",
        "metadata": {
            "sae_lens_version": SAE_LENS_LAYOUT,
            "hook_name": sae.cfg.hook_point if sae.cfg else None,
            OWN_KEY: {"config": config, "training": sae.metadata},
        },
    }


def _is_replaceable(path: Path) -> bool:
    """An empty folder, or one that holds nothing but an SAE."""
    return path.is_dir() and {p.name for p in path.iterdir()} <= {CONFIG_NAME, WEIGHTS_NAME}
