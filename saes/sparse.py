"""Products with k-sparse latent activations: select, decode, and the two transposes.

A batch of activations is `indices` and `values`, both [token k]. Slots with value 0 are unused.
`embedding_bag` over latents decodes; over tokens, with slots sorted by latent, it sums per latent.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

kernels: Any
try:
    from saes import kernels
except ImportError:  # numba is not installed: plain torch computes the same, several times slower
    kernels = None

CPU_BLOCK_ELEMENTS = 1 << 18
"""Pre-activations held at once on a CPU: 1 MB stays in a core's cache until they are selected."""
GPU_BLOCK_ELEMENTS = 1 << 27


def has_kernels(tensor: Tensor) -> bool:
    """Whether the compiled kernels serve this tensor's device."""
    return kernels is not None and tensor.device.type == "cpu"


def block_rows(d_sae: int, device: torch.device) -> int:
    """Tokens encoded at once; [token, d_sae] of a whole batch is never needed."""
    elements = CPU_BLOCK_ELEMENTS if device.type == "cpu" else GPU_BLOCK_ELEMENTS
    return max(64, elements // d_sae)


def select_topk(
    pre: Float[Tensor, "token d_sae"],
    values: Float[Tensor, "token k"],
    indices: Int[Tensor, "token k"],
) -> None:
    """Write the ReLU of the k largest entries of every row, and where they are (in no order).

    Slots beyond the positive entries of a row get value 0 and the index of any latent.
    """
    if not has_kernels(pre):
        torch.topk(pre, values.shape[1], dim=1, sorted=False, out=(values, indices))
        values.relu_()
        return
    kernels.select_topk(
        pre.view(torch.int32).numpy(),
        kernels.group_size(pre.shape[1], values.shape[1]),
        values.view(torch.int32).numpy(),
        indices.numpy(),
    )


def encode_topk(
    centred: Float[Tensor, "token d_in"],
    W_enc: Float[Tensor, "d_in d_sae"],
    b_enc: Float[Tensor, " d_sae"],
    values: Float[Tensor, "token k"],
    indices: Int[Tensor, "token k"],
    pre: Float[Tensor, "row d_sae"] | None = None,
) -> None:
    """Write `select_topk` of centred W_enc + b_enc, block by block; `pre` is scratch for one."""
    if pre is None:
        rows = min(len(centred), block_rows(len(b_enc), b_enc.device))
        pre = torch.empty(rows, len(b_enc), device=b_enc.device)
    for start in range(0, len(centred), max(1, len(pre))):
        block = centred[start : start + len(pre)]
        stop = start + len(block)
        torch.addmm(b_enc, block, W_enc, out=pre[: len(block)])
        select_topk(pre[: len(block)], values[start:stop], indices[start:stop])


def decode_sparse(
    indices: Int[Tensor, "token k"],
    values: Float[Tensor, "token k"],
    W_dec: Float[Tensor, "d_sae d_in"],
) -> Float[Tensor, "token d_in"]:
    """sum over slots of value * W_dec[index]."""
    return functional.embedding_bag(indices, W_dec, per_sample_weights=values, mode="sum")


def decoder_dots(
    rows: Float[Tensor, "token d_in"],
    indices: Int[Tensor, "token k"],
    W_dec: Float[Tensor, "d_sae d_in"],
) -> Float[Tensor, "token k"]:
    """row . W_dec[index] for every slot: the backward of `decode_sparse` to its values."""
    n_tokens, k = indices.shape
    starts = torch.arange(0, n_tokens * k, k, device=indices.device)
    tokens = torch.arange(n_tokens, device=indices.device).repeat_interleave(k)
    dots = torch.ops.aten._embedding_bag_per_sample_weights_backward(
        rows, W_dec, indices.flatten(), starts, tokens, 0
    )
    return dots.view(n_tokens, k)


class ByLatent:
    """The slots of one batch sorted by latent: a sparse [token d_sae] matrix, transposed.

    Carries two sets of values at once, the activations and their gradients; the gradients of
    unused slots count as 0 (ReLU passes none).
    """

    def __init__(
        self,
        indices: Int[Tensor, "token k"],
        values: Float[Tensor, "token k"],
        grad_values: Float[Tensor, "token k"],
        d_sae: int,
    ) -> None:
        n_tokens, k = indices.shape
        self.values: Float[Tensor, " slot"]
        self.grad_values: Float[Tensor, " slot"]
        self._starts: Int[Tensor, " d_sae"]
        self._tokens: Int[Tensor, " slot"]
        self.grad_sums: Float[Tensor, " d_sae"]
        if has_kernels(indices):
            self._starts = torch.empty(d_sae, dtype=torch.int64)
            self._tokens = torch.empty(n_tokens * k, dtype=torch.int64)
            self.values, self.grad_values = torch.empty(2, n_tokens * k).unbind()
            self.grad_sums = torch.empty(d_sae)
            outputs = (self._starts, self._tokens, self.values, self.grad_values, self.grad_sums)
            arrays = (tensor.numpy() for tensor in (indices, values, grad_values, *outputs))
            kernels.group_by_latent(*arrays)
            return
        latents, order = indices.flatten().sort(stable=True)
        counts = torch.bincount(latents, minlength=d_sae)
        self._starts, self._tokens = counts.cumsum(0) - counts, order // k
        self.values = values.flatten()[order]
        self.grad_values = (grad_values * (values > 0)).flatten()[order]
        self.grad_sums = torch.zeros(d_sae, device=indices.device)
        self.grad_sums.index_add_(0, latents, self.grad_values)

    def sum_rows(
        self, rows: Float[Tensor, "token d_in"], weights: Float[Tensor, " slot"]
    ) -> Float[Tensor, "d_sae d_in"]:
        """For every latent, the sum over its slots of weight * rows[token of the slot]."""
        return functional.embedding_bag(
            self._tokens, rows, self._starts, per_sample_weights=weights, mode="sum"
        )


def count_idle(
    indices: Int[Tensor, "token k"],
    values: Float[Tensor, "token k"],
    idle: Int[Tensor, " d_sae"],
) -> None:
    """Tokens since each latent fired, in place: 0 for those that fire, more for the others."""
    if has_kernels(idle):
        kernels.count_idle(indices.numpy(), values.numpy(), len(indices), idle.numpy())
        return
    idle += len(indices)
    fired = torch.zeros_like(idle)
    fired.index_add_(0, indices.flatten(), (values > 0).long().flatten())
    idle.masked_fill_(fired > 0, 0)
