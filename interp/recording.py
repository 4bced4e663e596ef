"""Capture to disk: resumable to the shard boundary, bounded in memory and in bytes.

A shard is a fixed number of blocks, run in the same batches whether or not the process was killed
in between, so a resumed store is the same bytes as an undisturbed one. One shard is computed while
the one before it is written.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from importlib import metadata
from importlib.resources import files
from pathlib import Path

import torch
from einops import rearrange
from safetensors.torch import save

from interp import durable
from interp.capture import Chunk, capture
from interp.errors import UserError
from interp.hook_points import HookPoint, resolve
from interp.machine import cpu_name
from interp.models import Model
from interp.provenance import sources_sha256
from interp.sinks import SinkFilter
from interp.store import (
    DTYPES,
    MANIFEST,
    Manifest,
    Origin,
    Positions,
    Shard,
    Store,
    acts_file,
    open_store,
    positions_file,
    tokens_file,
)
from interp.tokens import TokenBlocks

SHARD_BYTES = 64 * 1024 * 1024
"""About the size of one shard; about four of these are the memory that recording needs."""
SPARE_BYTES = 256 * 1024 * 1024
"""Of the disk, left free for others."""

_LIBRARIES = ("torch", "transformers", "safetensors")
_CODE = ("capture", "hook_points", "loss", "models", "recording", "sinks", "tokens")
# Names are for the reader of the manifest; the hashes say what was really used.
_NOT_COMPARED = {"model", "text"}
_HASHES = {"weights_sha256", "tokens_sha256", "code_sha256", "versions"}


@dataclass(frozen=True)
class Recording:
    """A capture to disk, decided and not begun: what it will hold and how large it will be."""

    model: Model
    tokens: TokenBlocks
    points: list[HookPoint]
    origin: Origin

    @property
    def bytes_per_token(self) -> int:
        """Of the activations of one stored position."""
        return len(self.points) * self.model.d_model * DTYPES[self.origin.dtype].itemsize

    @property
    def n_bytes(self) -> int:
        """Of the finished folder, sink tokens counted as stored: they are few."""
        stored = (
            self.tokens.is_target if self.origin.positions == "sae" else self.tokens.doc_ids >= 0
        )
        # A mask, and the loss, per position; ids, documents, bytes and a mask per token.
        per_position = 1 + 4 * self.origin.with_loss + 13
        header = 1_024 + 128 * len(self.points)
        n_shards = -(-self.origin.n_blocks // self.origin.blocks_per_shard)
        return (
            int(stored.sum()) * self.bytes_per_token
            + self.tokens.ids.numel() * per_position
            + n_shards * header
        )

    def require_room(self, out: Path, budget_bytes: int | None) -> None:
        """Raise UserError, with the number of tokens that would fit, when this would not."""
        existing = nearest_folder(out)
        held = sum(f.stat().st_size for f in out.rglob("*") if f.is_file()) if out.exists() else 0
        room = shutil.disk_usage(existing).free + held - SPARE_BYTES
        limit, what = room, f"{existing} has room for"
        if budget_bytes is not None and budget_bytes < room:
            limit, what = budget_bytes, "the budget is"
        if self.n_bytes > limit:
            fitting = int(max(limit, 0) * 0.98 * self.origin.n_tokens / self.n_bytes)
            raise UserError(
                f"{self.origin.n_tokens:,} tokens need {self.n_bytes:,} bytes and {what} "
                f"{max(limit, 0):,}; "
                + (f"--tokens {fitting} would fit" if fitting >= 2 else "nothing would fit")
                + f" ({len(self.points)} hook points in {self.origin.dtype})"
            )


def prepare(
    model: Model,
    tokens: TokenBlocks,
    hook_points: Sequence[str | HookPoint] | str | HookPoint,
    *,
    dtype: str | None = None,
    positions: Positions = "sae",
    with_loss: bool = False,
    batch_size: int = 32,
    shard_bytes: int = SHARD_BYTES,
) -> Recording:
    """Decide a capture to disk. `dtype` is that of the stored activations, by default the model's.

    Raises UserError for unknown hook points, dtypes or positions.
    """
    points = resolve(hook_points, model.hf)
    if not points:
        raise UserError("no hook points; name at least one, such as resid_post")
    dtype = dtype or str(model.dtype).removeprefix("torch.")
    if dtype not in DTYPES:
        raise UserError(f"unknown dtype {dtype!r}; use {', '.join(DTYPES)}")
    if positions not in ("sae", "all"):
        raise UserError(f"unknown positions {positions!r}; use sae or all")
    if batch_size < 1 or shard_bytes < 1:
        raise UserError("batch_size and shard_bytes must be at least 1")
    block_bytes = tokens.n_ctx * len(points) * model.d_model * DTYPES[dtype].itemsize
    blocks_per_shard = max(1, shard_bytes // block_bytes)
    if blocks_per_shard > batch_size:
        blocks_per_shard -= blocks_per_shard % batch_size
    origin = Origin(
        model=model.name,
        weights_sha256=model.weights_sha256,
        tokens_sha256=tokens.sha256,
        code_sha256=sources_sha256(("interp", files("interp") / f"{name}.py") for name in _CODE),
        versions={name: metadata.version(name) for name in _LIBRARIES},
        text=tokens.corpus,
        split=tokens.split,
        seed=tokens.seed,
        hook_points=tuple(map(str, points)),
        d_model=model.d_model,
        model_dtype=str(model.dtype).removeprefix("torch."),
        dtype=dtype,
        positions=positions,
        with_loss=with_loss,
        device=model.device.type,
        threads=torch.get_num_threads(),
        n_ctx=tokens.n_ctx,
        n_blocks=len(tokens),
        n_tokens=tokens.n_tokens,
        batch_size=batch_size,
        blocks_per_shard=blocks_per_shard,
    )
    return Recording(model, tokens, points, origin)


def record(
    recording: Recording,
    out: str | Path,
    *,
    budget_bytes: int | None = None,
    repair: bool = False,
    heartbeat: Callable[[Store], None] | None = None,
) -> Store:
    """Capture into `out`, or finish what was begun there; `heartbeat` is called after every shard.

    With `repair`, shards that fail their checksums are captured again first. Raises UserError, and
    leaves what is whole, when `out` holds another capture or someone else's files, another process
    writes there, a finished shard is gone or cut short, the bytes would exceed the budget or the
    disk, or activations are not finite.
    """
    out = Path(out)
    existed, fresh = out.exists(), _require_ours(out)
    recording.require_room(out, budget_bytes)
    durable.make_folder(out)
    with durable.only_writer(out):
        try:
            writer = _Writer.begin(recording, out)
            if repair:
                writer.repair()
            Store(out, writer.manifest).require_files()
            writer.finish(budget_bytes, heartbeat)
        except UserError:
            # Bad activations in the very first shard: leave nothing behind that blocks a retry.
            if fresh and not any(out.glob("acts-*.safetensors")):
                _clear(out)
                if not existed:
                    out.rmdir()
            raise
    return open_store(out)


class _Writer:
    """Appends shards to a folder whose lock is held."""

    def __init__(self, recording: Recording, out: Path, manifest: Manifest) -> None:
        self.recording, self.out, self.manifest = recording, out, manifest
        self.sinks = SinkFilter(manifest.sink_limits)

    @classmethod
    def begin(cls, recording: Recording, out: Path) -> _Writer:
        for folder in (out, out / "tokens", out / "positions"):
            folder.mkdir(exist_ok=True)
            durable.remove_partials(folder)
        tokens = recording.tokens
        columns = {"ids": tokens.ids, "doc_ids": tokens.doc_ids}
        columns |= {"n_bytes": tokens.n_bytes, "is_text": tokens.is_text}
        data = save({name: x.contiguous() for name, x in columns.items()})
        digest = hashlib.sha256(data).hexdigest()
        if (out / MANIFEST).exists():
            manifest = open_store(out).manifest
            _require_same(manifest.origin, recording.origin, out)
            if manifest.cpu != cpu_name():
                note = (
                    f"from shard {len(manifest.shards)} on, captured on {cpu_name()}, not on "
                    f"{manifest.cpu}: values agree within rounding, not bit for bit"
                )
                manifest = manifest.model_copy(update={"warnings": (*manifest.warnings, note)})
        else:
            manifest = Manifest(
                origin=recording.origin,
                tokens_file_sha256=digest,
                parity_error=recording.model.parity_error,
                cpu=cpu_name(),
            )
        writer = cls(recording, out, manifest)
        # The manifest first: a folder that holds anything else without one is not ours.
        writer._commit()
        if not tokens_file(out).exists() or durable.sha256(tokens_file(out)) != digest:
            durable.write(tokens_file(out), data)
        return writer

    def repair(self) -> None:
        """Capture damaged shards again."""
        for number in Store(self.out, self.manifest).damaged():
            shards = list(self.manifest.shards)
            shards[number] = self._write(number, self._capture(number), budget_left=None)
            self.manifest = self.manifest.model_copy(update={"shards": tuple(shards)})
            self._commit()

    def finish(self, budget_bytes: int | None, heartbeat: Callable[[Store], None] | None) -> None:
        """Capture what is missing, each shard while the one before it goes to the disk."""
        origin = self.recording.origin
        n_shards = -(-origin.n_blocks // origin.blocks_per_shard)
        writing: Future[Store] | None = None
        # Leaving the block waits for the shard that is being written, whatever stops the capture.
        with ThreadPoolExecutor(1, thread_name_prefix="writer") as writer:
            for number in range(len(self.manifest.shards), n_shards):
                chunk = self._capture(number)
                # One at a time: what waits to be written is memory.
                _finished(writing, heartbeat)
                limits = dict(self.sinks.limits)
                writing = writer.submit(self._append, number, chunk, limits, budget_bytes)
                del chunk
            _finished(writing, heartbeat)

    def _capture(self, number: int) -> Chunk:
        recording, origin = self.recording, self.recording.origin
        first = number * origin.blocks_per_shard
        [chunk] = capture(
            recording.model,
            recording.tokens[first : first + origin.blocks_per_shard],
            recording.points,
            chunk_tokens=origin.blocks_per_shard * origin.n_ctx,
            batch_size=origin.batch_size,
            with_loss=origin.with_loss,
            dtype=DTYPES[origin.dtype],
            sinks=self.sinks,
        )
        return chunk

    def _append(
        self, number: int, chunk: Chunk, sink_limits: dict[str, float], budget_bytes: int | None
    ) -> Store:
        """Write the next shard, then the manifest that names it; the store as it is then."""
        left = None
        if budget_bytes is not None:
            left = budget_bytes - sum(s.n_bytes for s in self.manifest.shards)
        shard = self._write(number, chunk, left)
        self.manifest = self.manifest.model_copy(
            update={"shards": (*self.manifest.shards, shard), "sink_limits": sink_limits}
        )
        self._commit()
        return Store(self.out, self.manifest)

    def _write(self, number: int, chunk: Chunk, budget_left: int | None) -> Shard:
        stored = chunk.keep if self.recording.origin.positions == "sae" else chunk.doc_ids >= 0
        n_rows = int(stored.sum())
        positions = save(_positions(chunk))
        # One hook point at a time, so that the chunk shrinks while the file grows.
        acts = save({name: chunk.acts.pop(name)[stored] for name in list(chunk.acts)})
        n_bytes = len(acts) + len(positions)
        if budget_left is not None and n_bytes > budget_left:
            raise UserError(
                f"{self.out}: shard {number} of {n_bytes:,} bytes exceeds what is left of the "
                f"budget, {budget_left:,}; run the same line with a larger one to go on"
            )
        durable.write(positions_file(self.out, number), positions)
        durable.write(acts_file(self.out, number), acts)
        return Shard(
            first_block=number * self.recording.origin.blocks_per_shard,
            n_blocks=len(chunk) // chunk.n_ctx,
            n_rows=n_rows,
            n_bytes=n_bytes,
            acts_sha256=hashlib.sha256(acts).hexdigest(),
            positions_sha256=hashlib.sha256(positions).hexdigest(),
        )

    def _commit(self) -> None:
        text = self.manifest.model_dump_json(indent=1) + "\n"
        durable.write(self.out / MANIFEST, text.encode())


def _finished(writing: Future[Store] | None, heartbeat: Callable[[Store], None] | None) -> None:
    """Wait for a shard that is being written and tell; raises what stopped it."""
    if writing is not None:
        store = writing.result()
        if heartbeat is not None:
            heartbeat(store)


def _positions(chunk: Chunk) -> dict[str, torch.Tensor]:
    """The mask of rows for SAEs, and the loss, in the form [block pos]."""
    columns = {"keep": chunk.keep}
    if chunk.nll is not None:
        columns["nll"] = chunk.nll
    return {
        name: rearrange(x, "(block pos) -> block pos", pos=chunk.n_ctx).contiguous()
        for name, x in columns.items()
    }


def _require_ours(out: Path) -> bool:
    """Whether the folder is new or empty; UserError when it holds anything but a store."""
    if not out.exists():
        return True
    if not out.is_dir():
        raise UserError(f"{out} is a file; choose another --out")
    if (out / MANIFEST).exists():
        return False
    # Empty folders and the partial manifest are what a kill in the first instant leaves.
    strangers = [f for f in out.rglob("*") if f.is_file() and not f.name.endswith(".partial")]
    if strangers:
        raise UserError(f"{out} exists and holds no store; choose another --out or empty it")
    return True


def _clear(folder: Path) -> None:
    """Remove what a writer made in a folder that was new or empty."""
    for made in ("tokens", "positions"):
        shutil.rmtree(folder / made, ignore_errors=True)
    (folder / MANIFEST).unlink(missing_ok=True)


def _require_same(held: Origin, wanted: Origin, out: Path) -> None:
    # Hashes last: that another number of tokens was asked for says more than another hash of them.
    for field in sorted(Origin.model_fields, key=lambda name: name in _HASHES):
        if field not in _NOT_COMPARED and getattr(held, field) != getattr(wanted, field):
            raise UserError(
                f"{out} holds another capture ({field} is {getattr(held, field)} there, "
                f"{getattr(wanted, field)} here); choose another --out"
            )


def nearest_folder(path: Path) -> Path:
    """The folder itself, or the closest one above it that exists."""
    return next(f for f in (path.absolute(), *path.absolute().parents) if f.is_dir())
