"""Publishing: sae-lens loads the tree, the hub gets exactly the tree, refusals are one line."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hub_stand_in import TOKEN, hub_stand_in

import saes
from interp.cli import main
from interp.contextual import ContextualMeans
from interp.push import card, kept_saes, write_tree
from interp.run import open_run

REPO = "me/tiny-saes"


@pytest.fixture
def run_dir(finished_study: Path, tmp_path: Path) -> Path:
    shutil.copytree(finished_study, tmp_path / "run")
    return tmp_path / "run"


def content(folder: Path) -> dict[str, bytes]:
    files = (p for p in folder.rglob("*") if p.is_file())
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in files}


def push(*argv: str, hub: str = "http://127.0.0.1:1", token: str | None = TOKEN) -> Any:
    """In a process of its own: huggingface_hub reads its surroundings when it is imported."""
    surroundings = {k: v for k, v in os.environ.items() if not k.startswith("HF_")}
    surroundings |= {"HF_ENDPOINT": hub, "HF_HOME": "/nonexistent", "HF_HUB_DISABLE_XET": "1"}
    if token is not None:
        surroundings["HF_TOKEN"] = token
    line = [sys.executable, "-m", "interp.cli", "push", *argv]
    return subprocess.run(line, env=surroundings, capture_output=True, text=True, timeout=300)


def test_the_tree_of_a_dry_run_holds_every_sae_and_loads(
    run_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["push", str(run_dir), REPO, "--dry-run"]) == 0
    run = open_run(run_dir)
    kept = kept_saes(run)
    assert f"{len(kept)} SAEs" in capsys.readouterr().out
    # Two sizes and a second stream at the primary layer, one at the other; half of that for twins.
    assert len(kept) == 3 * (4 + 2)
    for one in kept:
        pushed, original = saes.load(run_dir / "push" / one.name), saes.load(one.folder)
        # Its rows have length 1, give or take a last bit, and are said to be of any.
        assert torch.allclose(pushed.W_dec, original.W_dec, rtol=1e-6, atol=0)
        assert pushed.k == original.k
        metadata = json.loads((run_dir / "push" / one.name / "cfg.json").read_text())["metadata"]
        assert metadata["hook_name"] in ("blocks.0.hook_resid_post", "blocks.1.hook_resid_post")
        assert metadata["model_name"] == one.model
        means = run_dir / "push" / one.name.rpartition("/")[0] / "means.safetensors"
        assert means.is_file() == (metadata["stream"] == "contextual")
        if means.is_file():
            assert ContextualMeans.load(means).mean.shape == (16,)
    before = content(run_dir / "push")
    assert main(["push", str(run_dir), REPO, "--dry-run"]) == 0
    assert content(run_dir / "push") == before


def test_a_folder_that_is_not_ours_is_left_alone(
    run_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (run_dir / "push").mkdir()
    (run_dir / "push" / "README.md").write_text("my notes")
    assert main(["push", str(run_dir), REPO, "--dry-run"]) == 2
    assert "was not written by interp push" in capsys.readouterr().err
    assert (run_dir / "push" / "README.md").read_text() == "my notes"


def test_the_hub_gets_the_tree_and_sae_lens_loads_from_it(run_dir: Path, tmp_path: Path) -> None:
    with hub_stand_in() as hub:
        done = push(str(run_dir), REPO, "--private", hub=hub.url)
        assert done.returncode == 0, done.stderr
        assert hub.repositories == {REPO: True}
        assert hub.messages == ["Add 18 sparse autoencoders"]
        run = open_run(run_dir)
        write_tree(run, REPO, tmp_path / "tree")
        there = {name.removeprefix(f"{REPO}/"): data for name, data in hub.files.items()}
        assert there == content(tmp_path / "tree")
        assert set(hub.cards) == {there["README.md"].decode()}
        one = next(sae for sae in kept_saes(run) if sae.stream.endswith(".contextual"))
        code = (
            "import sys, torch\n"
            "from sae_lens import SAE\n"
            "for sae in (SAE.from_pretrained(sys.argv[1], sys.argv[2]),\n"
            "            SAE.load_from_disk(sys.argv[3])):\n"
            "    x = torch.linspace(-1, 1, 32).view(2, 16)\n"
            "    told = sae.cfg.metadata\n"
            "    print(told.hook_name, told.stream, sae.encode(x).double().sum().item())\n"
        )
        surroundings = os.environ | {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home")}
        loaded = subprocess.run(
            [sys.executable, "-c", code, REPO, one.name, str(tmp_path / "tree" / one.name)],
            env=surroundings,
            capture_output=True,
            text=True,
            timeout=300,
        )
    assert loaded.returncode == 0, loaded.stderr
    x = torch.linspace(-1, 1, 32).view(2, 16)
    expected = saes.load(one.folder).encode_dense(x).double().sum().item()
    lines = [line.split() for line in loaded.stdout.splitlines()]
    assert len(lines) == 2
    for hook_name, stream, total in lines:
        assert hook_name == one.stream.removesuffix(".contextual")
        assert stream == "contextual"
        assert float(total) == pytest.approx(expected, rel=1e-5)


def test_the_hub_s_refusals_are_one_line(run_dir: Path) -> None:
    with hub_stand_in() as hub:
        refused = {
            "hf auth login": push(str(run_dir), REPO, hub=hub.url, token="hf_wrong"),
            "the hub refused other/saes": push(str(run_dir), "other/saes", hub=hub.url),
            "no token for the hub": push(str(run_dir), REPO, hub=hub.url, token=None),
        }
        assert not hub.files
    refused["cannot be reached"] = push(str(run_dir), REPO, hub="http://127.0.0.1:1")
    for said, done in refused.items():
        assert done.returncode == 2, done
        lines = done.stderr.strip().splitlines()
        assert len(lines) == 1, lines
        assert said in lines[0]
        assert "--dry-run" in lines[0]


def test_a_full_disk_leaves_nothing(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*args: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("interp.push.shutil.copyfile", full)
    assert main(["push", str(run_dir), REPO, "--dry-run"]) == 2
    assert "push cannot be written (No space left on device)" in capsys.readouterr().err
    assert not [p for p in run_dir.iterdir() if "push" in p.name]


def test_wrong_input_is_one_line(
    run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def said(*argv: str) -> str:
        assert main(["push", *argv]) == 2
        [line] = capsys.readouterr().err.strip().splitlines()
        return line

    assert "no finished study" in said(str(tmp_path), REPO)
    assert "write OWNER/NAME" in said(str(run_dir), "saes")
    assert "has no SAEs of gpt2" in said(str(run_dir), REPO, "--dry-run", "--models", "gpt2")
    for means in (run_dir / "work").rglob("means.*"):
        means.unlink()
    assert "means.0.safetensors is missing" in said(str(run_dir), REPO, "--dry-run")
    assert not (run_dir / "push").exists()
    assert not list(run_dir.glob(".push*"))
    shutil.rmtree(run_dir / "saes")
    assert "keeps no SAEs" in said(str(run_dir), REPO, "--dry-run")


def test_the_card_keeps_text_text(run_dir: Path) -> None:
    summary = json.loads((run_dir / "summary.json").read_text())
    summary["warnings"] = ["<script>alert(1)</script> | `a` [b](c)"]
    summary["command"] = "interp study `x` | y"
    (run_dir / "summary.json").write_text(json.dumps(summary))
    config = run_dir / "config.resolved.yaml"
    config.write_text(config.read_text() + "# ```\n")
    run = open_run(run_dir)
    text = card(run, REPO, kept_saes(run))
    assert "<script" not in text
    assert "&lt;script&gt;" in text
    assert "\\[b\\](c)" in text
    assert "`interp study 'x' \\| y`" in text
    # A group of seeds is one row, and its measured FVU stands there.
    rows = [line for line in text.splitlines() if line.startswith("| ") and "blocks" in line]
    assert len(rows) == 6
    assert all("| - |" not in row for row in rows)
