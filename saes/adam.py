"""Adam for SAE weights, with decoder rows kept at unit norm.

m and v are running means of g and g^2; w -= lr * m_hat / (sqrt(v_hat) + eps). The decoder's
gradient first loses its part along each row, which would only change the norm, and the rows are
normalized after. Source: Kingma and Ba, arXiv 1412.6980, algorithm 1; Bricken et al. 2023 ("Towards
Monosemanticity"), section on training, for the projection.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from saes.sparse import has_kernels, kernels

BETA_MEAN, BETA_SQUARE = 0.9, 0.999
EPS = 1e-8


class Weights(NamedTuple):
    """Weights of one SAE, or their gradients. Both matrices have a row per latent.

    Of a stack of SAEs (`saes.stacked`) all four have one more axis, in front.
    """

    W_enc_T: Float[Tensor, "d_sae d_in"]
    W_dec: Float[Tensor, "d_sae d_in"]
    b_enc: Float[Tensor, " d_sae"]
    b_dec: Float[Tensor, " d_in"]

    def named(self, part: str) -> dict[str, Tensor]:
        """As a part of a checkpoint: `part.W_enc_T` and so on."""
        return {f"{part}.{name}": tensor for name, tensor in self._asdict().items()}

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor], part: str) -> Weights:
        """Back from `named`."""
        return cls(*(tensors[f"{part}.{name}"] for name in cls._fields))


class Adam:
    """Optimizer state of one SAE. Updates weights in place and never reallocates them."""

    def __init__(self, weights: Weights) -> None:
        self.weights = weights
        self.means = Weights(*map(torch.zeros_like, weights))
        self.squares = Weights(*map(torch.zeros_like, weights))
        self.n_steps = 0

    def step(self, grads: Weights, lr: float, clip: float = 1.0) -> None:
        """One update with `clip` times the gradients; overwrites `grads`."""
        self.n_steps += 1
        if has_kernels(grads.b_dec):
            size = lr / (1 - BETA_MEAN**self.n_steps)
            correction = 1 / math.sqrt(1 - BETA_SQUARE**self.n_steps)
            options = (clip, BETA_MEAN, BETA_SQUARE, EPS, size, correction)
            for name in Weights._fields:
                kernel = kernels.adam_unit_rows if name == "W_dec" else kernels.adam
                parts = (self.weights, grads, self.means, self.squares)
                arrays = (getattr(part, name).numpy() for part in parts)
                kernel(
                    *(array if name == "W_dec" else array.reshape(-1) for array in arrays), *options
                )
            return
        if clip != 1:
            torch._foreach_mul_(list(grads), clip)
        remove_parallel(grads.W_dec, self.weights.W_dec)
        update((self.weights, grads, self.means, self.squares), lr, self.n_steps)
        normalize_rows(self.weights.W_dec)


def remove_parallel(
    grad: Float[Tensor, "*stack d_sae d_in"], W_dec: Float[Tensor, "*stack d_sae d_in"]
) -> None:
    """Take out of every row of `grad` its part along the (unit) row of `W_dec`."""
    grad.addcmul_(W_dec, (grad * W_dec).sum(-1, keepdim=True), value=-1)


def update(parts: Sequence[Sequence[Tensor]], lr: float, n_steps: int) -> None:
    """Adam's step number `n_steps`, in plain torch: weights, gradients, means and squares."""
    weights, grads, means, squares = (list(part) for part in parts)
    count = torch.full((), float(n_steps), device=grads[0].device)
    torch._fused_adam_(
        weights,
        grads,
        means,
        squares,
        [],
        [count] * len(grads),
        lr=lr,
        beta1=BETA_MEAN,
        beta2=BETA_SQUARE,
        weight_decay=0.0,
        eps=EPS,
        amsgrad=False,
        maximize=False,
    )


def normalize_rows(W_dec: Float[Tensor, "*stack d_sae d_in"]) -> None:
    """Scale every row to length 1."""
    W_dec.div_(torch.linalg.vector_norm(W_dec, dim=-1, keepdim=True).clamp_min_(1e-12))
