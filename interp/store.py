"""Activations on disk: shards of safetensors and a manifest that says what they are.

    manifest.json                     what was captured, with what, and every shard's checksums
    tokens/blocks.safetensors         the token blocks: ids, documents, bytes
    acts-000000.safetensors, ...      [row d_model] by hook point, as `saes train DIR` reads them
    positions/000000.safetensors, ... which positions the rows of a shard are, and their loss

A store is read without the model or the text it came from. A shard counts once the manifest names
it; `interp.recording` writes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors.torch import load_file
from torch import Tensor

from interp import durable
from interp.errors import UserError
from interp.loss import LossResult, LossSums
from interp.tokens import Split, TokenBlocks

MANIFEST = "manifest.json"
FORMAT = 1

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
Positions = Literal["sae", "all"]
"""Which positions have rows: those an SAE should see (`Chunk.keep`), or all but padding."""


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Origin(_Record):
    """All that determines a store's bytes on one type of processor."""

    model: str
    weights_sha256: str
    tokens_sha256: str
    code_sha256: str
    """Of the modules between tokens and shards."""
    versions: dict[str, str]
    text: str
    split: Split
    seed: int
    hook_points: tuple[str, ...]
    d_model: int
    model_dtype: str
    dtype: str
    """Of the stored activations: a key of `DTYPES`."""
    positions: Positions
    with_loss: bool
    device: str
    threads: int
    n_ctx: int
    n_blocks: int
    n_tokens: int
    """Positions in use, as `TokenBlocks.n_tokens`."""
    batch_size: int
    """Blocks per forward pass."""
    blocks_per_shard: int


class Shard(_Record):
    """One finished shard: `n_blocks` blocks from `first_block` on."""

    first_block: int
    n_blocks: int
    n_rows: int
    n_bytes: int
    """Of both files."""
    acts_sha256: str
    positions_sha256: str


class Manifest(_Record):
    """What `manifest.json` holds. No times: the same capture gives the same bytes."""

    format: int = FORMAT
    origin: Origin
    tokens_file_sha256: str
    parity_error: float | None
    """Of the model against an unhooked run, as `Model.parity_error`."""
    cpu: str
    """On which the capture began."""
    sink_limits: dict[str, float] = {}
    """Largest norm of a row that is no sink, by hook point; known after the first shard."""
    shards: tuple[Shard, ...] = ()
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Rows:
    """Stored rows of consecutive positions. Aligned tensors; `acts` by hook point, float32."""

    acts: dict[str, Float[Tensor, "row d_model"]]
    token_ids: Int[Tensor, " row"]
    positions: Int[Tensor, " row"]
    """Within the block."""
    doc_ids: Int[Tensor, " row"]
    keep: Bool[Tensor, " row"]
    """Rows for SAEs; all of them in a store of `sae` positions."""
    nll: Float[Tensor, " row"] | None
    """-log p of this token in nats; None in a store without the loss."""

    def __len__(self) -> int:
        return len(self.token_ids)


