"""`interp ladder arm` and `budgets` from corpus to package, killed on the way and run again."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tiny_ladder
import torch

from interp import durable, ladder
from interp.cli import main
from interp.errors import UserError
from interp.fits import fit_jointly
from interp.ladder import build, work_folder
from interp.ladder import corpus as corpus_module
from interp.loss_table import read_table
from interp.models import load


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_ladder.write_corpus(tmp_path_factory.mktemp("ladder") / "work")


def files(folder: Path) -> dict[str, bytes]:
    """Weights and records; the record holds no times."""
    found = {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*.*")
             if p.is_file() and "tokenizer" not in p.parts}  # fmt: skip
    assert not [name for name in found if "partial" in name]
    return found


def test_a_killed_arm_goes_on_and_ships_the_same_models(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    works = [Path(shutil.copytree(corpus, tmp_path / name)) for name in ("killed", "whole")]
    packages = [tmp_path / f"{work.name}-package" for work in works]
    script = Path(tiny_ladder.__file__)
    line = [sys.executable, str(script), "arm", str(works[0]), str(packages[0])]
    process = subprocess.Popen(line, stderr=subprocess.DEVNULL, stdout=subprocess.PIPE)
    state = works[0] / "arm" / tiny_ladder.variants()[0].name / "state.safetensors"
    deadline = time.monotonic() + 240
    while not state.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert state.exists(), "it was killed while it trained"
    assert not list((packages[0] / "checkpoints").glob("*/model.safetensors"))
    for work, package in zip(works, packages, strict=True):
        with monkeypatch.context() as patch:
            tiny_ladder.redirect(package, patch.setattr)
            tiny_ladder.run("arm", work)
            names = ladder.arm_names()
            assert sorted(names) == sorted(f"ladder/{v.name}" for v in tiny_ladder.variants())
            for variant in tiny_ladder.variants():
                name = f"ladder/{variant.name}"
                assert ladder.levers(name) == {
                    "lever": {"name": variant.lever, "value": variant.value},
                    "rows": ladder.record(name)["rows"],
                }
                assert ladder.record(name)["recipe"] == variant.recipe.model_dump()
                assert name in (package / "MODEL_CARD.md").read_text()
            rows = {v.lever: load(f"ladder/{v.name}").unembedding for v in tiny_ladder.variants()}
    assert files(packages[0]) == files(packages[1])
    # Negative decay pulls the rows' norms to 1, and nothing else did.
    decayed, few = (rows[lever].norm(dim=1) for lever in ("row_decay", "projects"))
    assert (decayed - 1).abs().mean() < (few - 1).abs().mean()
    assert not torch.equal(rows["tokens"], rows["projects"])


def test_two_processes_share_the_arm_and_shipped_models_stay(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    work = Path(shutil.copytree(corpus, tmp_path / "work"))
    first, *others = (v.name for v in tiny_ladder.variants())
    with monkeypatch.context() as patch:
        tiny_ladder.redirect(tmp_path / "package", patch.setattr)
        (work / "arm" / first).mkdir(parents=True)
        with durable.only_writer(work / "arm" / first):
            tiny_ladder.run("arm", work)
        assert f"{first}: another process is at it" in capsys.readouterr().err
        assert sorted(ladder.arm_names()) == sorted(f"ladder/{name}" for name in others)
        before = files(tmp_path / "package")
        # Another machine, on which nothing of this one's work is left.
        shutil.rmtree(work / "arm")
        tiny_ladder.run("arm", work)
        assert len(ladder.arm_names()) == 1 + len(others)
        after = files(tmp_path / "package")
        weights = [name for name in before if name.endswith(".safetensors")]
        assert len(weights) == len(others)
        assert all(after[name] == before[name] for name in weights)
        assert sorted(p.name for p in (work / "arm").iterdir()) == [first]


def test_another_corpus_than_the_ladders_is_refused(corpus: Path, tmp_path: Path) -> None:
    work = Path(shutil.copytree(corpus, tmp_path / "work"))
    (work / "corpus_manifest.json").write_text("{}")
    for step in (build.train_arm, build.train_budgets):
        with pytest.raises(UserError, match="another corpus than the one that the ladder's"):
            step(work)
    assert not (work / "arm").exists()


def test_budgets_are_shipped_as_losses_and_fitted_with_the_tokens(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UserError, match="interp ladder budgets --ship"):
        read_without_budgets(tmp_path, monkeypatch)
    with monkeypatch.context() as patch:
        tiny_ladder.redirect(tmp_path / "package", patch.setattr)
        tiny_ladder.run("budgets", corpus)
        first = ladder.budgets()
        tiny_ladder.run("budgets", corpus)
        assert ladder.budgets() == first, "finished ones are not trained again"
        shutil.rmtree(corpus / "budgets")
        tiny_ladder.run("budgets", corpus)
        assert not (corpus / "budgets").exists(), "nor shipped ones, where nothing else is left"
        assert [(b["d_model"], b["n_tokens"]) for b in first] == [
            (16, tiny_ladder.STEPS * tiny_ladder.BATCH // 4),
            (16, tiny_ladder.STEPS * tiny_ladder.BATCH // 2),
        ]
        assert first[0]["held_out_projects_nats_per_token"] > 0
        assert "## Fewer tokens" in (tmp_path / "package" / "MODEL_CARD.md").read_text()
        assert not list((tmp_path / "package" / "checkpoints").glob("*/model.safetensors"))


def test_projects_are_those_of_the_corpus_that_is_there(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = Path(shutil.copytree(corpus, tmp_path / "work"))

    def made() -> bytes:
        return work_folder.projects_stream(work, 2).tobytes()

    text, tokenizer = work / "train.parquet", work / "tokenizer" / "tokenizer.json"
    first, kept = made(), (text.read_bytes(), tokenizer.read_text())
    table = pq.read_table(text)
    others = [one.replace("name", "none") for one in table["text"].to_pylist()]
    pq.write_table(table.set_column(1, "text", pa.array(others)), text)
    second = made()
    vocabulary = json.loads(kept[1])
    vocabulary["model"]["merges"] = []
    tokenizer.write_text(json.dumps(vocabulary))
    assert len({first, second, made()}) == 3
    # What was made of the first corpus is there still.
    monkeypatch.setattr(work_folder, "token_stream", pytest.fail)
    text.write_bytes(kept[0])
    tokenizer.write_text(kept[1])
    assert made() == first


def test_a_bracket_of_one_width_leaves_the_others_where_they_are(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    work = Path(shutil.copytree(corpus, tmp_path / "work"))
    pairs = {16: ((0.01, 0.005), (0.02, 0.005)), 32: ((0.01, 0.005),), 64: ((0.01, 0.005),)}
    monkeypatch.setattr(build, "BRACKET", pairs)
    monkeypatch.setattr(build, "BRACKET_TOKENS", dict.fromkeys(pairs, 1_024))

    def finish(d_model: int, loss: float) -> None:
        """Every run of a width, as `train` leaves it."""
        for lr, lr_hidden in pairs[d_model]:
            log = work / "bracket" / f"d{d_model:03d}-{lr:g}-{lr_hidden:g}" / "log.json"
            log.parent.mkdir(parents=True, exist_ok=True)
            log.write_text(json.dumps([{"held_out_loss_nats": loss}]))

    def losses(file: Path) -> dict[int, list[float]]:
        found: dict[int, list[float]] = {}
        for one in json.loads(file.read_text()):
            found.setdefault(one["d_model"], []).append(one["held_out_loss_nats"])
        return found

    for d_model, loss in ((32, 3.0), (16, 4.0), (32, 2.0)):
        finish(d_model, loss)
        assert main(["ladder", "bracket", "--dir", str(work), "--widths", str(d_model)]) == 0
    assert losses(work / "bracket.json") == {16: [4.0, 4.0], 32: [2.0]}
    capsys.readouterr()
    assert main(["ladder", "bracket", "--dir", str(work), "--widths", "16", "33"]) == 2
    said = capsys.readouterr().err
    assert "no learning rates are tried at width 33; give some of 16, 32, 64" in said
    # The package has a width that was tried elsewhere.
    shipped = tmp_path / "bracket.json"
    shipped.write_text(json.dumps([
        {"d_model": 64, "lr": 0.01, "lr_hidden": 0.005, "held_out_loss_nats": 1.0},
        {"d_model": 32, "lr": 0.01, "lr_hidden": 0.005, "held_out_loss_nats": 9.0},
    ]))  # fmt: skip
    (work / "corpus_manifest.json").write_text("{}")
    monkeypatch.setattr(build, "BRACKET_FILE", shipped)
    monkeypatch.setattr(corpus_module, "MANIFEST_FILE", tmp_path / "manifest.json")
    monkeypatch.setattr(build, "WIDTHS", ())
    assert main(["ladder", "train", "--dir", str(work), "--ship"]) == 0
    assert losses(shipped) == {16: [4.0, 4.0], 32: [2.0], 64: [1.0]}


def read_without_budgets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(ladder, "BUDGETS_FILE", tmp_path / "none.json")
        read_table("ladder-tokens")


def test_width_and_tokens_planted_together_come_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """L = 8 / d^0.7 + 300 / D^0.4 + 1.5 at three budgets: at fixed tokens alone it has no D."""

    def law(d: float, n: float) -> float:
        return 8 / d**0.7 + 300 / n**0.4 + 1.5

    records = {name: ladder.record(name) for name in ladder.names()}
    for record in records.values():
        record["held_out_projects_nats_per_token"] = law(
            record["d_model"], record["recipe"]["n_tokens"]
        )
    whole = next(iter(records.values()))["recipe"]["n_tokens"]
    budgets = [
        {"d_model": r["d_model"], "n_tokens": n, "held_out_projects_nats_per_token": law(
            r["d_model"], n)}
        for r in records.values() for n in (whole // 4, whole // 2)
    ]  # fmt: skip
    (tmp_path / "models.json").write_text(json.dumps(records))
    (tmp_path / "budgets.json").write_text(json.dumps(budgets))
    monkeypatch.setattr(ladder, "RECORDS_FILE", tmp_path / "models.json")
    monkeypatch.setattr(ladder, "BUDGETS_FILE", tmp_path / "budgets.json")
    table = read_table("ladder-tokens")
    assert len(table.rows) == 3 * len(records)
    found = fit_jointly(table, form="data", n_bootstrap=0)
    assert found.alpha.value == pytest.approx(0.7, abs=0.02)
    by_width = read_table("ladder")
    with pytest.raises(UserError, match="vary too little"):
        fit_jointly(by_width, form="data", n_bootstrap=0)
