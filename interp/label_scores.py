"""Which labels of tokens have a latent of their own: AUC and best F1, against shifted labels.

Arrays in, records out. A latent and a cut are chosen on one half of the documents and scored on the
other, so that the best of thousands of latents is not flattered by having been the best.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int

from saes.latent_set import live_mask
from saes.sae import SparseActs

MIN_F1 = 0.5
"""A dedicated latent's F1 on documents it was not chosen on."""
MIN_TOKENS = 50
"""A label that fewer tokens of either half carry is not scored."""
MIN_SHIFT_TOKENS = 1_000
"""Labels are shifted along the text by at least so much: beyond what one line says of the next."""


@dataclass(frozen=True)
class LabelScore:
    """A latent and a label: that one's best latent (`score_labels`) or this one's best label."""

    label: str
    n_tokens: int
    """That carry it, in both halves."""
    latent: int
    """Label or latent was chosen on the first half, with the cut: the activation above which the
    latent says yes."""
    threshold: float
    f1: float
    """On the second half. Saying yes everywhere has 2 p / (1 + p) for a share of p."""
    null_f1: float
    """The largest F1 of the same procedure over labels shifted along the text."""
    auc: float
    """On the second half, of the activation, ties counting half."""

    @property
    def dedicated(self) -> bool:
        """Whether the latent tells the label, and more than the procedure finds in shifted ones."""
        return self.f1 >= MIN_F1 and self.f1 > self.null_f1


def score_labels(
    acts: SparseActs,
    d_sae: int,
    labels: Bool[np.ndarray, "token label"],
    names: Sequence[str],
    first_half: Bool[np.ndarray, " token"],
    *,
    generator: torch.Generator,
    n_null: int = 20,
) -> list[LabelScore]:
    """The best latent of every label that enough tokens carry.

    acts: of one SAE on consecutive tokens; first_half: tokens to choose on (whole documents), the
    others are scored. Only latents that count are candidates (see `saes.latent_set.live_mask`).
    The null keeps everything but what links labels to latents: it shifts the labels of all tokens
    by one random distance, `n_null` times, and chooses and scores again; so "above the null" is
    p <= 1 / (n_null + 1) for one label. Labels without any candidate are left out.

    Raises ValueError where shapes disagree.
    """
    data = _Labelled.of(acts, d_sae, labels, names, first_half)
    return data.scores(_latent_of_each_label, n_null, generator)


def label_latents(
    acts: SparseActs,
    d_sae: int,
    labels: Bool[np.ndarray, "token label"],
    names: Sequence[str],
    first_half: Bool[np.ndarray, " token"],
    *,
    generator: torch.Generator,
    n_null: int = 3,
) -> dict[int, LabelScore]:
    """The label that each counted latent tells best: `score_labels`, asked of latents.

    A latent that never fires on the first half has none. Raises ValueError where shapes disagree.
    """
    data = _Labelled.of(acts, d_sae, labels, names, first_half)
    found = data.scores(_label_of_each_latent, n_null, generator)
    return {score.latent: score for score in found}


@dataclass(frozen=True, eq=False)
class _Firings:
    """Firings sorted by latent, and by falling activation within it."""

    token: Int[np.ndarray, " firing"]
    value: Float[np.ndarray, " firing"]
    bounds: dict[int, tuple[int, int]]
    """Of every latent that counts."""

    @classmethod
    def of(cls, acts: SparseActs, d_sae: int) -> _Firings:
        indices, values = acts.indices.numpy(), acts.values.numpy()
        token, slot = np.nonzero(values > 0)
        latent, value = indices[token, slot], values[token, slot]
        order = np.lexsort((-value, latent))
        counts = np.bincount(latent, minlength=d_sae)
        live = live_mask(counts.astype(float), float(len(values)))
        ends = np.cumsum(counts)
        bounds = {int(i): (int(ends[i] - counts[i]), int(ends[i])) for i in np.flatnonzero(live)}
        return cls(token[order], value[order], bounds)


@dataclass(frozen=True, eq=False)
class _Pairs:
    """Latents and labels chosen for each other, and the cut above which the latent says yes."""

    latent: Int[np.ndarray, " pair"]
    column: Int[np.ndarray, " pair"]
    threshold: Float[np.ndarray, " pair"]


_Choose = Callable[[_Firings, Bool[np.ndarray, "token label"], Bool[np.ndarray, " token"]], _Pairs]


@dataclass(frozen=True, eq=False)
class _Labelled:
    """Firings on tokens whose labels are known, of those labels that enough tokens carry."""

    firings: _Firings
    labels: Bool[np.ndarray, "token label"]
    names: tuple[str, ...]
    first_half: Bool[np.ndarray, " token"]

    @classmethod
    def of(
        cls,
        acts: SparseActs,
        d_sae: int,
        labels: Bool[np.ndarray, "token label"],
        names: Sequence[str],
        first_half: Bool[np.ndarray, " token"],
    ) -> _Labelled:
        if not len(acts.indices) == len(labels) == len(first_half) or labels.shape[1] != len(names):
            raise ValueError(
                f"{len(acts.indices)} tokens of activations, {labels.shape} labels of "
                f"{len(names)} names and {len(first_half)} marks of the half do not belong together"
            )
        halves = labels[first_half].sum(0), labels[~first_half].sum(0)
        columns = np.flatnonzero(np.minimum(*halves) >= MIN_TOKENS)
        kept = tuple(names[int(column)] for column in columns)
        return cls(_Firings.of(acts, d_sae), labels[:, columns], kept, first_half)

    def scores(self, choose: _Choose, n_null: int, generator: torch.Generator) -> list[LabelScore]:
        """Pairs chosen on the first half and scored on the other, beside those of shifted labels.

        However labels lie, `choose` makes the same number of pairs for the same things.
        """
        if not self.names:
            return []
        chosen = choose(self.firings, self.labels, self.first_half)
        f1, auc = _score(self.firings, self.labels, ~self.first_half, chosen)
        null = np.zeros(len(f1))
        for by in _shifts(len(self.labels), n_null, generator):
            shifted = np.roll(self.labels, by, axis=0)
            again = choose(self.firings, shifted, self.first_half)
            null = np.maximum(null, _score(self.firings, shifted, ~self.first_half, again)[0])
        if len(self.labels) <= 2 * MIN_SHIFT_TOKENS:
            null[:] = 1.0  # too short a text to shift: nothing is shown
        n_tokens = self.labels.sum(0)
        return [
            LabelScore(
                label=self.names[int(column)],
                n_tokens=int(n_tokens[column]),
                latent=int(chosen.latent[i]),
                threshold=float(chosen.threshold[i]),
                f1=float(f1[i]),
                null_f1=float(null[i]),
                auc=float(auc[i]),
            )
            for i, column in enumerate(chosen.column)
        ]


