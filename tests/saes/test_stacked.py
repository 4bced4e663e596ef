"""SAEs that share their products: against autograd, against the step of one SAE, in whole runs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

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
from streams import Killed, killed_after, varying_rows
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from saes import lockstep
from saes.adam import Weights
from saes.config import SAEConfig
from saes.errors import SAEError
from saes.group import Group
from saes.sae import SAE
from saes.sparse import Slots
from saes.stacked import ARCHITECTURES, StackedStep, new_stack, shape
from saes.steps import new_step
from saes.topk import TopKStep
from saes.training import TrainingStatus, train

CPU = torch.device("cpu")
BATCH = 16
"""Small, like all runs here: two latents that tie but for rounding are chosen differently, and
every token is a chance of that."""
TOLERANCE = 2e-5


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    use(request.param, monkeypatch)
    return str(request.param)


def slots_of(slots: Slots, number: int, n_tokens: int, d_sae: int) -> Slots:
    """One SAE's slots, numbered as if it were alone."""
    own = slots.rows // n_tokens == number
    latents, rows = slots.latents[own] - number * d_sae, slots.rows[own] - number * n_tokens
    assert ((latents >= 0) & (latents < d_sae)).all(), "a token meets its own SAE's latents only"
    starts = torch.searchsorted(rows, torch.arange(n_tokens))
    return Slots(latents, slots.values[own], rows, starts)


