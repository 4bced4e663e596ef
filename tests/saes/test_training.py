"""train(): recovery of a known dictionary, independence of SAEs, exact resume, bad input."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from streams import Killed, killed_after
from torch import Tensor

from saes import checkpoint
from saes.config import SAEConfig
from saes.errors import SAEError
from saes.sae import SAE
from saes.training import TrainingStatus, train

D_IN, N_FEATURES, ACTIVE = 16, 32, 2


def dictionary() -> Tensor:
    generator = torch.Generator().manual_seed(0)
    directions = torch.randn(N_FEATURES, D_IN, generator=generator)
    return torch.nn.functional.normalize(directions, dim=1)


def rows(n: int, seed: int) -> Tensor:
    """Sums of two random features with strengths in 0.5..1.5, off the origin."""
    generator = torch.Generator().manual_seed(seed)
    which = torch.rand(n, N_FEATURES, generator=generator).topk(ACTIVE, dim=1).indices
    strength = torch.rand(n, ACTIVE, generator=generator) + 0.5
    return torch.einsum("nk,nkd->nd", strength, dictionary()[which]) + 2.0


def stream(n_chunks: int = 4, n_rows: int = 500) -> Iterator[dict[str, Tensor]]:
    for number in range(n_chunks):
        yield {"resid": rows(n_rows, number + 1)}


def config(**changes: object) -> SAEConfig:
    base = {"d_in": D_IN, "d_sae": 64, "k": ACTIVE, "n_tokens": 2000, "batch_size": 128}
    return SAEConfig(**(base | changes))


def assert_same(a: SAE, b: SAE) -> None:
    for name in ("W_enc", "W_dec", "b_enc", "b_dec"):
        assert torch.equal(getattr(a, name), getattr(b, name)), name


def differs(a: SAE, b: SAE) -> bool:
    return not torch.equal(a.W_dec, b.W_dec)


def test_recovers_the_true_dictionary() -> None:
    n_tokens = 120_000
    (sae,) = train(
        ({"resid": rows(20_000, number)} for number in range(6)),
        [config(n_tokens=n_tokens, batch_size=256, lr=5e-3)],
    )
    x = rows(2000, 99)
    fvu = (x - sae(x)).square().sum() / (x - x.mean(0)).square().sum()
    nearest = (dictionary() @ sae.W_dec.T).max(1).values
    assert nearest.mean() > 0.95
    assert fvu < 0.1
    # Control: a random dictionary of the same size is nowhere near.
    generator = torch.Generator().manual_seed(5)
    random = torch.nn.functional.normalize(torch.randn(64, D_IN, generator=generator), dim=1)
    assert (dictionary() @ random.T).max(1).values.mean() < 0.75
    torch.testing.assert_close(sae.W_dec.norm(dim=1), torch.ones(64))
    assert sae.metadata["status"] == "done"
    assert sae.metadata["tokens_trained"] == n_tokens


def test_result_does_not_depend_on_companions_or_workers() -> None:
    (alone,) = train(stream(), [config(seed=1)], workers=1)
    many = train(stream(), [config(seed=0), config(seed=1), config(d_sae=128, seed=1)], workers=2)
    assert_same(alone, many[1])
    again = train(stream(), [config(seed=1), config(seed=1)], workers=2)
    assert_same(alone, again[0])
    assert_same(alone, again[1])


def test_callers_thread_count_is_left_alone() -> None:
    before = torch.get_num_threads()
    train(stream(1), [config(n_tokens=500)])
    assert torch.get_num_threads() == before


def test_seeds_differ_in_initialization_and_in_shuffle() -> None:
    a, b = train(stream(), [config(seed=0), config(seed=1)])
    assert differs(a, b)
    # Same rows in another order within a chunk: the shuffle is of positions, so results differ.
    chunks = [{"resid": chunk["resid"].flip(0)} for chunk in stream()]
    (flipped,) = train(chunks, [config(seed=0)])
    assert differs(a, flipped)


def test_initialization_is_the_data_mean_and_a_tied_unit_decoder() -> None:
    (sae,) = train(stream(), [config(lr=1e-12)])
    first = next(stream())["resid"]
    torch.testing.assert_close(sae.b_dec, first.mean(0), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(sae.W_enc, sae.W_dec.T)
    assert sae.b_enc.abs().max() < 1e-6


def test_a_shorter_initial_encoder_starts_lower() -> None:
    """k latents of unit encoders overshoot; half as long they do not."""
    chunks = [{"resid": 3 * torch.randn(2000, D_IN, generator=torch.Generator().manual_seed(1))}]
    settings = {"k": 12, "lr": 1e-12}
    unit, half = train(chunks, [config(**settings), config(encoder_init_scale=0.5, **settings)])
    torch.testing.assert_close(half.W_enc, 0.5 * half.W_dec.T)
    assert half.metadata["running_fvu"] < 0.7 * unit.metadata["running_fvu"]


def test_scale_of_the_activations_is_folded_in() -> None:
    """Activations in other units give the same SAE in those units."""
    (plain,) = train(stream(), [config()])
    (large,) = train(({"resid": 64 * c["resid"]} for c in stream()), [config()])
    torch.testing.assert_close(large.W_dec, plain.W_dec, rtol=1e-3, atol=1e-4)
    x = rows(100, 50)
    torch.testing.assert_close(large(64 * x) / 64, plain(x), rtol=1e-3, atol=1e-3)


def test_small_budget_stops_early_and_equals_a_run_alone() -> None:
    short, long = train(stream(), [config(n_tokens=700), config(n_tokens=2000)])
    assert short.metadata["tokens_trained"] == 700
    assert short.metadata["status"] == "done"
    assert long.metadata["tokens_trained"] == 2000
    (alone,) = train(stream(2), [config(n_tokens=700)])
    assert_same(short, alone)


def test_no_chunk_is_pulled_after_the_last_budget_is_used() -> None:
    pulled = []

    def counted() -> Iterator[dict[str, Tensor]]:
        for number, chunk in enumerate(stream(4)):
            pulled.append(number)
            yield chunk

    train(counted(), [config(n_tokens=1000)])
    assert pulled == [0, 1]


def test_stream_that_ends_early_is_used_up_and_said() -> None:
    with pytest.warns(UserWarning, match=r"ended after 1,500 of 10,000 tokens; 1 of 2 SAEs"):
        sae, short = train(stream(3), [config(n_tokens=10_000), config(n_tokens=700)])
    assert short.metadata["status"] == "done"
    assert sae.metadata["status"] == "stream ended"
    assert sae.metadata["tokens_trained"] == 1500


def test_rows_cut_differently_are_all_used() -> None:
    """Chunks smaller than a batch carry over; empty ones are skipped."""
    pieces = [{"resid": piece} for chunk in stream() for piece in chunk["resid"].split(37)]
    pieces.insert(1, {"resid": torch.empty(0, D_IN)})
    (sae,) = train(pieces, [config()])
    assert sae.metadata["tokens_trained"] == 2000
    assert sae.metadata["n_steps"] == -(-2000 // 128)


def test_two_hook_points_train_on_their_own_rows() -> None:
    both = [{"a": c["resid"], "b": 3 - c["resid"]} for c in stream()]
    a, b = train(both, [config(hook_point="a"), config(hook_point="b")])
    (alone,) = train(both, [config(hook_point="b")])
    assert_same(b, alone)
    assert (a.b_dec - b.b_dec).abs().max() > 1


def test_heartbeat_reports_progress() -> None:
    seen: list[TrainingStatus] = []
    train(stream(), [config(), config(seed=1, n_tokens=1000)], heartbeat=seen.append)
    assert [status.tokens_total for status in seen] == [2000] * 4
    # Whole batches of 128 until the budget is reached: the second SAE leads at its end, 1000.
    assert [status.tokens_done for status in seen] == [384, 1000, 1408, 2000]
    assert all(0 < status.fvu < 3 for status in seen)
    assert seen[-1].fvu < seen[0].fvu
    assert all(0 <= status.dead_fraction <= 1 for status in seen)
    assert [sae.name for sae in seen[0].saes] == ["64-2-0", "64-2-1"]
    assert seen[-1].saes[1].tokens_done == 1000


@pytest.mark.parametrize("n_chunks", [1, 2, 3])
def test_resume_is_bitwise(tmp_path: Path, n_chunks: int) -> None:
    configs = [config(seed=0, dead_after_tokens=200), config(seed=1, d_sae=96, n_tokens=700)]
    plain = train(stream(), configs)
    with pytest.raises(Killed):
        train(
            killed_after(stream(), n_chunks), configs, checkpoint_dir=tmp_path, checkpoint_seconds=0
        )
    resumed = train(stream(), configs, checkpoint_dir=tmp_path)
    for a, b in zip(plain, resumed, strict=True):
        assert_same(a, b)
        assert a.metadata == b.metadata


def test_resume_with_members_at_different_chunks(tmp_path: Path) -> None:
    """A kill between two files leaves SAEs at different cursors; each goes on from its own."""
    configs = [config(seed=0), config(seed=1)]
    plain = train(stream(), configs)
    with pytest.raises(Killed):
        train(killed_after(stream(), 2), configs, checkpoint_dir=tmp_path, checkpoint_seconds=0)
    (tmp_path / "sae-0001.safetensors").unlink()
    for a, b in zip(plain, train(stream(), configs, checkpoint_dir=tmp_path), strict=True):
        assert_same(a, b)


def test_finished_run_is_not_redone(tmp_path: Path) -> None:
    (first,) = train(stream(), [config()], checkpoint_dir=tmp_path)

    def untouchable() -> Iterator[dict[str, Tensor]]:
        raise AssertionError("the stream was read again")
        yield {}

    (second,) = train(untouchable(), [config()], checkpoint_dir=tmp_path)
    assert_same(first, second)


def test_checkpoint_of_other_settings_is_refused(tmp_path: Path) -> None:
    train(stream(1), [config(n_tokens=500)], checkpoint_dir=tmp_path)
    with pytest.raises(SAEError, match=r"lr None there, 0\.01 here"):
        train(stream(1), [config(n_tokens=500, lr=0.01)], checkpoint_dir=tmp_path)
    with pytest.raises(SAEError, match="1 SAEs there, 2 here"):
        train(stream(1), [config(n_tokens=500)] * 2, checkpoint_dir=tmp_path)


def test_checkpoints_from_before_a_setting_existed_go_on(tmp_path: Path) -> None:
    """What an older version wrote about a setting was its default."""
    (plain,) = train(stream(), [config()])
    with pytest.raises(Killed):
        train(killed_after(stream(), 2), [config()], checkpoint_dir=tmp_path, checkpoint_seconds=0)
    file = tmp_path / "configs.json"
    (written,) = json.loads(file.read_text())
    for name in ("k_warmup_fraction", "b_dec_init", "scale_activations", "matryoshka_widths"):
        del written[name]
    file.write_text(json.dumps([written]))
    (resumed,) = train(stream(), [config()], checkpoint_dir=tmp_path)
    assert_same(plain, resumed)
    with pytest.raises(SAEError, match="b_dec_init 'mean' there, 'geometric_median' here"):
        train(stream(), [config(b_dec_init="geometric_median")], checkpoint_dir=tmp_path)


def test_settings_of_a_run_that_never_began_bind_nobody(tmp_path: Path) -> None:
    first = [{"resid": torch.full((300, D_IN), float("nan"))}]
    with pytest.raises(SAEError, match="not finite"):
        train(first, [config()], checkpoint_dir=tmp_path)
    (sae,) = train(stream(), [config(lr=0.01)], checkpoint_dir=tmp_path)
    assert sae.metadata["status"] == "done"


def test_checkpoint_of_another_stream_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Killed):
        train(killed_after(stream(), 2), [config()], checkpoint_dir=tmp_path, checkpoint_seconds=0)
    other = ({"resid": rows(500, number + 40)} for number in range(4))
    with pytest.raises(SAEError, match="another stream"):
        train(other, [config()], checkpoint_dir=tmp_path)


def test_damaged_checkpoint_is_named(tmp_path: Path) -> None:
    train(stream(1), [config(n_tokens=500)], checkpoint_dir=tmp_path)
    file = tmp_path / "sae-0000.safetensors"
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(SAEError, match=r"sae-0000\.safetensors: damaged"):
        train(stream(1), [config(n_tokens=500)], checkpoint_dir=tmp_path)


@pytest.mark.parametrize(
    "error",
    [
        OSError(28, "No space left on device"),
        SafetensorError("I/O error: No space left on device (os error 28)"),
    ],
)
def test_full_disk_keeps_the_previous_checkpoint(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = train(stream(), [config()])
    with pytest.raises(Killed):
        train(killed_after(stream(), 2), [config()], checkpoint_dir=tmp_path, checkpoint_seconds=0)

    def full(tensors: dict[str, Tensor], path: Path, **_: object) -> None:
        path.write_bytes(b"half")
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save_file", full)
        with pytest.raises(SAEError, match="No space left"):
            train(stream(), [config()], checkpoint_dir=tmp_path, checkpoint_seconds=0)
    assert not list(tmp_path.glob("*.tmp"))
    (resumed,) = train(stream(), [config()], checkpoint_dir=tmp_path)
    assert_same(plain[0], resumed)


def bad_row(value: float) -> Iterator[dict[str, Tensor]]:
    for number, chunk in enumerate(stream()):
        if number == 1:
            chunk["resid"][3, 2] = value
        yield chunk


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_bad_rows_are_named(value: float) -> None:
    with pytest.raises(SAEError, match="resid: row 503 of the stream is not finite"):
        train(bad_row(value), [config()])


def test_empty_stream_is_refused() -> None:
    with pytest.raises(SAEError, match="resid: the stream is empty"):
        train([], [config()])
    with pytest.raises(SAEError, match="resid: the stream is empty"):
        train([{"resid": torch.empty(0, D_IN)}], [config()])


def test_wrong_streams_are_refused() -> None:
    with pytest.raises(SAEError, match=r"rows of shape \(500, 16\) but the config says d_in 8"):
        train(stream(), [config(d_in=8)])
    with pytest.raises(SAEError, match=r"no hook point 'other', only \['resid'\]"):
        train(stream(), [config(hook_point="other")])
    with pytest.raises(SAEError, match="no configs"):
        train(stream(), [])
    with pytest.raises(SAEError, match="two widths"):
        train(stream(), [config(), config(d_in=8)])
    with pytest.raises(SAEError, match="rows of the first chunk are equal"):
        train([{"resid": torch.ones(300, D_IN)}], [config()])


def test_failure_leaves_no_threads() -> None:
    import threading

    before = threading.active_count()
    with pytest.raises(SAEError):
        train(bad_row(float("nan")), [config(), config(seed=1)])
    assert threading.active_count() == before