def _shifts(n_tokens: int, n_null: int, generator: torch.Generator) -> Iterator[int]:
    """Random distances to shift labels by; none where the text is too short."""
    room = n_tokens - 2 * MIN_SHIFT_TOKENS
    for _ in range(n_null if room > 0 else 0):
        yield MIN_SHIFT_TOKENS + int(torch.randint(room, (1,), generator=generator))


def _latent_of_each_label(
    firings: _Firings, labels: Bool[np.ndarray, "token label"], half: Bool[np.ndarray, " token"]
) -> _Pairs:
    """The latent and cut of the largest F1 = 2 TP / (said yes + is yes), on the half."""
    best = np.full(labels.shape[1], -1.0)
    latent = np.zeros(labels.shape[1], dtype=np.int64)
    threshold = np.full(labels.shape[1], np.inf)
    for number, cuts, found in _best_cuts(firings, labels, half):
        better = found > best
        best[better], latent[better] = found[better], number
        threshold[better] = cuts[better]
    told = np.flatnonzero(best >= 0)  # all or none: every latent that fires has a cut for each
    return _Pairs(latent[told], told, threshold[told])


def _label_of_each_latent(
    firings: _Firings, labels: Bool[np.ndarray, "token label"], half: Bool[np.ndarray, " token"]
) -> _Pairs:
    """The label and cut of the largest F1, of every latent that fires on the half."""
    chosen = [
        (number, int(f1.argmax()), cuts[int(f1.argmax())])
        for number, cuts, f1 in _best_cuts(firings, labels, half)
    ]
    latent, column, threshold = zip(*chosen, strict=True) if chosen else ((), (), ())
    return _Pairs(
        np.array(latent, dtype=np.int64), np.array(column, dtype=np.int64), np.array(threshold)
    )


def _best_cuts(
    firings: _Firings, labels: Bool[np.ndarray, "token label"], half: Bool[np.ndarray, " token"]
) -> Iterator[tuple[int, Float[np.ndarray, " label"], Float[np.ndarray, " label"]]]:
    """Of each latent that fires on the half: the best cut for every label, and its F1."""
    positives = labels[half].sum(0)
    for number, (start, end) in firings.bounds.items():
        here = half[firings.token[start:end]]
        tokens, values = firings.token[start:end][here], firings.value[start:end][here]
        if not len(tokens):
            continue
        true = labels[tokens].cumsum(0)
        said = np.arange(1, len(tokens) + 1)
        f1 = 2 * true / (said[:, None] + positives)
        # Equal activations cannot be cut apart.
        f1[:-1][values[:-1] == values[1:]] = -1.0
        cut = f1.argmax(0)
        yield number, values[cut], f1[cut, np.arange(f1.shape[1])]


def _score(
    firings: _Firings,
    labels: Bool[np.ndarray, "token label"],
    half: Bool[np.ndarray, " token"],
    pairs: _Pairs,
) -> tuple[Float[np.ndarray, " pair"], Float[np.ndarray, " pair"]]:
    """F1 and AUC of the pairs on the half."""
    n, positives = int(half.sum()), labels[half].sum(0)
    f1, auc = np.zeros(len(pairs.latent)), np.zeros(len(pairs.latent))
    for i, (number, column) in enumerate(zip(pairs.latent, pairs.column, strict=True)):
        start, end = firings.bounds[int(number)]
        here = half[firings.token[start:end]]
        tokens, values = firings.token[start:end][here], firings.value[start:end][here]
        is_label = labels[tokens, column]
        said = values >= pairs.threshold[i]
        f1[i] = 2 * (is_label & said).sum() / max(said.sum() + positives[column], 1)
        auc[i] = _auc(values, is_label, int(positives[column]), n)
    return f1, auc


def _auc(
    values: Float[np.ndarray, " firing"],
    is_label: Bool[np.ndarray, " firing"],
    n_positive: int,
    n: int,
) -> float:
    """P(a labelled token's activation exceeds an unlabelled one's) + P(equal) / 2.

    `values` are the positive ones, falling; the other tokens are equal at zero.
    """
    n_negative = n - n_positive
    if not n_positive or not n_negative:
        return 0.5
    _, group = np.unique(-values, return_inverse=True)
    up = np.bincount(group, is_label, minlength=0)
    down = np.bincount(group, ~is_label, minlength=0)
    up = np.append(up, n_positive - up.sum())  # the tokens at zero come last
    down = np.append(down, n_negative - down.sum())
    below = down.sum() - np.cumsum(down)
    return float((up * (below + down / 2)).sum() / (n_positive * n_negative))
