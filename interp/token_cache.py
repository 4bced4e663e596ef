"""Tokenized text kept between runs, found again by the hash of all that determines it.

In `$SUPERSCOPE_CACHE`, or ~/.cache/superscope; `SUPERSCOPE_CACHE=off` keeps nothing. Losing the
cache, or not being allowed to write it, costs time and nothing else.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import load, save
from torch import Tensor

from interp import durable
from interp.errors import UserError

MAX_BYTES = 2 * 1024**3
"""Of all entries together; the ones not used for longest go first."""


def key(facts: Mapping[str, Any]) -> str:
    """The name of an entry. Every fact must have a `repr` that says all about it."""
    return hashlib.sha256(repr(sorted(facts.items())).encode()).hexdigest()[:32]


def read(name: str) -> dict[str, Tensor] | None:
    """The tensors kept under a key; None when there are none, or they are damaged."""
    folder = _folder()
    if folder is None:
        return None
    for file in folder.glob(f"{name}-*.safetensors"):
        with contextlib.suppress(OSError):
            data = file.read_bytes()
            if hashlib.sha256(data).hexdigest() == file.stem.removeprefix(f"{name}-"):
                os.utime(file)
                return load(data)
            file.unlink()
    return None


def keep(name: str, columns: Mapping[str, Tensor]) -> None:
    """Put tensors under a key, and make room."""
    folder = _folder()
    if folder is None:
        return
    with contextlib.suppress(OSError, UserError):  # a full disk, a folder that is not ours
        folder.mkdir(parents=True, exist_ok=True)
        data = save({column: x.contiguous() for column, x in columns.items()})
        digest = hashlib.sha256(data).hexdigest()
        durable.write(folder / f"{name}-{digest}.safetensors", data)
        _make_room(folder)


def _folder() -> Path | None:
    chosen = os.environ.get("SUPERSCOPE_CACHE", "")
    if chosen.lower() == "off":
        return None
    return (Path(chosen) if chosen else Path("~/.cache/superscope").expanduser()) / "tokens"


def _make_room(folder: Path) -> None:
    files = sorted(folder.glob("*.safetensors"), key=lambda f: f.stat().st_mtime)
    total = sum(f.stat().st_size for f in files)
    for file in files[:-1]:  # the newest stays, however large
        if total <= MAX_BYTES:
            return
        total -= file.stat().st_size
        file.unlink()
