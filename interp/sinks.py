"""Tokens with abnormally large norms, which no SAE should see; and the check for finite values."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor

from interp.errors import UserError
from interp.hook_points import HookPoint
from interp.tokens import TokenBlocks

SINK_NORM_RATIO = 10.0
"""A token whose norm exceeds this many median norms is a sink and no SAE should see it."""


class SinkFilter:
    """Norm limits per hook point, set on the first batch it sees, then fixed.

    `limits` of an earlier filter make a resumed capture drop exactly what an undisturbed one does.
    """

    def __init__(self, limits: Mapping[str, float] | None = None) -> None:
        self.limits: dict[str, float] = dict(limits or {})
        """Largest allowed norm by the printed name of the hook point."""

    def allowed(
        self, acts: Mapping[HookPoint, Float[Tensor, "token d_model"]], batch: TokenBlocks
    ) -> Bool[Tensor, "block pos"]:
        """False where a token is a sink at any hook point.

        Raises UserError for a value that is not finite, naming hook point and first document.
        """
        ordinary = rearrange(batch.is_target, "block pos -> (block pos)")
        allowed = torch.ones_like(ordinary)
        for point, rows in acts.items():
            # In float32 whatever the rows are: squares overflow float16 long before they do.
            norms = torch.linalg.vector_norm(rows, dim=-1, dtype=torch.float32)
            if not torch.isfinite(norms).all():
                row = int((~torch.isfinite(norms)).nonzero()[0])
                document = int(batch.doc_ids.flatten()[row])
                raise UserError(
                    f"{point}: values that are not finite ({rows.dtype}), first in document "
                    f"{document} of {batch.corpus}; check the checkpoint or use float32"
                )
            if str(point) not in self.limits and ordinary.any():
                self.limits[str(point)] = SINK_NORM_RATIO * float(norms[ordinary].median())
            allowed &= norms <= self.limits.get(str(point), float("inf"))
        return rearrange(allowed, "(block pos) -> block pos", pos=batch.n_ctx)
