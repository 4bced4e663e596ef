"""The streams of one model that SAEs are trained and measured on, and the Gaussian in their place.

A stream is the activations of one hook point: raw, or contextual (less the means of token and
position). Training and held-out measurement read it here, so that they cannot disagree.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from interp.capture import Chunk
from interp.contextual import ContextualMeans
from interp.controls import GaussianFitter, MatchedGaussian
from interp.spots import Spot

Rows = dict[str, Float[Tensor, "row d_model"]]
"""By the stream's name (`Spot.stream`)."""


@dataclass(frozen=True)
class Streams:
    """How the rows of each stream come out of captured chunks."""

    means: Mapping[int, ContextualMeans]
    """Token and position means by layer, for the contextual streams."""
    gaussians: Mapping[str, MatchedGaussian] = field(default_factory=dict)
    """By stream: noise of its moments instead of its rows. Empty: the rows."""
    device: str = "cpu"
    """Where rows come out, and where the means are. Captured chunks are on the CPU."""

    def rows(self, chunks: Iterable[Chunk], spots: Iterable[Spot], *, seed: int) -> Iterator[Rows]:
        """The kept rows of every chunk, for every stream that the spots read.

        `seed` determines the noise of the Gaussian control, and nothing else.
        """
        wanted = list({spot.stream: spot for spot in spots}.values())
        generator = torch.Generator().manual_seed(seed)
        for chunk in chunks:
            out = {}
            for spot in wanted:
                gaussian = self.gaussians.get(spot.stream)
                if gaussian is None:
                    out[spot.stream] = self._captured(chunk, spot)
                else:
                    noise = gaussian.sample(int(chunk.keep.sum()), generator)
                    out[spot.stream] = noise.to(self.device)
            yield out

    def to(self, device: str) -> Streams:
        """The same rows on another device; noise is drawn on the CPU whatever the device."""
        means = {layer: one.to(device) for layer, one in self.means.items()}
        return Streams(means, self.gaussians, device)

    def with_gaussians(self, chunks: Iterable[Chunk], spots: Iterable[Spot]) -> Streams:
        """The control: rows replaced by noise with the mean and covariance that `chunks` show."""
        wanted = list({spot.stream: spot for spot in spots}.values())
        fitters = {spot.stream: GaussianFitter() for spot in wanted}
        for chunk in chunks:
            for spot in wanted:
                # Summed in double precision on the CPU, where GPUs are slow and orders vary.
                fitters[spot.stream].update(self._captured(chunk, spot).cpu())
        gaussians = {stream: fitter.fit() for stream, fitter in fitters.items()}
        return Streams(self.means, gaussians, self.device)

    def _captured(self, chunk: Chunk, spot: Spot) -> Float[Tensor, "row d_model"]:
        keep = chunk.keep.to(self.device)
        # The whole chunk crosses, and is thinned out there: it lies in page-locked memory.
        x = chunk.acts[spot.hook_point].to(self.device)[keep]
        if spot.about == "all":
            return x
        ids, positions = (y.to(self.device)[keep] for y in (chunk.token_ids, chunk.positions))
        return self.means[spot.layer].residual(x, ids, positions)
