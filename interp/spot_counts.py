"""What one spot's seeds find alike, of all their latents and without composites, as rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch

from interp.config import StudyConfig
from interp.estimate import ATOMS
from interp.held_out import HeldOut
from interp.packing import Estimate, InsufficientData, Reproducibility, reproducible_estimate
from interp.strictness import by_strictness
from interp.token_identity import token_identity
from saes.composites import without_composites
from saes.latent_set import LatentSet
from saes.matching import null_reproducible, null_threshold, reproducible

Row = dict[str, Any]


class Count(NamedTuple):
    """S_>=r of one spot's seeds, of all their latents or of some."""

    name: str
    suffix: str
    """Of the quantities beside it."""
    of: Callable[[Sequence[LatentSet]], list[LatentSet]]
    """The latents that it counts."""
    estimate: Estimate
    found: Reproducibility | None
    """What it is made of; None where it was refused."""
    n_composites: float = 0.0
    """Latents of a seed that it does not count and the first one does, mean over the seeds. Near
    copies are not among them: neither counts those."""


def counts_of(latents: list[LatentSet], held: HeldOut, k: int, config: StudyConfig) -> list[Count]:
    """The count with its interval, then the same without composites.

    The second by the calibration's protocol, which sets the threshold anew for what is left.
    """
    plain = Count("reproducible", "", list, *_count(latents, held, k, config))
    if plain.found is None:
        return [plain]
    simple = _simple(latents)
    if all(one.n_live == other.n_live for one, other in zip(latents, simple, strict=True)):
        # The same count; another draw of the null would say otherwise.
        return [plain, Count(ATOMS, "_atoms", _simple, plain.estimate, plain.found)]
    estimate, found = _count(simple, held, k, config)
    before = plain.found.count.n_live
    after = [one.n_live for one in simple] if found is None else found.count.n_live
    fewer = max(float(np.mean(before) - np.mean(after)), 0.0)
    return [plain, Count(ATOMS, "_atoms", _simple, estimate, found, fewer)]


def rows_of(
    counts: Sequence[Count],
    latents: list[LatentSet],
    held: HeldOut,
    k: int,
    config: StudyConfig,
    *,
    strictness: bool,
) -> list[Row]:
    """The counts, and what goes with them; `strictness` as in `sae_rows`."""
    plain, *others = counts
    rows: list[Row] = [
        estimate_row(plain.estimate),
        {"quantity": "censored", "value": float(plain.estimate.censored)},
    ]
    if plain.found is None:
        return rows
    rows += _behind(plain.found)
    rows += _token_rows(latents, plain.found, held, config.seed)
    for one in others:
        rows += _beside(one)
    if strictness:
        rows += _strictness_rows(latents, plain.found, held, k, config.seed)
    return rows


def count_only(
    count: Count, latents: Sequence[LatentSet], held: HeldOut, k: int, config: StudyConfig
) -> float:
    """The same count of other SAEs of these seeds, without its interval, which takes most time.

    With the threshold and the null of `count`: another draw of either would move a small count more
    than training does.
    """
    chosen, whole = count.of(latents), count.found
    if whole is None:
        generator = torch.Generator().manual_seed(config.seed)
        most = max(found.n_live for found in chosen)
        threshold = null_threshold(held.x, most, most, generator=generator)
        n_live = [found.n_live for found in chosen]
        null = null_reproducible(held.x, n_live, k, threshold=threshold, generator=generator)
    else:
        threshold, null = whole.count.threshold, whole.null
    found = reproducible(chosen, threshold).s_ge[config.min_seeds]
    return float(max(found - null.s_ge[config.min_seeds], 0))


def estimate_row(estimate: Estimate, **more: Any) -> Row:
    """An estimate with its interval, and why it has none."""
    return {
        "quantity": estimate.estimator,
        "value": estimate.value,
        "ci_low": estimate.ci_low,
        "ci_high": estimate.ci_high,
        "note": estimate.reason,
        **more,
    }


def _simple(latents: Sequence[LatentSet]) -> list[LatentSet]:
    return [without_composites(one) for one in latents]


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


def _beside(atoms: Count) -> list[Row]:
    """The count without composites, and what goes with it."""
    facts = {
        "composites_mean": atoms.n_composites,
        "censored_atoms": float(atoms.estimate.censored),
    }
    if atoms.found is not None:
        null = atoms.found.null.s_ge[atoms.found.min_seeds]
        facts |= {f"{ATOMS}_null": float(null), f"{ATOMS}_se": atoms.found.se}
    return [
        estimate_row(replace(atoms.estimate, estimator=ATOMS)),
        *({"quantity": q, "value": v} for q, v in facts.items()),
    ]


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
        *map(estimate_row, (identity.relative, identity.detectors)),
        *map(estimate_row, (identity.explained, identity.explained_by_place)),
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
        rows.append(estimate_row(one.estimate) | {"quantity": one.quantity})
        rows.append({"quantity": f"{one.quantity}_null", "value": float(one.null)})
    return rows
