"""Studies with other SAEs than TopK: what is trained, counted, kept apart, refused and said."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pandas as pd
import pytest
import report_run
import torch
import yaml
from tiny_study import tiny_study

import saes
from interp import plan
from interp.cli import main
from interp.config import Architecture, StudyConfig, parse_config, read_config
from interp.errors import UserError
from interp.explore import exploring
from interp.explore.groups import groups_of
from interp.graph import Graph
from interp.plan import plan_study
from interp.push import write_tree
from interp.report.objections import objections
from interp.report.reading import read_summary
from interp.report.tables import ARCHITECTURES, dictionary_table, sensitivity_table
from interp.run import MAY_GROW, Run, RunFolder, open_run
from interp.sources import Sources
from interp.spot_rows import sae_rows
from interp.spots import Spot, sae_config
from interp.study import run_study
from saes.config import PENALIZED, SAEConfig
from saes.sae import joined

OTHERS = ("batchtopk", "matryoshka_batchtopk")


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory, save_tiny: Callable[..., Path]) -> StudyConfig:
    """Of one model and its twin, three seeds."""
    root = tmp_path_factory.mktemp("family")
    return tiny_study(root, save_tiny, widths=(16,), n_seeds=3, d_sae_per_d_model=(2, 3))


@pytest.fixture(scope="module")
def plain(config: StudyConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The study of TopK alone."""
    return run_study(config, tmp_path_factory.mktemp("runs") / "tiny", quiet=True).path


@pytest.fixture(scope="module")
def before(plain: Path) -> dict[str, bytes]:
    """What its units left."""
    return {str(p.relative_to(plain)): p.read_bytes() for p in plain.rglob("work/*/rows/*")}


@pytest.fixture(scope="module")
def run(config: StudyConfig, plain: Path, before: dict[str, bytes]) -> Run:
    """The same study, grown by the other architectures."""
    assert before
    grown = config.model_copy(update={"other_architectures": OTHERS})
    return run_study(grown, plain, quiet=True)


def test_the_names_are_those_of_the_saes(config: StudyConfig) -> None:
    assert set(get_args(Architecture)) | set(PENALIZED) == set(
        get_args(SAEConfig.model_fields["architecture"].annotation)
    )
    assert set(ARCHITECTURES) == set(get_args(Architecture))
    for architecture in get_args(Architecture):
        spot = Spot(0, "all", 32, architecture=architecture)
        one = sae_config(config, 16, spot, 3, seed=2, n_tokens=4_096)
        assert one.architecture == architecture
        assert one.name == f"{spot.size(3)}-2"


@pytest.mark.parametrize("field", ["architecture", "other_architectures"])
@pytest.mark.parametrize("without_k", PENALIZED)
def test_an_architecture_without_k_is_refused_with_the_reason(
    field: str, without_k: str, tmp_path: Path
) -> None:
    file = tmp_path / "study.yaml"
    value = without_k if field == "architecture" else ["batchtopk", without_k]
    file.write_text(yaml.safe_dump({"models": ["a"], field: value}))
    with pytest.raises(UserError) as error:
        read_config(file)
    told = str(error.value)
    assert told.startswith(f"{file}, line ")
    assert f"{field}: {without_k} is made sparse by a penalty and has no k" in told
    assert "\n" not in told


def test_the_headlines_architecture_is_no_other_one() -> None:
    with pytest.raises(UserError, match=r"other_architectures has 'topk'.*remove it there"):
        parse_config({"models": ["a"], "other_architectures": ["topk"]}, "here")
    with pytest.raises(UserError, match="other_architectures has an entry twice"):
        parse_config({"models": ["a"], "other_architectures": ["batchtopk"] * 2}, "here")
    turned: dict[str, object] = {"architecture": "batchtopk", "other_architectures": ["topk"]}
    assert parse_config(turned | {"models": ["a"]}, "here").architecture == "batchtopk"


def test_more_architectures_leave_what_was_measured(
    run: Run, before: dict[str, bytes], config: StudyConfig
) -> None:
    assert "other_architectures" in MAY_GROW
    assert {name: (run.path / name).read_bytes() for name in before} == before
    graph = Graph(config, RunFolder(run.path), Sources.read(RunFolder(run.path)))  # type: ignore[arg-type]
    for unit in graph.units:
        record = graph.record(unit)
        assert record is not None
        told = str(record.inputs.settings) + str(sorted(record.inputs.reads))
        assert "topk" not in told, "records from before have no such word"


