"""What the explorer says of the text and of one latent: plain values, written as they are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

Tokens = tuple[tuple[str, float], ...]
"""Token texts, each with a number."""


@dataclass(frozen=True, eq=False)
class HeldOutText:
    """The text that passages are shown from, position by position through all blocks."""

    strings: list[str]
    """The distinct token texts."""
    ids: Int[np.ndarray, " position"]
    """Into `strings`; the empty string for padding and tokens before documents."""
    documents: list[tuple[int, int, str]]
    """Positions from and to which a document runs, the token before it left out; its name."""
    n_ctx: int
    """Positions of one block: nothing before its start is seen by the model."""
    sha256: str
    """Of the blocks: equal where two models read the same tokens at the same positions."""


class Passage(NamedTuple):
    """A place in the held-out text where the latent fires."""

    band: int
    """0: among the strongest; 1, 2, 3: drawn from the upper, middle, lower third of its range."""
    centre: int
    """Position of the firing."""
    acts: tuple[tuple[int, float], ...]
    """Activations around it, by distance from the centre."""


class Match(NamedTuple):
    """A latent elsewhere that may be the same."""

    where: int
    """The seed, or the place in the list of groups compared with."""
    latent: int
    cosine: float | None
    """Of the decoder rows; None where the two live in different spaces."""
    correlation: float
    """Of the activations on the same tokens."""
    counted: bool = False
    """Whether the study's matching made them one class, and so one reproducible latent."""


@dataclass(frozen=True)
class Latent:
    """One latent of one SAE on held-out tokens."""

    number: int
    state: str
    """`counted`, or why it is not: dead, rare, dense or duplicate."""
    density: float
    """Share of tokens on which it fires."""
    mass: float
    """Its share of sum z ||d|| over all latents."""
    max_act: float
    token_entropy_bits: float | None
    """Of the token's identity given that it fires; None if it never does."""
    found_by: int | None
    """Seeds that found it, itself included; None where it is not counted or nothing was matched."""
    label: str | None
    """The fact of Python that it tells best; None where it tells none to speak of."""
    label_f1: float | None
    """On documents that the label was not chosen on."""
    label_told: bool
    """F1 at least 0.5, and more than for labels shifted along the text."""
    fires_on: Tokens
    """Tokens with the largest shares of its activation."""
    promotes: Tokens
    """Logits, centred, if the stream were this direction alone."""
    suppresses: Tokens
    neighbours: tuple[tuple[int, float], ...]
    """Latents of the same dictionary with the largest decoder cosines."""
    histogram: tuple[int, ...]
    """Firings by activation, in equal bins from 0 to `max_act`."""
    passages: tuple[Passage, ...]
    in_seeds: tuple[Match, ...]
