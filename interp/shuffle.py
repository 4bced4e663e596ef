"""Rows of a stream in random order, in memory of a stated size.

Text comes in documents, so neighbouring rows are alike; an SAE that sees them in order forgets.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from interp.errors import UserError


def shuffled(
    stream: Iterable[Mapping[str, Float[Tensor, "row d"]]],
    *,
    buffer_rows: int,
    chunk_rows: int,
    generator: torch.Generator,
) -> Iterator[dict[str, Float[Tensor, "row d"]]]:
    """Chunks of `chunk_rows` rows drawn without replacement from the next `buffer_rows` of them.

    Every row comes out once; rows of different keys stay aligned. Memory: `buffer_rows` rows of
    every key, plus one chunk of the stream. The result is determined by stream and generator. The
    larger the buffer, the further a row travels: with one of the stream's length the order is
    uniformly random.

    Raises UserError unless 1 <= chunk_rows <= buffer_rows.
    """
    if not 1 <= chunk_rows <= buffer_rows:
        raise UserError(
            f"a buffer of {buffer_rows} rows cannot give chunks of {chunk_rows}; "
            "use 1 <= chunk_rows <= buffer_rows"
        )
    return _shuffled(stream, buffer_rows, chunk_rows, generator)


def _shuffled(
    stream: Iterable[Mapping[str, Tensor]],
    buffer_rows: int,
    chunk_rows: int,
    generator: torch.Generator,
) -> Iterator[dict[str, Tensor]]:
    buffer: dict[str, Tensor] = {}
    filled = 0

    def draw(n: int) -> dict[str, Tensor]:
        """Take n random rows out; the last rows of the buffer close the gaps."""
        nonlocal filled
        order = torch.randperm(filled, generator=generator)
        taken, rest = order[:n], filled - n
        out = {name: rows[taken] for name, rows in buffer.items()}
        holes = taken[taken < rest]
        movable = torch.ones(n, dtype=torch.bool)
        movable[taken[taken >= rest] - rest] = False
        movers = rest + movable.nonzero()[:, 0]
        for rows in buffer.values():
            rows[holes] = rows[movers]
        filled = rest
        return out

    for chunk in stream:
        if not buffer:
            buffer = {name: x.new_empty(buffer_rows, x.shape[1]) for name, x in chunk.items()}
        n_rows, start = len(next(iter(chunk.values()), ())), 0
        while start < n_rows:
            n = min(n_rows - start, buffer_rows - filled)
            for name, rows in buffer.items():
                rows[filled : filled + n] = chunk[name][start : start + n]
            filled += n
            start += n
            if filled == buffer_rows:
                yield draw(chunk_rows)
    while filled:
        yield draw(min(chunk_rows, filled))
