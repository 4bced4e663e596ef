"""S_>=r, the latents that at least r seeds find (two, unless asked), with an interval.

The interval is over seeds and documents. SCIENCE's count is S_>=2.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import NamedTuple

import numpy as np
import scipy.sparse as sp
import torch
from jaxtyping import Float, Int
from scipy import stats
from torch import Tensor

from interp.config import MIN_SEEDS
from interp.documents import DocumentTotals, document_indicator, document_weights
from interp.estimate import Estimate, InsufficientData
from saes.assignment import max_weight_matching
from saes.edges import Edges, activation_matrix, correlation, cosine_edges, edge_products
from saes.latent_set import MIN_FIRES, LatentSet, merge_duplicates
from saes.matching import (
    MIN_CORRELATION,
    ReproducibleCount,
    classes_of,
    null_reproducible,
    null_threshold,
    reproducible,
)

CEILING_FRACTION = 0.9
MIN_DOCUMENTS = 10


@dataclass(frozen=True)
class Reproducibility:
    """The estimate and what it is made of."""

    estimate: Estimate
    """S_>=min_seeds minus the null's, with its 95% interval."""
    count: ReproducibleCount
    """Before subtraction."""
    null: ReproducibleCount
    """The same matching of random dictionaries."""
    leave_one_out: tuple[int, ...]
    """The count without each seed."""
    se_seeds: float
    se_documents: float
    min_seeds: int = MIN_SEEDS

    @property
    def se(self) -> float:
        """Standard error of the estimate: seeds, documents and the null's draw together."""
        v_null = self.null.s_ge[self.min_seeds]
        return float(np.sqrt(self.se_seeds**2 + self.se_documents**2 + v_null))

    @property
    def classes(self) -> Int[np.ndarray, "class seed"]:
        """Those that are counted: latent of each seed, -1 where the seed has none."""
        return self.count.classes[self.count.class_sizes >= self.min_seeds]


class Spread(NamedTuple):
    """S_>=min_seeds of all documents and seeds, and how it varies with either."""

    found: int
    leave_one_out: tuple[int, ...]
    """Without each seed."""
    v_seeds: float
    v_documents: float


