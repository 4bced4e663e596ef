"""What determines one SAE: its shape, its data budget and its optimization."""

from __future__ import annotations

import math
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from saes.errors import SAEError

LR_FACTOR = 0.06
LR_REFERENCE_BATCH = 1024
LR_DRIFT = 50.0
"""What lr * d_in * sqrt(steps) may be."""
MAX_LR = 0.02
MAX_DEAD_AFTER_TOKENS = 10_000_000
PENALTY_LR = 3e-4
"""Default peak rate of the architectures that a penalty makes sparse: sae-lens's own."""
PENALIZED = ("standard", "jumprelu", "gated")
N_LEVELS = 5


class SAEConfig(BaseModel):
    """One SAE. Frozen; unknown keys are errors; wrong values raise `SAEError` in one line.

    Everything the trained weights depend on is here, apart from the stream itself. `d_sae` and `k`
    may be given as multiples of d_in, such as "8x" and "0.125x".
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    d_in: int = Field(gt=0)
    """Width of the activations."""
    d_sae: int = Field(gt=0)
    """Number of latents."""
    k: int = Field(default=0, ge=0)
    """Latents that may be active on one token, on average over a batch for the batchtopk kinds; 0
    for the architectures that a penalty makes sparse."""
    n_tokens: int = Field(gt=0)
    """Tokens (rows of the stream) to train on; learning-rate schedule and stop follow from it."""
    hook_point: str = "resid"
    """Key of the stream's chunks that this SAE learns."""
    seed: int = Field(default=0, ge=0)
    """Seeds the initialization and the shuffle of every chunk."""
    architecture: Literal[
        "topk", "batchtopk", "matryoshka_batchtopk", "standard", "jumprelu", "gated"
    ] = "topk"
    """sae-lens's names. The last three run sae-lens's own training step; see `saes.peers`."""
    matryoshka_widths: tuple[int, ...] = ()
    """Nested dictionary sizes, ascending; empty: see `level_widths`."""
    sparsity_coefficient: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    """Weight of the penalty on active latents: L1 for standard and gated, L0 for jumprelu."""
    k_warmup_fraction: float = Field(default=0.0, ge=0, le=1)
    """Share of the budget over which k falls from `k_initial` to `k`; 0: constant."""
    k_initial: int | None = Field(default=None, gt=0)
    """k of the first step of a warm-up; None: d_in, at most d_sae."""
    b_dec_init: Literal["mean", "geometric_median"] = "mean"
    """Initial decoder bias: of the first chunk's rows; the median shrugs off rows of huge norm."""
    encoder_init_scale: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    """Length of the initial encoder rows; the decoder's is 1. At 1 the first reconstructions
    overshoot where k is large, and Adam remembers those large gradients for long. sae-lens begins
    with the function of 0.01. Not used by the architectures that sae-lens trains."""
    scale_activations: bool = True
    """Train on rows scaled to a variance of d_in and fold the scale into the saved weights."""
    batch_size: int = Field(default=1024, gt=0)
    """Tokens per step."""
    lr: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    """Peak learning rate of Adam; None: see `peak_lr`."""
    lr_warmup_fraction: float = Field(default=0.05, ge=0, le=1)
    lr_decay_fraction: float = Field(default=0.2, ge=0, le=1)
    max_grad_norm: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    """Gradients whose norm, over all weights together, is larger are shortened to it; None: never.
    Of the loss of `saes.topk`: squared error summed over d_in, mean over the batch, in the units of
    the rows trained on. sae-lens's trainer has the same loss and clips at 1, always."""
    auxk_alpha: float = Field(default=1 / 32, ge=0, allow_inf_nan=False)
    """Weight of the dead-latent (AuxK) loss; 0 turns revival off."""
    k_aux: int | None = Field(default=None, gt=0)
    """Dead latents that model the residual of one token; None: d_in / 2, at least 1."""
    dead_after_tokens: int | None = Field(default=None, gt=0)
    """A latent that has not fired for so many tokens is dead; None: see `dead_threshold_tokens`."""
    encoder_dtype: Literal["float32", "bfloat16"] = "float32"
    """Precision of the product that selects latents; selected values are float32 either way."""

    def __init__(self, **values: object) -> None:
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise SAEError(_one_line(error)) from None

    @model_validator(mode="before")
    @classmethod
    def _multiples_of_d_in(cls, values: Any) -> Any:
        if isinstance(values, dict) and isinstance(d_in := values.get("d_in"), int):
            for name in ("d_sae", "k"):
                if isinstance(text := values.get(name), str):
                    values = values | {name: _multiple(name, text, d_in)}
        return values

    @model_validator(mode="after")
    def _consistent(self) -> SAEConfig:
        if self.architecture in PENALIZED:
            if self.k or self.sparsity_coefficient is None:
                raise ValueError(
                    f"sparsity_coefficient: {self.architecture} is made sparse by a penalty; "
                    "give this and no k"
                )
            if self.max_grad_norm is not None:
                raise ValueError(
                    f"max_grad_norm: {self.architecture} is trained by sae-lens, which clips at 1; "
                    "remove it"
                )
        elif not self.k or self.sparsity_coefficient is not None:
            raise ValueError(f"k: {self.architecture} needs k, and no sparsity_coefficient")
        for name in ("k", "k_initial"):
            if (getattr(self, name) or 0) > self.d_sae:
                raise ValueError(
                    f"{name} {getattr(self, name)} is larger than d_sae {self.d_sae}; lower {name}"
                )
        if self.lr_warmup_fraction + self.lr_decay_fraction > 1:
            raise ValueError("lr_warmup_fraction + lr_decay_fraction is above 1; lower one of them")
        widths = self.matryoshka_widths
        if widths and self.architecture != "matryoshka_batchtopk":
            raise ValueError(f"matryoshka_widths: {self.architecture} has none; remove them")
        if list(widths) != sorted({w for w in widths if 0 < w <= self.d_sae}):
            raise ValueError(f"matryoshka_widths: give ascending sizes in 1..{self.d_sae}")
        return self

    @property
    def name(self) -> str:
        """Folder name of this SAE inside one hook point: d_sae-k-seed.

        Other architectures than topk say their name before k or the coefficient.
        """
        if self.architecture == "topk":
            return f"{self.d_sae}-{self.k}-{self.seed}"
        strength = f"{self.sparsity_coefficient:g}" if self.sparsity_coefficient else self.k
        return f"{self.d_sae}-{self.architecture}-{strength}-{self.seed}"

    @property
    def level_widths(self) -> tuple[int, ...]:
        """`matryoshka_widths` up to d_sae, or d_sae / 16, / 8, / 4, / 2 and d_sae itself."""
        widths = self.matryoshka_widths or [self.d_sae >> n for n in range(N_LEVELS)]
        return tuple(sorted({*widths, self.d_sae} - {0}))

    @property
    def peak_lr(self) -> float:
        """`lr`, or 0.06 * sqrt(k / d_sae) * batch_size / 1024 where none is given, within bounds.

        A latent that fires on fewer tokens wants smaller steps, a larger batch larger ones. At most
        0.02, and at most 50 / (d_in sqrt(steps)), as if steps of Adam, which move a pre-activation
        by up to lr * d_in each, added up like a random walk. Without the second bound latents stop
        firing in long training of wide rows, and FVU ends higher (`benchmarks/learning_rate.py`,
        widths 64 to 192).

        Where to begin, to be bracketed where it matters: the factor was chosen in trials of a
        million tokens on the ladder's contextual streams of widths 64 and 96 that are not kept.
        """
        if self.lr is not None:
            return self.lr
        if self.architecture in PENALIZED:
            return PENALTY_LR
        rule = LR_FACTOR * math.sqrt(self.k / self.d_sae) * self.batch_size / LR_REFERENCE_BATCH
        n_steps = max(self.n_tokens / self.batch_size, 1.0)
        return min(rule, LR_DRIFT / (self.d_in * math.sqrt(n_steps)), MAX_LR)

    @property
    def n_aux(self) -> int:
        """`k_aux`, or half the input width (Gao et al., arXiv 2406.04093, appendix B.1)."""
        return self.k_aux if self.k_aux is not None else max(self.d_in // 2, 1)

    @property
    def dead_threshold_tokens(self) -> int:
        """`dead_after_tokens`, or a tenth of the budget, at most 10M tokens.

        10M is the published rule; short runs would never revive anything under it.
        """
        if self.dead_after_tokens is not None:
            return self.dead_after_tokens
        return max(1, min(MAX_DEAD_AFTER_TOKENS, self.n_tokens // 10))

    def lr_at(self, tokens_done: int) -> float:
        """Learning rate of the step that starts after `tokens_done` tokens.

        Linear warm-up, constant, linear decay to zero at `n_tokens`.
        """
        done = min(tokens_done / self.n_tokens, 1.0)
        # Half a step ahead, so that the very first step moves and the last one is not wasted.
        done += 0.5 * self.batch_size / self.n_tokens
        rise = done / self.lr_warmup_fraction if self.lr_warmup_fraction > 0 else 1.0
        fall = (1 - done) / self.lr_decay_fraction if self.lr_decay_fraction > 0 else 1.0
        return self.peak_lr * max(0.0, min(1.0, rise, fall))

    def k_at(self, tokens_done: int) -> int:
        """k of the step that starts after `tokens_done` tokens: linear from `k_initial` to `k`."""
        warmup = self.k_warmup_fraction * self.n_tokens
        if tokens_done >= warmup:
            return self.k
        first = self.k_initial or max(self.k, min(self.d_in, self.d_sae))
        return round(first + (self.k - first) * tokens_done / warmup)


def _multiple(name: str, text: str, d_in: int) -> int:
    """ "8x" -> 8 * d_in, "4096" -> 4096."""
    try:
        value = float(text[:-1]) * d_in if text.endswith("x") else int(text)
    except ValueError:
        raise SAEError(f"{name} {text!r}: give a number or a multiple such as 8x") from None
    if not math.isfinite(value) or value < 1 or value != int(value):
        raise SAEError(
            f"{name} {text!r}: gives {value:g} latents at d_in {d_in}; give a whole number"
        )
    return int(value)


def _one_line(error: ValidationError) -> str:
    """The first complaint of pydantic as one line: field, complaint, value."""
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"])
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "extra_forbidden":
        return f"SAEConfig has no field {where!r}; remove it"
    if not where:
        is_about_a_field = message.split(":")[0] in SAEConfig.model_fields
        return f"SAEConfig{'.' if is_about_a_field else ': '}{message}"
    got = "" if first["type"] == "missing" else f" (got {first['input']!r})"
    return f"SAEConfig.{where}: {message}{got}"
