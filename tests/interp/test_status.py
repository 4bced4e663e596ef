"""The state of a study's folder, read without touching it. States of units: test_units.py."""

from __future__ import annotations

import json
import os
import shutil
import time
from pathlib import Path
from typing import Any

import pytest

from interp.cli import main
from interp.config import StudyConfig
from interp.durable import is_held, only_writer
from interp.errors import UserError
from interp.graph import Graph, parts_of
from interp.run import CONFIG, RunFolder
from interp.sources import ModelSource, Sources
from interp.status import ago, status
from interp.units import Record, Unit, failure_file, files_of, record_file, write_record

CONFIGURED = StudyConfig(
    models=("a/one", "two", "three"),
    twins=("two",),
    gaussian=("two",),
    loss_only_models=("small",),
    check_convergence=False,
    n_seeds=2,
    threads=1,
)
SOURCES = Sources(
    "text", {name: ModelSource(16, 2, "w", "c", "t") for name in ("a/one", "two", "three", "small")}
)


def finish(graph: Graph, unit: Unit) -> None:
    """Files of a few bytes, and their record."""
    inputs = graph.inputs(unit)
    assert inputs is not None
    for item in inputs.items:
        for file in files_of(graph.folder, unit, item):
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(json.dumps({"k": 4}))
    paths = dict.fromkeys(graph.files(unit), "not read here")
    write_record(record_file(graph.folder, unit), Record(inputs, paths, 3.0, "cpu", 1))


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """One part done, one with a failure, one in training, one just begun, the others not."""
    monkeypatch.setattr("interp.durable.sha256", lambda path: "not read here")
    (tmp_path / CONFIG).write_text(CONFIGURED.to_yaml())
    graph = Graph(CONFIGURED, RunFolder(tmp_path), SOURCES)
    SOURCES.write(graph.folder)
    how_many = {"small": 1, "a/one": 5, "two": 3, "three": 1}
    for name, n in how_many.items():
        for unit in [u for u in graph.units if (u.model, u.control) == (name, "trained")][:n]:
            finish(graph, unit)
    checkpoint = graph.folder.work("two", "trained") / "training" / "ab" / "sae-0000.safetensors"
    checkpoint.parent.mkdir(parents=True)
    checkpoint.write_text("")
    failure = failure_file(graph.folder, Unit("two", "random_init", "loss"))
    failure.parent.mkdir(parents=True)
    failure.write_text(json.dumps({"error": "not finite", "trace": ""}))
    (tmp_path / "work" / "seconds").write_text("90.0\n")
    return tmp_path


def test_every_part_has_its_state(root: Path) -> None:
    found = status(root)
    states = {(p.model, p.control): (p.state, p.detail) for p in found.parts}
    assert states == {
        ("small", "trained"): ("done", "loss"),
        ("a/one", "trained"): ("done", "5 of 5 units; k 4; 2 SAEs"),
        ("two", "trained"): ("begun", "3 of 5 units; k 4; training checkpointed"),
        ("two", "random_init"): ("failed", "loss: not finite"),
        ("two", "matched_gaussian"): ("left", ""),
        ("three", "trained"): ("begun", "1 of 5 units"),
    }
    assert list(states) == [part[:2] for part in parts_of(CONFIGURED)]
    assert (found.n_done, found.finished, found.running, found.seconds) == (2, False, False, 90.0)
    assert found.n_units == {"done": 10, "left": 15, "failed": 1}


def test_a_unit_says_why_it_would_run_again(root: Path) -> None:
    changed = CONFIGURED.model_copy(update={"loss_tokens": 4_096})
    RunFolder(root).under_way.write_text(changed.to_yaml())
    [loss, *others] = status(root).parts[1].units
    assert (loss.state, loss.why) == ("stale", "loss_tokens was 262144, now it is 4096")
    assert {unit.state for unit in others} == {"done"}
    assert loss.seconds == 3.0


def test_before_the_first_sitting_all_is_left(tmp_path: Path) -> None:
    (tmp_path / CONFIG).write_text(CONFIGURED.to_yaml())
    found = status(tmp_path)
    assert {part.state for part in found.parts} == {"left"}
    assert not found.n_units