class Resampler:
    """S_>=min_seeds under any weighting of documents, without touching tokens again.

    Cosines do not depend on documents; liveness and agreement do, through sums by document. What
    `reproducible` merges within a seed stays as it is with all documents.
    `threshold` is the loosest cosine that can be asked about, and what is asked about by default.
    """

    def __init__(
        self,
        dicts: Sequence[LatentSet],
        doc_ids: Int[Tensor, " token"],
        threshold: float,
        min_correlation: float,
        min_fires: int,
        min_seeds: int = MIN_SEEDS,
        *,
        duplicate_cosine: float,
    ) -> None:
        merged = [merge_duplicates(d, duplicate_cosine) for d in dicts]
        z = [activation_matrix(d.acts, d.d_sae) for d in merged]
        by_document = document_indicator(doc_ids)
        self.min_fires, self.min_seeds = min_fires, min_seeds
        self.threshold, self.min_correlation = threshold, min_correlation
        self.totals = [DocumentTotals.of(d.acts, doc_ids, d.d_sae) for d in merged]
        self.seed_pairs = list(combinations(range(len(dicts)), 2))
        # A latent just short of min_fires may be live in a resample, unless it would be merged
        # there. Density is not retested: at a fifth of all tokens its sampling error is nothing.
        self.eligible = []
        for d, t in zip(merged, self.totals, strict=True):
            fires = t.fires.sum(axis=0)
            rare = (fires > 0) & (fires < min_fires) & ~d.live
            copies = cosine_edges(d.W_dec, d.W_dec, rare, d.live, duplicate_cosine)
            rare[copies.left] = False
            self.eligible.append(d.live | rare)
        self.edges: list[Edges] = []
        self.cross: list[sp.csr_array] = []
        for a, b in self.seed_pairs:
            edges = cosine_edges(
                merged[a].W_dec, merged[b].W_dec, self.eligible[a], self.eligible[b], threshold
            )
            blocks = [by_document @ block for block in edge_products(z[a], z[b], edges)]
            self.edges.append(edges)
            self.cross.append(sp.csr_array(sp.hstack(blocks)))

    def matched(
        self,
        weights: Float[np.ndarray, " doc"],
        threshold: float | None = None,
        min_correlation: float | None = None,
    ) -> list[Edges]:
        """The matching of every seed pair when document i is there weights[i] times."""
        threshold = self.threshold if threshold is None else threshold
        least = self.min_correlation if min_correlation is None else min_correlation
        n_tokens = float(weights @ self.totals[0].n_tokens)
        fires = [weights @ t.fires for t in self.totals]
        sums = [weights @ t.sums for t in self.totals]
        squares = [weights @ t.squares for t in self.totals]
        live = [e & (f >= self.min_fires) for e, f in zip(self.eligible, fires, strict=True)]
        found = []
        for (a, b), edges, cross in zip(self.seed_pairs, self.edges, self.cross, strict=True):
            i, j = edges.left, edges.right
            agreement = correlation(
                n_tokens,
                weights @ cross,
                (sums[a][i], sums[b][j]),
                (squares[a][i], squares[b][j]),
            )
            agree = (agreement >= least) & (edges.cosines > threshold)
            passed = edges.where(live[a][i] & live[b][j] & agree)
            found.append(passed.where(max_weight_matching(*passed)))
        return found

    def count(self, matched: Sequence[Edges], without_seed: int | None = None) -> int:
        """S_>=min_seeds, of all seeds or of all but one.

        Where all have to agree, all of those that are left have to.
        """
        kept = [
            (pair, edges)
            for pair, edges in zip(self.seed_pairs, matched, strict=True)
            if without_seed not in pair
        ]
        classes = classes_of(
            len(self.totals), [pair for pair, _ in kept], [edges for _, edges in kept]
        )
        n_seeds = len(self.totals) - (without_seed is not None)
        return int(((classes >= 0).sum(axis=1) >= min(self.min_seeds, n_seeds)).sum())

    def spread(
        self,
        drawn: Iterable[Float[np.ndarray, " doc"]],
        threshold: float | None = None,
        min_correlation: float | None = None,
    ) -> Spread:
        """Jackknife over seeds, and variance over the weightings drawn."""
        how = (threshold, min_correlation)
        matched = self.matched(np.ones(len(self.totals[0].n_tokens)), *how)
        n_seeds = len(self.totals)
        leave_one_out = tuple(self.count(matched, without_seed=s) for s in range(n_seeds))
        replicates = [self.count(self.matched(weights, *how)) for weights in drawn]
        return Spread(
            found=self.count(matched),
            leave_one_out=leave_one_out,
            v_seeds=(n_seeds - 1) ** 2 / n_seeds * float(np.var(leave_one_out, ddof=1)),
            v_documents=float(np.var(replicates, ddof=1)),
        )


