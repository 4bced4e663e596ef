"""sae-lens's training step on our stream, and sae-lens folders of every kind in our hands."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from streams import Killed, killed_after, varying_rows
from torch import Tensor

from saes.config import SAEConfig
from saes.edges import activation_matrix
from saes.format import load, save
from saes.latent_set import LatentSet
from saes.metrics import evaluate
from saes.steps import new_step
from saes.training import train

sae_lens = pytest.importorskip("sae_lens")


def config(kind: str, **changes: object) -> SAEConfig:
    base = {
        "architecture": kind,
        "d_in": 16,
        "d_sae": 64,
        "n_tokens": 4000,
        "batch_size": 128,
        "lr": 2e-3,
        "sparsity_coefficient": 0.02 if kind == "jumprelu" else 0.5,
    }
    return SAEConfig(**(base | changes))


def stream(n_chunks: int = 4) -> Iterator[dict[str, Tensor]]:
    for number in range(n_chunks):
        yield {"resid": varying_rows(1000, number)}


KINDS = ["standard", "jumprelu", "gated"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_step_is_sae_lens_own(kind: str) -> None:
    """The same batches through a plain `SAETrainer` give the same weights."""
    from sae_lens.config import SAETrainerConfig
    from sae_lens.training.sae_trainer import SAETrainer

    settings = config(kind)
    ours = new_step(settings, torch.ones(16), generator=torch.Generator().manual_seed(3))
    start = {name: tensor.clone() for name, tensor in ours.state().items()}
    made = {
        "standard": lambda: sae_lens.StandardTrainingSAE(
            sae_lens.StandardTrainingSAEConfig(d_in=16, d_sae=64, l1_coefficient=0.5)
        ),
        "jumprelu": lambda: sae_lens.JumpReLUTrainingSAE(
            sae_lens.JumpReLUTrainingSAEConfig(d_in=16, d_sae=64, l0_coefficient=0.02)
        ),
        "gated": lambda: sae_lens.GatedTrainingSAE(
            sae_lens.GatedTrainingSAEConfig(d_in=16, d_sae=64, l1_coefficient=0.5)
        ),
    }[kind]()
    made.load_state_dict({name: start[f"weights.{name}"] for name in made.state_dict()})
    cfg = SAETrainerConfig(
        total_training_samples=4000, train_batch_size_samples=128, lr=2e-3, lr_end=2e-3
    )
    theirs = SAETrainer(cfg, made, data_provider=iter(()))
    for number in range(5):
        y = varying_rows(128, number)
        error = ours.step(y, 2e-3)
        output = theirs.step(y)
        theirs.n_training_steps += 1
        assert error == pytest.approx(float((output.sae_out.detach() - y).square().sum()), rel=1e-5)
    for name, tensor in made.state_dict().items():
        assert torch.equal(tensor, ours.state()[f"weights.{name}"]), name
        assert not torch.equal(tensor, start[f"weights.{name}"]), name


@pytest.mark.parametrize("kind", KINDS)
def test_trains_on_our_stream_and_every_stage_takes_it(kind: str, tmp_path: Path) -> None:
    trained = train(stream(), [config(kind), config(kind, seed=1)])
    sae = trained[0]
    assert not torch.equal(sae.W_dec, trained[1].W_dec)
    x = varying_rows(2000, 99)
    result = evaluate(sae, x.split(700))
    (untrained,) = train(stream(), [config(kind, lr=1e-12)])
    assert result.fvu < evaluate(untrained, [x]).fvu
    save(sae, tmp_path / "sae")
    theirs = sae_lens.SAE.load_from_disk(tmp_path / "sae")
    again = load(tmp_path / "sae")
    with torch.no_grad():
        torch.testing.assert_close(again.encode_dense(x), theirs.encode(x), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(again(x), theirs(x), rtol=1e-4, atol=1e-5)
    latents = LatentSet.from_acts(again.W_dec, again.encode(x))
    assert latents.n_tokens == 2000
    assert activation_matrix(again.encode(x), 64).shape[1] == 64
    assert result.l0 == pytest.approx(float((again.encode_dense(x) > 0).sum() / 2000))


@pytest.mark.parametrize("kind", KINDS)
def test_resume_is_bitwise(kind: str, tmp_path: Path) -> None:
    settings = [config(kind), config(kind, seed=1)]
    plain = train(stream(), settings)
    with pytest.raises(Killed):
        train(killed_after(stream(), 2), settings, checkpoint_dir=tmp_path, checkpoint_seconds=0)
    for a, b in zip(plain, train(stream(), settings, checkpoint_dir=tmp_path), strict=True):
        for name in ("W_enc", "W_dec", "b_enc", "b_dec", "threshold"):
            assert torch.equal(getattr(a, name), getattr(b, name)), name


def saved_by_sae_lens(kind: str, folder: Path) -> object:
    """A random SAE as sae-lens leaves it: the object that its own loader returns."""
    torch.manual_seed(0)
    shape = {"d_in": 16, "d_sae": 64}
    if kind in ("batchtopk", "matryoshka_batchtopk"):
        if kind == "batchtopk":
            sae = sae_lens.BatchTopKTrainingSAE(sae_lens.BatchTopKTrainingSAEConfig(**shape, k=4))
        else:
            options = sae_lens.MatryoshkaBatchTopKTrainingSAEConfig(
                **shape, k=4, matryoshka_widths=[16, 64]
            )
            sae = sae_lens.MatryoshkaBatchTopKTrainingSAE(options)
        sae.topk_threshold = torch.tensor(0.02, dtype=torch.double)
        sae.save_inference_model(folder)
    else:
        make = {
            "standard": lambda: sae_lens.StandardSAE(sae_lens.StandardSAEConfig(**shape)),
            "topk": lambda: sae_lens.TopKSAE(sae_lens.TopKSAEConfig(**shape, k=4)),
            "jumprelu": lambda: sae_lens.JumpReLUSAE(sae_lens.JumpReLUSAEConfig(**shape)),
            "gated": lambda: sae_lens.GatedSAE(sae_lens.GatedSAEConfig(**shape)),
        }[kind]
        sae = make()
        for parameter in sae.parameters():
            parameter.data = 0.3 * torch.randn(parameter.shape)
        sae.save_model(folder)
    return sae_lens.SAE.load_from_disk(folder)


@pytest.mark.parametrize(
    "kind", ["standard", "topk", "jumprelu", "gated", "batchtopk", "matryoshka_batchtopk"]
)
def test_loads_what_sae_lens_saved(kind: str, tmp_path: Path) -> None:
    theirs = saved_by_sae_lens(kind, tmp_path / "sae")
    ours = load(tmp_path / "sae")
    x = varying_rows(500, 5)
    with torch.no_grad():
        acts = theirs.encode(x)  # type: ignore[attr-defined]
        assert (acts > 0).any()
        torch.testing.assert_close(ours.encode_dense(x), acts, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(ours(x), theirs(x), rtol=1e-4, atol=1e-5)  # type: ignore[operator]


def test_a_gated_sae_in_training_there_loads_as_the_same_function(tmp_path: Path) -> None:
    torch.manual_seed(1)
    theirs = sae_lens.GatedTrainingSAE(sae_lens.GatedTrainingSAEConfig(d_in=16, d_sae=64))
    for parameter in theirs.parameters():
        parameter.data = 0.3 * torch.randn(parameter.shape)
    theirs.save_model(tmp_path / "sae")
    ours = load(tmp_path / "sae")
    x = varying_rows(500, 5)
    with torch.no_grad():
        acts = theirs.encode(x)
        gate_open = (x - theirs.b_dec) @ theirs.W_enc + theirs.b_gate > 0
        assert (gate_open & (acts == 0)).any(), "an open gate on a negative magnitude"
        closed = (ours.threshold > 0) & ~gate_open
        assert ((x - ours.b_dec) @ ours.W_enc + ours.b_enc)[closed].max() > 0, "the gate matters"
        torch.testing.assert_close(ours.encode_dense(x), acts, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(ours(x), theirs(x), rtol=1e-4, atol=1e-5)


def test_an_unfinished_sae_lens_run_loads_with_its_threshold(tmp_path: Path) -> None:
    torch.manual_seed(0)
    settings = sae_lens.BatchTopKTrainingSAEConfig(d_in=16, d_sae=64, k=4)
    sae = sae_lens.BatchTopKTrainingSAE(settings)
    sae.topk_threshold = torch.tensor(0.02, dtype=torch.double)
    sae.save_model(tmp_path / "training")
    sae.save_inference_model(tmp_path / "finished")
    x = varying_rows(300, 5)
    a, b = load(tmp_path / "training"), load(tmp_path / "finished")
    assert (b.encode(x).values > 0).any()
    torch.testing.assert_close(a.encode_dense(x), b.encode_dense(x), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(a(x), b(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["standard", "batchtopk", "matryoshka_batchtopk"])
def test_result_does_not_depend_on_companions_or_workers(kind: str) -> None:
    rule = {} if kind == "standard" else {"k": 3, "sparsity_coefficient": None}
    settings = [config(kind, seed=seed, n_tokens=2000, **rule) for seed in range(3)]
    (alone,) = train(stream(2), [settings[1]], workers=1)
    many = train(stream(2), settings, workers=2)
    for name in ("W_enc", "W_dec", "b_enc", "b_dec", "threshold"):
        assert torch.equal(getattr(alone, name), getattr(many[1], name)), name
        assert not torch.equal(many[0].W_dec, many[1].W_dec)


def test_published_saes_come_by_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """With sae-lens's download replaced; what it returns becomes ours, what it raises one line."""
    from saes.errors import SAEError
    from saes.pretrained import load_pretrained

    theirs = saved_by_sae_lens("jumprelu", tmp_path / "sae")
    asked = []

    def fake(release: str, sae_id: str) -> object:
        asked.append((release, sae_id))
        if release == "nowhere":
            raise ValueError("Release nowhere\nnot found")
        return theirs

    monkeypatch.setattr(sae_lens.SAE, "from_pretrained", fake)
    ours = load_pretrained("some-release", "blocks.0")
    assert asked == [("some-release", "blocks.0")]
    x = varying_rows(100, 5)
    with torch.no_grad():
        torch.testing.assert_close(ours(x), theirs(x), rtol=1e-4, atol=1e-5)  # type: ignore[operator]
    with pytest.raises(SAEError, match="nowhere/a: sae-lens could not load it") as caught:
        load_pretrained("nowhere", "a")
    assert "\n" not in str(caught.value)
