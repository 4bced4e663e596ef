"""The training steps that an SAE can be advanced with, by architecture."""

from __future__ import annotations

from typing import Protocol

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from saes.config import PENALIZED, SAEConfig
from saes.dictionary import Dictionary


class Step(Protocol):
    """Weights, optimizer state and dead-latent counters of one SAE."""

    @property
    def n_steps(self) -> int:
        """Optimizer steps taken."""

    @property
    def dead(self) -> Bool[Tensor, " d_sae"]:
        """Latents that have not fired for `dead_threshold_tokens`."""

    def step(self, y: Float[Tensor, "token d_in"], lr: float, k: int | None = None) -> float:
        """Train on a batch; sum over tokens of ||y_hat - y||^2 before the update."""

    def state(self) -> dict[str, Tensor]:
        """Every tensor that `step` reads, by name."""

    def load_state(self, state: dict[str, Tensor], n_steps: int) -> None:
        """Put back what `state` gave, bit for bit."""

    def dictionary(self) -> Dictionary:
        """The trained function, in the units of the rows that `step` was given."""


def new_step(
    config: SAEConfig, b_dec: Float[Tensor, " d_in"], *, generator: torch.Generator
) -> Step:
    """An untrained SAE with the given decoder bias; `generator` draws the rest."""
    if config.architecture in PENALIZED:
        from saes.peers import PeerStep  # imports sae-lens, which takes seconds

        return PeerStep(config, b_dec, generator=generator)
    if config.architecture == "batchtopk":
        from saes.batchtopk import BatchTopKStep

        return BatchTopKStep(config, b_dec, generator=generator)
    if config.architecture == "matryoshka_batchtopk":
        from saes.matryoshka import MatryoshkaStep

        return MatryoshkaStep(config, b_dec, generator=generator)
    from saes.topk import TopKStep

    return TopKStep(config, b_dec, generator=generator)
