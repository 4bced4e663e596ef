"""A tiny study, whole: artifacts, contract, resume, determinism, refusals."""

from __future__ import annotations

import ast
import json
import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager
from importlib.resources import files
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import saes
from interp import durable, measure, provenance, results
from interp.cli import main
from interp.config import StudyConfig, parse_config
from interp.durable import only_writer
from interp.errors import UserError
from interp.geometry import mean_squared_overlap
from interp.models import load
from interp.overlaps import head_overlaps
from interp.run import CONFIG, CONTROLS, Run, RunFolder, folder_name, open_run
from interp.spot_training import SpotTraining
from interp.study import run_study
from interp.tokens import tokens
from saes.config import SAEConfig
from saes.trunk import trunks

WORDS = ("alpha", "beta", "gamma", "delta", "self.left", "return", "yield", "None", "x += 1")


@pytest.fixture(scope="module")
def study_text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty documents of made-up statements."""
    folder = tmp_path_factory.mktemp("text")
    for i in range(40):
        lines = [
            f"def f{i}_{j}({WORDS[(i + j) % 9]}):\n    {WORDS[(i * j) % 9]} = {i * 37 + j}\n"
            for j in range(30)
        ]
        (folder / f"{i}.py").write_text("".join(lines))
    return folder


@pytest.fixture(scope="module")
def config(
    tmp_path_factory: pytest.TempPathFactory, save_tiny: Callable[..., Path], study_text: Path
) -> StudyConfig:
    root = tmp_path_factory.mktemp("family")
    models = [
        str(save_tiny(root / f"w{d}", d_model=d, n_layers=2, seed=d)) for d in (16, 24, 32, 40)
    ]
    return StudyConfig(
        preset="tiny",
        preview=True,
        family="custom",
        models=tuple(models),
        twins=(models[0],),
        shuffled=(models[0],),
        gaussian=(models[0],),
        text=str(study_text),
        loss_tokens=4_096,
        means_tokens=8_192,
        pilot_tokens=4_096,
        sae_tokens=8_192,
        held_out_tokens=4_096,
        splice_tokens=1_024,
        streams=("contextual", "all"),
        d_sae_per_d_model=(2, 3),
        other_layers=True,
        pilot_ks=(2, 4),
        other_k_rules=("constant", "proportional"),
        constant_k=3,
        chunk_tokens=2_048,
        threads=1,
    )


@pytest.fixture(scope="module")
def run(config: StudyConfig, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return run_study(config, tmp_path_factory.mktemp("runs") / "tiny", quiet=True)


def test_a_finished_study_has_every_artifact(run: Run, config: StudyConfig) -> None:
    for name in ("config.resolved.yaml", "manifest.json", "results.parquet", "summary.json",
                 "report.html"):  # fmt: skip
        assert (run.path / name).stat().st_size > 0, name
    assert run.figures
    assert not list(run.path.rglob("*.partial"))
    assert not list(run.path.rglob("training")), "training state is dropped once measured"
    assert run.config == config
    facts = json.loads((run.path / "models.json").read_text())
    assert [0 <= model["parity_error"] <= 1e-5 for model in facts] == [True] * 4
    manifest = json.loads((run.path / "manifest.json").read_text())
    assert list(manifest["parity_error"].values()) == [model["parity_error"] for model in facts]
    assert manifest["parity_error"].keys() == manifest["weights_sha256"].keys()


def test_every_cell_of_the_plan_was_measured(run: Run, config: StudyConfig) -> None:
    counts = run.results[(run.results.quantity == "reproducible") & (run.results.role == "main")]
    # Sizes and two more rules for k on the primary stream; the other stream; the other layer.
    per_model = 2 + 2 + 1 + 1
    trained = counts[counts.control == "trained"]
    assert len(trained) == per_model * len(config.models)
    # A control has the first size of both streams at the primary layer.
    for control in CONTROLS:
        own = counts[counts.control == control]
        assert [len(own), *map(len, map(set, (own.layer, own.about, own.d_sae)))] == [2, 1, 2, 1]
    assert set(trained.layer) == {0, 1}
    fvu = run.results[(run.results.quantity == "fvu") & (run.results.role == "main")]
    assert len(fvu) == config.n_seeds * len(counts)
    assert fvu.value.between(0, 1).all()


@pytest.fixture(scope="module")
def of_many_documents(config: StudyConfig, tmp_path_factory: pytest.TempPathFactory) -> StudyConfig:
    """Enough held-out documents for intervals, which the long ones of the other text are not."""
    folder = tmp_path_factory.mktemp("short")
    for i in range(300):
        lines = (f"{WORDS[(i * j) % 9]} = {i * 37 + j}\n" for j in range(8))
        (folder / f"{i}.py").write_text("".join(lines))
    fewer = {"models": config.models[:1], "twins": config.models[:1], "shuffled": (),
             "gaussian": config.models[:1], "other_layers": False, "other_k_rules": (),
             "d_sae_per_d_model": (4,), "sae_tokens": 131_072,
             "check_convergence": False}  # fmt: skip
    return config.model_copy(update=fewer | {"text": str(folder)})


def test_every_count_has_its_tokens_and_the_primary_ones_other_thresholds(
    of_many_documents: StudyConfig, tmp_path: Path
) -> None:
    run = run_study(of_many_documents, tmp_path / "one", quiet=True)
    main = run.results[run.results.role == "main"]
    counts, explained, classes, before = (
        main[main.quantity == quantity].set_index(["control", "about"]).value
        for quantity in ("reproducible", "token_explained", "token_entropy_classes",
                         "reproducible_before_null")
    )  # fmt: skip
    assert set(counts.index) == set(explained.index)
    assert len(counts) == 6
    assert (classes == before).all()
    assert (explained.isna() == (classes == 0)).all()
    assert classes["trained", "all"] > 0
    # Noise has nothing to do with the tokens that it stands beside; a raw stream has.
    assert (explained["matched_gaussian"].fillna(0).abs() < 0.1).all()
    assert explained["trained", "all"] > 0.1
    otherwise = main[main.quantity == "reproducible_correlation_0.3"]
    assert sorted(otherwise.control) == ["matched_gaussian", "random_init", "trained"]
    assert set(otherwise.about) == {"contextual"}
    for record in run.summary["packing"]:
        counted = record["estimator"] == "reproducible"
        for one in (record, *record["controls"]):
            assert ("token_identity" in one) == counted
            assert ("strictness" in one) == (counted and record["about"] == "contextual")
    # The text is shorter than the training of its SAEs, and the report says so.
    passes = (
        run.results[run.results.quantity == "passes_over_text"]
        .set_index(["control", "about"])
        .value
    )
    assert set(passes.index) == set(counts.index)
    [told] = [w for w in run.summary["warnings"] if w.startswith("a short text")]
    assert f"up to {passes.max():.1f} times" in told
    tokenized = tokens(
        of_many_documents.text, load(of_many_documents.models[0]), split="train", seed=0
    )
    assert passes.max() == pytest.approx(131_072 / int(tokenized.is_target.sum()))
    assert passes.max() > 2
    assert "passed over their training text" in (run.path / "report.html").read_text()
    again = run_study(of_many_documents, tmp_path / "two", quiet=True)
    for name in ("results.parquet", "figures/count_against_strictness.svg"):
        assert (again.path / name).read_bytes() == (run.path / name).read_bytes()


def test_the_kept_saes_are_those_of_the_main_role(run: Run, config: StudyConfig) -> None:
    kept = run.saes(config.models[0])
    # One set of SAEs where two rules give the same k.
    main = run.results[(run.results.role == "main") & (run.results.control == "trained")]
    counted = main[(main.quantity == "reproducible") & (main.model == config.models[0])]
    distinct = counted[["layer", "about", "d_sae", "k"]].drop_duplicates()
    assert len(kept) == len(distinct) * config.n_seeds
    name, sae = next(iter(kept.items()))
    assert name.startswith("blocks.")
    assert sae.d_in == 16
    assert (run.path / "saes" / folder_name(config.models[0], "random_init")).is_dir()


def test_the_summary_keeps_the_contract(run: Run, config: StudyConfig) -> None:
    summary = json.loads((run.path / "summary.json").read_text(), parse_constant=pytest.fail)
    assert {"models", "packing", "exponent", "correlation", "scaling", "warnings"} <= set(summary)
    assert [m["d_model"] for m in summary["models"]] == [16, 24, 32, 40]
    record = summary["packing"][0]
    for key in ("model", "layer", "hook_point", "estimator", "about", "value", "ci_low", "ci_high",
                "per_dim", "controls", "n_tokens", "n_seeds", "d_sae", "k", "fvu", "fvu_matched",
                "tokens_per_latent", "converged", "identified", "reason",
                "calibration"):  # fmt: skip
        assert key in record
    with_twin = [r for r in summary["packing"] if r["controls"]]
    assert {r["model"] for r in with_twin} == {config.models[0]}
    assert {r["d_sae"] for r in with_twin} == {2 * 16}
    assert {tuple(c["name"] for c in r["controls"]) for r in with_twin} == {CONTROLS}
    assert any("preview" in w for w in summary["warnings"])
    assert summary["headline"]


def test_a_half_run_shares_the_steps_of_its_main_run(
    config: StudyConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What makes the check of convergence cheap; nobody would notice its loss otherwise."""
    seen: list[SAEConfig] = []

    def note(_: object, configs: list[SAEConfig], **__: object) -> None:
        seen.extend(configs)
        raise KeyboardInterrupt

    original = saes.train
    calls = iter([original, note])
    monkeypatch.setattr(saes, "train", lambda *a, **k: next(calls)(*a, **k))
    with pytest.raises(KeyboardInterrupt):
        run_study(config, tmp_path / "out", quiet=True)
    halves = [number for number, c in enumerate(seen) if c.n_tokens == config.sae_tokens // 2]
    assert len(halves) == len(seen) // 2
    assert set(trunks(seen)) == set(halves)


def test_the_sensitivity_to_k_stands_beside_the_rule(run: Run, config: StudyConfig) -> None:
    rows = pd.DataFrame(run.summary["sensitivity"])
    assert set(rows.k_rule) == {"fvu", "constant", "proportional"}
    assert len(rows) == 3 * len(config.models)
    assert set(rows.about) == {"contextual"}
    first = rows[rows.model == config.models[0]].set_index("k_rule")
    assert first.k["constant"] == 3
    assert first.k["proportional"] == 2
    assert first.controls.map(len).to_dict() == {"constant": 0, "fvu": 3, "proportional": 0}
    packing = pd.DataFrame(run.summary["packing"])
    own = packing[(packing.model == config.models[0]) & (packing.estimator == "reproducible")]
    assert len(own) == 2 + 1 + 1, "the other rules enter nothing"


def test_the_headline_trains_longer_at_a_confirmed_k(config: StudyConfig, tmp_path: Path) -> None:
    """Up to three candidates; the seeds have the nearest; the rest is short."""
    model = config.models[-1]
    longer = {"models": (model,), "twins": (model,), "shuffled": (), "gaussian": ()}
    longer |= {"primary_sae_tokens": 12_288, "confirm_k": True, "other_k_rules": ("constant",)}
    run = run_study(config.model_copy(update=longer), tmp_path / "longer", quiet=True)
    rows = run.results[run.results.model == model]
    tokens = rows[rows.quantity == "tokens_per_latent"]
    n_tokens = tokens.value * tokens.d_sae
    headline = (tokens.layer == 0) & (tokens.about == "contextual") & (tokens.k_rule == "fvu")
    assert set(n_tokens[headline]) == {12_288}
    assert set(n_tokens[~headline]) == {8_192}
    assert headline.sum() == 3, "two sizes of the model, one of its twin"
    confirming = rows[rows.role == "confirming"]
    spots = list(confirming.groupby(["control", "d_sae"]))
    assert len(spots) == 3
    for (control, d_sae), tried in spots:
        ks = sorted(int(k) for k in tried.k)
        assert ks == list(range(ks[0], ks[-1] + 1))
        assert 2 <= len(ks) <= 3
        nearest = tried.iloc[(np.log(tried.value) - np.log(config.target_fvu)).abs().argmin()]
        main = tokens[headline & (tokens.control == control) & (tokens.d_sae == d_sae)]
        assert set(main.k) == {nearest.k}


def test_a_rule_that_agrees_on_k_shares_the_longer_training(
    config: StudyConfig, tmp_path: Path
) -> None:
    """Whichever rule comes last, the headline's SAEs have the headline's tokens."""
    model = config.models[-1]
    longer = {"models": (model,), "twins": (), "shuffled": (), "gaussian": (), "streams":
              ("contextual",), "other_layers": False, "d_sae_per_d_model": (2,),
              "primary_sae_tokens": 12_288, "other_k_rules": ()}  # fmt: skip
    alone = run_study(config.model_copy(update=longer), tmp_path / "alone", quiet=True)
    [own] = (r for r in alone.summary["packing"] if r["estimator"] == "reproducible")
    longer |= {"other_k_rules": ("constant",), "constant_k": own["k"]}
    run = run_study(config.model_copy(update=longer), tmp_path / "both", quiet=True)
    [again] = (r for r in run.summary["packing"] if r["estimator"] == "reproducible")
    assert again == own
    tokens = run.results[run.results.quantity == "tokens_per_latent"]
    assert sorted(tokens.k_rule) == ["constant", "fvu"]
    assert set(tokens.value * tokens.d_sae) == {12_288}
    configs = [json.loads(f.read_text())["metadata"]["superscope"]["config"]
               for f in (run.path / "saes").rglob("cfg.json")]  # fmt: skip
    assert [c["n_tokens"] for c in configs] == [12_288] * config.n_seeds


def test_more_seeds_may_have_to_find_a_latent(
    of_many_documents: StudyConfig, tmp_path: Path
) -> None:
    """The setting is of the count alone: another one trains nothing."""
    fewer = {"twins": (), "gaussian": (), "streams": ("contextual",), "d_sae_per_d_model": (2,)}
    two = of_many_documents.model_copy(update=fewer)
    run = run_study(two, tmp_path / "run", quiet=True)
    assert "found_by" not in run.summary["primary"]
    weights = {p: p.stat().st_mtime_ns for p in run.path.rglob("sae_weights.safetensors")}
    assert weights
    everyone = two.model_copy(update={"min_seeds": two.n_seeds})
    run = run_study(everyone, run.path, quiet=True, redo=True)
    assert {p: p.stat().st_mtime_ns for p in weights} == weights
    values = run.results[run.results.role == "main"].set_index("quantity").value
    assert values["reproducible_before_null"] == values["reproducible_all_seeds"]
    left = values["reproducible_before_null"] - values["reproducible_null"]
    assert values["reproducible"] == max(left, 0)
    assert run.summary["primary"]["found_by"] == f"all {two.n_seeds} seeds"
    assert f"found by all {two.n_seeds} seeds" in run.summary["headline"]
    assert f"Found by all {two.n_seeds} seeds" in (run.path / "report.html").read_text()
    with pytest.raises(UserError, match="min_seeds 4 is more than n_seeds 3"):
        parse_config(two.model_dump() | {"min_seeds": 4, "n_seeds": 3}, "here")


def test_the_same_line_again_redoes_nothing(
    run: Run, config: StudyConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: object, **__: object) -> None:
        raise AssertionError("measured again")

    monkeypatch.setattr(measure.Measurement, "_train", never)
    monkeypatch.setattr(measure, "loss", never)
    before = (run.path / "results.parquet").read_bytes()
    again = run_study(config, run.path, quiet=True)
    assert (again.path / "results.parquet").read_bytes() == before


def test_an_interrupted_study_ends_with_the_same_bytes(
    run: Run, config: StudyConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Interrupted in the third model after its pilots; also the second run of the same config."""
    original = measure.Measurement._train
    calls = []

    def stops_at_the_third(self: measure.Measurement, *args: object) -> object:
        calls.append(self.name)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return original(self, *args)  # type: ignore[arg-type]

    out = tmp_path / "again"
    monkeypatch.setattr(measure.Measurement, "_train", stops_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        run_study(config, out, quiet=True)
    assert not (out / "results.parquet").exists()
    with pytest.raises(UserError, match="no finished study"):
        open_run(out)
    monkeypatch.setattr(measure.Measurement, "_train", original)
    run_study(config, out, quiet=True)
    assert (out / "results.parquet").read_bytes() == (run.path / "results.parquet").read_bytes()


def test_a_folder_of_another_study_is_left_alone(run: Run, config: StudyConfig) -> None:
    before = sorted(p.name for p in run.path.iterdir())
    other = config.model_copy(update={"constant_k": 4})
    with pytest.raises(UserError, match=r"another study \(constant_k is 3 there, 4 here\).*--redo"):
        run_study(other, run.path, quiet=True)
    assert sorted(p.name for p in run.path.iterdir()) == before


def test_a_study_grows_by_a_model_and_measures_only_that(
    run: Run, config: StudyConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fewer = config.model_copy(update={"models": config.models[:3], "preset": "tiny (changed)"})
    out = run_study(fewer, tmp_path / "grown", quiet=True).path
    measured = []
    original = measure.Measurement._sae_rows

    def note(self: measure.Measurement, *args: object) -> object:
        measured.append((self.name, self.control))
        return original(self, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(measure.Measurement, "_sae_rows", note)
    grown = run_study(config, out, quiet=True)
    assert set(measured) == {(config.models[3], "trained")}
    assert grown.config == config
    assert (out / "results.parquet").read_bytes() == (run.path / "results.parquet").read_bytes()
    with pytest.raises(UserError, match="another study"):
        run_study(fewer, out, quiet=True)


def test_two_processes_do_not_write_one_study(run: Run, config: StudyConfig) -> None:
    before = (run.path / "summary.json").read_bytes()
    with (
        only_writer(run.path),
        pytest.raises(UserError, match="another process is writing there"),
    ):
        run_study(config, run.path, quiet=True)
    assert (run.path / "summary.json").read_bytes() == before
    assert run_study(config, run.path, quiet=True).summary == run.summary


def test_two_studies_begun_at_one_moment_do_not_share_a_folder(
    config: StudyConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other one claims the folder after this one has, and before this one holds it."""
    out = tmp_path / "out"
    other = config.model_copy(update={"constant_k": 4})

    def overtaken(folder: Path) -> AbstractContextManager[None]:
        (folder / CONFIG).write_text(other.to_yaml())
        return only_writer(folder)

    monkeypatch.setattr(durable, "only_writer", overtaken)
    with pytest.raises(UserError, match=r"another study \(constant_k is 4 there, 3 here\)"):
        run_study(config, out, quiet=True)
    assert [path.name for path in out.iterdir()] == [CONFIG]


def test_a_folder_with_other_files_is_left_alone(config: StudyConfig, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(UserError, match="holds no study"):
        run_study(config, tmp_path, quiet=True)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_bad_model_fails_before_anything_is_written(config: StudyConfig, tmp_path: Path) -> None:
    bad = config.model_copy(update={"models": (*config.models, str(tmp_path / "nowhere"))})
    with pytest.raises(UserError):
        run_study(bad, tmp_path / "out", quiet=True)
    assert not (tmp_path / "out").exists()


def test_a_family_without_a_hub_is_one_line_before_any_work(
    study_text: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "empty"))
    line = ["study", "gpt2", "--tokens", "1e6", "--text", str(study_text)]
    assert main([*line, "--out", str(tmp_path / "out")]) == 2
    told = capsys.readouterr().err
    assert told.startswith("interp: model 'gpt2' is not here and HF_HUB_OFFLINE forbids asking")
    assert told.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_resumed_run_keeps_its_thread_count(run: Run, config: StudyConfig) -> None:
    held = RunFolder(run.path).claim(config.model_copy(update={"threads": 0}))
    assert held.threads == config.threads


def test_results_have_no_row_twice(run: Run) -> None:
    keys = [
        "model",
        "control",
        "layer",
        "about",
        "d_sae",
        "k_rule",
        "k",
        "seed",
        "role",
        "quantity",
    ]
    assert not run.results.duplicated(keys).any()
    assert isinstance(run.results, pd.DataFrame)


def test_the_run_folder_is_free_of_machine_paths(run: Run, config: StudyConfig) -> None:
    """Results are shared; nothing but the models' and the text's own names may point home."""
    named = {*config.models, config.text}
    for file in ("summary.json", "manifest.json", "models.json", "config.resolved.yaml"):
        text = (run.path / file).read_text()
        for name in named:
            text = text.replace(name, "")
        assert str(run.path) not in text, file
        assert str(Path.home()) not in text, file
        assert str(Path(saes.__file__).parent) not in text, file


def copy_of(run: Run, to: Path) -> Path:
    return Path(shutil.copytree(run.path, to))


def test_parts_of_another_text_do_not_stand_beside_new_ones(
    run: Run, config: StudyConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = copy_of(run, tmp_path / "copy")
    before = (out / "manifest.json").read_bytes()
    text = Path(config.text) / "0.py"
    original = text.read_text()
    try:
        text.write_text(original + "x = 1\n")
        with pytest.raises(UserError, match=r"w16 was measured with text_sha256 .*, now it is"):
            run_study(config, out, quiet=True)
    finally:
        text.write_text(original)
    monkeypatch.setattr(provenance, "code_sha256", lambda *, counting: "edited")
    with pytest.raises(UserError, match=r"measured with code_sha256 [0-9a-f]{12}, now it is edit"):
        run_study(config, out, quiet=True)
    monkeypatch.undo()
    versions = provenance.versions() | {"superscope": "99.0"}
    monkeypatch.setattr(provenance, "versions", lambda: versions)
    with pytest.raises(UserError, match=r"measured with superscope \S+, now it is 99\.0"):
        run_study(config, out, quiet=True)
    assert (out / "manifest.json").read_bytes() == before


def test_the_code_hash_covers_what_makes_rows() -> None:
    hashed = {f.name for f in provenance.modules(files("interp"))} - provenance.AFTERWARDS
    assert {"measure.py", "held_out.py", "contextual.py", "reproducibility.py"} <= hashed
    assert {f.name for f in provenance.modules(files("interp"))} >= provenance.AFTERWARDS
    assert {f.name for f in provenance.modules(files("saes"))} >= provenance.SAES_ASIDE
    assert len(provenance.code_sha256()) == 64
    assert provenance.code_sha256() != provenance.code_sha256(counting=False)


def test_nothing_that_trains_reads_what_counts() -> None:
    """Or SAEs would depend on code that their hash leaves out. What calls both is `measure`."""
    aside = {"interp": provenance.AFTERWARDS, "saes": provenance.SAES_ASIDE}
    counting = {
        f"{package}.{file.name.removesuffix('.py')}"
        for package in aside
        for file in provenance.modules(files(package))
        if file.name in provenance.COUNTING
    }
    assert len(counting) == len(provenance.COUNTING)
    for package, left_out in aside.items():
        for file in provenance.modules(files(package)):
            if file.name in left_out | provenance.COUNTING | {"measure.py"}:
                continue
            for node in ast.walk(ast.parse(file.read_text())):
                if isinstance(node, ast.ImportFrom):
                    named = {node.module, *(f"{node.module}.{a.name}" for a in node.names)}
                    assert not named & counting, f"{package}/{file.name}"


def test_other_counting_counts_again_what_was_trained(
    run: Run, config: StudyConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = Path(shutil.copytree(run.path, tmp_path / "copy"))
    before = {p: p.stat().st_mtime_ns for p in (out / "saes").rglob("*.safetensors")}
    code_sha256 = provenance.code_sha256

    def changed(*, counting: bool = True) -> str:
        return "c" * 64 if counting else code_sha256(counting=False)

    monkeypatch.setattr(provenance, "code_sha256", changed)
    with pytest.raises(UserError, match="code_sha256"):
        run_study(config, out, quiet=True)
    trained = []
    monkeypatch.setattr(SpotTraining, "train", lambda *args: trained.append(args))
    again = run_study(config, out, quiet=True, redo=True)
    assert not trained
    assert {p: p.stat().st_mtime_ns for p in (out / "saes").rglob("*.safetensors")} == before
    pd.testing.assert_frame_equal(again.results, run.results)


def test_a_text_without_a_split_is_refused_before_anything_is_written(
    config: StudyConfig, tmp_path: Path
) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "a.py").write_text("x = 1\n" * 4000)
    short = config.model_copy(update={"text": str(tmp_path / "one")})
    with pytest.raises(UserError, match="split"):
        run_study(short, tmp_path / "out", quiet=True)
    assert not (tmp_path / "out").exists()


def test_a_damaged_config_is_one_line(run: Run, config: StudyConfig, tmp_path: Path) -> None:
    out = copy_of(run, tmp_path / "copy")
    for damage in ("a: [", "models: []\n", "no_such_field: 1\nmodels: [x]\n"):
        (out / "config.resolved.yaml").write_text(damage)
        with pytest.raises(UserError) as error:
            run_study(config, out, quiet=True)
        assert "config.resolved.yaml" in str(error.value)
        assert "\n" not in str(error.value)


def test_a_folder_that_cannot_be_made_is_one_line(config: StudyConfig, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be made"):
        run_study(config, tmp_path / "file" / "out", quiet=True)


def test_a_run_killed_while_it_writes_is_not_finished(
    run: Run, config: StudyConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = copy_of(run, tmp_path / "copy")

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    (out / "report.html").unlink()  # else there is nothing left to do
    with monkeypatch.context() as patch:
        patch.setattr(results, "write_table", killed)
        with pytest.raises(KeyboardInterrupt):
            run_study(config, out, quiet=True)
    with pytest.raises(UserError, match="no finished study"):
        open_run(out)
    assert run_study(config, out, quiet=True).summary == run.summary


def test_an_sae_that_was_half_saved_is_not_read(
    run: Run, config: StudyConfig, tmp_path: Path
) -> None:
    out = copy_of(run, tmp_path / "copy")
    [first, *_] = sorted((out / "saes" / folder_name(config.models[0], "trained")).glob("*/*"))
    shutil.copytree(first, first.with_name(f".{first.name}-x1"))
    assert len(open_run(out).saes(config.models[0])) == len(run.saes(config.models[0]))


def test_overlaps_are_those_of_the_saved_rows(run: Run, config: StudyConfig) -> None:
    found = json.loads((run.path / "summary.json").read_text())["overlap"]
    cells = run.results[run.results["d_sae"].notna() & (run.results["k_rule"] == "fvu")]
    place = ["model", "control", "layer", "about", "d_sae"]
    assert {tuple(one[key] for key in place) for one in found["dictionaries"]} == set(
        cells[place].drop_duplicates().itertuples(index=False, name=None)
    )
    for one in found["dictionaries"]:
        stream = one["hook_point"] + (".contextual" if one["about"] == "contextual" else "")
        above = run.path / "saes" / folder_name(one["model"], one["control"]) / stream
        seeds = [saes.load(path) for path in above.glob(f"{one['d_sae']}-{one['k']}-*")]
        assert len(seeds) == one["n_seeds"] == config.n_seeds
        each = [mean_squared_overlap(sae.W_dec) for sae in seeds]
        assert one["overlap"]["value"] == pytest.approx(sum(each) / len(each), rel=1e-9)
        assert one["overlap"]["ci_low"] < one["overlap"]["value"] < one["overlap"]["ci_high"]
        floor = (one["d_sae"] - one["d_model"]) / (one["d_model"] * (one["d_sae"] - 1))
        assert one["welch_floor"] == pytest.approx(floor)
        assert one["welch_floor"] < one["overlap"]["value"]
    # A head for every model, loss-only ones included.
    assert [one["n"] for one in found["heads"]] == [
        load(one["model"]).hf.get_output_embeddings().weight.shape[0] for one in found["heads"]
    ]
    assert {one["model"] for one in found["heads"]} == {*config.models, *config.loss_only_models}
    [lost] = head_overlaps(["/no/such/folder"])
    assert "no such directory" in lost["reason"]
