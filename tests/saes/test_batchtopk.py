"""BatchTopK and Matryoshka against autograd on the plain formulas; the learned threshold."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import plain_step
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from plain_step import (
    BACKENDS,
    assert_same_gradients,
    make_batch,
    plain_gradients,
    pre_activations,
    use,
)
from streams import Killed, killed_after, varying_rows
from torch import Tensor

from saes import batchtopk, sparse
from saes.batchtopk import BatchTopKEncoder, BatchTopKStep
from saes.config import SAEConfig
from saes.errors import SAEError
from saes.format import load, save
from saes.matryoshka import MatryoshkaStep
from saes.training import train

make_step = partial(plain_step.make_step, architecture="batchtopk")


def assert_gradients_match(step: BatchTopKStep, y: Tensor) -> None:
    got = step.gradients(y)
    pre = pre_activations(step, y).flatten()
    best = pre.topk(min(step.config.k * len(y), len(pre))).values
    values = got.slots.values.sort(descending=True).values
    torch.testing.assert_close(values, best[: len(values)], rtol=1e-5, atol=1e-5)
    assert (best[len(values) :] <= 1e-5).all()
    assert (got.slots.rows.diff() >= 0).all()
    assert_same_gradients(got.weights, plain_gradients(step, y, got.slots))


cases = st.tuples(
    st.integers(0, 10_000),
    st.integers(1, 9),
    st.integers(1, 40),
    st.integers(1, 12),
    st.integers(1, 20),
    st.booleans(),
)
kinds = st.sampled_from(["batchtopk", "matryoshka_batchtopk"])


@pytest.mark.parametrize("name", BACKENDS)
@given(case=cases, kind=kinds, n_dead=st.integers(0, 40))
@settings(max_examples=60, deadline=None, derandomize=True)
def test_gradients_equal_autograd(
    name: str, case: tuple[int, int, int, int, int, bool], kind: str, n_dead: int
) -> None:
    seed, d_in, d_sae, k, n, integers = case
    with pytest.MonkeyPatch.context() as patch:
        use(name, patch)
        options = {"architecture": kind, "auxk_alpha": 0.5, "k_aux": 3}
        step = make_step(seed, d_in, d_sae, min(k, d_sae), integers=integers, **options)
        # AuxK picks by `topk`, whose choice among ties is its own: none dead where all tie.
        step.tokens_since_fired[: 0 if integers else n_dead] = 10**6
        assert_gradients_match(step, make_batch(seed, n, d_in, integers=integers))


@given(case=cases, kind=kinds, dtype=st.sampled_from(["float32", "bfloat16"]))
@settings(max_examples=40, deadline=None, derandomize=True)
def test_large_dictionaries_have_the_same_gradients(
    case: tuple[int, int, int, int, int, bool], kind: str, dtype: str
) -> None:
    """The path for large matrices, where tokens have different numbers of slots, or none."""
    seed, d_in, d_sae, k, n, integers = case
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sparse, "LARGE_MATRIX", 1)
        options = {"architecture": kind, "encoder_dtype": dtype}
        step = make_step(seed, d_in, d_sae, min(k, d_sae), integers=integers, **options)
        batch = make_batch(seed, n, d_in, integers=integers)
        got = step.gradients(batch)
        assert_same_gradients(got.weights, plain_gradients(step, batch, got.slots))


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("kind", ["batchtopk", "matryoshka_batchtopk"])
def test_gradients_when_nothing_fires(
    name: str, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(name, monkeypatch)
    step = make_step(0, 4, 8, 3, k_aux=8, architecture=kind)
    step.weights.b_enc.fill_(-100.0)
    batch = make_batch(0, 10, 4)
    assert len(step.gradients(batch).slots.values) == 0
    assert_gradients_match(step, batch)
    assert not step.gradients(batch).weights.W_enc_T.any()
    step.tokens_since_fired.fill_(10**6)
    assert_gradients_match(step, batch)
    assert (step.gradients(batch).weights.W_enc_T.abs().sum(1) > 0).all()


@given(
    seed=st.integers(0, 1000),
    n=st.integers(1, 40),
    d_sae=st.integers(1, 150),
    k=st.integers(1, 9),
    scale=st.sampled_from([0.0, 1.0, 100.0]),
)
@settings(max_examples=80, deadline=None, derandomize=True)
def test_the_choice_does_not_depend_on_the_guess(
    seed: int, n: int, d_sae: int, k: int, scale: float
) -> None:
    """Whatever the batch before was like, the same latents are picked, ties to the first."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randint(-3, 4, (n, 4), generator=generator).float()
    W = torch.randint(-2, 3, (4, d_sae), generator=generator).float()
    b = torch.zeros(d_sae)
    fresh = BatchTopKEncoder(n, d_sae, k, device=x.device)
    used = BatchTopKEncoder(n, d_sae, k, device=x.device)
    used(scale * x, W, b)
    expected, got = fresh(x, W, b), used(x, W, b)
    for ours, theirs in zip(got, expected, strict=True):
        assert torch.equal(ours, theirs)
    flat = (x @ W).flatten()
    order = sorted(range(len(flat)), key=lambda i: (-float(flat[i]), i))[: k * n]
    chosen = sorted(i for i in order if flat[i] > 0)
    assert (expected.rows * d_sae + expected.latents).tolist() == chosen


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_kernels_and_torch_choose_alike(dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    found = {}
    for name in BACKENDS:
        with monkeypatch.context() as patch:
            use(name, patch)
            step = make_step(3, 12, 96, 5, encoder_dtype=dtype)
            slots = step.gradients(make_batch(3, 200, 12)).slots
            found[name] = torch.zeros(200, 96).index_put_((slots.rows, slots.latents), slots.values)
    torch.testing.assert_close(found["kernels"], found["torch"], rtol=1e-5, atol=1e-5)


def test_tokens_share_the_budget() -> None:
    """A strong token gets more latents than a weak one, and k on average over the batch."""
    step = make_step(1, 8, 64, 4)
    batch = make_batch(1, 32, 8)
    batch[:16] *= 10
    per_token = torch.bincount(step.gradients(batch).slots.rows, minlength=32)
    assert int(per_token.sum()) == 4 * 32
    assert per_token[:16].float().mean() > 2 * per_token[16:].float().mean()


def test_threshold_is_a_running_mean_of_the_least_activation() -> None:
    step = make_step(0, 6, 24, 2)
    assert step.threshold.isnan()
    expected = float("nan")
    for number in range(4):
        batch = make_batch(number, 16, 6)
        least = float(step.gradients(batch).slots.values.min())
        expected = least if number == 0 else 0.99 * expected + 0.01 * least
        step.step(batch, lr=0.01)
        assert float(step.threshold) == pytest.approx(expected, rel=1e-6)


def trained(kind: str, **options: object) -> SAEConfig:
    base = {"d_in": 16, "d_sae": 64, "k": 3, "n_tokens": 40_000, "batch_size": 128, "lr": 5e-3}
    return SAEConfig(architecture=kind, **(base | options))


@pytest.mark.parametrize("kind", ["batchtopk", "matryoshka_batchtopk"])
def test_trains_exports_and_reads_back_in_sae_lens(kind: str, tmp_path: Path) -> None:
    sae_lens = pytest.importorskip("sae_lens")
    (sae,) = train(({"resid": varying_rows(10_000, n)} for n in range(4)), [trained(kind)])
    x = varying_rows(2000, 99)
    fvu = float((x - sae(x)).square().sum() / (x - x.mean(0)).square().sum())
    assert fvu < 0.25
    l0 = float((sae.encode(x).values > 0).sum() / len(x))
    assert l0 == pytest.approx(3, rel=0.3), "the threshold lets k latents through on average"
    save(sae, tmp_path / "sae")
    again = load(tmp_path / "sae")
    assert (again.cfg, again.k) == (sae.cfg, 0)
    theirs = sae_lens.SAE.load_from_disk(tmp_path / "sae")
    assert theirs.cfg.architecture() == "jumprelu"
    with torch.no_grad():
        for ours in (sae, again):
            torch.testing.assert_close(ours.encode_dense(x), theirs.encode(x), rtol=1e-5, atol=1e-5)
            torch.testing.assert_close(ours(x), theirs(x), rtol=1e-5, atol=1e-5)


def test_the_first_level_of_a_matryoshka_reconstructs_alone() -> None:
    """Its first latents carry more than a plain BatchTopK's, which are like any others."""
    x = varying_rows(2000, 99)
    kept = {}
    for kind in ("batchtopk", "matryoshka_batchtopk"):
        (sae,) = train(({"resid": varying_rows(10_000, n)} for n in range(4)), [trained(kind)])
        z = sae.encode_dense(x)
        z[:, 16:] = 0
        error = x - (z @ sae.W_dec + sae.b_dec)
        kept[kind] = float(error.square().sum() / (x - x.mean(0)).square().sum())
    assert kept["matryoshka_batchtopk"] < 0.8 * kept["batchtopk"]


@pytest.mark.parametrize("kind", ["batchtopk", "matryoshka_batchtopk"])
def test_resume_is_bitwise(kind: str, tmp_path: Path) -> None:
    def stream() -> Iterator[dict[str, Tensor]]:
        return ({"resid": varying_rows(500, number)} for number in range(4))

    config = trained(kind, n_tokens=2000, k_warmup_fraction=0.5, dead_after_tokens=300)
    (plain,) = train(stream(), [config])
    with pytest.raises(Killed):
        train(killed_after(stream(), 2), [config], checkpoint_dir=tmp_path, checkpoint_seconds=0)
    (resumed,) = train(stream(), [config], checkpoint_dir=tmp_path)
    for name in ("W_enc", "W_dec", "b_enc", "b_dec", "threshold"):
        assert torch.equal(getattr(plain, name), getattr(resumed, name)), name


def test_levels() -> None:
    assert trained("matryoshka_batchtopk").level_widths == (4, 8, 16, 32, 64)
    assert trained("matryoshka_batchtopk", matryoshka_widths=(5, 9)).level_widths == (5, 9, 64)
    for widths in ((9, 5), (5, 5), (0, 5), (65,)):
        with pytest.raises(SAEError, match=r"SAEConfig\.matryoshka_widths"):
            trained("matryoshka_batchtopk", matryoshka_widths=widths)
    with pytest.raises(SAEError, match="batchtopk has none"):
        trained("batchtopk", matryoshka_widths=(5,))


def test_matryoshka_with_one_level_is_batchtopk() -> None:
    plain = make_step(2, 6, 24, 3)
    options = {"architecture": "matryoshka_batchtopk", "matryoshka_widths": (24,)}
    nested = make_step(2, 6, 24, 3, **options)
    assert isinstance(nested, MatryoshkaStep)
    batch = make_batch(2, 16, 6)
    ours, theirs = nested.gradients(batch), plain.gradients(batch)
    for a, b in zip(ours.weights, theirs.weights, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
    assert ours.squared_error == pytest.approx(theirs.squared_error, rel=1e-5)


def test_room_is_small_on_purpose() -> None:
    """Many candidates against little room: thinning out must not lose any of the largest."""
    x = make_batch(0, 300, 4)
    W = torch.randn(4, 64, generator=torch.Generator().manual_seed(0))
    encoder = BatchTopKEncoder(300, 64, 1, device=x.device)
    assert len(encoder._found) < 300 * 64 / 2
    slots = encoder(x, W, torch.zeros(64))
    best = (x @ W).flatten().topk(300).values.sort().values
    torch.testing.assert_close(slots.values.sort().values, best, rtol=1e-5, atol=1e-6)
    assert batchtopk.GUESS < 1
