"""Shuffling: every row once, aligned across keys, uniform within the buffer, bounded beyond it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from interp.errors import UserError
from interp.shuffle import shuffled


def stream(n_rows: int, chunk: int) -> Iterator[dict[str, Tensor]]:
    """Row i is [i, i] at `a` and [-i] at `b`."""
    for part in torch.arange(n_rows).float().split(chunk):
        yield {"a": part[:, None].expand(-1, 2), "b": -part[:, None]}


def order(n_rows: int, *, chunk: int, buffer_rows: int, chunk_rows: int, seed: int = 0) -> Tensor:
    chunks = list(
        shuffled(
            stream(n_rows, chunk),
            buffer_rows=buffer_rows,
            chunk_rows=chunk_rows,
            generator=torch.Generator().manual_seed(seed),
        )
    )
    assert all(len(c["a"]) == chunk_rows for c in chunks[:-1])
    a, b = torch.cat([c["a"] for c in chunks]), torch.cat([c["b"] for c in chunks])
    assert torch.equal(a, -b.expand(-1, 2))
    return a[:, 0]


@pytest.mark.parametrize(
    ("chunk", "buffer_rows", "chunk_rows"), [(7, 20, 3), (50, 8, 8), (1, 9, 1)]
)
def test_every_row_comes_out_once(chunk: int, buffer_rows: int, chunk_rows: int) -> None:
    out = order(103, chunk=chunk, buffer_rows=buffer_rows, chunk_rows=chunk_rows)
    assert torch.equal(out.sort().values, torch.arange(103).float())


def test_no_row_comes_before_it_could_be_in_the_buffer() -> None:
    out = order(200, chunk=10, buffer_rows=30, chunk_rows=5)
    first_seen = torch.arange(200) // 5 * 5
    assert (out < first_seen + 30).all()
    assert (out > first_seen + 20).any()  # and the buffer is used to its end


def test_a_buffer_of_the_whole_stream_is_a_uniform_permutation() -> None:
    """Where row 0 goes, over 2,000 seeds: each of 8 places 250 times, standard deviation 15."""
    places = [
        int((order(8, chunk=3, buffer_rows=8, chunk_rows=4, seed=s) == 0).nonzero())
        for s in range(2000)
    ]
    counts = torch.bincount(torch.tensor(places), minlength=8)
    assert (counts - 250).abs().max() < 75


def test_the_generator_determines_the_order() -> None:
    a, b, c = (order(64, chunk=8, buffer_rows=32, chunk_rows=8, seed=s) for s in (0, 0, 1))
    assert torch.equal(a, b)
    assert not torch.equal(a, c)


def test_the_source_is_read_no_further_than_needed() -> None:
    read = 0

    def counted() -> Iterator[dict[str, Tensor]]:
        nonlocal read
        for chunk in stream(100, 10):
            read += 1
            yield chunk

    next(shuffled(counted(), buffer_rows=20, chunk_rows=5, generator=torch.Generator()))
    assert read == 2


def test_an_empty_stream_gives_nothing() -> None:
    assert list(shuffled([], buffer_rows=2, chunk_rows=1, generator=torch.Generator())) == []


def test_chunks_larger_than_the_buffer_are_refused() -> None:
    for buffer_rows, chunk_rows in ((4, 5), (4, 0)):
        with pytest.raises(UserError, match="chunk_rows"):
            shuffled(
                [], buffer_rows=buffer_rows, chunk_rows=chunk_rows, generator=torch.Generator()
            )
