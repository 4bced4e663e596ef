"""One line of training progress on stderr: tokens, speed, FVU, dead latents, time left."""

from __future__ import annotations

import sys
import time
from typing import TextIO

from saes.training import TrainingStatus

LOG_SECONDS = 30.0
"""Between lines where the stream is a log and not a terminal, where one line is redrawn."""


class TrainingProgress:
    """A heartbeat for `train` that prints."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = sys.stderr if stream is None else stream
        self._live = self._stream.isatty()
        self._started = self._printed = time.monotonic()
        self._first_done: int | None = None

    def __call__(self, status: TrainingStatus) -> None:
        now = time.monotonic()
        # Tokens of an earlier, interrupted run cost nothing now.
        if self._first_done is None:
            self._first_done = status.tokens_done
        finished = status.tokens_done >= status.tokens_total
        if not (self._live or finished) and now - self._printed < LOG_SECONDS:
            return
        self._printed = now
        done = status.tokens_done - self._first_done
        left = (status.tokens_total - status.tokens_done) * (now - self._started) / max(done, 1)
        text = (
            f"{status.tokens_done:,}/{status.tokens_total:,} tokens  "
            f"{status.sae_tokens_per_second:,.0f} SAE tokens/s  FVU {status.fvu:.4f}  "
            f"dead {status.dead_fraction:.1%}" + (f"  {left:.0f} s left" if done else "")
        )
        end = "\n" if finished or not self._live else ""
        self._stream.write(f"\r\x1b[K{text}{end}" if self._live else text + end)
        self._stream.flush()
