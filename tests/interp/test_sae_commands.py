"""`interp train` and `interp eval-sae` on a tiny model: live capture, splice, KL."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from interp.capture import capture
from interp.cli import main
from interp.contextual import ContextualMeans
from interp.divergence import kl_divergence
from interp.models import load as load_model
from interp.run import SHUFFLED, TRAINED, TWIN, folder_name, open_run
from interp.sae_means import BESIDE
from interp.sae_training import SHUFFLE_BUFFER, points_of, train_saes
from interp.splice import MIN_GAP_NATS, ce_loss_recovered
from interp.tokens import tokens
from saes import checkpoint
from saes.config import SAEConfig
from saes.format import load, save
from saes.runs import STREAM
from saes.sae import SAE


@pytest.fixture
def long_text(tmp_path: Path, texts: tuple[str, ...]) -> Path:
    """Many documents, so that both splits have some."""
    folder = tmp_path / "long"
    folder.mkdir()
    for number in range(60):
        (folder / f"{number}.py").write_text(f"x{number} = {number}\n" + texts[number % len(texts)])
    return folder


def test_train_then_evaluate(
    tiny_dir: Path, long_text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    line = ["train", str(tiny_dir), "--hook-points", "resid_post", "--d-sae", "2x", "--k", "4"]
    line += ["--tokens", "3000", "--text", str(long_text), "--out", str(out), "--seeds", "2"]
    assert main(line) == 0
    folders = capsys.readouterr().out.split()
    assert len(folders) == 3 * 2
    first = out / "blocks.0.hook_resid_post" / "64-4-0"
    assert folders[0] == str(first)
    weights = (first / "sae_weights.safetensors").read_bytes()
    assert load(first).metadata["tokens_trained"] == 3000
    assert (out / "blocks.0.hook_resid_post" / "64-4-0.jsonl").exists()
    assert main(line) == 0
    capsys.readouterr()
    assert (first / "sae_weights.safetensors").read_bytes() == weights

    judge = ["eval-sae", str(first), "--model", str(tiny_dir), "--text", str(long_text)]
    assert main([*judge, "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert 0 < row["fvu"] < 1
    assert row["l0"] <= 4
    assert row["kl_nats"] > 0
    for kind in ("zero", "mean"):
        gap = row[f"ce_loss_{kind}_ablated"] - row["ce_loss_clean"]
        expected = (row[f"ce_loss_{kind}_ablated"] - row["ce_loss_sae"]) / gap
        # The untrained model may lose little by an ablation, or gain by it.
        told = pytest.approx(expected) if gap >= MIN_GAP_NATS else None
        assert row[f"ce_loss_recovered_{kind}"] == told
    assert main(judge) == 0
    said = capsys.readouterr().out
    assert "zero ablation" in said
    assert "clean" in said


def test_the_shuffle_buffer_is_recorded_and_another_one_refused(
    tiny_dir: Path, long_text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def line(out: str, *more: str) -> list[str]:
        shape = ["--hook-points", "blocks.1.hook_resid_post", "--d-sae", "2x", "--k", "4"]
        text = ["--tokens", "2000", "--text", str(long_text), "--out", str(tmp_path / out)]
        return ["train", str(tiny_dir), *shape, *text, *more]

    def weights(out: str) -> bytes:
        [file] = (tmp_path / out).rglob("sae_weights.safetensors")
        return file.read_bytes()

    assert main(line("a")) == 0
    assert main(line("b", "--shuffle-buffer", "1k")) == 0
    assert main(line("c", "--shuffle-buffer", "1k")) == 0
    buffers = [json.loads((tmp_path / o / STREAM).read_text())["shuffle_buffer"] for o in "abc"]
    assert buffers == [SHUFFLE_BUFFER, 1000, 1000]
    assert weights("a") != weights("b") == weights("c")
    capsys.readouterr()
    said = refused(line("b", "--shuffle-buffer", "2k"), capsys)
    assert "shuffle_buffer is 1000 there, 2000 here" in said
    (tmp_path / "b" / STREAM).write_text("{")
    assert "damaged" in refused(line("b", "--shuffle-buffer", "1k"), capsys)


def test_training_resumes_bit_for_bit_within_a_small_buffer(
    tiny_model: Any, tiny_tokens: Any, tmp_path: Path
) -> None:
    """Interrupted after its second chunk of two blocks; the stream is replayed."""
    points = points_of(["blocks.1.hook_resid_post"], tiny_model)

    def run(out: Path) -> bytes:
        [folder] = train_saes(
            tiny_model,
            tiny_tokens,
            points,
            lambda widths: [
                SAEConfig(d_in=32, d_sae=64, k=4, batch_size=16, n_tokens=600, hook_point=name)
                for name in widths
            ],
            out,
            checkpoint_seconds=0.0,
            shuffle_buffer=64,
        )
        return (folder / "sae_weights.safetensors").read_bytes()

    whole = run(tmp_path / "whole")
    write, n_written = checkpoint.write, 0

    def dying(*args: Any) -> None:
        nonlocal n_written
        write(*args)
        n_written += 1
        if n_written == 2:
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint, "write", dying)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "killed")
    assert run(tmp_path / "killed") == whole


def test_a_bare_kind_is_that_of_every_layer(tiny_model: Any) -> None:
    assert [str(p) for p in points_of(["resid_post"], tiny_model)] == [
        f"blocks.{i}.hook_resid_post" for i in range(3)
    ]
    (one,) = points_of(["blocks.1.hook_mlp_out"], tiny_model)
    assert str(one) == "blocks.1.hook_mlp_out"


def test_kl_is_that_of_the_full_distributions(tiny_model: Any, tiny_tokens: Any) -> None:
    """Against a plain computation with the logits of the whole model."""
    point = "blocks.1.hook_resid_post"

    def halve(x: Tensor, token_ids: Tensor, positions: Tensor) -> Tensor:
        return 0.5 * x

    def same(x: Tensor, token_ids: Tensor, positions: Tensor) -> Tensor:
        return x

    assert kl_divergence(tiny_model, tiny_tokens, point, same) == pytest.approx(0, abs=1e-6)
    got = kl_divergence(tiny_model, tiny_tokens, point, halve, batch_size=2, chunk_tokens=64)

    from interp.capture import capture

    (chunk,) = capture(tiny_model, tiny_tokens, point)
    keep = chunk.keep.view(-1, chunk.n_ctx)
    ids = chunk.token_ids.view(-1, chunk.n_ctx).long()

    def hook(module: Any, inputs: Any, output: Any) -> Any:
        is_tuple = isinstance(output, tuple)
        hidden = (output[0] if is_tuple else output).clone()
        hidden[keep] *= 0.5
        return (hidden, *output[1:]) if is_tuple else hidden

    with torch.no_grad():
        clean = tiny_model.hf(input_ids=ids).logits.log_softmax(-1)
        handle = tiny_model.hf.base_model.h[1].register_forward_hook(hook)
        moved = tiny_model.hf(input_ids=ids).logits.log_softmax(-1)
        handle.remove()
    kl = (clean.exp() * (clean - moved)).sum(-1)[:, :-1]
    expected = kl[chunk.is_target.view(-1, chunk.n_ctx)[:, 1:]].mean()
    assert got == pytest.approx(float(expected), rel=1e-4)
    assert got > 0.01


def refused(line: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    assert main(line) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.count("\n") == 1
    return said.err


def test_wrong_input_is_one_line(
    tiny_dir: Path, long_text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    line = ["train", str(tiny_dir), "--tokens", "900", "--text", str(long_text), "--out", str(out)]
    shape = ["--d-sae", "2x", "--k", "4"]
    assert "no hook point" in refused([*line, *shape, "--hook-points", "resid"], capsys)
    point = ["--hook-points", "blocks.0.hook_resid_post"]
    assert "k 4 is larger" in refused([*line, *point, "--d-sae", "3", "--k", "4"], capsys)
    assert "topk needs k" in refused([*line, *point, "--d-sae", "2x"], capsys)
    assert not out.exists()

    judge = ["--model", str(tiny_dir), "--text", str(long_text)]
    assert "no SAE there" in refused(["eval-sae", str(tmp_path), *judge], capsys)
    eye = torch.eye(32)
    save(SAE(eye, eye, torch.zeros(32), torch.zeros(32), k=2), tmp_path / "a" / "nameless")
    assert "says no hook point" in refused(["eval-sae", str(tmp_path / "a"), *judge], capsys)
    wide = torch.eye(33)
    save(SAE(wide, wide, torch.zeros(33), torch.zeros(33), k=2), tmp_path / "b" / "wide")
    named = ["--hook-point", "blocks.0.hook_resid_post"]
    assert "d_in 33" in refused(["eval-sae", str(tmp_path / "b"), *judge, *named], capsys)
    eye[0, 0] = torch.nan
    save(SAE(eye, eye, torch.zeros(32), torch.zeros(32), k=2), tmp_path / "c" / "diverged")
    assert "is not finite" in refused(["eval-sae", str(tmp_path / "c"), *judge, *named], capsys)


def contextual(run: Path) -> tuple[Path, str, str]:
    """A study's SAE of the contextual stream, its model and the study's text."""
    config = open_run(run).config
    name = config.models[0]
    folder = run / "saes" / folder_name(name, TRAINED)
    first = sorted(folder.glob("*.contextual/*/cfg.json"))[0].parent
    return first, name, config.text


def test_an_sae_of_the_contextual_stream_is_judged_without_the_means(
    finished_study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, name, text = contextual(finished_study)
    rest = ["--model", name, "--text", text, "--tokens", "2000"]
    assert main(["eval-sae", str(path), *rest, "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert (row["stream"], row["hook_point"]) == ("contextual", path.parent.name.split(".cont")[0])
    model = load_model(name)
    blocks = tokens(text, model, n_tokens=2_000, split="held_out")
    layer = int(row["hook_point"].split(".")[1])
    where = finished_study / "work" / folder_name(name, TRAINED) / f"means.{layer}.safetensors"
    means = ContextualMeans.load(where)
    kept = [
        means.residual(
            chunk.acts[row["hook_point"]][chunk.keep],
            chunk.token_ids[chunk.keep],
            chunk.positions[chunk.keep],
        )
        for chunk in capture(model, blocks, row["hook_point"])
    ]
    x = torch.cat(kept)
    error = (x - load(path)(x)).square().sum() / (x - x.mean(0)).square().sum()
    assert row["fvu"] == pytest.approx(float(error), rel=1e-4)
    # Put back after the SAE, and all there is without it.
    sae = load(path)
    expected = ce_loss_recovered(
        model,
        blocks,
        row["hook_point"],
        lambda x, ids, at: means.predict(ids, at) + sae(x - means.predict(ids, at)),
        ablation=lambda x, ids, at: means.predict(ids, at),
    )
    assert row["ce_loss_sae"] == pytest.approx(expected.ce_loss_sae, rel=1e-5)
    assert row["ce_loss_means_alone"] == pytest.approx(expected.ce_loss_ablated, rel=1e-5)
    recovered = expected.ce_loss_recovered  # None where the model hardly uses what is left out
    told = None if recovered is None else pytest.approx(recovered, rel=1e-3)
    assert row["ce_loss_recovered_means_alone"] == told
    assert main(["eval-sae", str(path), *rest]) == 0
    assert "with the token and position means alone the loss is" in capsys.readouterr().out

    # Away from its study: with the file of the means, or beside them as a published one.
    moved = tmp_path / "away" / "sae"
    shutil.copytree(path, moved)
    assert "give their file with --means" in refused(["eval-sae", str(moved), *rest], capsys)
    point = ["--hook-point", row["hook_point"]]
    assert "with --means" in refused(["eval-sae", str(moved), *rest, *point], capsys)
    assert main(["eval-sae", str(moved), *rest, "--json", "--means", str(where)]) == 0
    assert json.loads(capsys.readouterr().out)[0]["fvu"] == row["fvu"]
    shutil.copyfile(where, moved.parent / BESIDE)
    assert main(["eval-sae", str(moved), *rest, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["fvu"] == row["fvu"]
    cfg = json.loads((moved / "cfg.json").read_text())
    cfg["metadata"] |= {"hook_name": row["hook_point"], "stream": "contextual"}
    (moved / "cfg.json").write_text(json.dumps(cfg))
    assert main(["eval-sae", str(moved), *rest, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["fvu"] == row["fvu"]
    cfg["metadata"]["stream"] = "all"
    (moved / "cfg.json").write_text(json.dumps(cfg))
    line = ["eval-sae", str(moved), *rest, "--means", str(where)]
    assert "reads the raw stream" in refused(line, capsys)
    line = ["eval-sae", str(moved), *rest, "--hook-point", path.parent.name]
    assert "by its file, not blocks." in refused(line, capsys)
    line = ["eval-sae", str(moved), *rest, "--hook-point", "blocks.0.hook_mlp_out"]
    assert f"reads {row['hook_point']} by its file, not blocks.0.hook_mlp_out" in refused(
        line, capsys
    )
    # A file that says no hook point leaves that to the command line, the stream too.
    del cfg["metadata"]["stream"], cfg["metadata"]["hook_name"]
    (moved / "cfg.json").write_text(json.dumps(cfg))
    line = ["eval-sae", str(moved), *rest, "--json", "--hook-point", path.parent.name]
    assert main(line) == 0
    assert json.loads(capsys.readouterr().out)[0]["fvu"] == row["fvu"]


def test_the_means_are_found_wherever_a_path_begins(
    finished_study: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path, name, text = contextual(finished_study)
    rest = ["--model", name, "--text", text, "--tokens", "2000"]
    monkeypatch.chdir(path)
    assert main(["eval-sae", f"../{path.name}", *rest]) == 0
    capsys.readouterr()
    monkeypatch.chdir(finished_study / "saes" / folder_name(name, TWIN) / path.parent.name)
    assert "(random_init), so on no trained model" in refused(["eval-sae", ".", *rest], capsys)
    (tmp_path / "link").symlink_to(path)
    monkeypatch.chdir(tmp_path)
    assert main(["eval-sae", "link", *rest]) == 0
    capsys.readouterr()


def test_means_of_another_model_and_saes_of_a_control_are_refused(
    finished_study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, name, text = contextual(finished_study)
    rest = ["--model", name, "--text", text, "--tokens", "2000"]
    layer = path.parent.name.split(".")[1]
    where = finished_study / "work" / folder_name(name, TRAINED) / f"means.{layer}.safetensors"
    means = ContextualMeans.load(where)
    wrong = tmp_path / "of_fewer_tokens.safetensors"
    replace(means, token_mean=means.token_mean[:-1].clone()).save(wrong)
    for missing in (tmp_path / "mistyped", path / "sae_weights.safetensors"):
        line = ["eval-sae", str(path), *rest, "--means", str(missing)]
        assert f"{missing}: holds no token and position means" in refused(line, capsys)
    line = ["eval-sae", str(path.parent.parent), *rest, "--means", str(where)]
    assert "leave out --means" in refused(line, capsys), "the raw ones beside them"
    line = ["eval-sae", str(path), *rest, "--means", str(wrong)]
    assert f"{wrong}: means of " in refused(line, capsys)
    twin = finished_study / "saes" / folder_name(name, TWIN)
    assert "was trained on a control (random_init)" in refused(
        ["eval-sae", str(twin), *rest], capsys
    )
    # As `interp push` writes it, in a folder of any name.
    moved = tmp_path / "of_a_twin"
    shutil.copytree(path, moved)
    cfg = json.loads((moved / "cfg.json").read_text())
    cfg["metadata"]["control"] = SHUFFLED
    (moved / "cfg.json").write_text(json.dumps(cfg))
    said = refused(["eval-sae", str(moved), *rest], capsys)
    assert "(shuffled_tokens), so on the model on shuffled tokens" in said