def test_every_architecture_is_measured_at_one_place(run: Run, config: StudyConfig) -> None:
    rows = run.results
    assert rows.architecture.isna().equals(rows.d_sae.isna())
    counts = rows[(rows.quantity == "reproducible") & (rows.role == "main")]
    found = counts.groupby("architecture")[["control", "d_sae"]].apply(
        lambda part: sorted(map(tuple, part.values.tolist()))
    )
    assert found["topk"] == [("random_init", 32), ("trained", 32), ("trained", 48)]
    assert found["batchtopk"] == found["matryoshka_batchtopk"] == [("trained", 32)]
    pilots = rows[rows.role == "pilot"].groupby("architecture").size()
    assert set(pilots.index) == {"topk", *OTHERS}, "each has its own k by its own FVU"
    assert (rows[rows.d_sae.notna() & rows.k.notna()].k >= 1).all(), "a threshold is no k of 0"
    fvu = rows[(rows.quantity == "fvu") & (rows.role == "main") & (rows.control == "trained")]
    assert fvu[fvu.d_sae == 32].value.nunique() == 3 * config.n_seeds, "three kinds of SAE"


def test_the_kept_saes_are_what_their_names_say(run: Run, config: StudyConfig) -> None:
    kept = run.saes(config.models[0])
    by_kind: dict[str, list[saes.SAE]] = {}
    for sae in kept.values():
        assert sae.cfg is not None
        by_kind.setdefault(sae.cfg.architecture, []).append(sae)
    assert {kind: len(found) for kind, found in by_kind.items()} == {
        "topk": 2 * config.n_seeds, **dict.fromkeys(OTHERS, config.n_seeds)
    }  # fmt: skip
    assert all(sae.threshold is None for sae in by_kind["topk"])
    assert all(sae.threshold is not None for kind in OTHERS for sae in by_kind[kind])


def test_only_the_headlines_architecture_enters_the_fits(run: Run, config: StudyConfig) -> None:
    summary = run.summary
    counted = run.packing[run.packing.estimator == "reproducible"]
    assert sorted(counted.d_sae) == [32, 48]
    topk = run.results[(run.results.quantity == "reproducible") & (run.results.role == "main")]
    topk = topk[(topk.architecture == "topk") & (topk.control == "trained")]
    assert sorted(counted.value) == sorted(topk.value)
    sensitivity = pd.DataFrame(summary["sensitivity"])
    assert sorted(sensitivity.architecture.fillna("topk")) == sorted(("topk", *OTHERS))
    assert set(sensitivity.k_rule) == {"fvu"}
    assert set(sensitivity.d_sae) == {32}
    assert "architecture" not in summary["primary"], "as before there was a choice"


def test_the_report_says_which_is_which(run: Run) -> None:
    page = (run.path / "report.html").read_text()
    assert "Does the choice of k or of the SAE matter?" in page
    table = sensitivity_table(read_summary(run.summary).sensitivity)
    assert table is not None
    at = table.columns.index("SAE")
    assert sorted(row[at] for row in table.rows) == sorted(ARCHITECTURES.values())
    made = dictionary_table(run.results)
    assert made is not None
    at = made.columns.index("SAE")
    assert {row[at] for row in made.rows} == set(ARCHITECTURES.values())
    own = dictionary_table(run.results[run.results.architecture.isin(["topk"])])
    assert own is not None
    assert "SAE" not in own.columns, "said where there is something to tell apart"


def test_a_referee_is_told_what_the_others_count() -> None:
    data = report_run.summary()
    asked = "Another kind of SAE finds other features."
    reply = dict(objections(read_summary(data)))[asked]
    assert reply == "Not answered: SAEs of one architecture were trained."
    own = [r for r in data["packing"] if r["layer"] == 1 and r["about"] == "contextual"]
    data["sensitivity"] = [r | {"k_rule": "fvu", "architecture": "topk"} for r in own] + [
        r | {"k_rule": "fvu", "architecture": "batchtopk", "k": 5, "per_dim": 1.25} for r in own
    ]
    replies = dict(objections(read_summary(data)))
    assert "and 1.2 with BatchTopK (k 5)" in replies[asked]
    assert replies["At another k the answer is another."].startswith("Not answered")


def test_readers_of_a_run_keep_architectures_apart(run: Run, tmp_path: Path) -> None:
    groups = {(g.spot.architecture, g.control, g.spot.d_sae): g for g in groups_of(run)}
    assert len(groups) == 5
    assert len({g.key for g in groups.values()}) == 5
    assert all(len(g.folders) == 3 for g in groups.values())
    main = [at for at, g in groups.items() if g.main]
    assert sorted(main) == [("topk", "random_init", 32), ("topk", "trained", 32)]
    write_tree(run, "someone/saes", tmp_path / "tree")
    card = (tmp_path / "tree" / "README.md").read_text()
    for other in OTHERS:
        [line] = [x for x in card.splitlines() if x.startswith("|") and f", {other} |" in x]
        assert "| - |" not in line, "its FVU stands beside it"


