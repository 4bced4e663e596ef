"""Files that are whole or not there, whatever kills the process; and one writer per folder."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from interp.errors import NoSpaceError, UserError

_PARTIAL = ".partial"


def write(path: Path, data: bytes) -> None:
    """Put `data` at `path`, on the disk itself, before any other content can be seen there.

    Raises UserError when the disk is full or may not be written; nothing is left of the attempt.
    """
    partial = path.with_name(f".{path.name}{_PARTIAL}")
    try:
        with partial.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
        _sync_folder(path.parent)
    except OSError as error:
        partial.unlink(missing_ok=True)
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise NoSpaceError(
                f"{path}: no space left for its {len(data):,} bytes; what was written before is "
                "usable: free some space and run the same line again to go on"
            ) from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise UserError(
                f"{path}: may not be written ({error.strerror}); choose another folder"
            ) from error
        raise


def make_folder(out: Path) -> None:
    """Make `out` and what leads to it. Raises UserError, in one line, when it cannot be."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{out} cannot be made ({error.strerror}); choose another --out") from None


@contextmanager
def whole_folder(out: Path) -> Iterator[Path]:
    """A fresh folder beside `out` that takes its place when the block ends, and goes if it raises.

    The caller has seen to it that what `out` holds may go. Raises UserError where `out` comes into
    being meanwhile, or the disk cannot take it.
    """
    existed = out.is_dir()
    make_folder(out.parent)
    try:
        fresh = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    except OSError as error:
        raise UserError(f"{out.parent}: {error.strerror}; choose another place") from error
    new, old = fresh / "new", fresh / "old"
    try:
        new.mkdir()
        yield new
        if existed:  # out of the way first: what a kill leaves at `out` is never a part of it
            os.replace(out, old)
        try:
            os.replace(new, out)
        except OSError:
            if existed:
                os.replace(old, out)
            raise
    except OSError as error:
        raise UserError(
            f"{out} cannot be written ({error.strerror}); free some space or mend its permissions"
        ) from error
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def remove_partials(folder: Path) -> None:
    """Delete what killed writers left. Only for the one who holds the folder's lock."""
    for partial in folder.glob(f".*{_PARTIAL}"):
        partial.unlink()


def sha256(path: Path) -> str:
    """Of a file's bytes, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def only_writer(folder: Path, *, wait_seconds: float = 0.0) -> Iterator[None]:
    """Hold `folder`, or a file, against other writers; let go by the system if the process dies.

    The lock is on the path itself, so it leaves no file. Raises UserError when another has it,
    and still has it after the wait.
    """
    handle = os.open(folder, os.O_RDONLY)
    try:
        _lock(handle, folder, time.monotonic() + wait_seconds)
        yield
    finally:
        os.close(handle)


def _lock(handle: int, folder: Path, deadline: float) -> None:
    while True:
        try:
            return fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            if time.monotonic() >= deadline:
                raise UserError(
                    f"{folder}: another process is writing there; wait for it or choose another "
                    "folder"
                ) from error
            time.sleep(0.2)


def is_held(folder: Path) -> bool:
    """Whether some process is the writer of `folder`, or of a file, now.

    Nobody is where it is not there.
    """
    try:
        handle = os.open(folder, os.O_RDONLY)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(handle)
    return False


def _sync_folder(folder: Path) -> None:
    """Make a rename survive a power failure."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
