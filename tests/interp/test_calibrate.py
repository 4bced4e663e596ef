"""The calibration: its cells and gates by hand, and a tiny run that resumes."""

import json
import shutil
from pathlib import Path

import pandas as pd
import pytest
import torch

from interp import calibrate, calibrate_jobs
from interp.calibrate_cells import CalibrationConfig, Cell
from interp.calibrate_figure import calibration_figure
from interp.calibrate_gates import cell_records, gates_text, summary_table, tidy, verdicts
from interp.calibrate_presets import PRESETS
from interp.calibrate_replicate import run_replicate
from interp.calibrate_saturation import saturation_rows
from interp.calibrate_training import keep, kept
from interp.cli import main
from interp.errors import UserError

INDEPENDENT = Cell(d_in=32, n_per_dim=4, l0=2, zipf=0.5)
DIFFICULTIES = {
    "k_half": {"k_ratio": 0.5},
    "k_double": {"k_ratio": 2.0},
    "correlation": {"correlation": 0.5},
    "hierarchy": {"children": 3},
}
TINY = CalibrationConfig(
    preset="tiny",
    cells=(
        Cell(d_in=8, n_per_dim=2, l0=1),
        Cell(d_in=8, n_per_dim=2, l0=1, zipf=1, children=3, k_ratio=2),
    ),
    n_replicates=1,
    n_seeds=3,
    d_sae_per_d_in=(2, 4, 8, 16),
    n_rows=8_192,
    held_out_rows=2_048,
)


def cell(**changes) -> Cell:
    return INDEPENDENT.model_copy(update=changes)


def config(cells, n_replicates=1) -> CalibrationConfig:
    return CalibrationConfig(preset="test", cells=tuple(cells), n_replicates=n_replicates)


def rows_of(a_cell: Cell, replicate: int, **by_estimator) -> dict:
    """A replicate's record: estimator -> (value, ci_low, ci_high, identified)."""
    rows = [
        {
            "d_sae": 512,
            "estimator": name,
            "value": value,
            "ci_low": low,
            "ci_high": high,
            "identified": identified,
            "censored": not identified,
            "reason": None,
            "fvu": 0.1,
            "se": None,
            "value_half": None,
            "fvu_half": None,
            "converged": True,
        }
        for name, (value, low, high, identified) in by_estimator.items()
    ]
    return {"cell": a_cell.name, "replicate": replicate, "n_features": 128, "rows": rows}


def many(a_cell: Cell, value: float, n: int = 100, *, identified=True, start=0) -> list[dict]:
    """As many replicates as a gate asks for, all alike."""
    found = (value, 1, 1000, True) if identified else (value, 100, None, False)
    return [rows_of(a_cell, i, saturation=found) for i in range(start, start + n)]


def judged(replicates, cells) -> dict[str, dict]:
    records = cell_records(tidy(replicates), config(cells))
    return {gate["name"]: gate for gate in verdicts(records)}


# ---- cells


def test_a_gate_is_about_one_difficulty_inside_its_region():
    assert cell().group(512) == "independent"
    for name, change in DIFFICULTIES.items():
        assert cell(**change).group(512) == name
    for change in ({"zipf": 1.5}, {"n_per_dim": 9}, {"noise": 0.3}, {"k_ratio": 3.0}):
        assert cell(**change).group(4096) is None
    assert cell(k_ratio=0.5, children=3).group(512) is None
    assert cell().group(256) == "independent"
    assert cell().group(255) is None  # the largest dictionary must hold 2n = 256


def test_presets_have_cells_for_every_gate():
    wanted = {gate["cells"] for gate in gates_text()["gates"]}
    for name, preset in PRESETS.items():
        assert wanted <= {preset.group(c) for c in preset.cells}, name
        assert len({c.name for c in preset.cells}) == len(preset.cells), name
        for c in preset.cells:
            c.data(seed=0)  # possible at all
    assert PRESETS["full"].n_replicates >= gates_text()["min_replicates"] >= 100


