"""SAEConfig: validation in one line, the documented rules, the learning-rate schedule."""

import math

import pytest
from pydantic import ValidationError

from saes.config import SAEConfig
from saes.errors import SAEError


def config(**changes: object) -> SAEConfig:
    return SAEConfig(**({"d_in": 64, "d_sae": 512, "k": 8, "n_tokens": 1_000_000} | changes))


def test_name_is_size_k_seed() -> None:
    assert config(seed=3).name == "512-8-3"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"k": 513}, ["k 513", "d_sae 512"]),
        ({"k": 0}, ["SAEConfig.k"]),
        ({"d_in": -1}, ["SAEConfig.d_in", "-1"]),
        ({"n_tokens": 0}, ["SAEConfig.n_tokens"]),
        ({"lr": float("nan")}, ["SAEConfig.lr"]),
        ({"seed": -1}, ["SAEConfig.seed"]),
        ({"dsae": 3}, ["no field 'dsae'"]),
        ({"encoder_dtype": "float16"}, ["SAEConfig.encoder_dtype", "float16"]),
        ({"lr_warmup_fraction": 0.6, "lr_decay_fraction": 0.5}, ["lr_warmup_fraction"]),
    ],
)
def test_wrong_values_give_one_line(changes: dict[str, object], words: list[str]) -> None:
    with pytest.raises(SAEError) as caught:
        config(**changes)
    message = str(caught.value)
    assert "\n" not in message
    assert all(word in message for word in words), message


def test_missing_field_is_named() -> None:
    with pytest.raises(SAEError, match=r"SAEConfig\.k"):
        SAEConfig(d_in=4, d_sae=8, n_tokens=10)


def test_frozen() -> None:
    with pytest.raises(ValidationError):
        config().k = 4


def test_round_trips_through_its_own_dump() -> None:
    original = config(lr=0.01, encoder_dtype="bfloat16")
    assert SAEConfig(**original.model_dump()) == original


def test_learning_rate_rule() -> None:
    assert config(k=4, d_sae=400, batch_size=1024).peak_lr == pytest.approx(0.006)
    assert config(k=4, d_sae=1600, batch_size=1024).peak_lr == pytest.approx(0.003)
    assert config(k=4, d_sae=400, batch_size=256).peak_lr == pytest.approx(0.0015)
    assert config(k=400, d_sae=400, batch_size=1024).peak_lr == 0.02
    assert config(lr=0.5).peak_lr == 0.5


def test_longer_training_of_wider_rows_takes_smaller_steps() -> None:
    def rate(d_in: int, n_tokens: int, batch_size: int = 1024) -> float:
        return config(d_in=d_in, k=30, d_sae=768, n_tokens=n_tokens, batch_size=batch_size).peak_lr

    # 16,384 steps: 50 / (192 * 128).
    assert rate(192, 1 << 24) == pytest.approx(50 / 192 / 128)
    assert rate(192, 1 << 26) == pytest.approx(rate(192, 1 << 24) / 2)
    assert rate(384, 1 << 24) == pytest.approx(rate(192, 1 << 24) / 2)
    # A short run keeps the rate of the rule.
    assert rate(192, 100_000) == pytest.approx(0.06 * (30 / 768) ** 0.5)
    assert rate(192, 1) > 0


def test_dead_threshold_rule() -> None:
    assert config(n_tokens=500_000).dead_threshold_tokens == 50_000
    assert config(n_tokens=10**9).dead_threshold_tokens == 10_000_000
    assert config(dead_after_tokens=7).dead_threshold_tokens == 7
    assert config(n_tokens=3).dead_threshold_tokens == 1


def test_k_aux_rule() -> None:
    assert config().n_aux == 32
    assert config(d_in=1).n_aux == 1
    assert config(k_aux=5).n_aux == 5


def test_schedule_rises_stays_and_falls() -> None:
    c = config(n_tokens=1000, batch_size=10, lr=1.0, lr_warmup_fraction=0.1, lr_decay_fraction=0.2)
    # The rate of a step is that of its middle: 5 tokens after its start.
    assert c.lr_at(0) == pytest.approx(0.05)
    assert c.lr_at(50) == pytest.approx(0.55)
    assert c.lr_at(100) == 1.0
    assert c.lr_at(700) == 1.0
    assert c.lr_at(895) == pytest.approx(0.5)
    assert c.lr_at(990) == pytest.approx(0.025)
    assert c.lr_at(2000) == 0.0


def test_schedule_without_warmup_or_decay_is_flat() -> None:
    c = config(n_tokens=100, batch_size=10, lr=2.0, lr_warmup_fraction=0, lr_decay_fraction=0)
    assert {c.lr_at(t) for t in (0, 50, 99)} == {2.0}
    assert math.isfinite(c.lr_at(0))


def test_multiples_of_d_in() -> None:
    c = config(d_sae="8x", k="0.125x")
    assert (c.d_sae, c.k) == (512, 8)
    assert config(d_sae="600").d_sae == 600
    for text, words in (("many", "'many'"), ("0.1x", "6.4 latents at d_in 64")):
        with pytest.raises(SAEError, match=words):
            config(d_sae=text)


def test_k_falls_to_its_value_during_warmup() -> None:
    c = config(n_tokens=1000, k=4, k_warmup_fraction=0.5, k_initial=24)
    assert [c.k_at(t) for t in (0, 250, 499, 500, 1000)] == [24, 14, 4, 4, 4]
    assert config(k_warmup_fraction=0.5).k_at(0) == 64, "d_in by default"
    assert config(d_sae=32, k=4, k_warmup_fraction=0.5).k_at(0) == 32
    assert config().k_at(0) == 8
    with pytest.raises(SAEError, match="k_initial 513 is larger"):
        config(k_initial=513)


def test_penalized_architectures_take_a_coefficient_and_no_k() -> None:
    c = config(architecture="standard", k=0, sparsity_coefficient=5)
    assert (c.name, c.peak_lr) == ("512-standard-5-0", 3e-4)
    for changes in ({}, {"k": 0}, {"sparsity_coefficient": 1.0}):
        with pytest.raises(SAEError, match=r"SAEConfig\.sparsity_coefficient"):
            config(architecture="jumprelu", **changes)
    with pytest.raises(SAEError, match=r"SAEConfig\.max_grad_norm: .* which clips at 1"):
        config(architecture="standard", k=0, sparsity_coefficient=5, max_grad_norm=1.0)
    with pytest.raises(SAEError, match=r"SAEConfig\.k: topk needs k"):
        config(sparsity_coefficient=1.0)
    assert config(architecture="batchtopk").name == "512-batchtopk-8-0"
