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


def altered(part: Run, to: Path, name: str, change: Callable[[Any], None]) -> Path:
    """A copy of a study with one of its records changed."""
    shutil.copytree(part.path, to)
    data = json.loads((to / name).read_text())
    change(data)
    (to / name).write_text(json.dumps(data))
    return to


def test_studies_that_do_not_belong_together_are_refused_in_a_line(
    parts: list[Run], tmp_path: Path
) -> None:
    first, second = (part.path for part in parts)

    def weights(facts: list[dict[str, Any]]) -> None:
        facts[-1]["weights_sha256"] = "0" * 64

    def version(facts: list[dict[str, Any]]) -> None:
        facts[0]["provenance"]["torch"] = "1.0"

    other_weights = altered(parts[1], tmp_path / "weights", "models.json", weights)
    other_version = altered(parts[1], tmp_path / "version", "models.json", version)
    other_seeds = tmp_path / "seeds"
    shutil.copytree(second, other_seeds)
    text = (other_seeds / "config.resolved.yaml").read_text()
    (other_seeds / "config.resolved.yaml").write_text(text.replace("n_seeds: 2", "n_seeds: 3"))
    no_manifest = tmp_path / "torn"
    shutil.copytree(second, no_manifest)
    (no_manifest / "manifest.json").write_text('{"versions"')
    for folders, why in (
        ([first], "two or more"),
        ([first, first], "was counted in"),
        ([first, other_weights], "other weights"),
        ([first, other_version], "other torch"),
        ([first, other_seeds], "n_seeds is 3"),
        ([first, no_manifest], "no manifest.json that can be read"),
        ([first, tmp_path / "nowhere"], "is no finished study"),
    ):
        with pytest.raises(UserError, match=why):
            merge(folders, tmp_path / "out")
        assert not (tmp_path / "out").exists(), why
    with pytest.raises(UserError, match="choose another --out"):
        merge([first, second], first)
    with pytest.raises(UserError, match="holds no merged study"):
        merge([first, second], other_seeds)


def test_no_study_is_run_into_a_merged_one(
    merged: Run, config: StudyConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (merged.path / "summary.json").read_bytes()
    with pytest.raises(UserError, match="merged from other studies"):
        run_study(config, merged.path, quiet=True, redo=True)
    assert (merged.path / "summary.json").read_bytes() == before
    assert main(["status", str(merged.path)]) == 0
    assert "tables alone" in " ".join(capsys.readouterr().out.split())


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
