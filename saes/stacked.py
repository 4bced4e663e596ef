"""Many SAEs of one shape advanced by one set of products: `saes.topk` and its kin off the CPU.

An accelerator is idle most of the time in the step of one small SAE: launching its two dozen
operations takes longer than they do. Here n SAEs share every launch. The dense products are batched
ones over [n, ...]. The sparse ones need no batching: with the latents of SAE i numbered from
i * d_sae, and the tokens of its batch from i * n_tokens, n SAEs are one sparse matrix, and the
products of `saes.sparse` take it as it is.

Same formula as `saes.topk`, `saes.batchtopk` and `saes.matryoshka`, same weights to rounding. Plain
torch without atomic additions of floats, so the same stack on the same device gives the same bits;
another stack may round a product differently. Tests run it on a CPU; no GPU has run it yet.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from saes.adam import Weights, normalize_rows, remove_parallel, update
from saes.batchtopk import THRESHOLD_RATE
from saes.clipping import EPS
from saes.config import SAEConfig
from saes.matryoshka import Levels
from saes.sparse import ByLatent, Slots, count_idle, decode_sparse, decoder_dots, exact_values
from saes.topk import TopKStep

ARCHITECTURES = ("topk", "batchtopk", "matryoshka_batchtopk")
"""Those with a step here."""


class StackedOutput(NamedTuple):
    """Gradient of the reconstruction losses at the decoders' outputs."""

    rows: Float[Tensor, "row d_in"]
    """At every row that the decoders make."""
    dots: Float[Tensor, " slot"]
    """Of every slot's row and decoder row: the gradient at its activation."""
    last: Float[Tensor, "sae token d_in"]
    """2 (y_hat - y) / B of the whole dictionaries alone."""
    b_dec: Float[Tensor, "sae d_in"]
    squared_errors: Float[Tensor, " sae"]


class StackedGradients(NamedTuple):
    """Gradients of every SAE's loss at its batch, and what the batches showed."""

    weights: Weights
    squared_errors: Float[Tensor, " sae"]
    """sum over tokens of ||y_hat - y||^2."""
    slots: Slots
    """Latents and rows numbered through all SAEs."""


