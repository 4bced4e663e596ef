"""Latent activations summed by document, and the resampling of documents."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from saes.edges import activation_matrix
from saes.latent_set import MAX_DENSITY, MIN_FIRES, live_mask
from saes.sae import SparseActs


def document_indicator(doc_ids: Int[Tensor, " token"]) -> sp.csr_array:
    """Sparse 0/1 [doc, token], documents in order of their id; left-multiply to sum by document."""
    _, doc = np.unique(np.asarray(doc_ids), return_inverse=True)
    ones = np.ones(len(doc))
    return sp.csr_array(
        (ones, (doc, np.arange(len(doc)))), shape=(doc.max(initial=-1) + 1, len(doc))
    )


@dataclass(frozen=True)
class DocumentTotals:
    """Per document: tokens, and of every latent the firings, sum of z and sum of z^2.

    Estimates of one SAE and their document bootstrap need nothing else of the activations.
    """

    n_tokens: Float[np.ndarray, " doc"]
    fires: sp.csr_array
    """[doc, d_sae]"""
    sums: sp.csr_array
    """[doc, d_sae], sum of z."""
    squares: sp.csr_array
    """[doc, d_sae], sum of z^2."""

    @classmethod
    def of(cls, acts: SparseActs, doc_ids: Int[Tensor, " token"], d_sae: int) -> DocumentTotals:
        """From activations and the document of every token (any integers)."""
        if len(doc_ids) != len(acts.indices):
            raise ValueError(f"{len(doc_ids)} document ids for {len(acts.indices)} tokens")
        z = activation_matrix(acts, d_sae)
        by_document = document_indicator(doc_ids)
        return cls(
            n_tokens=by_document.sum(axis=1),
            fires=(by_document @ z.sign()).tocsr(),
            sums=(by_document @ z).tocsr(),
            squares=(by_document @ z**2).tocsr(),
        )

    def live(
        self, *, min_fires: int = MIN_FIRES, max_density: float = MAX_DENSITY
    ) -> Bool[np.ndarray, " d_sae"]:
        """`live_mask` of all documents together."""
        fires = self.fires.sum(axis=0)
        return live_mask(
            fires, float(self.n_tokens.sum()), min_fires=min_fires, max_density=max_density
        )


def document_weights(
    n_docs: int, n_replicates: int, *, generator: torch.Generator
) -> Iterator[Float[np.ndarray, " doc"]]:
    """How often each document occurs in each of n_replicates bootstrap samples of n_docs."""
    for _ in range(n_replicates):
        drawn = torch.randint(n_docs, (n_docs,), generator=generator)
        yield torch.bincount(drawn, minlength=n_docs).double().numpy()
