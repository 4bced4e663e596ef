"""Where one latent fires: how often, how strongly, on which tokens, and passages that show it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from interp.explore.records import HeldOutText, Passage
from interp.token_identity import entropy_bits

BEFORE, AFTER = 48, 24
"""Tokens of a passage around its firing."""
STRONGEST = 8
PER_BAND = 3
BINS = 24
_LIKE_BEFORE, _LIKE_AFTER = 6, 2
"""Passages that agree on so many tokens around the firing are one: licence headers repeat."""
_TRIED = 12
"""Candidates looked at, per passage wanted."""


@dataclass(frozen=True, eq=False)
class Text:
    """The held-out text with the bounds of what may be shown around each position."""

    text: HeldOutText
    first: Int[np.ndarray, " position"]
    """Of the document, or of the block if that begins later."""
    end: Int[np.ndarray, " position"]

    @classmethod
    def of(cls, text: HeldOutText) -> Text:
        first, end = np.zeros((2, len(text.ids)), dtype=np.int64)
        block = np.arange(len(text.ids)) // text.n_ctx * text.n_ctx
        for start, stop, _ in text.documents:
            first[start:stop], end[start:stop] = start, stop
        return cls(text, np.maximum(first, block), np.minimum(end, block + text.n_ctx))

    def window(self, centre: int) -> tuple[int, int]:
        """Positions from and to which a passage around `centre` runs."""
        return (
            max(centre - BEFORE, int(self.first[centre])),
            min(centre + AFTER + 1, int(self.end[centre])),
        )

    def likeness(self, centre: int) -> bytes:
        """Equal for passages that say the same around the firing."""
        start, end = self.window(centre)
        start, end = max(start, centre - _LIKE_BEFORE), min(end, centre + _LIKE_AFTER + 1)
        return self.text.ids[start:end].tobytes()


@dataclass(frozen=True, eq=False)
class Firings:
    """Of one latent, by position."""

    positions: Int[np.ndarray, " firing"]
    """Ascending."""
    values: Float[np.ndarray, " firing"]

    def histogram(self) -> tuple[int, ...]:
        """Counts in `BINS` equal bins from 0 to the largest activation."""
        if not len(self.values):
            return ()
        counts, _ = np.histogram(self.values, bins=BINS, range=(0.0, float(self.values.max())))
        return tuple(counts.tolist())

    def fires_on(self, text: HeldOutText, n: int) -> tuple[tuple[str, float], ...]:
        """Tokens with the largest shares of the summed activation."""
        ids, which = np.unique(text.ids[self.positions], return_inverse=True)
        sums = np.bincount(which, self.values, minlength=len(ids))
        order = np.argsort(-sums, kind="stable")[:n]
        total = sums.sum()
        return tuple((text.strings[ids[i]], float(sums[i] / total)) for i in order)

    def token_entropy_bits(self, token_ids: Int[np.ndarray, " position"]) -> float | None:
        """Of the identity of the tokens it fires on, as a study has it of its classes."""
        if not len(self.positions):
            return None
        _, counts = np.unique(token_ids[self.positions], return_counts=True)
        return float(entropy_bits(counts.astype(float), np.array([0]))[0])

    def passages(self, text: Text, rng: np.random.Generator) -> tuple[Passage, ...]:
        """The strongest, then some from each third of the range, no two of them alike."""
        if not len(self.values):
            return ()
        order = np.argsort(-self.values, kind="stable")
        seen: set[bytes] = set()
        taken: list[int] = []
        found = [
            self._passage(0, i, text)
            for i in self._unlike(order[: STRONGEST * _TRIED], STRONGEST, text, seen, taken)
        ]
        third = np.ceil(3 * self.values / self.values.max()).astype(int)
        for band in (1, 2, 3):
            mine = rng.permutation(np.flatnonzero(third == 4 - band))
            chosen = self._unlike(mine[: PER_BAND * _TRIED], PER_BAND, text, seen, taken)
            found += [
                self._passage(band, i, text) for i in sorted(chosen, key=lambda i: -self.values[i])
            ]
        return tuple(found)

    def _unlike(
        self,
        candidates: Int[np.ndarray, " candidate"],
        n: int,
        text: Text,
        seen: set[bytes],
        taken: list[int],
    ) -> Iterator[int]:
        """Up to n of the candidates; `seen` and `taken` remember across calls."""
        for i in candidates.tolist():
            if n == 0:
                return
            centre = int(self.positions[i])
            start, end = text.window(centre)
            likeness = text.likeness(centre)
            # A firing inside a passage that is shown already is shown there.
            if likeness in seen or any(start <= other < end for other in taken):
                continue
            seen.add(likeness)
            taken.append(centre)
            n -= 1
            yield i

    def _passage(self, band: int, i: int, text: Text) -> Passage:
        centre = int(self.positions[i])
        a, b = np.searchsorted(self.positions, text.window(centre))
        acts = zip((self.positions[a:b] - centre).tolist(), self.values[a:b].tolist(), strict=True)
        return Passage(band, centre, tuple(acts))
