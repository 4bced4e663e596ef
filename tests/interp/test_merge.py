"""Studies of different models, measured apart, are one study of them all."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from tiny_study import tiny_study

from interp import results
from interp.cli import main
from interp.config import StudyConfig
from interp.errors import UserError
from interp.merge import merge
from interp.run import Run, open_run
from interp.study import run_study

OF_THE_RUN = {"command", "wall_time_seconds", "merged_from"}


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory, save_tiny: Callable[..., Path]) -> StudyConfig:
    return tiny_study(tmp_path_factory.mktemp("family"), save_tiny, (16, 24, 32))


@pytest.fixture(scope="module")
def parts(config: StudyConfig, tmp_path_factory: pytest.TempPathFactory) -> list[Run]:
    """The two smaller models, the last one's loss beside them; then the last one."""
    *small, large = config.models
    root = tmp_path_factory.mktemp("parts")
    first = config.model_copy(update={"models": tuple(small), "loss_only_models": (large,)})
    second = config.model_copy(update={"models": (large,), "twins": ()})
    return [run_study(of, root / name, quiet=True) for name, of in (("a", first), ("b", second))]


@pytest.fixture(scope="module")
def merged(parts: list[Run], tmp_path_factory: pytest.TempPathFactory) -> Run:
    return merge([part.path for part in parts], tmp_path_factory.mktemp("merged"))


def test_merged_studies_are_the_study_of_all_their_models(
    merged: Run, config: StudyConfig, tmp_path: Path
) -> None:
    whole = run_study(config, tmp_path / "whole", quiet=True)
    pd.testing.assert_frame_equal(merged.results, whole.results)
    assert merged.config == whole.config
    said, expected = (
        {key: value for key, value in run.summary.items() if key not in OF_THE_RUN}
        for run in (merged, whole)
    )
    assert said == expected
    manifests = [json.loads((run.path / "manifest.json").read_text()) for run in (merged, whole)]
    for key in ("versions", "code_sha256", "text_sha256", "weights_sha256", "tokens_sha256"):
        assert manifests[0][key] == manifests[1][key]
    assert (merged.path / "report.html").exists()


def test_a_merged_study_tells_what_it_was_merged_from(merged: Run, parts: list[Run]) -> None:
    said = merged.summary["merged_from"]
    assert [len(one["models"]) for one in said] == [2, 1]
    spent = [part.summary["wall_time_seconds"] for part in parts]
    assert [one["wall_time_seconds"] for one in said] == spent
    assert merged.summary["wall_time_seconds"] == pytest.approx(sum(spent))
    assert merged.summary["command"].startswith("interp merge ")
    assert "2 studies" in (merged.path / "report.html").read_text()


def test_a_merge_can_be_merged_and_merged_again(
    parts: list[Run], config: StudyConfig, merged: Run, tmp_path: Path
) -> None:
    """In the order of a family that grows from sitting to sitting."""
    alone = config.model_copy(update={"models": config.models[:1]})
    rest = config.model_copy(update={"models": config.models[1:2], "twins": ()})
    runs = [run_study(of, tmp_path / str(i), quiet=True) for i, of in enumerate((alone, rest))]
    out = tmp_path / "merged"
    both = merge([run.path for run in runs], out)
    assert len(both.models) == 2
    every = merge([out, parts[1].path], tmp_path / "every")
    assert len(every.summary["merged_from"]) == 3
    pd.testing.assert_frame_equal(every.results, merged.results)
    again = merge([run.path for run in runs], out)  # over itself
    pd.testing.assert_frame_equal(again.results, both.results)


def altered(part: Run, to: Path, **changes: Callable[[Any], Any]) -> Path:
    """A copy of a study with records changed, each in place or for what is returned."""
    shutil.copytree(part.path, to)
    for name, change in changes.items():
        file = to / f"{name}.json"
        data = json.loads(file.read_text())
        file.write_text(json.dumps(change(data) or data))
    return to


def config_with(part: Run, to: Path, **fields: object) -> Path:
    shutil.copytree(part.path, to)
    changed = part.config.model_copy(update=fields)
    (to / "config.resolved.yaml").write_text(changed.to_yaml())
    return to


def as_unit(name: str) -> str:
    return name.strip("/").replace("/", "--")


def test_folders_in_any_order_are_the_same_study(
    parts: list[Run], merged: Run, tmp_path: Path
) -> None:
    turned = merge([part.path for part in reversed(parts)], tmp_path / "turned")
    pd.testing.assert_frame_equal(turned.results, merged.results)
    for key in set(merged.summary) - OF_THE_RUN:
        assert turned.summary[key] == merged.summary[key], key


