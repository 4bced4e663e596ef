"""Initial decoder bias and scale: against definitions, and folded into the exported SAE."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from saes.config import SAEConfig
from saes.errors import SAEError
from saes.first_rows import first_rows, geometric_median
from saes.training import train


def rows(n: int = 500, d: int = 6, seed: int = 0) -> Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed)) * 2 + 3


def test_mean_and_scale() -> None:
    first = first_rows(rows(), "resid")
    torch.testing.assert_close(first.centre, rows().double().mean(0))
    scaled = rows() * first.scale
    assert scaled.var(0, correction=0).sum() == pytest.approx(6, rel=1e-4)
    with pytest.raises(SAEError, match="resid: all 4 rows"):
        first_rows(torch.ones(4, 6), "resid")


def test_geometric_median_has_the_least_sum_of_distances() -> None:
    x = rows()
    point = first_rows(x, "resid", "geometric_median").centre
    directions = (x.double() - point) / (x.double() - point).norm(dim=1, keepdim=True)
    # Where it is least, the unit vectors to all rows cancel.
    assert directions.mean(0).norm() < 1e-4
    assert (x - x.mean(0)).norm(dim=1).mean() > 0
    by_hand = geometric_median(
        torch.tensor([[0.0, 0.0], [0.0, 0.0], [0.0, 0.0], [9.0, 9.0]]),
        torch.tensor([2.0, 2.0], dtype=torch.float64),
        tolerance=1e-9,
    )
    assert by_hand.abs().max() < 1e-6, "a point with most of the weight is the median"


def test_the_median_shrugs_off_a_huge_row() -> None:
    x = rows()
    spoiled = torch.cat([x, torch.full((5, 6), 1e5)])
    clean = first_rows(x, "resid").centre
    median = first_rows(spoiled, "resid", "geometric_median").centre
    mean = first_rows(spoiled, "resid").centre
    assert (median - clean).norm() < 0.5 < 100 < (mean - clean).norm()


def config(**changes: object) -> SAEConfig:
    base = {"d_in": 6, "d_sae": 24, "k": 2, "n_tokens": 2000, "batch_size": 50, "lr": 1e-12}
    return SAEConfig(**(base | changes))


def test_b_dec_starts_where_the_config_says() -> None:
    x = rows(2000)
    mean, median = train([{"resid": x}], [config(), config(b_dec_init="geometric_median")])
    torch.testing.assert_close(mean.b_dec, x.mean(0), rtol=1e-4, atol=1e-5)
    expected = first_rows(x, "resid", "geometric_median").centre.float()
    torch.testing.assert_close(median.b_dec, expected, rtol=1e-4, atol=1e-5)
    assert not torch.equal(mean.b_dec, median.b_dec)


def test_scaling_may_be_turned_off() -> None:
    """Unscaled rows of large norm want another learning rate; FVU means the same either way."""
    x = 10 * rows(2000)
    scaled, raw = train([{"resid": x}], [config(), config(scale_activations=False)])
    assert scaled.metadata["activation_scale"] == pytest.approx(first_rows(x, "resid").scale)
    assert raw.metadata["activation_scale"] == 1.0
    # Nothing was learned, so both are the same initial SAE, up to rounding.
    torch.testing.assert_close(raw(x), scaled(x), rtol=1e-3, atol=1e-3)
    assert raw.metadata["running_fvu"] == pytest.approx(scaled.metadata["running_fvu"], rel=1e-3)
