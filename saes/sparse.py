"""Products with sparse latent activations: decode, and the two transposes.

`embedding_bag` over latents decodes; over rows, with slots sorted by latent, it sums per latent.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

kernels: Any
try:
    from saes import kernels
except ImportError:  # numba is not installed: plain torch computes the same, several times slower
    kernels = None


LARGE_MATRIX = 1 << 20
"""Weights from which the whole step runs in compiled code with memory of its own. Smaller ones keep
torch's products, whose last bits differ."""


def is_large(n_weights: int) -> bool:
    """Whether a matrix of so many weights takes the path for large ones."""
    return n_weights >= LARGE_MATRIX


def has_kernels(tensor: Tensor) -> bool:
    """Whether the compiled kernels serve this tensor's device."""
    return kernels is not None and tensor.device.type == "cpu"


class Slots(NamedTuple):
    """Active latents of a batch, row by row: a sparse [row d_sae] matrix.

    A value of 0 means that the slot is unused: the latent named beside it did not fire.
    """

    latents: Int[Tensor, " slot"]
    values: Float[Tensor, " slot"]
    rows: Int[Tensor, " slot"]
    """Row of each slot, ascending."""
    starts: Int[Tensor, " row"]
    """First slot of each row."""

    @classmethod
    def from_topk(cls, indices: Int[Tensor, "token k"], values: Float[Tensor, "token k"]) -> Slots:
        """k slots per token; shares the memory of contiguous tensors."""
        starts, rows = _equal_rows(*indices.shape, indices.device)
        return cls(indices.flatten(), values.flatten(), rows, starts)