class StackedStep:
    """Takes over the state of SAEs of one shape, which live on as views of the stack.

    So checkpoint, export and counters of every `TopKStep` work as before; only its `step` must wait
    until it has `move_into`d memory of its own.
    """

    def __init__(self, steps: Sequence[TopKStep], *, device: torch.device) -> None:
        """`steps`: of one architecture, whose configs agree in all that `shape` says."""
        self.steps = tuple(steps)
        self.config = steps[0].config
        first = steps[0].state()
        self._state = {
            name: torch.empty(len(steps), *tensor.shape, dtype=tensor.dtype, device=device)
            for name, tensor in first.items()
        }
        for number, step in enumerate(steps):
            step.move_into({name: whole[number] for name, whole in self._state.items()})
        self.weights = Weights.of(self._state, "weights")
        numbers = torch.arange(len(steps), device=device)
        self._first_latents = numbers * self.config.d_sae
        self._by_latent: ByLatent | None = None

    def dissolve(self) -> None:
        """Give every step memory of its own again."""
        for step in self.steps:
            step.move_into({name: torch.empty_like(part) for name, part in step.state().items()})

    @property
    def dead(self) -> Bool[Tensor, "sae d_sae"]:
        """Latents that have not fired for `dead_threshold_tokens`."""
        return self._state["tokens_since_fired"] >= self.config.dead_threshold_tokens

    @torch.no_grad()
    def step(
        self, y: Float[Tensor, "sae token d_in"], lrs: Sequence[float], k: int
    ) -> Float[Tensor, " sae"]:
        """One optimizer step of every SAE on its own batch, at its own learning rate.

        Returns sum over tokens of ||y_hat - y||^2 before the update, left on the device.
        """
        gradients = self.gradients(y, k)
        grads = gradients.weights
        if self.config.max_grad_norm is not None:
            _clip(grads, self.config.max_grad_norm)
        self._update(grads, lrs)
        idle = self._state["tokens_since_fired"]
        count_idle(gradients.slots, y.shape[1], idle.flatten())
        self._see(gradients.slots)
        return gradients.squared_errors

    @torch.no_grad()
    def gradients(self, y: Float[Tensor, "sae token d_in"], k: int) -> StackedGradients:
        """Gradients of the losses of `saes.topk` and its kin, at the present weights."""
        weights = self.weights
        centred = y - weights.b_dec[:, None]
        slots = self._select(centred, k)
        out = self._output(slots, centred)
        by_latent = self._sorted(slots, out.dots)
        W_enc_T = by_latent.sum_rows(centred.flatten(0, 1), by_latent.grad_values)
        W_dec = by_latent.sum_rows(out.rows, by_latent.values, rows=self._decoder_rows(by_latent))
        grads = Weights(
            W_enc_T.view_as(weights.W_enc_T),
            W_dec.view_as(weights.W_dec),
            by_latent.grad_sums.view_as(weights.b_enc),
            out.b_dec,
        )
        if self.config.auxk_alpha:
            self._add_auxk(grads, centred, out.last)
        # b_dec reaches the loss twice: as output bias and, negated, as the encoder's centre.
        grads.b_dec.sub_(torch.bmm(grads.b_enc[:, None], weights.W_enc_T)[:, 0])
        return StackedGradients(grads, out.squared_errors, slots)

    def _pre_activations(
        self, centred: Float[Tensor, "sae token d_in"]
    ) -> Float[Tensor, "sae token d_sae"]:
        W_enc, b_enc = self.weights.W_enc_T.mT, self.weights.b_enc[:, None]
        dtype = getattr(torch, self.config.encoder_dtype)
        if dtype == torch.float32:
            return torch.baddbmm(b_enc, centred, W_enc)
        return torch.bmm(centred.to(dtype), W_enc.to(dtype)).float().add_(b_enc)

    def _select(self, centred: Float[Tensor, "sae token d_in"], k: int) -> Slots:
        """The k largest positive entries of every token."""
        values, latents = self._pre_activations(centred).topk(k, dim=2, sorted=False)
        latents += self._first_latents[:, None, None]
        tokens = torch.arange(values[..., 0].numel(), device=values.device)
        return self._exact(
            Slots(
                latents.flatten(), values.relu_().flatten(), tokens.repeat_interleave(k), tokens * k
            ),
            centred,
        )

    def _exact(self, slots: Slots, centred: Float[Tensor, "sae token d_in"]) -> Slots:
        """The slots with their values in float32, whatever precision picked them."""
        if self.config.encoder_dtype != "float32":
            W_enc = self.weights.W_enc_T.flatten(0, 1).t()
            exact_values(slots, centred.flatten(0, 1), W_enc, self.weights.b_enc.flatten())
        return slots

    def _output(self, slots: Slots, centred: Float[Tensor, "sae token d_in"]) -> StackedOutput:
        """Decode and compare."""
        W_dec = self.weights.W_dec.flatten(0, 1)
        # b_dec of the output and of the centre cancel: y_hat - y = z W_dec - (y - b_dec).
        errors = decode_sparse(slots, W_dec).view_as(centred).sub_(centred)
        squared_errors = errors.square().sum((1, 2))
        errors.mul_(2.0 / self.config.batch_size)
        rows = errors.flatten(0, 1)
        dots = decoder_dots(rows, slots, W_dec)
        return StackedOutput(rows, dots, errors, errors.sum(1), squared_errors)

    def _decoder_rows(self, by_latent: ByLatent) -> Int[Tensor, " slot"]:
        """Row of `StackedOutput.rows` that every slot of `by_latent` wrote to."""
        return by_latent.rows

    def _see(self, slots: Slots) -> None:
        """Learn from a batch what is no weight."""

    def _sorted(self, slots: Slots, dots: Float[Tensor, " slot"]) -> ByLatent:
        if self._by_latent is None or self._by_latent.n_slots != len(dots):
            n_latents = self.weights.b_enc.numel()
            self._by_latent = ByLatent(len(dots), n_latents, device=dots.device)
        self._by_latent.sort(slots, dots)
        return self._by_latent

    def _add_auxk(self, grads: Weights, centred: Tensor, last: Tensor) -> None:
        """Add the gradient of the AuxK term: the dead of every SAE, padded to the most of any."""
        config, weights, dead = self.config, self.weights, self.dead
        n_dead = dead.sum(1)
        most = int(n_dead.max())
        if most == 0:
            return
        # Dead ones first, in order; the rest of a row is padding, which stays at zero throughout.
        latents = dead.to(torch.uint8).argsort(dim=1, descending=True, stable=True)[:, :most]
        is_dead = dead.gather(1, latents)
        at = (latents + self._first_latents[:, None]).flatten()
        encoder, decoder = (
            matrix.flatten(0, 1).index_select(0, at).view(len(dead), most, -1)
            for matrix in (weights.W_enc_T, weights.W_dec)
        )
        acts = torch.baddbmm(weights.b_enc.gather(1, latents)[:, None], centred, encoder.mT)
        acts.masked_fill_(~is_dead[:, None], -torch.inf)
        chosen = is_dead[:, None].expand_as(acts)
        if config.n_aux < most:
            top = acts.topk(config.n_aux, dim=2, sorted=False).indices
            chosen = torch.zeros_like(chosen).scatter_(2, top, True).logical_and_(chosen)
        acts.masked_fill_(~chosen, 0.0)
        scale = config.auxk_alpha * (n_dead / config.n_aux).clamp_max_(1.0)[:, None, None]
        # `last` is 2 (y_hat - y) / B = -2 e / B, so this is 2 c (e_hat - e) / B.
        grad_e = (torch.bmm(acts, decoder).mul_(2.0 / config.batch_size) + last).mul_(scale)
        grad_acts = torch.bmm(grad_e, decoder.mT).masked_fill_(~chosen, 0.0)
        # No latent stands twice in `at`, so nothing is added in an order of the device's own.
        for grad, more in (
            (grads.W_dec, torch.bmm(acts.mT, grad_e)),
            (grads.W_enc_T, torch.bmm(grad_acts.mT, centred)),
        ):
            grad.flatten(0, 1).index_add_(0, at, more.flatten(0, 1))
        grads.b_enc.flatten().index_add_(0, at, grad_acts.sum(1).flatten())

    def _update(self, grads: Weights, lrs: Sequence[float]) -> None:
        """Adam, once for every set of SAEs that are at the same rate and step."""
        alike: dict[tuple[float, int], list[int]] = defaultdict(list)
        for number, (step, lr) in enumerate(zip(self.steps, lrs, strict=True)):
            step.optimizer.n_steps += 1
            alike[lr, step.optimizer.n_steps].append(number)
        remove_parallel(grads.W_dec, self.weights.W_dec)
        parts = (
            self.weights,
            grads,
            Weights.of(self._state, "adam_mean"),
            Weights.of(self._state, "adam_square"),
        )
        for (lr, n_steps), numbers in alike.items():
            if len(numbers) == len(self.steps):
                update(parts, lr, n_steps)
            else:
                chosen = [[tensor[i] for tensor in part for i in numbers] for part in parts]
                update(chosen, lr, n_steps)
        normalize_rows(self.weights.W_dec)


