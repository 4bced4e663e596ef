"""One line of progress with the time left, for long work at a terminal or in a log."""

from __future__ import annotations

import sys
import time
from typing import TextIO

LOG_SECONDS = 15.0
"""Between lines where the stream is a log and not a terminal."""


class Progress:
    """Work done out of a known total, in any unit; prints to `stream` (stderr by default).

    Work finished before this process started counts as done, and not towards the speed. Work that
    is over within `patience` seconds is not spoken of.
    """

    def __init__(
        self,
        total: float,
        *,
        stream: TextIO | None = None,
        quiet: bool = False,
        patience: float = 0.0,
    ) -> None:
        self._stream = sys.stderr if stream is None else stream
        self._quiet = quiet
        self._patience = patience
        self._live = self._stream.isatty()
        self._total = max(total, 1e-9)
        self._skipped = 0.0
        self._done = 0.0
        self._current = 0.0
        self._started = time.monotonic()
        self._printed = 0.0
        self._label = ""

    def skip(self, work: float) -> None:
        """Work found finished."""
        self._skipped += work

    def at(self, label: str, current: float = 0.0) -> None:
        """What is running now, and how much of its work is done."""
        fresh = label != self._label
        self._label, self._current = label, current
        self._print(force=fresh and not self._live)

    def finish(self, work: float) -> None:
        """The running piece is done and was so much work."""
        self._done += work
        self._current = 0.0
        self._print()

    def settle(self, work: float) -> None:
        """Everything so far is done and was so much work, whatever its pieces added up to."""
        self._done, self._current = work - self._skipped, 0.0
        self._print()

    def note(self, message: str) -> None:
        """A line that stays, between those of progress."""
        if self._quiet:
            return
        if self._live:
            self._stream.write("\r\x1b[K")
        self._stream.write(message + "\n")
        self._stream.flush()

    def close(self, message: str) -> None:
        """The last line."""
        if not self._patience or self._printed:
            self.note(message)

    @property
    def seconds_left(self) -> float | None:
        """None until enough is done to tell."""
        done = self._done + self._current
        elapsed = time.monotonic() - self._started
        if elapsed < 2 or done < 0.005 * self._total:
            return None
        return max(self._total - self._skipped - done, 0.0) * elapsed / done

    def _print(self, *, force: bool = False) -> None:
        now = time.monotonic()
        pause = 0.2 if self._live else LOG_SECONDS
        if self._quiet or (not force and now - self._printed < pause):
            return
        if now - self._started < self._patience:
            return
        self._printed = now
        share = min((self._skipped + self._done + self._current) / self._total, 1.0)
        left = self.seconds_left
        text = f"{share:4.0%}  {self._label}  {_clock(now - self._started)} elapsed"
        text += f", {_clock(left)} left" if left is not None else ""
        self._stream.write(f"\r\x1b[K{text[:118]}" if self._live else text + "\n")
        self._stream.flush()


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
