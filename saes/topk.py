"""The fast TopK training step: forward, hand-written sparse backward, AuxK, Adam.

Plain formula, over a batch of rows y:

    h = (y - b_dec) W_enc + b_enc;  z = ReLU of the k largest h;  y_hat = z W_dec + b_dec
    loss = (1/B) sum ||y_hat - y||^2 + (c/B) sum ||e_hat - e||^2

B is the configured batch size, c = auxk_alpha * min(n_dead / k_aux, 1), e = y - y_hat without
gradient, e_hat the k_aux largest h among dead latents times their decoder rows. No ReLU in e_hat:
with it a latent whose h is negative everywhere would get no encoder gradient and never come back.

Only z is sparse, and exactly so: every product but the encoder's touches k of d_sae latents.
`embedding_bag` over latents is the decoder; over tokens, with slots sorted by latent, it is both
weight gradients. Source: Gao et al., arXiv 2406.04093, section 2 and appendix A.2.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional

from saes.config import SAEConfig

kernels: Any
try:
    from saes import kernels
except ImportError:  # numba is not installed: plain torch computes the same, several times slower
    kernels = None

ADAM_BETAS = (0.9, 0.999)
ADAM_EPS = 1e-8
BLOCK_ELEMENTS = 1 << 18
"""Pre-activations held at once while encoding: 1 MB stays in a core's cache for the selection."""


def select_topk(
    pre: Float[Tensor, "token d_sae"], k: int
) -> tuple[Float[Tensor, "token k"], Int[Tensor, "token k"]]:
    """ReLU of the k largest entries of every row, and where they are (in no order).

    Slots beyond the positive entries of a row hold value 0 and the index of any latent.
    """
    if kernels is None or pre.device.type != "cpu" or pre.dtype != torch.float32:
        values, indices = pre.topk(k, dim=1, sorted=False)
        return values.relu_(), indices
    values = torch.empty(len(pre), k)
    indices = torch.empty(len(pre), k, dtype=torch.int64)
    kernels.select_topk(
        pre.contiguous().view(torch.int32).numpy(),
        kernels.group_size(pre.shape[1], k),
        values.view(torch.int32).numpy(),
        indices.numpy(),
    )
    return values, indices


