"""A stream on documents that no SAE was trained on."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import tee

import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp.capture import capture
from interp.models import Model
from interp.spots import Spot
from interp.streams import Streams
from interp.tokens import TokenBlocks


@dataclass(frozen=True, eq=False)
class HeldOut:
    """Held-out rows of one stream."""

    x: Float[Tensor, "token d_model"]
    """Where the streams give them, which is where the SAEs are."""
    token_ids: Int[Tensor, " token"]
    positions: Int[Tensor, " token"]
    """In their blocks."""
    doc_ids: Int[Tensor, " token"]
    dropped_fraction: float

    @classmethod
    def of(
        cls, model: Model, blocks: TokenBlocks, spot: Spot, streams: Streams, *, seed: int = 0
    ) -> HeldOut:
        """Capture the spot's stream; `seed` is that of the Gaussian control's noise."""
        parts, columns, kept, real = [], [], 0, 0
        # The rows of training are others even where they are noise.
        chunks, again = tee(capture(model, blocks, spot.hook_point))
        for chunk, rows in zip(chunks, streams.rows(again, [spot], seed=~seed), strict=True):
            parts.append(rows[spot.stream])
            of_tokens = (chunk.token_ids, chunk.positions, chunk.doc_ids)
            columns.append(torch.stack([x[chunk.keep].long() for x in of_tokens]))
            kept += int(chunk.keep.sum())
            real += int((chunk.doc_ids >= 0).sum())
        token_ids, positions, doc_ids = torch.cat(columns, dim=1)
        x, dropped = torch.cat(parts), 1 - kept / max(real, 1)
        return cls(x, token_ids, positions, doc_ids, dropped)
