"""One matrix by itself: the same numbers as the built model's, and a line for what is not there."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from interp.errors import UserError
from interp.head_matrix import Which, matrices_of
from interp.models import load

BOTH: tuple[Which, ...] = ("embedding", "unembedding")


def refused(name: str | Path, which: tuple[Which, ...] = ("unembedding",)) -> str:
    with pytest.raises(UserError) as error:
        matrices_of(str(name), which)
    assert "\n" not in str(error.value)
    return str(error.value)


def saved(folder: Path, architecture: str, **settings: Any) -> Any:
    """A tiny random model of an architecture, written by transformers."""
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(
        architecture,
        vocab_size=50,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        **settings,
    )
    model = AutoModelForCausalLM.from_config(config)
    model.save_pretrained(folder)
    return model


@pytest.mark.parametrize(
    ("architecture", "settings", "tied"),
    [
        ("gpt2", {}, True),
        ("gpt_neox", {"intermediate_size": 32}, False),
        ("opt", {"ffn_dim": 32, "word_embed_proj_dim": 8}, True),
        ("qwen2", {"intermediate_size": 32, "num_key_value_heads": 2}, False),
        ("llama", {"intermediate_size": 32, "tie_word_embeddings": True}, True),
    ],
)
def test_the_built_models_rows(
    tmp_path: Path, architecture: str, settings: dict[str, Any], tied: bool
) -> None:
    model = saved(tmp_path, architecture, **settings)
    embedding, head = matrices_of(str(tmp_path), BOTH)
    assert torch.equal(embedding.rows, model.get_input_embeddings().weight)
    assert torch.equal(head.rows, model.get_output_embeddings().weight)
    assert (embedding.matrix, head.matrix) == BOTH
    assert head.tied is tied
    assert torch.equal(embedding.rows, head.rows) is tied


def test_a_ladder_model() -> None:
    [head] = matrices_of("ladder/d032", ("unembedding",))
    assert torch.equal(head.rows, load("ladder/d032").unembedding)


def test_only_the_shard_with_the_matrix_is_needed(tmp_path: Path) -> None:
    model = saved(tmp_path, "gpt_neox", intermediate_size=32)
    tensors = load_file(tmp_path / "model.safetensors")
    (tmp_path / "model.safetensors").unlink()
    save_file({"embed_out.weight": tensors["embed_out.weight"]}, tmp_path / "two.safetensors")
    files = dict.fromkeys(tensors, "one.safetensors") | {"embed_out.weight": "two.safetensors"}
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": files}))
    [head] = matrices_of(str(tmp_path), ("unembedding",))
    assert torch.equal(head.rows, model.get_output_embeddings().weight)
    assert "one.safetensors is missing" in refused(tmp_path, ("embedding",))
    index.write_text("{}")
    assert "index.json is damaged" in refused(tmp_path)


def test_a_checkpoint_without_a_head(tmp_path: Path) -> None:
    from transformers import LlamaConfig, LlamaModel

    config = LlamaConfig(
        vocab_size=50, hidden_size=16, intermediate_size=32, num_hidden_layers=1,
        num_attention_heads=2,
    )  # fmt: skip
    LlamaModel(config).save_pretrained(tmp_path)
    assert "has no head" in refused(tmp_path)
    stated = json.loads((tmp_path / "config.json").read_text())
    # Where the config is silent its architecture's rule holds: a llama's head is its own.
    stated.pop("tie_word_embeddings", None)
    (tmp_path / "config.json").write_text(json.dumps(stated))
    assert "has no head" in refused(tmp_path)


def test_decoders_of_a_folder_of_saes(tmp_path: Path) -> None:
    from saes.format import save
    from saes.sae import SAE

    decoders = []
    for number in range(2):
        W = torch.randn(12, 4, generator=torch.Generator().manual_seed(number))
        save(
            SAE(W.T.clone(), W, torch.zeros(12), torch.zeros(4), k=2), tmp_path / "a" / str(number)
        )
        decoders.append(W)
    found = matrices_of(str(tmp_path), ("unembedding",))
    assert [m.name for m in found] == [str(tmp_path / "a" / n) for n in ("0", "1")]
    for matrix, expected in zip(found, decoders, strict=True):
        assert torch.equal(matrix.rows, expected)
        assert (matrix.matrix, matrix.tied) == ("decoder", None)


def test_what_is_not_there_is_said(tmp_path: Path, tiny_dir: Path) -> None:
    assert "no ladder model" in refused("ladder/d999")
    assert "no such directory" in refused("./nowhere/here")
    assert "no config.json" in refused(tmp_path)
    file = tmp_path / "notes.txt"
    file.write_text("x")
    assert "is a file" in refused(file)
    folder = tmp_path / "model"
    shutil.copytree(tiny_dir, folder)
    weights = folder / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    assert "truncated or damaged" in refused(folder)
    weights.unlink()
    assert "model.safetensors is missing" in refused(folder)
    (folder / "pytorch_model.bin").write_bytes(b"")
    assert "pickled weights are not read" in refused(folder)
    save_file({"transformer.wte.weight": torch.zeros(4, 2, dtype=torch.int8)}, weights)
    assert "no matrix of vectors" in refused(folder)
    (folder / "config.json").write_text("{")
    assert "not valid JSON" in refused(folder)


def test_an_unknown_hub_model_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert "HF_HUB_OFFLINE forbids" in refused("nobody/nothing-here")


def test_only_the_needed_shard_of_a_hub_model_is_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The hub's client is replaced by one that hands out files of a folder and remembers them."""
    import huggingface_hub

    from interp import hub

    saved(tmp_path, "gpt_neox", intermediate_size=32)
    tensors = load_file(tmp_path / "model.safetensors")
    (tmp_path / "model.safetensors").unlink()
    save_file({"embed_out.weight": tensors["embed_out.weight"]}, tmp_path / "two.safetensors")
    files = dict.fromkeys(tensors, "one.safetensors") | {"embed_out.weight": "two.safetensors"}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": files}))
    fetched = []

    def download(repository: str, file: str, *, revision: str | None) -> str:
        assert (repository, revision) == ("owner/name", "step3")
        fetched.append(file)
        if not (tmp_path / file).is_file():
            raise FileNotFoundError(file)
        return str(tmp_path / file)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    monkeypatch.setattr(hub, "require", lambda *args, **kwargs: None)
    monkeypatch.setattr(hub, "cached_file", lambda *args, **kwargs: None)
    [head] = matrices_of("owner/name@step3", ("unembedding",))
    assert torch.equal(head.rows, tensors["embed_out.weight"])
    assert fetched == ["config.json", "model.safetensors.index.json", "two.safetensors"]


