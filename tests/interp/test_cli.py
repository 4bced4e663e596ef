"""The command line: quick help, contract output, and one line for every wrong input."""

from __future__ import annotations

import errno
import json
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from interp import cli
from interp.cli.parts import count, print_table, size
from interp.errors import UserError


def refused(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    """The one line of stderr of a refused command."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        try:
            status = cli.main(argv)
        except SystemExit as stop:  # the parser's own way out
            status = stop.code if isinstance(stop.code, int) else 1
    captured = capsys.readouterr()
    assert status == 2, captured
    lines = captured.err.strip().splitlines()
    assert len(lines) == 1, captured.err
    return lines[0]


def test_help_lists_the_commands_without_heavy_imports() -> None:
    code = (
        "import sys; from interp import cli\n"
        "try: cli.main(['--help'])\n"
        "except SystemExit as stop: assert stop.code == 0\n"
        "heavy = {'torch', 'transformers', 'pandas', 'altair', 'numpy'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    for command in ("models", "loss", "capture", "plan", "study", "report", "ladder"):
        assert command in done.stdout


@pytest.mark.parametrize(
    ("text", "value"),
    [("200000", 200_000), ("2e5", 200_000), ("200k", 200_000), ("1.5M", 1_500_000)],
)
def test_numbers_of_tokens(text: str, value: int) -> None:
    assert count(text) == value


@pytest.mark.parametrize(("text", "value"), [("4096", 4096), ("20GB", 20 * 10**9), ("1.5kb", 1500)])
def test_numbers_of_bytes(text: str, value: int) -> None:
    assert size(text) == value


def test_tables_line_numbers_up_and_keep_their_title_on_a_line(
    capsys: pytest.CaptureFixture[str],
) -> None:
    title = "a title that is a good deal wider than the table under it is"
    rows = [{"name": "a", "n": 1_000, "x": "2.5"}, {"name": "bb", "n": 20, "x": "-"}]
    print_table(rows, title)
    head, columns, *lines = capsys.readouterr().out.splitlines()
    assert head == title
    assert columns.split() == ["name", "n", "x"]
    assert lines == ["a     1,000  2.5", "bb       20    -"]
    print_table(rows, "")
    assert capsys.readouterr().out.startswith("name")


def test_a_study_without_its_file_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert "nowhere.yaml: No such file" in refused(capsys, "plan", "nowhere.yaml")


def test_loss_answers_as_in_the_contract(
    tiny_dir: Path, text_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(
        ["loss", str(tiny_dir), "--text", str(text_folder), "--split", "all", "--json"]
    ) == 0  # fmt: skip
    [row] = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    assert row["model"] == str(tiny_dir)
    low, high = row["loss_ci_nats_per_token"]
    assert low <= row["loss_nats_per_token"] <= high
    assert 0 < row["loss_nats_per_byte"] < row["loss_nats_per_token"]


def test_loss_takes_a_stride(
    tiny_dir: Path, text_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = ("loss", str(tiny_dir), "--text", str(text_folder), "--split", "all", "--json")
    assert cli.main(line) == cli.main([*line, "--stride", "16"]) == 0
    out = capsys.readouterr().out.replace("]\n[", ",")
    blocks, strided = json.loads(out)
    assert (blocks["stride"], strided["stride"]) == (None, 16)
    assert strided["n_tokens"] > blocks["n_tokens"]  # position 0 of a block has a context too
    assert "use 1 to 31" in refused(capsys, *line, "--stride", "32")


def test_loss_takes_a_dtype_and_a_device(
    tiny_dir: Path, text_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = ("loss", str(tiny_dir), "--text", str(text_folder), "--split", "all", "--json")
    losses = {}
    for dtype in ("float32", "bfloat16"):
        assert cli.main([*line, "--dtype", dtype]) == 0
        [row] = json.loads(capsys.readouterr().out)
        losses[dtype] = row["loss_nats_per_token"]
    assert losses["float32"] != losses["bfloat16"]
    assert losses["float32"] == pytest.approx(losses["bfloat16"], rel=0.02)
    assert "unknown device 'abacus'" in refused(capsys, *line, "--device", "abacus")
    assert "float8" in refused(capsys, *line, "--dtype", "float8")


def test_loss_prints_a_table(
    tiny_dir: Path, text_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cli.main(["loss", str(tiny_dir), "--text", str(text_folder), "--split", "all"])
    assert "nats/token" in capsys.readouterr().out


def captured(model: Path, text: Path, out: Path, *more: str) -> tuple[str, ...]:
    return ("capture", str(model), "--out", str(out), "--hook-points", "resid_post",
            "--tokens", "150", "--text", str(text), "--split", "all", *more)  # fmt: skip


def test_capture_answers_and_resumes(
    tiny_dir: Path, text_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = captured(tiny_dir, text_folder, tmp_path / "s", "--loss", "--store-dtype", "bfloat16")
    assert cli.main([*line, "--json"]) == 0
    facts = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    assert facts["hook_points"] == [f"blocks.{i}.hook_resid_post" for i in range(3)]
    assert facts["dtype"] == "bfloat16"
    assert facts["n_tokens"] == 150
    assert 0 < facts["n_rows"] < 150
    assert facts["dropped_fraction"] == pytest.approx(1 - facts["n_rows"] / 150)
    assert 3 < facts["loss_nats_per_token"] < 20
    before = {f: f.stat().st_mtime_ns for f in (tmp_path / "s").glob("acts-*")}
    assert cli.main(line) == 0
    assert {f: f.stat().st_mtime_ns for f in (tmp_path / "s").glob("acts-*")} == before
    assert "dropped_fraction" in capsys.readouterr().out


def test_a_wrong_capture_is_one_line_and_writes_nothing(
    tiny_dir: Path, text_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "s"
    for more, complaint in (
        (("--hook-points", "blocks.9.hook_resid_post"), "3 layers"),
        (("--budget", "2kb"), "would fit"),
        (("--budget", "plenty"), "plenty"),
        (("--device", "abacus"), "abacus"),
        (("--threads", "0"), "--threads 0"),
        (("--threads", "99999999999999999999"), "use 1 to 1024"),
        (("--batch", "0"), "--batch 0"),
    ):
        assert complaint in refused(capsys, *captured(tiny_dir, text_folder, out, *more))
        assert not out.exists()
    out.write_text("mine")
    assert "is a file" in refused(capsys, *captured(tiny_dir, text_folder, out))


def test_a_refused_capture_does_not_warn_first(
    tiny_dir: Path, text_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The text is shorter than asked for; what is wrong is the hook point, or the budget."""
    line = captured(tiny_dir, text_folder, tmp_path / "s", "--tokens", "1M")
    assert "3 layers" in refused(capsys, *line, "--hook-points", "blocks.9.hook_resid_post")
    assert "would fit" in refused(capsys, *line, "--budget", "9kb")
    assert cli.main(line) == 0
    assert "warning: " in capsys.readouterr().err


def test_a_warning_that_models_share_is_given_once(
    tiny_dir: Path, text_folder: Path, save_tiny: Callable[..., Path], tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    other = save_tiny(tmp_path / "other", seed=1)
    capsys.readouterr()
    line = ["loss", str(tiny_dir), str(other), "--text", str(text_folder), "--split", "all"]
    assert cli.main(line) == 0
    assert capsys.readouterr().err.count("interp: warning: ") == 1


def test_names_that_no_file_can_have_are_one_line(
    tiny_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    long = "x" * 300
    assert "name too long" in refused(capsys, "loss", long)
    assert "name too long" in refused(capsys, "loss", str(tiny_dir), "--text", long)
    assert "name too long" in refused(capsys, *captured(tiny_dir, tmp_path, Path(long)))


def test_memory_that_is_not_there_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import torch

    def fails(args: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")

    monkeypatch.setattr(cli.models, "_models", fails)
    assert "out of memory. Tried to allocate 20.00 MiB; use" in refused(capsys, "models")


def test_models_lists_what_loads_here(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["models", "--json"]) == 0
    assert isinstance(json.loads(capsys.readouterr().out), list)


def test_an_unknown_model_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert "gpt5" in refused(capsys, "loss", "gpt5")
    assert "ladder/d063" in refused(capsys, "loss", "ladder/d063")


def test_a_directory_without_a_tokenizer_is_one_line(
    tiny_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bare = tmp_path / "bare"
    bare.mkdir()
    for name in ("config.json", "model.safetensors"):
        shutil.copy(tiny_dir / name, bare / name)
    assert "tokenizer" in refused(capsys, "loss", str(bare))


def test_a_truncated_checkpoint_is_one_line(
    tiny_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(tiny_dir, broken)
    weights = broken / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    assert str(broken) in refused(capsys, "loss", str(broken))


def test_empty_text_is_one_line(
    tiny_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty.txt").write_text("")
    line = refused(capsys, "loss", str(tiny_dir), "--text", str(tmp_path / "empty.txt"))
    assert "empty.txt" in line


def test_token_ids_beyond_the_vocabulary_are_one_line(
    tmp_path: Path,
    save_tiny: Callable[..., Path],
    text_folder: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = save_tiny(tmp_path / "small-vocabulary")
    from transformers import GPT2LMHeadModel

    model = GPT2LMHeadModel.from_pretrained(folder)
    model.resize_token_embeddings(100)
    model.save_pretrained(folder)
    capsys.readouterr()
    line = refused(capsys, "loss", str(folder), "--text", str(text_folder), "--split", "all")
    assert "100" in line


@pytest.mark.parametrize(
    ("argv", "complaint"),
    [
        (("study", "quik"), "quik"),
        (("study", "nowhere.yaml"), "nowhere.yaml"),
        (("study", "quick", "--tokens", "many"), "many"),
        (("study", "quick", "--seeds", "1"), "n_seeds"),
        (("study", "gpt2", "--tokens", "1e6"), "model 'gpt2' is not here"),
        (("plan", "quik"), "quik"),
        (("loss",), "MODEL"),
        (("report", "nowhere"), "nowhere"),
        (("frobnicate",), "frobnicate"),
        (("ladder", "train", "--dir", "nowhere"), "interp ladder corpus"),
    ],
)
def test_a_wrong_command_line_is_one_line(
    argv: tuple[str, ...],
    complaint: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert complaint in refused(capsys, *argv)
    assert list(tmp_path.iterdir()) == [], "a refused command writes nothing"


def test_an_interrupt_says_how_to_go_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli.models, "_models", interrupted)
    assert cli.main(["models"]) == 130
    assert "same line" in capsys.readouterr().err


def test_a_disk_that_fills_in_a_write_is_told_in_a_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(args: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")  # as write() has it: without a name

    monkeypatch.setattr(cli.models, "_models", full)
    assert cli.main(["models"]) == 2
    assert capsys.readouterr().err == (
        "interp: No space left on device; make room, then run the same line again\n"
    )


def test_a_defect_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    for error in (ZeroDivisionError(), FileNotFoundError(2, "No such file", "x"), OSError(13, "x")):

        def defect(args: object, error: Exception = error) -> None:
            raise error

        monkeypatch.setattr(cli.models, "_models", defect)
        with pytest.raises(type(error)):
            cli.main(["models"])


def test_a_study_records_the_line_it_was_started_by(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Whatever started the program: `python -m interp.cli` too."""
    from interp import study

    told: list[str] = []

    def refuses(*args: Any, command: str, **options: Any) -> None:
        told.append(command)
        raise UserError("enough")

    monkeypatch.setattr(study, "run_study", refuses)
    words = ["study", "quick", "--seeds", "3", "--out", str(tmp_path / "a folder")]
    assert cli.main(words) == 2
    monkeypatch.setattr(sys, "argv", ["/somewhere/interp/cli/__main__.py", *words])
    assert cli.main() == 2
    assert told == [shlex.join(["interp", *words])] * 2
