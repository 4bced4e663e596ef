"""Do reproducible latents only name the current token? Token and firing, told from one another.

Two ways round, for they differ. The entropy of the token where a class fires: 0 bits for a class of
one token, as many as random positions have for one that ignores the token. And how far the token
decides whether the class fires: a class of a hundred tokens, firing on each occurrence of them and
nowhere else, has a large entropy and is a function of the token all the same. In a small dictionary
on raw activations most are of that kind. The same is asked of the token's place in its block, the
other thing that an untrained network carries.
Source: Heap et al., arXiv 2501.17727, for the first (token distribution entropy).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
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
    explained_share: Float[np.ndarray, " class"]
    """Of the uncertainty about firing, by the token: 0 at random positions, 1 where it decides."""
    all_bits: float
    """Of all held-out positions: the ceiling of a class that always fires."""
    relative: Estimate
    """`token_entropy_relative`: median over classes of bits / random_bits. Near 0 classes detect a
    token, near 1 they fire whatever it is."""
    detectors: Estimate
    """`token_detectors`: share of classes with less than DETECTOR_BITS."""
    explained: Estimate
    """`token_explained`: median over classes of `explained_share`."""
    explained_by_place: Estimate
    """`position_explained`: the same with the place in the block instead of the token."""


class RandomPositions(NamedTuple):
    """What n positions drawn without replacement give in expectation, by n from 0 to all."""

    bits: Float[np.ndarray, " n"]
    """`entropy_bits`."""
    explained: Float[np.ndarray, " n"]
    """`explained_by_token`."""


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


def explained_by_token(
    counts: Float[np.ndarray, " kind *sample"],
    held: Float[np.ndarray, " kind *sample"],
    starts: Int[np.ndarray, " group"],
    n_positions: float | Float[np.ndarray, " *sample"],
) -> Float[np.ndarray, " group *sample"]:
    """1 - H(fires | token) / H(fires): the share of the uncertainty that the token removes.

    counts: firings on each kind of token that a latent fires on; held: positions that have it. NaN
    for a latent that fires nowhere, or everywhere. Theil's uncertainty coefficient.
    """
    n, given_token = (
        np.add.reduceat(part, starts, axis=0) for part in (counts, _uncertainty(counts, held))
    )
    return _explained(given_token, n, n_positions)


def random_positions(
    token_ids: Int[np.ndarray, " position"],
    *,
    generator: torch.Generator,
    n_shuffles: int = N_SHUFFLES,
) -> RandomPositions:
    """Entropy and explained share of positions drawn at random, for every number of them.

    Mean over shuffles; one shuffle gives every n at once, because each further position adds to
    sums over tokens what the earlier ones of its token decide. One draw of 50 from a skewed text
    spreads by a third of a bit, so 64 of them by 0.04.
    """
    _, tokens = np.unique(token_ids, return_inverse=True)
    # Sixteen bits, where that is enough, are sorted in two passes.
    tokens = tokens.astype(np.min_scalar_type(int(tokens.max())))
    lengths = np.bincount(tokens)
    first = np.cumsum(lengths) - lengths
    n = np.arange(1.0, len(tokens) + 1)
    bits, explained = np.zeros((2, len(n)))
    for _ in range(n_shuffles):
        drawn = tokens[torch.randperm(len(tokens), generator=generator).numpy()]
        order = np.argsort(drawn, kind="stable")
        earlier, held = np.empty((2, len(drawn)))
        earlier[order] = np.arange(len(drawn)) - np.repeat(first, lengths)
        held[order] = np.repeat(lengths, lengths)
        gained = _count_log_count(earlier + 1) - _count_log_count(earlier)
        bits += _miller_madow(n, np.cumsum(gained), np.cumsum(earlier == 0))
        gained = _uncertainty(earlier + 1, held) - _uncertainty(earlier, held)
        explained += _explained(np.cumsum(gained), n, len(drawn))
    return RandomPositions(*(np.concatenate([[np.nan], x / n_shuffles]) for x in (bits, explained)))


def token_identity(
    dicts: Sequence[LatentSet],
    classes: Int[np.ndarray, "class seed"],
    token_ids: Int[Tensor, " token"],
    places: Int[Tensor, " token"],
    doc_ids: Int[Tensor, " token"],
    *,
    duplicate_cosine: float,
    generator: torch.Generator,
    n_bootstrap: int = 25,
) -> TokenIdentity:
    """How token and firing tell of one another in each class, beside random positions.

    dicts, classes: what `reproducible` was given and what it found, on the tokens named here;
    places: of those tokens in their blocks; duplicate_cosine: the count's. The activations of
    merged duplicates are their absorber's. A latent that counts has fired on MIN_FIRES tokens or
    more, which bounds what few firings can do to an entropy.

    Intervals: value -+ t * sqrt(v_seeds + v_documents), as in `reproducible_estimate`. v_seeds:
    delete-one jackknife over seeds, classes keeping their other members and going with fewer than
    two. v_documents: bootstrap of whole documents, classes fixed. An estimate without a value or
    an interval carries the reason.
    """
    n_seeds, d_sae = len(dicts), dicts[0].d_sae
    _, token = np.unique(np.asarray(token_ids), return_inverse=True)
    _, place = np.unique(np.asarray(places), return_inverse=True)
    _, doc = np.unique(np.asarray(doc_ids), return_inverse=True)
    n_docs = int(doc.max()) + 1
    by_chance = random_positions(token, generator=generator)
    places_by_chance = random_positions(place, generator=generator)
    drawn = document_weights(n_docs, n_bootstrap, generator=generator)
    # The documents as they are stand first, before the resampled ones.
    weights = np.column_stack([np.ones(n_docs), *drawn])
    members = _Members(*np.full((4, *classes.shape, weights.shape[1]), np.nan))
    for seed, own in enumerate(dicts):
        found = merge_duplicates(own, duplicate_cosine)
        mine = np.flatnonzero(classes[:, seed] >= 0)
        z = activation_matrix(found.acts, d_sae)[:, classes[mine, seed]]
        for tally in _tallies(z, token, doc, weights):
            at = mine[tally.latents]
            members.bits[at, seed] = entropy_bits(tally.counts, tally.starts)
            members.random[at, seed] = by_chance.bits[np.minimum(tally.n, len(token))]
            members.by_token[at, seed] = _adjusted(tally, by_chance)
        for tally in _tallies(z, place, doc, weights):
            members.by_place[mine[tally.latents], seed] = _adjusted(tally, places_by_chance)
    whole = members.by_class(range(n_seeds))
    blank = Estimate("", None, n_tokens=len(token), n_seeds=n_seeds, d_sae=d_sae)
    return TokenIdentity(
        bits=whole.bits[:, 0],
        random_bits=whole.random[:, 0],
        explained_share=whole.by_token[:, 0],
        all_bits=float(by_chance.bits[-1]),
        relative=_estimate(
            replace(blank, estimator="token_entropy_relative"),
            members,
            lambda of: float(np.median(of.bits / of.random)),
        ),
        detectors=_estimate(
            replace(blank, estimator="token_detectors"),
            members,
            lambda of: float(np.mean(of.bits < DETECTOR_BITS)),
        ),
        explained=_estimate(
            replace(blank, estimator="token_explained"),
            members,
            lambda of: float(np.median(of.by_token)),
        ),
        explained_by_place=_estimate(
            replace(blank, estimator="position_explained"),
            members,
            lambda of: float(np.median(of.by_place)),
        ),
    )


class _Members(NamedTuple):
    """Of every latent in a class and every sample of documents; NaN where there is none.

    The same of whole classes, [class sample], and of the classes of one sample, [class].
    """

    bits: Float[np.ndarray, " class *seed_sample"]
    random: Float[np.ndarray, " class *seed_sample"]
    by_token: Float[np.ndarray, " class *seed_sample"]
    by_place: Float[np.ndarray, " class *seed_sample"]

    def by_class(self, seeds: Sequence[int]) -> _Members:
        """Means over the given seeds, of the classes that two of them hold."""
        fired = ~np.isnan(self.bits[:, seeds])
        kept = fired[..., 0].sum(axis=1) >= 2
        n = fired[kept].sum(axis=1)
        with np.errstate(invalid="ignore"):  # a class that fired in no document of a sample
            return _Members(*(np.nansum(part[:, seeds][kept], axis=1) / n for part in self))

    def sample(self, number: int) -> _Members:
        """The classes that fired in one sample, and more than once: one position has no entropy."""
        fired = self.random[:, number] > 0
        return _Members(*(part[fired, number] for part in self))


class _Tally(NamedTuple):
    """Where some latents fire, by kind of position, in every sample of documents."""

    latents: Int[np.ndarray, " latent"]
    starts: Int[np.ndarray, " latent"]
    """Where the kinds that each of them fires on begin."""
    counts: Float[np.ndarray, "kind sample"]
    """Firings."""
    held: Float[np.ndarray, "kind sample"]
    """Positions of that kind."""
    n_positions: Float[np.ndarray, " sample"]

    @property
    def n(self) -> Int[np.ndarray, "latent sample"]:
        """Firings of each."""
        return np.add.reduceat(self.counts, self.starts, axis=0).astype(np.int64)


def _tallies(
    z: sp.csc_array,
    kind: Int[np.ndarray, " token"],
    doc: Int[np.ndarray, " token"],
    weights: Float[np.ndarray, "doc sample"],
) -> Iterator[_Tally]:
    """Of the columns of z, a few at a time."""
    fires, n_kinds = np.diff(z.indptr), int(kind.max()) + 1
    positions = _by_document(kind, doc, n_kinds, weights)
    block_of = np.cumsum(fires, dtype=np.int64) // BLOCK_FIRINGS
    for block in np.split(np.arange(len(fires)), np.flatnonzero(np.diff(block_of)) + 1):
        if not len(block):
            continue
        at = z.indices[z.indptr[block[0]] : z.indptr[block[-1] + 1]]
        owner = np.repeat(np.arange(len(block)), fires[block])
        pair, which = np.unique(owner * n_kinds + kind[at], return_inverse=True)
        yield _Tally(
            latents=block,
            starts=np.searchsorted(pair, np.arange(len(block)) * n_kinds),
            counts=_by_document(which, doc[at], len(pair), weights),
            held=positions[pair % n_kinds],
            n_positions=positions.sum(axis=0),
        )


def _by_document(
    kind: Int[np.ndarray, " firing"],
    doc: Int[np.ndarray, " firing"],
    n_kinds: int,
    weights: Float[np.ndarray, "doc sample"],
) -> Float[np.ndarray, "kind sample"]:
    """How often each kind occurs in every sample."""
    shape = (n_kinds, len(weights))
    return sp.csr_array((np.ones(len(kind)), (kind, doc)), shape=shape) @ weights


def _estimate(
    blank: Estimate, members: _Members, statistic: Callable[[_Members], float]
) -> Estimate:
    """A statistic of the classes, with its interval over seeds and documents."""
    _, n_seeds, n_samples = members.bits.shape
    whole = members.by_class(range(n_seeds))
    if not len(whole.bits):
        return replace(blank, identified=False, reason="no reproducible class")
    value = statistic(whole.sample(0))
    found = replace(blank, value=value)
    others = [members.by_class([s for s in range(n_seeds) if s != out]) for out in range(n_seeds)]
    fewest = min(len(other.bits) for other in others)
    if fewest < MIN_CLASSES:
        reason = f"no interval: without one of the seeds {fewest} classes are left"
        return replace(found, reason=f"{reason}; at least {MIN_CLASSES} are needed")
    without = [statistic(other.sample(0)) for other in others]
    samples = map(whole.sample, range(1, n_samples))
    resampled = [statistic(sample) for sample in samples if len(sample.bits)]
    v_seeds = (n_seeds - 1) ** 2 / n_seeds * float(np.var(without, ddof=1))
    v_documents = float(np.var(resampled, ddof=1))
    half = half_width(v_seeds, v_documents, 0.0, n_seeds, len(resampled))
    # All of these are shares, which what is subtracted for chance may put just below 0.
    low, high = max(value - half, min(value, 0.0)), min(value + half, max(value, 1.0))
    return replace(found, ci_low=low, ci_high=high)


def _uncertainty(
    counts: Float[np.ndarray, " *shape"], held: Float[np.ndarray, " *shape"]
) -> Float[np.ndarray, " *shape"]:
    """held * H(counts / held), bits about which `counts` of `held` positions fire."""
    return _count_log_count(held) - _count_log_count(counts) - _count_log_count(held - counts)


def _adjusted(tally: _Tally, by_chance: RandomPositions) -> Float[np.ndarray, "latent sample"]:
    share = explained_by_token(tally.counts, tally.held, tally.starts, tally.n_positions)
    # A sample of the longest documents can have more positions than the text.
    chance = by_chance.explained[np.minimum(tally.n, len(by_chance.explained) - 1)]
    return (share - chance) / (1 - chance)


def _explained(
    given_token: Float[np.ndarray, " *shape"],
    n: Float[np.ndarray, " *shape"],
    n_positions: float | Float[np.ndarray, " *sample"],
) -> Float[np.ndarray, " *shape"]:
    alone = _uncertainty(n, np.asarray(n_positions, dtype=float))
    return 1 - np.divide(given_token, alone, out=np.full_like(alone, np.nan), where=alone > 0)


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
