"""The fast step against plain autograd, and its kernels against torch.topk."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from plain_step import (
    BACKENDS,
    assert_same_gradients,
    make_batch,
    make_step,
    plain_gradients,
    pre_activations,
    use,
)
from torch import Tensor

from saes import auxk, selection, sparse
from saes.auxk_kernels import pick_largest
from saes.clipping import clip_factor
from saes.sae import SAE
from saes.sparse import Slots
from saes.topk import TopKStep


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    use(request.param, monkeypatch)
    return str(request.param)


def assert_gradients_match(step: TopKStep, y: Tensor) -> None:
    got = step.gradients(y)
    best = pre_activations(step, y).topk(step.config.k, dim=1).values.relu()
    values = got.slots.values.view(len(y), -1)
    torch.testing.assert_close(values.sort(1).values, best.sort(1).values, rtol=1e-5, atol=1e-5)
    assert_same_gradients(got.weights, plain_gradients(step, y, got.slots))


shapes = st.tuples(
    st.integers(0, 10_000),
    st.integers(1, 9),
    st.integers(1, 40),
    st.integers(1, 12),
    st.integers(1, 20),
    st.booleans(),
)


@pytest.mark.parametrize("name", BACKENDS)
@given(shape=shapes)
@settings(max_examples=40, deadline=None, derandomize=True)
def test_gradients_equal_autograd(name: str, shape: tuple[int, int, int, int, int, bool]) -> None:
    seed, d_in, d_sae, k, n, integers = shape
    with pytest.MonkeyPatch.context() as patch:
        use(name, patch)
        step = make_step(seed, d_in, d_sae, min(k, d_sae), integers=integers)
        assert_gradients_match(step, make_batch(seed, n, d_in, integers=integers))


@pytest.mark.parametrize("sparse_per_dim", [0.0, 1000.0], ids=["picked", "whole"])
@pytest.mark.parametrize("name", BACKENDS)
@given(shape=shapes, n_dead=st.integers(1, 40), k_aux=st.integers(1, 50))
@settings(max_examples=40, deadline=None, derandomize=True)
def test_gradients_with_dead_latents_equal_autograd(
    name: str,
    sparse_per_dim: float,
    shape: tuple[int, int, int, int, int, bool],
    n_dead: int,
    k_aux: int,
) -> None:
    seed, d_in, d_sae, k, n, _ = shape
    with pytest.MonkeyPatch.context() as patch:
        use(name, patch)
        patch.setattr(auxk, "SPARSE_PER_DIM", sparse_per_dim)
        step = make_step(seed, d_in, d_sae, min(k, d_sae), k_aux=k_aux, auxk_alpha=0.5)
        step.tokens_since_fired[:n_dead] = 10**6
        assert_gradients_match(step, make_batch(seed, n, d_in))


def test_gradients_when_nothing_fires(backend: str) -> None:
    step = make_step(0, 4, 8, 3, k_aux=8)
    step.weights.b_enc.fill_(-100.0)
    batch = make_batch(0, 10, 4)
    assert_gradients_match(step, batch)
    grads = step.gradients(batch).weights
    assert not grads.W_enc_T.any()
    assert not grads.W_dec.any()
    # Revival: with everything dead and silent, the encoder must still be told where to go.
    step.tokens_since_fired.fill_(10**6)
    assert_gradients_match(step, batch)
    revived = step.gradients(batch).weights
    assert (revived.W_enc_T.abs().sum(1) > 0).all()
    assert (revived.b_enc != 0).all()


@given(
    seed=st.integers(0, 10_000),
    width=st.integers(1, 400),
    share=st.floats(0, 1),
    scale=st.sampled_from([1e-30, 1.0, 1e30]),
    shift=st.sampled_from([-3.0, 0.0, 3.0]),
)
@settings(max_examples=60, deadline=None, derandomize=True)
def test_the_largest_of_either_sign_are_torchs(
    seed: int, width: int, share: float, scale: float, shift: float
) -> None:
    """Each latent once; and the entries are those of `torch.topk`, the least to its last bit."""
    n = max(1, round(share * width))
    generator = torch.Generator().manual_seed(seed)
    acts = scale * (torch.randn(7, width, generator=generator) + shift)
    picked = torch.empty(7, n, dtype=torch.int64)
    pick_largest(acts.view(torch.int32).numpy(), picked.numpy())
    assert all(len(set(row)) == n for row in picked.tolist())
    got, best = acts.gather(1, picked).sort(1).values, acts.topk(n, dim=1).values.sort(1).values
    torch.testing.assert_close(got, best, rtol=2.0**-23, atol=0)


def test_auxk_reaches_the_encoder_of_dead_latents_only(backend: str) -> None:
    step = make_step(3, 6, 12, 2, auxk_alpha=0.5)
    step.weights.b_enc[5:].fill_(-100.0)
    batch = make_batch(3, 16, 6)
    before = step.gradients(batch).weights
    assert not before.W_enc_T[5:].any()
    step.tokens_since_fired[5:] = 10**6
    after = step.gradients(batch).weights
    assert (after.W_enc_T[5:].abs().sum(1) > 0).any()
    torch.testing.assert_close(after.W_enc_T[:5], before.W_enc_T[:5], rtol=0, atol=0)
    # Control: with the revival turned off nothing arrives.
    off = make_step(3, 6, 12, 2, auxk_alpha=0.0)
    off.weights.b_enc[5:].fill_(-100.0)
    off.tokens_since_fired[5:] = 10**6
    assert not off.gradients(batch).weights.W_enc_T[5:].any()


def test_auxk_revives_latents_in_training(backend: str) -> None:
    """Silenced latents come back and fire; without the AuxK term they never do."""
    generator = torch.Generator().manual_seed(0)
    y = torch.randn(16, 8, generator=generator)
    fired = {}
    for alpha in (0.0, 0.5):
        step = make_step(1, 8, 16, 2, auxk_alpha=alpha, k_aux=8, dead_after_tokens=1)
        step.weights.W_enc_T.div_(step.weights.W_enc_T.norm(dim=1, keepdim=True))
        step.weights.b_enc[8:].fill_(-5.0)
        count = torch.zeros(16, dtype=torch.int64)
        for _ in range(300):
            step.step(y, lr=0.05)
            count += step.tokens_since_fired == 0
        fired[alpha] = int((count[8:] > 0).sum())
    assert fired[0.0] == 0
    assert fired[0.5] >= 4


def test_decoder_stays_at_unit_norm_and_moves_only_sideways(backend: str) -> None:
    step = make_step(0, 6, 12, 3)
    step.weights.W_dec.copy_(torch.nn.functional.normalize(step.weights.W_dec, dim=1))
    before = step.weights.W_dec.clone()
    step.step(make_batch(0, 16, 6), lr=0.01)
    torch.testing.assert_close(step.weights.W_dec.norm(dim=1), torch.ones(12))
    assert (step.weights.W_dec - before).abs().max() > 1e-3
    # Adam's first mean is (1 - beta1) times what it was given: no part along the old row.
    along = (step.optimizer.means.W_dec * before).sum(1)
    assert along.abs().max() < 1e-6 * step.optimizer.means.W_dec.abs().max() + 1e-9


@pytest.mark.parametrize("kind", ["topk", "batchtopk", "matryoshka_batchtopk"])
@pytest.mark.parametrize("max_norm", [None, 0.5, 1e6])
def test_adam_equals_torch_adam(backend: str, max_norm: float | None, kind: str) -> None:
    """With torch's clipping of the norm before the projection, where there is any."""
    step = make_step(0, 5, 10, 3, max_grad_norm=max_norm, architecture=kind)
    step.weights.W_dec.copy_(torch.nn.functional.normalize(step.weights.W_dec, dim=1))
    parameters = [weight.clone().requires_grad_() for weight in step.weights]
    optimizer = torch.optim.Adam(parameters, lr=0.01)
    for n in range(5):
        batch = make_batch(n, 16, 5)
        grads = step.gradients(batch).weights
        for parameter, grad in zip(parameters, grads, strict=True):
            parameter.grad = grad.clone()
        if max_norm is not None:
            norm = torch.nn.utils.clip_grad_norm_(parameters, max_norm)
            assert (norm > max_norm) == (max_norm < 1), "one bound acts and the other does not"
        W_dec, grad = parameters[1].detach(), parameters[1].grad
        assert grad is not None
        parameters[1].grad = grad - (grad * W_dec).sum(1, keepdim=True) * W_dec
        optimizer.step()
        with torch.no_grad():
            parameters[1] /= parameters[1].norm(dim=1, keepdim=True)
        step.step(batch, lr=0.01)
        for ours, theirs in zip(step.weights, parameters, strict=True):
            torch.testing.assert_close(ours, theirs.detach(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("n_dead", [0, 5])
@pytest.mark.parametrize("kind", ["topk", "batchtopk", "matryoshka_batchtopk"])
def test_clipping_of_large_dictionaries(
    kind: str, n_dead: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their norm comes from the rows' sums of squares, those of revived latents included."""
    monkeypatch.setattr(sparse, "LARGE_MATRIX", 1)
    step = make_step(0, 5, 20, 3, architecture=kind, auxk_alpha=2.0)
    step.tokens_since_fired[:n_dead] = 10**6
    grads = step.gradients(make_batch(0, 16, 5))
    assert grads.row_squares is not None
    norm = float(torch.nn.utils.get_total_norm(grads.weights))
    factor = clip_factor(grads.weights, 0.5, grads.row_squares)
    assert factor == pytest.approx(0.5 / norm, rel=1e-5)
    assert factor == pytest.approx(clip_factor(grads.weights, 0.5, None), rel=1e-5)
    assert clip_factor(grads.weights, 2 * norm, grads.row_squares) == 1.0


def test_a_bound_that_is_never_reached_changes_no_bit(backend: str) -> None:
    free, bound = make_step(0, 6, 12, 3), make_step(0, 6, 12, 3, max_grad_norm=1e9)
    clipped = make_step(0, 6, 12, 3, max_grad_norm=0.01)
    for n in range(3):
        for step in (free, bound, clipped):
            step.step(make_batch(n, 16, 6), lr=0.01)
    for name, tensor in free.state().items():
        assert torch.equal(tensor, bound.state()[name]), name
    assert not torch.equal(free.weights.W_dec, clipped.weights.W_dec)


def test_a_smaller_batch_weighs_less(backend: str) -> None:
    """Two halves of a batch add up to its gradient, because both divide by the configured size."""
    step = make_step(2, 5, 10, 3)
    batch = make_batch(2, 16, 5)
    whole = [g.clone() for g in step.gradients(batch).weights]
    first = [g.clone() for g in step.gradients(batch[:6]).weights]
    second = [g.clone() for g in step.gradients(batch[6:]).weights]
    for total, a, b in zip(whole, first, second, strict=True):
        torch.testing.assert_close(total, a + b, rtol=1e-4, atol=1e-5)


def test_idle_counters(backend: str) -> None:
    step = make_step(0, 3, 4, 1)
    step.weights.W_enc_T.zero_()
    step.weights.b_enc.copy_(torch.tensor([0.0, 5.0, -1.0, 1.0]))
    step.step(make_batch(0, 7, 3), lr=0.0)
    assert step.tokens_since_fired.tolist() == [7, 0, 7, 7]
    step.weights.b_enc.fill_(-1.0)
    step.step(make_batch(0, 2, 3), lr=0.0)
    assert step.tokens_since_fired.tolist() == [9, 2, 9, 9]


def selected(pre: Tensor, k: int) -> tuple[Tensor, Tensor]:
    values = torch.full((len(pre), k), -7.0)
    indices = torch.full((len(pre), k), -7, dtype=torch.int64)
    selection.select_topk(pre, values, indices)
    return values, indices


@given(
    seed=st.integers(0, 10_000),
    n=st.integers(1, 30),
    width=st.integers(1, 200),
    k=st.integers(1, 40),
    kind=st.sampled_from(["normal", "ties", "negative", "wide", "sparse"]),
)
@settings(max_examples=150, deadline=None, derandomize=True)
def test_selection_equals_torch_topk(seed: int, n: int, width: int, k: int, kind: str) -> None:
    k = min(k, width)
    rng = np.random.default_rng(seed)
    rows = rng.standard_normal((n, width))
    if kind == "ties":
        rows = rows.round()
    elif kind == "negative":
        rows -= 3
    elif kind == "wide":
        rows = np.sign(rows) * 10.0 ** rng.uniform(-38, 38, rows.shape)
    elif kind == "sparse":
        rows *= rng.random(rows.shape) < 0.1
    pre = torch.tensor(rows, dtype=torch.float32)
    values, indices = selected(pre, k)
    expected = pre.topk(k, dim=1).values.relu()
    assert torch.equal(values.sort(1, descending=True).values, expected)
    used = values > 0
    assert torch.equal(pre.gather(1, indices)[used], values[used])
    for row, mask in zip(indices, used, strict=True):
        assert len(set(row[mask].tolist())) == int(mask.sum()), "one latent in two slots"


def test_selection_lets_nan_through() -> None:
    """A diverged run must look diverged."""
    pre = torch.randn(2, 64, generator=torch.Generator().manual_seed(0))
    pre[0, 5] = float("nan")
    values, _ = selected(pre, 4)
    assert values[0].isnan().any()
    assert not values[1].isnan().any()


def dense(slots: Slots, n_tokens: int, d_sae: int) -> Tensor:
    return torch.zeros(n_tokens, d_sae).index_put_(
        (slots.rows, slots.latents), slots.values, accumulate=True
    )


def test_encoding_in_blocks_equals_encoding_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    x, W, b = (torch.randn(shape, generator=generator) for shape in ((500, 6), (6, 32), (32,)))
    results = []
    for rows in (500, 70, 1):
        monkeypatch.setattr(selection, "block_rows", lambda *_, rows=rows: rows)
        encoder = selection.TopKEncoder(500, 32, 4, device=x.device)
        results.append(dense(encoder(x, W, b), 500, 32))
    for other in results[1:]:
        torch.testing.assert_close(results[0], other, rtol=1e-5, atol=1e-6)


@given(seed=st.integers(0, 1000), n=st.integers(1, 9), width=st.integers(1, 90))
@settings(max_examples=30, deadline=None, derandomize=True)
def test_bias_is_added_in_float32(seed: int, n: int, width: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    product = (100 * torch.randn(n, width, generator=generator)).bfloat16()
    bias = torch.randn(width, generator=generator)
    k = min(5, width)
    values, indices = torch.empty(n, k), torch.empty(n, k, dtype=torch.int64)
    selection.select_topk_low(product, bias, values, indices)
    expected = (product.float() + bias).topk(k, dim=1).values.relu()
    assert torch.equal(values.sort(1, descending=True).values, expected)


def test_bfloat16_encoder_selects_low_and_values_exactly(backend: str) -> None:
    generator = torch.Generator().manual_seed(0)
    x, W, b = (torch.randn(shape, generator=generator) for shape in ((300, 24), (24, 64), (64,)))
    low = selection.TopKEncoder(300, 64, 4, device=x.device, dtype=torch.bfloat16)
    found = dense(low(x, W, b), 300, 64)
    exact = (x @ W + b).relu()
    torch.testing.assert_close(found[found > 0], exact[found > 0], rtol=1e-5, atol=1e-5)
    full = dense(selection.TopKEncoder(300, 64, 4, device=x.device)(x, W, b), 300, 64)
    agreement = ((found > 0) & (full > 0)).sum() / (full > 0).sum()
    assert 0.95 < agreement < 1.0, "the same latents nearly everywhere, but not everywhere"


@pytest.mark.parametrize("seed", range(5))
def test_bfloat16_gradients_equal_autograd_on_its_support(backend: str, seed: int) -> None:
    step = make_step(seed, 6, 30, 4, encoder_dtype="bfloat16")
    batch = make_batch(seed, 16, 6)
    got = step.gradients(batch)
    assert_same_gradients(got.weights, plain_gradients(step, batch, got.slots))


def test_state_round_trip_is_bitwise() -> None:
    step = make_step(0, 4, 8, 2)
    for n in range(3):
        step.step(make_batch(n, 16, 4), lr=0.01)
    twin = make_step(9, 4, 8, 2)
    twin.load_state({name: t.clone() for name, t in step.state().items()}, step.optimizer.n_steps)
    for s in (step, twin):
        s.step(make_batch(7, 16, 4), lr=0.01)
    for name, tensor in step.state().items():
        assert torch.equal(tensor, twin.state()[name]), name


def test_unused_slots_do_not_hide_latent_zero() -> None:
    """An unused slot names latent 0; the dense form must keep what latent 0 really did."""
    eye = torch.eye(3)
    sae = SAE(eye, eye, torch.zeros(3), torch.zeros(3), k=2)
    x = torch.tensor([[5.0, -1.0, -1.0], [0.0, 2.0, -1.0]])
    assert torch.equal(sae.encode_dense(x), x.relu())


def test_k_of_a_step_may_differ(backend: str) -> None:
    """During a warm-up of k; the workspace follows."""
    step = make_step(0, 5, 20, 2)
    batch = make_batch(0, 16, 5)
    for k in (7, 2, 7):
        assert len(step.gradients(batch, k).slots.values) == 16 * k
    assert len(step.gradients(batch).slots.values) == 16 * 2


@given(
    seed=st.integers(0, 1000),
    n=st.integers(1, 40),
    d_in=st.integers(1, 70),
    d_sae=st.integers(1, 30),
    k=st.integers(1, 9),
)
@settings(max_examples=60, deadline=None, derandomize=True)
def test_sums_into_kept_memory_have_the_bits_of_embedding_bag(
    seed: int, n: int, d_in: int, d_sae: int, k: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    indices = torch.randint(0, d_sae, (n, k), generator=generator)
    values, grads = torch.randn(2, n, k, generator=generator)
    slots = Slots.from_topk(indices, values.relu())
    matrix = torch.randn(n, d_in, generator=generator)
    by_latent = sparse.ByLatent(n * k, d_sae, device=matrix.device)
    by_latent.sort(slots, grads.flatten())
    out, squares = torch.full((d_sae, d_in), torch.nan), torch.full((d_sae,), torch.nan)
    kept = by_latent.sum_rows(matrix, by_latent.values, (out, squares))
    assert kept is out
    torch.testing.assert_close(squares, out.square().sum(1))
    torch.testing.assert_close(kept, by_latent.sum_rows(matrix, by_latent.values), rtol=0, atol=0)


@given(shape=shapes, n_dead=st.integers(0, 40), dtype=st.sampled_from(["float32", "bfloat16"]))
@settings(max_examples=60, deadline=None, derandomize=True)
def test_large_dictionaries_have_the_same_gradients(
    shape: tuple[int, int, int, int, int, bool], n_dead: int, dtype: str
) -> None:
    """The path for large matrices, at sizes where tests can afford autograd."""
    seed, d_in, d_sae, k, n, integers = shape
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sparse, "LARGE_MATRIX", 1)
        options = {"auxk_alpha": 0.5, "k_aux": 4, "encoder_dtype": dtype}
        step = make_step(seed, d_in, d_sae, min(k, d_sae), integers=integers, **options)
        # AuxK picks by `topk`, whose choice among ties is its own: none dead where all tie.
        step.tokens_since_fired[: 0 if integers else n_dead] = 10**6
        batch = make_batch(seed, n, d_in, integers=integers)
        got = step.gradients(batch)
        assert_same_gradients(got.weights, plain_gradients(step, batch, got.slots))
        if dtype == "float32":
            assert_gradients_match(step, batch)


def test_the_path_for_large_matrices_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """By whom it should be: neither without kernels nor below the limit."""
    step, batch = make_step(4, 8, 40, 3), make_batch(4, 30, 8)
    calls = []
    compiled = sparse.kernels.decode_and_compare

    def counted(*arrays: object) -> float:
        calls.append(len(arrays))
        return compiled(*arrays)

    monkeypatch.setattr(sparse.kernels, "decode_and_compare", counted)
    small = step.gradients(batch).squared_error
    assert not calls
    monkeypatch.setattr(sparse, "LARGE_MATRIX", 320)
    large = make_step(4, 8, 40, 3).gradients(batch)
    assert len(calls) == 1
    assert large.squared_error == pytest.approx(small, rel=1e-5)
    monkeypatch.setattr(sparse, "kernels", None)
    make_step(4, 8, 40, 3).gradients(batch)
    assert len(calls) == 1