def test_a_table_from_before_reads_as_topk(run: Run, tmp_path: Path) -> None:
    for name in ("config.resolved.yaml", "summary.json"):
        (tmp_path / name).write_bytes((run.path / name).read_bytes())
    old = run.results[run.results.architecture.isna() | (run.results.architecture == "topk")]
    old.drop(columns="architecture").to_parquet(tmp_path / "results.parquet")
    read = open_run(tmp_path).results
    assert set(read[read.d_sae.notna()].architecture) == {"topk"}
    assert read[read.d_sae.isna()].architecture.isna().all()


def test_a_headline_may_rest_on_another_architecture(config: StudyConfig, tmp_path: Path) -> None:
    turned = config.model_copy(update={"architecture": "batchtopk", "twins": ()})
    run = run_study(turned, tmp_path / "run", quiet=True)
    assert set(run.results.architecture.dropna()) == {"batchtopk"}
    assert run.summary["primary"]["architecture"] == "batchtopk"
    assert {s.cfg.architecture for s in run.saes(config.models[0]).values() if s.cfg} == {
        "batchtopk"
    }
    assert run.packing[run.packing.estimator == "reproducible"].value.notna().all()
    with pytest.raises(UserError, match="architecture is 'batchtopk' there, 'topk' here"):
        RunFolder(run.path).claim(config.model_copy(update={"twins": ()}))


def test_the_null_is_as_sparse_as_the_saes(
    config: StudyConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not as dense as the fullest token of a threshold."""
    from interp import spot_counts
    from interp.held_out import HeldOut

    x = torch.randn(2_048, 8, generator=torch.Generator().manual_seed(0))
    x[:8] *= 20  # tokens on which far more than k latents fire
    configs = [
        SAEConfig(d_in=8, d_sae=32, k=2, n_tokens=4_096, architecture="batchtopk", seed=seed)
        for seed in range(3)
    ]
    group = saes.train(({"resid": x} for _ in range(2)), configs, workers=1)
    assert max(sae.encode(x).indices.shape[1] for sae in group) > 2
    seen: list[int] = []
    real: Any = spot_counts.reproducible_estimate

    def note(*args: Any, k: int, **more: Any) -> Any:
        seen.append(k)
        return real(*args, k=k, **more)

    monkeypatch.setattr(spot_counts, "reproducible_estimate", note)
    rows = torch.arange(len(x))
    held = HeldOut(x, rows % 50, rows % 64, rows // 64, 0.0)
    found = sae_rows(group, None, held, config, k=2, k_reached=True, n_tokens=4_096)
    assert set(seen) == {2}
    assert {row["k"] for row in found} == {2}


def test_the_plan_counts_other_architectures(
    config: StudyConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plan, "PROBE_SECONDS", 0.0)
    grown = config.model_copy(update={"other_architectures": OTHERS})
    plain, more = plan_study(config)[:2], plan_study(grown)[:2]
    assert more[0].n_units == plain[0].n_units + len(OTHERS)
    assert more[0].n_bytes > plain[0].n_bytes
    assert more[0].flops > plain[0].flops
    assert more[1].n_bytes == plain[1].n_bytes, "a twin has the headline's alone"


def test_the_explorer_opens_all_of_them(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Read in several pieces: under a threshold each has slots of its own number."""
    out = Path(shutil.copytree(run.path, tmp_path / "copy"))
    monkeypatch.setattr(exploring, "_CHUNK_BYTES", 4 * 16 * 256)
    assert main(["explore", str(out)]) == 0
    pages = [page.read_text() for page in (out / "explorer").rglob("index.html")]
    for kind in ARCHITECTURES.values():
        assert sum(f"{kind} SAEs at blocks.0.hook_resid_post" in page for page in pages) >= 1, kind


def test_parts_of_activations_are_joined_with_room_for_the_widest() -> None:
    W = torch.eye(3)
    threshold = torch.full((3,), 0.5)
    sae = saes.SAE(W, W, torch.zeros(3), torch.zeros(3), threshold=threshold)
    x = torch.tensor([[1.0, 0.0, 0.0], [0.0, 2.0, 0.0], [3.0, 4.0, 5.0]])
    whole, parts = sae.encode(x), [sae.encode(part) for part in x.split(2)]
    assert [part.indices.shape[1] for part in parts] == [1, 3]
    together = joined(parts)
    assert torch.equal(sae.decode(together), sae.decode(whole))
    assert together.values.sum() == x.sum()
