"""BatchTopK: the k * B largest pre-activations of a batch of B tokens, however they fall on tokens.

The loss is that of `saes.topk`; only which latents are active differs. Since single tokens come
without a batch later, a threshold is learned beside: a running mean of the least activation that a
batch let through. Above it a latent is active at inference, which makes the trained SAE a JumpReLU.
Source: Bussmann, Leask and Nanda, arXiv 2412.06410, section 3.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from saes.config import SAEConfig
from saes.dictionary import Dictionary
from saes.selection import block_rows, kernels
from saes.sparse import Slots, exact_values, has_kernels
from saes.topk import TopKStep

THRESHOLD_RATE = 0.01
"""Weight of a new batch in the running threshold."""
GUESS = 0.9
"""The next batch is searched above this share of the last one's least activation."""


class BatchTopKStep(TopKStep):
    """`TopKStep` with k latents per token on average over the batch."""

    def __init__(
        self, config: SAEConfig, b_dec: Float[Tensor, " d_in"], *, generator: torch.Generator
    ) -> None:
        super().__init__(config, b_dec, generator=generator)
        self.threshold = torch.full((), torch.nan, dtype=torch.float64, device=b_dec.device)
        """Running mean of the least activation; NaN before the first batch."""

    def _make_encoder(self, n_tokens: int, k: int) -> Callable[..., Slots]:
        dtype = getattr(torch, self.config.encoder_dtype)
        d_sae, device = self.config.d_sae, self.weights.b_dec.device
        return BatchTopKEncoder(n_tokens, d_sae, k, device=device, dtype=dtype)

    def _see(self, slots: Slots) -> None:
        fired = slots.values[slots.values > 0]
        if len(fired):
            least = fired.min().double()
            moved = self.threshold.lerp(least, THRESHOLD_RATE)
            self.threshold.copy_(torch.where(self.threshold.isnan(), least, moved))

    def state(self) -> dict[str, Tensor]:
        return super().state() | {"threshold": self.threshold}

    def move_into(self, tensors: Mapping[str, Tensor]) -> None:
        super().move_into(tensors)
        self.threshold = tensors["threshold"]

    def dictionary(self) -> Dictionary:
        """With the learned threshold; zero where nothing ever fired."""
        trained = super().dictionary()
        threshold = self.threshold.nan_to_num(0.0).float()
        return trained._replace(threshold=threshold.expand_as(trained.b_enc).clone())


class BatchTopKEncoder:
    """The k * n_tokens largest positive entries of a batch; ties go to the first.

    On a CPU one pass keeps candidates above a guess from the batch before and thins them out when
    they grow too many; the result is exact and does not depend on the guess.
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
        self.wanted = k * n_tokens
        self._dtype = dtype
        self._is_low = dtype != torch.float32
        self._guess = 0.0
        if device.type == "cpu":
            rows = block_rows(n_tokens, d_sae, device)
            self._product = torch.empty(rows, d_sae, dtype=dtype)
            room = 2 * self.wanted + d_sae + 1
            self._found = torch.empty(room, dtype=torch.int32)
            self._found_at = torch.empty(room, dtype=torch.int64)

    def __call__(
        self,
        centred: Float[Tensor, "token d_in"],
        W_enc: Float[Tensor, "d_in d_sae"],
        b_enc: Float[Tensor, " d_sae"],
    ) -> Slots:
        """The active entries of centred W_enc + b_enc; valid until the next call."""
        if has_kernels(centred):
            values, at = self._candidates(centred, W_enc, b_enc)
        else:
            pre = self._dense(centred, W_enc, b_enc).flatten()
            values, at = pre.topk(min(self.wanted, len(pre)), sorted=False)
            at, order = at[values > 0].sort()
            values = values[values > 0][order]
        rows = at // W_enc.shape[1]
        tokens = torch.arange(len(centred), device=at.device)
        slots = Slots(at - rows * W_enc.shape[1], values, rows, torch.searchsorted(rows, tokens))
        if self._is_low:
            exact_values(slots, centred, W_enc, b_enc)
        return slots

    def _dense(self, centred: Tensor, W_enc: Tensor, b_enc: Tensor) -> Tensor:
        if not self._is_low:
            return torch.addmm(b_enc, centred, W_enc)
        return (centred.to(self._dtype) @ W_enc.to(self._dtype)).float().add_(b_enc)

    def _candidates(
        self, centred: Tensor, W_enc: Tensor, b_enc: Tensor
    ) -> tuple[Float[Tensor, " slot"], Tensor]:
        """Values and flat positions, ascending by position."""
        found, found_at = self._found.numpy(), self._found_at.numpy()
        n_found = self._search(centred, W_enc, b_enc, self._guess)
        if n_found < self.wanted and self._guess > 0:
            n_found = self._search(centred, W_enc, b_enc, 0.0)
        n_found, _ = kernels.keep_largest(found, found_at, n_found, self.wanted)
        values = self._found[:n_found].view(torch.float32)
        self._guess = GUESS * float(values.min()) if n_found == self.wanted else 0.0
        return values, self._found_at[:n_found]

    def _search(self, centred: Tensor, W_enc: Tensor, b_enc: Tensor, guess: float) -> int:
        """Collect entries above `guess` and no less than the `wanted` largest; how many."""
        block = len(self._product)
        x, W = centred.to(self._dtype), W_enc.to(self._dtype)
        bound = int(torch.tensor(guess).view(torch.int32))
        out = (self._found.numpy(), self._found_at.numpy())
        n_found = 0
        for start in range(0, len(x), block):
            rows = x[start : start + block]
            product = self._product[: len(rows)]
            more = (start, np.int32(bound), *out, n_found, self.wanted)
            if self._is_low:
                torch.mm(rows, W, out=product)
                bits = product.view(torch.int16).numpy()
                n_found, bound = kernels.gather_rows_bfloat16(bits, b_enc.numpy(), *more)
            else:
                torch.addmm(b_enc, rows, W, out=product)
                n_found, bound = kernels.gather_rows(product.view(torch.int32).numpy(), *more)
        return int(n_found)
