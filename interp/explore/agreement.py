"""Latents that may be the same: in the same dictionary, in other seeds, in other layers and models.

Within one space by decoder cosine and by agreement on tokens; across spaces by agreement alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import scipy.sparse as sp
import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp.explore.records import Match
from saes.edges import COSINE_BLOCK_ELEMENTS, Edges, edge_correlations, unit_rows

MIN_FIRES = 10
"""Fewer on the tokens compared, and a correlation says nothing."""
_BLOCK_PRODUCTS = 1 << 24
"""Products of activations held at once while two dictionaries are compared."""


def neighbours(
    W_dec: Float[Tensor, "d_sae d_in"], n: int
) -> tuple[Int[np.ndarray, "d_sae n"], Float[np.ndarray, "d_sae n"]]:
    """The n other latents of the largest decoder cosines, and these."""
    rows = unit_rows(W_dec)
    n = min(n, len(rows) - 1)
    found = []
    height = max(1, COSINE_BLOCK_ELEMENTS // len(rows))
    for start in range(0, len(rows), height):
        block = rows[start : start + height] @ rows.T
        own = torch.arange(len(block))
        block[own, own + start] = -2.0
        found.append(block.topk(n, dim=1))
    return (
        torch.cat([f.indices for f in found]).numpy(),
        torch.cat([f.values for f in found]).numpy(),
    )


def in_other_seeds(
    decoders: Sequence[Float[Tensor, "d_sae d_in"]],
    z: Sequence[sp.csc_array],
    classes: Int[np.ndarray, "class seed"],
) -> list[list[list[Match]]]:
    """[seed][latent] -> one match in each other seed.

    The other member of the latent's class where the study's matching found one, else the latent of
    the largest decoder cosine, for what it is worth.
    """
    matches: list[list[list[Match]]] = [[[] for _ in range(len(W))] for W in decoders]
    for a, b in combinations(range(len(decoders)), 2):
        for (one, other), (best, cosine) in zip(
            ((a, b), (b, a)), _nearest(decoders[a], decoders[b]), strict=True
        ):
            both = classes[(classes[:, one] >= 0) & (classes[:, other] >= 0)]
            counted = np.zeros(len(best), dtype=bool)
            counted[both[:, one]] = True
            best[both[:, one]] = both[:, other]
            mine = unit_rows(decoders[one])[both[:, one]]
            cosine[both[:, one]] = (mine * unit_rows(decoders[other])[both[:, other]]).sum(1)
            edges = Edges(np.arange(len(best)), best, cosine)
            correlations = edge_correlations(z[one], z[other], edges)
            for latent in range(len(best)):
                matches[one][latent].append(
                    Match(
                        where=other,
                        latent=int(best[latent]),
                        cosine=float(cosine[latent]),
                        correlation=float(correlations[latent]),
                        counted=bool(counted[latent]),
                    )
                )
    return [[sorted(of_latent) for of_latent in of_seed] for of_seed in matches]


def _nearest(
    W_a: Float[Tensor, "d_sae_a d_in"], W_b: Float[Tensor, "d_sae_b d_in"]
) -> tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """For each row of a the row of b with the largest cosine, and for each row of b that of a."""
    a, b = unit_rows(W_a), unit_rows(W_b)
    of_a: list[tuple[Tensor, Tensor]] = []
    best_b, at_b = torch.full((len(b),), -2.0), torch.zeros(len(b), dtype=torch.long)
    height = max(1, COSINE_BLOCK_ELEMENTS // len(b))
    for start in range(0, len(a), height):
        block = a[start : start + height] @ b.T
        best = block.max(dim=1)
        of_a.append((best.values, best.indices))
        values, rows = block.max(dim=0)
        better = values > best_b
        best_b[better], at_b[better] = values[better], rows[better] + start
    values_a = torch.cat([v for v, _ in of_a]).numpy()
    at_a = torch.cat([i for _, i in of_a]).numpy()
    return (at_a, values_a), (at_b.numpy(), best_b.numpy())


@dataclass(frozen=True, eq=False)
class Codes:
    """Activations of one SAE by position of the text, for comparison with those of any other."""

    z: sp.csr_array
    """[position, d_sae]"""
    kept: np.ndarray
    """[position] bool: what the SAE was given."""


def best_elsewhere(
    mine: Codes, other: Codes, *, min_correlation: float
) -> dict[int, tuple[int, float]]:
    """Latent -> the latent of the other with the largest correlation, and this.

    Over the positions that both were given. Latents that fire fewer than `MIN_FIRES` times there
    have none, and are none's.
    """
    both = mine.kept & other.kept
    a, b = sp.csc_array(mine.z[both]), sp.csr_array(other.z[both])
    n = int(both.sum())
    fires_a, fires_b = np.diff(a.indptr), np.diff(sp.csc_array(b).indptr)
    mean_a, spread_a = _moments(a, n)
    mean_b, spread_b = _moments(b, n)
    found: dict[int, tuple[int, float]] = {}
    usable = np.flatnonzero(fires_a >= MIN_FIRES)
    # Every firing of a meets all that fires there in b.
    load = np.cumsum(fires_a[usable]) * max(b.nnz // max(n, 1), 1) // _BLOCK_PRODUCTS
    for rows in np.split(usable, np.flatnonzero(np.diff(load)) + 1):
        if not len(rows):
            continue
        cross = sp.coo_array(a[:, rows].T @ b)
        keep = fires_b[cross.col] >= MIN_FIRES
        i, j, total = cross.row[keep], cross.col[keep], cross.data[keep]
        covariance = total / n - mean_a[rows[i]] * mean_b[j]
        r = covariance / (spread_a[rows[i]] * spread_b[j])
        order = np.lexsort((j, -r, i))
        first = np.unique(i[order], return_index=True)[1]
        for at in order[first]:
            if r[at] >= min_correlation:
                found[int(rows[i[at]])] = int(j[at]), float(r[at])
    return found


def _moments(z: sp.csc_array | sp.csr_array, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of each column; a constant one has an infinite deviation."""
    mean = np.asarray(z.sum(axis=0)).ravel() / n
    variance = np.asarray((z**2).sum(axis=0)).ravel() / n - mean**2
    return mean, np.sqrt(np.where(variance > 1e-12 * mean**2, variance, np.inf))
