"""The gate at load: every architecture passes it, and a wrong tensor does not."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import COVERED, N_LAYERS, covered

from interp import cli, hook_points, parity, plan
from interp.capture import capture
from interp.config import StudyConfig
from interp.errors import UserError
from interp.hook_points import KINDS
from interp.loss import block_nll, loss
from interp.models import Model, load
from interp.store import open_store
from interp.tokens import tokens


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: Any) -> Any:
    """saved(row of COVERED) -> a folder that holds it."""
    root = tmp_path_factory.mktemp("architectures")

    def save(name: str) -> Path:
        folder = root / name
        if not folder.exists():
            covered(name, n_vocab=len(tiny_tokenizer)).save_pretrained(folder)
            tiny_tokenizer.save_pretrained(folder)
        return folder

    return save


@pytest.mark.parametrize("name", COVERED)
def test_every_architecture_loads_and_captures_with_its_loss(
    saved: Any, name: str, text_folder: Path
) -> None:
    model = load(str(saved(name)))
    assert model.parity_error is not None
    assert 0 <= model.parity_error <= 1e-5
    attention = "eager" if name == "gpt_neo" else "sdpa"  # transformers has no other for GPT-Neo
    assert model.hf.config._attn_implementation == attention
    blocks = tokens(text_folder, model)
    kinds = [k for k in KINDS if k not in COVERED[name].lacks]
    [chunk] = capture(model, blocks, kinds, with_loss=True)
    labels = torch.where(blocks.is_target, blocks.ids.long(), -100)
    with torch.inference_mode():
        theirs = model.hf(input_ids=blocks.ids.long(), labels=labels, output_hidden_states=True)
    assert float(chunk.nll[chunk.is_target].mean()) == pytest.approx(float(theirs.loss), abs=1e-5)
    for layer in range(model.n_layers):
        torch.testing.assert_close(
            chunk.acts[f"blocks.{layer}.hook_resid_pre"], theirs.hidden_states[layer].flatten(0, 1)
        )


@pytest.mark.parametrize("name", COVERED)
def test_every_architecture_through_the_commands(
    saved: Any,
    name: str,
    texts: tuple[str, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Plan, capture, resume and loss of the same held-out text; and the plan of a study."""
    monkeypatch.setattr(plan, "PROBE_SECONDS", 0.0)
    lines = [json.dumps({"text": f"x = {i}\n{texts[i % len(texts)]}"}) for i in range(60)]
    (tmp_path / "text.jsonl").write_text("\n".join(lines))
    folder, text = str(saved(name)), ["--text", str(tmp_path / "text.jsonl")]

    def answer(*words: str) -> Any:
        assert cli.main([*words, "--json"]) == 0, capsys.readouterr().err
        return json.loads(capsys.readouterr().out, parse_constant=pytest.fail)

    kinds = [k for k in KINDS if k not in COVERED[name].lacks]
    line = ["capture", folder, "--hook-points", *kinds, "--tokens", "200", *text]
    line += ["--split", "held_out", "--loss", "--out", str(tmp_path / "store")]
    [planned] = answer(*line, "--plan")["parts"]
    held = answer(*line)
    assert held["n_bytes"] == pytest.approx(planned["n_bytes"], rel=0.1)
    assert len(held["hook_points"]) == N_LAYERS * len(kinds)
    assert held["parity_error"] <= 1e-5
    assert answer(*line) == held
    assert open_store(tmp_path / "store").damaged() == []
    [row] = answer("loss", folder, "--tokens", "200", *text)
    assert row["loss_nats_per_token"] == pytest.approx(held["loss_nats_per_token"], abs=1e-6)
    for kind in COVERED[name].lacks:
        refused = ["capture", folder, "--hook-points", kind, "--tokens", "9", *text]
        assert cli.main([*refused, "--out", str(tmp_path / "none")]) == 2
        said = capsys.readouterr().err
        assert kind in said
        assert said.count("\n") == 1
        assert not (tmp_path / "none").exists()
    config = StudyConfig(
        models=(folder,), text=text[1], sae_tokens=4096, pilot_tokens=2048, threads=1
    )
    (tmp_path / "study.yaml").write_text(config.to_yaml())
    parts = answer("plan", str(tmp_path / "study.yaml"), "--out", str(tmp_path))["parts"]
    assert [part["what"] for part in parts] == [folder, "report"]
    assert parts[0]["flops"] > 0


