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
    """Live latents of one seed that share a direction become one; shapes and numbering stay.

    In order of descending mass (sum of z * ||d||) a latent absorbs the live, not yet absorbed ones
    whose decoder rows have a greater cosine with its own. Greedy and not by chains, so a ring of
    close directions does not collapse. Absorbed activations are added to the absorber's, each at
    the length of its row, which for equal directions leaves what they decode as it was; the
    absorbed latent is no longer live. Without this a feature that seeds hold twice would count
    twice: dictionaries with room to spare keep near copies (at cosines of 0.85 to 0.96 on synthetic
    data), and other seeds find those again.
    """
    z = activation_matrix(latents.acts, latents.d_sae)
    norms = torch.linalg.vector_norm(latents.W_dec.detach().cpu().double(), dim=1).numpy()
    mass = z.sum(axis=0) * norms
    close = cosine_edges(latents.W_dec, latents.W_dec, latents.live, latents.live, cosine)
    close = close.where(close.left != close.right)
    if len(close.left) == 0:
        return latents
    neighbours: dict[int, list[int]] = {}
    for i, j in zip(close.left.tolist(), close.right.tolist(), strict=True):
        neighbours.setdefault(i, []).append(j)
    absorber = np.arange(latents.d_sae)
    settled = set()
    for i in sorted(neighbours, key=lambda latent: (-mass[latent], latent)):
        if i in settled:
            continue
        settled.add(i)
        for j in neighbours[i]:
            if j not in settled:
                absorber[j] = i
                settled.add(j)
    live = latents.live & (absorber == np.arange(latents.d_sae))
    scale = np.where(norms[absorber] > 0, norms / np.where(norms > 0, norms, 1)[absorber], 1.0)
    indices = latents.acts.indices.cpu()
    values = latents.acts.values.detach().cpu().double() * torch.from_numpy(scale)[indices]
    return LatentSet(latents.W_dec, SparseActs(torch.from_numpy(absorber)[indices], values), live)
