"""What trained SAEs do on held-out documents: rows of reconstruction, counts and spliced loss."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from interp.config import StudyConfig
from interp.contextual import ContextualMeans
from interp.estimation import one_seed_estimates
from interp.held_out import HeldOut
from interp.models import Model
from interp.packing import (
    COUNT_SLACK_PER_DIM,
    Estimate,
    InsufficientData,
    Reproducibility,
    converged,
    reproducible_estimate,
)
from interp.splice import ce_loss_recovered
from interp.spots import Spot
from interp.strictness import by_strictness
from interp.token_identity import token_identity
from interp.tokens import TokenBlocks
from saes.latent_set import LatentSet
from saes.matching import null_reproducible, null_threshold, reproducible
from saes.metrics import evaluate
from saes.sae import SAE

FVU_TOLERANCE = 0.02
"""FVU counts as matched when the main SAEs' mean is within this of the target."""

Row = dict[str, Any]


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
    rows: list[Row] = []
    d_sae, d_in = main[0].d_sae, main[0].d_in
    counted = replace(held, x=held.x.cpu())
    fvus: dict[str, float] = {}
    counts: dict[str, float] = {}
    whole: Reproducibility | None = None
    for role, group in (("main", main), ("half", half)):
        if group is None:
            continue
        results = [evaluate(sae, [held.x]) for sae in group]
        for seed, result in enumerate(results):
            values = {"fvu": result.fvu, "l0": result.l0, "dead_fraction": result.dead_fraction}
            rows += [
                {"quantity": q, "value": v, "k": k, "seed": seed, "role": role}
                for q, v in values.items()
            ]
        fvus[role] = float(np.mean([r.fvu for r in results]))
        codes = [sae.encode(held.x).to("cpu") for sae in group]
        group = [sae.to("cpu") for sae in group]
        latents = [LatentSet.from_acts(s.W_dec, c) for s, c in zip(group, codes, strict=True)]
        common = {"k": k, "role": role, "seed": None}
        if role == "main":
            estimate, found = _count(latents, counted, k, config)
            whole = found
            counts[role] = estimate.value or 0.0
            rows.append(_estimate_row(estimate, **common))
            said: list[Row] = [{"quantity": "censored", "value": float(estimate.censored)}]
            if found is not None:
                said += _behind(found) + _token_rows(latents, found, counted, config.seed)
            if found is not None and strictness:
                said += _strictness_rows(latents, found, counted, k, config.seed)
            rows += [row | common for row in said]
            rows += [
                _estimate_row(e, k=k, role=role, seed=0)
                for e in one_seed_estimates(group[0], codes[0], counted.doc_ids, seed=config.seed)
            ]
        else:
            counts[role] = _count_only(latents, counted, k, config, whole)
            rows.append({"quantity": "reproducible", "value": counts[role], **common})
    matched = k_reached and abs(fvus["main"] - config.target_fvu) <= FVU_TOLERANCE
    facts: dict[str, float] = {
        "fvu_mean": fvus["main"],
        "fvu_matched": float(matched),
        "tokens_per_latent": n_tokens / d_sae,
        "dropped_fraction": held.dropped_fraction,
        "held_out_tokens": float(len(held.x)),
    }
    if half is not None:
        slack = COUNT_SLACK_PER_DIM * d_in
        steady = converged(
            counts["half"], counts["main"], fvus["half"], fvus["main"], count_slack=slack
        )
        facts["converged"] = float(steady)
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


def _count(
    latents: list[LatentSet], held: HeldOut, k: int, config: StudyConfig
) -> tuple[Estimate, Reproducibility | None]:
    """The count with its interval, and what it is made of; None where it was refused."""
    generator = torch.Generator().manual_seed(config.seed)
    try:
        found = reproducible_estimate(
            latents, held.doc_ids, held.x, k=k, min_seeds=config.min_seeds, generator=generator
        )
    except InsufficientData as refusal:
        return refusal.partial, None
    return found.estimate, found


def _behind(found: Reproducibility) -> list[Row]:
    """The figures beside the count."""
    facts = {
        "reproducible_before_null": float(found.count.s_ge[found.min_seeds]),
        "reproducible_null": float(found.null.s_ge[found.min_seeds]),
        "reproducible_all_seeds": float(found.count.s_ge[found.count.n_seeds]),
        "reproducible_se": found.se,
        "match_threshold": found.count.threshold,
        "match_correlation": found.count.min_correlation,
        "live_latents_mean": float(np.mean(found.count.n_live)),
        "merged_latents_mean": float(np.mean(found.count.n_merged)),
    }
    return [{"quantity": q, "value": v} for q, v in facts.items()]


def _token_rows(
    latents: list[LatentSet], found: Reproducibility, held: HeldOut, seed: int
) -> list[Row]:
    """Whether the classes that were counted only name the current token, or its position."""
    identity = token_identity(
        latents,
        found.classes,
        held.token_ids,
        held.positions,
        held.doc_ids,
        duplicate_cosine=found.count.duplicate_cosine,
        generator=torch.Generator().manual_seed(seed),
    )
    facts = {
        "token_entropy_classes": float(len(identity.bits)),
        "token_entropy_all_bits": identity.all_bits,
        "token_entropy_bits": float(np.median(identity.bits)) if len(identity.bits) else None,
    }
    return [
        *map(_estimate_row, (identity.relative, identity.detectors)),
        *map(_estimate_row, (identity.explained, identity.explained_by_place)),
        *({"quantity": q, "value": v} for q, v in facts.items()),
    ]


def _strictness_rows(
    latents: list[LatentSet], found: Reproducibility, held: HeldOut, k: int, seed: int
) -> list[Row]:
    """The count at other thresholds of both tests, and what chance gave there."""
    generator = torch.Generator().manual_seed(seed)
    rows = []
    how: dict[str, Any] = {"min_seeds": found.min_seeds, "k": k, "generator": generator}
    for one in by_strictness(latents, held.doc_ids, held.x, found.count, **how):
        rows.append(_estimate_row(one.estimate) | {"quantity": one.quantity})
        rows.append({"quantity": f"{one.quantity}_null", "value": float(one.null)})
    return rows


def _count_only(
    latents: list[LatentSet],
    held: HeldOut,
    k: int,
    config: StudyConfig,
    whole: Reproducibility | None,
) -> float:
    """The same count without its interval, which takes most of the time.

    With the threshold and the null of `whole`, the count that it is compared with: another draw of
    either would move a small count more than training does.
    """
    if whole is None:
        generator = torch.Generator().manual_seed(config.seed)
        most = max(found.n_live for found in latents)
        threshold = null_threshold(held.x, most, most, generator=generator)
        n_live = [found.n_live for found in latents]
        null = null_reproducible(held.x, n_live, k, threshold=threshold, generator=generator)
    else:
        threshold, null = whole.count.threshold, whole.null
    found = reproducible(latents, threshold).s_ge[config.min_seeds]
    return float(max(found - null.s_ge[config.min_seeds], 0))


def _estimate_row(estimate: Estimate, **more: Any) -> Row:
    return {
        "quantity": estimate.estimator,
        "value": estimate.value,
        "ci_low": estimate.ci_low,
        "ci_high": estimate.ci_high,
        "note": estimate.reason,
        **more,
    }
