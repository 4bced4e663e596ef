"""The toy model of superposition: h = W^T x, y = ReLU(W h + b), trained by AdamW on sparse inputs.

A step costs three products with d rows, d the number of distinct features in the batch, and passes
over one row of outputs per active entry: pre-activations are W W^T x + b, so the d rows of W W^T
that occur serve every sample of the batch, and so do their gradients on the way back.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float

from interp.errors import UserError
from interp.toy.batches import Batch
from interp.toy.frequencies import Frequencies
from interp.toy.kernels import adamw, add_rows, loss_and_gradients, squared_errors

BETA1, BETA2 = 0.9, 0.999
FINAL_LR = 0.05
"""The cosine's end, as a share of the peak."""


@dataclass(frozen=True)
class ToyConfig:
    """What determines one trained model."""

    frequencies: Frequencies
    m: int
    """Width."""
    decay: float
    """Signed, by row: above 0 weak superposition, below 0 norms are pulled to 1."""
    batch_size: int
    n_steps: int
    warmup_steps: int
    lr_W: float
    lr_b: float
    eps: float
    """Adam's, for gradients of the loss summed over features. The published scripts average over
    them, which Adam does not notice except here: their 1e-8 is 1e-8 n of ours."""
    seed: int = 0
    """Of the initial weights. The inputs are shared by all seeds."""

    def __post_init__(self) -> None:
        least = min(self.m, self.batch_size, self.n_steps)
        if least < 1 or not 0 <= self.warmup_steps <= self.n_steps:
            raise UserError(
                f"toy model with m={self.m}, batch {self.batch_size}, {self.n_steps} steps, "
                f"{self.warmup_steps} of them warm-up; give positive numbers, warm-up at most all"
            )
        if not (0 < self.lr_W < np.inf and 0 < self.lr_b < np.inf and np.isfinite(self.decay)):
            raise UserError(
                f"toy model with lr_W={self.lr_W}, lr_b={self.lr_b}, decay={self.decay}; "
                "give positive rates and a finite decay"
            )

    @property
    def name(self) -> str:
        """Unique within a sweep."""
        law = f"{self.frequencies.name}-n{self.frequencies.n}-E{self.frequencies.density:g}"
        return f"{law}-m{self.m}-decay{self.decay:+.4g}-seed{self.seed}"

    def schedule(self, step: int) -> float:
        """Share of the peak rate at `step`, from 0: linear warm-up, then a cosine to FINAL_LR."""
        done = step + 1
        if done < self.warmup_steps:
            return done / self.warmup_steps
        share = (done - self.warmup_steps) / max(self.n_steps - self.warmup_steps, 1)
        return FINAL_LR + (1 - FINAL_LR) * 0.5 * (1 + math.cos(math.pi * share))


class Scratch:
    """Memory that a step needs and that the next one may have; one per thread."""

    def __init__(self) -> None:
        self._arrays: dict[tuple[str, np.dtype[np.generic]], np.ndarray] = {}

    def take(self, name: str, shape: tuple[int, ...], dtype: np.dtype[np.generic]) -> np.ndarray:
        """An array with undefined content."""
        size = math.prod(shape)
        held = self._arrays.get((name, dtype))
        if held is None or held.size < size:
            held = self._arrays[name, dtype] = np.empty(size, dtype)
        return held[:size].reshape(shape)


