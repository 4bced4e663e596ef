"""A finished study explored: its counts, what its SAEs do, and a kill survived."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_models import COVERED, D_MODEL, covered

import saes
from interp.capture import capture
from interp.cli import main
from interp.contextual import ContextualMeans
from interp.corpora import load_text
from interp.explore import exploring, pages
from interp.explore.groups import groups_of
from interp.explore.latents import MIN_SHOWN_F1
from interp.explore.lens import logit_lens
from interp.models import load, wrap
from interp.run import CONFIG, open_run
from interp.tokens import tokens


def data_of(file: Path) -> Any:
    found = re.fullmatch(r'superscope\("[^"]+",(.*)\);\n', file.read_text("ascii"), re.DOTALL)
    assert found is not None, file
    return json.loads(found[1])


@pytest.fixture(scope="module")
def explored(finished_study: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the study with its explorer. Do not write to it."""
    run = tmp_path_factory.mktemp("explored") / "run"
    shutil.copytree(finished_study, run)
    assert main(["explore", str(run)]) == 0
    return run


def test_everything_counted_can_be_opened(explored: Path) -> None:
    run = open_run(explored)
    groups = groups_of(run)
    # Two sizes and a second stream at the primary layer, one at the other; two for the twin.
    assert len(groups) == 4 + 2
    assert sum(g.main for g in groups) == 5
    counts = run.results[run.results.quantity == "reproducible_before_null"]
    found = []
    for group in groups:
        facts = pages.read_facts(explored / "explorer" / group.key)
        assert facts is not None
        assert facts.n_seeds == 3
        mine = counts[
            (counts.control == group.control)
            & (counts.layer == group.spot.layer)
            & (counts.about == group.spot.about)
            & (counts.d_sae == group.spot.d_sae)
        ]
        assert facts.matched
        assert facts.found == int(mine.value.iloc[0])
        found.append(facts.found)
        # The same classes from the tables: one of n seeds has a row in each of n tables.
        shares = [
            1 / by
            for seed in range(3)
            for by in data_of(explored / "explorer" / group.key / f"table-{seed}.js")["found"]
            if by is not None and by > 1
        ]
        assert sum(shares) == pytest.approx(facts.found)
    assert max(found) > 0


