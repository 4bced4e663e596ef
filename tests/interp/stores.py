"""Stores of the tiny model's activations, for the tests of stores."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from interp.recording import prepare, record
from interp.store import Store

POINTS = ["blocks.0.hook_resid_pre", "blocks.2.hook_resid_post"]
SMALL = {"batch_size": 2, "shard_bytes": 20_000}
"""Shards of 2 blocks of 32 positions: 2 x 32 x 2 hook points x 32 x 4 bytes = 16 KiB."""


def recorded(model: Any, tokens: Any, out: Path, *, into: Any = None, **options: Any) -> Store:
    return record(prepare(model, tokens, POINTS, **(SMALL | options)), out, **(into or {}))


def files(folder: Path) -> dict[str, bytes]:
    return {str(f.relative_to(folder)): f.read_bytes() for f in folder.rglob("*") if f.is_file()}