def test_k_is_a_share_of_the_true_l0():
    assert [cell(k_ratio=r).k for r in (0.5, 1, 2)] == [1, 2, 4]
    assert cell(l0=0.5, k_ratio=0.5).k == 1


# ---- gates


def test_bias_spread_and_coverage_by_hand():
    found = [
        rows_of(INDEPENDENT, 0, saturation=(128 * 1.02, 120, 140, True)),
        rows_of(INDEPENDENT, 1, saturation=(128 * 1.04, 129, 150, True)),
        rows_of(INDEPENDENT, 2, saturation=(300.0, 290, None, False)),
    ]
    [record] = cell_records(tidy(found), config([INDEPENDENT]))
    [estimator] = record["estimators"]
    assert estimator["bias"] == pytest.approx(0.03)
    assert estimator["spread"] == pytest.approx(0.02 / 2**0.5)
    assert estimator["coverage"] == 0.5
    assert (estimator["n_identified"], estimator["n_replicates"]) == (2, 3)
    assert estimator["n_false_bounds"] == 1  # "at least 290" of 128
    assert record["n_features"] == 128


@pytest.mark.parametrize(
    ("value", "passed"), [(1.049, True), (1.051, False), (0.951, True), (0.949, False)]
)
def test_the_bias_of_independent_features_has_its_limit(value, passed):
    gates = judged(many(INDEPENDENT, 128 * value), [INDEPENDENT])
    gate = gates["saturation: bias_independent"]
    assert gate["passed"] is passed
    assert gate["value"] == pytest.approx(value - 1)
    assert gate["cell"] == INDEPENDENT.name
    words = gates_text()["gates"][0]["passed" if passed else "failed"]
    assert gate["verdict"] == words.replace("<N>", "N")


@pytest.mark.parametrize("name", DIFFICULTIES)
def test_difficult_cells_have_their_own_gates(name):
    hard = cell(**DIFFICULTIES[name])
    for value, passed in ((1.14, True), (1.16, False), (0.86, True), (0.84, False)):
        gates = judged(many(hard, 128 * value), [hard])
        decided = {n: g["passed"] for n, g in gates.items() if g["passed"] is not None}
        assert decided == {f"saturation: bias_{name}": passed}


def test_the_worst_cell_decides():
    other = cell(zipf=1.0)
    gates = judged(
        many(INDEPENDENT, 128.0) + many(other, 100.0),
        [INDEPENDENT, other],
    )
    assert gates["saturation: bias_independent"]["cell"] == other.name
    assert gates["saturation: bias_independent"]["passed"] is False


def test_a_cell_without_an_answer_leaves_a_pass_undecided_and_a_failure_failed():
    silent = cell(zipf=1.0)
    for value, passed in ((128.0, None), (150.0, False)):
        gates = judged(
            many(INDEPENDENT, value) + many(silent, 100.0, identified=False),
            [INDEPENDENT, silent],
        )
        assert gates["saturation: bias_independent"]["passed"] is passed


def test_refusals_are_no_passes():
    gates = judged(many(INDEPENDENT, 128.0, identified=False), [INDEPENDENT])
    assert gates["saturation: bias_independent"]["passed"] is None
    assert gates["saturation: identified"]["passed"] is False


def test_a_failure_in_a_full_cell_is_not_hidden_by_a_worse_one_that_is_not():
    other = cell(zipf=1.0)
    found = many(INDEPENDENT, 128 * 1.12) + many(other, 128 * 1.4, 1)
    gate = judged(found, [INDEPENDENT, other])["saturation: bias_independent"]
    assert (gate["passed"], gate["cell"]) == (False, INDEPENDENT.name)


