"""A folder of .npy or .safetensors files as a stream of activation chunks."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from torch import Tensor

from saes.errors import SAEError

NPY_HOOK_POINT = "resid"
"""Hook point that rows of .npy files are given: such files cannot name their own."""
CHUNK_ROWS = 131_072
SAMPLED_ROWS = 16
"""Rows of a file that stand for it in `identity`."""


class ActivationFolder:
    """Files in name order, read as one stream; nothing is held but the chunk in hand.

    Either .npy files, each [token d_in], together the rows of one hook point `resid`; or
    .safetensors files whose keys are hook points, all files with the same keys.
    """

    def __init__(self, path: Path) -> None:
        """Reads headers only. Raises SAEError where the folder holds no usable activations."""
        if not path.is_dir():
            raise SAEError(f"{path}: no such folder; give a folder of .npy or .safetensors files")
        files = [f for f in sorted(path.iterdir()) if f.suffix in (".npy", ".safetensors")]
        if not files:
            raise SAEError(f"{path}: holds no .npy or .safetensors files; capture activations")
        if len({file.suffix for file in files}) > 1:
            raise SAEError(f"{path}: holds both .npy and .safetensors files; keep one kind")
        self.path = path
        self._files = files
        self.widths: dict[str, int] = {}
        """d_in by hook point."""
        self.n_rows = 0
        """Rows of one pass."""
        for file in files:
            shapes = _shapes(file)
            n_rows = {shape[0] for shape in shapes.values()}
            widths = {name: shape[1] for name, shape in shapes.items()}
            if len(n_rows) > 1:
                raise SAEError(f"{file}: its tensors differ in rows {sorted(n_rows)}; align them")
            if self.widths and widths != self.widths:
                raise SAEError(
                    f"{file}: holds {widths} but {files[0].name} holds {self.widths}; "
                    "give files of one capture"
                )
            self.widths = widths
            self.n_rows += sum(n_rows)
        if self.n_rows == 0:
            raise SAEError(f"{path}: its files hold no rows; capture activations first")

    @property
    def identity(self) -> dict[str, Any]:
        """What tells this folder's stream from others: names, shapes and some rows of every file.

        All rows would take as long to read as a small SAE takes to train.
        """
        digest = hashlib.sha256()
        for file in self._files:
            digest.update(f"{file.name} {_shapes(file)}".encode())
            for sample in _samples(file):
                digest.update(sample.numpy().tobytes())
        return {"n_rows": self.n_rows, "d_in": self.widths, "rows_sha256": digest.hexdigest()}

    def chunks(self, chunk_rows: int = CHUNK_ROWS) -> Iterator[dict[str, Float[Tensor, "token d"]]]:
        """One pass: chunks of `chunk_rows` rows, the last one shorter."""
        waiting: list[dict[str, Tensor]] = []
        n_waiting = 0
        for file in self._files:
            for piece in _pieces(file, chunk_rows):
                waiting.append(piece)
                n_waiting += len(next(iter(piece.values())))
                while n_waiting >= chunk_rows:
                    whole = _join(waiting)
                    yield {name: rows[:chunk_rows] for name, rows in whole.items()}
                    waiting = [{name: rows[chunk_rows:] for name, rows in whole.items()}]
                    n_waiting -= chunk_rows
        if n_waiting:
            yield _join(waiting)

    def passes(
        self, n_rows: int, chunk_rows: int = CHUNK_ROWS
    ) -> Iterator[dict[str, Float[Tensor, "token d"]]]:
        """As many passes as `n_rows` rows need."""
        for _ in range(-(-n_rows // self.n_rows)):
            yield from self.chunks(chunk_rows)


def _join(pieces: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    return {name: torch.cat([piece[name] for piece in pieces]) for name in pieces[0]}


def _shapes(file: Path) -> dict[str, tuple[int, int]]:
    """[token d_in] by hook point, from the file's header."""
    shapes: dict[str, tuple[int, ...]] = {}
    try:
        if file.suffix == ".npy":
            array = np.load(file, mmap_mode="r")
            if array.dtype.kind not in "fiu":
                raise ValueError(f"its entries are {array.dtype}, not numbers")
            shapes[NPY_HOOK_POINT] = array.shape
        else:
            with safe_open(file, framework="pt") as opened:
                for name in opened.keys():  # noqa: SIM118
                    shapes[name] = tuple(opened.get_slice(name).get_shape())
    except (OSError, ValueError, SafetensorError) as error:
        raise SAEError(f"{file}: unreadable ({error}); write the file again") from None
    for name, shape in shapes.items():
        if len(shape) != 2:
            raise SAEError(f"{file}: {name} has shape {shape}; give [token, d_in]")
    return {name: (shape[0], shape[1]) for name, shape in shapes.items()}


def _pieces(file: Path, rows: int) -> Iterator[dict[str, Tensor]]:
    """The file's rows, at most `rows` at once, as float32."""
    if file.suffix == ".npy":
        array = np.load(file, mmap_mode="r")
        for start in range(0, len(array), rows):
            piece = np.array(array[start : start + rows], dtype=np.float32)
            yield {NPY_HOOK_POINT: torch.from_numpy(piece)}
        return
    n_rows = next(iter(_shapes(file).values()))[0]
    with safe_open(file, framework="pt") as opened:
        for start in range(0, n_rows, rows):
            yield {
                name: opened.get_slice(name)[start : start + rows].float()
                for name in opened.keys()  # noqa: SIM118
            }


def _samples(file: Path) -> Iterator[Tensor]:
    """Rows at equal distances in the file, hook point by hook point."""
    if file.suffix == ".npy":
        array = np.load(file, mmap_mode="r")
        rows = array[:: max(1, len(array) // SAMPLED_ROWS)]
        yield torch.from_numpy(np.array(rows, dtype=np.float32))
        return
    with safe_open(file, framework="pt") as opened:
        for name in sorted(opened.keys()):
            rows = opened.get_slice(name)
            n_rows = rows.get_shape()[0]
            for start in range(0, n_rows, max(1, n_rows // SAMPLED_ROWS)):
                yield rows[start : start + 1].float()
