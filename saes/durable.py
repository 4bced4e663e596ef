"""Files that are whole or not there, and a disk that does not take them as one line."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from saes.errors import SAEError


def make_folder(folder: Path) -> None:
    """Make `folder` and what leads to it. Raises SAEError, in one line, when it cannot be."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SAEError(
            f"{folder} cannot be made ({error.strerror}); choose another folder"
        ) from None


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Where to write what becomes `path` at the end of the block, or else leaves nothing.

    Raises SAEError as `writing` does; the file that was there before stays.
    """
    partial = path.with_name(f"{path.name}.tmp")
    try:
        with writing(path):
            yield partial
            os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Raises SAEError where the disk is full or may not be written, whoever notices it."""
    try:
        yield
    # safetensors writes by itself, and says "I/O error" in an exception of its own.
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise SAEError(
            f"{path}: could not be written ({reason}); free some space and run the same line "
            "again, what was written before is intact"
        ) from error
