"""Loss: HF's own value, hand-computed sums, exact bytes, and intervals that cover."""

from __future__ import annotations

import dataclasses
import math
import sys
from typing import Any

import numpy as np
import pytest
import torch

from interp.errors import UserError
from interp.loss import LossSums, block_nll, bootstrap_documents, loss, token_nll


def test_loss_equals_hf(tiny_model: Any, tiny_tokens: Any) -> None:
    """HF averages over the labels that are not -100: give it exactly our targets."""
    ids = tiny_tokens.ids.long()
    labels = torch.where(tiny_tokens.is_target, ids, -100)
    with torch.inference_mode():
        expected = float(tiny_model.hf(input_ids=ids, labels=labels).loss)
    mine = loss(tiny_model, tiny_tokens)
    assert mine.nats_per_token == pytest.approx(expected, abs=1e-5)
    assert mine.n_tokens == int((labels != -100).sum())


def test_a_head_with_a_bias_equals_hf() -> None:
    from transformers import PhiConfig, PhiForCausalLM

    torch.manual_seed(0)
    hf = PhiForCausalLM(
        PhiConfig(
            vocab_size=40,
            hidden_size=16,
            intermediate_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
        )
    ).eval()
    torch.nn.init.normal_(hf.lm_head.bias)
    ids = torch.randint(0, 40, (3, 9))

    class Headless:
        def __init__(self) -> None:
            self.hf = hf

    with torch.inference_mode():
        hidden = hf.base_model(input_ids=ids).last_hidden_state
        nll = block_nll(Headless(), hidden, ids)  # type: ignore[arg-type]
        expected = float(hf(input_ids=ids, labels=ids).loss)
    assert float(nll[:, 1:].mean()) == pytest.approx(expected, abs=1e-5)
    assert (nll[:, 0] == 0).all()


def test_chunks_do_not_change_the_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(17, 8, generator=generator)
    W_U = torch.randn(50, 8, generator=generator)
    targets = torch.randint(0, 50, (17,), generator=generator, dtype=torch.int32)
    logits = (hidden.double() @ W_U.double().T).numpy()
    by_hand = np.log(np.exp(logits).sum(1)) - logits[np.arange(17), targets]
    for size in (1, 60, 150, 1 << 22):  # 1, 1, 3 and 17 tokens at a time
        monkeypatch.setattr(sys.modules["interp.loss"], "_LOGITS_PER_CHUNK", size)
        np.testing.assert_allclose(token_nll(hidden, W_U, targets), by_hand, rtol=1e-5)


def test_half_precision_logits_are_summed_in_float32() -> None:
    hidden, W_U = torch.zeros(1, 4).bfloat16(), torch.zeros(1000, 4).bfloat16()
    nll = token_nll(hidden, W_U, torch.zeros(1, dtype=torch.int64))
    assert nll.dtype == torch.float32
    assert float(nll) == pytest.approx(math.log(1000), rel=1e-6)


def test_batches_do_not_change_the_loss(tiny_model: Any, tiny_tokens: Any) -> None:
    whole, single = loss(tiny_model, tiny_tokens), loss(tiny_model, tiny_tokens, batch_size=1)
    assert whole.nats_per_token == pytest.approx(single.nats_per_token, abs=1e-6)
    assert whole.n_bytes == single.n_bytes


