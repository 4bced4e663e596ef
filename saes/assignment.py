"""Maximum-weight matching of a sparse bipartite graph."""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp
from jaxtyping import Float, Int
from scipy.optimize import linear_sum_assignment
from scipy.sparse.csgraph import connected_components, min_weight_full_bipartite_matching

DENSE_COMPONENT_ELEMENTS = 1 << 22
"""Largest component solved as a dense matrix (32 MB); larger ones take the sparse solver."""


def max_weight_matching(
    left: Int[np.ndarray, " edge"],
    right: Int[np.ndarray, " edge"],
    weights: Float[np.ndarray, " edge"],
    *,
    dense_elements: int = DENSE_COMPONENT_ELEMENTS,
) -> Int[np.ndarray, " matched"]:
    """Positions of the edges of a matching with the greatest total weight, ascending.

    Exact, and not perfect: a vertex may stay alone. Weights must be positive and an edge may occur
    once. Every connected component is solved for itself: a lone edge is taken, any other is an
    assignment problem where a missing edge is worth nothing. Above a null threshold almost all
    components are lone edges, which is why tens of thousands of latents take no [n, n] matrix.
    """
    if len(weights) == 0:
        return np.empty(0, dtype=np.int64)
    lone = (np.bincount(left)[left] == 1) & (np.bincount(right)[right] == 1)
    chosen = [np.flatnonzero(lone)]
    for edges in _components(left, right, np.flatnonzero(~lone)):
        rows, i = np.unique(left[edges], return_inverse=True)
        columns, j = np.unique(right[edges], return_inverse=True)
        solve = _dense if len(rows) * len(columns) <= dense_elements else _sparse
        chosen.append(edges[solve(i, j, weights[edges])])
    return np.sort(np.concatenate(chosen))


def _components(left: np.ndarray, right: np.ndarray, edges: np.ndarray) -> list[np.ndarray]:
    """These edges, by the connected component of the graph they lie in."""
    if len(edges) == 0:
        return []
    n_left, n_right = left[edges].max() + 1, right[edges].max() + 1
    ends = (left[edges], n_left + right[edges])
    graph = sp.coo_array((np.ones(len(edges)), ends), shape=(n_left + n_right,) * 2)
    component = connected_components(graph, directed=False)[1][left[edges]]
    order = np.argsort(component, kind="stable")
    return np.split(edges[order], np.flatnonzero(np.diff(component[order])) + 1)


def _dense(i: np.ndarray, j: np.ndarray, weights: np.ndarray) -> np.ndarray:
    benefit = np.zeros((i.max() + 1, j.max() + 1))
    benefit[i, j] = weights
    rows, columns = linear_sum_assignment(benefit, maximize=True)
    partner = np.full(len(benefit), -1)
    partner[rows] = columns
    return np.flatnonzero(partner[i] == j)


def _sparse(i: np.ndarray, j: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """A private dummy column per row makes a full matching exist; costs C - w > 0, dummies C.

    A full matching then costs C * rows minus the weight matched, so the cheapest is the heaviest.
    """
    n_rows, n_columns = i.max() + 1, j.max() + 1
    ceiling = 2.0 * weights.max()
    dummies = np.arange(n_rows)
    costs = np.concatenate([ceiling - weights, np.full(n_rows, ceiling)])
    coordinates = (np.concatenate([i, dummies]), np.concatenate([j, n_columns + dummies]))
    graph = sp.csr_array((costs, coordinates), shape=(n_rows, n_columns + n_rows))
    rows, columns = min_weight_full_bipartite_matching(graph)
    partner = np.full(n_rows, -1)
    partner[rows] = columns
    return np.flatnonzero(partner[i] == j)
