"""The toy model's engine against its formulas, by hand and by a plain loop."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from toy_plain import PlainToyModel

from interp.errors import UserError
from interp.toy.batches import EVALUATION, Batch, Stream
from interp.toy.frequencies import Frequencies
from interp.toy.model import Scratch, ToyConfig, ToyModel

POWER = Frequencies("power", 1.0, 60)
CONFIG = ToyConfig(
    POWER, m=7, decay=-1.0, batch_size=128, n_steps=40, warmup_steps=5, lr_W=0.02, lr_b=0.05,
    eps=1e-7,
)  # fmt: skip


def hand_made(W, b, **changes) -> ToyModel:
    """A float64 model with these weights."""
    W, b = np.array(W, dtype=float), np.array(b, dtype=float)
    frequencies = Frequencies("linear", 0, len(b), density=0.5)
    model = ToyModel(replace(CONFIG, frequencies=frequencies, m=W.shape[1], **changes), np.float64)
    model.W, model.b = W, b
    return model


def batch_of(rows: list[dict[int, float]], n_empty: int = 0) -> Batch:
    """Rows as {feature: value}, none of them empty."""
    active = np.unique([i for row in rows for i in row])
    columns = np.concatenate([np.searchsorted(active, sorted(row)) for row in rows])
    values = np.array([row[i] for row in rows for i in sorted(row)])
    starts = np.cumsum([0] + [len(row) for row in rows])
    return Batch(active, starts, columns, values, len(rows) + n_empty)


@pytest.mark.parametrize("decay", [-1.0, -0.3, 0.0, 0.8])
@pytest.mark.parametrize("density", [1.0, 6.0])
def test_equals_the_plain_loop(decay: float, density: float) -> None:
    """Thirty steps in float64: rounding only. The same in float32 stays within its precision."""
    frequencies = Frequencies("power", 0.7 if density > 1 else 1.0, 60, density)
    config = replace(CONFIG, decay=decay, frequencies=frequencies)
    stream = Stream(frequencies, config.batch_size, seed=3)
    exact, fast = ToyModel(config, np.float64), ToyModel(config)
    plain = PlainToyModel(
        exact.W, exact.b, decay=decay, lr_W=config.lr_W, lr_b=config.lr_b, eps=config.eps,
        n_steps=config.n_steps, warmup_steps=config.warmup_steps,
    )  # fmt: skip
    scratch = Scratch()
    for number in range(30):
        batch = stream.batch(number)
        expected = plain.step(batch.dense(60))
        assert exact.step(batch, scratch) == pytest.approx(expected, rel=1e-9)
        assert fast.step(batch, scratch) == pytest.approx(expected, rel=1e-4)
    np.testing.assert_allclose(exact.W, plain.W.detach(), atol=1e-8)
    np.testing.assert_allclose(exact.b, plain.b.detach(), atol=1e-8)
    np.testing.assert_allclose(fast.W, plain.W.detach(), atol=2e-4)
    assert fast.W.dtype == np.float32


def test_one_feature_by_hand() -> None:
    """n = m = 1, w = 0.5, b = 0.1, x = 1: y = 0.35, loss 0.4225, gradient of b -1.3, of w -1.3."""
    model = hand_made([[0.5]], [0.1], decay=0.0, warmup_steps=0, n_steps=10**9, eps=1e-12)
    assert model.step(batch_of([{0: 1.0}]), Scratch()) == pytest.approx(0.65**2)
    # dL/db = 2 (y - x); dL/dw = 2 (y - x) 2 w x. Adam's moments keep a tenth and a thousandth.
    assert model.moments["b_first"][0] == pytest.approx(0.1 * -1.3)
    assert model.moments["W_first"][0, 0] == pytest.approx(0.1 * -1.3)
    assert model.moments["W_second"][0, 0] == pytest.approx(0.001 * 1.3**2)
    # The first Adam step is the rate against the gradient's sign.
    assert model.W[0, 0] == pytest.approx(0.5 + CONFIG.lr_W)
    assert model.b[0] == pytest.approx(0.1 + CONFIG.lr_b)


def test_empty_rows_cost_what_the_bias_says() -> None:
    model = hand_made([[1.0], [0.0]], [0.2, -3.0])
    loss = model.errors(batch_of([{0: 1.0}], n_empty=3), Scratch(), np.zeros(2))
    assert loss == pytest.approx((0.2**2 + 3 * 0.2**2) / 4)


def test_a_silent_output_gets_no_gradient() -> None:
    """y = ReLU(-2 + ...) = 0 on every row: neither bias nor moments move."""
    model = hand_made([[1.0], [0.0]], [0.0, -2.0])
    model.step(batch_of([{0: 1.0}, {1: 1.5}], n_empty=2), Scratch())
    assert model.b[1] == -2.0
    assert model.moments["b_first"][1] == 0.0


def test_negative_decay_pulls_norms_to_one() -> None:
    """Where all outputs are silent only the decay acts, and on the norm alone."""
    W = np.array([[0.03, 0.04], [3.0, 4.0], [0.6, 0.8]])
    model = hand_made(W, [-100.0] * 3, decay=-1.0, n_steps=2000, warmup_steps=0)
    one = batch_of([{0: 0.1}])
    model.step(one, Scratch())
    np.testing.assert_allclose(
        np.linalg.norm(model.W, axis=1), [0.05 + 0.02 * 0.95, 5 - 0.02 * 4, 1], atol=1e-6
    )
    for _ in range(1500):
        model.step(one, Scratch())
    np.testing.assert_allclose(np.linalg.norm(model.W, axis=1), 1, atol=1e-3)
    np.testing.assert_allclose(model.W / W, (model.W / W)[:, :1] * [1, 1], rtol=1e-9)
    shrunk = hand_made(W, [-100.0] * 3, decay=0.5, n_steps=10**9, warmup_steps=0)
    shrunk.step(one, Scratch())
    np.testing.assert_allclose(shrunk.W, W * (1 - 0.02 * 0.5), rtol=1e-9)


def test_a_row_of_zeros_stays_finite_under_negative_decay() -> None:
    model = hand_made(np.zeros((2, 2)), [-1.0, -1.0])
    model.step(batch_of([{0: 1.0}]), Scratch())
    np.testing.assert_array_equal(model.W, 0)


def test_the_loss_does_not_depend_on_the_basis_of_h() -> None:
    """y holds W only in W W^T: a rotation of the hidden space changes nothing."""
    model = ToyModel(CONFIG, np.float64)
    batch = Stream(POWER, 500, purpose=EVALUATION).batch(0)
    errors, turned = np.zeros(60), np.zeros(60)
    before = model.errors(batch, Scratch(), errors)
    rotation = np.linalg.qr(np.random.default_rng(0).standard_normal((7, 7)))[0]
    model.W = np.ascontiguousarray(model.W @ rotation)
    assert model.errors(batch, Scratch(), turned) == pytest.approx(before, rel=1e-10)
    np.testing.assert_allclose(errors, turned, rtol=1e-9)
    assert errors.sum() / 500 == pytest.approx(before, rel=1e-10)
    plain = PlainToyModel(model.W, model.b, decay=0, lr_W=1, lr_b=1, eps=1, n_steps=1,
                          warmup_steps=0)  # fmt: skip
    x = batch.dense(60).astype(float)
    y = np.maximum(x @ model.W @ model.W.T + model.b, 0)
    np.testing.assert_allclose(errors, ((y - x) ** 2).sum(0), rtol=1e-9)
    assert plain.loss(plain.W.new_tensor(x)).item() == pytest.approx(before, rel=1e-10)


def test_schedule() -> None:
    config = replace(CONFIG, n_steps=1000, warmup_steps=100)
    assert config.schedule(0) == pytest.approx(0.01)
    assert config.schedule(98) == pytest.approx(0.99)
    assert config.schedule(99) == pytest.approx(1.0)
    assert config.schedule(549) == pytest.approx(0.05 + 0.95 / 2)
    assert config.schedule(999) == pytest.approx(0.05)


def test_batches_have_the_stated_frequencies_and_values() -> None:
    """Counts of 400,000 rows within five standard errors of p_i; v uniform on 0..2."""
    frequencies = Frequencies("power", 1.2, 30, density=2.0)
    stream = Stream(frequencies, 20_000, seed=1)
    x = np.concatenate([stream.batch(t).dense(30) for t in range(20)])
    p = frequencies.probabilities()
    error = (p * (1 - p) / len(x)) ** 0.5
    assert (np.abs((x > 0).mean(0) - p) < 5 * error).all()
    values = x[x > 0]
    assert values.max() <= 2
    assert values.mean() == pytest.approx(1, abs=5 * (1 / 3 / len(values)) ** 0.5)
    assert values.var() == pytest.approx(1 / 3, rel=0.01)
    # Independent columns: the two most frequent features meet as often as chance has it.
    both = ((x[:, 0] > 0) & (x[:, 1] > 0)).mean()
    assert both == pytest.approx(p[0] * p[1], abs=5 * (p[0] * p[1] / len(x)) ** 0.5)


def test_batches_are_a_function_of_their_number() -> None:
    stream = Stream(POWER, 200, seed=5)
    again, other = Stream(POWER, 200, seed=5).batch(7), Stream(POWER, 200, seed=6).batch(7)
    np.testing.assert_array_equal(stream.batch(7).dense(60), again.dense(60))
    assert not np.array_equal(again.dense(60), other.dense(60))
    assert not np.array_equal(again.dense(60), stream.batch(8).dense(60))
    held_out = Stream(POWER, 200, seed=5, purpose=EVALUATION)
    assert not np.array_equal(again.dense(60), held_out.batch(7).dense(60))


def test_a_certain_feature_is_always_active() -> None:
    x = Stream(Frequencies("linear", 0, 1, density=1.0), 300).batch(0)
    assert x.n_empty == 0
    assert len(x.values) == 300


def test_frequencies() -> None:
    assert Frequencies("power", 2.0, 3).probabilities() == pytest.approx(np.array([36, 9, 4]) / 49)
    assert Frequencies("exponential", 4.0, 2).probabilities() == pytest.approx(
        np.array([1, np.exp(-0.25)]) / (1 + np.exp(-0.25))
    )
    assert Frequencies("linear", 0, 3, density=0.5).probabilities() == pytest.approx(
        np.array([3, 2, 1]) / 12
    )


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        (lambda: Frequencies("zipf", 1.0, 10), "unknown"),
        (lambda: Frequencies("power", 2.0, 10, density=4.0), "at most 1.55"),
        (lambda: Frequencies("power", -1.0, 10), "positive"),
        (lambda: Frequencies("power", 1.0, 10, density=0.0), "density"),
        (lambda: replace(CONFIG, m=0), "m=0"),
        (lambda: replace(CONFIG, warmup_steps=41), "warm-up"),
        (lambda: replace(CONFIG, lr_W=0.0), "lr_W=0.0"),
        (lambda: replace(CONFIG, decay=float("nan")), "decay=nan"),
    ],
)
def test_wrong_settings_are_answered_in_one_line(bad, says: str) -> None:
    with pytest.raises(UserError, match=says) as error:
        bad()
    assert "\n" not in str(error.value)


def test_divergence_is_refused() -> None:
    model = hand_made([[1e200]], [0.0])
    with pytest.raises(UserError, match="loss is"):
        model.step(batch_of([{0: 1.0}]), Scratch())
