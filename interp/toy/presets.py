"""The toy model's sweeps by name: published sizes, a reduced one for two cores, a demonstration."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from interp.errors import UserError
from interp.toy.frequencies import Frequencies
from interp.toy.model import ToyConfig

WIDTHS = (10, 15, 25, 39, 63, 100)
STRONG, WEAK = -1.0, 0.1
"""The decays of the published large runs."""


@dataclass(frozen=True)
class Preset:
    """Models to train, in the order of their importance."""

    name: str
    about: str
    configs: tuple[ToyConfig, ...]
    eval_batches: int = 128
    """Fresh batches that every trained model is measured on."""


def preset(name: str) -> Preset:
    """The sweep of that name. Raises UserError for another."""
    if name not in PRESETS:
        raise UserError(f"toy preset {name!r} is unknown; choose from {', '.join(PRESETS)}")
    return Preset(name, ABOUT[name], tuple(PRESETS[name]()))


def _small(
    exponents: Sequence[float],
    decays: Sequence[float],
    n_steps: int,
    densities: Sequence[float] = (1.0,),
) -> Iterator[ToyConfig]:
    """The published small runs: n = 1000, rate 0.01, a tenth of the steps is warm-up."""
    for exponent in exponents:
        for density in densities:
            frequencies = Frequencies("power", float(exponent), 1000, float(density))
            for decay in decays:
                for m in WIDTHS:
                    yield ToyConfig(
                        frequencies, m, float(decay), batch_size=2048, n_steps=n_steps,
                        warmup_steps=n_steps // 10, lr_W=1e-2, lr_b=1e-2, eps=1e-8 * 1000,
                    )  # fmt: skip


def _large(
    laws: Sequence[tuple[str, float]],
    n: int,
    widths: Sequence[int],
    decays: Sequence[float],
    n_steps: int,
) -> Iterator[ToyConfig]:
    """The published large runs: rates by width, a twentieth of the steps is warm-up."""
    for law, parameter in laws:
        for decay in decays:
            for m in widths:
                # The published loss is 100 times the mean over n: see ToyConfig.eps.
                yield ToyConfig(
                    Frequencies(law, parameter, n), m, decay, batch_size=2048, n_steps=n_steps,
                    warmup_steps=n_steps // 20, lr_W=0.02 * (8 / m) ** 0.25, lr_b=2 / m,
                    eps=1e-8 * n / 100,
                )  # fmt: skip


def densities(count: int) -> list[float]:
    """Evenly from 1 to where the most frequent of 1000 features with p ~ 1/i is always active."""
    return np.linspace(1, 1 / Frequencies("power", 1.0, 1000).probabilities()[0], count).tolist()


LAWS = (("exponential", 400.0), ("power", 1.2), ("linear", 0.0))
HALF_OCTAVES = (8, 11, 16, 23, 32, 45, 64)
TEN_DECAYS = tuple(np.linspace(-1, 1, 10).round(10).tolist())
NINE_EXPONENTS = tuple(np.linspace(1, 2, 9).tolist())


def _reduced() -> Iterator[ToyConfig]:
    yield from _small((1.0, 1.5, 2.0), (-1.0, -0.5, WEAK, 0.5, 1.0), 3000)
    # The published exponential law, cut off where 0.6% of the activity is left.
    yield from _large(LAWS[:1], 2048, HALF_OCTAVES, (STRONG,), 10_000)
    yield from _small((1.0,), (STRONG,), 3000, densities(4)[1:])
    yield from _large(LAWS[1:], 2048, HALF_OCTAVES, (STRONG,), 10_000)


def _demo() -> Iterator[ToyConfig]:
    # A decay of 0.1 shrinks a row by 1 - 0.001 a step at most: fewer steps would leave rows that
    # nothing holds at their initial norms, and the weak regime would not be there to be seen.
    yield from _small((1.5, 2.0), (STRONG, WEAK), 4000)
    yield from _large(LAWS[:1], 1024, HALF_OCTAVES[::2], (STRONG,), 4000)


PRESETS = {
    "demo": _demo,
    "reduced": _reduced,
    "small": lambda: _small(NINE_EXPONENTS, TEN_DECAYS, 20_000),
    "large": lambda: _large(LAWS, 10_240, [2**k for k in range(3, 11)], (STRONG, WEAK), 20_000),
    "density": lambda: _small((1.0,), TEN_DECAYS, 20_000, densities(9)),
}
ABOUT = {
    "demo": "both regimes in two minutes",
    "reduced": "every claim at a size for two cores, under an hour",
    "small": "published size: 10 decays x 9 exponents x 6 widths, 20,000 steps; hours",
    "large": "published size: n = 10,240, widths 8 to 1024, three laws, 20,000 steps; days",
    "density": "published size: 9 densities x 10 decays x 6 widths, 20,000 steps; hours",
}
