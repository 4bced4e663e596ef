"""Cross-entropy in nats per token and nats per byte, with document-bootstrap intervals.

Targets are tokens of real text that have a predecessor in their block: the token before each
document (BOS or EOS), padding and position 0 of a block are not counted. A byte counts when its
token does, so both units divide the same sum.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from interp.errors import UserError

if TYPE_CHECKING:  # this module is a leaf
    from interp.models import Model
    from interp.tokens import TokenBlocks

N_RESAMPLES = 2000
_LOGITS_PER_CHUNK = 1 << 23
"""Logits held at once (32 MB in float32): a vocabulary of 50k never exists for a whole batch."""
_TOKENS_PER_CHUNK = 1024
"""More make no product faster, and the logits of a small vocabulary would leave the cache."""


@dataclass(frozen=True, eq=False)
class LossResult:
    """Token-weighted cross-entropy. Intervals are 95%, over documents; None below two documents."""

    nats_per_token: float
    nats_per_byte: float
    ci_nats_per_token: tuple[float, float] | None
    ci_nats_per_byte: tuple[float, float] | None
    n_tokens: int
    """Targets."""
    n_bytes: int
    """Bytes of the targets."""
    n_docs: int
    document_ids: Int[Tensor, " doc"]
    document_nats: Float[Tensor, " doc"]
    """Summed over a document's targets; float64, as the two below align with it."""
    document_tokens: Float[Tensor, " doc"]
    document_bytes: Float[Tensor, " doc"]

    def __repr__(self) -> str:
        ends = self.ci_nats_per_token
        interval = f" [{ends[0]:.4f}, {ends[1]:.4f}]" if ends else ""
        return (
            f"LossResult({self.nats_per_token:.4f}{interval} nats/token, "
            f"{self.nats_per_byte:.4f} nats/byte, {self.n_tokens:,} tokens, "
            f"{self.n_docs:,} documents)"
        )


class LossSums:
    """Sums per document, accumulated in float64; feed it any pieces in any order.

    `model` is named where a loss is refused.
    """

    def __init__(self, model: str = "the model") -> None:
        self._sums = np.zeros((3, 0))
        self._model = model

    def update(
        self,
        nll: Float[Tensor, "*shape"],
        is_target: Bool[Tensor, "*shape"],
        doc_ids: Int[Tensor, "*shape"],
        n_bytes: Int[Tensor, "*shape"],
    ) -> None:
        """Add tokens: `nll` in nats, `n_bytes` of each token. What is no target is ignored.

        Raises UserError as `require_finite` does.
        """
        mask = is_target.numpy()
        docs = doc_ids.numpy()[mask]
        if docs.size == 0:
            return
        require_finite(nll, is_target, doc_ids, self._model)
        size = max(self._sums.shape[1], int(docs.max()) + 1)
        grown = np.zeros((3, size))
        grown[:, : self._sums.shape[1]] = self._sums
        for row, weight in enumerate((nll.numpy(), None, n_bytes.numpy())):
            weights = None if weight is None else weight[mask]
            grown[row] += np.bincount(docs, weights=weights, minlength=size)
        self._sums = grown

    def result(
        self, *, generator: np.random.Generator | None = None, n_resamples: int = N_RESAMPLES
    ) -> LossResult:
        """The means and their intervals. Raises UserError when there was no target.

        `generator` draws the resamples; by default one seeded with 0, so that results repeat.
        """
        documents = np.flatnonzero(self._sums[1])
        sums = self._sums[:, documents]
        if documents.size == 0:
            raise UserError("the text has no token to predict; use a longer text")
        nats, n_tokens, n_bytes = sums.sum(axis=1)
        intervals: list[tuple[float, float] | None] = [None, None]
        if documents.size > 1:
            draws = bootstrap_documents(
                sums, generator or np.random.default_rng(0), n_resamples=n_resamples
            )
            ratios = draws[0] / draws[1:]
            low, high = np.quantile(ratios, [0.025, 0.975], axis=1)
            intervals = [(float(a), float(b)) for a, b in zip(low, high, strict=True)]
        return LossResult(
            nats_per_token=float(nats / n_tokens),
            nats_per_byte=float(nats / n_bytes),
            ci_nats_per_token=intervals[0],
            ci_nats_per_byte=intervals[1],
            n_tokens=int(n_tokens),
            n_bytes=int(n_bytes),
            n_docs=int(documents.size),
            document_ids=torch.from_numpy(documents),
            document_nats=torch.from_numpy(sums[0]),
            document_tokens=torch.from_numpy(sums[1]),
            document_bytes=torch.from_numpy(sums[2]),
        )


def require_finite(
    nll: Float[Tensor, "*shape"],
    is_target: Bool[Tensor, "*shape"],
    doc_ids: Int[Tensor, "*shape"],
    model: str,
) -> None:
    """Raise UserError, with the first document, where a target's loss is NaN or infinite."""
    bad = doc_ids[is_target & ~torch.isfinite(nll)]
    if bad.numel():
        raise UserError(
            f"{model}: the loss is not finite, first in document {int(bad[0])}; check the "
            "checkpoint or use float32"
        )


