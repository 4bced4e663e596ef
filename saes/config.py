"""What determines one SAE: its shape, its data budget and its optimization."""

from __future__ import annotations

import math
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from saes.errors import SAEError

LR_FACTOR = 0.06
LR_REFERENCE_BATCH = 1024
MAX_LR = 0.02
MAX_DEAD_AFTER_TOKENS = 10_000_000


class SAEConfig(BaseModel):
    """One TopK SAE. Frozen; unknown keys are errors; wrong values raise `SAEError` in one line.

    Everything the trained weights depend on is here, apart from the stream itself.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    d_in: int = Field(gt=0)
    """Width of the activations."""
    d_sae: int = Field(gt=0)
    """Number of latents."""
    k: int = Field(gt=0)
    """Latents that may be active on one token."""
    n_tokens: int = Field(gt=0)
    """Tokens (rows of the stream) to train on; learning-rate schedule and stop follow from it."""
    hook_point: str = "resid"
    """Key of the stream's chunks that this SAE learns."""
    seed: int = Field(default=0, ge=0)
    """Seeds the initialization and the shuffle of every chunk."""
    architecture: Literal["topk"] = "topk"
    batch_size: int = Field(default=1024, gt=0)
    """Tokens per step. At a fixed budget 1024 beat 2048 in FVU and in latents that seeds share."""
    lr: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    """Peak learning rate of Adam; None: see `peak_lr`."""
    lr_warmup_fraction: float = Field(default=0.05, ge=0, le=1)
    lr_decay_fraction: float = Field(default=0.2, ge=0, le=1)
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

    @model_validator(mode="after")
    def _consistent(self) -> SAEConfig:
        if self.k > self.d_sae:
            raise ValueError(f"k {self.k} is larger than d_sae {self.d_sae}; lower k")
        if self.lr_warmup_fraction + self.lr_decay_fraction > 1:
            raise ValueError("lr_warmup_fraction + lr_decay_fraction is above 1; lower one of them")
        return self

    @property
    def name(self) -> str:
        """Folder name of this SAE inside one hook point: d_sae-k-seed."""
        return f"{self.d_sae}-{self.k}-{self.seed}"

    @property
    def peak_lr(self) -> float:
        """`lr`, or 0.06 * sqrt(k / d_sae) * batch_size / 1024, at most 0.02, where none is given.

        A latent that fires on fewer tokens wants smaller steps, a larger batch larger ones.
        Bracketed on contextual residual streams of widths 64 and 96 (1M and 4M tokens, d_sae 256 to
        1536, k 3 to 24, batch 256 to 2048): within 1% of the best FVU, and at width 64 (d_sae 256,
        k 5, 4M tokens) 196 latents shared by two of three seeds, against 177 and 161 at half and
        twice the rate.
        """
        if self.lr is not None:
            return self.lr
        rule = LR_FACTOR * math.sqrt(self.k / self.d_sae) * self.batch_size / LR_REFERENCE_BATCH
        return min(rule, MAX_LR)

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


def _one_line(error: ValidationError) -> str:
    """The first complaint of pydantic as one line: field, complaint, value."""
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"])
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "extra_forbidden":
        return f"SAEConfig has no field {where!r}; remove it"
    if not where:
        return f"SAEConfig: {message}"
    got = "" if first["type"] == "missing" else f" (got {first['input']!r})"
    return f"SAEConfig.{where}: {message}{got}"
