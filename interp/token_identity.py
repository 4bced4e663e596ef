"""Do reproducible latents only name the current token? The entropy of the token where they fire.

A class that fires on one token alone has 0 bits, one that ignores the token as many as positions
drawn at random. Source: Heap et al., arXiv 2501.17727, who call it token distribution entropy and
find it low where SAEs were trained on a random transformer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import scipy.sparse as sp
import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp.documents import document_weights
from interp.estimate import Estimate
from interp.reproducibility import half_width
from saes.edges import activation_matrix
from saes.latent_set import LatentSet, merge_duplicates

DETECTOR_BITS = 1.0
"""Two tokens in equal parts; a class with less fires on essentially one, and is its detector."""
MIN_CLASSES = 10
"""Classes without which a share has no interval, whichever seed is left out."""
N_SHUFFLES = 64
BLOCK_FIRINGS = 1 << 16
"""Firings gathered at once; with every bootstrap sample beside them, about 100 MB."""


@dataclass(frozen=True, eq=False)
class TokenIdentity:
    """Of the reproducible classes of one dictionary, in the order of `ReproducibleCount.classes`.

    A class has the mean over its members: no seed is special, and their order changes nothing.
    """

    bits: Float[np.ndarray, " class"]
    """Entropy of the token's identity given that the class fires."""
    random_bits: Float[np.ndarray, " class"]
    """The same of as many held-out positions, drawn at random: the ceiling at that number."""
    all_bits: float
    """Of all held-out positions: the ceiling of a class that always fires."""
    relative: Estimate
    """`token_entropy_relative`: median over classes of bits / random_bits. Near 0 classes detect a
    token, near 1 they fire whatever it is."""
    detectors: Estimate
    """`token_detectors`: share of classes with less than DETECTOR_BITS."""


def entropy_bits(
    counts: Float[np.ndarray, " kind *sample"], starts: Int[np.ndarray, " group"]
) -> Float[np.ndarray, " group *sample"]:
    """Shannon entropy of each group of consecutive kinds, in bits; NaN where nothing was counted.

    Miller and Madow's: H of the shares + (K - 1) / (2 n ln 2), K kinds seen in n counts. The first
    term alone is too low by that much to first order; where n is not large against the number of
    kinds what is left of the bias is still downward, hence ceilings at equal n.
    Source: Miller 1955, in Quastler (ed.), Information Theory in Psychology, p. 95; Paninski 2003,
    Neural Computation 15:1191, eq. 4.
    """
    n, s, kinds = (
        np.add.reduceat(part, starts, axis=0)
        for part in (counts, _count_log_count(counts), (counts > 0).astype(float))
    )
    return _miller_madow(n, s, kinds)


def random_entropy_bits(
    token_ids: Int[np.ndarray, " position"],
    *,
    generator: torch.Generator,
    n_shuffles: int = N_SHUFFLES,
) -> Float[np.ndarray, " n"]:
    """`entropy_bits` of n positions drawn without replacement, for every n from 0 to all.

    Mean over shuffles; one shuffle gives every n at once, because each further position adds to
    sum c log c what the earlier ones of its token decide. One draw of 50 from a skewed text spreads
    by a third of a bit, so 64 of them by 0.04.
    """
    _, tokens = np.unique(token_ids, return_inverse=True)
    # Sixteen bits, where that is enough, are sorted in two passes.
    tokens = tokens.astype(np.min_scalar_type(int(tokens.max())))
    lengths = np.bincount(tokens)
    first = np.cumsum(lengths) - lengths
    n = np.arange(1, len(tokens) + 1)
    total = np.zeros(len(n))
    for _ in range(n_shuffles):
        drawn = tokens[torch.randperm(len(tokens), generator=generator).numpy()]
        order = np.argsort(drawn, kind="stable")
        earlier = np.empty(len(drawn))
        earlier[order] = np.arange(len(drawn)) - np.repeat(first, lengths)
        gained = _count_log_count(earlier + 1) - _count_log_count(earlier)
        total += _miller_madow(n, np.cumsum(gained), np.cumsum(earlier == 0))
    return np.concatenate([[np.nan], total / n_shuffles])


def token_identity(
    dicts: Sequence[LatentSet],
    classes: Int[np.ndarray, "class seed"],
    token_ids: Int[Tensor, " token"],
    doc_ids: Int[Tensor, " token"],
    *,
    generator: torch.Generator,
    n_bootstrap: int = 50,
) -> TokenIdentity:
    """Entropy of the token where each class fires, beside that of random positions.

    dicts, classes: what `reproducible` was given and what it found, on the tokens named here. The
    activations of merged duplicates are their absorber's. A latent that counts has fired on
    MIN_FIRES tokens or more, which bounds what few firings can do to an entropy.

    Intervals: value -+ t * sqrt(v_seeds + v_documents), as in `reproducible_estimate`. v_seeds:
    delete-one jackknife over seeds, classes keeping their other members and going with fewer than
    two. v_documents: bootstrap of whole documents, classes fixed. An estimate without a value or
    an interval carries the reason.
    """
    n_seeds, d_sae = len(dicts), dicts[0].d_sae
    _, token = np.unique(np.asarray(token_ids), return_inverse=True)
    _, doc = np.unique(np.asarray(doc_ids), return_inverse=True)
    n_docs = int(doc.max()) + 1
    ceiling = random_entropy_bits(token, generator=generator)
    drawn = document_weights(n_docs, n_bootstrap, generator=generator)
    # The documents as they are stand first, before the resampled ones.
    weights = np.column_stack([np.ones(n_docs), *drawn])
    members = _Members(*np.full((2, *classes.shape, weights.shape[1]), np.nan))
    for seed, found in enumerate(map(merge_duplicates, dicts)):
        mine = classes[:, seed] >= 0
        z = activation_matrix(found.acts, d_sae)[:, classes[mine, seed]]
        members.bits[mine, seed], n = _entropies(z, token, doc, weights)
        members.random[mine, seed] = ceiling[np.minimum(n, len(token)).astype(np.int64)]
    bits, random = members.by_class(range(n_seeds))
    blank = Estimate("", None, n_tokens=len(token), n_seeds=n_seeds, d_sae=d_sae)
    return TokenIdentity(
        bits=bits[:, 0],
        random_bits=random[:, 0],
        all_bits=float(ceiling[-1]),
        relative=_estimate(
            replace(blank, estimator="token_entropy_relative"),
            members,
            lambda bits, random: float(np.median(bits / random)),
        ),
        detectors=_estimate(
            replace(blank, estimator="token_detectors"),
            members,
            lambda bits, _: float(np.mean(bits < DETECTOR_BITS)),
        ),
    )


