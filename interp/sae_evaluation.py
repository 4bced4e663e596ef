"""What a trained SAE does to the model it was trained on: reconstruction, loss and distribution."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch import Tensor

from interp.capture import capture
from interp.contextual import ContextualMeans
from interp.divergence import kl_divergence
from interp.errors import UserError
from interp.hook_points import HookPoint
from interp.models import Model
from interp.sae_means import means_for, refuse_control, stream_of
from interp.splice import ce_loss_recovered
from interp.tokens import TokenBlocks
from saes.format import load
from saes.metrics import evaluate
from saes.sae import SAE


def judged(
    path: Path, model: Model, *, hook_point: str | None = None, means: Path | None = None
) -> tuple[SAE, HookPoint, ContextualMeans | None]:
    """The SAE, where it reads, and what was taken off there. Raises what `evaluate_sae` does."""
    refuse_control(path)
    sae = load(path)
    where, contextual = stream_of(path, hook_point)
    if means is not None and not contextual:
        raise UserError(f"{path}: reads the raw stream, no means were taken off; leave out --means")
    if sae.d_in != model.d_model:
        raise UserError(
            f"{path}: d_in {sae.d_in} but {model.name} has d_model {model.d_model}; "
            "give the model that it was trained on"
        )
    return sae, where, means_for(path, model, where, means) if contextual else None


def evaluate_sae(
    path: Path,
    model: Model,
    tokens: TokenBlocks,
    *,
    hook_point: str | None = None,
    means: Path | None = None,
) -> dict[str, Any]:
    """One row: FVU, L0, dead fraction, CE loss recovered with both ablations, KL.

    `hook_point`: where the SAE reads and writes; None: what its file says. `means`: the file of
    what was taken off for an SAE of the contextual stream; None: where a study or `interp push` put
    it. They are put back after such an SAE, its FVU is of the rest, and the row has what the means
    alone lose too. Raises UserError where neither says the hook point, for an SAE of another width
    than the model's, of a control, or whose training diverged, and for means that are missing, of
    another model, or of an SAE that reads the raw stream.
    """
    sae, where, taken_off = judged(path, model, hook_point=hook_point, means=means)
    sae, point = sae.to(model.device), str(where)
    contextual = taken_off is not None

    def stream(x: Tensor, token_ids: Tensor, positions: Tensor) -> Tensor:
        return x if taken_off is None else taken_off.residual(x, token_ids, positions)

    def rows() -> Iterator[Tensor]:
        for chunk in capture(model, tokens, point):
            x, ids, positions = (
                y[chunk.keep].to(model.device)
                for y in (next(iter(chunk.acts.values())), chunk.token_ids, chunk.positions)
            )
            yield stream(x, ids, positions)

    def reconstruct(x: Tensor, token_ids: Tensor, positions: Tensor) -> Tensor:
        read = stream(x, token_ids, positions)
        return x - read + sae(read)

    def means_alone(x: Tensor, token_ids: Tensor, positions: Tensor) -> Tensor:
        return x - stream(x, token_ids, positions)

    metrics = evaluate(sae, rows())
    if not math.isfinite(metrics.fvu):
        raise UserError(f"{path}: what it reconstructs is not finite; train it again")
    spliced = {
        kind: ce_loss_recovered(model, tokens, point, reconstruct, ablation=kind)
        for kind in ("zero", "mean")
    }
    zero, mean = spliced["zero"], spliced["mean"]
    alone = {}
    if contextual:
        rest = ce_loss_recovered(model, tokens, point, reconstruct, ablation=means_alone)
        alone = {
            "ce_loss_means_alone": rest.ce_loss_ablated,
            "ce_loss_recovered_means_alone": rest.ce_loss_recovered,
        }
    return {
        "path": str(path),
        "model": model.name,
        "hook_point": point,
        "stream": "contextual" if contextual else "all",
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
        **alone,
        "kl_nats": kl_divergence(model, tokens, point, reconstruct),
        "n_tokens": zero.n_tokens,
    }


def _seed(sae: SAE) -> int | None:
    return sae.cfg.seed if sae.cfg else None
