"""The constant-width arm: one width, and everything else that should change superposition varied.

Across widths packing and loss both follow width. Here width is fixed at 64 and one lever at a time
is moved: the MIT study's signed weight decay, on the embedding rows or on every matrix; the number
of training tokens; the number of distinct projects among them (the fewer, the more often each is
read again); and, for the spread of it all, the seed. Source of the first lever: Liu, Liu & Gore,
arXiv 2505.10465.

The base model's rows have norms near 1.7. A negative decay pulls them to 1, so it may shorten them
as a positive one does: their length need not be monotone in gamma. A signed lever is therefore
judged by the spread of what it does, not by a trend (`interp.dose_response`), and what each value
did to the rows stands in the model's record.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, zip_longest
from typing import Any

from interp.ladder.corpus import load_projects
from interp.ladder.recipe import Recipe, learning_rates

D_MODEL = 64
BASE = f"d{D_MODEL:03d}"
"""The ladder's own model of that width."""

LEVERS: dict[str, str] = {
    "row_decay": "signed decay of the embedding (and output) rows",
    "matrix_decay": "signed decay of every matrix, rows included",
    "tokens": "training tokens",
    "projects": "distinct projects among as many tokens, repeated where they are few",
    "seed": "seed of the initial weights and of the batch to begin with",
}
"""What is varied, by its name in records."""
_SHORT = {"row_decay": "rows", "matrix_decay": "matrices"}
"""In the names of models, where it is another."""

_VALUES: Mapping[str, Sequence[float]] = {
    "seed": (1, 2, 3, 4),
    # A decay of 3 takes e^2 off what lies inside the blocks, whose rate is an eighth of the rows'.
    "matrix_decay": (-1, 10, 3, 1, -0.3),
    "row_decay": (-1, 3, 1, 0, 0.3),
    # A smaller budget branches off a larger one.
    "tokens": (12_582_912, 6_291_456, 50_331_648),
    "projects": (2, 6, 20),
}
"""In the order of training: the ends of a lever first."""


@dataclass(frozen=True)
class Variant:
    """One model of the arm."""

    lever: str
    value: float
    recipe: Recipe

    @property
    def name(self) -> str:
        """Of its folder: `d064-rows-neg0.3`, `d064-tokens-13m`."""
        size = abs(self.value)
        text = f"{size / 1e6:.0f}m" if self.lever == "tokens" else f"{size:g}"
        lever = _SHORT.get(self.lever, self.lever)
        return f"{BASE}-{lever}-{'neg' * (self.value < 0)}{text}"


def base_recipe(d_model: int = D_MODEL) -> Recipe:
    """The recipe of the ladder's main arm at this width."""
    lr, lr_hidden = learning_rates(d_model)
    return Recipe(d_model=d_model, lr=lr, lr_hidden=lr_hidden)


def base_values() -> dict[str, float]:
    """Where the base model stands on every lever whose values have an order."""
    base = base_recipe()
    return {
        "row_decay": base.weight_decay,
        "matrix_decay": base.weight_decay,
        "tokens": float(base.n_tokens),
        "projects": float(len(load_projects()["train"])),
    }


def variants() -> list[Variant]:
    """Every model of the arm but the base one, which belongs to the ladder's main arm.

    One value of each lever in turn, so that the first few already say something of each.
    """
    rounds = zip_longest(*([(lever, v) for v in values] for lever, values in _VALUES.items()))
    return [
        Variant(lever, value, _recipe(lever, value))
        for lever, value in filter(None, chain.from_iterable(rounds))
    ]


def _recipe(lever: str, value: float) -> Recipe:
    base = base_recipe()
    if lever == "tokens":
        return base.with_budget(int(value))
    changed: dict[str, dict[str, Any]] = {
        "row_decay": {"row_decay": float(value)},
        "matrix_decay": {"weight_decay": float(value)},
        "projects": {"n_projects": int(value)},
        "seed": {"seed": int(value)},
    }
    return base.model_copy(update=changed[lever])