def test_gguf(tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf")
    rows = torch.randn(64, 32, generator=torch.Generator().manual_seed(0)).numpy()
    head = -rows
    path = tmp_path / "model.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    quantized = gguf.quants.quantize(rows, gguf.GGMLQuantizationType.Q8_0)
    writer.add_tensor("token_embd.weight", quantized, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
    writer.add_tensor("output.weight", head)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    found, output = matrices_of(str(path), BOTH)
    assert found.rows.shape == (64, 32)
    assert torch.allclose(found.rows, torch.from_numpy(rows), atol=0.02)
    assert torch.equal(output.rows, torch.from_numpy(head))
    assert output.tied is False
    path.write_bytes(path.read_bytes()[:100])
    assert "no readable GGUF file" in refused(path)


def test_gguf_in_parts(tmp_path: Path) -> None:
    """A large model is split: the head may lie in another part than the embedding."""
    gguf = pytest.importorskip("gguf")
    parts = [tmp_path / f"big-{number:05d}-of-00002.gguf" for number in (1, 2)]
    tensors = {
        name: torch.randn(8, 4, generator=torch.Generator().manual_seed(seed))
        for seed, name in enumerate(("token_embd.weight", "output.weight"))
    }
    for path, (name, rows) in zip(parts, tensors.items(), strict=True):
        writer = gguf.GGUFWriter(path, "llama")
        writer.add_tensor(name, rows.numpy())
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    for path in parts:
        embedding, head = matrices_of(str(path), BOTH)
        assert torch.equal(embedding.rows, tensors["token_embd.weight"])
        assert torch.equal(head.rows, tensors["output.weight"])
        assert head.tied is False
    parts[1].unlink()
    assert "big-00002-of-00002.gguf, another part of it, is missing" in refused(parts[0])


def test_gguf_without_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from interp import head_matrix

    (tmp_path / "m.gguf").write_bytes(b"GGUF")
    monkeypatch.setattr(head_matrix, "find_spec", lambda name: None)
    assert "pip install 'gguf>=0.17'" in refused(tmp_path / "m.gguf")
