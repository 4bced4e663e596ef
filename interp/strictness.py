"""S_>=2 when latents are matched more loosely or more strictly: does a finding hang on that?"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp.reproducibility import Reproducibility, reproducible_estimate
from saes.latent_set import LatentSet
from saes.matching import MIN_CORRELATION

COSINES = (0.6, 0.7, 0.8, 0.9)
"""Least cosines of decoder rows, in place of the one that the null sets."""
CORRELATIONS = (0.3, 0.4, 0.6, 0.7)
"""Least correlations of activations, in place of MIN_CORRELATION."""
SETTINGS = (*(("cosine", at) for at in COSINES), *(("correlation", at) for at in CORRELATIONS))
"""(what is set otherwise, to what); the other of the two tests stays as it is."""


def quantity_of(by: str, at: float) -> str:
    """Its name among a study's rows."""
    return f"reproducible_{by}_{at:g}"


def by_strictness(
    dicts: Sequence[LatentSet],
    doc_ids: Int[Tensor, " token"],
    x_held: Float[Tensor, "token d_in"],
    *,
    k: int,
    calibrated: float,
    seed: int,
) -> Iterator[tuple[str, Reproducibility]]:
    """(quantity, estimate) of every setting, each with a null and an interval of its own.

    calibrated: the cosine of the headline's count, which is not counted again. All settings draw
    the same random dictionaries and documents, so that they differ in nothing else. Below the
    calibrated cosine more random directions meet: their number is subtracted here as it is there.
    """
    for by, at in SETTINGS:
        if by == "cosine" and math.isclose(at, calibrated, abs_tol=1e-6):
            continue
        found = reproducible_estimate(
            dicts,
            doc_ids,
            x_held,
            k=k,
            threshold=at if by == "cosine" else calibrated,
            min_correlation=at if by == "correlation" else MIN_CORRELATION,
            generator=torch.Generator().manual_seed(seed),
        )
        yield quantity_of(by, at), found
