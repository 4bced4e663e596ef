"""Units of a study: what is redone after a change, what is refused, what a failure costs."""

from __future__ import annotations

import errno
import json
import os
import resource
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from tiny_study import tiny_study

import saes
from interp import cli, durable, executor, measure, provenance, results
from interp.config import StudyConfig
from interp.durable import only_writer
from interp.errors import NoSpaceError, StudyFailedError, UserError
from interp.graph import Graph
from interp.run import Run, RunFolder, folder_name, open_run
from interp.sources import Sources
from interp.status import status
from interp.study import run_study
from interp.units import Inputs, Record, Unit, read_record, record_file, running_file, write_record
from saes.errors import SAEError


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory, save_tiny: Callable[..., Path]) -> StudyConfig:
    return tiny_study(tmp_path_factory.mktemp("family"), save_tiny)


@pytest.fixture(scope="module")
def run(config: StudyConfig, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return run_study(config, tmp_path_factory.mktemp("runs") / "tiny", quiet=True)


@pytest.fixture
def out(run: Run, tmp_path: Path) -> Path:
    """A copy of the finished study, to be changed."""
    return Path(shutil.copytree(run.path, tmp_path / "copy"))


@pytest.fixture
def done(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of units that were run, the analysis by its own."""
    names: list[str] = []
    original, write_report = measure.Measurement.run, results.write_report

    def note(self: measure.Measurement, unit: Unit) -> None:
        names.append(f"{Path(unit.model).name} {unit.control} {unit.kind}")
        original(self, unit)

    def note_report(root: Path) -> Path:
        names.append("analysis")
        return write_report(root)

    monkeypatch.setattr(measure.Measurement, "run", note)
    monkeypatch.setattr(results, "write_report", note_report)
    return names


def graph_of(run: Run) -> Graph:
    folder = RunFolder(run.path)
    sources = Sources.read(folder)
    assert sources is not None
    return Graph(run.config, folder, sources)


def bytes_of(root: Path) -> bytes:
    return (root / "results.parquet").read_bytes()


# Records


def test_every_unit_has_a_record_with_hashes_of_its_artifacts(run: Run) -> None:
    graph = graph_of(run)
    assert [u.kind for u in graph.units[:5]] == ["loss", "streams", "pilots", "saes", "rows"]
    manifest = json.loads((run.path / "manifest.json").read_text())
    assert list(manifest["units"]) == [str(unit) for unit in graph.units]
    listed: set[str] = set()
    for unit in graph.units:
        record = graph.record(unit)
        assert record is not None
        assert manifest["units"][str(unit)] == record.inputs.sha256
        for path, sha256 in record.artifacts.items():
            assert durable.sha256(run.path / path) == sha256, path
        listed |= set(record.artifacts)
    made = {p.relative_to(run.path).as_posix() for p in run.path.glob("work/*/**/*") if p.is_file()}
    made |= {p.relative_to(run.path).as_posix() for p in run.path.glob("saes/**/*") if p.is_file()}
    assert {p for p in made if "/units/" not in p} == listed


def test_a_record_holds_neither_times_nor_places_among_its_inputs(run: Run, tmp_path: Path) -> None:
    graph = graph_of(run)
    there = Path(shutil.copytree(run.path, tmp_path / "elsewhere"))
    moved = Graph(run.config, RunFolder(there), graph.sources)
    for unit in graph.units:
        assert moved.inputs(unit) == graph.inputs(unit)
        assert moved.is_done(unit)


def test_inputs_in_common_are_those_of_equal_settings() -> None:
    before = Inputs({"a": 1}, {"file": "x"}, {"one": "s", "two": "s"})
    assert before.in_common(Inputs({"a": 1}, {"file": "x"}, {"one": "s", "two": "t"})) == {"one"}
    assert not before.in_common(Inputs({"a": 2}, {"file": "x"}, before.items))
    assert not before.in_common(Inputs({"a": 1}, {"file": "y"}, before.items))


def test_a_damaged_record_counts_as_none(tmp_path: Path) -> None:
    record = Record(Inputs({"a": [1]}, {}, {"one": ""}), {"f": "0"}, 1.5, "cpu", 2)
    write_record(tmp_path / "units" / "r.json", record)
    assert read_record(tmp_path / "units" / "r.json") == record
    for damage in ("", "[]", "{}", '{"inputs": {"settings": 1}}'):
        (tmp_path / "units" / "r.json").write_text(damage)
        assert read_record(tmp_path / "units" / "r.json") is None


# What is redone


def test_nothing_is_done_twice_not_even_the_report(
    run: Run, config: StudyConfig, done: list[str]
) -> None:
    run_study(config, run.path, quiet=True)
    assert done == []


def test_a_seed_more_trains_its_own_saes_and_measures_again(
    run: Run,
    config: StudyConfig,
    out: Path,
    tmp_path: Path,
    done: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    trained: list[int] = []
    train = saes.train

    def note(stream: Any, configs: list[Any], **more: Any) -> Any:
        trained.extend(c.seed for c in configs)
        return train(stream, configs, **more)

    monkeypatch.setattr(saes, "train", note)
    more = config.model_copy(update={"n_seeds": 3})
    grown = run_study(more, out, quiet=True)
    assert set(trained) == {2}
    assert {name.split()[-1] for name in done} == {"saes", "rows", "analysis"}
    assert grown.config.n_seeds == 3
    monkeypatch.undo()
    assert bytes_of(out) == bytes_of(run_study(more, tmp_path / "new", quiet=True).path)


def test_another_size_is_trained_beside_the_first(
    config: StudyConfig, out: Path, tmp_path: Path, done: list[str]
) -> None:
    more = config.model_copy(update={"d_sae_per_d_model": (2, 3)})
    run_study(more, out, quiet=True)
    kinds = [name.split()[1:] for name in done if "w16" in name]
    # The rows of the first size stand; the twin has the first size only.
    assert kinds == [["trained", "pilots"], ["trained", "saes"], ["trained", "rows"]]
    assert bytes_of(out) == bytes_of(run_study(more, tmp_path / "new", quiet=True).path)


@pytest.mark.parametrize(
    ("change", "kinds"),
    [
        ({"splice_tokens": 2_048}, {"rows"}),
        ({"loss_tokens": 3_072}, {"loss"}),
        # k <= 4 and the pilots' k stay what they are: the SAEs do too.
        ({"held_out_tokens": 3_072}, {"pilots", "rows"}),
        ({"sae_tokens": 4_097}, {"pilots", "saes", "rows"}),
    ],
)
def test_a_changed_setting_redoes_what_depends_on_it_when_told_to(
    config: StudyConfig, out: Path, done: list[str], change: dict[str, Any], kinds: set[str]
) -> None:
    changed = config.model_copy(update=change)
    before = bytes_of(out)
    with pytest.raises(UserError, match=f"another study \\({next(iter(change))} is .*--redo"):
        run_study(changed, out, quiet=True)
    assert (done, bytes_of(out)) == ([], before)
    again = run_study(changed, out, quiet=True, redo=True)
    assert {name.split()[-1] for name in done} == {*kinds, "analysis"}
    assert again.config == changed


def test_a_redo_that_was_killed_goes_on_without_being_told_again(
    config: StudyConfig, out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changed = config.model_copy(update={"sae_tokens": 6_144})

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(measure.Measurement, "_train", killed)
        with pytest.raises(KeyboardInterrupt):
            run_study(changed, out, quiet=True, redo=True)
    with pytest.raises(UserError, match="no finished study"):
        open_run(out)
    run_study(changed, out, quiet=True)
    assert bytes_of(out) == bytes_of(run_study(changed, tmp_path / "new", quiet=True).path)


def test_a_model_less_takes_its_files_with_it(config: StudyConfig, out: Path) -> None:
    fewer = config.model_copy(update={"models": config.models[:1]})
    run_study(fewer, out, quiet=True, redo=True)
    label = folder_name(config.models[1], "trained")
    assert not list(out.rglob(f"{label}*"))
    assert len(open_run(out).models) == 1


# What is refused


def test_an_edited_artifact_is_named_and_measured_again_when_told_to(
    run: Run, config: StudyConfig, out: Path, done: list[str]
) -> None:
    [rows] = (out / "work" / folder_name(config.models[1], "trained") / "rows").iterdir()
    rows.write_bytes(rows.read_bytes() + b"\0")
    name = rows.relative_to(out).as_posix()
    with pytest.raises(UserError, match=f"{name} is not what its unit wrote .*--redo"):
        run_study(config, out, quiet=True)
    assert "edited" in [part.state for part in status(out).parts]
    run_study(config, out, quiet=True, redo=True)
    assert done[0] == "w24 trained rows"
    assert bytes_of(out) == bytes_of(run.path)


@pytest.mark.parametrize("name", ["results.parquet", "summary.json"])
def test_an_edited_table_is_named_and_written_again_when_told_to(
    run: Run, config: StudyConfig, out: Path, done: list[str], name: str
) -> None:
    edited = (out / name).read_bytes() + b" "
    (out / name).write_bytes(edited)
    with pytest.raises(UserError, match=f"{name} is not what the study wrote; .*--redo"):
        run_study(config, out, quiet=True)
    assert (out / name).read_bytes() == edited
    run_study(config, out, quiet=True, redo=True)
    assert done == ["analysis"]
    assert bytes_of(out) == bytes_of(run.path)
    (out / name).unlink()
    assert run_study(config, out, quiet=True).summary == run.summary


def test_clocks_decide_nothing(run: Run, config: StudyConfig, out: Path, done: list[str]) -> None:
    """Files of tomorrow, files from before the epoch's first hour, and both beside each other."""
    files = sorted(path for path in out.rglob("*") if path.is_file())
    for seconds in ((0, 0), (4e9, 4e9), (0, 4e9)):
        for number, path in enumerate(files):
            os.utime(path, (seconds[number % 2],) * 2)
        assert {part.state for part in status(out).parts} == {"done"}
        run_study(config, out, quiet=True)
    assert done == []


def test_an_artifact_that_is_gone_is_made_again(
    run: Run, config: StudyConfig, out: Path, done: list[str]
) -> None:
    [sae, *_] = (out / "saes" / folder_name(config.models[0], "trained")).glob("*/*")
    shutil.rmtree(sae)
    run_study(config, out, quiet=True)
    assert done == ["w16 trained saes"]
    assert durable.sha256(sae / "cfg.json")


def test_results_of_a_version_without_records_are_left_alone(
    run: Run, config: StudyConfig, out: Path, done: list[str]
) -> None:
    for part in (out / "work").glob("*/"):
        shutil.rmtree(part / "units")
    (out / "work" / "sources.json").unlink()
    (out / "work" / folder_name(config.models[0], "trained") / "rows.parquet").write_text("old")
    with pytest.raises(UserError, match="kept no records"):
        run_study(config, out, quiet=True)
    assert {part.state for part in status(out).parts} == {"no record"}
    assert done == []
    run_study(config, out, quiet=True, redo=True)
    assert bytes_of(out) == bytes_of(run.path)
    assert not list(out.rglob("rows.parquet"))


def test_other_code_is_named_by_the_status_too(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(provenance, "code_sha256", lambda *, counting: "edited")
    found = status(run.path)
    assert {part.state for part in found.parts} == {"stale"}
    assert "code_sha256 was" in found.parts[0].detail
    assert set(found.n_units) == {"stale"}


# Failures


def test_ray_that_is_not_installed_is_one_line(
    config: StudyConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    away = config.model_copy(update={"executor": "ray"})
    with pytest.raises(UserError, match=r"pip install 'ray>="):
        run_study(away, tmp_path / "out", quiet=True)


def fail_in(monkeypatch: pytest.MonkeyPatch, where: str, error: Exception) -> None:
    original = measure.Measurement.run

    def failing(self: measure.Measurement, unit: Unit) -> None:
        if where in str(unit):
            raise error
        original(self, unit)

    monkeypatch.setattr(measure.Measurement, "run", failing)


def test_a_model_that_fails_does_not_stop_the_others(
    run: Run,
    config: StudyConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "study.yaml").write_text(config.to_yaml())
    line = ["study", str(tmp_path / "study.yaml"), "--out", str(tmp_path / "out")]
    with monkeypatch.context() as patch:
        fail_in(patch, "w16: pilots", ValueError("no\nsuch number"))
        assert cli.main(line) == 1
    told = capsys.readouterr()
    assert "report: " in told.out
    assert "failed: " in told.err
    assert "ValueError: no such number" in told.err
    found = open_run(tmp_path / "out")
    [lost] = found.failures
    assert (Path(lost["model"]).name, lost["unit"]) == ("w16", "pilots")
    assert found.summary["warnings"][0].startswith("failed and left out: ")
    assert "no such number" in (found.path / "report.html").read_text()
    # Its loss was measured, and so were its twin and the other model.
    assert len(found.models) == 2
    assert set(found.packing["model"]) == {config.models[1]}
    states = {(Path(p.model).name, p.control): p.state for p in status(found.path).parts}
    assert states == {
        ("w16", "trained"): "failed",
        ("w16", "random_init"): "done",
        ("w24", "trained"): "done",
    }
    # The same line again tries what failed, and is whole.
    assert cli.main(line) == 0
    assert bytes_of(found.path) == bytes_of(run.path)
    assert open_run(found.path).failures == []
    assert {part.state for part in status(found.path).parts} == {"done"}


def test_a_study_in_which_nothing_was_measured_has_no_results(
    config: StudyConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "study.yaml").write_text(config.to_yaml())
    fail_in(monkeypatch, "loss", MemoryError("of none"))
    with pytest.raises(StudyFailedError, match=r"w16: loss: MemoryError: of none"):
        run_study(config, tmp_path / "out", quiet=True)
    assert not (tmp_path / "out" / "summary.json").exists()
    line = ["study", str(tmp_path / "study.yaml"), "--out", str(tmp_path / "out")]
    assert cli.main(line) == 1


def test_losses_are_a_result_where_no_sae_could_be_trained(
    config: StudyConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fail_in(monkeypatch, "pilots", ValueError("no"))
    found = run_study(config, tmp_path / "out", quiet=True)
    assert len(found.failures) == 3
    assert len(found.models) == 2
    assert found.packing.empty
    assert (found.path / "report.html").exists()


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        SAEError("I/O error: No space left on device (os error 28)"),
        SAEError("I/O error: Disk quota exceeded (os error 122)"),
    ],
)
def test_a_full_disk_stops_the_study_and_a_place_to_go_on_remains(
    run: Run,
    config: StudyConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
) -> None:
    with monkeypatch.context() as patch:
        fail_in(patch, "w16: saes", error)
        with pytest.raises(NoSpaceError, match=r"[Nn]o space left|quota"):
            run_study(config, tmp_path / "out", quiet=True)
    assert not list(tmp_path.rglob("*.failed"))
    run_study(config, tmp_path / "out", quiet=True)
    assert bytes_of(tmp_path / "out") == bytes_of(run.path)


@contextmanager
def no_file_beyond(n_bytes: int) -> Iterator[None]:
    """The system itself refuses what is longer, as it does where a disk is full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("n_bytes", [4_096, 24_576])
def test_a_system_that_takes_no_more_bytes_loses_nothing(
    run: Run, config: StudyConfig, tmp_path: Path, n_bytes: int
) -> None:
    """At the weights of an SAE, which safetensors writes, and at the wider model's means."""
    out = tmp_path / "out"
    with no_file_beyond(n_bytes), pytest.raises(NoSpaceError, match="run the same line again"):
        run_study(config, out, quiet=True)
    assert not list(out.rglob("*.failed"))
    assert not list(out.rglob(".*"))
    run_study(config, out, quiet=True)
    assert bytes_of(out) == bytes_of(run.path)


def test_a_unit_that_another_process_holds_waits_and_is_then_found_done(
    run: Run, config: StudyConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph = graph_of(run)
    unit = graph.units[0]
    held = running_file(graph.folder, unit)
    held.touch()
    monkeypatch.setattr(executor, "LINGERING_SECONDS", 0.0)
    worker = executor.Worker(graph, None, None)
    with only_writer(held):
        failure = worker.run(unit)
    assert failure is not None
    assert "another process is writing there" in failure.error
    assert worker.run(unit) is None
    assert not list(run.path.rglob("*.running"))
    assert not list(run.path.rglob("*.failed"))


def test_a_worker_whose_model_is_another_says_so(run: Run, config: StudyConfig) -> None:
    graph = graph_of(run)
    models = {
        name: type(source)(**(vars(source) | {"weights_sha256": "0" * 64}))
        for name, source in graph.sources.models.items()
    }
    other = Graph(config, graph.folder, Sources(graph.sources.text_sha256, models))
    part = measure.Measurement(other, config.models[0], "trained", None, _Silent())
    with pytest.raises(UserError, match="weights_sha256 is another"):
        _ = part.model


class _Silent:
    def at(self, *_: object) -> None: ...


def test_status_tells_units_that_run_and_units_that_wait(
    run: Run, config: StudyConfig, out: Path
) -> None:
    graph = Graph(config, RunFolder(out), graph_of(run).sources)
    pilots = next(unit for unit in graph.units if unit.kind == "pilots")
    for name in ("pilots", "saes"):
        record_file(graph.folder, Unit(pilots.model, pilots.control, name)).unlink()
    held = running_file(graph.folder, pilots)
    held.touch()
    with only_writer(held):
        part = status(out).parts[0]
    states = {unit.unit.split(".")[0]: (unit.state, unit.why) for unit in part.units}
    assert part.state == "running"
    assert states["pilots"][0] == "running"
    assert states["saes"] == ("left", "waits for pilots")
    assert states["rows"] == ("left", "what it needs is not done")
    assert states["loss"][0] == "done"
    assert status(out).parts[0].state == "begun"