def test_few_replicates_decide_only_what_more_could_not_mend():
    """The words speak of one in ten: eleven refusals are more than a hundred can make good."""

    def decided(n_identified: int, n_refused: int) -> bool | None:
        found = many(INDEPENDENT, 128.0, n_identified)
        found += many(INDEPENDENT, 128.0, n_refused, identified=False, start=n_identified)
        return judged(found, [INDEPENDENT])["saturation: identified"]["passed"]

    assert decided(0, 1) is None
    assert decided(1, 0) is None
    assert decided(0, 10) is None
    assert decided(0, 11) is False
    assert decided(90, 10) is True
    assert decided(89, 11) is False
    one = judged(many(INDEPENDENT, 200.0, 1), [INDEPENDENT])["saturation: bias_independent"]
    assert (one["passed"], one["value"]) == (None, pytest.approx(200 / 128 - 1))


def test_coverage_needs_a_hundred_replicates_of_every_cell():
    def coverage(n_replicates: int, n_missing: int) -> dict:
        found = [
            rows_of(INDEPENDENT, i, saturation=(128.0, 129.0 if i < n_missing else 120, 140, True))
            for i in range(n_replicates)
        ]
        return judged(found, [INDEPENDENT])["saturation: coverage"]

    assert coverage(99, 5)["passed"] is None
    assert coverage(100, 5)["passed"] is True
    assert coverage(100, 5)["value"] == pytest.approx(0.95)
    assert coverage(100, 11)["passed"] is False
    assert coverage(100, 1)["passed"] is False  # too wide is wrong too


def test_good_cells_do_not_hide_one_whose_intervals_are_too_short():
    other = cell(zipf=1.0)
    found = []
    for a_cell, n_missing in ((INDEPENDENT, 4), (other, 12)):
        found += [
            rows_of(a_cell, i, saturation=(128.0, 129.0 if i < n_missing else 120, 140, True))
            for i in range(100)
        ]
    gate = judged(found, [INDEPENDENT, other])["saturation: coverage"]
    assert (gate["passed"], gate["cell"]) == (False, other.name)
    assert gate["value"] == pytest.approx(0.88)


@pytest.mark.parametrize(("n_identified", "passed"), [(50, True), (49, None)])
def test_a_cell_that_is_mostly_refused_passes_no_gate(n_identified, passed):
    found = many(INDEPENDENT, 128.0, n_identified)
    found += many(INDEPENDENT, 128.0, 100 - n_identified, identified=False, start=n_identified)
    gates = judged(found, [INDEPENDENT])
    assert gates["saturation: bias_independent"]["passed"] is passed
    wrong = many(INDEPENDENT, 200.0, n_identified)
    wrong += many(INDEPENDENT, 128.0, 100 - n_identified, identified=False, start=n_identified)
    failed = {True: False, None: None}[passed]
    assert judged(wrong, [INDEPENDENT])["saturation: bias_independent"]["passed"] is failed


def test_both_estimators_are_judged_in_their_own_words():
    gates = judged(
        [
            rows_of(
                INDEPENDENT,
                i,
                saturation=(200.0, 190, 210, True),
                saturation_atoms=(129.0, 120, 140, True),
            )
            for i in range(100)
        ],
        [INDEPENDENT],
    )
    assert gates["saturation: bias_independent"]["passed"] is False
    assert gates["saturation_atoms: bias_independent"]["passed"] is True
    verdict = gates["saturation_atoms: bias_independent"]["verdict"]
    assert "identified, N without composites is within 5%" in verdict
    assert not any("<N>" in gate["verdict"] for gate in gates.values())


# ---- a tiny run


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    out = tmp_path_factory.mktemp("calibration") / "out"
    return out, calibrate.calibrate(TINY, out, command="interp calibrate", processes=1, quiet=True)


