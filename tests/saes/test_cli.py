"""`saes train` and `saes eval` from the outside."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import saes
from saes.cli import main
from saes.folder import ActivationFolder
from saes.format import load
from saes.metrics import evaluate


def rows(n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((n, 6)).astype(np.float32)


@pytest.fixture
def acts(tmp_path: Path) -> Path:
    """600 rows in two files."""
    folder = tmp_path / "acts"
    folder.mkdir()
    np.save(folder / "a.npy", rows(400, 0))
    np.save(folder / "b.npy", rows(200, 1).astype(np.float16))
    return folder


def train_line(acts: Path, out: Path, *more: str) -> list[str]:
    return ["train", str(acts), "--d-sae", "2x", "--k", "2", "--out", str(out), *more]


def test_train_then_eval(acts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert main(train_line(acts, out, "--seeds", "2", "--batch-size", "64")) == 0
    printed = capsys.readouterr().out.split()
    assert printed == [str(out / "resid" / name) for name in ("12-2-0", "12-2-1")]
    sae = load(printed[0])
    assert (sae.d_in, sae.d_sae, sae.k, sae.metadata["tokens_trained"]) == (6, 12, 2, 600)

    assert main(["eval", str(out), "--acts", str(acts), "--json"]) == 0
    table = json.loads(capsys.readouterr().out)
    assert [row["seed"] for row in table] == [0, 1]
    expected = evaluate(sae, [torch.cat([c["resid"] for c in ActivationFolder(acts).chunks()])])
    assert table[0]["fvu"] == pytest.approx(expected.fvu, rel=1e-9)
    assert table[0]["l0"] == pytest.approx(expected.l0)
    assert table[0]["n_tokens"] == 600

    assert main(["eval", str(out), "--acts", str(acts)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[0] == "path"
    assert len(lines) == 3


def test_same_line_again_gives_the_same_files(acts: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    weights = out / "resid" / "12-2-0" / "sae_weights.safetensors"
    assert main(train_line(acts, out)) == 0
    first = weights.read_bytes()
    assert main(train_line(acts, out)) == 0
    assert weights.read_bytes() == first


def test_more_tokens_than_rows_repeat_the_folder(acts: Path, tmp_path: Path) -> None:
    assert main(train_line(acts, tmp_path / "out", "--tokens", "1500")) == 0
    assert load(tmp_path / "out" / "resid" / "12-2-0").metadata["tokens_trained"] == 1500


def test_safetensors_keys_are_hook_points(tmp_path: Path) -> None:
    folder = tmp_path / "acts"
    folder.mkdir()
    for number in range(2):
        both = {"x.1": torch.from_numpy(rows(100, number)), "y/2": torch.ones(100, 3)}
        both["y/2"][:, 0] = torch.arange(100)
        save_file(both, folder / f"{number}.safetensors")
    assert ActivationFolder(folder).widths == {"x.1": 6, "y/2": 3}
    assert main(train_line(folder, tmp_path / "all")) == 0
    assert sorted(p.name for p in (tmp_path / "all").iterdir() if p.name[0] != ".") == [
        "x.1",
        "y--2",
    ]
    assert main(train_line(folder, tmp_path / "one", "--hook-points", "x.1")) == 0
    assert not (tmp_path / "one" / "y--2").exists()


@pytest.mark.parametrize("chunk_rows", [1, 7, 400, 10_000])
def test_chunks_are_the_files_in_order(acts: Path, chunk_rows: int) -> None:
    chunks = [chunk["resid"] for chunk in ActivationFolder(acts).chunks(chunk_rows)]
    assert all(len(chunk) == chunk_rows for chunk in chunks[:-1])
    expected = np.concatenate([rows(400, 0), rows(200, 1).astype(np.float16)])
    assert torch.equal(torch.cat(chunks), torch.from_numpy(expected))


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one line on stderr of a command that must exit with status 2."""
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("saes: ")
    assert captured.err.count("\n") == 1
    return captured.err


def test_wrong_input_is_one_line_and_status_2(
    acts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    empty = tmp_path / "empty"
    empty.mkdir()
    assert "no such folder" in refused(train_line(tmp_path / "none", out), capsys)
    assert "holds no .npy" in refused(train_line(empty, out), capsys)
    assert "no hook point 'z'" in refused(train_line(acts, out, "--hook-points", "z"), capsys)
    line = ["train", str(acts), "--k", "2", "--out", str(out)]
    assert "'many'" in refused([*line, "--d-sae", "many"], capsys)
    assert "0.6 latents" in refused([*line, "--d-sae", "0.1x"], capsys)
    assert "k 2 is larger" in refused([*line, "--d-sae", "1"], capsys)
    assert "no SAE below it" in refused(["eval", str(empty), "--acts", str(acts)], capsys)
    assert not out.exists()

    assert main(train_line(acts, out)) == 0
    capsys.readouterr()
    assert "other settings" in refused(train_line(acts, out, "--lr", "0.1"), capsys)
    other = tmp_path / "other"
    other.mkdir()
    np.save(other / "a.npy", np.zeros((5, 4), np.float32))
    assert "d_in is 6" in refused(["eval", str(out), "--acts", str(other)], capsys)


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({"a.npy": np.zeros(5, np.float32)}, "has shape (5,)"),
        ({"a.npy": np.zeros((0, 4), np.float32)}, "hold no rows"),
        (
            {"a.npy": np.zeros((2, 4), np.float32), "b.npy": np.zeros((2, 5), np.float32)},
            "files of one capture",
        ),
        ({"a.npy": b"junk"}, "a.npy: unreadable"),
        ({"a.safetensors": b"junk"}, "a.safetensors: unreadable"),
        ({"a.npy": np.zeros((2, 4), np.float32), "b.safetensors": b""}, "both .npy and"),
        ({"a.npy": np.full((9, 4), np.nan, np.float32)}, "row 0 of the stream is not finite"),
    ],
)
def test_bad_folders_are_named(
    files: dict[str, np.ndarray | bytes],
    words: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = tmp_path / "acts"
    folder.mkdir()
    for name, content in files.items():
        if isinstance(content, bytes):
            (folder / name).write_bytes(content)
        else:
            np.save(folder / name, content)
    assert words in refused(train_line(folder, tmp_path / "out"), capsys)


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys, saes, saes.cli\n"
        "try: saes.cli.main(['train', '--help'])\n"
        "except SystemExit as stop: assert stop.code == 0\n"
        "assert not {'torch', 'numpy', 'pydantic'} & sys.modules.keys()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "--d-sae" in done.stdout


def test_public_names() -> None:
    assert set(saes.__all__) == {"SAE", "SAEConfig", "load", "save", "train"}
    assert all(getattr(saes, name) is not None for name in saes.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        saes.nothing  # noqa: B018
