"""The baseline that every model of the ladder has to beat."""

from __future__ import annotations

import numpy as np


def bigram_loss(train_ids: np.ndarray, held_out_ids: np.ndarray, d_vocab: int = 1024) -> float:
    """Held-out loss of a token bigram of the training text, nats per token.

    Witten-Bell smoothing onto the unigram, itself with one count added to each token.
    """
    pairs = train_ids[:-1].astype(np.int64) * d_vocab + train_ids[1:]
    counts = np.bincount(pairs, minlength=d_vocab**2).reshape(d_vocab, d_vocab).astype(float)
    unigram = counts.sum(0) + 1
    unigram /= unigram.sum()
    rows, kinds = counts.sum(1, keepdims=True), (counts > 0).sum(1, keepdims=True)
    smoothed = (counts + kinds * unigram) / np.maximum(rows + kinds, 1)
    smoothed[rows[:, 0] == 0] = unigram
    return float(-np.log(smoothed[held_out_ids[:-1], held_out_ids[1:]]).mean())
