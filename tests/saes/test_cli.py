"""`saes train` and `saes eval` from the outside."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

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


def test_every_architecture_trains_by_script(
    acts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = ["train", str(acts), "--d-sae", "2x", "--out", str(tmp_path / "out")]
    assert main([*line, "--k", "0.5x", "--architecture", "batchtopk", "--no-scaling"]) == 0
    warm = ["--k-warmup-fraction", "0.5", "--b-dec-init", "geometric_median"]
    like_sae_lens = ["--max-grad-norm", "1", "--encoder-init-scale", "0.01"]
    assert main([*line, "--k", "2", *warm, *like_sae_lens, "--out", str(tmp_path / "warm")]) == 0
    assert main([*line, "--k", "2", "3", "--out", str(tmp_path / "two")]) == 0
    names = sorted(p.name for p in tmp_path.glob("*/resid/*") if p.is_dir())
    assert names == ["12-2-0", "12-2-0", "12-3-0", "12-batchtopk-3-0"]
    warmed = load(tmp_path / "warm" / "resid" / "12-2-0")
    assert warmed.cfg is not None
    assert (warmed.cfg.k_warmup_fraction, warmed.cfg.b_dec_init) == (0.5, "geometric_median")
    assert (warmed.cfg.max_grad_norm, warmed.cfg.encoder_init_scale) == (1.0, 0.01)
    capsys.readouterr()
    assert main(["eval", str(tmp_path / "out"), "--acts", str(acts), "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert row["k"] is None
    fired = row["d_sae"] * (1 - row["dead_fraction"])
    assert sum(row["density_histogram"]["counts"]) == pytest.approx(fired)


def test_metrics_are_logged_per_sae(acts: Path, tmp_path: Path) -> None:
    line = train_line(acts, tmp_path / "out", "--seeds", "2", "--chunk-rows", "200")
    assert main([*line, "--batch-size", "50"]) == 0
    for seed in (0, 1):
        file = tmp_path / "out" / "resid" / f"12-2-{seed}.jsonl"
        lines = [json.loads(text) for text in file.read_text().splitlines()]
        assert [entry["tokens"] for entry in lines] == [200, 400, 600]
        assert all(0 < entry["fvu"] < 5 for entry in lines)
        assert set(lines[0]) == {"tokens", "fvu", "dead_fraction", "sae_tokens_per_second"}


class FakeTracker(ModuleType):
    """Stands in for wandb and trackio, which share these three functions."""

    def __init__(self) -> None:
        super().__init__("fake")
        self.calls: list[tuple[str, object]] = []

    def init(self, **options: object) -> None:
        self.calls.append(("init", options))

    def log(self, values: dict[str, float], step: int) -> None:
        self.calls.append((f"log {step}", values))

    def finish(self) -> None:
        self.calls.append(("finish", None))


@pytest.mark.parametrize("kind", ["wandb", "trackio"])
def test_trackers_get_what_the_files_get(
    kind: str, acts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = FakeTracker()
    monkeypatch.setitem(sys.modules, kind, fake)
    assert main(train_line(acts, tmp_path / "plain")) == 0
    assert fake.calls == [], "nothing is sent unless asked for"
    assert main(train_line(acts, tmp_path / "out", "--log", kind)) == 0
    assert [name for name, _ in fake.calls] == ["init", "log 600", "finish"]
    logged = fake.calls[1][1]
    written = json.loads((tmp_path / "out" / "resid" / "12-2-0.jsonl").read_text())
    assert isinstance(logged, dict)
    assert logged["resid/12-2-0/fvu"] == written["fvu"]


@pytest.mark.parametrize(
    ("kind", "module"),
    [("wandb", "wandb"), ("trackio", "trackio"), ("tensorboard", "torch.utils.tensorboard")],
)
def test_a_missing_tracker_is_one_line_before_anything_runs(
    kind: str,
    module: str,
    acts: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    said = refused(train_line(acts, tmp_path / "out", "--log", kind), capsys)
    assert f"the package {kind} is not installed" in said
    assert not (tmp_path / "out").exists()


def test_a_tracker_that_will_not_begin_is_one_line(
    acts: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    class LoggedOut(FakeTracker):
        def init(self, **options: object) -> None:
            raise RuntimeError("No API key configured.\n  Use a login first.")

    monkeypatch.setitem(sys.modules, "wandb", LoggedOut())
    said = refused(train_line(acts, tmp_path / "out", "--log", "wandb"), capsys)
    assert "--log wandb: No API key configured. Use a login first.; mend that, or leave" in said


def test_progress_shows_speed_error_dead_and_time_left(monkeypatch: pytest.MonkeyPatch) -> None:
    from saes.progress import TrainingProgress
    from saes.training import TrainingStatus

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    clock = iter([0.0, 1.0, 11.0])
    monkeypatch.setattr("saes.progress.time.monotonic", lambda: next(clock))
    terminal = Terminal()
    progress = TrainingProgress(terminal)
    for done in (1000, 2000):
        progress(TrainingStatus(done, 4000, 123.0, 0.25, 0.1, ()))
    last = terminal.getvalue().split("\r")[-1]
    # 1,000 tokens in 11 seconds, so 2,000 more take 22.
    assert "2,000/4,000 tokens  123 SAE tokens/s  FVU 0.2500  dead 10.0%  22 s left" in last


def test_two_saes_of_one_name_are_refused(
    acts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = ["train", str(acts), "--d-sae", "2x", "12", "--k", "2", "--out", str(tmp_path / "o")]
    assert "ask for each only once" in refused(line, capsys)
    assert not (tmp_path / "o").exists()


def test_a_wrong_command_line_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["train", "acts", "--out", "x"])
    assert stopped.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_more_tokens_than_rows_repeat_the_folder(acts: Path, tmp_path: Path) -> None:
    assert main(train_line(acts, tmp_path / "out", "--tokens", "1.5k")) == 0
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
    assert sorted(
        p.name for p in (tmp_path / "all").iterdir() if p.is_dir() and p.name[0] != "."
    ) == [
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
    for number in ("infx", "nanx"):
        assert "give a whole number" in refused([*line, "--d-sae", number], capsys)
    (tmp_path / "file").write_text("")
    assert "cannot be made" in refused(train_line(acts, tmp_path / "file" / "out"), capsys)
    assert "k 2 is larger" in refused([*line, "--d-sae", "1"], capsys)
    assert "no SAE there or below" in refused(["eval", str(empty), "--acts", str(acts)], capsys)
    assert not out.exists()

    assert main(train_line(acts, out)) == 0
    capsys.readouterr()
    assert "other settings" in refused(train_line(acts, out, "--lr", "0.1"), capsys)
    (out / ".checkpoints" / "configs.json").write_text("{")
    assert "configs.json: damaged" in refused(train_line(acts, out), capsys)
    half_saved = out / "resid" / ".12-2-0-x1"
    half_saved.mkdir()
    (half_saved / "cfg.json").write_text("{}")
    assert main(["eval", str(out), "--acts", str(acts)]) == 0
    capsys.readouterr()
    config = out / "resid" / "12-2-0" / "cfg.json"
    whole = config.read_text()
    config.write_text("[]")
    assert "holds no JSON object" in refused(["eval", str(out), "--acts", str(acts)], capsys)
    config.write_text(whole)
    other = tmp_path / "other"
    other.mkdir()
    np.save(other / "a.npy", np.zeros((5, 4), np.float32))
    said = refused(["eval", str(out), "--acts", str(other)], capsys)
    assert f"{out / 'resid' / '12-2-0'}: d_in is 6 but {other} holds rows of width 4" in said
    nan = rows(9)
    nan[4] = np.nan
    np.save(other / "a.npy", nan)
    assert "row 4 of the act" in refused(["eval", str(out), "--acts", str(other)], capsys)
    sae = load(out / "resid" / "12-2-0")
    sae.W_dec[0] = torch.inf
    saes.save(sae, out / "resid" / "12-2-0")
    said = refused(["eval", str(out), "--acts", str(acts), "--json"], capsys)
    assert "12-2-0: what it reconstructs is not finite" in said


def test_another_folder_is_refused_though_nothing_would_be_read(
    acts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert main(train_line(acts, out)) == 0
    capsys.readouterr()
    assert "shuffle_buffer is 131072" in refused(train_line(acts, out, "--chunk-rows", "9"), capsys)
    np.save(acts / "a.npy", rows(400, 5))
    assert "another stream (rows_sha256" in refused(train_line(acts, out), capsys)
    np.save(acts / "a.npy", rows(400, 0))
    moved = acts.rename(tmp_path / "moved")
    assert main(train_line(moved, out)) == 0, "the same rows, wherever they lie"
    capsys.readouterr()
    (out / "stream.json").write_text("[")
    assert "stream.json: damaged" in refused(train_line(moved, out), capsys)
    (out / "stream.json").unlink()
    assert main(train_line(moved, out)) == 0, "a run of before there was such a file"


def test_identity_of_a_folder_of_safetensors(tmp_path: Path) -> None:
    both = {"x": torch.from_numpy(rows(100, 0)), "y": torch.from_numpy(rows(100, 1))}
    identities = []
    for change in range(3):
        save_file(both, tmp_path / "a.safetensors")
        identities.append(ActivationFolder(tmp_path).identity)
        both["y"][99 if change else 96, 2] += 1
    assert identities[0]["d_in"] == {"x": 6, "y": 6}
    assert identities[0] != identities[1], "row 96 is one of those that are looked at"


def test_a_device_that_is_not_there_is_refused_before_anything_is_made(
    acts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = train_line(acts, tmp_path / "out", "--device", "mps")
    assert "use cpu or cuda" in refused(line, capsys)
    assert not (tmp_path / "out").exists()


def test_a_full_disk_while_metrics_are_written_is_one_line(
    acts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = Path.open
    line = train_line(acts, tmp_path / "out", "--chunk-rows", "200", "--batch-size", "50")

    def full(path: Path, mode: str = "r", *args: object, **options: object) -> object:
        if mode == "a":
            raise OSError(28, "No space left on device")
        return plain(path, mode, *args, **options)  # type: ignore[call-overload]

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", full)
        said = refused(line, capsys)
    assert "12-2-0.jsonl: could not be written (No space left on device)" in said
    assert main(line) == 0
    assert len((tmp_path / "out" / "resid" / "12-2-0.jsonl").read_text().splitlines()) == 3


def test_a_log_has_the_last_line_of_a_short_run(
    acts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(train_line(acts, tmp_path / "out")) == 0
    assert capsys.readouterr().err.startswith("600/600 tokens  ")


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
        ({"a.npy": np.array([["a", "b"]])}, "not numbers"),
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
