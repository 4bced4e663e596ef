"""The count when latents are matched more loosely or more strictly: does a finding hang on that?"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp.config import MIN_SEEDS
from interp.documents import document_weights
from interp.estimate import Estimate
from interp.reproducibility import Resampler, with_interval
from saes.latent_set import MIN_FIRES, LatentSet
from saes.matching import ReproducibleCount, null_sets, reproducible

COSINES = (0.6, 0.7, 0.8, 0.9)
"""Least cosines of decoder rows, in place of the one that the null sets."""
CORRELATIONS = (0.3, 0.4, 0.6, 0.7)
"""Least correlations of activations, in place of one half."""
SETTINGS = (*(("cosine", at) for at in COSINES), *(("correlation", at) for at in CORRELATIONS))
"""(what is set otherwise, to what); the other of the two tests stays as it is."""


def quantity_of(by: str, at: float) -> str:
    """Its name among a study's rows."""
    return f"reproducible_{by}_{at:g}"


class AtStrictness(NamedTuple):
    """S_>=min_seeds under one setting."""

    quantity: str
    estimate: Estimate
    null: int
    """What random dictionaries match under it, subtracted."""


def by_strictness(
    dicts: Sequence[LatentSet],
    doc_ids: Int[Tensor, " token"],
    x_held: Float[Tensor, "token d_in"],
    headline: ReproducibleCount,
    *,
    min_seeds: int = MIN_SEEDS,
    k: int,
    generator: torch.Generator,
    n_bootstrap: int = 100,
) -> Iterator[AtStrictness]:
    """Every setting with a null and an interval of its own, as in `reproducible_estimate`.

    headline: the count of the same dictionaries, whose cosine is not counted again. All settings
    share the random dictionaries, the samples of documents and what is merged within a seed, so
    that they differ in nothing else. Below the calibrated cosine more random directions meet, and
    as many are subtracted.
    """
    loosest = min(*COSINES, headline.threshold)
    n_live = [d.n_live for d in dicts]
    nulls = null_sets(x_held, n_live, k, threshold=loosest, generator=generator)
    n_docs = len(np.unique(np.asarray(doc_ids)))
    drawn = list(document_weights(n_docs, n_bootstrap, generator=generator))
    resampler = Resampler(
        dicts,
        doc_ids,
        loosest,
        headline.min_correlation,
        MIN_FIRES,
        min_seeds,
        duplicate_cosine=headline.duplicate_cosine,
    )
    d_sae, d_in = dicts[0].W_dec.shape
    blank = Estimate("reproducible", None, n_tokens=dicts[0].n_tokens, n_seeds=len(dicts),
                     d_sae=d_sae, k=k)  # fmt: skip
    for by, at in SETTINGS:
        if by == "cosine" and math.isclose(at, headline.threshold, abs_tol=1e-6):
            continue
        how = (at, headline.min_correlation) if by == "cosine" else (headline.threshold, at)
        by_chance = reproducible(nulls, *how, duplicate_cosine=headline.duplicate_cosine)
        null = by_chance.s_ge[min_seeds]
        spread = resampler.spread(drawn, *how)
        found = with_interval(blank, spread.found, null, spread, n_bootstrap)
        per_dim = (found.value or 0.0) / d_in
        yield AtStrictness(quantity_of(by, at), replace(found, per_dim=per_dim), null)
