"""Loading: what a model says about itself, and every way a checkpoint can be refused."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from interp import hub, ladder, models
from interp.errors import UserError
from interp.models import list_models, load


@pytest.fixture
def copy(tiny_dir: Path, tmp_path: Path) -> Path:
    """A copy of the tiny checkpoint to damage."""
    return Path(shutil.copytree(tiny_dir, tmp_path / "copy"))


def refused(name: str | Path) -> str:
    with pytest.raises(UserError) as error:
        load(str(name))
    message = str(error.value)
    assert "\n" not in message
    assert len(message) < 400
    return message


def test_a_directory_loads_with_its_facts(tiny_dir: Path) -> None:
    model = load(str(tiny_dir))
    assert (model.d_model, model.n_layers, model.n_ctx, model.d_vocab) == (32, 3, 32, 300)
    assert model.family == "gpt2"
    assert model.train_tokens is None
    assert model.bos_id == 0
    # GPT-2: tied embeddings, positions, per block 12 d^2 + 13 d, final norm 2 d.
    assert model.n_params == 300 * 32 + 32 * 32 + 3 * (12 * 32**2 + 13 * 32) + 2 * 32
    weights = (tiny_dir / "model.safetensors").read_bytes()
    assert model.weights_sha256 == hashlib.sha256(weights).hexdigest()
    assert not model.hf.training
    assert not any(p.requires_grad for p in model.hf.parameters())
    assert model.unembedding.shape == (300, 32)


def test_half_precision_files_load_as_float32(tiny_model: Any, copy: Path) -> None:
    tiny_model.hf.__class__.from_pretrained(copy, dtype=torch.float16).save_pretrained(copy)
    model = load(str(copy))
    assert {p.dtype for p in model.hf.parameters()} == {torch.float32}
    for mine, exact in zip(model.hf.parameters(), tiny_model.hf.parameters(), strict=True):
        torch.testing.assert_close(mine, exact, atol=2e-3, rtol=1e-3)
    assert load(str(copy), dtype=torch.bfloat16).dtype == torch.bfloat16


def test_train_tokens_come_from_the_config(copy: Path) -> None:
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {"train_tokens": 123}))
    assert load(str(copy)).train_tokens == 123


def test_ladder_names_load_with_the_shared_tokenizer(
    copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared = tmp_path / "tokenizer"
    shared.mkdir()
    for file in copy.glob("*token*"):
        shutil.move(file, shared / file.name)
    monkeypatch.setattr(ladder, "names", lambda: ["ladder/d032"])
    monkeypatch.setattr(ladder, "checkpoint_path", lambda name: copy)
    monkeypatch.setattr(ladder, "tokenizer_path", lambda: shared)
    model = load("ladder/d032")
    assert model.family == "ladder"
    assert len(model.tokenizer) == 300
    assert "ladder/d032" in refused("ladder/d999")
    assert "ladder/d064-seed-1" in refused("ladder/d064-seed1")
    info = list_models()[0]
    assert (info.name, info.family, info.d_model) == ("ladder/d032", "ladder", 32)
    assert info.n_params == model.n_params
    assert info.size_bytes == (copy / "model.safetensors").stat().st_size


def test_a_truncated_checkpoint_is_refused(copy: Path) -> None:
    file = copy / "model.safetensors"
    whole = file.read_bytes()
    for size in (len(whole) - 1, len(whole) // 2, 5, 0):
        file.write_bytes(whole[:size])
        assert "model.safetensors is truncated or damaged" in refused(copy)


def test_a_checkpoint_that_lacks_tensors_is_refused(copy: Path) -> None:
    """transformers would fill them with random weights and say so in a log line."""
    from safetensors.torch import load_file, save_file

    tensors = load_file(copy / "model.safetensors")
    del tensors["transformer.h.1.mlp.c_fc.weight"]
    save_file(tensors, copy / "model.safetensors", metadata={"format": "pt"})
    assert "h.1.mlp.c_fc.weight" in refused(copy)


def test_a_checkpoint_of_other_shapes_is_refused(copy: Path) -> None:
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {"n_embd": 64}))
    assert "copy the checkpoint again" in refused(copy)


def test_a_checkpoint_of_more_layers_than_its_config_is_refused(copy: Path) -> None:
    """transformers would leave the last layer out and say so in a log line."""
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {"n_layer": 2}))
    assert "have no place" in refused(copy)
    assert "(transformer.h.2.attn.c_attn.weight, ...)" in refused(copy)


def test_a_weight_that_the_architecture_ignores_is_refused(copy: Path) -> None:
    """What old checkpoints hold beside weights, and a trainer's head, change nothing."""
    from safetensors.torch import load_file, save_file

    file = copy / "model.safetensors"
    tensors = load_file(file)
    for name in ("h.0.attn.bias", "h.0.attn.masked_bias", "h.0.attn.rotary_emb.inv_freq"):
        tensors[f"transformer.{name}"] = torch.ones(1)
    save_file(tensors | {"v_head.weight": torch.ones(1)}, file, metadata={"format": "pt"})
    assert load(str(copy)).n_layers == 3
    extra = {"transformer.h.1.attn.c_attn.lora_A": torch.ones(1)}
    save_file(tensors | extra, file, metadata={"format": "pt"})
    assert "1 tensors of the checkpoint" in refused(copy)


