"""How far a splice moves the model's next-token distribution."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp.capture import capture
from interp.errors import UserError
from interp.hook_points import HookPoint, resolve, watch
from interp.models import Model
from interp.splice import Reconstruct
from interp.tokens import TokenBlocks

HEAD_ROWS = 1024
"""Tokens whose logits are held at once."""


def kl_divergence(
    model: Model,
    tokens: TokenBlocks,
    hook_point: str | HookPoint,
    reconstruct: Reconstruct,
    *,
    batch_size: int = 32,
    chunk_tokens: int = 32_768,
) -> float:
    """Mean over targets of KL(clean || spliced) in nats: sum_v p_v (log p_v - log q_v).

    The rows that `ce_loss_recovered` replaces are replaced, the others pass as they are, and the
    mean runs over the same targets. Raises UserError for a text without targets.
    """
    (point,) = resolve(hook_point, model.hf)
    total, n_targets = 0.0, 0
    for chunk in capture(model, tokens, point, batch_size=batch_size, chunk_tokens=chunk_tokens):
        device = model.device
        acts, keep = chunk.acts[str(point)].to(device), chunk.keep.to(device)
        read = (x.to(device)[keep].long() for x in (chunk.token_ids, chunk.positions))
        acts[keep] = reconstruct(acts[keep], *read).to(acts.dtype)
        # The distribution over a target is made one position before it.
        predicts = chunk.is_target.view(-1, chunk.n_ctx).roll(-1, dims=1)
        predicts[:, -1] = False
        ids = chunk.token_ids.view(-1, chunk.n_ctx)
        spliced = acts.view(*ids.shape, -1)
        for start in range(0, len(ids), batch_size):
            block = slice(start, start + batch_size)
            wanted = predicts[block]
            clean = _hidden(model, ids[block], point, None)[wanted]
            moved = _hidden(model, ids[block], point, spliced[block])[wanted]
            total += sum(_row_divergences(model, clean, moved))
            n_targets += int(wanted.sum())
    if n_targets == 0:
        raise UserError("the text has no token to predict; use a longer text")
    return total / n_targets


def _hidden(
    model: Model,
    ids: Int[Tensor, "block pos"],
    point: HookPoint,
    instead: Float[Tensor, "block pos d_model"] | None,
) -> Float[Tensor, "block pos d_model"]:
    """What the head multiplies, with `instead` in place of the stream at `point`; on the CPU."""

    def put(value: Tensor) -> Tensor | None:
        return None if instead is None else instead.reshape(value.shape).to(value)

    with torch.inference_mode(), watch(model.hf, {point: put}):
        return model.final_hidden(ids.to(model.device, torch.int64)).cpu()


def _row_divergences(
    model: Model, clean: Float[Tensor, "token d"], moved: Float[Tensor, "token d"]
) -> Iterator[float]:
    """Sums of KL over pieces of the tokens."""
    head = model.hf.get_output_embeddings()
    for a, b in zip(clean.split(HEAD_ROWS), moved.split(HEAD_ROWS), strict=True):
        with torch.inference_mode():
            log_p, log_q = (head(x.to(model.device)).float().log_softmax(-1) for x in (a, b))
            yield float((log_p.exp() * (log_p - log_q)).sum(dtype=torch.float64))
