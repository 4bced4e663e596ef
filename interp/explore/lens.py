"""The logit lens on decoder rows: which tokens a direction promotes and suppresses."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp.hook_points import HookPoint, watch
from interp.models import Model

_BLOCK_LOGITS = 1 << 24
"""Logits held at once (64 MB)."""


class Lens(NamedTuple):
    """The tokens at either end of each direction's logits, the strongest first."""

    promoted: Int[Tensor, "direction n"]
    promoted_logits: Float[Tensor, "direction n"]
    suppressed: Int[Tensor, "direction n"]
    suppressed_logits: Float[Tensor, "direction n"]


@torch.no_grad()
def logit_lens(model: Model, directions: Float[Tensor, "direction d_model"], n: int) -> Lens:
    """The n most promoted and suppressed tokens of each direction.

    The last block's output is replaced by the direction d and by -d, and half the difference of
    the logits is taken: whatever the architecture does after the last block (norm, projection)
    is done, biases cancel, and for a plain norm it is W_U (gamma * d / |d|) sqrt(d_model). Logits
    are centred over the vocabulary, which changes no probability.
    Source: nostalgebraist 2020, interpreting GPT: the logit lens.
    """
    point = HookPoint("resid_post", model.n_layers - 1)
    head = model.hf.get_output_embeddings()
    height = max(1, _BLOCK_LOGITS // model.d_vocab // 2)
    parts = []
    for block in directions.to(model.device, model.dtype).split(height):
        unit = torch.nn.functional.normalize(block, dim=1)
        stream = torch.cat([unit, -unit])
        # Each row alone in its sequence: what comes after the last block looks at no other.
        ids = torch.zeros(len(stream), 1, dtype=torch.long, device=model.device)

        def replace(value: Tensor, stream: Tensor = stream) -> Tensor:
            return stream.to(value.device).view(value.shape)

        with watch(model.hf, {point: replace}):
            logits = head(model.final_hidden(ids)).flatten(0, 1).float()
        plus, minus = logits.chunk(2)
        logits = (plus - minus) / 2
        logits = logits - logits.mean(dim=1, keepdim=True)
        top, bottom = logits.topk(n, dim=1), (-logits).topk(n, dim=1)
        parts.append(
            Lens(top.indices.cpu(), top.values.cpu(), bottom.indices.cpu(), -bottom.values.cpu())
        )
    return Lens(*(torch.cat(part) for part in zip(*parts, strict=True)))