class StackedBatchTopK(StackedStep):
    """Of `BatchTopKStep`s."""

    def _select(self, centred: Float[Tensor, "sae token d_in"], k: int) -> Slots:
        """The k * n_tokens largest positive entries of every batch, row by row."""
        n_saes, n_tokens, _ = centred.shape
        d_sae = self.config.d_sae
        pre = self._pre_activations(centred).flatten(1)
        values, at = pre.topk(min(k * n_tokens, pre.shape[1]), dim=1, sorted=False)
        at, order = at.sort(dim=1)
        values = values.gather(1, order).relu_().flatten()
        # Numbered through all batches, a place says token and latent of its SAE.
        places = (at + self._first_latents[:, None] * n_tokens).flatten()
        rows = places // d_sae
        latents = places - rows * d_sae + rows // n_tokens * d_sae
        every = torch.arange(n_saes * n_tokens, device=rows.device)
        return self._exact(Slots(latents, values, rows, torch.searchsorted(rows, every)), centred)

    def _see(self, slots: Slots) -> None:
        values = slots.values.view(len(self.steps), -1)
        threshold = self._state["threshold"]
        least = values.masked_fill(values <= 0, torch.inf).amin(1).to(threshold.dtype)
        moved = torch.where(threshold.isnan(), least, threshold.lerp(least, THRESHOLD_RATE))
        threshold.copy_(torch.where(least.isfinite(), moved, threshold))


