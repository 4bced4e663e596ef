"""README's generated blocks are what the tree and the committed run say."""

from __future__ import annotations

import importlib.util
import json
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def readme() -> ModuleType:
    spec = importlib.util.spec_from_file_location("readme", ROOT / "tools" / "readme.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_generated_blocks_are_current(readme: ModuleType) -> None:
    text = (ROOT / "README.md").read_text()
    assert readme.rendered(text, readme.README_BLOCKS) == text, "run `make readme`"


def test_the_findings_are_those_of_the_committed_runs(readme: ModuleType) -> None:
    text = readme.FINDINGS.read_text()
    assert readme.rendered(text, readme.FINDING_BLOCKS) == text, "run `make readme`"
    folders = [p for p in readme.FINDINGS.parent.iterdir() if p.is_dir()]
    assert not [p.name for p in folders if f"{p.name}/" not in text], "every folder is told of"


def test_the_bridge_tells_bounds_from_counts(readme: ModuleType, tmp_path: Path) -> None:
    assert "not committed yet" in readme.truth.bridge(tmp_path)
    found = {"value": 0.9, "p": 0.001, "n_models": 2, "reason": None}
    one = {"n_per_dim": 4, "decay": -1.0, "represented_per_dim": 4.0, "counted_per_dim": 3.9,
           "bound": False, "without_composites_per_dim": 3.5, "without_composites_bound": True,
           "relative_error": -0.025, "loss": 0.12, "seconds": 90.0}  # fmt: skip
    none = one | {"decay": 1.0, "counted_per_dim": None, "bound": True, "relative_error": None}
    summary = {
        "command": "interp bridge", "verdict": "the count follows", "cells": [one, none],
        "counted_with_represented": found, "counted_with_loss": found,
        "represented_with_loss": found | {"value": None, "reason": "two models"},
        "within_per_dim": {"counted": found, "represented": found},
        "n_counted": 1, "n_close": 1, "n_bounds": 0,
    }  # fmt: skip
    (tmp_path / "results" / "bridge").mkdir(parents=True)
    (tmp_path / "results" / "bridge" / "summary.json").write_text(json.dumps(summary))
    text = readme.truth.bridge(tmp_path)
    assert text.startswith("> The count follows.")
    assert "| 4 | -1 | 4.00 | 3.90 | ≥ 3.50 | 0.120 |" in text
    assert "| 4 | 1 | 4.00 | - | ≥ 3.50 | 0.120 |" in text
    assert "represented with loss undefined: two models" in text
    assert "1 of 1 counts, 0 of them bounds; farthest off 3.90 for 4.00 per dimension." in text
    assert "3 minutes" in text


def test_undecided_gates_stand_beside_what_many_data_sets_say(readme: ModuleType) -> None:
    """Extents over cells and the worst of them; of few data sets nothing is said."""

    def estimator(name: str, **found: Any) -> dict[str, Any]:
        unknown = dict.fromkeys(("bias", "coverage", "mean_bound"))
        of = {"n_covering": 0, "n_with_interval": 0, "n_identified": 20, "n_replicates": 20}
        return {"estimator": name, "d_sae": 256} | unknown | of | found

    def cell(bias: float | None, covering: int, hits: float | None, **about: Any) -> dict[str, Any]:
        covers = {"coverage": covering / 20, "n_covering": covering, "n_with_interval": 20}
        seldom = {"n_identified": 9} if bias == 0.08 else {}
        smaller = estimator("reproducible_atoms_hits", mean_bound=1.0) | {"d_sae": 32}
        return {
            "n_replicates": 20, "n_per_dim": 4, "k_ratio": 1, "structure": "independent",
            "n_features": 128,
            "estimators": [
                smaller,
                estimator("reproducible_atoms_hits", mean_bound=hits),
                estimator("saturation", bias=bias and 2 * bias, **seldom),
                estimator("saturation_atoms", bias=bias, **covers),
            ],
        } | about  # fmt: skip

    say = readme.truth._so_far
    cells = [cell(-0.02, 19, 128.0), cell(0.08, 3, None, k_ratio=2), cell(0.01, 18, 120.0)]
    told = say({"cells": cells})
    assert (
        "N without composites is on average -2.0% to +8.0% off the true number in the 3 of 3"
        in told
    )
    assert "; N is on average -4.0% to +2.0% off the true number in the 2 of 3 kinds" in told
    assert "independent features (n/d 4, k 2 times the true L0): 3 of 20." in told
    assert "wrong reason" not in told
    hidden = say({"cells": [*cells, cell(0.0, 20, 32.0, structure="hierarchy")]})
    assert "most fire below others alone (n/d 4), classes point along 25% of the features" in hidden
    assert say({"cells": [one | {"n_replicates": 19} for one in cells]}) == ""
    # What was never identified, has no interval or no truth beside it, is no fault.
    nothing = cell(None, 0, None)
    for one in nothing["estimators"]:
        one |= {"coverage": None, "n_identified": 0}
    nothing["estimators"] = nothing["estimators"][2:]
    assert say({"cells": [nothing]}) == ""
    assert say({"cells": [*cells, nothing]}).startswith("N without composites is on average -2.0%")
    assert "in the 3 of 4 kinds" in say({"cells": [*cells, nothing]})


def test_the_order_of_batches_is_told_from_its_records(readme: ModuleType) -> None:
    folder = ROOT / "results" / "batch_order"
    records = json.loads((folder / "records.json").read_text())
    key = "held_out_projects_nats_per_token"
    ours, shuffled = ({r["seed"]: r[key] for r in records[side]["models"]}
                      for side in ("in_text_order", "shuffled"))  # fmt: skip
    text = (folder / "README.md").read_text()
    for seed, loss in ours.items():
        beside = f"{shuffled[seed]:.4f}" if seed in shuffled else "-"
        assert f"| {seed} | {loss:.4f} | {beside} |" in text
    better = sorted(ours[seed] - loss for seed, loss in shuffled.items())
    said = f"and shuffled: {better[0]:.2f} to {better[-1]:.2f} nats per token better"
    assert said in readme.FINDINGS.read_text()
    shipped = json.loads((ROOT / "interp" / "ladder" / "models.json").read_text())
    assert all(shipped[r["model"]][key] == r[key] for r in records["in_text_order"]["models"])


def test_a_finding_is_told_from_its_numbers(readme: ModuleType, tmp_path: Path) -> None:
    """Of two runs that differ in what was planted, each block says its own."""
    sys.path.append(str(ROOT / "tests" / "interp"))
    import arm_run

    assert "not committed yet" in readme.studies.constant_width(tmp_path)
    told = []
    for loss in (arm_run.loss_follows, arm_run.nothing):
        data = arm_run.summary(arm_run.decay_packs, loss)
        arm_run.write_run(tmp_path / "results" / "referee", data)
        text = readme.studies.constant_width(tmp_path)
        assert data["headline"] in text
        assert data["command"] in text
        assert "What a referee would say" in text
        assert "put together" not in text
        told.append(text)
    assert "loss falls where packing rises" in told[0]
    assert "no evidence that loss moves with it" in told[1]


def test_a_study_measured_in_parts_quotes_the_line_that_measures_all(
    readme: ModuleType, tmp_path: Path
) -> None:
    run = readme.studies.RUN
    summary = json.loads((ROOT / "results" / run / "summary.json").read_text())
    parts = [{"command": f"interp study {one}.yaml"} for one in "ab"]
    summary |= {"command": "interp merge a b", "merged_from": parts}
    (tmp_path / "results" / run).mkdir(parents=True)
    (tmp_path / "results" / run / "summary.json").write_text(json.dumps(summary))
    told = readme.studies.figure(tmp_path)
    assert f"`interp study results/{run}/config.resolved.yaml --out" in told
    assert "2 studies" in told
    assert "`interp merge`" in told


def test_every_module_is_listed_once(readme: ModuleType) -> None:
    listed = re.findall(
        r"^- `((?:interp|saes)/[\w/]+\.py)`: \S", readme.package.modules(ROOT), re.MULTILINE
    )
    paths = [p for package in ("interp", "saes") for p in (ROOT / package).rglob("*.py")]
    tree = [p.relative_to(ROOT).as_posix() for p in paths]
    assert sorted(listed) == sorted(tree)


def test_the_headline_is_regenerated_from_the_committed_numbers() -> None:
    """Every number that README quotes comes from `results/`, through the report's own code."""
    import pandas as pd

    from interp.config import StudyConfig
    from interp.report import headline
    from interp.summary import summarise

    studies = sorted((ROOT / "results").glob("*/config.resolved.yaml"))
    assert studies
    for file in (config.with_name("summary.json") for config in studies):
        summary = json.loads(file.read_text())
        assert headline(summary) == summary["headline"], file
        config = StudyConfig.model_validate(
            yaml.safe_load((file.parent / "config.resolved.yaml").read_text())
        )
        facts = json.loads((file.parent / "models.json").read_text())
        again = summarise(pd.read_parquet(file.parent / "results.parquet"), facts, config)
        for key in ("packing", "exponent", "correlation", "scaling", "models", "primary", "arm"):
            assert again.get(key) == summary.get(key), f"{file}: {key}"


def test_figures_of_long_training_are_those_of_the_committed_run() -> None:
    cases = {
        (c["width"], c["stream"], c["rate"]): c
        for c in json.loads((ROOT / "results/learning_rate/raw.json").read_text())
    }

    def mean(key: str, *case: Any) -> float:
        return sum(cases[case][key]) / 2

    def fvu(width: int, stream: str, *rates: str) -> str:
        return " against ".join(f"{mean('fvu', width, stream, rate):.3f}" for rate in rates)

    alone, bounded = "rule alone", "default"
    unused = [f"{mean('rare', 192, stream, alone):.0%}" for stream in ("model", "twin")]
    seeds = [f"{cases[192, 'model', rate]['shared']:.0%}" for rate in (bounded, alone)]
    text = " ".join((ROOT / "docs/benchmarks.md").read_text().split())
    for quoted in (
        f"leaves {unused[0]} of the model's latents unused and {unused[1]} of its twin's",
        f"the default {mean('rare', 192, 'model', bounded):.1%} and none",
        f"({fvu(192, 'model', bounded, alone)}, {fvu(192, 'twin', bounded, alone)})",
        f"share {seeds[0]} of their latents instead of {seeds[1]}",
        f"({fvu(64, 'twin', bounded, alone)})",
    ):
        assert quoted in text, quoted
    assert mean("rare", 192, "twin", bounded) == 0
    assert f"{unused[1]} of them at width 192" in (ROOT / "CHANGELOG.md").read_text()


def test_what_pages_say_of_the_full_study_is_in_it() -> None:
    """Tokens per latent that counts needed, and what the raw stream counts."""
    packing = json.loads((ROOT / "results/full/summary.json").read_text())["packing"]
    rows = [r for r in packing if r["estimator"] == "reproducible" and r["primary_layer"]]
    counts = [r for r in rows if r["about"] == "contextual"]
    settled = [r["tokens_per_latent"] for r in counts if r["converged"]]
    moving = [r["tokens_per_latent"] for r in counts if not r["converged"]]
    assert 32_500 < min(settled) < max(settled) < 131_500
    assert sorted(t for t in moving if t > 26_500) == [pytest.approx(min(settled))]
    told = " ".join((ROOT / "docs/how-to/own-model.md").read_text().split())
    assert "all but one of the headline's counts settled with 33,000 to 131,000 training" in told
    assert "and none with 26,000 or fewer" in told

    widths = {m["name"]: m["d_model"] for m in json.loads(
        (ROOT / "results/full/models.json").read_text())}  # fmt: skip
    raw = [r for r in rows if r["about"] == "all"]
    assert raw
    for row in raw:
        [twin] = row["controls"]
        assert twin["value"] > row["value"], row["model"]
        both_full = row["censored"] and twin["censored"]
        assert both_full == (widths[row["model"]] <= 128), row["model"]
    number = " ".join((ROOT / "docs/explanation/number.md").read_text().split())
    counted = {widths[row["model"]] for row in raw}
    assert counted == set(widths.values())
    assert "it is, at widths 160, 192 and 256; up to 128 both fill their dictionaries" in number

    import pandas as pd

    table = pd.read_parquet(ROOT / "results/full/results.parquet")
    place = {"model": "ladder/d064", "control": "trained", "layer": 1, "about": "contextual",
             "d_sae": 256, "k_rule": "fvu", "quantity": "reproducible_all_seeds"}  # fmt: skip
    [everyone] = table[(table[list(place)] == pd.Series(place)).all(axis=1)]["value"]
    assert everyone == 155
    assert "What all five find takes 61% of them there (155 of 256" in number
    # "what five find grows with them": at every width, by far more than its error.
    own = table[(table[list(place)[1:4]] == pd.Series(place)[list(place)[1:4]]).all(axis=1)]
    own = own[(own["k_rule"] == "fvu") & (own["quantity"] == place["quantity"])]
    sizes = own.assign(per_dim=own["d_sae"] // own["d_model"])
    counts = sizes.pivot_table(index="model", columns="per_dim", values="value")
    assert len(counts) == len(widths)
    assert (counts[8] > 1.4 * counts[4]).all()
    assert "and what five find grows with them" in " ".join(
        (ROOT / "results/README.md").read_text().split()
    )


def test_what_pages_say_of_the_study_of_one_width_is_in_it() -> None:
    """What its models differ in beside training, and its controls."""
    import pandas as pd

    table = pd.read_parquet(ROOT / "results/referee/results.parquet")
    text = " ".join((ROOT / "results/README.md").read_text().split())
    number = " ".join((ROOT / "docs/explanation/number.md").read_text().split())
    counts = table[(table["quantity"] == "reproducible") & (table["role"] == "main")]
    trained = counts[counts["control"] == "trained"].set_index("model")
    cosines = table[(table["quantity"] == "match_threshold") & (table["control"] == "trained")]
    least = cosines.set_index("model")["value"]
    spans = f"own k ({trained['k'].min()} to {trained['k'].max()}) and its own least cosine"
    assert spans in text
    assert f"({least.min():.2f} to {least.max():.2f}), highest where the count is lowest" in text
    assert set(least.nlargest(3).index) == set(trained["value"].nsmallest(3).index)
    of_base = counts[counts["model"] == "ladder/d064"].set_index("control")["value"]
    assert of_base["matched_gaussian"] == 0
    assert (
        f"find {of_base['trained']:.0f} latents, on tokens shuffled within documents "
        f"{of_base['shuffled_tokens']:.0f} (neither settled), in Gaussian noise of its covariance "
        f"none, in the untrained twin {of_base['random_init']:.0f}." in text
    )
    summary = json.loads((ROOT / "results/referee/summary.json").read_text())
    arm = summary["arm"]
    assert f"settled in {arm['n_usable']} of {arm['n_models']} models" in number
    let_in = arm["unconverged"]
    assert f"(Spearman of growth and loss {let_in['growth_with_loss']:.2f})" in number
    # "hangs on the models of fewer and more tokens": no other lever's make as much of it.
    tests = {t["of"]: t for t in let_in["tests"]}
    without = {of: abs(t["spearman"]) for of, t in tests.items() if of.startswith("without")}
    assert min(without, key=without.__getitem__) == "without tokens"
    changes = " ".join((ROOT / "CHANGELOG.md").read_text().split())
    assert (
        f"Spearman is {tests['all']['spearman']:.2f} (p {tests['all']['p']:.2f}) over "
        f"{let_in['n_models']} models, {tests['without tokens']['spearman']:.2f} without those of "
        "fewer or more tokens, and decides nothing"
    ).replace("-", "−") in changes
    first = " ".join((ROOT / "README.md").read_text().split())
    assert f"{len(arm['left_out'])} of its {arm['n_models']} counts were still moving" in first
    assert {r["reason"] for r in arm["left_out"]} == {"undertrained"}
    from interp.power import detectable

    assert f"rank correlation of {detectable(6).detectable_rho:.2f} or more" in text
    primary = [r for r in summary["packing"] if r["estimator"] == "reproducible"]
    settled = {r["model"] for r in primary if r["converged"]}
    assert len(settled) == arm["n_usable"]
    assert "ladder/d064" not in settled
    told = " ".join((ROOT / "docs/how-to/own-model.md").read_text().split())
    assert {round(r["tokens_per_latent"], -3) for r in primary} == {66_000}
    assert "1 of 21 had settled with 66,000 per latent" in told


def test_the_two_commands_and_one_figure_stand_on_the_first_screen() -> None:
    first = "\n".join((ROOT / "README.md").read_text().splitlines()[:40])
    assert "make study" in first
    assert "make test" in first
    assert first.count("![") <= 1
    for target in re.findall(r"\]\(((?!https?:)[^)#]+)\)", (ROOT / "README.md").read_text()):
        assert (ROOT / target).exists(), target


def test_the_public_names_are_the_promised_ones() -> None:
    import interp
    import saes

    assert interp.__all__ == [
        "capture", "estimate", "load", "loss", "merge", "open_run", "run_study", "tokens"
    ]  # fmt: skip
    assert {"train", "load", "save"} <= set(saes.__all__)
    for module in (interp, saes):
        for name in module.__all__:
            assert callable(getattr(module, name)), name