@lru_cache(maxsize=64)
def _equal_rows(n_tokens: int, k: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """First slot of each token, token of each slot."""
    tokens = torch.arange(n_tokens, device=device)
    return tokens * k, tokens.repeat_interleave(k)


def decode_sparse(slots: Slots, W_dec: Float[Tensor, "d_sae d_in"]) -> Float[Tensor, "row d_in"]:
    """For every row, the sum over its slots of value * W_dec[latent]."""
    return functional.embedding_bag(
        slots.latents, W_dec, slots.starts, per_sample_weights=slots.values, mode="sum"
    )


def decoder_dots(
    rows: Float[Tensor, "row d_in"], slots: Slots, W_dec: Float[Tensor, "d_sae d_in"]
) -> Float[Tensor, " slot"]:
    """rows[row] . W_dec[latent] for every slot: the backward of `decode_sparse` to its values."""
    if has_kernels(rows) and is_large(W_dec.numel()):
        dots = torch.empty_like(slots.values)
        arrays = (rows, slots.latents, slots.starts, W_dec, dots)
        kernels.row_dots(*(tensor.numpy() for tensor in arrays))
        return dots
    return torch.ops.aten._embedding_bag_per_sample_weights_backward(
        rows, W_dec, slots.latents, slots.starts, slots.rows, 0
    )


def exact_values(
    slots: Slots,
    centred: Float[Tensor, "token d_in"],
    W_enc: Float[Tensor, "d_in d_sae"],
    b_enc: Float[Tensor, " d_sae"],
) -> None:
    """Replace the values by ReLU(centred W_enc + b_enc) in float32; unused slots stay unused."""
    dots = decoder_dots(centred, slots, W_enc.t())
    if has_kernels(dots):
        arrays = (dots.numpy(), b_enc.numpy(), slots.latents.numpy(), slots.values.numpy())
        kernels.exact_values(*arrays)
        return
    # An unused slot may name a latent that another slot uses.
    torch.mul(dots.add_(b_enc[slots.latents]).relu_(), slots.values > 0, out=slots.values)


class ByLatent:
    """Slots of a batch sorted by latent: a sparse [row d_sae] matrix, transposed.

    Carries two sets of values at once, the activations and their gradients; the gradients of
    unused slots count as 0 (ReLU passes none). Scratch is kept from batch to batch.
    """

    def __init__(self, n_slots: int, d_sae: int, *, device: torch.device) -> None:
        """`n_slots` is the most that a batch can have."""
        self.n_slots = n_slots
        self._room = (
            torch.empty(n_slots, dtype=torch.int64, device=device),
            torch.empty(n_slots, device=device),
            torch.empty(n_slots, device=device),
        )
        self.starts: Int[Tensor, " d_sae"] = torch.empty(d_sae, dtype=torch.int64, device=device)
        """First slot of each latent."""
        self.grad_sums: Float[Tensor, " d_sae"] = torch.empty(d_sae, device=device)
        self.rows: Int[Tensor, " slot"]
        self.values: Float[Tensor, " slot"]
        self.grad_values: Float[Tensor, " slot"]
        self.rows, self.values, self.grad_values = self._room

    def sort(self, slots: Slots, grad_values: Float[Tensor, " slot"]) -> None:
        """Take in a batch."""
        self.rows, self.values, self.grad_values = (t[: len(slots.latents)] for t in self._room)
        if has_kernels(slots.values):
            inputs = (slots.latents, slots.values, grad_values, slots.rows)
            outputs = (self.starts, self.rows, self.values, self.grad_values, self.grad_sums)
            kernels.group_by_latent(*(tensor.numpy() for tensor in (*inputs, *outputs)))
            return
        latents, order = slots.latents.sort(stable=True)
        counts = torch.bincount(latents, minlength=len(self.starts))
        torch.sub(counts.cumsum(0), counts, out=self.starts)
        self.rows.copy_(slots.rows[order])
        self.values.copy_(slots.values[order])
        self.grad_values.copy_((grad_values * (slots.values > 0))[order])
        # Not `index_add_`, which adds in an order of its own on a GPU.
        every = torch.arange(len(latents), device=latents.device)
        sums = functional.embedding_bag(every, self.grad_values[:, None], self.starts, mode="sum")
        self.grad_sums.copy_(sums[:, 0])

    def sum_rows(
        self,
        matrix: Float[Tensor, "row d_in"],
        weights: Float[Tensor, " slot"],
        out: tuple[Float[Tensor, "d_sae d_in"], Float[Tensor, " d_sae"]] | None = None,
        *,
        rows: Int[Tensor, " slot"] | None = None,
    ) -> Float[Tensor, "d_sae d_in"]:
        """For every latent, the sum over its slots of weight * matrix[row of the slot].

        `out`: memory for it and for the sums of squares of its rows; only where there are kernels.
        `rows`: other rows than the batch's own, in this order.
        """
        rows = self.rows if rows is None else rows
        if out is not None:
            arrays = (matrix, rows, weights, self.starts, *out)
            kernels.sum_rows(*(tensor.numpy() for tensor in arrays))
            return out[0]
        return functional.embedding_bag(
            rows, matrix, self.starts, per_sample_weights=weights, mode="sum"
        )


def scaled_difference(
    decoded: Float[Tensor, "token d_in"],
    centred: Float[Tensor, "token d_in"],
    factor: float,
    out: Float[Tensor, "token d_in"],
    column_sums: Float[Tensor, " d_in"],
) -> float:
    """Write factor * (decoded - centred) and its column sums; sum of squares of the difference."""
    if has_kernels(out):
        arrays = (decoded.numpy(), centred.numpy(), np.float32(factor), out.numpy())
        return float(kernels.scaled_difference(*arrays, column_sums.numpy()))
    torch.sub(decoded, centred, out=out)
    squares = float(torch.dot(out.flatten(), out.flatten()))
    torch.sum(out.mul_(factor), dim=0, out=column_sums)
    return squares


def decode_and_compare(
    slots: Slots,
    W_dec: Float[Tensor, "d_sae d_in"],
    centred: Float[Tensor, "token d_in"],
    factor: float,
    out: Float[Tensor, "token d_in"],
    column_sums: Float[Tensor, " d_in"],
) -> tuple[Float[Tensor, " slot"], float]:
    """`decode_sparse`, `scaled_difference` from it to `centred`, and `decoder_dots` of the result.

    Writes `out` and `column_sums`; returns the dots and the sum of squares.
    """
    if has_kernels(out) and is_large(W_dec.numel()):
        dots = torch.empty_like(slots.values)
        inputs = (slots.latents, slots.values, slots.starts, W_dec, centred)
        outputs = (out, dots, column_sums)
        squared_error = kernels.decode_and_compare(
            *(tensor.numpy() for tensor in inputs),
            np.float32(factor),
            *(tensor.numpy() for tensor in outputs),
        )
        return dots, float(squared_error)
    decoded = decode_sparse(slots, W_dec)
    squared_error = scaled_difference(decoded, centred, factor, out, column_sums)
    return decoder_dots(out, slots, W_dec), squared_error


def count_idle(slots: Slots, n_tokens: int, idle: Int[Tensor, " d_sae"]) -> None:
    """Advance `idle`, tokens since each latent fired, by one batch."""
    if has_kernels(idle):
        arrays = (slots.latents.numpy(), slots.values.numpy(), idle.numpy())
        kernels.count_idle(*arrays, n_tokens)
        return
    idle += n_tokens
    fired = torch.zeros_like(idle)
    fired.index_add_(0, slots.latents, (slots.values > 0).long())
    idle.masked_fill_(fired > 0, 0)
