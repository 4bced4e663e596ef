"""What trained SAEs do on held-out documents: rows of reconstruction, counts and spliced loss."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from interp.config import StudyConfig
from interp.contextual import ContextualMeans
from interp.estimation import one_seed_estimates
from interp.held_out import HeldOut
from interp.models import Model
from interp.packing import COUNT_SLACK_PER_DIM, converged
from interp.splice import ce_loss_recovered
from interp.spot_counts import Row, count_only, counts_of, estimate_row, rows_of
from interp.spots import Spot
from interp.tokens import TokenBlocks
from saes.latent_set import LatentSet
from saes.metrics import evaluate
from saes.sae import SAE, SparseActs

FVU_TOLERANCE = 0.02
"""FVU counts as matched when the main SAEs' mean is within this of the target."""


def pilot_rows(pilot: Mapping[str, Any]) -> list[Row]:
    """FVU of each pilot, and of those that confirm k."""
    return [
        {"quantity": "fvu", "value": fvu, "k": k, "seed": 0, "role": role}
        for role, found in (("pilot", pilot), ("confirming", pilot.get("confirmed")))
        if found
        for k, fvu in zip(found["ks"], found["fvus"], strict=True)
    ]


def sae_rows(
    main: Sequence[SAE],
    half: Sequence[SAE] | None,
    held: HeldOut,
    config: StudyConfig,
    *,
    k: int,
    k_reached: bool,
    n_tokens: int,
    strictness: bool = False,
) -> list[Row]:
    """Everything about one spot's seeds; `half` are the same seeds on half the tokens.

    SAEs are run where they and `held` are. What is counted is counted on the CPU.

    k: what they were trained with; SAEs that carry a threshold have no k of their own. k_reached:
    whether the pilots found a k that reaches the target FVU. n_tokens: of training, of each main
    SAE. strictness: whether to count under looser and stricter matching too.
    """
    counted = replace(held, x=held.x.cpu())
    whole = _run(main, held, k, "main")
    counts = counts_of(whole.latents, counted, k, config)
    of_count = rows_of(counts, whole.latents, counted, k, config, strictness=strictness)
    matched = k_reached and abs(whole.fvu - config.target_fvu) <= FVU_TOLERANCE
    facts: dict[str, float] = {
        "fvu_mean": whole.fvu,
        "fvu_matched": float(matched),
        "tokens_per_latent": n_tokens / main[0].d_sae,
        "dropped_fraction": held.dropped_fraction,
        "held_out_tokens": float(len(held.x)),
    }
    rows = whole.rows + [row | {"k": k, "role": "main", "seed": None} for row in of_count]
    rows += [
        estimate_row(e, k=k, role="main", seed=0)
        for e in one_seed_estimates(
            main[0].to("cpu"), whole.codes[0], counted.doc_ids, seed=config.seed
        )
    ]
    if half is not None:
        earlier = _run(half, held, k, "half")
        rows += earlier.rows
        for count in counts:
            value = count_only(count, earlier.latents, counted, k, config)
            rows.append(
                {"quantity": count.name, "value": value, "k": k, "role": "half", "seed": None}
            )
            slack = COUNT_SLACK_PER_DIM * main[0].d_in
            now = count.estimate.value or 0.0
            steady = converged(value, now, earlier.fvu, whole.fvu, count_slack=slack)
            facts[f"converged{count.suffix}"] = float(steady)
    return rows + [
        {"quantity": q, "value": v, "k": k, "role": "main", "seed": None} for q, v in facts.items()
    ]


def splice_rows(
    model: Model,
    blocks: TokenBlocks,
    spot: Spot,
    means: ContextualMeans | None,
    sae: SAE,
    *,
    k: int,
) -> list[Row]:
    """CE loss recovered of one SAE, with the three losses it is made of.

    On the contextual stream the means are put back, after the SAE as after the ablation: only the
    rest is the dictionary's to recover.
    """

    def reconstruct(x: Tensor, token_ids: Tensor, positions: Tensor) -> Tensor:
        if spot.about == "all":
            return sae(x)
        assert means is not None
        residual = means.residual(x, token_ids, positions)
        return x - residual + sae(residual)

    def means_alone(x: Tensor, token_ids: Tensor, positions: Tensor) -> Tensor:
        assert means is not None
        return x - means.residual(x, token_ids, positions)

    contextual = spot.about == "contextual"
    result = ce_loss_recovered(
        model,
        blocks,
        spot.hook_point,
        reconstruct,
        ablation=means_alone if contextual else "mean",
    )
    names = ("ce_loss_clean", "ce_loss_sae", "ce_loss_ablated", "ce_loss_recovered")
    how = "token and position means alone" if contextual else f"{result.ablation} ablation"
    notes = {"ce_loss_ablated": how}
    place = {"k": k, "seed": 0, "role": "main"}
    return [
        {"quantity": n, "value": getattr(result, n), "note": notes.get(n), **place} for n in names
    ]


class _Run(NamedTuple):
    """SAEs of one spot, one per seed, on held-out rows; on the CPU whatever they ran on."""

    rows: list[Row]
    """Their reconstruction, by seed."""
    fvu: float
    """Mean over the seeds."""
    codes: list[SparseActs]
    latents: list[LatentSet]


def _run(group: Sequence[SAE], held: HeldOut, k: int, role: str) -> _Run:
    results = [evaluate(sae, [held.x]) for sae in group]
    rows = [
        {"quantity": q, "value": getattr(result, q), "k": k, "seed": seed, "role": role}
        for seed, result in enumerate(results)
        for q in ("fvu", "l0", "dead_fraction")
    ]
    codes = [sae.encode(held.x).to("cpu") for sae in group]
    latents = [LatentSet.from_acts(s.W_dec.cpu(), c) for s, c in zip(group, codes, strict=True)]
    return _Run(rows, float(np.mean([r.fvu for r in results])), codes, latents)