@pytest.mark.parametrize("name", COVERED)
def test_every_architecture_equals_transformer_bridge(
    saved: Any, name: str, text_folder: Path
) -> None:
    from transformer_lens.model_bridge import TransformerBridge
    from transformers import AutoModelForCausalLM

    model = load(str(saved(name)))
    hf = AutoModelForCausalLM.from_pretrained(saved(name), dtype=torch.float32).eval()
    bridge = TransformerBridge.boot_transformers(
        str(saved(name)), hf_model=hf, tokenizer=model.tokenizer
    )
    blocks = tokens(text_folder, model)
    [chunk] = capture(model, blocks, ["resid_pre", "resid_post"])
    with torch.inference_mode():
        _, cache = bridge.run_with_cache(blocks.ids.long(), names_filter=list(chunk.acts))
    for point, mine in chunk.acts.items():
        torch.testing.assert_close(mine, cache[point].flatten(0, 1), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_passes(saved: Any, dtype: torch.dtype) -> None:
    model = load(str(saved("gpt2")), dtype=dtype)
    assert (model.dtype, model.parity_error is not None) == (dtype, True)


def refused(model: str | Path) -> str:
    with pytest.raises(UserError) as error:
        load(str(model))
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_wrong_site_is_refused_and_named(saved: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    sites = hook_points._ARCHITECTURES["llama"]
    wrong = sites | {"resid_post": hook_points._Site("mlp", "output")}
    monkeypatch.setitem(hook_points._ARCHITECTURES, "llama", wrong)
    message = refused(saved("llama"))
    assert re.search(r"blocks\.0\.hook_resid_post differs from transformers by \S+", message)


@pytest.mark.parametrize(
    ("name", "kind", "site", "complaint"),
    [
        ("llama", "attn_out", ("mlp", "output"), "resid_mid"),
        ("gpt2", "mlp_out", ("attn", "output"), "resid_post"),
        ("gpt2", "resid_mid", ("mlp", "input"), "resid_mid"),
        ("gpt_neox", "attn_out", ("mlp", "output"), "resid_post"),
        ("opt", "mlp_out", ("fc1", "input"), "resid_post"),
    ],
)
def test_a_wrong_site_inside_a_block_is_refused(
    saved: Any,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    kind: str,
    site: tuple[str, str],
    complaint: str,
) -> None:
    sites = hook_points._ARCHITECTURES[name] | {kind: hook_points._Site(*site)}
    monkeypatch.setitem(hook_points._ARCHITECTURES, name, sites)
    message = refused(saved(name))
    assert f"blocks.0.hook_{complaint} differs from the sum of its parts by" in message


def test_a_wrong_loss_is_refused(saved: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """By 1e-4 of a nat: ten times the tolerance."""

    def off(*args: Any) -> torch.Tensor:
        return block_nll(*args) * (1 + 1e-4)

    monkeypatch.setattr(parity, "block_nll", off)
    assert "the loss differs" in refused(saved("gpt2"))


def test_a_changed_backbone_is_refused(saved: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Model, "final_hidden", lambda self, ids: 1.001 * _hidden(self, ids))
    assert "the backbone's output differs" in refused(saved("gpt2"))


def _hidden(model: Model, ids: torch.Tensor) -> torch.Tensor:
    return model.hf.base_model(input_ids=ids, use_cache=False).last_hidden_state


def test_a_model_that_is_not_finite_is_left_to_capture_which_names_the_document(
    saved: Any, tmp_path: Path, text_folder: Path, tiny_tokenizer: Any
) -> None:
    from transformers import AutoModelForCausalLM

    hf = AutoModelForCausalLM.from_pretrained(saved("gpt2"))
    with torch.no_grad():
        hf.transformer.h[1].mlp.c_fc.weight.fill_(float("nan"))
    hf.save_pretrained(tmp_path / "nan")
    tiny_tokenizer.save_pretrained(tmp_path / "nan")
    model = load(str(tmp_path / "nan"))
    blocks = tokens(text_folder, model)
    with pytest.raises(UserError, match=r"blocks\.1\.hook_resid_post.*document 0 "):
        list(capture(model, blocks, "resid_post"))
    with pytest.raises(UserError, match=f"{model.name}: the loss is not finite, first in doc.* 0"):
        loss(model, blocks)
    # The loss comes from later layers than what is captured; a store must not hold it.
    refusal = pytest.raises(UserError, match="the loss is not finite, first in document 0")
    list(capture(model, blocks, "blocks.0.hook_resid_post"))
    with refusal:
        list(capture(model, blocks, "blocks.0.hook_resid_post", with_loss=True))
