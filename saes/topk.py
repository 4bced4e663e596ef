"""The fast TopK training step: forward, hand-written sparse backward, AuxK, Adam.

Plain formula, over a batch of rows y:

    h = (y - b_dec) W_enc + b_enc;  z = ReLU of the k largest h;  y_hat = z W_dec + b_dec
    loss = (1/B) sum ||y_hat - y||^2 + (c/B) sum ||e_hat - e||^2

B is the configured batch size, c = auxk_alpha * min(n_dead / k_aux, 1), e = y - y_hat without
gradient, e_hat the k_aux largest h among dead latents times their decoder rows (`saes.auxk`). No
ReLU in e_hat: with it a latent whose h is negative everywhere would get no encoder gradient and
never come back.

Only z is sparse, and exactly so: every product but the encoder's touches k of d_sae latents.
Source: Gao et al., arXiv 2406.04093, section 2 and appendix A.2.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional

from saes.adam import Adam, Weights
from saes.auxk import add_auxk
from saes.clipping import clip_factor
from saes.config import SAEConfig
from saes.dictionary import Dictionary
from saes.selection import TopKEncoder
from saes.sparse import ByLatent, Slots, count_idle, decode_and_compare, has_kernels, is_large


class OutputGradient(NamedTuple):
    """Gradient of the reconstruction losses at the decoder's outputs."""

    rows: Float[Tensor, "row d_in"]
    """At every row that the decoder makes."""
    dots: Float[Tensor, " slot"]
    """Of every slot's row and decoder row: the gradient at its activation."""
    last: Float[Tensor, "token d_in"]
    """2 (y_hat - y) / B of the whole dictionary alone."""
    b_dec: Float[Tensor, " d_in"]
    squared_error: float
    """sum over tokens of ||y_hat - y||^2."""


class Gradients(NamedTuple):
    """Gradients of the loss at one batch, and what the batch showed.

    All tensors are scratch, valid until the next batch.
    """

    weights: Weights
    squared_error: float
    """sum over tokens of ||y_hat - y||^2."""
    slots: Slots
    row_squares: Float[Tensor, "2 d_sae"] | None
    """Sums of squares of the rows of both matrices' gradients, where they come for free."""