def test_a_run_leaves_its_contract(tiny):
    out, summary = tiny
    assert json.loads((out / "summary.json").read_text()) == summary
    assert {"cells", "gates"} <= set(summary)
    assert all({"name", "value", "limit", "passed"} <= set(gate) for gate in summary["gates"])
    table = pd.read_parquet(out / "results.parquet")
    for name in ("reproducible", "reproducible_atoms", "reproducible_all", "live_latents_10",
                 "hill_0", "hill_1", "hill_2", "chao2_latents", "chapman_seeds", "chao2_seeds",
                 "chao2_seeds_robust", "overlap", "capacity", "distinct_latents"):  # fmt: skip
        # Two cells of four sizes each.
        assert (table["estimator"] == name).sum() == 8, name
    assert (table["estimator"] == "saturation").sum() == 2
    # Where every fit was refused there is nothing to draw.
    drawn = calibration_figure(summary["cells"]) is not None
    assert (out / "figures" / "calibration.png").exists() == drawn
    assert len(summary_table(summary["cells"])) == 2
    # Without composites there is no more than with them, and what all seeds find, two have found;
    # but each has its own null taken off, which is a draw.
    count = table.pivot_table("value", ["cell", "d_sae"], "estimator")
    for fewer in ("reproducible_atoms", "reproducible_all"):
        assert (count[fewer] <= count["reproducible"] + 2).all(), fewer
    assert count["reproducible_all"].sum() < count["reproducible"].sum()
    for one in ("live_latents_10", "distinct_latents"):
        assert (count[one] <= count.reset_index()["d_sae"].to_numpy()).all(), one


def test_a_lost_replicate_is_made_again_and_nothing_else(tiny):
    out, before = tiny
    files = sorted((out / "replicates").iterdir())
    lost, kept = files[0], files[1]
    content, stamp = json.loads(lost.read_text()), kept.stat().st_mtime_ns
    lost.unlink()
    (out / "replicates" / f".{lost.name}.partial").write_text("cut off")
    after = calibrate.calibrate(TINY, out, command="interp calibrate", processes=1, quiet=True)
    again = json.loads(lost.read_text())
    assert again["rows"] == content["rows"]
    assert kept.stat().st_mtime_ns == stamp
    assert after["cells"] == before["cells"]
    assert sorted((out / "replicates").iterdir()) == files


def counted_by_other_code(tiny, tmp_path) -> tuple[Path, Path]:
    """A copy of the tiny run of which one replicate was counted by other code."""
    out = Path(shutil.copytree(tiny[0], tmp_path / "out"))
    file = min((out / calibrate.REPLICATES).glob("*.json"))
    stale = json.loads(file.read_text()) | {"code_sha256": "another", "rows": []}
    file.write_text(json.dumps(stale))
    return out, file


def test_other_counting_counts_the_same_saes_again(tiny, tmp_path, monkeypatch):
    out, file = counted_by_other_code(tiny, tmp_path)
    kept = {f: f.stat().st_mtime_ns for f in file.parent.iterdir() if f != file}

    def no_training(*args, **options):
        raise AssertionError("its SAEs are there")

    monkeypatch.setattr(calibrate_jobs, "train", no_training)
    again = calibrate.calibrate(TINY, out, command="interp calibrate", processes=1, quiet=True)
    assert again["cells"] == tiny[1]["cells"]
    first = tiny[0] / calibrate.REPLICATES / file.name
    assert json.loads(file.read_text())["rows"] == json.loads(first.read_text())["rows"]
    assert {f: f.stat().st_mtime_ns for f in kept} == kept


@pytest.mark.parametrize("how", ["trained by other code", "not kept"])
def test_replicates_by_other_code_are_not_taken_over(tiny, tmp_path, how):
    out, file = counted_by_other_code(tiny, tmp_path)
    saes = file.with_suffix(".safetensors")
    if how == "not kept":
        saes.unlink()
    else:
        keep(kept(saes, TINY.cells[0]), saes, "another")
    before = (out / "summary.json").read_bytes()
    with pytest.raises(UserError, match=r"was made by other code; remove the replicates"):
        calibrate.calibrate(TINY, out, command="interp calibrate", processes=1, quiet=True)
    assert (out / "summary.json").read_bytes() == before


