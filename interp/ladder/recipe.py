"""The ladder's recipe: every number that determines its models, and nothing else.

Learning rates were bracketed by short runs at three widths
(`interp ladder bracket`); the losses are in `bracket.json` beside this file.
"""

from __future__ import annotations

import math

from pydantic import BaseModel, ConfigDict

WIDTHS = (32, 48, 64, 96, 128, 160, 192, 256)
HEAD_SIZE = 16
N_LAYERS = 4
N_CTX = 256
VOCAB_SIZE = 1024
END_OF_TEXT = "<|endoftext|>"


class Recipe(BaseModel):
    """How one model of the ladder is trained. Counts are in tokens unless they say otherwise."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    d_model: int
    lr: float
    """Peak learning rate of embeddings, biases and norms."""
    lr_hidden: float
    """Peak learning rate of the matrices inside the blocks, whose best step shrinks with width."""
    n_tokens: int = 25_165_824  # 3,072 steps
    batch_tokens: int = 8_192
    warmup_fraction: float = 0.02
    decay_fraction: float = 0.2
    weight_decay: float = 0.1
    """Decoupled decay of every matrix; signed, see `interp.ladder.signed_decay`."""
    row_decay: float | None = None
    """Of the token embedding, whose rows are the output's rows too; None: as every matrix."""
    n_projects: int | None = None
    """Train on the first so many projects of a fixed random order, as often as it takes; None: on
    all of them."""
    beta1: float = 0.9
    beta2: float = 0.98
    clip_norm: float = 1.0
    seed: int = 0
    """Of the initial weights and, other than 0, of the batch to begin with."""
    n_threads: int = 1  # two models at once on two cores beat one model on both
    compile: bool = True  # torch.compile: about a quarter less time, needs a C++ compiler

    @property
    def n_steps(self) -> int:
        return self.n_tokens // self.batch_tokens

    @property
    def decay_start(self) -> int:
        """First step of the decay; the checkpoint before it is the stable branch point."""
        return round(self.n_steps * (1 - self.decay_fraction))

    def schedule(self, step: int) -> float:
        """Share of the peak learning rates: warm-up, stable, linear decay to zero."""
        warmup = max(1, round(self.n_steps * self.warmup_fraction))
        if step < warmup:
            return (step + 1) / warmup
        if step < self.decay_start:
            return 1.0
        return (self.n_steps - step) / (self.n_steps - self.decay_start)

    def same_until(self, step: int, other: Recipe) -> bool:
        """Whether a run of the other recipe has taken the same steps when it reaches `step`.

        Two budgets of a seed other than 0 differ from the first: each goes around its own steps.
        """
        budget = {"n_tokens", "warmup_fraction", "decay_fraction", "n_threads", "compile"}
        return (
            self.model_dump(exclude=budget) == other.model_dump(exclude=budget)
            and (not self.seed or self.n_steps == other.n_steps)
            and step <= min(self.n_steps, other.n_steps)
            and all(self.schedule(s) == other.schedule(s) for s in range(step))
        )

    def with_budget(self, n_tokens: int) -> Recipe:
        """Another number of tokens, with the same steps until the decay."""
        warmup = self.warmup_fraction * self.n_tokens / n_tokens
        return self.model_copy(update={"n_tokens": n_tokens, "warmup_fraction": warmup})


def initializer_range(d_model: int) -> float:
    """Standard deviation of the initial weights: GPT-2's 0.02 at 768, scaled with 1/sqrt(d_model).

    With a fixed 0.02 small widths under-train (a width of 16 stopped at 5.9 nats per token).
    """
    return 0.02 * math.sqrt(768 / d_model)


BRACKET_TOKENS = {32: 3_145_728, 96: 3_145_728, 256: 2_097_152}
BRACKET: dict[int, tuple[tuple[float, float], ...]] = {
    32: (
        (0.002, 0.002),
        (0.004, 0.001),
        (0.004, 0.002),
        (0.004, 0.004),
        (0.008, 0.002),
        (0.008, 0.008),
        (0.016, 0.002),
        (0.016, 0.016),
    ),
    96: (
        (0.002, 0.001),
        (0.002, 0.002),
        (0.004, 0.0005),
        (0.004, 0.001),
        (0.004, 0.004),
        (0.008, 0.00025),
        (0.008, 0.0005),
        (0.016, 0.0005),
    ),
    256: (
        (0.001, 0.000125),
        (0.002, 0.0000625),
        (0.002, 0.000125),
        (0.002, 0.002),
        (0.004, 0.00003125),
        (0.004, 0.0000625),
        (0.004, 0.000125),
        (0.004, 0.00025),
        (0.004, 0.0005),
        (0.004, 0.001),
        (0.008, 0.0005),
    ),
}
"""(lr, lr_hidden) for short runs of `BRACKET_TOKENS`; losses so far are in `bracket.json`."""


def learning_rates(d_model: int) -> tuple[float, float]:
    """(lr, lr_hidden) of a width: 0.008 (32/d)^(1/3) and 0.048/d, to three digits.

    One pair for both kinds of parameters fails at width: at 256, 0.002 for everything ends a short
    run 0.4 nats above 0.004 for the embeddings with 0.0005 inside the blocks.
    """
    return float(f"{0.008 * (32 / d_model) ** (1 / 3):.3g}"), float(f"{0.048 / d_model:.3g}")