def reproducible_estimate(
    dicts: Sequence[LatentSet],
    doc_ids: Int[Tensor, " token"],
    x_held: Float[Tensor, "token d_in"],
    *,
    generator: torch.Generator,
    k: int | None = None,
    threshold: float | None = None,
    min_correlation: float = MIN_CORRELATION,
    min_fires: int = MIN_FIRES,
    min_seeds: int = MIN_SEEDS,
    duplicate_cosine: float | None = None,
    n_bootstrap: int = 100,
) -> Reproducibility:
    """S_>=r of K seeds less what matching finds between random dictionaries, with its interval.

    r is min_seeds: how many seeds have to find a latent. S_>=2 fills dictionaries that hold fewer
    latents than there is to find; at larger r a count stays below their size, and is of what
    seeds agree on most.

    dicts: one per seed, all on the same held-out tokens; doc_ids: the document of each of those
    tokens; x_held: rows of the same stream for the null, these tokens or a sample of them.
    k: latents per token of the null's dictionaries; None takes the slots of `dicts`, which where a
    threshold decides are as many as the fullest token needs. threshold: None takes `null_threshold`
    for the largest number of live latents. duplicate_cosine: as in `reproducible`.

    Interval: value -+ t * sqrt(v_seeds + v_documents + v_null).
    v_seeds: delete-one jackknife over seeds, (K-1)/K * sum_s (S_(-s) - mean)^2. S_(-s) counts the
    classes of the other K-1 seeds afresh, so everything that the seeds share (documents, stream)
    stays fixed; the level of S_(-s) is another but only its spread enters. Conservative in
    expectation for any symmetric statistic (Efron & Stein 1981, Ann. Statist. 9:586). Where all K
    have to agree, S_(-s) is what all K-1 agree on: another statistic, of which that bound says
    nothing, so there v_seeds is a heuristic.
    v_documents: bootstrap of whole held-out documents through the two tests they decide, liveness
    and agreement of activations, cosines fixed. Its spread is used, not its quantiles: a resample
    repeats documents and so loses rare latents, which would centre a quantile interval too low.
    v_null: the null's count is one draw of a count, variance itself.
    t: Student at Welch-Satterthwaite degrees of freedom, seeds giving K-1 and documents
    n_bootstrap-1, so three seeds are wide (t up to 4.3) and say so.

    What it covers: other seeds and other held-out documents of the same source, for this K, d_sae,
    k and training set. Not covered: features that this dictionary is too small for. Above
    CEILING_FRACTION * d_sae the value is marked censored and not identified.

    Raises InsufficientData below min_seeds seeds (no value) or below three seeds or MIN_DOCUMENTS
    documents (value without interval).
    """
    if min_seeds < MIN_SEEDS:
        raise ValueError(f"min_seeds is {min_seeds}; one seed reproduces nothing")
    n_seeds, n_docs = len(dicts), len(np.unique(np.asarray(doc_ids)))
    blank = Estimate("reproducible", value=None, n_seeds=n_seeds, identified=False)
    if n_seeds < min_seeds:
        reason = f"{n_seeds} seeds; at least {min_seeds} are needed"
        raise InsufficientData(replace(blank, reason=reason))
    d_sae, d_in = dicts[0].W_dec.shape
    most = max(d.n_live for d in dicts)
    k = dicts[0].acts.indices.shape[1] if k is None else k
    if threshold is None:
        threshold = null_threshold(x_held, most, most, generator=generator)
    count = reproducible(dicts, threshold, min_correlation, duplicate_cosine=duplicate_cosine)
    null = null_reproducible(
        x_held,
        [d.n_live for d in dicts],
        k,
        threshold=threshold,
        min_correlation=min_correlation,
        duplicate_cosine=count.duplicate_cosine,
        generator=generator,
    )
    found, by_chance = count.s_ge[min_seeds], null.s_ge[min_seeds]
    value = float(max(found - by_chance, 0))
    censored = found > CEILING_FRACTION * d_sae
    partial = replace(
        blank,
        value=value,
        censored=censored,
        per_dim=value / d_in,
        n_tokens=dicts[0].n_tokens,
        d_sae=d_sae,
        k=k,
    )
    if n_seeds < 3:
        raise InsufficientData(replace(partial, reason="no interval from fewer than three seeds"))
    if n_docs < MIN_DOCUMENTS:
        reason = (
            f"no interval from {n_docs} held-out documents; at least {MIN_DOCUMENTS} are needed"
        )
        raise InsufficientData(replace(partial, reason=reason))

    resampler = Resampler(
        dicts,
        doc_ids,
        threshold,
        min_correlation,
        min_fires,
        min_seeds,
        duplicate_cosine=count.duplicate_cosine,
    )
    spread = resampler.spread(document_weights(n_docs, n_bootstrap, generator=generator))
    return Reproducibility(
        estimate=with_interval(partial, found, by_chance, spread, n_bootstrap),
        count=count,
        null=null,
        leave_one_out=spread.leave_one_out,
        se_seeds=float(np.sqrt(spread.v_seeds)),
        se_documents=float(np.sqrt(spread.v_documents)),
        min_seeds=min_seeds,
    )


def with_interval(
    partial: Estimate, count: int, null: int, spread: Spread, n_bootstrap: int
) -> Estimate:
    """`count` less `null` with its 95% interval; above CEILING_FRACTION of d_sae it is censored."""
    value, d_sae = float(max(count - null, 0)), partial.d_sae or 0
    n_seeds = len(spread.leave_one_out)
    half = half_width(spread.v_seeds, spread.v_documents, float(null), n_seeds, n_bootstrap)
    censored = count > CEILING_FRACTION * d_sae
    return replace(
        partial,
        value=value,
        ci_low=max(value - half, 0.0),
        ci_high=value + half,
        identified=not censored,
        censored=censored,
        reason=(
            f"at the ceiling: {count} classes, of dictionaries of {d_sae} latents (censored at D)"
            if censored
            else None
        ),
    )


def half_width(
    v_seeds: float, v_documents: float, v_null: float, n_seeds: int, n_bootstrap: int
) -> float:
    """Half of the 95% interval: Student's t at Welch-Satterthwaite degrees of freedom.

    v_null is a variance taken as known; it widens and adds no uncertainty of its own.
    """
    total = v_seeds + v_documents + v_null
    if total == 0:
        return 0.0
    doubt = v_seeds**2 / (n_seeds - 1) + v_documents**2 / (n_bootstrap - 1)
    quantile = stats.t.ppf(0.975, total**2 / doubt) if doubt > 0 else stats.norm.ppf(0.975)
    return float(quantile * np.sqrt(total))