def test_what_failed_in_a_part_is_told_and_an_exit_status(
    parts: list[Run], config: StudyConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A model that not even has a loss; and one that a part lost and another has counted."""
    lost = {"control": "trained", "unit": "loss", "error": "out of memory"}
    ours, theirs = lost | {"model": "gone"}, lost | {"model": config.models[-1]}

    def with_failures(summary: dict[str, Any]) -> None:
        summary["failures"] = [ours, theirs]

    first = config_with(parts[0], tmp_path / "a", models=(*parts[0].config.models, "gone"))
    again = altered(open_run(first), tmp_path / "lost", summary=with_failures)
    folders = [str(again), str(parts[1].path)]
    for i, order in enumerate((folders, folders[::-1])):
        out = tmp_path / f"out{i}"
        assert main(["merge", *order, "--out", str(out)]) == 1
        assert "failed: gone" in capsys.readouterr().err
        run = open_run(out)
        assert run.failures == [ours]
        assert any(text.startswith("failed and left out: gone") for text in run.summary["warnings"])
        assert run.config.models == (*config.models, "gone")


def test_machines_may_differ_and_are_told_of(parts: list[Run], tmp_path: Path) -> None:
    def elsewhere(manifest: dict[str, Any]) -> None:
        manifest |= {"processors": ["Other"], "threads": 12, "platform": "Elsewhere"}
        manifest |= {"peak_memory_bytes": 1 << 50, "text_warnings": ["a page was left out"]}
        manifest["versions"]["python"] = "3.11.99"

    other = altered(parts[1], tmp_path / "b", manifest=elsewhere)
    run = merge([parts[0].path, other], tmp_path / "out")
    told = " ".join(run.summary["warnings"])
    assert "2 kinds of processor" in told
    assert "threads 1 and 12" in told
    assert "a page was left out" in told
    manifest = json.loads((run.path / "manifest.json").read_text())
    assert manifest["threads"] == [1, 12]
    assert manifest["peak_memory_bytes"] == 1 << 50
    assert "3.11.99" in manifest["versions"]["python"]
    assert "cpu" not in manifest


def test_what_a_model_rests_on_is_said_as_the_study_has_it_that_counted_it(
    parts: list[Run], config: StudyConfig, tmp_path: Path
) -> None:
    """Its loss was measured in the other, too."""
    label = as_unit(config.models[-1])

    def elsewhere(manifest: dict[str, Any]) -> None:
        assert label in manifest["parity_error"]
        manifest["parity_error"][label] = 9.9

    other = altered(parts[0], tmp_path / "a", manifest=elsewhere)
    run = merge([parts[1].path, other], tmp_path / "out")
    manifest = json.loads((run.path / "manifest.json").read_text())
    assert manifest["parity_error"][label] != 9.9
    assert set(manifest["units"]) >= {f"{label}: loss", f"{label}: saes"}


def test_families_may_be_merged_and_each_model_keeps_its_own(
    parts: list[Run], tmp_path: Path
) -> None:
    def of_another(facts: list[dict[str, Any]]) -> None:
        for fact in facts:
            fact["family"] = "another"

    second = altered(parts[1], tmp_path / "facts", models=of_another)
    second = config_with(open_run(second), tmp_path / "b", family="another", preset="else")
    run = merge([parts[0].path, second], tmp_path / "out")
    assert (run.config.family, run.config.preset) == ("custom", "merged")
    assert set(run.models["family"]) == {"custom", "another"}
    assert set(run.results["family"]) == {"custom", "another"}


def test_studies_that_do_not_belong_together_are_refused_in_a_line(
    parts: list[Run], tmp_path: Path
) -> None:
    first, second = (part.path for part in parts)

    def changed(name: str, **changes: Callable[[Any], Any]) -> Path:
        return altered(parts[1], tmp_path / name, **changes)

    def of_last(**values: str) -> Callable[[Any], Any]:
        return lambda facts: facts[-1].update(values)

    stranger = changed("stranger", models=of_last(name="twin"))
    rows = parts[1].results
    rows.assign(model="twin").to_parquet(stranger / "results.parquet")
    bare, torn, no_column = (tmp_path / name for name in ("bare", "torn", "column"))
    for copy in (bare, torn, no_column):
        shutil.copytree(second, copy)
    (bare / "manifest.json").write_text('{"versions"')
    (torn / "results.parquet").write_bytes(b"PAR1")
    rows.drop(columns="d_sae").to_parquet(no_column / "results.parquet")
    for folders, why in (
        ([first], "two or more"),
        ([first, first], "was counted in"),
        ([first, changed("w", models=of_last(weights_sha256="0" * 64))], "is another model"),
        ([first, changed("t", models=of_last(tokens_sha256="0" * 64))], "another tokenizer"),
        ([first, stranger], "has the weights of"),
        ([first, changed("code", manifest=lambda m: m.update(code_sha256="0"))], "other code"),
        ([first, changed("text", manifest=lambda m: m.update(text_sha256="0"))], "other text"),
        ([first, changed("torch", manifest=lambda m: m["versions"].update(torch="1"))],
         "other torch"),
        ([first, config_with(parts[1], tmp_path / "seeds", n_seeds=3)], "n_seeds is 3"),
        ([first, bare], "manifest.json cannot be read"),
        ([first, torn], "results.parquet cannot be read"),
        ([first, no_column], "no column 'd_sae'"),
        ([first, changed("old", manifest=lambda m: m.pop("text_warnings") and None)],
         "has no text_warnings"),
        ([first, changed("five", manifest=lambda _: 5)], "holds something else"),
        ([first, changed("none", models=lambda _: [{}])], "a model without name"),
        ([first, changed("cmd", summary=lambda s: s.pop("command") and None)], "has no command"),
        ([first, tmp_path / "nowhere"], "is no finished study"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=why) as error:
            merge(folders, tmp_path / "out")
        assert "\n" not in str(error.value)
        assert not (tmp_path / "out").exists(), why


def test_nothing_is_written_over_what_it_does_not_hold(
    parts: list[Run], config: StudyConfig, tmp_path: Path
) -> None:
    folders = [part.path for part in parts]
    for out in (folders[0], folders[0] / "figures", folders[0].parent):
        with pytest.raises(UserError, match="apart from it"):
            merge(folders, out)
    full = tmp_path / "full"
    full.mkdir()
    (full / "manifest.json").write_text("5")
    with pytest.raises(UserError, match="holds no merged study"):
        merge(folders, full)
    fewer = config.model_copy(update={"models": config.models[:1]})
    other = config.model_copy(update={"models": config.models[1:2], "twins": ()})
    alone = [
        run_study(of, tmp_path / str(i), quiet=True).path for i, of in enumerate((fewer, other))
    ]
    whole = merge(folders, tmp_path / "merged")
    before = (whole.path / "summary.json").read_bytes()
    with pytest.raises(UserError, match="holds a merged study with"):
        merge(alone, whole.path)
    assert (whole.path / "summary.json").read_bytes() == before


def test_a_merge_that_is_cut_short_leaves_what_was_there(
    parts: list[Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders, out = [part.path for part in parts], tmp_path / "place" / "merged"

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    def cut_short() -> None:
        with monkeypatch.context() as patch:
            patch.setattr(results, "write_report", killed)
            with pytest.raises(KeyboardInterrupt):
                merge(folders, out)

    cut_short()
    assert list(out.parent.iterdir()) == []
    before = merge(folders, out).summary
    cut_short()
    assert open_run(out).summary == before
    assert list(out.parent.iterdir()) == [out]
    assert f".{out.name}-" not in (out / "report.html").read_text()  # where it was made


def test_commands_that_need_saes_say_where_they_are(
    merged: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    for line in (
        ["labels", str(merged.path)],
        ["explore", str(merged.path)],
        ["push", str(merged.path), "me/saes", "--dry-run"],
    ):
        assert main(line) == 2, line
        assert "merged" in capsys.readouterr().err, line
    assert main(["report", str(merged.path)]) == 0


def test_no_study_is_run_into_a_merged_one(
    merged: Run, config: StudyConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (merged.path / "summary.json").read_bytes()
    with pytest.raises(UserError, match="merged from other studies"):
        run_study(config, merged.path, quiet=True, redo=True)
    assert (merged.path / "summary.json").read_bytes() == before
    assert main(["status", str(merged.path)]) == 2
    assert "was merged from other studies" in capsys.readouterr().err


def test_the_command_merges(
    parts: list[Run], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folders = [str(part.path) for part in parts]
    assert main(["merge", *folders, "--out", str(tmp_path / "family")]) == 0
    assert str(tmp_path / "family" / "report.html") in capsys.readouterr().out.replace("\n", "")
    assert len(open_run(tmp_path / "family").models) == 3
    assert main(["merge", *folders, "--out", folders[0]]) == 2
    error = capsys.readouterr().err
    assert error.startswith("interp: ")
    assert error.count("\n") == 1