def test_a_threshold_that_was_not_recorded_is_found_again(explored: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(explored, run, ignore=shutil.ignore_patterns("explorer"))
    results = open_run(run).results
    recorded = results[results.quantity != "match_threshold"]
    assert len(recorded) < len(results)
    recorded.to_parquet(run / "results.parquet")
    assert main(["explore", str(run), "--layers", "0"]) == 0
    found = [pages.read_facts(f.parent) for f in (run / "explorer").rglob(pages.FACTS)]
    assert found
    for facts in found:
        assert facts is not None
        before = pages.read_facts(explored / "explorer" / facts.key)
        assert before is not None
        assert (facts.matched, facts.found) == (True, before.found)


def test_little_memory_gives_the_same_pages(
    explored: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    shutil.copytree(explored, run, ignore=shutil.ignore_patterns("explorer", "explore"))
    monkeypatch.setattr(exploring, "_CHUNK_BYTES", 1 << 14)
    monkeypatch.setattr(exploring, "MEMORY_BYTES", 1)
    assert main(["explore", str(run)]) == 0
    one, other = explored / "explorer", run / "explorer"
    files = {f.relative_to(one) for f in one.rglob("*") if f.is_file()}
    assert files == {f.relative_to(other) for f in other.rglob("*") if f.is_file()}
    for file in files:
        assert (one / file).read_bytes() == (other / file).read_bytes(), file


def test_passages_are_what_the_sae_does(explored: Path) -> None:
    run = open_run(explored)
    group = next(
        g for g in groups_of(run) if g.spot.about == "contextual" and g.control == "trained"
    )
    model, corpus = load(group.model), load_text(run.config.text)
    blocks = tokens(
        corpus, model, n_tokens=run.config.held_out_tokens, split="held_out", seed=run.config.seed
    )
    [chunk] = capture(model, blocks, group.spot.hook_point)
    means = ContextualMeans.load(
        next((explored / "work").glob(f"*model/means.{group.spot.layer}.safetensors"))
    )
    x = means.residual(chunk.acts[group.spot.hook_point], chunk.token_ids, chunk.positions)
    z = saes.load(group.folders[1]).encode_dense(x)
    z[~chunk.keep] = 0
    folder = explored / "explorer" / group.key
    table, records = data_of(folder / "table-1.js"), data_of(folder / "latents-1-0.js")
    n_kept = int(chunk.keep.sum())
    density = (z > 0).sum(0) / n_kept
    assert table["density"] == pytest.approx(density.tolist(), rel=1e-3)
    assert table["max"] == pytest.approx(z.max(0).values.tolist(), rel=1e-3)
    mass = z.double().sum(0) * saes.load(group.folders[1]).W_dec.norm(dim=1)
    assert table["mass"] == pytest.approx((mass / mass.sum()).tolist(), rel=1e-3)
    for f1, label in zip(table["f1"], table["label"], strict=True):
        assert label < 0 or f1 >= MIN_SHOWN_F1
    shown = 0
    for latent, record in enumerate(records):
        assert sum(record["histogram"]) == int((z[:, latent] > 0).sum())
        for _, centre, flat in record["passages"]:
            for step, act in zip(flat[::2], flat[1::2], strict=True):
                assert act == pytest.approx(float(z[centre + step, latent]), rel=1e-3)
                shown += 1
    assert shown > 500
    # The page's text at a position is the model's token there.
    text = data_of(next((explored / "explorer" / "text").glob("*.js")))
    ids = blocks.ids.flatten().tolist()
    spelled = {}
    for position, word in enumerate(text["ids"]):
        if word:
            assert spelled.setdefault(ids[position], word) == word
    assert len(spelled) > 20


def test_other_layers_and_the_twin_are_compared(explored: Path) -> None:
    run = open_run(explored)
    group = next(g for g in groups_of(run) if g.main and g.spot.about == "contextual")
    data = data_of(explored / "explorer" / group.key / "related-0-0.js")
    titles = [other["title"] for other in data["groups"]]
    assert any("untrained twin" in title for title in titles)
    assert any(f"layer {1 - group.spot.layer}" in title for title in titles)
    assert len(data["latents"]) == group.spot.d_sae
    for matches in data["latents"]:
        assert all(r >= exploring.MIN_CORRELATION for *_, r in matches)
        assert [r for *_, r in matches] == sorted((r for *_, r in matches), reverse=True)
    for other in data["groups"]:
        page = (explored / "explorer" / group.key / other["href"]).resolve()
        assert page.is_file()


def test_a_kill_loses_only_the_dictionary_under_way(
    finished_study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    run = tmp_path / "run"
    shutil.copytree(finished_study, run)
    write = pages.write_group
    calls = []

    def killed(*args: Any) -> pages.Facts:
        calls.append(args[2])
        if len(calls) == 3:
            raise KeyboardInterrupt
        return write(*args)

    with monkeypatch.context() as patch:
        patch.setattr(pages, "write_group", killed)
        assert main(["explore", str(run), "--layers", "0", "1"]) == 130
    assert "interrupted" in capsys.readouterr().err
    explorer = run / "explorer"
    assert not (explorer / "index.html").exists()
    done = {f.parent: f.stat().st_mtime_ns for f in explorer.rglob(pages.FACTS)}
    assert len(done) == 2
    assert main(["explore", str(run)]) == 0
    assert f"explorer: {explorer / 'index.html'}" in capsys.readouterr().out
    assert len(list(explorer.rglob(pages.FACTS))) == 6
    assert all((f / pages.FACTS).stat().st_mtime_ns == when for f, when in done.items())
    # Nothing is left to do, so no model is loaded.
    monkeypatch.setattr(exploring, "load", pytest.fail)
    assert main(["explore", str(run)]) == 0
    # Another SAE in a folder makes its pages again.
    weights = next((run / "saes").glob("*model/*contextual/*-0/sae_weights.safetensors"))
    sae = saes.load(weights.parent)
    sae.W_dec = sae.W_dec.flip(0)
    saes.save(sae, weights.parent)
    with pytest.raises(pytest.fail.Exception):
        main(["explore", str(run)])


def test_a_selection_adds_to_what_is_there(finished_study: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished_study, run)
    assert main(["explore", str(run), "--layers", "0"]) == 0
    first = {f.parent.name for f in (run / "explorer").rglob(pages.FACTS)}
    assert first
    index = (run / "explorer" / "index.html").read_text()
    assert "not explored yet" in index
    assert main(["explore", str(run), "--layers", "1"]) == 0
    assert "not explored yet" not in (run / "explorer" / "index.html").read_text()
    assert len(list((run / "explorer").rglob(pages.FACTS))) == 6


def test_wrong_input_is_one_line(
    finished_study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished_study, run)

    def said(*argv: str) -> str:
        assert main(["explore", *argv]) == 2
        lines = [
            line for line in capsys.readouterr().err.strip().splitlines() if "elapsed" not in line
        ]
        assert len(lines) == 1, lines
        return lines[0]

    assert "no finished study" in said(str(tmp_path))
    assert "has no SAEs of gpt2" in said(str(run), "--models", "gpt2")
    assert "no SAEs at layer 7; it has them at 0, 1" in said(str(run), "--layers", "7")
    assert not (run / "explorer").exists()
    for means in (run / "work").rglob("means.*"):
        means.unlink()
    assert "no readable contextual means" in said(str(run))
    shutil.rmtree(next((run / "saes").glob("*model/*contextual")))
    assert "the SAEs that the study has counted" in said(str(run))


def test_a_model_that_failed_is_left_out_and_named_where_it_is_asked_for(
    finished_study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished_study, run)
    config = open_run(run).config
    grown = config.model_copy(update={"models": ("lost", *config.models, "half")})
    (run / CONFIG).write_text(grown.to_yaml())
    summary = json.loads((run / "summary.json").read_text())
    lost, half = (
        {"model": name, "control": "trained", "unit": unit, "error": "not finite"}
        for name, unit in (("lost", "loss"), ("half", "saes"))
    )
    # Of the first there is nothing, of the second a loss.
    summary["models"].append(summary["models"][0] | {"name": "half"})
    (run / "summary.json").write_text(json.dumps(summary | {"failures": [lost, half]}))
    assert [g.key for g in groups_of(open_run(run))] == [
        g.key for g in groups_of(open_run(finished_study))
    ]
    for name, unit in (("lost", "loss"), ("half", "saes")):
        assert main(["explore", str(run), "--models", name, *config.models]) == 2
        [line] = capsys.readouterr().err.splitlines()
        assert f"has no SAEs of {name}, which could not be measured ({unit}: not finite)" in line
    assert not (run / "explorer").exists()


def test_pages_are_of_the_text_and_the_model_that_were_counted_on(
    explored: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    shutil.copytree(explored, run)
    manifest = run / "manifest.json"
    kept, config = json.loads(manifest.read_text()), open_run(run).config
    [of_model] = kept["weights_sha256"]
    capsys.readouterr()
    # As if the study had been made of others: finished pages are stale then, and no new ones come.
    for other, told in (
        ({"text_sha256": "0" * 64}, f"the text {config.text} is not the one"),
        ({"weights_sha256": {of_model: "0" * 64}}, f"the model {config.models[0]} is not the one"),
    ):
        manifest.write_text(json.dumps(kept | other))
        assert main(["explore", str(run)]) == 2
        lines = capsys.readouterr().err.splitlines()
        assert f"interp: {told} that {run} counted on" in lines[-1]
        assert "was 000000000000, now it is" in lines[-1]
    # An early version wrote down neither.
    manifest.unlink()
    assert main(["explore", str(run), "--layers", "0"]) == 0
    found = [pages.read_facts(f.parent) for f in (run / "explorer").rglob(pages.FACTS)]
    unknown = [f for f in found if f is not None and "text_sha256" not in f.settings]
    assert {f.layer for f in unknown} == {0}


def test_help_shows_a_worked_example(capsys: pytest.CaptureFixture[str]) -> None:
    for command in ("explore", "push"):
        with pytest.raises(SystemExit):
            main([command, "--help"])
        assert f"example: interp {command} runs/quick" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("name", list(COVERED))
def test_the_lens_reads_every_architecture(name: str, tiny_tokenizer: Any) -> None:
    model = wrap(
        covered(name), tiny_tokenizer, name=name, family=name, train_tokens=None, weights_sha256=""
    )
    d = torch.randn(3, D_MODEL, generator=torch.Generator().manual_seed(0))
    lens = logit_lens(model, d, 5)
    opposite = logit_lens(model, -d, 5)
    assert lens.promoted.shape == (3, 5)
    assert opposite.suppressed.tolist() == lens.promoted.tolist()
    assert np.ptp(lens.promoted_logits.numpy()) > 0