def bootstrap_documents(
    sums: np.ndarray, generator: np.random.Generator, *, n_resamples: int = N_RESAMPLES
) -> np.ndarray:
    """Totals of `sums` [quantity doc] over documents drawn with replacement: [quantity resample].

    A ratio of two rows is then a resample of a ratio of sums.
    """
    n_docs = sums.shape[1]
    by_document = np.ascontiguousarray(sums.T)
    totals = np.empty((sums.shape[0], n_resamples))
    per_piece = max(1, (1 << 21) // n_docs)
    for start in range(0, n_resamples, per_piece):
        stop = min(start + per_piece, n_resamples)
        drawn = generator.integers(n_docs, size=(stop - start, n_docs))
        # How often each document was drawn, times its sums: one small product, no gathers.
        offset = np.arange(stop - start)[:, None] * n_docs
        counts = np.bincount((drawn + offset).ravel(), minlength=drawn.size)
        totals[:, start:stop] = (rearrange(counts, "(r d) -> r d", d=n_docs) @ by_document).T
    return totals


def token_nll(
    hidden: Float[Tensor, "token d_model"],
    W_U: Float[Tensor, "d_vocab d_model"],
    targets: Int[Tensor, " token"],
    *,
    bias: Float[Tensor, " d_vocab"] | None = None,
) -> Float[Tensor, " token"]:
    """-log softmax(W_U h + bias)[target], in nats and float32, chunked over tokens.

    `hidden` is the backbone's output after its final norm.
    """
    nll = torch.empty(len(targets), dtype=torch.float32, device=hidden.device)
    step = max(1, min(_TOKENS_PER_CHUNK, _LOGITS_PER_CHUNK // W_U.shape[0]))
    for start in range(0, len(targets), step):
        piece = slice(start, start + step)
        logits = F.linear(hidden[piece], W_U, bias).float()
        nll[piece] = F.cross_entropy(logits, targets[piece].long(), reduction="none")
    return nll


def block_nll(
    model: Model,
    hidden: Float[Tensor, "batch pos d_model"],
    ids: Int[Tensor, "batch pos"],
) -> Float[Tensor, "batch pos"]:
    """-log p(token at pos | the tokens before it in its block); 0 at position 0."""
    head = model.hf.get_output_embeddings()
    hidden = hidden.to(head.weight.device)  # a model may be spread over several
    # Shift the targets, not the hidden states: those would be copied.
    targets = torch.roll(ids, -1, dims=1).to(hidden.device)
    shifted = token_nll(
        rearrange(hidden, "batch pos d -> (batch pos) d"),
        head.weight,
        rearrange(targets, "batch pos -> (batch pos)"),
        bias=head.bias,
    )
    nll = torch.roll(rearrange(shifted, "(batch pos) -> batch pos", batch=len(ids)), 1, dims=1)
    nll[:, 0] = 0.0
    return nll


def loss(
    model: Model,
    tokens: TokenBlocks,
    *,
    stride: int | None = None,
    batch_size: int = 32,
    generator: np.random.Generator | None = None,
    n_resamples: int = N_RESAMPLES,
    heartbeat: Callable[[float], None] | None = None,
) -> LossResult:
    """The model's loss on token blocks, in nats per token and per byte.

    Each token is predicted from the tokens before it in its block, those of earlier documents
    included: from half a context on average. With a `stride`, windows of a block's length begin
    every `stride` tokens of the same text and only what a window adds is counted, so that each
    token has at least n_ctx - stride tokens before it (as far as there are any), at n_ctx / stride
    times the cost. Bytes make models with different tokenizers comparable. `heartbeat` hears after
    every batch what share is done.

    Raises UserError for a stride that is not from 1 to n_ctx - 1.
    """
    ids, counts, doc_ids, n_bytes = _windows(tokens, stride)
    sums = LossSums(model.name)
    for start in range(0, len(ids), batch_size):
        batch = slice(start, start + batch_size)
        with torch.inference_mode():
            on_device = ids[batch].to(model.device, torch.int64)
            nll = block_nll(model, model.final_hidden(on_device), on_device).cpu()
        sums.update(nll, counts[batch], doc_ids[batch], n_bytes[batch])
        if heartbeat is not None:
            heartbeat(min(batch.stop / len(ids), 1.0))
    return sums.result(generator=generator, n_resamples=n_resamples)


def _windows(tokens: TokenBlocks, stride: int | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """ids, counted, doc_ids and n_bytes, each [window pos]; overlapping views of the text."""
    if stride is None:
        return tokens.ids, tokens.is_target, tokens.doc_ids, tokens.n_bytes
    n_ctx = tokens.n_ctx
    if not 1 <= stride < n_ctx:
        raise UserError(f"stride {stride}: blocks have {n_ctx} tokens; use 1 to {n_ctx - 1}")
    # What a window adds: all of the first one but its first token, the end of every other.
    missing = -(tokens.ids.numel() - n_ctx) % stride
    padding = {"ids": 0, "is_text": False, "doc_ids": -1, "n_bytes": 0}
    ids, is_text, doc_ids, n_bytes = (
        F.pad(getattr(tokens, name).flatten(), (0, missing), value=value).unfold(0, n_ctx, stride)
        for name, value in padding.items()
    )
    added = torch.zeros(ids.shape, dtype=torch.bool)
    added[:, n_ctx - stride :] = True
    added[0, 1:] = True
    return ids, is_text & added, doc_ids, n_bytes
