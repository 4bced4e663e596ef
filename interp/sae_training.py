"""SAEs from a live capture: the model runs, its stream trains them, nothing goes to disk.

Every SAE shuffles each chunk of the stream by itself, uniformly. So the chunk is the shuffle
buffer: its size is a setting of the run, and stands in `stream.json` with all else that determines
the stream.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from interp.capture import passes
from interp.hook_points import KINDS, HookPoint, blocks, resolve
from interp.models import Model
from interp.tokens import TokenBlocks
from saes.config import SAEConfig
from saes.runs import train_into

SHUFFLE_BUFFER = 65_536


def points_of(names: Sequence[str], model: Model) -> list[HookPoint]:
    """Hook points of the model; a bare kind such as resid_post stands for that of every layer.

    Raises UserError for a name that the model does not have.
    """
    n_layers = len(blocks(model.hf))
    found: list[str | HookPoint] = []
    for name in names:
        bare = name.removeprefix("hook_")
        found += [HookPoint(bare, i) for i in range(n_layers)] if bare in KINDS else [name]
    return resolve(found, model.hf)


def train_saes(
    model: Model,
    tokens: TokenBlocks,
    points: Sequence[HookPoint],
    configs: Callable[[dict[str, int]], list[SAEConfig]],
    out: Path,
    *,
    log: str | None = None,
    checkpoint_seconds: float = 30.0,
    shuffle_buffer: int = SHUFFLE_BUFFER,
    device: str = "cpu",
) -> list[Path]:
    """Train on the rows that an SAE should see, in passes over `tokens`; the SAEs' folders.

    `configs` makes the SAEs from {hook point: d_in}. Each SAE shuffles `shuffle_buffer` tokens at a
    time, whole blocks, with its own seed; memory is two such buffers for every hook point. They
    train on `device`, wherever the model is. The same call resumes after a kill, with the same
    final bits. Raises UserError when `out` holds SAEs of another stream.
    """
    settings = configs({str(point): model.d_model for point in points})
    stream = (
        {str(point): chunk.acts[str(point)][chunk.keep] for point in points}
        for chunk in passes(model, tokens, list(points), chunk_tokens=shuffle_buffer)
    )
    return train_into(
        out,
        stream,
        settings,
        identity={
            "weights_sha256": model.weights_sha256,
            "dtype": str(model.dtype).removeprefix("torch."),
            "tokens_sha256": tokens.sha256,
            "n_ctx": tokens.n_ctx,
            "shuffle_buffer": shuffle_buffer,
        },
        labels={"model": model.name, "text": tokens.corpus},
        log=log,
        checkpoint_seconds=checkpoint_seconds,
        device=device,
    )
