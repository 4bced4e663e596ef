"""Matryoshka on top of BatchTopK: the first latents alone must reconstruct too, level by level.

With widths m_1 < ... < m_n = d_sae and y_hat_j the reconstruction by the first m_j latents,

    loss = (1/B) sum over levels j of sum ||y_hat_j - y||^2 + the AuxK term of the last level

A latent of level l is part of y_hat_l, ..., y_hat_n, so its gradient is that of a plain SAE whose
output error is the sum of these levels' errors: one decode per level, and nothing more is dense.
Source: Bussmann et al., arXiv 2503.17547, section 3.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from saes.batchtopk import BatchTopKStep
from saes.config import SAEConfig
from saes.sparse import ByLatent, Slots, decode_sparse, decoder_dots
from saes.topk import OutputGradient


class Levels:
    """Which level a latent belongs to, and the decoder's outputs: a row per token and level."""

    def __init__(
        self, widths: Sequence[int], d_sae: int, *, device: torch.device, n_saes: int = 1
    ) -> None:
        """`n_saes`: dictionaries whose latents are numbered through, one after the other."""
        latents = torch.arange(d_sae, device=device)
        level = torch.searchsorted(torch.tensor(widths, device=device), latents, right=True)
        self._of: Int[Tensor, " latent"] = level.repeat(n_saes)
        self.n = len(widths)

    def cut(self, slots: Slots, n_tokens: int) -> Slots:
        """The same slots, their rows cut into one per token and level."""
        rows = slots.rows * self.n + self._of[slots.latents]
        every = torch.arange(n_tokens * self.n, device=rows.device)
        return slots._replace(rows=rows, starts=torch.searchsorted(rows, every))

    def errors(
        self,
        nested: Slots,
        W_dec: Float[Tensor, "latent d_in"],
        centred: Float[Tensor, "token d_in"],
    ) -> Float[Tensor, "token level d_in"]:
        """y_hat_j - y of every level j, from slots that were cut."""
        decoded = decode_sparse(nested, W_dec).view(len(centred), self.n, -1)
        return decoded.cumsum_(1).sub_(centred[:, None])

    def answer_for_later(self, errors: Float[Tensor, "token level d_in"]) -> None:
        """Add to every level's error those of all later levels, which hold its latents too."""
        for level in range(self.n - 2, -1, -1):
            errors[:, level] += errors[:, level + 1]

    def rows(self, by_latent: ByLatent) -> Int[Tensor, " slot"]:
        """Row that every slot of `by_latent` was cut into."""
        ends = torch.cat([by_latent.starts[1:], by_latent.starts.new_tensor([len(by_latent.rows)])])
        return by_latent.rows * self.n + self._of.repeat_interleave(ends - by_latent.starts)


class MatryoshkaStep(BatchTopKStep):
    """`BatchTopKStep` with nested reconstruction losses at `config.level_widths`."""

    def __init__(
        self, config: SAEConfig, b_dec: Float[Tensor, " d_in"], *, generator: torch.Generator
    ) -> None:
        super().__init__(config, b_dec, generator=generator)
        self._levels = Levels(config.level_widths, config.d_sae, device=b_dec.device)

    def _output_gradient(
        self, slots: Slots, centred: Float[Tensor, "token d_in"], out: Float[Tensor, "token d_in"]
    ) -> OutputGradient:
        nested = self._levels.cut(slots, len(centred))
        errors = self._levels.errors(nested, self.weights.W_dec, centred)
        squared_error = float(errors[:, -1].square().sum(dtype=torch.float64))
        errors.mul_(2.0 / self.config.batch_size)
        out.copy_(errors[:, -1])
        self._levels.answer_for_later(errors)
        rows = errors.flatten(0, 1)
        dots = decoder_dots(rows, nested, self.weights.W_dec)
        return OutputGradient(rows, dots, out, errors[:, 0].sum(0), squared_error)

    def _decoder_rows(self, by_latent: ByLatent) -> Int[Tensor, " slot"]:
        return self._levels.rows(by_latent)
