"""The latents of one trained dictionary that count, on held-out tokens."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from saes.edges import activation_matrix, cosine_edges
from saes.errors import SAEError
from saes.sae import SparseActs

MIN_FIRES = 10
MAX_DENSITY = 0.2
DUPLICATE_COSINE = 0.8
"""Least cosine of near copies within a seed. Well above 1 / sqrt(2), which a latent that stands
evenly for two features has with either of them: those must not make one of all three."""


def live_mask(
    fire_counts: Int[Tensor, " d_sae"] | Float[np.ndarray, " d_sae"],
    n_tokens: float,
    *,
    min_fires: int = MIN_FIRES,
    max_density: float = MAX_DENSITY,
) -> Bool[np.ndarray, " d_sae"]:
    """Latents that count: fired on >= min_fires held-out tokens and on < max_density of them.

    Rarer ones cannot be told from noise on these tokens; denser ones carry a mean or a bias.
    """
    counts = np.asarray(fire_counts)
    return (counts >= min_fires) & (counts < max_density * n_tokens)


@dataclass(frozen=True)
class LatentSet:
    """One seed's dictionary as matching sees it."""

    W_dec: Float[Tensor, "d_sae d_in"]
    """Decoder rows; only their directions and, for duplicates, their lengths are used."""
    acts: SparseActs
    """Activations on the held-out tokens, the same tokens in the same order for every seed."""
    live: Bool[np.ndarray, " d_sae"]
    """Which latents may be matched; see `live_mask`."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "live", np.asarray(self.live, dtype=bool))
        if self.live.shape != (self.d_sae,):
            raise SAEError(
                f"live mask of shape {self.live.shape} for {self.d_sae} latents; give [d_sae]"
            )

    @classmethod
    def from_acts(
        cls,
        W_dec: Float[Tensor, "d_sae d_in"],
        acts: SparseActs,
        *,
        min_fires: int = MIN_FIRES,
        max_density: float = MAX_DENSITY,
    ) -> LatentSet:
        """With the live mask computed from the activations themselves."""
        fires = np.diff(activation_matrix(acts, len(W_dec)).indptr)
        live = live_mask(fires, len(acts.indices), min_fires=min_fires, max_density=max_density)
        return cls(W_dec, acts, live)

    @property
    def d_sae(self) -> int:
        """Number of latents, counted or not."""
        return self.W_dec.shape[0]

    @property
    def n_live(self) -> int:
        """Number of latents that count."""
        return int(self.live.sum())

    @property
    def n_tokens(self) -> int:
        """Held-out tokens behind the activations."""
        return len(self.acts.indices)


def merge_duplicates(latents: LatentSet, cosine: float) -> LatentSet:
    """Near copies among the live latents of one seed become one; shapes and numbering stay.

    By direction alone: copies of one feature share its tokens out, so they do not fire together.
    In order of descending mass (sum of z * ||d||) a latent absorbs live, not yet absorbed ones, the
    nearest first, as long as all that become one have greater cosines than `cosine` with each
    other. So neither a chain nor a latent between two features makes one of what is apart.

    Absorbed activations are added to the absorber's, each at the length of its row, which for equal
    directions leaves what they decode as it was; the absorbed latent is no longer live. Which
    latents are live is decided before.
    """
    z = activation_matrix(latents.acts, latents.d_sae)
    norms = torch.linalg.vector_norm(latents.W_dec.detach().cpu().double(), dim=1).numpy()
    mass = z.sum(axis=0) * norms
    close = cosine_edges(latents.W_dec, latents.W_dec, latents.live, latents.live, cosine)
    close = close.where(close.left != close.right)
    if len(close.left) == 0:
        return latents
    neighbours: dict[int, dict[int, float]] = {}
    for i, j, at in zip(*(x.tolist() for x in close), strict=True):
        neighbours.setdefault(i, {})[j] = at
    absorber = np.arange(latents.d_sae)
    settled = set()
    for i in sorted(neighbours, key=lambda latent: (-mass[latent], latent)):
        if i in settled:
            continue
        settled.add(i)
        members = {i}
        for _, j in sorted((-at, j) for j, at in neighbours[i].items()):
            if j not in settled and members <= neighbours[j].keys():
                absorber[j] = i
                settled.add(j)
                members.add(j)
    live = latents.live & (absorber == np.arange(latents.d_sae))
    scale = np.where(norms[absorber] > 0, norms / np.where(norms > 0, norms, 1)[absorber], 1.0)
    indices = latents.acts.indices.cpu()
    values = latents.acts.values.detach().cpu().double() * torch.from_numpy(scale)[indices]
    return LatentSet(latents.W_dec, SparseActs(torch.from_numpy(absorber)[indices], values), live)
