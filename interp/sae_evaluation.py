"""What a trained SAE does to the model it was trained on: reconstruction, loss and distribution."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch import Tensor

from interp.capture import capture
from interp.divergence import kl_divergence
from interp.errors import UserError
from interp.models import Model
from interp.splice import ce_loss_recovered
from interp.tokens import TokenBlocks
from saes.format import hook_name, load
from saes.metrics import evaluate
from saes.sae import SAE


def evaluate_sae(
    path: Path, model: Model, tokens: TokenBlocks, *, hook_point: str | None = None
) -> dict[str, Any]:
    """One row: FVU, L0, dead fraction, CE loss recovered with both ablations, KL.

    `hook_point`: where the SAE reads and writes; None: what its file says. Raises UserError where
    neither says, and for an SAE of another width than the model's or whose training diverged.
    """
    sae = load(path).to(model.device)
    point = hook_point or hook_name(path)
    if point is None:
        raise UserError(f"{path}: says no hook point; give --hook-point")
    if sae.d_in != model.d_model:
        raise UserError(
            f"{path}: d_in {sae.d_in} but {model.name} has d_model {model.d_model}; "
            "give the model that it was trained on"
        )

    def rows() -> Iterator[Tensor]:
        for chunk in capture(model, tokens, point):
            yield next(iter(chunk.acts.values()))[chunk.keep].to(model.device)

    def reconstruct(x: Tensor, token_ids: Tensor, positions: Tensor) -> Tensor:
        return sae(x)

    metrics = evaluate(sae, rows())
    if not math.isfinite(metrics.fvu):
        raise UserError(f"{path}: what it reconstructs is not finite; train it again")
    spliced = {
        kind: ce_loss_recovered(model, tokens, point, reconstruct, ablation=kind)
        for kind in ("zero", "mean")
    }
    zero, mean = spliced["zero"], spliced["mean"]
    return {
        "path": str(path),
        "model": model.name,
        "hook_point": point,
        "d_in": sae.d_in,
        "d_sae": sae.d_sae,
        "k": sae.k or None,
        "seed": _seed(sae),
        "fvu": metrics.fvu,
        "l0": metrics.l0,
        "dead_fraction": metrics.dead_fraction,
        "ce_loss_clean": zero.ce_loss_clean,
        "ce_loss_sae": zero.ce_loss_sae,
        "ce_loss_zero_ablated": zero.ce_loss_ablated,
        "ce_loss_mean_ablated": mean.ce_loss_ablated,
        "ce_loss_recovered_zero": zero.ce_loss_recovered,
        "ce_loss_recovered_mean": mean.ce_loss_recovered,
        "kl_nats": kl_divergence(model, tokens, point, reconstruct),
        "n_tokens": zero.n_tokens,
    }


def _seed(sae: SAE) -> int | None:
    return sae.cfg.seed if sae.cfg else None
