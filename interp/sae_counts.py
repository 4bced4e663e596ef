"""What one SAE alone says of a layer: the counts of its own latents. For SAEs that nobody repeated.

A published dictionary has no other seeds, so nothing tells which of its latents another training
would find again: there is no reproducible count, and no untrained twin's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp.capture import capture
from interp.chao import chao2_latents, incidence_of
from interp.documents import DocumentTotals
from interp.errors import UserError
from interp.estimate import Estimate, InsufficientData
from interp.geometry import mean_squared_overlap
from interp.models import Model
from interp.packing import hill, live_latents
from interp.tokens import TokenBlocks
from saes.metrics import evaluate
from saes.sae import SAE

TAUS = (1, 10, 100)
ORDERS = (0, 1, 2)
REASON = (
    "one dictionary, no other seeds: its latents are counted, and nothing tells which of them "
    "another training would find again, nor what an untrained network would give"
)
BATCH = 8_192


@dataclass(frozen=True)
class SAECounts:
    """One dictionary on held-out text, raw stream."""

    d_model: int
    d_sae: int
    k: int | None
    """None under a threshold."""
    fvu: float
    l0: float
    dead_fraction: float
    n_tokens: int
    n_documents: int
    estimates: tuple[Estimate, ...]
    overlap: float | None
    """Mean squared cosine between the decoder rows of live latents; isotropic rows have 1/d_model.
    None below two."""
    coverage: float | None
    """Of Chao2: share of the meetings of a latent with a document that are not its only one."""
    reason: str = REASON
    """Why there is no count of features."""

    def to_json(self) -> dict[str, Any]:
        """Plain types for `json.dumps(..., allow_nan=False)`."""
        return asdict(self) | {"d_sae_per_dim": self.d_sae / self.d_model}


def held_out_rows(
    model: Model, tokens: TokenBlocks, hook_point: str
) -> tuple[Float[Tensor, "token d_model"], Int[Tensor, " token"]]:
    """Rows of the raw stream, and the document of each: the same for every SAE that reads there."""
    rows, docs = [], []
    for chunk in capture(model, tokens, hook_point):
        rows.append(next(iter(chunk.acts.values()))[chunk.keep].float())
        docs.append(chunk.doc_ids[chunk.keep])
    return torch.cat(rows), torch.cat(docs)


def count_sae(
    sae: SAE,
    x: Float[Tensor, "token d_model"],
    doc_ids: Int[Tensor, " token"],
    *,
    centred: bool = False,
    seed: int = 0,
) -> SAECounts:
    """FVU, L0 and the estimators of SCIENCE section 4 that one dictionary allows (a, b, c, f).

    centred: take each row's mean over dimensions out first, for SAEs that were trained so. The
    bootstrap is over documents. Raises UserError where the width is another than the SAE's.
    """
    if x.shape[1] != sae.d_in:
        raise UserError(
            f"the SAE reads rows of {sae.d_in} and the model's have {x.shape[1]}; give the model "
            "that it was trained on"
        )
    if centred:
        x = x - x.mean(dim=1, keepdim=True)
    metrics = evaluate(sae, x.split(BATCH))
    totals = DocumentTotals.of(sae.encode(x), doc_ids, sae.d_sae)
    norms = sae.W_dec.norm(dim=1).numpy()
    generator = torch.Generator().manual_seed(seed)
    d_in, k = sae.d_in, sae.k
    coverage: float | None = None

    def chao() -> Estimate:
        nonlocal coverage
        found, coverage = chao2_latents(incidence_of(totals), d_in=d_in, k=k)
        return found

    makers: list[Callable[[], Estimate]] = [
        *(
            lambda tau=tau: live_latents(totals, tau, d_in=d_in, k=k, generator=generator)
            for tau in TAUS
        ),
        *(lambda q=q: hill(q, totals, norms, d_in=d_in, k=k, generator=generator) for q in ORDERS),
        chao,
    ]
    live = sae.W_dec[torch.from_numpy(totals.live())]
    return SAECounts(
        d_model=sae.d_in,
        d_sae=sae.d_sae,
        k=sae.k or None,
        fvu=metrics.fvu,
        l0=metrics.l0,
        dead_fraction=metrics.dead_fraction,
        n_tokens=metrics.n_tokens,
        n_documents=len(totals.n_tokens),
        estimates=tuple(
            replace(e, k=sae.k or None).with_training(fvu=metrics.fvu) for e in _made(makers)
        ),
        overlap=mean_squared_overlap(live) if len(live) > 1 else None,
        coverage=coverage,
    )


def _made(makers: list[Callable[[], Estimate]]) -> Iterator[Estimate]:
    """Each estimate, or what can be said of one that was refused."""
    for make in makers:
        try:
            yield make()
        except InsufficientData as refusal:
            yield refusal.partial