def encode_topk(
    centred: Float[Tensor, "token d_in"],
    W_enc: Float[Tensor, "d_in d_sae"],
    b_enc: Float[Tensor, " d_sae"],
    k: int,
) -> tuple[Float[Tensor, "token k"], Int[Tensor, "token k"]]:
    """`select_topk` of centred W_enc + b_enc, in blocks of rows, never [token, d_sae] at once."""
    rows = max(64, BLOCK_ELEMENTS // W_enc.shape[1])
    blocks = [
        select_topk(torch.addmm(b_enc, block, W_enc), k) for block in centred.split(rows)
    ] or [select_topk(centred @ W_enc, k)]
    if len(blocks) == 1:
        return blocks[0]
    values, indices = zip(*blocks, strict=True)
    return torch.cat(values), torch.cat(indices)


def decode_sparse(
    indices: Int[Tensor, "token k"],
    values: Float[Tensor, "token k"],
    W_dec: Float[Tensor, "d_sae d_in"],
) -> Float[Tensor, "token d_in"]:
    """sum over slots of value * W_dec[index]."""
    return functional.embedding_bag(indices, W_dec, per_sample_weights=values, mode="sum")


class Weights(NamedTuple):
    """Weights of one SAE, or their gradients. Both matrices have a row per latent."""

    W_enc_T: Float[Tensor, "d_sae d_in"]
    W_dec: Float[Tensor, "d_sae d_in"]
    b_enc: Float[Tensor, " d_sae"]
    b_dec: Float[Tensor, " d_in"]


class Gradients(NamedTuple):
    """Gradients of the loss at one batch, and what the batch showed."""

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
        self.weights = Weights(
            W_dec.clone(), W_dec, torch.zeros(config.d_sae, device=device), b_dec.clone()
        )
        self.means = Weights(*map(torch.zeros_like, self.weights))
        self.squares = Weights(*map(torch.zeros_like, self.weights))
        self.n_steps = 0
        self.tokens_since_fired = torch.zeros(config.d_sae, dtype=torch.int64, device=device)

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
        self._remove_parallel_part(gradients.weights.W_dec)
        self._adam(gradients.weights, lr)
        W_dec = self.weights.W_dec
        W_dec.div_(torch.linalg.vector_norm(W_dec, dim=1, keepdim=True).clamp_min_(1e-12))
        self._count_idle(gradients.indices, gradients.values)
        return gradients.squared_error

    @torch.no_grad()
    def gradients(self, y: Float[Tensor, "token d_in"]) -> Gradients:
        """Gradients of the loss of the module's docstring, at the present weights."""
        weights, k = self.weights, self.config.k
        centred = y - weights.b_dec
        values, indices = encode_topk(centred, weights.W_enc_T.t(), weights.b_enc, k)
        # With the b_dec of output and centre cancelled: y_hat - y = z W_dec - (y - b_dec).
        error = decode_sparse(indices, values, weights.W_dec).sub_(centred)
        squared_error = torch.dot(error.flatten(), error.flatten())
        grad_out = error * (2.0 / self.config.batch_size)
        grad_values = _decoder_dots(grad_out, indices, weights.W_dec)
        grads = _weight_gradients(indices, values, grad_values, grad_out, centred, weights)
        dead = self.dead.nonzero().flatten()
        if dead.numel() and self.config.auxk_alpha:
            self._add_auxk(grads, centred, error, dead)
        # b_dec reaches the loss twice: as output bias and, negated, as the encoder's centre.
        torch.sum(grad_out, dim=0, out=grads.b_dec)
        grads.b_dec.addmv_(weights.W_enc_T.t(), grads.b_enc, alpha=-1)
        return Gradients(grads, squared_error, indices, values)

    def _add_auxk(self, grads: Weights, centred: Tensor, error: Tensor, dead: Tensor) -> None:
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
        # error is y_hat - y, and the target e is minus that.
        grad_e = torch.addmm(error, acts, decoder).mul_(2.0 * scale / config.batch_size)
        grad_acts = grad_e @ decoder.t()
        if chosen is not None:
            grad_acts *= chosen
        grads.W_dec.index_add_(0, dead, acts.t() @ grad_e)
        grads.W_enc_T.index_add_(0, dead, grad_acts.t() @ centred)
        grads.b_enc.index_add_(0, dead, grad_acts.sum(0))

    def _remove_parallel_part(self, grad: Tensor) -> None:
        """Drop the part of each decoder gradient along its row: it would only change the norm."""
        W_dec = self.weights.W_dec
        along = (grad * W_dec).sum(1, keepdim=True)
        grad.addcmul_(W_dec, along, value=-1)

    def _adam(self, grads: Weights, lr: float) -> None:
        self.n_steps += 1
        steps = [torch.tensor(float(self.n_steps), device=w.device) for w in self.weights]
        torch._fused_adam_(
            list(self.weights),
            list(grads),
            list(self.means),
            list(self.squares),
            [],
            steps,
            lr=lr,
            beta1=ADAM_BETAS[0],
            beta2=ADAM_BETAS[1],
            weight_decay=0.0,
            eps=ADAM_EPS,
            amsgrad=False,
            maximize=False,
        )

    def _count_idle(self, indices: Tensor, values: Tensor) -> None:
        idle = self.tokens_since_fired
        if kernels is not None and idle.device.type == "cpu":
            kernels.count_idle(indices.numpy(), values.numpy(), len(indices), idle.numpy())
            return
        idle += len(indices)
        fired = torch.zeros_like(idle).index_add_(
            0, indices.flatten(), (values > 0).long().flatten()
        )
        idle.masked_fill_(fired > 0, 0)

    def state(self) -> dict[str, Tensor]:
        """Everything `step` reads, for a checkpoint; `load_state` puts it back bit for bit."""
        named = {"weights": self.weights, "adam_mean": self.means, "adam_square": self.squares}
        tensors = {
            f"{part}.{name}": tensor
            for part, group in named.items()
            for name, tensor in group._asdict().items()
        }
        return tensors | {"tokens_since_fired": self.tokens_since_fired}

    def load_state(self, state: dict[str, Tensor], n_steps: int) -> None:
        """Undo of `state`."""
        for name, tensor in self.state().items():
            tensor.copy_(state[name])
        self.n_steps = n_steps


def _decoder_dots(grad_out: Tensor, indices: Tensor, W_dec: Tensor) -> Tensor:
    """[token k]: grad_out . W_dec[index], the gradient of the slots' values."""
    n_tokens, k = indices.shape
    starts = torch.arange(0, n_tokens * k, k, device=indices.device)
    tokens = torch.arange(n_tokens, device=indices.device).repeat_interleave(k)
    dots = torch.ops.aten._embedding_bag_per_sample_weights_backward(
        grad_out, W_dec, indices.flatten(), starts, tokens, 0
    )
    return dots.view(n_tokens, k)


def _weight_gradients(
    indices: Tensor,
    values: Tensor,
    grad_values: Tensor,
    grad_out: Tensor,
    centred: Tensor,
    weights: Weights,
) -> Weights:
    """Gradients of both matrices and b_enc, summed per latent over its tokens; b_dec unset."""
    n_tokens, k = indices.shape
    d_sae = len(weights.b_enc)
    if kernels is not None and indices.device.type == "cpu":
        starts = torch.empty(d_sae, dtype=torch.int64)
        tokens = torch.empty(n_tokens * k, dtype=torch.int64)
        sorted_values, sorted_grads = torch.empty(2, n_tokens * k).unbind()
        b_enc = torch.empty(d_sae)
        inputs = (indices, values, grad_values)
        outputs = (starts, tokens, sorted_values, sorted_grads, b_enc)
        kernels.group_by_latent(*(tensor.numpy() for tensor in inputs + outputs))
    else:
        grad_values = grad_values * (values > 0)
        latents, order = indices.flatten().sort(stable=True)
        counts = torch.bincount(latents, minlength=d_sae)
        starts, tokens = counts.cumsum(0) - counts, order // k
        sorted_values, sorted_grads = values.flatten()[order], grad_values.flatten()[order]
        b_enc = torch.zeros(d_sae, device=indices.device).index_add_(0, latents, sorted_grads)
    W_dec, W_enc_T = (
        functional.embedding_bag(tokens, rows, starts, per_sample_weights=w, mode="sum")
        for rows, w in ((grad_out, sorted_values), (centred, sorted_grads))
    )
    return Weights(W_enc_T, W_dec, b_enc, torch.empty_like(weights.b_dec))
