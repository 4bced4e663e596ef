"""A shorter budget that branches off a longer run has the bits of a run of its own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from streams import Killed, killed_after
from torch import Tensor

from saes.config import SAEConfig
from saes.group import Group
from saes.training import train
from saes.trunk import shared_tokens, trunks

D_IN, N_TOKENS = 12, 4096


def config(**changes: object) -> SAEConfig:
    base = {
        "d_in": D_IN,
        "d_sae": 32,
        "k": 2,
        "n_tokens": N_TOKENS,
        "batch_size": 64,
        "dead_after_tokens": 200,
    }
    return SAEConfig(**(base | changes))


def half(**changes: object) -> SAEConfig:
    """Half the budget with the same warm-up in tokens."""
    return config(n_tokens=N_TOKENS // 2, lr_warmup_fraction=0.1, **changes)


def stream(n_chunks: int = 9, n_rows: int = 500) -> Iterator[dict[str, Tensor]]:
    for number in range(n_chunks):
        generator = torch.Generator().manual_seed(number)
        yield {"resid": torch.randn(n_rows, D_IN, generator=generator)}


def assert_same(one: object, other: object) -> None:
    for name in ("W_enc", "W_dec", "b_enc", "b_dec"):
        assert torch.equal(getattr(one, name), getattr(other, name)), name
    assert one.metadata == other.metadata  # type: ignore[attr-defined]


def test_half_shares_until_its_decay_begins() -> None:
    shared = shared_tokens(config(), half())
    # Decay takes the last fifth; lr_at looks half a step ahead.
    assert shared == 1664
    assert config().lr_at(shared - 64) == half().lr_at(shared - 64)
    assert config().lr_at(shared) != half().lr_at(shared)


@pytest.mark.parametrize(
    "change",
    [{"seed": 1}, {"k": 3}, {"d_sae": 48}, {"auxk_alpha": 0.0}, {"hook_point": "b"}, {"lr": 0.01}],
)
def test_strangers_share_nothing(change: dict[str, object]) -> None:
    assert shared_tokens(config(), half(**change)) == 0


def test_another_warm_up_or_dead_threshold_shares_nothing() -> None:
    assert shared_tokens(config(), config(n_tokens=N_TOKENS // 2)) == 0
    assert shared_tokens(config(), half(dead_after_tokens=100)) == 0
    # The default threshold follows the budget, and so differs.
    assert shared_tokens(config(dead_after_tokens=None), half(dead_after_tokens=None)) == 0


def test_equal_configs_do_not_follow_each_other() -> None:
    assert trunks([config(), config()]) == {}


def test_branches_take_the_run_that_shares_most() -> None:
    quarter = config(n_tokens=N_TOKENS // 4, lr_warmup_fraction=0.2)
    configs = [quarter, half(), config(), config(seed=1), half(seed=1)]
    found = trunks(configs)
    assert {number: root for number, (root, _) in found.items()} == {0: 2, 1: 2, 4: 3}


@pytest.mark.parametrize("n_rows", [333, 500, 1600])
def test_a_branch_has_the_bits_of_its_own_run(n_rows: int) -> None:
    configs = [config(), half(), config(seed=1), half(seed=1)]
    together = train(stream(13, n_rows), configs)
    for one, sae in zip(configs, together, strict=True):
        assert_same(train(stream(13, n_rows), [one])[0], sae)


def test_common_steps_are_taken_once() -> None:
    trained = []

    def note(status: object) -> None:
        trained.append(sum(m.tokens_done - m.inherited_tokens for m in groups[0].members))

    groups: list[Group] = []
    original = Group.__init__

    def remember(self: Group, *args: object, **more: object) -> None:
        groups.append(self)
        original(self, *args, **more)  # type: ignore[arg-type]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Group, "__init__", remember)
        train(stream(), [config(), half()], heartbeat=note)
    # Three chunks of 500 are shared (1,500 rows, 1,472 of them in whole steps).
    assert trained[-1] == N_TOKENS + N_TOKENS // 2 - 1472


@pytest.mark.filterwarnings("ignore:the stream ended")
def test_a_stream_that_ends_early_ends_branches_too() -> None:
    configs = [config(), half()]
    together = train(stream(2), configs)
    for one, sae in zip(configs, together, strict=True):
        assert_same(train(stream(2), [one])[0], sae)
        assert sae.metadata["status"] == "stream ended"


def test_a_branch_that_parts_before_the_first_rows() -> None:
    """The first chunk has rows for another hook point only, the next more than is shared."""
    configs = [config(), half()]

    def late() -> Iterator[dict[str, Tensor]]:
        rows = next(stream(1, 5000))["resid"]
        yield {"resid": rows[:0], "other": rows}
        yield {"resid": rows, "other": rows}

    beside = config(hook_point="other")
    together = train(late(), [*configs, beside])
    for one, sae in zip(configs, together[:2], strict=True):
        assert_same(train(late(), [one, beside])[0], sae)


@pytest.mark.parametrize("n_chunks", [1, 3, 4, 5])
@pytest.mark.parametrize("lost", [None, 0, 1])
def test_resume_before_and_after_the_parting(
    tmp_path: Path, n_chunks: int, lost: int | None
) -> None:
    """A kill between two files may leave the trunk without its branch or the reverse."""
    configs = [config(), half()]
    plain = train(stream(), configs)
    with pytest.raises(Killed):
        train(
            killed_after(stream(), n_chunks), configs, checkpoint_dir=tmp_path, checkpoint_seconds=0
        )
    if lost is not None:
        (tmp_path / f"sae-{lost:04d}.safetensors").unlink(missing_ok=True)
    for one, other in zip(plain, train(stream(), configs, checkpoint_dir=tmp_path), strict=True):
        assert_same(one, other)


def test_a_warm_up_of_k_is_shared_while_k_is_the_same() -> None:
    """The same fall of k in tokens is shared; another one parts at its first other k."""
    long = config(k_warmup_fraction=0.1, k_initial=10)
    assert shared_tokens(long, half(k_warmup_fraction=0.2, k_initial=10)) == 1664
    assert shared_tokens(long, half(k_warmup_fraction=0.1, k_initial=10)) == 64
    assert shared_tokens(long, half(k_warmup_fraction=0.2, k_initial=12)) == 0


@pytest.mark.parametrize("kind", ["batchtopk", "matryoshka_batchtopk"])
def test_a_branch_takes_the_threshold_along(kind: str) -> None:
    settings = [config(architecture=kind), half(architecture=kind)]
    assert trunks(settings)
    _, branch = train(stream(), settings)
    (alone,) = train(stream(), settings[1:])
    assert_same(alone, branch)
    assert torch.equal(alone.threshold, branch.threshold)  # type: ignore[arg-type]