def assert_gradients_match(steps: list[TopKStep], y: Tensor, k: int) -> None:
    """Selection against `topk`, gradients against autograd, SAE by SAE."""
    stack = new_stack(steps, device=CPU)
    got = stack.gradients(y, k)
    assert (got.slots.rows.diff() >= 0).all()
    for number, step in enumerate(steps):
        slots = slots_of(got.slots, number, y.shape[1], step.config.d_sae)
        pre = pre_activations(step, y[number])
        if step.config.architecture == "topk":
            best = pre.topk(k, dim=1).values.relu().flatten()
        else:
            best = pre.flatten().topk(min(k * len(pre), pre.numel())).values.relu()
        values = slots.values.sort().values
        torch.testing.assert_close(values, best.sort().values, rtol=1e-5, atol=1e-5)
        plain = plain_gradients(step, y[number], slots)
        assert_same_gradients(Weights(*(grad[number] for grad in got.weights)), plain)
        error = y[number] - step.weights.b_dec
        z = torch.zeros_like(pre).index_put_((slots.rows, slots.latents), slots.values, True)
        error = (z @ step.weights.W_dec - error).square().sum()
        torch.testing.assert_close(got.squared_errors[number], error, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", BACKENDS)
@given(
    seed=st.integers(0, 10_000),
    size=st.tuples(st.integers(1, 9), st.integers(1, 40), st.integers(1, 12), st.integers(1, 20)),
    n_saes=st.integers(1, 4),
    kind=st.sampled_from(ARCHITECTURES),
    integers=st.booleans(),
    n_dead=st.lists(st.integers(0, 40), min_size=4, max_size=4),
    k_aux=st.integers(1, 50),
)
@settings(max_examples=80, deadline=None, derandomize=True)
def test_gradients_equal_autograd(
    name: str,
    seed: int,
    size: tuple[int, int, int, int],
    n_saes: int,
    kind: str,
    integers: bool,
    n_dead: list[int],
    k_aux: int,
) -> None:
    d_in, d_sae, k, n = size
    k = min(k, d_sae)
    with pytest.MonkeyPatch.context() as patch:
        use(name, patch)
        options = {"architecture": kind, "auxk_alpha": 0.5, "k_aux": k_aux}
        steps = [
            make_step(seed + i, d_in, d_sae, k, integers=integers, **options) for i in range(n_saes)
        ]
        # AuxK picks by `topk`, whose choice among ties is its own: none dead where all tie.
        for step, dead in zip(steps, n_dead, strict=False):
            step.tokens_since_fired[: 0 if integers else dead] = 10**6
        batches = [make_batch(seed + i, n, d_in, integers=integers) for i in range(n_saes)]
        assert_gradients_match(steps, torch.stack(batches), k)


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_gradients_where_one_of_them_is_silent(backend: str, kind: str) -> None:
    options = {"architecture": kind, "k_aux": 8}
    steps = [make_step(seed, 4, 8, 3, **options) for seed in range(3)]
    steps[1].weights.b_enc.fill_(-100.0)
    y = torch.stack([make_batch(seed, 10, 4) for seed in range(3)])
    assert_gradients_match(steps, y, 3)
    silent = new_stack(steps, device=CPU).gradients(y, 3).weights
    assert not silent.W_enc_T[1].any()
    assert silent.W_enc_T[0].any()
    # Revival: once dead, its encoder must be told where to go; the others are not concerned.
    steps[1].tokens_since_fired.fill_(10**6)
    assert_gradients_match(steps, y, 3)
    revived = new_stack(steps, device=CPU).gradients(y, 3).weights
    assert (revived.W_enc_T[1].abs().sum(1) > 0).all()
    torch.testing.assert_close(revived.W_enc_T[0], silent.W_enc_T[0], rtol=0, atol=0)


def test_a_batch_in_which_nothing_fires_leaves_the_threshold() -> None:
    steps = [make_step(seed, 4, 8, 3, architecture="batchtopk") for seed in range(3)]
    stack, y = new_stack(steps, device=CPU), torch.randn(3, 10, 4)
    thresholds = stack._state["threshold"]
    steps[2].weights.b_enc.fill_(-100.0)
    stack.step(y, [0.0] * 3, 3)
    before = thresholds.clone()
    assert before.isnan().tolist() == [False, False, True]
    steps[1].weights.b_enc.fill_(-100.0)
    stack.step(y * 2, [0.0] * 3, 3)
    assert thresholds[1] == before[1]
    assert thresholds[0] != before[0]


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_bfloat16_gradients_equal_autograd_on_their_support(backend: str, kind: str) -> None:
    options = {"architecture": kind, "encoder_dtype": "bfloat16"}
    steps = [make_step(seed, 6, 30, 4, **options) for seed in range(3)]
    y = torch.stack([make_batch(seed, 16, 6) for seed in range(3)])
    got = new_stack(steps, device=CPU).gradients(y, 4)
    for number, step in enumerate(steps):
        slots = slots_of(got.slots, number, 16, 30)
        plain = plain_gradients(step, y[number], slots)
        assert_same_gradients(Weights(*(grad[number] for grad in got.weights)), plain)


class CountOperations(TorchDispatchMode):
    """Operations that torch carries out, in place of launches on a GPU."""

    n = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> object:
        self.n += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_operations_of_a_step_do_not_grow_with_the_stack(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    use("torch", monkeypatch)
    counts = []
    for n_saes in (2, 20):
        steps = [
            make_step(seed, 4, 8, 3, architecture=kind, max_grad_norm=1.0) for seed in range(n_saes)
        ]
        for step in steps:
            step.tokens_since_fired[:3] = 10**6
        stack, y = new_stack(steps, device=CPU), torch.randn(n_saes, 10, 4)
        with CountOperations() as operations:
            stack.step(y, [0.01] * n_saes, 3)
        counts.append(operations.n)
    assert counts[0] == counts[1] > 0


def trained_config(kind: str, **changes: object) -> SAEConfig:
    base = {
        "architecture": kind,
        "d_in": 16,
        "d_sae": 32,
        "k": 2,
        "k_aux": 4,
        "n_tokens": 80 * BATCH,
        "batch_size": BATCH,
        "lr": 3e-3,
        "k_warmup_fraction": 0.3,
        "k_initial": 6,
        "dead_after_tokens": 4 * BATCH,
        "auxk_alpha": 0.25,
        "max_grad_norm": 40.0 if kind == "matryoshka_batchtopk" else 7.0,
    }
    return SAEConfig(**(base | changes))


def fresh(config: SAEConfig, seed: int) -> TopKStep:
    step = new_step(config, torch.zeros(16), generator=torch.Generator().manual_seed(seed))
    assert isinstance(step, TopKStep)
    return step


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_many_steps_equal_those_of_one_sae_at_a_time(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With k falling, latents dying and coming back, clipped gradients, and unlike rates."""
    use("torch", monkeypatch)
    config = trained_config(kind)
    alone = [fresh(config, seed) for seed in range(3)]
    together = [fresh(config, seed) for seed in range(3)]
    stack = new_stack(together, device=CPU)
    bound = config.max_grad_norm or 0.0
    n_dead, clipped, ks = 0, 0, set()
    for number in range(80):
        y = torch.stack([varying_rows(BATCH, 10 * number + seed) for seed in range(3)])
        k = config.k_at(BATCH * number)
        lrs = [config.lr_at(BATCH * number) * factor for factor in (1.0, 1.0, 0.5)]
        norms = [sum(g.square().sum() for g in step.gradients(y[i], k).weights) ** 0.5
                 for i, step in enumerate(alone)]  # fmt: skip
        clipped += sum(float(norm) > bound for norm in norms)
        n_dead += int(stack.dead.sum())
        ks.add(k)
        errors = stack.step(y, lrs, k)
        for i, step in enumerate(alone):
            error = step.step(y[i], lrs[i], k)
            assert float(errors[i]) == pytest.approx(error, rel=1e-4)
    assert len(ks) > 3
    assert n_dead > 100
    assert 0 < clipped < 240
    for one, other in zip(alone, together, strict=True):
        assert one.n_steps == other.n_steps == 80
        for name, tensor in one.state().items():
            torch.testing.assert_close(other.state()[name], tensor, rtol=1e-5, atol=1e-5)
        assert not torch.equal(one.weights.W_dec, fresh(config, 0).weights.W_dec)


def stream(n_chunks: int = 4, n_rows: int = 170) -> Iterator[dict[str, Tensor]]:
    for number in range(n_chunks):
        x = varying_rows(n_rows, number)
        yield {"a": x, "b": x.flip(1) * 3}


def configs(kind: str = "topk") -> list[SAEConfig]:
    """Two hook points, three seeds, a second size, a branch of a longer run, another budget."""
    base = {"n_tokens": 600, "dead_after_tokens": 100, "lr_warmup_fraction": 0.1}
    found = [
        trained_config(kind, **base, hook_point=point, seed=seed)
        for point in ("b", "a")
        for seed in range(3)
    ]
    short = {"n_tokens": 300, "lr_warmup_fraction": 0.2, "k_warmup_fraction": 0.6}
    return [
        *found,
        trained_config(kind, **base, hook_point="a", d_sae=24),
        trained_config(kind, **(base | short), hook_point="a"),
        trained_config(kind, **(base | {"n_tokens": 330, "lr": 1e-3}), hook_point="b", seed=5),
    ]


NAMES = ("W_enc", "W_dec", "b_enc", "b_dec")


def assert_close(a: SAE, b: SAE, tolerance: float) -> None:
    for name in NAMES:
        ours, theirs = getattr(a, name), getattr(b, name)
        torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)
    assert (a.threshold is None) == (b.threshold is None)
    if a.threshold is not None:
        torch.testing.assert_close(a.threshold, b.threshold, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_a_stacked_run_gives_the_saes_of_the_loop(kind: str) -> None:
    seen: list[TrainingStatus] = []
    loop = train(stream(), configs(kind))
    stacked = train(stream(), configs(kind), stack=True, heartbeat=seen.append)
    for one, other in zip(loop, stacked, strict=True):
        assert_close(one, other, TOLERANCE)
        assert one.metadata["computed_by"] == ["cpu"]
        assert other.metadata["computed_by"] == ["cpu, stacked"]
        for key in ("status", "tokens_trained", "n_steps", "running_dead_fraction"):
            assert one.metadata[key] == other.metadata[key], key
        assert other.metadata["running_fvu"] == pytest.approx(one.metadata["running_fvu"], rel=1e-3)
    assert seen[-1].saes[-2].tokens_done == 300
    # Control: seeds, hook points and rates really differ.
    assert (stacked[0].W_dec - stacked[1].W_dec).abs().max() > 0.1
    assert (stacked[0].W_dec - stacked[3].W_dec).abs().max() > 0.01


@pytest.mark.filterwarnings("ignore:the stream ended")
def test_rows_that_wait_and_a_stream_that_ends_early() -> None:
    """Chunks of no whole number of batches, an empty one, and less than a batch at the end."""
    pieces = [
        {point: rows[start : start + 63] for point, rows in chunk.items()}
        for chunk in stream(3)
        for start in (0, 63, 126)
    ]
    pieces.insert(2, {"a": torch.empty(0, 16), "b": varying_rows(10, 9)})
    loop = train(pieces, configs())
    stacked = train(pieces, configs(), stack=True)
    for one, other in zip(loop, stacked, strict=True):
        assert_close(one, other, TOLERANCE)
        assert one.metadata["tokens_trained"] == other.metadata["tokens_trained"]
    assert [sae.metadata["status"] for sae in stacked].count("stream ended") == 7


@pytest.mark.parametrize("kind", ARCHITECTURES)
@pytest.mark.parametrize("n_chunks", [1, 3])
def test_resume_is_bitwise(kind: str, n_chunks: int, tmp_path: Path) -> None:
    plain = train(stream(), configs(kind), stack=True)
    options: dict[str, Any] = {"checkpoint_dir": tmp_path, "stack": True}
    with pytest.raises(Killed):
        train(killed_after(stream(), n_chunks), configs(kind), checkpoint_seconds=0, **options)
    for one, other in zip(plain, train(stream(), configs(kind), **options), strict=True):
        assert_close(one, other, 0)
        assert one.metadata == other.metadata


@pytest.mark.parametrize("first", [False, True])
def test_checkpoints_of_one_path_go_on_in_the_other(first: bool, tmp_path: Path) -> None:
    plain = train(stream(), configs())
    with pytest.raises(Killed):
        train(killed_after(stream(), 1), configs(), checkpoint_dir=tmp_path, stack=first,
              checkpoint_seconds=0)  # fmt: skip
    resumed = train(stream(), configs(), checkpoint_dir=tmp_path, stack=not first)
    for one, other in zip(plain, resumed, strict=True):
        assert_close(one, other, TOLERANCE)
    # Also of the branch, whose first steps are those of the longer run.
    for number in (0, 7):
        assert resumed[number].metadata["computed_by"] == ["cpu", "cpu, stacked"]


def test_a_kill_between_two_files_lets_one_catch_up(tmp_path: Path) -> None:
    options: dict[str, Any] = {"checkpoint_dir": tmp_path, "stack": True}
    plain = train(stream(), configs(), stack=True)
    with pytest.raises(Killed):
        train(killed_after(stream(), 2), configs(), checkpoint_seconds=0, **options)
    (tmp_path / "sae-0001.safetensors").unlink()
    for one, other in zip(plain, train(stream(), configs(), **options), strict=True):
        assert_close(one, other, TOLERANCE)


def stacks_of(group: Group) -> list[StackedStep]:
    return list(group._lockstep._stacks.values())


def advanced(settings: list[SAEConfig], n_chunks: int = 1) -> Group:
    with Group(settings, stack=True) as group:
        for number, chunk in enumerate(stream(n_chunks)):
            group.advance(chunk, number)
    return group


def test_memory_bounds_a_stack(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = [trained_config("topk", seed=seed, hook_point="a") for seed in range(7)]
    whole = advanced(settings)
    assert [len(stack.steps) for stack in stacks_of(whole)] == [7]
    room = 3 * lockstep.scratch_bytes(settings[0])
    monkeypatch.setattr(lockstep, "CPU_SCRATCH_BYTES", room)
    parts = advanced(settings)
    assert sorted(len(stack.steps) for stack in stacks_of(parts)) == [2, 2, 3]
    monkeypatch.setattr(lockstep, "CPU_SCRATCH_BYTES", 1)
    assert [len(stack.steps) for stack in stacks_of(advanced(settings[:2]))] == [1, 1]
    for one, other in zip(whole.members, parts.members, strict=True):
        assert_close(one.export(), other.export(), TOLERANCE)


def test_who_leaves_a_stack_does_not_keep_its_memory() -> None:
    options = {"k_warmup_fraction": 0.0, "dead_after_tokens": 100, "hook_point": "a"}
    # The first ends with its second chunk, of as many whole batches as the others train on then.
    budgets = (160 + 176, 3000, 2900)
    settings = [trained_config("topk", **options, n_tokens=n, seed=n) for n in budgets]
    [stack] = stacks_of(advanced(settings, n_chunks=2))
    assert len(stack.steps) == 3
    group = advanced(settings, n_chunks=3)
    assert group.members[0].finished
    [stack] = stacks_of(group)
    size = stack.weights.W_dec[0].numel() * 4
    assert [step.weights.W_dec.untyped_storage().nbytes() for step in stack.steps] == [2 * size] * 2
    left = group.members[0].step
    assert isinstance(left, TopKStep)
    assert left.weights.W_dec.untyped_storage().nbytes() == size


MAY_DIFFER = {
    "k", "n_tokens", "hook_point", "seed", "sparsity_coefficient", "k_warmup_fraction", "k_initial",
    "b_dec_init", "encoder_init_scale", "scale_activations", "lr", "lr_warmup_fraction",
    "lr_decay_fraction",
}  # fmt: skip
"""Fields that a stack reads of every SAE, or that its steps do not depend on."""
MUST_AGREE: dict[str, object] = {
    "d_in": 8, "d_sae": 48, "architecture": "batchtopk", "batch_size": 32, "max_grad_norm": None,
    "auxk_alpha": 0.0, "k_aux": 3, "dead_after_tokens": 7, "encoder_dtype": "bfloat16",
    "matryoshka_widths": (4,),
}  # fmt: skip


def test_only_saes_that_agree_are_stacked() -> None:
    """Every field of a config is on one list: a new one has to be thought of here."""
    assert set(SAEConfig.model_fields) == MAY_DIFFER | MUST_AGREE.keys()
    for name, value in MUST_AGREE.items():
        kind = "matryoshka_batchtopk" if name == "matryoshka_widths" else "topk"
        assert shape(trained_config(kind)) != shape(trained_config(kind, **{name: value})), name
    changes = {"k": 4, "seed": 3, "hook_point": "b", "lr": 1.0, "n_tokens": 10_000}
    assert shape(trained_config("topk")) == shape(trained_config("topk", **changes))


def test_devices_that_cannot_train_are_refused() -> None:
    rows = [{"a": torch.empty(3, 16, device="meta")}]
    with pytest.raises(SAEError, match="device 'mps' is not supported; use cpu or cuda"):
        train(stream(), configs()[:1], device="mps")
    with pytest.raises(SAEError, match="unknown device 'gpu'"):
        train(stream(), configs()[:1], device="gpu")
    with pytest.raises(SAEError, match="device 'meta' is not supported"):
        train(rows, [trained_config("topk", hook_point="a")])
    if not torch.cuda.is_available():
        with pytest.raises(SAEError, match="'cuda' is not available here"):
            train(stream(), configs()[:1], device="cuda")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_on_a_gpu_a_stacked_run_gives_the_saes_of_a_cpu(kind: str, tmp_path: Path) -> None:
    loop = train(stream(), configs(kind))
    options: dict[str, Any] = {"device": "cuda", "checkpoint_dir": tmp_path}
    plain = train(stream(), configs(kind), device="cuda")
    with pytest.raises(Killed):
        train(killed_after(stream(), 3), configs(kind), checkpoint_seconds=0, **options)
    resumed = train(stream(), configs(kind), **options)
    for one, other, again in zip(loop, plain, resumed, strict=True):
        assert other.W_enc.device.type == again.W_enc.device.type == "cuda"
        assert other.metadata["computed_by"] == ["cuda, stacked"]
        assert_close(one, other.to("cpu"), 1e-3)
        assert_close(other, again, 0)
