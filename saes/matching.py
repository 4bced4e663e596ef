"""Which latents are found again by other seeds: matching of pairs, classes across seeds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import NamedTuple

import numpy as np
import scipy.sparse as sp
import torch
from jaxtyping import Bool, Float, Int
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from saes.assignment import max_weight_matching
from saes.edges import Edges, activation_matrix, cosine_edges, edge_correlations
from saes.errors import SAEError
from saes.latent_set import DUPLICATE_COSINE, LatentSet, live_mask, merge_duplicates
from saes.null_dictionaries import (
    covariance_root,
    null_threshold,
    random_directions,
    random_latent_set,
)
from saes.sae import SparseActs

__all__ = [
    "LatentSet",
    "Matching",
    "ReproducibleCount",
    "classes_of",
    "live_mask",
    "match_pair",
    "null_reproducible",
    "null_sets",
    "null_threshold",
    "reproducible",
]

MIN_CORRELATION = 0.5
"""Least agreement of activations. Of two rare latents that fire equally often and strongly, the
correlation is the share of their tokens that they have in common: at 0.5, half."""
NULL_TOKENS = 16_384


class Matching(NamedTuple):
    """A one-to-one matching of the latents of two dictionaries."""

    pairs: Int[np.ndarray, "matched 2"]
    """Latent of the first, latent of the second; ascending."""
    cosines: Float[np.ndarray, " matched"]
    correlations: Float[np.ndarray, " matched"]


def match_pair(
    W_a: Float[Tensor, "d_sae_a d_in"],
    W_b: Float[Tensor, "d_sae_b d_in"],
    acts_a: SparseActs,
    acts_b: SparseActs,
    live_a: Bool[np.ndarray, " d_sae_a"],
    live_b: Bool[np.ndarray, " d_sae_b"],
    *,
    threshold: float,
    min_correlation: float = MIN_CORRELATION,
) -> Matching:
    """Maximum-weight matching on the edges that pass both tests.

    An edge joins two live latents with decoder cosine > threshold and Pearson correlation of
    activations >= min_correlation on the same held-out tokens; its weight is the cosine. Not the
    best assignment of everything with a threshold after: that one sacrifices true pairs to raise
    the cosines of pairs which it then throws away. Raises SAEError where widths or tokens differ.
    """
    edges = cosine_edges(W_a, W_b, np.asarray(live_a), np.asarray(live_b), threshold)
    correlations = edge_correlations(
        activation_matrix(acts_a, len(W_a)), activation_matrix(acts_b, len(W_b)), edges
    )
    agree = np.flatnonzero(correlations >= min_correlation)
    chosen = agree[max_weight_matching(*edges.where(agree))]
    edges = edges.where(chosen)
    return Matching(
        np.stack([edges.left, edges.right], axis=1), edges.cosines, correlations[chosen]
    )


@dataclass(frozen=True)
class ReproducibleCount:
    """How many latents were found by how many seeds."""

    s_ge: dict[int, int]
    """r -> classes found by at least r seeds, r = 1..n_seeds; s_ge[2] is S_>=2."""
    class_sizes: Int[np.ndarray, " class"]
    """Seeds in each class of at least two, as in `classes`."""
    classes: Int[np.ndarray, "class seed"]
    """Latent of each seed in each class, -1 where the seed has none."""
    n_seeds: int
    n_live: tuple[int, ...]
    """Live latents of each seed, duplicates merged."""
    n_merged: tuple[int, ...]
    """Live latents of each seed that were merged into another of the same direction."""
    threshold: float
    duplicate_cosine: float
    """Latents of one seed with greater ones were merged."""
    min_correlation: float
    mean_cosine: float | None
    """Over the matched pairs; None where there are none."""
    mean_correlation: float | None


def classes_of(
    n_seeds: int, seed_pairs: Sequence[tuple[int, int]], matched: Sequence[Edges]
) -> Int[np.ndarray, "class seed"]:
    """Classes of latents from the pairwise matchings: latent of each seed, -1 where none.

    Greedy union: the matched pairs of all seed pairs are visited by descending cosine (ties by
    seeds, then by position), and two classes are joined unless both hold a latent of one seed.
    So the surest pairs form the cores, and no chain of weak pairs can fold two latents of one seed
    into one class. Only classes of at least two latents are returned, in lexicographic order.
    """
    n_edges = [len(m.left) for m in matched]
    if sum(n_edges) == 0:
        return np.empty((0, n_seeds), dtype=np.int64)
    # A node is one latent of one seed: number latent * n_seeds + seed.
    seeds = np.repeat(np.asarray(seed_pairs), n_edges, axis=0)
    u = np.concatenate([m.left for m in matched]) * n_seeds + seeds[:, 0]
    v = np.concatenate([m.right for m in matched]) * n_seeds + seeds[:, 1]
    nodes, compact = np.unique(np.concatenate([u, v]), return_inverse=True)
    u, v = compact[: len(u)], compact[len(u) :]
    graph = sp.coo_array((np.ones(len(u)), (u, v)), shape=(len(nodes), len(nodes)))
    n_classes, component = connected_components(graph, directed=False)
    # Where no seed occurs twice the greedy union refuses nothing: the component is the class.
    crowded = np.zeros(n_classes, dtype=bool)
    occurrences = np.bincount(component * n_seeds + nodes % n_seeds, minlength=n_classes * n_seeds)
    crowded[(occurrences.reshape(n_classes, n_seeds) > 1).any(axis=1)] = True
    conflicts = np.flatnonzero(crowded[component[u]])
    cosines = np.concatenate([m.cosines for m in matched])[conflicts]
    conflicts = conflicts[np.argsort(-cosines, kind="stable")]
    class_of = _greedy_union(nodes % n_seeds, u[conflicts], v[conflicts])
    for node in np.flatnonzero(crowded[component]).tolist():
        component[node] = n_classes + class_of[node]
    _, row = np.unique(component, return_inverse=True)
    classes = np.full((row.max() + 1, n_seeds), -1)
    classes[row, nodes % n_seeds] = nodes // n_seeds
    classes = classes[(classes >= 0).sum(axis=1) >= 2]
    return classes[np.lexsort(classes.T[::-1])]


def _greedy_union(seed_of: np.ndarray, u: np.ndarray, v: np.ndarray) -> dict[int, int]:
    """Node -> lowest node of its class, joining along the edges in their order."""
    members: dict[int, dict[int, int]] = {}
    for a, b in zip(u.tolist(), v.tolist(), strict=True):
        one = members.setdefault(a, {int(seed_of[a]): a})
        other = members.setdefault(b, {int(seed_of[b]): b})
        if one is not other and one.keys().isdisjoint(other.keys()):
            one.update(other)
            members.update(dict.fromkeys(one.values(), one))
    return {node: min(one.values()) for node, one in members.items()}


def reproducible(
    dicts: Sequence[LatentSet],
    threshold: float,
    min_correlation: float = MIN_CORRELATION,
    *,
    duplicate_cosine: float | None = None,
) -> ReproducibleCount:
    """Classes of latents across the dictionaries of several seeds (`match_pair`, `classes_of`).

    Near copies within a seed are merged first (`merge_duplicates`): live latents with a cosine
    above DUPLICATE_COSINE, or above `threshold` where that is greater, or above `duplicate_cosine`
    where that is given. The count rises with the number of seeds and is capped at d_sae: state both
    beside it. The rows' order and the scale of weights or activations do not matter. Raises
    SAEError on fewer than two seeds.
    """
    if len(dicts) < 2:
        raise SAEError(f"reproducibility needs at least two seeds, got {len(dicts)}")
    if duplicate_cosine is None:
        duplicate_cosine = max(threshold, DUPLICATE_COSINE)
    merged = [merge_duplicates(d, duplicate_cosine) for d in dicts]
    z = [activation_matrix(d.acts, d.d_sae) for d in merged]
    seed_pairs = list(combinations(range(len(dicts)), 2))
    matched, correlations = [], []
    for a, b in seed_pairs:
        one, other = merged[a], merged[b]
        edges = cosine_edges(one.W_dec, other.W_dec, one.live, other.live, threshold)
        agreement = edge_correlations(z[a], z[b], edges)
        agree = np.flatnonzero(agreement >= min_correlation)
        chosen = agree[max_weight_matching(*edges.where(agree))]
        matched.append(edges.where(chosen))
        correlations.append(agreement[chosen])
    classes = classes_of(len(dicts), seed_pairs, matched)
    sizes = (classes >= 0).sum(axis=1)
    n_live = tuple(d.n_live for d in merged)
    s_ge = {r: int((sizes >= r).sum()) for r in range(2, len(dicts) + 1)}
    cosines = np.concatenate([m.cosines for m in matched])
    return ReproducibleCount(
        s_ge={1: sum(n_live) - int((sizes - 1).sum()), **s_ge},
        class_sizes=sizes,
        classes=classes,
        n_seeds=len(dicts),
        n_live=n_live,
        n_merged=tuple(d.n_live - m.n_live for d, m in zip(dicts, merged, strict=True)),
        threshold=float(threshold),
        duplicate_cosine=float(duplicate_cosine),
        min_correlation=float(min_correlation),
        mean_cosine=float(cosines.mean()) if len(cosines) else None,
        mean_correlation=float(np.concatenate(correlations).mean()) if len(cosines) else None,
    )


def null_reproducible(
    x_held: Float[Tensor, "token d_in"],
    n_live: Sequence[int],
    k: int,
    *,
    threshold: float,
    min_correlation: float = MIN_CORRELATION,
    duplicate_cosine: float | None = None,
    generator: torch.Generator,
    max_tokens: int = NULL_TOKENS,
) -> ReproducibleCount:
    """`reproducible` of random dictionaries: the count that matching alone produces.

    Near zero at the threshold of `null_threshold`; what it finds is to be subtracted.
    """
    sets = null_sets(
        x_held, n_live, k, threshold=threshold, generator=generator, max_tokens=max_tokens
    )
    return reproducible(sets, threshold, min_correlation, duplicate_cosine=duplicate_cosine)


def null_sets(
    x_held: Float[Tensor, "token d_in"],
    n_live: Sequence[int],
    k: int,
    *,
    threshold: float,
    generator: torch.Generator,
    max_tokens: int = NULL_TOKENS,
) -> list[LatentSet]:
    """Random dictionaries, to be matched at `threshold` or a stricter one.

    One per seed with that seed's number of live latents, directions from N(0, covariance of
    x_held), encoded like the trained ones (TopK with the same k) so that the agreement of
    activations is tested too, on the first `max_tokens` held-out tokens.
    """
    root = covariance_root(x_held)
    directions = [random_directions(root, max(n, 1), generator=generator) for n in n_live]
    used = [np.full(len(d), n > 0) for d, n in zip(directions, n_live, strict=True)]
    pairs = combinations(range(len(directions)), 2)
    meet = (
        cosine_edges(directions[a], directions[b], used[a], used[b], threshold) for a, b in pairs
    )
    # Encoding costs as much as evaluating the trained SAEs and changes nothing where none meet.
    tokens = x_held[:max_tokens] if any(len(e.left) for e in meet) else x_held[:2]
    sets = [random_latent_set(tokens, d, k) for d in directions]
    return [LatentSet(s.W_dec, s.acts, u) for s, u in zip(sets, used, strict=True)]
