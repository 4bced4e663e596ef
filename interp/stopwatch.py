"""How long a study's units took, over all sittings, whatever ended each of them."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from interp import durable
from interp.errors import UserError

KEPT_EVERY_SECONDS = 15.0
"""The most that a sitting killed in the middle loses."""


def seconds_spent(root: Path) -> float:
    """Over all sittings of the study in `root` so far; 0.0 where nothing was kept."""
    try:
        return float(_file(root).read_text())
    except (OSError, ValueError):
        return 0.0


@contextlib.contextmanager
def sitting(root: Path, every: float = KEPT_EVERY_SECONDS) -> Iterator[None]:
    """Add the time inside the block to the study's, every few seconds and at its end.

    Only for the one who holds the folder.
    """
    before, began = seconds_spent(root), time.monotonic()
    ended = threading.Event()

    def keep() -> None:
        # A full disk is the work's own to tell, in words about what was lost there.
        with contextlib.suppress(UserError, OSError):
            _file(root).parent.mkdir(exist_ok=True)
            durable.write(_file(root), f"{before + time.monotonic() - began:.1f}\n".encode())

    def keep_on() -> None:
        while not ended.wait(every):
            keep()

    keeper = threading.Thread(target=keep_on, name="stopwatch", daemon=True)
    keeper.start()
    try:
        yield
    finally:
        ended.set()
        keeper.join()
        keep()


def _file(root: Path) -> Path:
    return root / "work" / "seconds"