class TopKStep:
    """Weights, optimizer state and dead-latent counters of one SAE; `step` advances them."""

    def __init__(
        self, config: SAEConfig, b_dec: Float[Tensor, " d_in"], *, generator: torch.Generator
    ) -> None:
        """Unit-norm random decoder, W_enc = encoder_init_scale * W_dec^T, b_enc 0, given b_dec."""
        self.config = config
        device = b_dec.device
        directions = torch.randn(config.d_sae, config.d_in, generator=generator)
        W_dec = functional.normalize(directions, dim=1).to(device)
        b_enc = torch.zeros(config.d_sae, device=device)
        W_enc_T = W_dec * config.encoder_init_scale
        self.weights = Weights(W_enc_T, W_dec, b_enc, b_dec.clone())
        self.optimizer = Adam(self.weights)
        self.tokens_since_fired = torch.zeros(config.d_sae, dtype=torch.int64, device=device)
        self._encoder: Callable[..., Slots] | None = None
        self._workspace: _Workspace | None = None

    @property
    def n_steps(self) -> int:
        """Optimizer steps taken."""
        return self.optimizer.n_steps

    @property
    def dead(self) -> Bool[Tensor, " d_sae"]:
        """Latents that have not fired for `dead_threshold_tokens`."""
        return self.tokens_since_fired >= self.config.dead_threshold_tokens

    @torch.no_grad()
    def step(self, y: Float[Tensor, "token d_in"], lr: float, k: int | None = None) -> float:
        """One optimizer step on a batch; sum over tokens of ||y_hat - y||^2 before the update.

        The loss is divided by the configured batch size, so that a last, smaller batch moves the
        weights less instead of giving few tokens the weight of many. `k`: this step's, while it is
        warming up; None: the configured one.
        """
        gradients = self.gradients(y, k)
        bound = self.config.max_grad_norm
        clip = clip_factor(gradients.weights, bound, gradients.row_squares)
        self.optimizer.step(gradients.weights, lr, clip)
        count_idle(gradients.slots, len(y), self.tokens_since_fired)
        self._see(gradients.slots)
        return gradients.squared_error

    @torch.no_grad()
    def gradients(self, y: Float[Tensor, "token d_in"], k: int | None = None) -> Gradients:
        """Gradients of the loss of the module's docstring, at the present weights."""
        config, weights = self.config, self.weights
        work = self._prepare(len(y), k or config.k)
        centred = torch.sub(y, weights.b_dec, out=work.centred)
        assert self._encoder is not None
        slots = self._encoder(centred, weights.W_enc_T.t(), weights.b_enc)
        out = self._output_gradient(slots, centred, work.grad_out)
        by_latent = work.by_latent
        by_latent.sort(slots, out.dots)
        grads = Weights(
            W_enc_T=by_latent.sum_rows(centred, by_latent.grad_values, work.kept(0)),
            W_dec=by_latent.sum_rows(
                out.rows, by_latent.values, work.kept(1), rows=self._decoder_rows(by_latent)
            ),
            b_enc=by_latent.grad_sums,
            b_dec=out.b_dec,
        )
        if config.auxk_alpha:
            dead = self.dead.nonzero().flatten()
            if dead.numel():
                add_auxk(grads, weights, config, centred, out.last, dead)
                if work.row_squares is not None:
                    for squares, grad in zip(work.row_squares, grads, strict=False):
                        squares[dead] = grad[dead].square().sum(1)
        # b_dec reaches the loss twice: as output bias and, negated, as the encoder's centre.
        grads.b_dec.addmv_(weights.W_enc_T.t(), grads.b_enc, alpha=-1)
        return Gradients(grads, out.squared_error, slots, work.row_squares)

    def _make_encoder(self, n_tokens: int, k: int) -> Callable[..., Slots]:
        """What picks the active latents of batches of `n_tokens`."""
        config = self.config
        dtype = getattr(torch, config.encoder_dtype)
        device = self.weights.b_dec.device
        return TopKEncoder(n_tokens, config.d_sae, k, device=device, dtype=dtype)

    def _output_gradient(
        self, slots: Slots, centred: Float[Tensor, "token d_in"], out: Float[Tensor, "token d_in"]
    ) -> OutputGradient:
        """Decode and compare; `out` is scratch."""
        # b_dec of the output and of the centre cancel: y_hat - y = z W_dec - (y - b_dec).
        b_dec = torch.empty_like(self.weights.b_dec)
        factor = 2.0 / self.config.batch_size
        dots, squared_error = decode_and_compare(
            slots, self.weights.W_dec, centred, factor, out, b_dec
        )
        return OutputGradient(out, dots, out, b_dec, squared_error)

    def _decoder_rows(self, by_latent: ByLatent) -> Int[Tensor, " slot"]:
        """Row of `OutputGradient.rows` that every slot of `by_latent` wrote to."""
        return by_latent.rows

    def _see(self, slots: Slots) -> None:
        """Learn from a batch what is no weight."""

    def _prepare(self, n_tokens: int, k: int) -> _Workspace:
        work = self._workspace
        if work is None or (len(work.centred), work.k) != (n_tokens, k):
            work = self._workspace = _Workspace(self.config, n_tokens, k, self.weights.b_dec.device)
            self._encoder = self._make_encoder(n_tokens, k)
        return work

    def state(self) -> dict[str, Tensor]:
        """Every tensor that `step` reads, for a checkpoint."""
        adam = self.optimizer
        return {
            **self.weights.named("weights"),
            **adam.means.named("adam_mean"),
            **adam.squares.named("adam_square"),
            "tokens_since_fired": self.tokens_since_fired,
        }

    def load_state(self, state: dict[str, Tensor], n_steps: int) -> None:
        """Put back what `state` gave, and the step count that belongs to it, bit for bit."""
        for name, tensor in self.state().items():
            tensor.copy_(state[name])
        self.optimizer.n_steps = n_steps

    def move_into(self, tensors: Mapping[str, Tensor]) -> None:
        """Copy the state into these tensors, shaped like those of `state`, and live there."""
        for name, tensor in self.state().items():
            tensors[name].copy_(tensor)
        adam = self.optimizer
        self.weights = adam.weights = Weights.of(tensors, "weights")
        adam.means = Weights.of(tensors, "adam_mean")
        adam.squares = Weights.of(tensors, "adam_square")
        self.tokens_since_fired = tensors["tokens_since_fired"]
        self._workspace = None

    def dictionary(self) -> Dictionary:
        """The trained function, in the units of the rows that `step` was given."""
        weights = self.weights
        return Dictionary(
            W_enc=weights.W_enc_T.t().contiguous(),
            W_dec=weights.W_dec.clone(),
            b_enc=weights.b_enc.clone(),
            b_dec=weights.b_dec.clone(),
        )


class _Workspace:
    """Memory kept between steps: faulting in fresh pages would cost as much as filling them."""

    def __init__(self, config: SAEConfig, n_tokens: int, k: int, device: torch.device) -> None:
        shape = (n_tokens, config.d_in)
        self.k = k
        self.centred = torch.empty(shape, device=device)
        self.grad_out = torch.empty(shape, device=device)
        self.by_latent = ByLatent(n_tokens * k, config.d_sae, device=device)
        self.row_squares: Float[Tensor, "2 d_sae"] | None = None
        if is_large(config.d_sae * config.d_in) and has_kernels(self.centred):
            self._matrices = torch.empty(2, config.d_sae, config.d_in)
            self.row_squares = torch.empty(2, config.d_sae)

    def kept(self, number: int) -> tuple[Tensor, Tensor] | None:
        """Memory for a matrix's gradient (0 encoder, 1 decoder) and its rows' sums of squares."""
        if self.row_squares is None:
            return None
        return self._matrices[number], self.row_squares[number]