class Store:
    """A folder of captured activations, whole or still growing."""

    def __init__(self, path: Path, manifest: Manifest) -> None:
        self.path = path
        self.manifest = manifest
        self._sound: set[int] = set()

    @property
    def hook_points(self) -> tuple[str, ...]:
        return self.manifest.origin.hook_points

    @property
    def n_bytes(self) -> int:
        """Of all shards."""
        return sum(shard.n_bytes for shard in self.manifest.shards)

    @property
    def blocks_done(self) -> int:
        return sum(shard.n_blocks for shard in self.manifest.shards)

    @property
    def complete(self) -> bool:
        return self.blocks_done == self.manifest.origin.n_blocks

    @property
    def dropped_fraction(self) -> float:
        """The share of captured positions, padding not counted, that has no rows."""
        done = self.tokens[: self.blocks_done].n_tokens
        return 1.0 - len(self) / done if done else 0.0

    def __len__(self) -> int:
        """Rows of each hook point."""
        return sum(shard.n_rows for shard in self.manifest.shards)

    def __repr__(self) -> str:
        origin = self.manifest.origin
        state = "" if self.complete else f", {self.blocks_done} of {origin.n_blocks} blocks done"
        return (
            f"Store({str(self.path)!r}, {origin.model!r}, {len(self):,} rows of "
            f"{len(self.hook_points)} hook points, {origin.dtype}{state})"
        )

    @cached_property
    def tokens(self) -> TokenBlocks:
        """The token blocks of the whole capture, those not reached yet included."""
        origin, file = self.manifest.origin, tokens_file(self.path)
        if not _is(file, self.manifest.tokens_file_sha256):
            raise UserError(
                f"{file} is missing or damaged; run the same `interp capture` line again with "
                "--repair"
            )
        columns = load_file(file)
        return TokenBlocks(
            **columns, corpus=origin.text, split=origin.split, seed=origin.seed, warnings=()
        )

    def damaged(self) -> list[int]:
        """Numbers of the shards whose files are missing or not as the manifest says."""
        return [n for n in range(len(self.manifest.shards)) if not self._is_sound(n)]

    def require_files(self) -> None:
        """Raise UserError for a shard that is missing or cut short; without reading any."""
        for number, record in enumerate(self.manifest.shards):
            files = (acts_file(self.path, number), positions_file(self.path, number))
            if sum(f.stat().st_size for f in files if f.is_file()) != record.n_bytes:
                raise self._damage(number)

    def shard(self, number: int, hook_points: Sequence[str] | None = None) -> Rows:
        """The rows of one shard, checked against its checksums when it is first read.

        Raises UserError for a damaged shard, naming it, and for a hook point that is not stored.
        """
        wanted = self.hook_points if hook_points is None else tuple(map(str, hook_points))
        unknown = [name for name in wanted if name not in self.hook_points]
        if unknown:
            raise UserError(
                f"{self.path} holds no {unknown[0]}; it has {', '.join(self.hook_points)}"
            )
        self._check(number)
        acts = load_file(acts_file(self.path, number))
        at = load_file(positions_file(self.path, number))
        record = self.manifest.shards[number]
        part = self.tokens[record.first_block : record.first_block + record.n_blocks]
        everything = self.manifest.origin.positions == "all"
        stored = part.doc_ids >= 0 if everything else at["keep"]
        return Rows(
            acts={name: acts[name].float() for name in wanted},
            token_ids=part.ids[stored],
            positions=torch.arange(part.n_ctx).expand(len(part), -1)[stored],
            doc_ids=part.doc_ids[stored],
            keep=at["keep"][stored],
            nll=at["nll"][stored] if "nll" in at else None,
        )

    def rows(self, hook_points: Sequence[str] | None = None) -> Iterator[Rows]:
        """All rows in the order of the text, one shard at a time."""
        for number in range(len(self.manifest.shards)):
            yield self.shard(number, hook_points)

    def stream(
        self, hook_points: Sequence[str] | None = None, *, shuffle_buffer: int = 65_536
    ) -> Iterator[dict[str, Float[Tensor, "row d_model"]]]:
        """One pass over the rows for SAEs, as `saes.train` takes it.

        Chunks of `shuffle_buffer` rows, the last one shorter, in the order of the text: every SAE
        shuffles each chunk by itself. In memory are one chunk and one shard.
        """
        if shuffle_buffer < 1:
            raise UserError(f"a shuffle buffer of {shuffle_buffer} rows; use at least 1")
        names = self.hook_points if hook_points is None else tuple(map(str, hook_points))
        return self._chunks(names, shuffle_buffer)

    def _chunks(self, names: Sequence[str], n_rows: int) -> Iterator[dict[str, Tensor]]:
        waiting: list[dict[str, Tensor]] = []
        n_waiting = 0
        for rows in self.rows(names):
            waiting.append({name: x[rows.keep] for name, x in rows.acts.items()})
            n_waiting += int(rows.keep.sum())
            if n_waiting >= n_rows:
                whole = {name: torch.cat([part[name] for part in waiting]) for name in names}
                n_out = n_waiting - n_waiting % n_rows
                for start in range(0, n_out, n_rows):
                    yield {name: x[start : start + n_rows] for name, x in whole.items()}
                waiting = [{name: x[n_out:] for name, x in whole.items()}]
                n_waiting -= n_out
        if n_waiting:
            yield {name: torch.cat([part[name] for part in waiting]) for name in names}

    def loss(self) -> LossResult:
        """The model's loss over the captured blocks. Raises UserError when none was stored."""
        if not self.manifest.origin.with_loss:
            raise UserError(f"{self.path} was captured without the loss; capture with --loss")
        sums = LossSums(self.manifest.origin.model)
        for number, record in enumerate(self.manifest.shards):
            self._check(number)
            part = self.tokens[record.first_block : record.first_block + record.n_blocks]
            nll = load_file(positions_file(self.path, number))["nll"]
            sums.update(nll, part.is_target, part.doc_ids, part.n_bytes)
        return sums.result()

    def _check(self, number: int) -> None:
        if number not in self._sound and not self._is_sound(number):
            raise self._damage(number)
        self._sound.add(number)

    def _damage(self, number: int) -> UserError:
        return UserError(
            f"{acts_file(self.path, number)}: this shard is missing or damaged; run the same "
            "`interp capture` line again with --repair"
        )

    def _is_sound(self, number: int) -> bool:
        record = self.manifest.shards[number]
        return _is(acts_file(self.path, number), record.acts_sha256) and _is(
            positions_file(self.path, number), record.positions_sha256
        )


def open_store(path: str | Path) -> Store:
    """The store in a folder; without its model, its text, or the network.

    Raises UserError when the folder holds none, or its manifest cannot be read.
    """
    path = Path(path)
    file = path / MANIFEST
    if not file.is_file():
        raise UserError(f"{path} has no {MANIFEST}; make a store with `interp capture --out`")
    try:
        return Store(path, Manifest.model_validate_json(file.read_bytes()))
    except ValidationError as error:
        where = ".".join(map(str, error.errors()[0]["loc"])) or "the file"
        raise UserError(
            f"{file}: no manifest of format {FORMAT} ({where}: {error.errors()[0]['msg']}); "
            "capture again into another folder"
        ) from error


def acts_file(folder: Path, number: int) -> Path:
    return folder / f"acts-{number:06d}.safetensors"


def positions_file(folder: Path, number: int) -> Path:
    # Not beside the activations: whoever reads those by script wants nothing else among them.
    return folder / "positions" / f"{number:06d}.safetensors"


def tokens_file(folder: Path) -> Path:
    return folder / "tokens" / "blocks.safetensors"


def _is(file: Path, digest: str) -> bool:
    try:
        return durable.sha256(file) == digest
    except OSError:
        return False