def test_a_replicate_that_fails_leaves_the_others(tiny, tmp_path, monkeypatch):
    out, file = counted_by_other_code(tiny, tmp_path)
    other = max(file.parent.glob("*.json"))
    other.unlink()
    run = calibrate_jobs.run_replicate

    def failing(cell, *args, **options):
        if file.name.startswith(cell.name):
            raise ValueError("no count")
        return run(cell, *args, **options)

    monkeypatch.setattr(calibrate_jobs, "run_replicate", failing)
    with pytest.raises(UserError, match=r"1 of 2 replicates failed, first .*ValueError.*no count"):
        calibrate.calibrate(TINY, out, command="interp calibrate", processes=1, quiet=True)
    assert other.exists()


def test_numbers_begin_where_nobody_has_looked(tmp_path):
    beyond = TINY.model_copy(update={"first_replicate": 7, "n_replicates": 2})
    jobs = calibrate._jobs(beyond, tmp_path)
    assert [job.replicate for job in jobs] == [7, 7, 8, 8]
    assert jobs[0].file.name == f"{TINY.cells[0].name}.7.json"
    assert jobs[0].training_sha256 not in ("", jobs[0].code_sha256)


def test_a_count_keeps_what_it_was_made_of(tiny):
    for file in (tiny[0] / calibrate.REPLICATES).glob("*.json"):
        rows = json.loads(file.read_text())["rows"]
        by_name = {(r["estimator"], r["d_sae"]): r for r in rows}
        counts = [r for r in rows if r["detail"] is not None]
        assert {r["estimator"] for r in counts} <= {
            "reproducible", "reproducible_atoms", "reproducible_all"
        }  # fmt: skip
        assert counts
        for row in counts:
            detail = row["detail"]
            r = str(detail["min_seeds"])
            found = detail["found"]["s_ge"][r]
            assert row["value"] == max(found - detail["null"]["s_ge"][r], 0)
            assert row["fvu"] == pytest.approx(sum(detail["fvu_by_seed"]) / TINY.n_seeds)
            for told in detail["truth"].values():
                assert told["hit"] + told["again"] + told["none"] == found
            name, size = row["estimator"], row["d_sae"]
            assert by_name[f"{name}_hits", size]["value"] == detail["truth"]["0.9"]["hit"]
            assert by_name[f"{name}_strays", size]["value"] == detail["truth"]["0.9"]["none"]


def test_replicates_differ():
    cells = TINY.cells[0]
    other = run_replicate(cells, 1, TINY, workers=1)
    first = run_replicate(cells, 0, TINY, workers=1)
    assert other != first


def test_another_calibration_is_refused(tiny, tmp_path):
    out, _ = tiny
    changed = TINY.model_copy(update={"n_rows": 4_096})
    with pytest.raises(UserError, match="n_rows is 8192 there, 4096 here"):
        calibrate.calibrate(changed, out, command="", quiet=True)
    (tmp_path / "mine").write_text("something else")
    with pytest.raises(UserError, match="holds no calibration"):
        calibrate.calibrate(TINY, tmp_path, command="", quiet=True)


def test_the_figure_says_every_cell_and_shows_refusals_hollow():
    other = cell(zipf=1.0)
    found = [
        rows_of(INDEPENDENT, 0, saturation=(128.0, 120, 140, True)),
        rows_of(
            other,
            0,
            saturation=(96.0, 90, None, False),
            saturation_unchecked=(160.0, 150, 170, True),
        ),
    ]
    records = cell_records(tidy(found), config([INDEPENDENT, other]))
    figure = calibration_figure(records)
    assert figure is not None
    assert "n/d 4, Zipf 0.5: N 4.00 of 4; n/d 4, Zipf 1: N, not all sizes converged 5.00 of 4" in (
        figure.alt
    )
    assert calibration_figure([]) is None


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["nothing"], "unknown calibration 'nothing'; use one of compact, gates, full"),
        (["compact", "--replicates", "0"], "n_replicates: Input should be greater"),
        (["compact", "--cells", "d1"], "has no cell 'd1'"),
        (["compact", "--rows", "100"], "n_rows: Input should be greater"),
        (["compact", "--sizes", "2", "4"], "d_sae_per_d_in: Tuple should have at least 4"),
    ],
)
def test_wrong_input_is_answered_in_one_line(words, complaint, capsys):
    assert main(["calibrate", *words]) == 2
    error = capsys.readouterr().err
    assert complaint in error
    assert error.count("\n") == 1