@pytest.mark.parametrize("stride", [1, 20])
def test_strided_windows_equal_hf_token_by_token(
    tiny_model: Any, tiny_tokens: Any, stride: int
) -> None:
    """Each token alone, from the context that its window gives it."""
    ids, n_ctx = tiny_tokens.ids.flatten().long(), tiny_tokens.n_ctx
    is_text = tiny_tokens.is_text.flatten()
    expected = 0.0
    targets = [t for t in range(1, len(ids)) if is_text[t]]
    for t in targets:
        n_windows = max(0, -(-(t + 1 - n_ctx) // stride))  # that end before t is reached
        begin = n_windows * stride
        assert t - begin >= min(t, n_ctx - stride)
        with torch.inference_mode():
            logits = tiny_model.hf(input_ids=ids[None, begin : t + 1]).logits[0, -2]
        expected += float(torch.nn.functional.cross_entropy(logits, ids[t]))
    result = loss(tiny_model, tiny_tokens, stride=stride)
    assert result.n_tokens == len(targets)
    assert result.n_bytes == int(tiny_tokens.n_bytes.flatten()[targets].sum())
    assert result.nats_per_token == pytest.approx(expected / len(targets), abs=1e-5)


@pytest.mark.parametrize("stride", [0, 32])
def test_a_stride_beyond_the_block_is_refused(
    tiny_model: Any, tiny_tokens: Any, stride: int
) -> None:
    with pytest.raises(UserError, match="use 1 to 31"):
        loss(tiny_model, tiny_tokens, stride=stride)


def test_the_share_done_is_told(tiny_model: Any, tiny_tokens: Any) -> None:
    told: list[float] = []
    loss(tiny_model, tiny_tokens[:5], batch_size=2, heartbeat=told.append)
    assert told == [2 / 5, 4 / 5, 1.0]


def test_sums_by_hand() -> None:
    """Documents 0 and 2; one token of document 2 is no target and must not count anywhere."""
    sums = LossSums()
    sums.update(
        torch.tensor([[1.0, 2.0], [3.0, 99.0]]),
        torch.tensor([[True, True], [True, False]]),
        torch.tensor([[0, 0], [2, 2]]),
        torch.tensor([[1, 2], [5, 50]]),
    )
    result = sums.result()
    assert result.nats_per_token == pytest.approx(6 / 3)
    assert result.nats_per_byte == pytest.approx(6 / 8)
    assert (result.n_tokens, result.n_bytes, result.n_docs) == (3, 8, 2)
    assert result.document_ids.tolist() == [0, 2]
    assert result.document_nats.tolist() == [3.0, 3.0]
    assert result.document_tokens.tolist() == [2.0, 1.0]
    assert result.document_bytes.tolist() == [3.0, 5.0]
    # Two documents, drawn twice: means 3/2, 6/3 or 3/1 with probabilities 1/4, 1/2, 1/4.
    assert result.ci_nats_per_token == pytest.approx((1.5, 3.0))
    assert result.ci_nats_per_byte == pytest.approx((0.6, 1.0))


def test_sums_do_not_depend_on_the_split_into_updates() -> None:
    generator = torch.Generator().manual_seed(0)
    nll = torch.rand(60, generator=generator)
    docs = torch.arange(60) // 7
    mask, sizes = torch.rand(60, generator=generator) > 0.3, torch.ones(60, dtype=torch.int32)
    whole, parts = LossSums(), LossSums()
    whole.update(nll, mask, docs, sizes)
    for piece in reversed(torch.arange(60).split(13)):
        parts.update(nll[piece], mask[piece], docs[piece], sizes[piece])
    assert whole.result().nats_per_token == pytest.approx(parts.result().nats_per_token, rel=1e-12)
    assert whole.result().ci_nats_per_byte == pytest.approx(parts.result().ci_nats_per_byte)


def test_bytes_are_those_of_the_targets(tiny_model: Any, tiny_tokens: Any) -> None:
    result = loss(tiny_model, tiny_tokens)
    assert result.n_bytes == int(tiny_tokens.n_bytes[tiny_tokens.is_target].sum())
    ratio = result.nats_per_token / result.nats_per_byte
    assert ratio == pytest.approx(result.n_bytes / result.n_tokens)


def test_one_document_has_no_interval(tiny_model: Any, tiny_tokens: Any) -> None:
    one = dataclasses.replace(tiny_tokens, doc_ids=torch.zeros_like(tiny_tokens.doc_ids))
    result = loss(tiny_model, one)
    assert result.ci_nats_per_token is None
    assert result.ci_nats_per_byte is None
    assert result.n_docs == 1


def test_no_target_is_refused(tiny_model: Any, tiny_tokens: Any) -> None:
    nothing = dataclasses.replace(tiny_tokens, is_text=torch.zeros_like(tiny_tokens.is_text))
    with pytest.raises(UserError, match="no token to predict"):
        loss(tiny_model, nothing)


def test_bootstrap_totals_have_the_mean_and_spread_of_resampling() -> None:
    """n draws with replacement: mean of the total is n * mean, variance n * variance."""
    rng = np.random.default_rng(0)
    values = rng.gamma(1.0, size=(2, 40))
    totals = bootstrap_documents(values, np.random.default_rng(1), n_resamples=20_000)
    assert totals.shape == (2, 20_000)
    spread = np.sqrt(40 * values.var(axis=1))
    # Tolerances: 5 standard errors of the mean; of the standard deviation, about 2.5%.
    assert np.all(abs(totals.mean(axis=1) - values.sum(axis=1)) < 5 * spread / np.sqrt(20_000))
    np.testing.assert_allclose(totals.std(axis=1), spread, rtol=0.03)
    # Documents are drawn whole: both quantities come from the same draw.
    same = bootstrap_documents(np.stack([values[0], values[0]]), rng, n_resamples=50)
    assert np.array_equal(same[0], same[1])


def test_bootstrap_pieces_do_not_leave_gaps() -> None:
    """More documents than fit one piece: every resample still draws n documents."""
    ones = np.ones((1, 70_000))
    totals = bootstrap_documents(ones, np.random.default_rng(0), n_resamples=65)
    assert np.array_equal(totals, np.full((1, 65), 70_000.0))


def test_intervals_cover_over_documents() -> None:
    """Documents with their own mean loss: about 95% of intervals hold the true mean.

    Tokens within a document are alike, so an interval over tokens would cover far less.
    """
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(100):
        means = rng.normal(3.0, 0.5, size=60)
        nll = torch.from_numpy(np.repeat(means, 50)).float()
        docs = torch.arange(60).repeat_interleave(50)
        sums = LossSums()
        sums.update(nll, torch.ones(3000, dtype=torch.bool), docs, torch.ones(3000))
        interval = sums.result(generator=rng, n_resamples=400).ci_nats_per_token
        assert interval is not None
        covered += interval[0] <= 3.0 <= interval[1]
    assert 86 <= covered <= 100  # binomial: 95 +- 4 standard deviations


def test_the_same_generator_gives_the_same_interval(tiny_model: Any, tiny_tokens: Any) -> None:
    def interval(seed: int) -> Any:
        generator = np.random.default_rng(seed)
        return loss(tiny_model, tiny_tokens, generator=generator).ci_nats_per_token

    assert interval(1) == interval(1)
    assert interval(1) != interval(2)