class ToyModel:
    """Weights and Adam's moments of one model; `step` advances it by one batch."""

    def __init__(self, config: ToyConfig, dtype: type = np.float32) -> None:
        """W ~ N(0, 1/m), b ~ N(0, 1)."""
        self.config = config
        n, m = config.frequencies.n, config.m
        generator = np.random.default_rng((config.seed, m))
        self.W: Float[np.ndarray, "n m"] = (generator.standard_normal((n, m)) / m**0.5).astype(
            dtype
        )
        self.b: Float[np.ndarray, " n"] = generator.standard_normal(n).astype(dtype)
        self.n_steps = 0
        """Done so far."""
        self.moments = {
            name: np.zeros_like(self.W if name[0] == "W" else self.b)
            for name in ("W_first", "W_second", "b_first", "b_second")
        }

    def step(self, batch: Batch, scratch: Scratch) -> float:
        """One AdamW step. Returns the loss before it: mean over samples of the sum over features.

        Raises UserError when the loss is no longer finite.
        """
        config, W, b = self.config, self.W, self.b
        n, m = W.shape
        d, dtype = len(batch.active), W.dtype
        W_active, gram = self._gram(batch, scratch)
        gram_grad = scratch.take("gram_grad", (d, n), dtype)
        W_grad = scratch.take("W_grad", (n, m), dtype)
        b_grad = scratch.take("b_grad", (n,), dtype)
        total = loss_and_gradients(
            gram, b, batch.active, batch.starts, batch.columns, batch.values, batch.n_empty,
            gram_grad, b_grad, scratch.take("row", (n,), dtype),
        )  # fmt: skip
        if not math.isfinite(total):
            raise UserError(
                f"toy model {config.name}: the loss is {total} at step {self.n_steps}; "
                "lower its learning rates or its decay"
            )
        # gram = W[active] W^T: its gradient meets W on both sides.
        inner = scratch.take("inner", (d, m), dtype)
        _product(gram_grad.T, W_active, W_grad)
        _product(gram_grad, W, inner)
        add_rows(W_grad, batch.active, inner)
        self._update(W_grad, b_grad, 2 / batch.n_rows)
        return total / batch.n_rows

    def errors(self, batch: Batch, scratch: Scratch, by_feature: Float[np.ndarray, " n"]) -> float:
        """The loss on a batch; adds each feature's sum of squared errors to `by_feature`."""
        _, gram = self._gram(batch, scratch)
        row = scratch.take("row", self.b.shape, self.W.dtype)
        total = squared_errors(
            gram, self.b, batch.active, batch.starts, batch.columns, batch.values, batch.n_empty,
            by_feature, row,
        )  # fmt: skip
        return total / batch.n_rows

    def _gram(self, batch: Batch, scratch: Scratch) -> tuple[np.ndarray, np.ndarray]:
        """W[active] [d m], and its products with all rows of W [d n]."""
        n, m = self.W.shape
        d, dtype = len(batch.active), self.W.dtype
        W_active = scratch.take("W_active", (d, m), dtype)
        np.take(self.W, batch.active, axis=0, out=W_active)
        return W_active, _product(W_active, self.W.T, scratch.take("gram", (d, n), dtype))

    def _update(self, W_grad: np.ndarray, b_grad: np.ndarray, grad_scale: float) -> None:
        config, moments, number = self.config, self.moments, self.W.dtype.type
        rate = config.schedule(self.n_steps)
        self.n_steps += 1
        first_correction, second_correction = (1 - b**self.n_steps for b in (BETA1, BETA2))
        for weights, grad, name, peak, decay in (
            (self.W, W_grad, "W", config.lr_W, config.decay),
            (self.b[None], b_grad[None], "b", config.lr_b, 0.0),
        ):
            lr = peak * rate
            first, second = (
                moments[f"{name}_{order}"].reshape(weights.shape) for order in ("first", "second")
            )
            constants = (
                grad_scale, lr, decay, lr / first_correction, second_correction**-0.5,
                BETA1, BETA2, config.eps,
            )  # fmt: skip
            adamw(weights, grad, first, second, *(number(c) for c in constants))


def _product(left: np.ndarray, right: np.ndarray, out: np.ndarray) -> np.ndarray:
    """out = left right. By torch, whose product is the faster one here and leaves the GIL."""
    torch.mm(torch.from_numpy(left), torch.from_numpy(right), out=torch.from_numpy(out))
    return out
