"""SAEs of several seeds and held-out activations -> every estimate they support."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp.errors import UserError
from interp.estimate import Estimate, Estimates, InsufficientData
from interp.packing import DocumentTotals, hill, live_latents, reproducible_estimate
from saes.latent_set import LatentSet
from saes.metrics import evaluate
from saes.sae import SAE, SparseActs


def estimate(
    saes: Sequence[SAE],
    acts: Float[Tensor, "token d_in"],
    doc_ids: Int[Tensor, " token"] | None = None,
    *,
    seed: int = 0,
) -> list[Estimate]:
    """Features-per-dimension estimates of one layer.

    saes: one per seed, of the same shape; acts: held-out rows of the stream they were trained on;
    doc_ids: the document of each row (None: rows stand for themselves, in 64 runs).
    `reproducible` (S_>=2 over the seeds) comes first where there are two or more; then
    `live_latents_10` and `hill_1` of the first. An estimate that cannot be made carries a reason
    instead of a value. Raises UserError without SAEs or where shapes disagree.
    """
    shapes = {(s.d_in, s.d_sae, s.k) for s in saes}
    if len(shapes) != 1:
        raise UserError(
            f"estimate needs SAEs of one shape, got (d_in, d_sae, k) {sorted(shapes)}; "
            "pass the seeds of one layer and size"
        )
    if acts.ndim != 2 or acts.shape[1] != saes[0].d_in:
        raise UserError(
            f"activations have shape {tuple(acts.shape)} but the SAEs read d_in {saes[0].d_in}; "
            "pass [token, d_in] rows of their hook point"
        )
    if doc_ids is None:
        doc_ids = torch.arange(len(acts)) * 64 // max(len(acts), 1)
    codes = [s.encode(acts) for s in saes]
    fvu = sum(evaluate(s, [acts]).fvu for s in saes) / len(saes)
    found = []
    if len(saes) > 1:
        latents = [LatentSet.from_acts(s.W_dec, c) for s, c in zip(saes, codes, strict=True)]
        generator = torch.Generator().manual_seed(seed)
        try:
            found.append(
                reproducible_estimate(latents, doc_ids, acts, generator=generator).estimate
            )
        except InsufficientData as refusal:
            found.append(refusal.partial)
    found += one_seed_estimates(saes[0], codes[0], doc_ids, seed=seed)
    return Estimates(e.with_training(fvu=fvu) for e in found)


def one_seed_estimates(
    sae: SAE, codes: SparseActs, doc_ids: Int[Tensor, " token"], *, seed: int = 0
) -> list[Estimate]:
    """`live_latents_10` and `hill_1` (mass) of one SAE on held-out tokens."""
    generator = torch.Generator().manual_seed(seed)
    totals = DocumentTotals.of(codes, doc_ids, sae.d_sae)
    norms = sae.W_dec.norm(dim=1).numpy()
    found = []
    for make in (
        lambda: live_latents(totals, d_in=sae.d_in, k=sae.k, generator=generator),
        lambda: hill(1, totals, norms, d_in=sae.d_in, k=sae.k, generator=generator),
    ):
        try:
            found.append(make())
        except InsufficientData as refusal:
            found.append(refusal.partial)
    return found