def test_looking_changes_nothing(root: Path) -> None:
    before = sorted((str(p), p.stat().st_mtime_ns) for p in root.rglob("*"))
    status(root)
    assert sorted((str(p), p.stat().st_mtime_ns) for p in root.rglob("*")) == before


def test_a_writer_is_seen_and_not_disturbed(root: Path) -> None:
    assert not is_held(root)
    assert not is_held(root / "gone"), "a unit's mark goes when the unit is done"
    with only_writer(root):
        assert is_held(root)
        assert status(root).running
        with pytest.raises(UserError, match="another process"), only_writer(root):
            pass
        with pytest.raises(UserError), only_writer(root, wait_seconds=0.3):
            pass
    assert not is_held(root)


@pytest.mark.parametrize("n_looks", [0, 1])
def test_a_file_may_go_between_two_looks(
    root: Path, n_looks: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As files do that a running study replaces or no longer needs."""
    [file] = root.rglob("sae-0000.safetensors")
    look, looks = Path.stat, []

    def stat(path: Path, **how: Any) -> os.stat_result:
        if path == file:
            looks.append(path)
            if len(looks) == n_looks + 1:
                file.unlink()
        return look(path, **how)

    before = status(root)
    monkeypatch.setattr(Path, "stat", stat)
    for _ in range(2):
        assert status(root).n_units == before.n_units
    assert not file.exists(), "it was looked at"


def test_a_folder_may_go_before_it_is_listed(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    [folder] = root.rglob("training")
    listing = os.scandir

    def scandir(path: Any = ".") -> Any:
        if str(path) == str(folder):  # removing it lists it, too, by a number
            shutil.rmtree(folder)
        return listing(path)

    monkeypatch.setattr(os, "scandir", scandir)
    begun = status(root).parts[2]
    assert (begun.model, begun.detail) == ("two", "3 of 5 units; k 4")


def test_an_artifact_that_goes_while_it_is_read_is_gone(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    [file] = root.rglob("a--one/model.json")

    def sha256(path: Path) -> str:
        if path == file:
            path.unlink()
            path.read_bytes()
        return "not read here"

    monkeypatch.setattr("interp.durable.sha256", sha256)
    loss = status(root).parts[1].units[0]
    assert (loss.state, loss.why) == ("left", "work/a--one/model.json is gone")


def test_the_command_prints_a_table_or_json(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (root / "summary.json").write_text("{}")
    assert main(["status", str(root)]) == 0
    assert "; no report yet; " in capsys.readouterr().out, "it was stopped while it drew"
    (root / "report.html").write_text("")
    assert main(["status", str(root)]) == 0
    shown = capsys.readouterr().out
    assert "2 of 6 parts done; report written; no process is at it; 1.5 minutes spent" in shown
    assert "units: 15 left, 10 done, 1 failed" in shown
    assert "two, untrained twin" in shown
    assert main(["status", str(root), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["n_done"] == 2
    assert found["n_units"] == {"done": 10, "left": 15, "failed": 1}
    assert found["parts"][3]["units"][0]["why"] == "not finite"
    assert len(found["parts"]) == 6
    assert main(["status", str(root / "work")]) == 2
    assert "holds no study" in capsys.readouterr().err


def test_a_study_that_something_changed_under_is_told_so(
    root: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("interp.provenance.code_sha256", lambda *, counting=True: "0" * 64)
    assert main(["status", str(root)]) == 0
    told = "0 of 6 parts done, 4 measured in part or whole before something changed; "
    assert told in capsys.readouterr().out


def test_times_are_told_in_minutes_and_hours(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    os.utime(file, (time.time() - 600, time.time() - 600))
    assert ago(file.stat().st_mtime) == "10 minutes ago"
    assert ago(time.time() - 3 * 3600) == "3 hours ago"
    assert ago(time.time() + 3600) == "0 minutes ago", "the clock was set back"
    assert ago(None) == ""
