"""One forward pass over token blocks -> every requested hook point, and the loss if wanted.

Plain forward hooks on the headless backbone: the language-model head is a third of the work of a
small model, and is only multiplied, in pieces, when the loss is asked for.
"""

from __future__ import annotations

import mmap
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor

from interp.errors import UserError
from interp.hook_points import HookPoint, resolve, watch
from interp.loss import block_nll, require_finite
from interp.models import Model
from interp.sinks import SinkFilter
from interp.tokens import TokenBlocks

_HUGE_PAGE = 2 * 1024 * 1024
"""Bytes. Smaller tensors gain nothing from one."""


@dataclass(frozen=True, eq=False)
class Chunk:
    """Consecutive blocks, flattened to tokens; padding included. All on the CPU.

    Rows keep their order, so `(block pos)` can be unflattened with `n_ctx`.
    """

    acts: dict[str, Float[Tensor, "token d_model"]]
    """By the printed name of the hook point. Rows of padding hold no meaning."""
    token_ids: Int[Tensor, " token"]
    positions: Int[Tensor, " token"]
    doc_ids: Int[Tensor, " token"]
    """-1 for padding."""
    n_bytes: Int[Tensor, " token"]
    is_target: Bool[Tensor, " token"]
    """Tokens whose loss counts."""
    keep: Bool[Tensor, " token"]
    """Rows for SAEs: False at position 0, before documents, on padding and on sink tokens."""
    nll: Float[Tensor, " token"] | None
    """-log p of this token in nats, 0 at position 0; None unless asked for."""
    first_block: int
    n_ctx: int

    @property
    def dropped_fraction(self) -> float:
        """The share of tokens, padding not counted, that `keep` leaves out."""
        real = int((self.doc_ids >= 0).sum())
        return 1.0 - int(self.keep.sum()) / real if real else 0.0

    def __len__(self) -> int:
        return len(self.token_ids)


class _Stop(Exception):
    """Ends a forward pass whose last wanted tensor has been taken."""


def capture(
    model: Model,
    tokens: TokenBlocks,
    hook_points: Sequence[str | HookPoint] | str | HookPoint,
    *,
    chunk_tokens: int = 131_072,
    batch_size: int = 32,
    with_loss: bool = False,
    dtype: torch.dtype = torch.float32,
    sinks: SinkFilter | None = None,
) -> Iterator[Chunk]:
    """Yield chunks of about `chunk_tokens` positions with the raw stream at every hook point.

    `batch_size` counts blocks; `dtype` is that of the chunks, not of the model. Without the loss
    the pass stops after the last wanted layer. Sinks are tokens with more than 10 times the median
    norm at any hook point, the median taken over the other kept tokens of the first batch, so it
    does not depend on `chunk_tokens`; `sinks` brings limits found earlier.

    Hook points are checked at the call, not at the first chunk. Raises UserError for an unknown
    hook point, and for values or a loss that are not finite, naming hook point and document.
    """
    points = resolve(hook_points, model.hf)
    if chunk_tokens < 1 or batch_size < 1:
        raise UserError("chunk_tokens and batch_size must be at least 1")
    sinks = SinkFilter() if sinks is None else sinks
    return _chunks(model, tokens, points, chunk_tokens, batch_size, with_loss, dtype, sinks)


def passes(
    model: Model,
    tokens: TokenBlocks,
    hook_points: Sequence[str | HookPoint] | str | HookPoint,
    *,
    chunk_tokens: int,
) -> Iterator[Chunk]:
    """`capture` of the same text over and over, for a consumer that stops by itself.

    Ends after a pass in which no row is kept: it would never stop.
    """
    n_rows = 1
    while n_rows:
        n_rows = 0
        for chunk in capture(model, tokens, hook_points, chunk_tokens=chunk_tokens):
            n_rows += int(chunk.keep.sum())
            yield chunk


