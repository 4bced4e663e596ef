"""The fast TopK training step: forward, hand-written sparse backward, AuxK, Adam.

Plain formula, over a batch of rows y:

    h = (y - b_dec) W_enc + b_enc;  z = ReLU of the k largest h;  y_hat = z W_dec + b_dec
    loss = (1/B) sum ||y_hat - y||^2 + (c/B) sum ||e_hat - e||^2

B is the configured batch size, c = auxk_alpha * min(n_dead / k_aux, 1), e = y - y_hat without
gradient, e_hat the k_aux largest h among dead latents times their decoder rows. No ReLU in e_hat:
with it a latent whose h is negative everywhere would get no encoder gradient and never come back.

Only z is sparse, and exactly so: every product but the encoder's touches k of d_sae latents.
Source: Gao et al., arXiv 2406.04093, section 2 and appendix A.2.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional

from saes.config import SAEConfig
from saes.sparse import (
    ByLatent,
    block_rows,
    count_idle,
    decode_sparse,
    decoder_dots,
    encode_topk,
)

ADAM_BETAS = (0.9, 0.999)
ADAM_EPS = 1e-8


class Weights(NamedTuple):
    """Weights of one SAE, or their gradients. Both matrices have a row per latent."""

    W_enc_T: Float[Tensor, "d_sae d_in"]
    W_dec: Float[Tensor, "d_sae d_in"]
    b_enc: Float[Tensor, " d_sae"]
    b_dec: Float[Tensor, " d_in"]


class Scratch(NamedTuple):
    """Memory kept between steps: faulting in fresh pages would cost as much as filling them."""

    centred: Float[Tensor, "token d_in"]
    error: Float[Tensor, "token d_in"]
    values: Float[Tensor, "token k"]
    indices: Int[Tensor, "token k"]
    pre: Float[Tensor, "row d_sae"]


class Gradients(NamedTuple):
    """Gradients of the loss at one batch, and what the batch showed.

    The last two are scratch, valid until the next batch.
    """

    weights: Weights
    squared_error: Float[Tensor, ""]
    """sum over tokens of ||y_hat - y||^2."""
    indices: Int[Tensor, "token k"]
    values: Float[Tensor, "token k"]


class TopKStep:
    """Weights, optimizer state and dead-latent counters of one SAE; `step` advances them."""

    def __init__(
        self, config: SAEConfig, b_dec: Float[Tensor, " d_in"], *, generator: torch.Generator
    ) -> None:
        """Unit-norm random decoder, W_enc = W_dec^T, b_enc = 0, the given b_dec (the data mean)."""
        self.config = config
        device = b_dec.device
        directions = torch.randn(config.d_sae, config.d_in, generator=generator)
        W_dec = functional.normalize(directions, dim=1).to(device)
        b_enc = torch.zeros(config.d_sae, device=device)
        self.weights = Weights(W_dec.clone(), W_dec, b_enc, b_dec.clone())
        self.means = Weights(*map(torch.zeros_like, self.weights))
        self.squares = Weights(*map(torch.zeros_like, self.weights))
        self.n_steps = 0
        self.tokens_since_fired = torch.zeros(config.d_sae, dtype=torch.int64, device=device)
        self._scratch: Scratch | None = None

    @property
    def dead(self) -> Bool[Tensor, " d_sae"]:
        """Latents that have not fired for `dead_threshold_tokens`."""
        return self.tokens_since_fired >= self.config.dead_threshold_tokens

    @torch.no_grad()
    def step(self, y: Float[Tensor, "token d_in"], lr: float) -> Float[Tensor, ""]:
        """One optimizer step on a batch; sum over tokens of ||y_hat - y||^2 before the update.

        The loss is divided by the configured batch size, so that a last, smaller batch moves the
        weights less instead of giving few tokens the weight of many.
        """
        gradients = self.gradients(y)
        W_dec, grad = self.weights.W_dec, gradients.weights.W_dec
        # Along its row a decoder gradient would only change the norm, which is put back to 1.
        along = (grad * W_dec).sum(1, keepdim=True)
        self._adam(gradients.weights._replace(W_dec=grad.addcmul_(W_dec, along, value=-1)), lr)
        W_dec.div_(torch.linalg.vector_norm(W_dec, dim=1, keepdim=True).clamp_min_(1e-12))
        count_idle(gradients.indices, gradients.values, self.tokens_since_fired)
        return gradients.squared_error

    @torch.no_grad()
    def gradients(self, y: Float[Tensor, "token d_in"]) -> Gradients:
        """Gradients of the loss of the module's docstring, at the present weights."""
        weights = self.weights
        centred, error, values, indices, pre = self._scratch_for(len(y))
        torch.sub(y, weights.b_dec, out=centred)
        encode_topk(centred, weights.W_enc_T.t(), weights.b_enc, values, indices, pre)
        # b_dec of the output and of the centre cancel: y_hat - y = z W_dec - (y - b_dec).
        torch.sub(decode_sparse(indices, values, weights.W_dec), centred, out=error)
        squared_error = torch.dot(error.flatten(), error.flatten())
        dead = self.dead.nonzero().flatten()
        grad_out = error.mul_(2.0 / self.config.batch_size)
        slots = ByLatent(
            indices,
            values,
            decoder_dots(grad_out, indices, weights.W_dec),
            self.config.d_sae,
        )
        grads = Weights(
            W_enc_T=slots.sum_rows(centred, slots.grad_values),
            W_dec=slots.sum_rows(grad_out, slots.values),
            b_enc=slots.grad_sums,
            b_dec=grad_out.sum(0),
        )
        if dead.numel() and self.config.auxk_alpha:
            self._add_auxk(grads, centred, grad_out, dead)
        # b_dec reaches the loss twice: as output bias and, negated, as the encoder's centre.
        grads.b_dec.addmv_(weights.W_enc_T.t(), grads.b_enc, alpha=-1)
        return Gradients(grads, squared_error, indices, values)

    def _add_auxk(self, grads: Weights, centred: Tensor, grad_out: Tensor, dead: Tensor) -> None:
        """Add the gradient of the AuxK term for the latents `dead`."""
        config, weights = self.config, self.weights
        n_aux = min(config.n_aux, dead.numel())
        encoder = weights.W_enc_T.index_select(0, dead)
        decoder = weights.W_dec.index_select(0, dead)
        acts = torch.addmm(weights.b_enc.index_select(0, dead), centred, encoder.t())
        chosen = None
        if n_aux < dead.numel():
            top, where = acts.topk(n_aux, dim=1, sorted=False)
            acts = torch.zeros_like(acts).scatter_(1, where, top)
            chosen = torch.zeros_like(acts).scatter_(1, where, 1.0)
        scale = config.auxk_alpha * min(dead.numel() / config.n_aux, 1.0)
        # grad_out is 2 (y_hat - y) / B = -2 e / B, so this is 2 c (e_hat - e) / B.
        grad_e = torch.addmm(
            grad_out, acts, decoder, beta=scale, alpha=2.0 * scale / config.batch_size
        )
        grad_acts = grad_e @ decoder.t()
        if chosen is not None:
            grad_acts *= chosen
        grads.W_dec.index_add_(0, dead, acts.t() @ grad_e)
        grads.W_enc_T.index_add_(0, dead, grad_acts.t() @ centred)
        grads.b_enc.index_add_(0, dead, grad_acts.sum(0))

    def _adam(self, grads: Weights, lr: float) -> None:
        self.n_steps += 1
        step_count = torch.tensor(float(self.n_steps), device=grads.b_dec.device)
        torch._fused_adam_(
            list(self.weights),
            list(grads),
            list(self.means),
            list(self.squares),
            [],
            [step_count] * len(grads),
            lr=lr,
            beta1=ADAM_BETAS[0],
            beta2=ADAM_BETAS[1],
            weight_decay=0.0,
            eps=ADAM_EPS,
            amsgrad=False,
            maximize=False,
        )

    def _scratch_for(self, n_tokens: int) -> Scratch:
        """Scratch cut to a batch of n_tokens."""
        if self._scratch is None or len(self._scratch.centred) < n_tokens:
            config, device = self.config, self.weights.b_dec.device
            rows = min(n_tokens, block_rows(config.d_sae, device))
            self._scratch = Scratch(
                centred=torch.empty(n_tokens, config.d_in, device=device),
                error=torch.empty(n_tokens, config.d_in, device=device),
                values=torch.empty(n_tokens, config.k, device=device),
                indices=torch.empty(n_tokens, config.k, dtype=torch.int64, device=device),
                pre=torch.empty(rows, config.d_sae, device=device),
            )
        centred, error, values, indices, pre = self._scratch
        return Scratch(
            centred[:n_tokens], error[:n_tokens], values[:n_tokens], indices[:n_tokens], pre
        )

    def state(self) -> dict[str, Tensor]:
        """Every tensor that `step` reads, for a checkpoint."""
        named = {"weights": self.weights, "adam_mean": self.means, "adam_square": self.squares}
        tensors = {
            f"{part}.{name}": tensor
            for part, group in named.items()
            for name, tensor in group._asdict().items()
        }
        return tensors | {"tokens_since_fired": self.tokens_since_fired}

    def load_state(self, state: dict[str, Tensor], n_steps: int) -> None:
        """Put back what `state` gave, and the step count that belongs to it, bit for bit."""
        for name, tensor in self.state().items():
            tensor.copy_(state[name])
        self.n_steps = n_steps
