"""Reconstructions spliced into the forward pass: how much of the loss they recover."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp.capture import Chunk, capture, run_blocks
from interp.errors import UserError
from interp.hook_points import HookPoint, resolve
from interp.models import Model
from interp.tokens import TokenBlocks

Reconstruct = Callable[
    [
        Float[Tensor, "token d_model"],
        Int[Tensor, " token"],
        Int[Tensor, " token"],
    ],
    Float[Tensor, "token d_model"],
]
"""(acts, token_ids, positions) -> acts as a dictionary rebuilds them, on the model's device."""


MIN_GAP_NATS = 0.02


@dataclass(frozen=True)
class SpliceResult:
    """Token-weighted mean losses in nats, and what of the gap to the ablation is recovered.

    ce_loss_recovered = (ablated - sae) / (ablated - clean): 1 is perfect, 0 no better than the
    ablation; None where the ablation costs next to nothing (under 0.02 nats, or helps, as in
    untrained networks): a share of noise.
    """

    ce_loss_clean: float
    ce_loss_sae: float
    ce_loss_ablated: float
    ce_loss_recovered: float | None
    ablation: Literal["mean", "zero", "given"]
    n_tokens: int
    """Targets that the means run over."""


def ce_loss_recovered(
    model: Model,
    tokens: TokenBlocks,
    hook_point: str | HookPoint,
    reconstruct: Reconstruct,
    *,
    ablation: Literal["mean", "zero"] | Reconstruct = "mean",
    batch_size: int = 32,
    chunk_tokens: int = 32_768,
) -> SpliceResult:
    """Loss with the stream at `hook_point` left alone, reconstructed, and ablated.

    Only rows that an SAE sees are replaced, in both runs: position 0, the token before a document
    and sink tokens pass as they are, because destroying those breaks the model whatever the
    dictionary. The mean ablation puts the mean of the replaced rows of all `tokens` in their place;
    a function gives the ablated rows itself, for a dictionary that is not responsible for all of
    the stream.
    """
    if not callable(ablation) and ablation not in ("mean", "zero"):
        raise UserError(f"unknown ablation {ablation!r}; use mean or zero")
    (point,) = resolve(hook_point, model.hf)
    name = str(point)

    def chunks(with_loss: bool) -> Iterator[Chunk]:
        return capture(
            model,
            tokens,
            point,
            with_loss=with_loss,
            batch_size=batch_size,
            chunk_tokens=chunk_tokens,
        )

    instead = torch.zeros(model.d_model, dtype=torch.float64)
    device = model.device
    if ablation == "mean":
        n_rows = 0
        for chunk in chunks(with_loss=False):
            instead += chunk.acts[name][chunk.keep].sum(0, dtype=torch.float64)
            n_rows += int(chunk.keep.sum())
        instead /= max(n_rows, 1)
    instead = instead.to(device)

    clean = sae = ablated = 0.0
    n_tokens = 0
    for chunk in chunks(with_loss=True):
        # Chunks are on the CPU; from here to the losses all is where the model is.
        acts, keep = chunk.acts[name].to(device), chunk.keep.to(device)
        ids, positions = (x.to(device)[keep].long() for x in (chunk.token_ids, chunk.positions))
        rebuilt = acts.clone()
        rebuilt[keep] = reconstruct(acts[keep], ids, positions).to(acts.dtype)
        emptied = acts.clone()
        emptied[keep] = (
            ablation(acts[keep], ids, positions) if callable(ablation) else instead
        ).to(acts.dtype)
        assert chunk.nll is not None
        clean += _sum(chunk.nll[chunk.is_target])
        sae += _sum(_spliced_nll(model, chunk, point, rebuilt, batch_size))
        ablated += _sum(_spliced_nll(model, chunk, point, emptied, batch_size))
        n_tokens += int(chunk.is_target.sum())
    if n_tokens == 0:
        raise UserError("the text has no token to predict; use a longer text")
    clean, sae, ablated = clean / n_tokens, sae / n_tokens, ablated / n_tokens
    gap = ablated - clean
    return SpliceResult(
        ce_loss_clean=clean,
        ce_loss_sae=sae,
        ce_loss_ablated=ablated,
        ce_loss_recovered=(ablated - sae) / gap if gap >= MIN_GAP_NATS else None,
        ablation="given" if callable(ablation) else ablation,
        n_tokens=n_tokens,
    )


def _spliced_nll(
    model: Model,
    chunk: Chunk,
    point: HookPoint,
    acts: Float[Tensor, "token d_model"],
    batch_size: int,
) -> Float[Tensor, " target"]:
    """Losses of the chunk's targets with `acts` in place of the stream at `point`."""
    ids = chunk.token_ids.view(-1, chunk.n_ctx)
    rows_per_batch = batch_size * chunk.n_ctx
    pieces = []
    for i, batch in enumerate(ids.split(batch_size)):
        rows = acts[i * rows_per_batch :][: batch.numel()]

        def put(value: Tensor, rows: Tensor = rows) -> Tensor:
            return rows.to(value)

        nll = run_blocks(model, batch, {point: put}, with_loss=True)
        assert nll is not None
        pieces.append(nll)
    return torch.cat(pieces).flatten()[chunk.is_target]


def _sum(nll: Tensor) -> float:
    return float(nll.sum(dtype=torch.float64))