def run_blocks(
    model: Model,
    ids: Int[Tensor, "batch pos"],
    callbacks: Mapping[HookPoint, Callable[[Tensor], Tensor | None]],
    *,
    with_loss: bool,
) -> Float[Tensor, "batch pos"] | None:
    """One forward pass with callbacks on hook points (see `hook_points.watch`); the loss or None.

    Without the loss the pass ends after the last of the hook points.
    """
    last = max(callbacks, key=lambda point: point.order, default=None)

    def stop_after(callback: Callable[[Tensor], Tensor | None]) -> Callable[[Tensor], None]:
        def wrapped(value: Tensor) -> None:
            callback(value)
            raise _Stop

        return wrapped

    calls = dict(callbacks)
    if not with_loss and last is not None:
        calls[last] = stop_after(callbacks[last])
    ids = ids.to(model.device, torch.int64)
    with torch.inference_mode(), watch(model.hf, calls):
        try:
            hidden = model.final_hidden(ids)
        except _Stop:
            return None
        return block_nll(model, hidden, ids).cpu() if with_loss else None


def _chunks(
    model: Model,
    tokens: TokenBlocks,
    points: list[HookPoint],
    chunk_tokens: int,
    batch_size: int,
    with_loss: bool,
    dtype: torch.dtype,
    sinks: SinkFilter,
) -> Iterator[Chunk]:
    n_ctx = tokens.n_ctx
    blocks_per_chunk = max(1, chunk_tokens // n_ctx)
    # Page-locked memory lets a GPU copy while it computes; a model on several devices has no one
    # queue to wait for.
    pinned = model.device.type == "cuda" and getattr(model.hf, "hf_device_map", None) is None
    for first in range(0, len(tokens), blocks_per_chunk):
        part = tokens[first : first + blocks_per_chunk]
        # Ordinary tensors, made outside inference mode: a consumer may need gradients.
        shape = (len(part) * n_ctx, model.d_model)
        acts = {p: _empty(shape, dtype, pinned) for p in points}
        nll = torch.empty(len(part), n_ctx) if with_loss else None
        keep = (part.is_target).clone()
        for start in range(0, len(part), batch_size):
            batch = slice(start, min(start + batch_size, len(part)))
            rows = slice(batch.start * n_ctx, batch.stop * n_ctx)
            views = {p: acts[p][rows] for p in points}
            # The callback copies at once: the model may reuse its tensor later in the pass.
            callbacks = {p: _copy_into(view, pinned) for p, view in views.items()}
            batch_nll = run_blocks(model, part.ids[batch], callbacks, with_loss=with_loss)
            if pinned:
                torch.cuda.synchronize(model.device)
            read = part[batch]
            keep[batch] &= sinks.allowed(views, read)  # refuses what is not finite, by layer
            if nll is not None and batch_nll is not None:
                require_finite(batch_nll, read.is_target, read.doc_ids, model.name)
                nll[batch] = batch_nll
        yield Chunk(
            acts={str(p): value for p, value in acts.items()},
            token_ids=_flat(part.ids),
            positions=torch.arange(n_ctx, dtype=torch.int32).repeat(len(part)),
            doc_ids=_flat(part.doc_ids),
            n_bytes=_flat(part.n_bytes),
            is_target=_flat(part.is_target),
            keep=_flat(keep),
            nll=None if nll is None else _flat(nll),
            first_block=first,
            n_ctx=n_ctx,
        )


def _empty(shape: tuple[int, int], dtype: torch.dtype, pinned: bool) -> Float[Tensor, "token d"]:
    n_bytes = shape[0] * shape[1] * dtype.itemsize
    if pinned or n_bytes < _HUGE_PAGE or not hasattr(mmap, "MADV_HUGEPAGE"):
        return torch.empty(shape, dtype=dtype, pin_memory=pinned)
    # In pages of 4 KiB, filling new memory costs a small model a tenth of its forward pass; and
    # large blocks that come from malloc and go back make it return the model's own memory too.
    # Memory that is reused would cost as little as this, but a consumer may keep its chunk.
    memory = mmap.mmap(-1, n_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(memory, dtype=dtype).view(shape)


def _copy_into(rows: Float[Tensor, "token d_model"], pinned: bool) -> Callable[[Tensor], None]:
    def copy(value: Tensor) -> None:
        rows.copy_(value.reshape(rows.shape), non_blocking=pinned)

    return copy


def _flat(x: Tensor) -> Tensor:
    return rearrange(x, "block pos -> (block pos)")