class StackedMatryoshka(StackedBatchTopK):
    """Of `MatryoshkaStep`s."""

    def __init__(self, steps: Sequence[TopKStep], *, device: torch.device) -> None:
        super().__init__(steps, device=device)
        widths, d_sae = self.config.level_widths, self.config.d_sae
        self._levels = Levels(widths, d_sae, device=device, n_saes=len(steps))

    def _output(self, slots: Slots, centred: Float[Tensor, "sae token d_in"]) -> StackedOutput:
        tokens = centred.flatten(0, 1)
        W_dec = self.weights.W_dec.flatten(0, 1)
        nested = self._levels.cut(slots, len(tokens))
        errors = self._levels.errors(nested, W_dec, tokens)
        squared_errors = errors[:, -1].view_as(centred).square().sum((1, 2))
        errors.mul_(2.0 / self.config.batch_size)
        last = errors[:, -1].view_as(centred)
        self._levels.answer_for_later(errors)
        b_dec = errors[:, 0].view_as(centred).sum(1)
        rows = errors.flatten(0, 1)
        return StackedOutput(rows, decoder_dots(rows, nested, W_dec), last, b_dec, squared_errors)

    def _decoder_rows(self, by_latent: ByLatent) -> Int[Tensor, " slot"]:
        return self._levels.rows(by_latent)


def new_stack(steps: Sequence[TopKStep], *, device: torch.device) -> StackedStep:
    """Steps of one architecture and `shape`, on `device` and in one stack from now on."""
    kinds = {"batchtopk": StackedBatchTopK, "matryoshka_batchtopk": StackedMatryoshka}
    return kinds.get(steps[0].config.architecture, StackedStep)(steps, device=device)


def shape(config: SAEConfig) -> tuple[object, ...]:
    """What SAEs must have in common to be stacked."""
    return (
        config.architecture,
        config.d_in,
        config.d_sae,
        config.level_widths,
        config.batch_size,
        config.encoder_dtype,
        config.max_grad_norm,
        config.auxk_alpha,
        config.n_aux,
        config.dead_threshold_tokens,
    )


def scratch_bytes(config: SAEConfig) -> int:
    """Memory that a step needs for one SAE beside its state, at most: as if all latents were dead.

    Pre-activations and their likes, gradients, rows, slots.
    """
    pre = config.batch_size * config.d_sae
    rows = config.batch_size * config.d_in * (3 + len(config.level_widths))
    slots = config.batch_size * max(config.k, config.k_at(0))
    return 4 * (5 * pre + 6 * config.d_sae * config.d_in + rows) + 64 * slots


def _clip(grads: Weights, max_norm: float) -> None:
    """Shorten every SAE's gradient to `max_norm`, as `saes.clipping` does."""
    norms = torch.stack([torch.linalg.vector_norm(grad.flatten(1), dim=1) for grad in grads])
    factor = (max_norm / (torch.linalg.vector_norm(norms, dim=0) + EPS)).clamp_max_(1.0)
    for grad in grads:
        grad.mul_(factor.view(-1, *[1] * (grad.ndim - 1)))
