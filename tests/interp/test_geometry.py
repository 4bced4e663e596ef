"""Overlaps against pairs formed one by one, known arrangements, and refusals."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from interp.geometry import Geometry, geometry, mean_squared_overlap, row_facts, row_overlaps


def by_pairs(rows: torch.Tensor) -> np.ndarray:
    """Squared cosines [row row] of the rows that are not zero."""
    x = rows.double()
    x = x[x.norm(dim=1) > 0]
    unit = x / x.norm(dim=1, keepdim=True)
    return ((unit @ unit.T) ** 2).numpy()


def off_diagonal(squares: np.ndarray) -> float:
    n = len(squares)
    return float((squares.sum() - np.trace(squares)) / (n * (n - 1)))


def random_rows(n: int, d: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("n", "d"), [(3000, 24), (20, 64), (2, 2)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_the_mean_is_that_of_all_pairs(n: int, d: int, dtype: torch.dtype) -> None:
    rows = (random_rows(n, d) + 0.4).to(dtype)
    rows[n // 2 :, 0] *= 100
    expected = off_diagonal(by_pairs(rows))
    assert mean_squared_overlap(rows) == pytest.approx(expected, rel=1e-9)
    assert geometry(rows).mean_squared_overlap == pytest.approx(expected, rel=1e-9)


def test_centred_and_top_removed_are_those_of_the_moved_rows() -> None:
    rows = random_rows(500, 300) + 2 * random_rows(1, 300, 1)
    rows += 5 * random_rows(500, 1, 2) * random_rows(1, 300, 3)
    found = geometry(rows)
    moved = rows.double() - rows.double().mean(dim=0)
    assert found.mean_squared_overlap_centred == pytest.approx(
        off_diagonal(by_pairs(moved)), rel=1e-9
    )
    _, S, V = torch.linalg.svd(moved, full_matrices=False)
    assert found.n_removed == 3
    without = moved - moved @ V[:3].T @ V[:3]
    assert found.mean_squared_overlap_top_removed == pytest.approx(
        off_diagonal(by_pairs(without)), rel=1e-8
    )
    assert found.top_variance_fraction == pytest.approx(float((S**2)[:3].sum() / (S**2).sum()))
    ratio = float((S**2).sum() ** 2 / (S**4).sum())
    assert found.participation_ratio == pytest.approx(ratio, rel=1e-9)
    # The planted direction and the planted mean are what the moved forms take away.
    assert found.mean_squared_overlap_centred > 5 * found.mean_squared_overlap_top_removed
    shifted = geometry(random_rows(500, 30) + 2)
    assert shifted.mean_squared_overlap > 5 * (shifted.mean_squared_overlap_centred or 1)


def test_zero_rows_are_left_out_and_counted() -> None:
    rows = random_rows(200, 16) + 1
    with_zeros = torch.zeros(230, 16)
    places = torch.randperm(230, generator=torch.Generator().manual_seed(0))[:200]
    with_zeros[places] = rows
    plain, zeros = geometry(rows), geometry(with_zeros)
    assert (zeros.n, zeros.n_zero_rows) == (200, 30)
    for name in (
        "mean_squared_overlap",
        "mean_squared_overlap_centred",
        "mean_squared_overlap_top_removed",
        "welch_floor",
        "participation_ratio",
        "norm_mean",
        "norm_std",
        "norm_min",
    ):
        assert getattr(zeros, name) == pytest.approx(getattr(plain, name), rel=1e-9), name
    assert int(np.isnan(row_overlaps(with_zeros)).sum()) == 30


def test_a_tight_frame_reaches_the_welch_floor() -> None:
    """Five directions of the plane at equal angles: mean squared cosine (5-2)/(2*4) = 0.375."""
    angles = torch.arange(5) * torch.pi / 5
    rows = torch.stack([angles.cos(), angles.sin()], dim=1).double()
    found = geometry(rows)
    assert found.welch_floor == pytest.approx(0.375)
    assert found.ratio_to_welch == pytest.approx(1.0, abs=1e-12)


def test_random_rows_are_random_and_orthogonal_rows_do_not_overlap() -> None:
    found = geometry(random_rows(2000, 64))
    assert found.random_mean == 1 / 64
    assert abs(found.mean_squared_overlap - found.random_mean) < 4 * found.random_sd
    assert found.ratio_to_random == pytest.approx(1, abs=0.01)
    assert max(np.abs(np.subtract(found.sample.fraction, found.sample.random_fraction))) < 0.004
    for level, value in found.sample.quantiles.items():
        assert value == pytest.approx(found.sample.random_quantiles[level], rel=0.03)
    orthogonal = geometry(torch.eye(8))
    assert orthogonal.mean_squared_overlap == 0
    assert orthogonal.ratio_to_welch is None
    assert orthogonal.welch_floor == 0
    assert "fit into 8 dimensions" in orthogonal.to_json()["reason"]


def test_the_sample_is_of_different_rows_and_takes_its_generator() -> None:
    rows = torch.eye(3)
    found = geometry(rows)
    assert found.sample.quantiles["0.999"] == 0  # a row beside itself would have cosine 1
    rows = random_rows(50, 8)
    seeds = [geometry(rows, generator=np.random.default_rng(s)).sample.fraction for s in (1, 1, 2)]
    assert seeds[0] == seeds[1] != seeds[2]


def test_rows_of_one_direction() -> None:
    found = geometry(torch.ones(5, 4))
    assert found.mean_squared_overlap == pytest.approx(1)
    assert found.mean_squared_overlap_centred is None
    assert found.participation_ratio is None or found.participation_ratio < 1.01
    assert found.mean_row_norm == pytest.approx(1)
    json.dumps(found.to_json(), allow_nan=False)


def test_each_rows_overlap() -> None:
    rows = random_rows(40, 6) + 0.5
    squares = by_pairs(rows)
    np.testing.assert_allclose(row_overlaps(rows), (squares.sum(axis=1) - 1) / 39, rtol=1e-9)


def test_length_does_not_matter_and_order_does_not() -> None:
    rows = random_rows(300, 12) + 0.3
    lengths = torch.rand(300, 1, generator=torch.Generator().manual_seed(5)) + 0.1
    order = torch.randperm(300, generator=torch.Generator().manual_seed(6))
    expected = mean_squared_overlap(rows)
    assert mean_squared_overlap((rows * lengths)[order]) == pytest.approx(expected, rel=1e-6)
    assert geometry(2 * rows).norm_mean == pytest.approx(2 * geometry(rows).norm_mean)


def test_progress_ends_at_one() -> None:
    told: list[float] = []
    geometry(random_rows(5000, 8), heartbeat=told.append)
    assert told == sorted(told)
    assert told[-1] == pytest.approx(1)


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        (torch.zeros(5, 4), "0 of 5 rows are not zero"),
        (torch.eye(4)[:1], "1 of 1 rows are not zero"),
        (torch.ones(5, 1), "one dimension"),
        (torch.tensor([[1.0, 2], [torch.nan, 1], [1, 1]]), "row 1 is not finite"),
        (torch.tensor([[1.0, 2], [1, torch.inf], [1, 1]]), "row 1 is not finite"),
    ],
)
def test_refusals(rows: torch.Tensor, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        geometry(rows)


def test_the_record_is_frozen() -> None:
    found = geometry(random_rows(10, 4))
    assert isinstance(found, Geometry)
    with pytest.raises(AttributeError):
        found.n = 3  # type: ignore[misc]


def test_facts_of_rows_by_hand() -> None:
    # Norms 0.4, 1 and 2; squared cosines 0, 0 and 1 over the three pairs.
    rows = torch.tensor([[0.4, 0.0], [0.0, 1.0], [0.0, -2.0]])
    found = row_facts(rows)
    assert found["norm_mean"] == pytest.approx(3.4 / 3)
    assert found["represented"] == pytest.approx(2 / 3)
    assert found["mean_squared_overlap"] == pytest.approx(1 / 3)