def test_a_quantized_checkpoint_is_refused(copy: Path) -> None:
    config = json.loads((copy / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "gptq", "bits": 4}
    (copy / "config.json").write_text(json.dumps(config))
    assert "the checkpoint is quantized" in refused(copy)


@pytest.mark.parametrize(
    "wrong", [{"n_layer": "three"}, {"n_layer": 0}, {"n_head": 0}, {"activation_function": "none"}]
)
def test_a_config_that_makes_no_model_is_refused(copy: Path, wrong: dict[str, Any]) -> None:
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | wrong))
    assert refused(copy)


def test_a_directory_without_tokenizer_is_refused(copy: Path) -> None:
    for file in copy.glob("*token*"):
        file.unlink()
    assert "no tokenizer files" in refused(copy)


def test_a_broken_tokenizer_is_refused(copy: Path) -> None:
    (copy / "tokenizer.json").write_text("{")
    assert "tokenizer" in refused(copy)


def test_a_directory_without_weights_or_config_is_refused(copy: Path) -> None:
    (copy / "model.safetensors").unlink()
    assert "model.safetensors is missing; copy" in refused(copy)
    (copy / "pytorch_model.bin").write_bytes(b"")
    assert "pickled weights are not read" in refused(copy)
    (copy / "config.json").write_text("{")
    assert "not valid JSON" in refused(copy)
    (copy / "config.json").unlink()
    assert "no config.json" in refused(copy)


