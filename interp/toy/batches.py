"""Batches of the toy model's inputs, drawn sparse: only what is active is ever sampled or stored.

x_i = u_i v_i with u_i ~ Bernoulli(p_i), v_i ~ U(0, 2). At density 1 a row of a thousand features
has one entry on average, and more than a third of the rows have none.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Float, Int

from interp.toy.frequencies import Frequencies
from interp.toy.kernels import bernoulli_entries, compress_rows

TRAINING, EVALUATION = 0, 1
"""Purposes of a stream: their batches never share random numbers."""


@dataclass(frozen=True)
class Batch:
    """Rows with at least one active feature, ordered by their first one; the others are counted.

    Row r has the features `active[columns[e]]` with the values `values[e]` for e in
    starts[r] .. starts[r + 1] - 1, features ascending.
    """

    active: Int[np.ndarray, " d"]
    """The features that occur, ascending."""
    starts: Int[np.ndarray, " row+1"]
    columns: Int[np.ndarray, " entry"]
    values: Float[np.ndarray, " entry"]
    n_rows: int
    """All rows, empty ones included."""

    @property
    def n_empty(self) -> int:
        """Rows without an active feature."""
        return self.n_rows - (len(self.starts) - 1)

    def dense(self, n: int) -> Float[np.ndarray, "row n"]:
        """The same inputs as a matrix; empty rows come last."""
        x = np.zeros((self.n_rows, n), dtype=self.values.dtype)
        rows = np.repeat(np.arange(len(self.starts) - 1), np.diff(self.starts))
        x[rows, self.active[self.columns]] = self.values
        return x


@dataclass(frozen=True)
class Stream:
    """Batch number t is a function of (frequencies, batch size, seed, purpose, t) and nothing else.

    So a resumed run needs no state of a generator, and all models of a sweep can share one stream.
    """

    frequencies: Frequencies
    batch_size: int
    seed: int = 0
    purpose: int = TRAINING

    @cached_property
    def _mean_gaps(self) -> Float[np.ndarray, " n"]:
        """-1 / log(1 - p_i), as `bernoulli_entries` wants them."""
        return -1 / np.log1p(-np.minimum(self.frequencies.probabilities(), 1.0 - 1e-16))

    def batch(self, number: int) -> Batch:
        """Batch `number` of the stream."""
        generator = np.random.default_rng((self.seed, self.purpose, number))
        rows, features = bernoulli_entries(generator, self._mean_gaps, self.batch_size)
        values = 2 * generator.random(len(rows), dtype=np.float32)
        active, starts, columns, sorted_values = compress_rows(
            rows, features, values, self.batch_size, self.frequencies.n
        )
        return Batch(active, starts, columns, sorted_values, self.batch_size)
