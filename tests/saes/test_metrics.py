"""FVU, L0, dead fraction, density: by hand, against numpy, and their invariants."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from saes.errors import SAEError
from saes.metrics import RunningVariance, SAEMetrics, SAEMetricsResult, evaluate
from saes.sae import SAE, SparseActs


def acts(indices: list[list[int]], values: list[list[float]]) -> SparseActs:
    return SparseActs(torch.tensor(indices), torch.tensor(values))


def measure(
    x: Tensor, x_hat: Tensor, latents: SparseActs, d_sae: int, cuts: list[int] | None = None
) -> SAEMetricsResult:
    """All metrics, updating once per cut of the rows."""
    metrics = SAEMetrics(x.shape[1], d_sae)
    edges = [0, *(cuts or []), len(x)]
    for start, stop in pairwise(edges):
        part = SparseActs(latents.indices[start:stop], latents.values[start:stop])
        metrics.update(x[start:stop], part, x_hat[start:stop])
    return metrics.result()


def test_by_hand() -> None:
    x = torch.tensor([[0.0, 0.0], [2.0, 0.0], [4.0, 6.0]])
    x_hat = torch.tensor([[1.0, 0.0], [2.0, 1.0], [4.0, 4.0]])
    latents = acts([[0, 1], [1, 3], [1, 0]], [[1.0, 2.0], [0.5, 0.0], [4.0, 3.0]])
    metrics = SAEMetrics(2, 4, decoder_norms=torch.tensor([1.0, 2.0, 1.0, 5.0]))
    metrics.update(x, latents, x_hat)
    result = metrics.result()
    # Mean (2, 2): squared distances 8, 4, 20. Errors 1, 1, 4.
    assert result.fvu == pytest.approx(6 / 32)
    # Slots with value 0 did not fire: 2 + 1 + 2 firings of 3 tokens; latents 2 and 3 never.
    assert result.l0 == pytest.approx(5 / 3)
    assert result.fire_counts.tolist() == [2, 3, 0, 0]
    assert result.dead_fraction == 0.5
    assert result.density.tolist() == pytest.approx([2 / 3, 1, 0, 0])
    assert result.mass.tolist() == pytest.approx([4.0, 13.0, 0.0, 0.0])
    assert result.n_tokens == 3


def random_case(seed: int, n: int, d: int) -> tuple[Tensor, Tensor, SparseActs]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, d, generator=generator)
    x_hat = x + 0.3 * torch.randn(n, d, generator=generator)
    indices = torch.rand(n, 10, generator=generator).topk(3, dim=1).indices
    values = torch.randn(n, 3, generator=generator).relu()
    return x, x_hat, SparseActs(indices, values)


@given(
    seed=st.integers(0, 1000),
    n=st.integers(2, 60),
    d=st.integers(1, 6),
    cuts=st.lists(st.integers(0, 60), max_size=5),
)
@settings(max_examples=60, deadline=None, derandomize=True)
def test_exact_over_any_batch_split(seed: int, n: int, d: int, cuts: list[int]) -> None:
    x, x_hat, latents = random_case(seed, n, d)
    whole = measure(x, x_hat, latents, 10)
    split = measure(x, x_hat, latents, 10, sorted(min(cut, n) for cut in cuts))
    assert split.fvu == pytest.approx(whole.fvu, rel=1e-12)
    assert split.l0 == whole.l0
    assert torch.equal(split.fire_counts, whole.fire_counts)
    torch.testing.assert_close(split.mass, whole.mass, rtol=1e-12, atol=1e-12)
    rows = x.double().numpy()
    reference = ((rows - x_hat.double().numpy()) ** 2).sum() / (
        rows.var(axis=0, ddof=0).sum() * len(rows)
    )
    assert whole.fvu == pytest.approx(reference, rel=1e-9)


def test_mean_predictor_is_one_and_exact_is_zero() -> None:
    x, _, latents = random_case(0, 50, 4)
    mean = x.double().mean(0).float().expand_as(x)
    assert measure(x, mean, latents, 10, [20]).fvu == pytest.approx(1, rel=1e-6)
    assert measure(x, x, latents, 10, [20]).fvu == 0
    # Control: the mean of each batch is a better predictor, and must not be taken for the mean.
    parts = torch.cat([x[:20].mean(0).expand(20, -1), x[20:].mean(0).expand(30, -1)])
    assert measure(x, parts, latents, 10, [20]).fvu < 0.99


@pytest.mark.parametrize("cuts", [[], [7, 30]])
def test_invariant_to_scale_and_shift(cuts: list[int]) -> None:
    x, x_hat, latents = random_case(1, 50, 4)
    # Multiples of 1/64 stay exact in float32 after a shift by 2^16.
    x, x_hat = (x * 64).round() / 64, (x_hat * 64).round() / 64
    plain = measure(x, x_hat, latents, 10, cuts).fvu
    assert measure(8 * x, 8 * x_hat, latents, 10, cuts).fvu == pytest.approx(plain, rel=1e-12)
    shift = 2.0**16
    shifted = measure(x + shift, x_hat + shift, latents, 10, cuts).fvu
    assert shifted == pytest.approx(plain, rel=1e-9)


def test_running_variance_survives_a_large_shift() -> None:
    """Sum of squares minus square of sums would lose every digit here."""
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((400, 3)) + 1e8
    running = RunningVariance(3)
    for part in np.array_split(rows, 7):
        running.update(torch.tensor(part))
    assert running.sum_of_squares == pytest.approx(rows.var(axis=0).sum() * 400, rel=1e-6)
    assert np.allclose(running.mean.numpy(), rows.mean(axis=0))


def test_undefined_is_refused() -> None:
    with pytest.raises(SAEError, match="no tokens"):
        SAEMetrics(2, 4).result()
    constant = torch.ones(5, 2)
    with pytest.raises(SAEError, match="all 5 rows are equal"):
        measure(constant, constant, acts([[0]] * 5, [[1.0]] * 5), 4)
    with pytest.raises(SAEError, match="5 rows, 2 latent rows and 5"):
        SAEMetrics(2, 4).update(constant, acts([[0]] * 2, [[1.0]] * 2), constant)


def test_evaluate_runs_the_sae() -> None:
    """A hand-made SAE with one latent per axis, reading the positive part of each."""
    eye = torch.eye(3)
    sae = SAE(eye, 2 * eye, torch.zeros(3), torch.zeros(3), k=1)
    x = torch.tensor([[1.0, 0.5, 0.0], [0.0, -2.0, -1.0], [0.0, 0.0, 3.0]])
    result = evaluate(sae, x.split(2))
    assert result.fire_counts.tolist() == [1, 0, 1]
    assert result.l0 == pytest.approx(2 / 3)
    assert result.mass.tolist() == [2.0, 0.0, 6.0]
    x_hat = torch.tensor([[2.0, 0, 0], [0, 0, 0], [0, 0, 6.0]])
    expected = (x - x_hat).square().sum() / (x - x.mean(0)).square().sum()
    assert result.fvu == pytest.approx(float(expected))


def test_rows_that_are_not_finite_are_named() -> None:
    metrics = SAEMetrics(3, 2)
    acts = SparseActs(torch.zeros(4, 1, dtype=torch.int64), torch.ones(4, 1))
    x = torch.arange(12.0).view(4, 3)
    metrics.update(x, acts, x)
    x = x.clone()
    x[2, 1] = float("inf")
    with pytest.raises(SAEError, match="row 6 of the activations is not finite"):
        metrics.update(x, acts, x)
    assert metrics.result().n_tokens == 4