class _Members(NamedTuple):
    """Of every latent in a class and every sample of documents; NaN where there is none."""

    bits: Float[np.ndarray, "class seed sample"]
    random: Float[np.ndarray, "class seed sample"]

    def by_class(
        self, seeds: Sequence[int]
    ) -> tuple[Float[np.ndarray, "class sample"], Float[np.ndarray, "class sample"]]:
        """Means over the given seeds, of the classes that two of them hold."""
        fired = ~np.isnan(self.bits[:, seeds])
        kept = fired[..., 0].sum(axis=1) >= 2
        n = fired[kept].sum(axis=1)
        with np.errstate(invalid="ignore"):  # a class that fired in no document of a sample
            bits, random = (np.nansum(part[:, seeds][kept], axis=1) / n for part in self)
        return bits, random


def _entropies(
    z: sp.csc_array,
    token: Int[np.ndarray, " token"],
    doc: Int[np.ndarray, " token"],
    weights: Float[np.ndarray, "doc sample"],
) -> tuple[Float[np.ndarray, "latent sample"], Float[np.ndarray, "latent sample"]]:
    """Entropy of the tokens of each column of z, and its firings, in each sample of documents."""
    fires, n_kinds = np.diff(z.indptr), int(token.max()) + 1
    bits, n = np.empty((2, len(fires), weights.shape[1]))
    block_of = np.cumsum(fires, dtype=np.int64) // BLOCK_FIRINGS
    for block in np.split(np.arange(len(fires)), np.flatnonzero(np.diff(block_of)) + 1):
        if not len(block):
            continue
        at = z.indices[z.indptr[block[0]] : z.indptr[block[-1] + 1]]
        owner = np.repeat(np.arange(len(block)), fires[block])
        pair, which = np.unique(owner * n_kinds + token[at], return_inverse=True)
        shape = (len(pair), len(weights))
        counts = sp.csr_array((np.ones(len(at)), (which, doc[at])), shape=shape) @ weights
        starts = np.searchsorted(pair, np.arange(len(block)) * n_kinds)
        bits[block] = entropy_bits(counts, starts)
        n[block] = np.add.reduceat(counts, starts, axis=0)
    return bits, n


def _estimate(
    blank: Estimate,
    members: _Members,
    statistic: Callable[[Float[np.ndarray, " class"], Float[np.ndarray, " class"]], float],
) -> Estimate:
    """A statistic of the classes' entropies, with its interval over seeds and documents."""
    n_seeds = members.bits.shape[1]
    bits, random = members.by_class(range(n_seeds))
    if not len(bits):
        return replace(blank, identified=False, reason="no reproducible class")
    found = replace(blank, value=statistic(bits[:, 0], random[:, 0]))
    others = [members.by_class([s for s in range(n_seeds) if s != out]) for out in range(n_seeds)]
    fewest = min(len(bits) for bits, _ in others)
    if fewest < MIN_CLASSES:
        reason = f"no interval: without one of the seeds {fewest} classes are left"
        return replace(found, reason=f"{reason}; at least {MIN_CLASSES} are needed")
    without = [statistic(bits[:, 0], random[:, 0]) for bits, random in others]
    resampled = [
        statistic(b[fired], r[fired])
        for b, r in zip(bits.T[1:], random.T[1:], strict=True)
        if (fired := ~np.isnan(b)).any()
    ]
    v_seeds = (n_seeds - 1) ** 2 / n_seeds * float(np.var(without, ddof=1))
    v_documents = float(np.var(resampled, ddof=1))
    half = half_width(v_seeds, v_documents, 0.0, n_seeds, len(resampled))
    value = found.value or 0.0
    return replace(found, ci_low=max(value - half, 0.0), ci_high=value + half)


def _count_log_count(counts: Float[np.ndarray, " *shape"]) -> Float[np.ndarray, " *shape"]:
    """c log2 c, and 0 for 0."""
    return counts * np.log2(np.maximum(counts, 1.0))


def _miller_madow(
    n: Float[np.ndarray, " *shape"],
    sum_count_log_count: Float[np.ndarray, " *shape"],
    n_kinds: Float[np.ndarray, " *shape"],
) -> Float[np.ndarray, " *shape"]:
    with np.errstate(divide="ignore", invalid="ignore"):
        plug_in = np.log2(n) - sum_count_log_count / n
        return np.where(n > 0, plug_in + (n_kinds - 1) / (2 * n * np.log(2)), np.nan)
