"""The preset `referee`, whole, on an arm small enough for a test: levers, controls, refusals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny_ladder
from tiny_study import write_text

from interp import ladder
from interp.config import PRESETS
from interp.study import run_study

WITH_A_REASON = {
    "correlation": ("spearman", "p_exact", "ci_low", "within_levers", "slope"),
    "power": ("detectable_rho",),
    "leave_one_out": ("low", "high"),
    "mediation": ("loss_per_packing", "p"),
}
"""Quantities that few models cannot have, by record."""


def test_the_preset_names_its_question_before_the_run() -> None:
    referee = PRESETS["referee"]
    assert referee.arm == "constant_width"
    assert (referee.primary_stream, referee.primary_layer_fraction) == ("contextual", 0.5)
    assert not referee.preview
    assert referee.check_convergence
    assert referee.n_seeds == 5
    base = referee.models[0]
    assert base == "ladder/d064"
    assert referee.twins == referee.shuffled == referee.gaussian == (base,)
    # Dictionaries that all models fill would give them one count and the test nothing to rank:
    # what two seeds find fills those of the base model, what all five find does not.
    assert referee.min_seeds == referee.n_seeds
    assert referee.d_sae_per_d_model == (4,)


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Any:
    root = tmp_path_factory.mktemp("referee")
    work = tiny_ladder.write_corpus(root / "work")
    with pytest.MonkeyPatch.context() as patch:
        tiny_ladder.redirect(root / "package", patch.setattr)
        tiny_ladder.ship_base(work)
        tiny_ladder.run("arm", work)
        config = PRESETS["referee"].model_copy(
            update={
                "models": (f"ladder/{tiny_ladder.BASE}", *ladder.arm_names()),
                "text": str(write_text(root / "text")),
                "loss_tokens": 2_048, "means_tokens": 4_096, "pilot_tokens": 2_048,
                "sae_tokens": 4_096, "primary_sae_tokens": 8_192, "held_out_tokens": 2_048,
                "splice_tokens": 1_024, "n_seeds": 3, "min_seeds": 3, "pilot_ks": (2,),
                "chunk_tokens": 1_024, "d_sae_per_d_model": (2,), "threads": 1,
            }
        )  # fmt: skip
        found = run_study(config, root / "run", quiet=True)
        before = {p: p.stat().st_mtime_ns for p in (root / "run").rglob("*") if p.is_file()}
        run_study(config, root / "run", quiet=True)
        after = {p: p.stat().st_mtime_ns for p in (root / "run").rglob("*") if p.is_file()}
        touched = {p.name for p in after if after[p] != before.get(p)}
        yield found, touched


def test_it_ends_with_all_controls_and_every_lever(study: Any) -> None:
    run, _ = study
    assert run.failures == []
    summary = run.summary
    assert summary["arm"]["name"] == "constant_width"
    assert summary["arm"]["d_model"] == 16
    assert summary["arm"]["n_models"] == 4
    levers = {m["name"]: m["lever"] for m in summary["models"]}
    assert levers.pop("ladder/d064") is None
    assert {one["name"] for one in levers.values()} == {"row_decay", "tokens", "projects"}
    [base] = [
        r for r in summary["packing"]
        if r["model"] == "ladder/d064" and r["estimator"] == "reproducible"
        and r["about"] == "contextual"
    ]  # fmt: skip
    assert [c["name"] for c in base["controls"]] == [
        "random_init", "shuffled_tokens", "matched_gaussian"
    ]  # fmt: skip
    assert all(c["k"] for c in base["controls"])
    assert summary["headline"].startswith("Not identified at constant width 16: ")
    assert (Path(run.path) / "report.html").is_file()


def test_what_four_models_cannot_say_is_null_with_a_reason(study: Any) -> None:
    summary = study[0].summary
    arm = summary["arm"]
    records = {
        "correlation": summary["correlation"][0], "power": arm["power"],
        "leave_one_out": arm["leave_one_out"], "mediation": arm["mediation"],
    }  # fmt: skip
    for name, keys in WITH_A_REASON.items():
        missing = [key for key in keys if records[name][key] is None]
        assert not missing or records[name]["reason"], (name, missing)
    assert records["power"]["detectable_rho"] is None
    assert all(r["reason"] for r in arm["dose_response"] if r["moves"] is None)
    assert {one["model"] for one in arm["left_out"]} <= set(levers_of(summary))
    assert all(one["reason"] for one in arm["left_out"])
    assert summary["mixed_model"]["value"] is None
    assert "a mixed model needs 3" in summary["mixed_model"]["reason"]


def levers_of(summary: dict[str, Any]) -> list[str]:
    return [m["name"] for m in summary["models"]]


def test_the_same_line_again_does_nothing_again(study: Any) -> None:
    _, touched = study
    made = {name for name in touched if name.endswith((".parquet", ".safetensors", ".json"))}
    assert made <= {"sources.json"}, "what is asked of the models at every start"
