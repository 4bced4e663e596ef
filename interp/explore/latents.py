"""One group of SAEs with its activations -> the records of all its latents."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import scipy.sparse as sp
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from interp.explore.agreement import in_other_seeds, neighbours
from interp.explore.firings import Firings, Text
from interp.explore.lens import Lens
from interp.explore.records import Latent, Match, Tokens
from interp.label_scores import LabelScore, label_latents
from interp.python_labels import LABELS
from saes.edges import activation_matrix
from saes.latent_set import LatentSet, live_mask, merge_duplicates
from saes.matching import ReproducibleCount, null_threshold, reproducible
from saes.sae import SAE, SparseActs

N_TOKENS_SHOWN = 10
N_FIRES_ON = 4
N_NEIGHBOURS = 5
MIN_SHOWN_F1 = 0.2
"""A label told worse than that, or no better than a shifted one, says nothing of the latent."""


@dataclass(frozen=True, eq=False)
class Tokenized:
    """The held-out text as a model reads it, and what Python says of it."""

    text: Text
    token_ids: Int[np.ndarray, " position"]
    doc_ids: Int[np.ndarray, " position"]
    vocabulary: list[str]
    labels: Bool[np.ndarray, "position label"] | None
    """None for text that is no Python."""
    known: Bool[np.ndarray, " position"]


@dataclass(frozen=True, eq=False)
class Seeds:
    """The SAEs of one group and what they did on the kept positions."""

    saes: Sequence[SAE]
    acts: Sequence[SparseActs]
    positions: Int[np.ndarray, " token"]
    """Of the rows of `acts` in the text."""
    counted_threshold: float | None
    """Decoder cosine of the study's matching, where the study recorded it."""
    held: Float[Tensor, "token d_in"] | None
    """The rows themselves, needed where it did not: two seeds, or few documents."""
    seed: int
    """The study's."""

    @cached_property
    def z(self) -> list[sp.csc_array]:
        """Activations of each seed, [token, d_sae]."""
        return [activation_matrix(a, s.d_sae) for a, s in zip(self.acts, self.saes, strict=True)]

    @cached_property
    def sets(self) -> list[LatentSet]:
        return [LatentSet.from_acts(s.W_dec, a) for s, a in zip(self.saes, self.acts, strict=True)]

    @cached_property
    def match_threshold(self) -> float | None:
        """Of the study's matching, recorded or found again; None for a single seed."""
        if self.counted_threshold is not None or self.held is None or len(self.saes) < 2:
            return self.counted_threshold
        most = max(found.n_live for found in self.sets)
        generator = torch.Generator().manual_seed(self.seed)
        return null_threshold(self.held, most, most, generator=generator)

    @cached_property
    def count(self) -> ReproducibleCount | None:
        """Of these seeds on the study's tokens and at its threshold; None for a single seed."""
        if self.match_threshold is None:
            return None
        return reproducible(self.sets, self.match_threshold)

    @cached_property
    def classes(self) -> Int[np.ndarray, "class seed"]:
        """The classes of reproducible latents."""
        if self.count is None:
            return np.empty((0, len(self.saes)), dtype=np.int64)
        return self.count.classes

    def found_again(self, min_seeds: int) -> Int[np.ndarray, "class seed"]:
        """The classes that a study counts which asks so many seeds to agree."""
        return self.classes[(self.classes >= 0).sum(axis=1) >= min_seeds]

    @cached_property
    def matches(self) -> list[list[list[Match]]]:
        return in_other_seeds([s.W_dec for s in self.saes], self.z, self.classes)

    def states(self, seed: int) -> list[str]:
        """Of each latent: whether the study counted it, or why not."""
        fires = np.diff(self.z[seed].indptr)
        n = len(self.positions)
        live = merged = self.sets[seed].live
        if self.count is not None:
            merged = merge_duplicates(self.sets[seed], self.count.duplicate_cosine).live
        often = live_mask(fires, n, max_density=np.inf)
        reasons = [(fires == 0, "dead"), (~often, "rare"), (~live, "dense"), (~merged, "duplicate")]
        masks, words = zip(*reasons, strict=True)
        return [str(state) for state in np.select(masks, words, default="counted")]

    def found_by(self, seed: int) -> Int[np.ndarray, " d_sae"]:
        """Seeds in each latent's class; 1 for a latent in none."""
        out = np.ones(self.saes[seed].d_sae, dtype=np.int64)
        mine = self.classes[self.classes[:, seed] >= 0]
        out[mine[:, seed]] = (mine >= 0).sum(axis=1)
        return out

    def labelled(self, seed: int, tokenized: Tokenized) -> dict[int, LabelScore]:
        """On the tokens of Python documents, every other of which is one half."""
        if tokenized.labels is None:
            return {}
        known = tokenized.known[self.positions]
        positions = self.positions[known]
        _, order = np.unique(tokenized.doc_ids[positions], return_inverse=True)
        acts = SparseActs(*(part[torch.from_numpy(known)] for part in self.acts[seed]))
        return label_latents(
            acts,
            self.saes[seed].d_sae,
            tokenized.labels[positions],
            LABELS,
            order % 2 == 0,
            generator=torch.Generator().manual_seed(seed),
        )


def latents(
    seeds: Seeds, seed: int, tokenized: Tokenized, lens: Lens, *, rng: np.random.Generator
) -> Iterator[Latent]:
    """The records of one seed's latents, in order."""
    z, sae = seeds.z[seed], seeds.saes[seed]
    norms = torch.linalg.vector_norm(sae.W_dec.double(), dim=1).numpy()
    mass = np.asarray(z.sum(axis=0)).ravel() * norms
    mass = mass / mass.sum() if mass.sum() else mass
    near, cosines = neighbours(sae.W_dec, N_NEIGHBOURS)
    states, found_by = seeds.states(seed), seeds.found_by(seed)
    labels = {
        latent: label
        for latent, label in seeds.labelled(seed, tokenized).items()
        if label.f1 >= MIN_SHOWN_F1 and label.f1 > label.null_f1
    }
    matched = seeds.match_threshold is not None
    for i in range(sae.d_sae):
        mine = slice(z.indptr[i], z.indptr[i + 1])
        firings = Firings(seeds.positions[z.indices[mine]], z.data[mine])
        label = labels.get(i)
        yield Latent(
            number=i,
            state=states[i],
            density=len(firings.values) / len(seeds.positions),
            mass=float(mass[i]),
            max_act=float(firings.values.max(initial=0.0)),
            token_entropy_bits=firings.token_entropy_bits(tokenized.token_ids),
            found_by=int(found_by[i]) if matched and states[i] == "counted" else None,
            label=label.label if label else None,
            label_f1=label.f1 if label else None,
            label_told=bool(label and label.dedicated),
            fires_on=firings.fires_on(tokenized.text.text, N_FIRES_ON),
            promotes=_named(lens.promoted[i], lens.promoted_logits[i], tokenized.vocabulary),
            suppresses=_named(lens.suppressed[i], lens.suppressed_logits[i], tokenized.vocabulary),
            neighbours=tuple(zip(near[i].tolist(), cosines[i].tolist(), strict=True)),
            histogram=firings.histogram(),
            passages=firings.passages(tokenized.text, rng),
            in_seeds=tuple(seeds.matches[seed][i]),
        )


def _named(ids: torch.Tensor, logits: torch.Tensor, vocabulary: list[str]) -> Tokens:
    return tuple((vocabulary[i], x) for i, x in zip(ids.tolist(), logits.tolist(), strict=True))
