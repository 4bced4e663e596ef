"""Candidate pairs of latents between two dictionaries: decoder cosines, activation correlations."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import scipy.sparse as sp
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from saes.errors import SAEError
from saes.sae import SparseActs

COSINE_BLOCK_ELEMENTS = 1 << 23
"""Cosines held at once (32 MB): two dictionaries of 32,768 latents never need [d_sae, d_sae]."""
PRODUCT_BLOCK_ENTRIES = 1 << 22
"""Stored activations gathered at once while multiplying the columns of candidate pairs."""


class Edges(NamedTuple):
    """Pairs (a latent of one dictionary, a latent of another) whose directions agree."""

    left: Int[np.ndarray, " edge"]
    right: Int[np.ndarray, " edge"]
    cosines: Float[np.ndarray, " edge"]

    def where(self, keep: Bool[np.ndarray, " edge"] | Int[np.ndarray, " kept"]) -> Edges:
        """The edges chosen by a mask or by positions."""
        return Edges(self.left[keep], self.right[keep], self.cosines[keep])


def unit_rows(W: Float[Tensor, "row d_in"]) -> Float[Tensor, "row d_in"]:
    """Rows scaled to length 1 in float32; a zero row stays zero and so meets nothing."""
    return torch.nn.functional.normalize(torch.as_tensor(W).detach().float(), dim=1, eps=1e-12)


def cosine_edges(
    W_a: Float[Tensor, "d_sae_a d_in"],
    W_b: Float[Tensor, "d_sae_b d_in"],
    use_a: Bool[np.ndarray, " d_sae_a"],
    use_b: Bool[np.ndarray, " d_sae_b"],
    threshold: float,
) -> Edges:
    """All pairs of used rows with cosine > threshold, sorted by (left, right).

    Signed: a direction and its opposite are two features, because latents are non-negative.
    Time 2 * n_a * n_b * d_in FLOPs; memory bounded by COSINE_BLOCK_ELEMENTS plus the edges found.
    Raises SAEError where the widths differ.
    """
    if W_a.shape[1] != W_b.shape[1]:
        raise SAEError(
            f"decoders of width {W_a.shape[1]} and {W_b.shape[1]} cannot be matched; "
            "match dictionaries of the same activations"
        )
    rows_a, rows_b = np.flatnonzero(use_a), np.flatnonzero(use_b)
    a = unit_rows(W_a[torch.from_numpy(rows_a)])
    b = unit_rows(W_b[torch.from_numpy(rows_b)])
    height = max(1, COSINE_BLOCK_ELEMENTS // max(1, len(b)))
    found: list[Edges] = []
    for start in range(0, len(a), height):
        block = a[start : start + height] @ b.T
        i, j = torch.nonzero(block > threshold, as_tuple=True)
        cosines = block[i, j].double().cpu().numpy()
        found.append(Edges(rows_a[i.cpu().numpy() + start], rows_b[j.cpu().numpy()], cosines))
    if not found:
        nothing = np.empty(0, dtype=np.int64)
        return Edges(nothing, nothing, np.empty(0))
    return Edges(*(np.concatenate(parts) for parts in zip(*found, strict=True)))


def activation_matrix(acts: SparseActs, d_sae: int) -> sp.csc_array:
    """Activations as a sparse float64 [token, d_sae]; unused slots (value 0) are not stored.

    A latent named twice on one token counts as the sum of both.
    """
    indices = torch.as_tensor(acts.indices).detach().cpu().numpy()
    values = torch.as_tensor(acts.values).detach().cpu().double().numpy()
    if indices.shape != values.shape or indices.ndim != 2:
        raise SAEError(
            f"SparseActs of shapes {indices.shape} and {values.shape}; both must be [token, k]"
        )
    n_tokens = len(indices)
    used = values > 0
    latents = indices[used]
    if latents.size and not 0 <= latents.min() <= latents.max() < d_sae:
        raise SAEError(
            f"SparseActs name latent {latents.max()} but the dictionary has {d_sae}; "
            "pass the activations of this dictionary"
        )
    tokens = np.nonzero(used)[0]
    return sp.coo_array((values[used], (tokens, latents)), shape=(n_tokens, d_sae)).tocsc()


def edge_products(z_a: sp.csc_array, z_b: sp.csc_array, edges: Edges) -> list[sp.csc_array]:
    """z_a[:, left] * z_b[:, right] for every edge, as consecutive sparse [token, edge] blocks.

    Cost and memory follow the activations of the named latents; z_a^T z_b is never formed.
    """
    stored = np.diff(z_a.indptr)[edges.left] + np.diff(z_b.indptr)[edges.right]
    block_of = np.cumsum(stored, dtype=np.int64) // PRODUCT_BLOCK_ENTRIES
    blocks = []
    for chosen in np.split(np.arange(len(stored)), np.flatnonzero(np.diff(block_of)) + 1):
        left, right = edges.left[chosen], edges.right[chosen]
        blocks.append(sp.csc_array(z_a[:, left].multiply(z_b[:, right])))
    return blocks


def correlation(
    n_tokens: float,
    cross: Float[np.ndarray, " edge"],
    sums: tuple[Float[np.ndarray, " edge"], Float[np.ndarray, " edge"]],
    squares: tuple[Float[np.ndarray, " edge"], Float[np.ndarray, " edge"]],
) -> Float[np.ndarray, " edge"]:
    """Pearson correlation from sums of z_a z_b, (z_a, z_b) and (z_a^2, z_b^2) over n_tokens tokens.

    A latent that does not vary agrees with nothing: 0.
    """
    covariance = cross - sums[0] * sums[1] / n_tokens
    # A difference of sums that cancels to rounding noise is a variance of zero.
    spread = [np.maximum(q - s**2 / n_tokens, 0) for s, q in zip(sums, squares, strict=True)]
    flat = (spread[0] <= 1e-12 * squares[0]) | (spread[1] <= 1e-12 * squares[1])
    scale = np.sqrt(spread[0] * spread[1])
    return np.where(flat, 0.0, covariance / np.where(flat, 1.0, scale))


def edge_correlations(
    z_a: sp.csc_array, z_b: sp.csc_array, edges: Edges
) -> Float[np.ndarray, " edge"]:
    """Pearson correlation of the two activations of each edge over all tokens, zeros included.

    Raises SAEError where the two were not measured on the same tokens.
    """
    if z_a.shape[0] != z_b.shape[0]:
        raise SAEError(
            f"activations of {z_a.shape[0]} and {z_b.shape[0]} tokens cannot agree; "
            "encode the same held-out tokens with every dictionary"
        )
    if len(edges.left) == 0:
        return np.empty(0)
    cross = np.concatenate([block.sum(axis=0) for block in edge_products(z_a, z_b, edges)])
    sums = (z_a.sum(axis=0)[edges.left], z_b.sum(axis=0)[edges.right])
    squares = ((z_a**2).sum(axis=0)[edges.left], (z_b**2).sum(axis=0)[edges.right])
    return correlation(z_a.shape[0], cross, sums, squares)