def test_the_committed_verdicts_follow_from_the_committed_rows():
    folder = Path(__file__).parents[2] / "results" / "calibration"
    held = CalibrationConfig.model_validate_json((folder / "config.json").read_text())
    summary = json.loads((folder / "summary.json").read_text())
    table = pd.read_parquet(folder / "results.parquet")
    records = cell_records(table, held)
    assert records == summary["cells"]
    assert verdicts(records) == summary["gates"]
    # N itself, from the counts beside it.
    for a_cell in held.cells:
        own = table[(table["cell"] == a_cell.name) & (table["replicate"] == 0)]
        counts = own[~own["estimator"].str.startswith("saturation")]
        rows = counts.astype(object).where(counts.notna(), None).to_dict("records")
        for again in saturation_rows(rows, a_cell, held):
            [row] = own[own["estimator"] == again["estimator"]].to_dict("records")
            if again["value"] is not None:
                assert row["value"] == pytest.approx(again["value"], rel=1e-6)
            assert row["identified"] == again["identified"]


@pytest.mark.slow
def test_n_is_right_where_it_should_be():
    """Sixty-four features in 32 dimensions, two active, largest dictionary eight times as large."""
    easy = Cell(d_in=32, n_per_dim=2, l0=2, zipf=0.5)
    held = config([easy])
    fits = saturation_rows(run_replicate(easy, 0, held), easy, held)
    [atoms] = [row for row in fits if row["estimator"] == "saturation_atoms"]
    assert atoms["identified"]
    assert atoms["value"] == pytest.approx(64, rel=0.05)


def test_sizes_grow_until_the_largest_holds_twice_the_features():
    gates = PRESETS["gates"]
    for one in gates.cells:
        sizes = gates.sizes(one)
        assert len(sizes) == 6
        assert 2 * one.n_features <= sizes[-1] <= max(8 * one.d_in, 2 * one.n_features)
        assert gates.group(one) is not None
    assert gates.sizes(INDEPENDENT) == (32, 64, 96, 128, 192, 256)
    assert gates.sizes(cell(n_per_dim=8)) == (64, 128, 192, 256, 384, 512)
    plain = config([INDEPENDENT])
    assert plain.sizes(cell(n_per_dim=8)) == plain.sizes(INDEPENDENT)


def test_larger_dictionaries_get_more_rows():
    gates = PRESETS["gates"]
    assert [gates.rows(d_sae) for d_sae in (16, 32, 64, 512)] == [2**18, 2**18, 2**19, 2**22]
    growing = TINY.model_copy(update={"d_sae_per_d_in": (2, 4), "rows_per_latent": 256})
    seen = []

    class Rows:
        def stream(self, n_rows, *, generator):
            seen.append(n_rows)
            yield torch.randn(n_rows, 8, generator=generator)

        def rows(self, n, *, generator):
            return torch.randn(n, 8, generator=generator), torch.zeros(n)

    run_replicate(TINY.cells[0], 0, growing, data=Rows(), workers=1)
    assert seen == [32 * 256]


def test_a_finished_calibration_is_judged_again(tiny):
    out, before = tiny
    again = calibrate.calibrate(TINY, out, command="interp calibrate", processes=2, quiet=True)
    assert (again["cells"], again["gates"]) == (before["cells"], before["gates"])


def test_processes_make_the_same_replicates_as_one(tiny, tmp_path):
    out = tmp_path / "two"
    summary = calibrate.calibrate(TINY, out, command="interp calibrate", processes=2, quiet=True)
    assert summary["cells"] == tiny[1]["cells"]
    for file in (tiny[0] / calibrate.REPLICATES).glob("*.json"):
        one, two = (json.loads((f / calibrate.REPLICATES / file.name).read_text())
                    for f in (tiny[0], out))  # fmt: skip
        assert one["rows"] == two["rows"]