def test_a_missing_shard_is_named(copy: Path) -> None:
    index = {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
    shutil.copy(copy / "model.safetensors", copy / "model-1.safetensors")
    (copy / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "model-2.safetensors is missing" in refused(copy)
    (copy / "model.safetensors.index.json").write_text("[]")
    assert "damaged" in refused(copy)


def test_an_unsupported_architecture_is_refused(copy: Path) -> None:
    (copy / "config.json").write_text(json.dumps({"model_type": "t5"}))
    assert "'t5' is not supported; supported: gpt2" in refused(copy)


def test_paths_that_are_no_directories_are_told_from_names(tmp_path: Path) -> None:
    assert "no such directory" in refused(tmp_path / "absent")
    file = tmp_path / "file"
    file.write_text("x")
    assert "is a file" in refused(file)


def test_names_that_stand_for_no_model(monkeypatch: pytest.MonkeyPatch, tiny_dir: Path) -> None:
    assert "name one of them: facebook/opt-125m, " in refused("opt")
    assert "name one of them: ladder/d" in refused("ladder")
    monkeypatch.chdir(tiny_dir)
    assert "no such directory" in refused("")  # not the current one


def test_an_unknown_name_asks_the_hub_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def require(name: str, kind: str, *, otherwise: str, revision: str | None) -> None:
        asked.append(name)
        raise UserError(f"no hub; {otherwise}")

    monkeypatch.setattr(hub, "require", require)
    assert "interp models" in refused("gpt5")
    assert asked == ["gpt5"]


def test_a_name_in_the_hub_cache_loads_without_asking(
    tiny_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub, "cached_file", lambda *a, **k: str(tiny_dir / "config.json"))
    monkeypatch.setattr(hub, "require", lambda *a, **k: pytest.fail("asked the hub"))
    assert load("someone/tiny").d_model == 32


@pytest.mark.parametrize("missing", ["model.safetensors", "tokenizer.json"])
def test_an_interrupted_download_goes_on(
    copy: Path, tiny_dir: Path, monkeypatch: pytest.MonkeyPatch, missing: str
) -> None:
    import huggingface_hub

    (copy / missing).unlink()

    def snapshot_download(name: str, **_: object) -> str:
        shutil.copy(tiny_dir / missing, copy / missing)
        return str(copy)

    monkeypatch.setattr(hub, "cached_file", lambda *a, **k: str(copy / "config.json"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    message = refused("someone/tiny")
    assert "HF_HUB_OFFLINE" in message
    assert "the hub's cache holds a part of it" in message
    monkeypatch.setattr(hub, "require", lambda *a, **k: None)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    assert load("someone/tiny").d_model == 32


def test_a_hub_repository_without_safetensors_is_refused(
    copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub

    (copy / "model.safetensors").unlink()
    monkeypatch.setattr(hub, "cached_file", lambda *a, **k: None)
    monkeypatch.setattr(hub, "require", lambda *a, **k: None)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *a, **k: str(copy))
    assert "has no safetensors" in refused("facebook/opt-125m")


def test_a_cached_model_that_cannot_be_read_is_not_listed(
    copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(models, "_cached_on_hub", lambda: iter([("someone/tiny", copy)]))
    assert list_models()[-1].name == "someone/tiny"
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {"n_layer": "three"}))
    assert "someone/tiny" not in [info.name for info in list_models()]


REVISION = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def hub_cache(tiny_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A hub cache, as a download leaves it, with one revision of someone/tiny, tagged step3."""
    import huggingface_hub.constants

    repository = tmp_path / "hub" / "models--someone--tiny"
    shutil.copytree(tiny_dir, repository / "snapshots" / REVISION)
    (repository / "refs").mkdir()
    (repository / "refs" / "step3").write_text(REVISION)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return repository


@pytest.mark.parametrize("revision", ["step3", REVISION])
def test_a_pinned_revision_loads_from_the_cache(hub_cache: Path, revision: str) -> None:
    model = load(f"someone/tiny@{revision}")
    assert model.name == f"someone/tiny@{revision}"
    assert model.d_model == 32


@pytest.mark.parametrize("name", ["someone/tiny", "someone/tiny@main", "someone/tiny@step4"])
def test_another_revision_is_not_taken_instead(hub_cache: Path, name: str) -> None:
    assert "HF_HUB_OFFLINE forbids" in refused(name)


def test_a_download_asks_for_the_revision(tiny_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    asked = []

    def require(name: str, kind: str, *, revision: str | None, **_: object) -> None:
        asked.append((name, revision))

    def snapshot_download(name: str, *, revision: str | None, allow_patterns: list[str]) -> str:
        asked.append((name, revision))
        assert not any("bin" in pattern or "pt" in pattern for pattern in allow_patterns)
        return str(tiny_dir)

    monkeypatch.setattr(hub, "require", require)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    load("someone/else@step7")
    load("someone/else")
    assert asked == [("someone/else", "step7")] * 2 + [("someone/else", None)] * 2


def test_an_empty_revision_is_no_name() -> None:
    assert "no such directory" in refused("gpt2@")


def test_a_device_map_places_the_model(tiny_dir: Path, tiny_tokens: Any) -> None:
    from interp.loss import loss

    spread = load(str(tiny_dir), device_map={"": "cpu"})
    assert spread.device == torch.device("cpu")
    plain = load(str(tiny_dir))
    assert loss(spread, tiny_tokens).nats_per_token == loss(plain, tiny_tokens).nats_per_token
    with pytest.raises(UserError, match="contradict"):
        load(str(tiny_dir), device="cpu:0", device_map="auto")
    with pytest.raises(UserError, match="leaves weights on no device"):
        load(str(tiny_dir), device_map={"": "meta"})


def test_devices_that_are_not_here_are_refused(
    tiny_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for unknown in ("abacus", "meta"):
        with pytest.raises(UserError, match="unknown device"):
            load(str(tiny_dir), device=unknown)
    if not torch.cuda.is_available():
        with pytest.raises(UserError, match="not available here; use cpu"):
            load(str(tiny_dir), device="cuda")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(UserError, match="'cuda:2' is not available here"):
        load(str(tiny_dir), device="cuda:2")


def test_loading_prints_nothing(tiny_dir: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for name in (str(tiny_dir), *ladder.names()[:1]):
        load(name)
        assert capfd.readouterr() == ("", "")


def test_a_model_in_training_mode_is_wrapped_in_eval_mode(
    save_tiny: Callable[..., Path], tmp_path: Path, tiny_model: Any
) -> None:
    from transformers import GPT2LMHeadModel

    hf = GPT2LMHeadModel.from_pretrained(save_tiny(tmp_path / "other", d_model=16)).train()
    model = models.wrap(
        hf,
        tiny_model.tokenizer,
        name="x",
        family="x",
        train_tokens=None,
        weights_sha256="",
    )
    assert not model.hf.training
    assert model.d_model == 16
