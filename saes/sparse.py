"""Products with k-sparse latent activations: select, decode, and the two transposes.

A batch of activations is `indices` and `values`, both [token k]. Slots with value 0 are unused.
`embedding_bag` over latents decodes; over tokens, with slots sorted by latent, it sums per latent.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

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

CPU_BLOCK_BYTES = 1 << 20
"""Pre-activations held at once on a CPU: they stay in a core's cache until they are selected."""
GPU_BLOCK_BYTES = 1 << 29


def has_kernels(tensor: Tensor) -> bool:
    """Whether the compiled kernels serve this tensor's device."""
    return kernels is not None and tensor.device.type == "cpu"


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


def add_bias(
    product: Float[Tensor, "token d_sae"],
    bias: Float[Tensor, " d_sae"],
    out: Float[Tensor, "token d_sae"],
) -> None:
    """Write product (bfloat16) + bias (float32) as float32."""
    if not has_kernels(product):
        torch.add(product, bias, out=out)
        return
    bits = out.view(torch.int32).numpy()
    kernels.add_bias_bfloat16(product.view(torch.int16).numpy(), bias.numpy(), bits, out.numpy())


class Encoder:
    """TopK encoder of batches of at most `n_tokens` rows; holds the scratch and the result.

    Works in blocks of rows: [token, d_sae] of a whole batch is never needed.
    """

    def __init__(
        self,
        n_tokens: int,
        d_sae: int,
        k: int,
        *,
        device: torch.device,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        """`dtype` bfloat16: that product picks the latents; their values are float32 either way."""
        budget = CPU_BLOCK_BYTES if device.type == "cpu" else GPU_BLOCK_BYTES
        rows = max(1, min(n_tokens, max(64, budget // (d_sae * 4))))
        self.values: Float[Tensor, "token k"] = torch.empty(n_tokens, k, device=device)
        self.indices: Int[Tensor, "token k"] = torch.empty(
            n_tokens, k, dtype=torch.int64, device=device
        )
        self._pre = torch.empty(rows, d_sae, device=device)
        self._product = self._pre if dtype == torch.float32 else self._pre.to(dtype)

    def __call__(
        self,
        centred: Float[Tensor, "token d_in"],
        W_enc: Float[Tensor, "d_in d_sae"],
        b_enc: Float[Tensor, " d_sae"],
    ) -> tuple[Float[Tensor, "token k"], Int[Tensor, "token k"]]:
        """Values and indices of the k largest positive entries of centred W_enc + b_enc."""
        dtype = self._product.dtype
        is_low = dtype != torch.float32
        x, W = centred.to(dtype), W_enc.to(dtype)
        n_tokens, rows = len(centred), len(self._pre)
        values, indices = self.values[:n_tokens], self.indices[:n_tokens]
        for start in range(0, n_tokens, rows):
            stop = min(start + rows, n_tokens)
            pre = self._pre[: stop - start]
            if is_low:
                product = torch.mm(x[start:stop], W, out=self._product[: stop - start])
                add_bias(product, b_enc, pre)
            else:
                torch.addmm(b_enc, x[start:stop], W, out=pre)
            select_topk(pre, values[start:stop], indices[start:stop])
        if is_low:
            exact = decoder_dots(centred, indices, W_enc.t()).add_(b_enc[indices])
            # Unused slots stay unused: their index may be that of a used one.
            torch.mul(exact.relu_(), values > 0, out=values)
        return values, indices


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
    starts, tokens = _slots(*indices.shape, indices.device)
    dots = torch.ops.aten._embedding_bag_per_sample_weights_backward(
        rows, W_dec, indices.flatten(), starts, tokens, 0
    )
    return dots.view_as(indices)


@lru_cache(maxsize=64)
def _slots(n_tokens: int, k: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """First slot of each token, token of each slot."""
    tokens = torch.arange(n_tokens, device=device)
    return tokens * k, tokens.repeat_interleave(k)


class ByLatent:
    """Slots of a batch sorted by latent: a sparse [token d_sae] matrix, transposed.

    Carries two sets of values at once, the activations and their gradients; the gradients of
    unused slots count as 0 (ReLU passes none). Scratch is kept from batch to batch.
    """

    def __init__(self, n_tokens: int, d_sae: int, k: int, *, device: torch.device) -> None:
        n_slots = n_tokens * k
        self.values: Float[Tensor, " slot"] = torch.empty(n_slots, device=device)
        self.grad_values: Float[Tensor, " slot"] = torch.empty(n_slots, device=device)
        self.grad_sums: Float[Tensor, " d_sae"] = torch.empty(d_sae, device=device)
        self._starts = torch.empty(d_sae, dtype=torch.int64, device=device)
        self._tokens = torch.empty(n_slots, dtype=torch.int64, device=device)
        outputs = (self._starts, self._tokens, self.values, self.grad_values, self.grad_sums)
        if has_kernels(self.values):
            self._arrays = tuple(tensor.numpy() for tensor in outputs)

    def sort(
        self,
        indices: Int[Tensor, "token k"],
        values: Float[Tensor, "token k"],
        grad_values: Float[Tensor, "token k"],
    ) -> None:
        """Take in a batch of exactly `n_tokens` tokens."""
        if has_kernels(indices):
            inputs = (indices.numpy(), values.numpy(), grad_values.numpy())
            kernels.group_by_latent(*inputs, *self._arrays)
            return
        latents, order = indices.flatten().sort(stable=True)
        counts = torch.bincount(latents, minlength=len(self._starts))
        torch.sub(counts.cumsum(0), counts, out=self._starts)
        self._tokens.copy_(order // indices.shape[1])
        self.values.copy_(values.flatten()[order])
        self.grad_values.copy_((grad_values * (values > 0)).flatten()[order])
        self.grad_sums.zero_().index_add_(0, latents, self.grad_values)

    def sum_rows(
        self, rows: Float[Tensor, "token d_in"], weights: Float[Tensor, " slot"]
    ) -> Float[Tensor, "d_sae d_in"]:
        """For every latent, the sum over its slots of weight * rows[token of the slot]."""
        return functional.embedding_bag(
            self._tokens, rows, self._starts, per_sample_weights=weights, mode="sum"
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


def count_idle(
    indices: Int[Tensor, "token k"],
    values: Float[Tensor, "token k"],
    idle: Int[Tensor, " d_sae"],
) -> None:
    """Advance `idle`, tokens since each latent fired, by one batch."""
    if has_kernels(idle):
        kernels.count_idle(indices.numpy(), values.numpy(), idle.numpy())
        return
    idle += len(indices)
    fired = torch.zeros_like(idle)
    fired.index_add_(0, indices.flatten(), (values > 0).long().flatten())
    idle.masked_fill_(fired > 0, 0)
