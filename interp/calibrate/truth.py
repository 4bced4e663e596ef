"""What counted classes stand for, where the features are known."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from saes.latent_set import LatentSet
from saes.matching import ReproducibleCount

LEAST_COSINES = (0.7, 0.8, 0.9)


def beside_the_truth(
    found: ReproducibleCount,
    min_seeds: int,
    seeds: Sequence[LatentSet],
    directions: Float[Tensor, "feature d_in"],
) -> dict[str, dict[str, int]]:
    """Of the classes that at least min_seeds find, by the least cosine of a hit.

    hit: different features that a class stands for; again: further classes of those; none: classes
    that stand for no feature. A class is the mean direction of its latents and stands for the
    feature that it has the greatest cosine with. A count may be right by hitting every feature, or
    because what it misses and what it invents are as many.
    """
    classes = found.classes[found.class_sizes >= min_seeds]
    mean = np.zeros((len(classes), directions.shape[1]))
    for column, latents in zip(classes.T, seeds, strict=True):
        rows = torch.nn.functional.normalize(latents.W_dec.double(), dim=1).numpy()
        there = column >= 0
        mean[there] += rows[column[there]]
    mean /= np.maximum(np.linalg.norm(mean, axis=1, keepdims=True), 1e-12)
    truth = torch.nn.functional.normalize(directions.double(), dim=1).numpy()
    cosines = mean @ truth.T
    nearest = cosines.argmax(axis=1)
    best = cosines.max(axis=1, initial=-1.0)
    records = {}
    for least in LEAST_COSINES:
        hits = nearest[best >= least]
        n_hit = len(np.unique(hits))
        records[f"{least:g}"] = {
            "hit": n_hit,
            "again": len(hits) - n_hit,
            "none": len(classes) - len(hits),
        }
    return records


def facts_of(found: ReproducibleCount) -> dict[str, Any]:
    """Of a matching, what later readings need: classes by seeds, latents by seed, the threshold."""
    return {
        "s_ge": {str(r): n for r, n in sorted(found.s_ge.items())},
        "n_live": list(found.n_live),
        "n_merged": list(found.n_merged),
        "threshold": found.threshold,
    }
