"""Architectures that sae-lens trains: its loss and optimizer on our stream, metrics, checkpoints.

Each batch goes through `SAETrainer.step`, sae-lens's public seam for trainers that bring their own
loop. The learning rate follows our schedule; everything else is sae-lens's default. Only imported
when such an SAE is trained, because importing sae-lens takes seconds.

Not here, because what they learn is no encoder with a threshold and so nothing that later stages
could take: matching pursuit (latents chosen one after the other on what is left) and AbsTopK
(negative activations). Nor are transcoders and temporal SAEs, which need more than rows.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from saes.config import SAEConfig
from saes.dictionary import Dictionary, without_gate

ADAM_MOMENTS = ("exp_avg", "exp_avg_sq")
COUNTERS = ("n_forward_passes_since_fired", "act_freq_scores")


class PeerStep:
    """One sae-lens training SAE, advanced batch by batch."""

    def __init__(
        self, config: SAEConfig, b_dec: Float[Tensor, " d_in"], *, generator: torch.Generator
    ) -> None:
        """sae-lens's own initialization, drawn from `generator`, with the given decoder bias."""
        from sae_lens.config import SAETrainerConfig
        from sae_lens.training.sae_trainer import SAETrainer

        self.config = config
        device = b_dec.device
        with torch.random.fork_rng():
            # sae-lens draws from the global generator.
            torch.manual_seed(int(torch.randint(2**62, (), generator=generator)))
            sae = _training_sae(config, str(device))
        sae.b_dec.data = b_dec.clone()
        # A latent is dead after so many batches; sae-lens counts those and not tokens.
        window = max(1, config.dead_threshold_tokens // config.batch_size)
        trainer_config = SAETrainerConfig(
            total_training_samples=config.n_tokens,
            train_batch_size_samples=config.batch_size,
            lr=config.peak_lr,
            lr_end=config.peak_lr,
            device=str(device),
            dead_feature_window=window,
        )
        self._trainer: Any = SAETrainer(trainer_config, sae, data_provider=iter(()))

    @property
    def n_steps(self) -> int:
        """Optimizer steps taken."""
        return self._trainer.n_training_steps

    @property
    def dead(self) -> Bool[Tensor, " d_sae"]:
        """Latents that have not fired for `dead_threshold_tokens`, rounded to whole batches."""
        return self._trainer.dead_neurons

    def step(self, y: Float[Tensor, "token d_in"], lr: float, k: int | None = None) -> float:
        """One step of sae-lens's trainer; sum over tokens of ||y_hat - y||^2 before the update."""
        for group in self._trainer.optimizer.param_groups:
            group["lr"] = lr
        with torch.enable_grad():
            output = self._trainer.step(y)
        self._trainer.n_training_steps += 1
        return float((output.sae_out.detach() - y).square().sum(dtype=torch.float64))

    def state(self) -> dict[str, Tensor]:
        """Weights, moments and counters; what is counted in steps follows from `n_steps`.

        sae-lens's penalty schedules hold no state: without a warm-up they are constant.
        """
        trainer = self._trainer
        tensors = {f"weights.{name}": t.detach() for name, t in self._named()}
        for moment in ADAM_MOMENTS:
            for name, parameter in self._named():
                state = trainer.optimizer.state[parameter]
                empty = torch.zeros_like(parameter)
                tensors[f"{moment}.{name}"] = state[moment] if state else empty
        return tensors | {name: getattr(trainer, name) for name in COUNTERS}

    def load_state(self, state: dict[str, Tensor], n_steps: int) -> None:
        """Put back what `state` gave, and the step count that belongs to it, bit for bit."""
        trainer = self._trainer
        for name, parameter in self._named():
            parameter.data.copy_(state[f"weights.{name}"])
            if n_steps:
                trainer.optimizer.state[parameter] = {"step": torch.tensor(float(n_steps))} | {
                    moment: state[f"{moment}.{name}"].clone() for moment in ADAM_MOMENTS
                }
        for name in COUNTERS:
            setattr(trainer, name, state[name].clone())
        trainer.n_training_steps = n_steps
        trainer.n_training_samples = n_steps * self.config.batch_size
        trainer.n_frac_active_samples = n_steps * self.config.batch_size

    def dictionary(self) -> Dictionary:
        """The trained function; standard is a threshold of zero, which is ReLU."""
        weights = {name: parameter.detach().clone() for name, parameter in self._named()}
        if self.config.architecture == "gated":
            return without_gate(**weights)
        threshold = weights.get("threshold", torch.zeros_like(weights["b_enc"]))
        return Dictionary(
            W_enc=weights["W_enc"],
            W_dec=weights["W_dec"],
            b_enc=weights["b_enc"],
            b_dec=weights["b_dec"],
            threshold=threshold.clamp_min(0.0),
        )

    def _named(self) -> list[tuple[str, torch.nn.Parameter]]:
        return list(self._trainer.sae.named_parameters())


def _training_sae(config: SAEConfig, device: str) -> Any:
    import sae_lens

    shape = {"d_in": config.d_in, "d_sae": config.d_sae, "device": device}
    penalty = {"l1_coefficient": config.sparsity_coefficient}
    if config.architecture == "standard":
        return sae_lens.StandardTrainingSAE(sae_lens.StandardTrainingSAEConfig(**shape, **penalty))
    if config.architecture == "gated":
        return sae_lens.GatedTrainingSAE(sae_lens.GatedTrainingSAEConfig(**shape, **penalty))
    penalty = {"l0_coefficient": config.sparsity_coefficient}
    return sae_lens.JumpReLUTrainingSAE(sae_lens.JumpReLUTrainingSAEConfig(**shape, **penalty))
