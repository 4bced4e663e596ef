"""The gradient of the AuxK term: dead latents are taught what the living leave over.

    (c/B) sum ||e_hat - e||^2,  e_hat = sum of h_i W_dec[i] over the k_aux largest h among the dead

in the notation of `saes.topk`; e has no gradient, and h no ReLU. Where the dead are many, only what
is picked is multiplied, and not whole matrices. Source: Gao et al., arXiv 2406.04093, appendix A.2.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from saes.adam import Weights
from saes.config import SAEConfig
from saes.sparse import has_kernels

kernels: Any
try:
    from saes import auxk_kernels as kernels
except ImportError:  # numba is not installed: see saes.sparse
    kernels = None

SPARSE_PER_DIM = 1 / 32
"""Dead latents per picked one and input dimension from which only products with what is picked
are taken. Whole matrices gain on them as rows grow longer: `benchmarks/auxk.py` has both."""


def add_auxk(
    grads: Weights,
    weights: Weights,
    config: SAEConfig,
    centred: Float[Tensor, "token d_in"],
    grad_out: Float[Tensor, "token d_in"],
    dead: Int[Tensor, " dead"],
) -> None:
    """Add the term's gradient for the latents `dead` to `grads`.

    centred: y - b_dec; grad_out: 2 (y_hat - y) / B.
    """
    n_aux = min(config.n_aux, dead.numel())
    encoder = weights.W_enc_T.index_select(0, dead)
    acts = torch.addmm(weights.b_enc.index_select(0, dead), centred, encoder.t())
    scale = config.auxk_alpha * min(dead.numel() / config.n_aux, 1.0)
    # grad_out is -2 e / B, so the gradient at e_hat, 2 c (e_hat - e) / B, is this times `factor`
    # plus scale * grad_out.
    factor = 2.0 * scale / config.batch_size
    picked = _largest(acts, n_aux) if n_aux < dead.numel() else None
    is_sparse = dead.numel() >= SPARSE_PER_DIM * n_aux * config.d_in
    if picked is not None and is_sparse and has_kernels(acts):
        inputs = (picked, acts, dead, weights.W_dec, grad_out, centred)
        outputs = (grads.W_dec, grads.W_enc_T, grads.b_enc)
        kernels.add_picked(
            *(tensor.numpy() for tensor in inputs),
            np.float32(scale),
            np.float32(factor),
            *(tensor.numpy() for tensor in outputs),
        )
        return
    mask = None
    if picked is not None:
        mask = torch.zeros_like(acts).scatter_(1, picked, 1.0)
        acts *= mask
    decoder = weights.W_dec.index_select(0, dead)
    grad_e = torch.addmm(grad_out, acts, decoder, beta=scale, alpha=factor)
    grad_acts = grad_e @ decoder.t()
    if mask is not None:
        grad_acts *= mask
    grads.W_dec.index_add_(0, dead, acts.t() @ grad_e)
    grads.W_enc_T.index_add_(0, dead, grad_acts.t() @ centred)
    grads.b_enc.index_add_(0, dead, grad_acts.sum(0))


def _largest(acts: Float[Tensor, "token dead"], n: int) -> Int[Tensor, "token n"]:
    """Where the n largest entries of every row are, in no order; the least of them to 1 ulp."""
    if not has_kernels(acts):
        return acts.topk(n, dim=1, sorted=False).indices
    picked = torch.empty(len(acts), n, dtype=torch.int64)
    kernels.pick_largest(acts.view(torch.int32).numpy(), picked.numpy())
    return picked
