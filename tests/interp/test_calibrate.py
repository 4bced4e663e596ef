"""A tiny calibration that resumes, and what is committed of a real one."""

import json
import shutil
from pathlib import Path

import pandas as pd
import pytest
import torch
from calibrations import INDEPENDENT, cell, config, rows_of

from interp.calibrate import jobs, run
from interp.calibrate.cells import CalibrationConfig, Cell
from interp.calibrate.figure import calibration_figure
from interp.calibrate.gates import cell_records, verdicts
from interp.calibrate.presets import PRESETS
from interp.calibrate.replicate import run_replicate
from interp.calibrate.saturation import saturation_rows
from interp.calibrate.table import read_table, replicates_of, tidy
from interp.calibrate.training import keep, kept
from interp.cli import main
from interp.errors import UserError

COMMITTED = Path(__file__).parents[2] / "results" / "calibration"
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


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    out = tmp_path_factory.mktemp("calibration") / "out"
    return out, run.calibrate(TINY, out, command="interp calibrate", processes=1, quiet=True)


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
    (out / "results.parquet").unlink()
    (out / "replicates" / f".{lost.name}.partial").write_text("cut off")
    after = run.calibrate(TINY, out, command="interp calibrate", processes=1, quiet=True)
    again = json.loads(lost.read_text())
    assert again["rows"] == content["rows"]
    assert kept.stat().st_mtime_ns == stamp
    assert after["cells"] == before["cells"]
    assert sorted((out / "replicates").iterdir()) == files


def test_a_table_is_enough_to_go_on_from(tiny, tmp_path, monkeypatch):
    """What is kept of a calibration in a repository: a longer run of it makes the rest alone."""
    out = tmp_path / "out"
    out.mkdir()
    for name in ("config.json", "results.parquet"):
        shutil.copy(tiny[0] / name, out)
    made = []
    well = jobs.run_replicate

    def watched(cell, replicate, *args, **options):
        made.append(replicate)
        return well(cell, replicate, *args, **options)

    monkeypatch.setattr(jobs, "run_replicate", watched)
    how = {"command": "interp calibrate", "processes": 1, "quiet": True}
    again = run.calibrate(TINY, out, **how)
    assert not made
    assert again == json.loads((tiny[0] / "summary.json").read_text())
    longer = run.calibrate(TINY.model_copy(update={"n_replicates": 2}), out, **how)
    assert made == [1, 1]
    assert longer["n_replicates"] == 4
    table = pd.read_parquet(out / "results.parquet")
    first = table[table["replicate"] == 0].reset_index(drop=True)
    pd.testing.assert_frame_equal(first, pd.read_parquet(tiny[0] / "results.parquet"))


def test_a_table_by_other_code_is_not_gone_on_from(tiny, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    shutil.copy(tiny[0] / "config.json", out)
    table = pd.read_parquet(tiny[0] / "results.parquet")
    table.assign(code_sha256="another").to_parquet(out / "results.parquet")
    with pytest.raises(UserError, match=r"results.parquet was made by other code; remove it"):
        run.calibrate(TINY, out, command="interp calibrate", processes=1, quiet=True)
    # Beside files that today's code made it is not asked.
    shutil.copytree(tiny[0] / run.REPLICATES, out / run.REPLICATES, dirs_exist_ok=True)
    again = run.calibrate(TINY, out, command="interp calibrate", processes=1, quiet=True)
    assert again["cells"] == tiny[1]["cells"]


def test_a_table_that_says_too_little_is_not_gone_on_from(tiny, tmp_path):
    file = tmp_path / "results.parquet"
    assert replicates_of(read_table(file)) == {}
    table = pd.read_parquet(tiny[0] / "results.parquet")
    table.drop(columns="code_sha256").to_parquet(file)
    assert replicates_of(read_table(file)) == {}
    nameless = table["cell"] == table["cell"][0]
    for column in ("code_sha256", "began"):
        table.assign(**{column: table[column].mask(nameless)}).to_parquet(file)
        assert [cell for cell, _ in replicates_of(read_table(file))] == [table["cell"].iloc[-1]], (
            column
        )
    # Nor is it lost where it is not asked for.
    other = file.parent / "out"
    other.mkdir()
    shutil.copy(tiny[0] / "config.json", other)
    shutil.copytree(tiny[0] / run.REPLICATES, other / run.REPLICATES)
    table.drop(columns="code_sha256").to_parquet(other / "results.parquet")
    fewer = TINY.model_copy(update={"cells": TINY.cells[:1]})
    run.calibrate(fewer, other, command="interp calibrate", processes=1, quiet=True)
    assert len(pd.read_parquet(other / "results.parquet")) == len(table)
    file.write_bytes(b"PAR1 cut off")
    with pytest.raises(UserError, match=r"results.parquet: no table .*remove it"):
        read_table(file)
    table.drop(columns="cell").to_parquet(file)
    with pytest.raises(UserError, match=r"results.parquet: not a calibration's table; remove it"):
        read_table(file)


def test_what_is_not_asked_for_stays_in_the_table(tiny, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    for name in ("config.json", "results.parquet"):
        shutil.copy(tiny[0] / name, out)
    fewer = TINY.model_copy(update={"cells": TINY.cells[:1]})
    summary = run.calibrate(fewer, out, command="interp calibrate", processes=1, quiet=True)
    assert [record["cell"] for record in summary["cells"]] == [TINY.cells[0].name]
    before, after = (pd.read_parquet(f / "results.parquet") for f in (tiny[0], out))
    order = ["cell", "replicate", "d_sae", "estimator"]
    after = after.sort_values(order, kind="stable").reset_index(drop=True)
    pd.testing.assert_frame_equal(after, before)  # fits too
    whole = run.calibrate(TINY, out, command="interp calibrate", processes=1, quiet=True)
    assert whole["cells"] == tiny[1]["cells"]


def counted_by_other_code(tiny, tmp_path) -> tuple[Path, Path]:
    """A copy of the tiny run of which one replicate was counted by other code."""
    out = Path(shutil.copytree(tiny[0], tmp_path / "out"))
    (out / "results.parquet").unlink()
    file = min((out / run.REPLICATES).glob("*.json"))
    stale = json.loads(file.read_text()) | {"code_sha256": "another", "rows": []}
    file.write_text(json.dumps(stale))
    return out, file


def test_other_counting_counts_the_same_saes_again(tiny, tmp_path, monkeypatch):
    out, file = counted_by_other_code(tiny, tmp_path)
    kept = {f: f.stat().st_mtime_ns for f in file.parent.iterdir() if f != file}

    def no_training(*args, **options):
        raise AssertionError("its SAEs are there")

    monkeypatch.setattr(jobs, "train", no_training)
    again = run.calibrate(TINY, out, command="interp calibrate", processes=1, quiet=True)
    assert again["cells"] == tiny[1]["cells"]
    first = tiny[0] / run.REPLICATES / file.name
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
        run.calibrate(TINY, out, command="interp calibrate", processes=1, quiet=True)
    assert (out / "summary.json").read_bytes() == before


def test_a_replicate_that_fails_leaves_the_others(tiny, tmp_path, monkeypatch):
    out, file = counted_by_other_code(tiny, tmp_path)
    other = max(file.parent.glob("*.json"))
    other.unlink()
    well = jobs.run_replicate

    def failing(cell, *args, **options):
        if file.name.startswith(cell.name):
            raise ValueError("no count")
        return well(cell, *args, **options)

    monkeypatch.setattr(jobs, "run_replicate", failing)
    with pytest.raises(UserError, match=r"1 of 2 replicates failed, first .*ValueError.*no count"):
        run.calibrate(TINY, out, command="interp calibrate", processes=1, quiet=True)
    assert other.exists()


def test_numbers_begin_where_nobody_has_looked(tmp_path):
    beyond = TINY.model_copy(update={"first_replicate": 7, "n_replicates": 2})
    made = run._jobs(beyond, tmp_path)
    assert [job.replicate for job in made] == [7, 7, 8, 8]
    assert made[0].file.name == f"{TINY.cells[0].name}.7.json"
    assert made[0].training_sha256 not in ("", made[0].code_sha256)


def test_a_count_keeps_what_it_was_made_of(tiny):
    for file in (tiny[0] / run.REPLICATES).glob("*.json"):
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
        run.calibrate(changed, out, command="", quiet=True)
    (tmp_path / "mine").write_text("something else")
    with pytest.raises(UserError, match="holds no calibration"):
        run.calibrate(TINY, tmp_path, command="", quiet=True)


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
    held = CalibrationConfig.model_validate_json((COMMITTED / "config.json").read_text())
    summary = json.loads((COMMITTED / "summary.json").read_text())
    table = pd.read_parquet(COMMITTED / "results.parquet")
    records = cell_records(table, held)
    assert records == summary["cells"]
    assert verdicts(records) == summary["gates"]
    # N itself, from the counts beside it.
    for a_cell in held.cells:
        own = table[(table["cell"] == a_cell.name) & (table["replicate"] == held.first_replicate)]
        counts = own[~own["estimator"].str.startswith("saturation")]
        rows = counts.astype(object).where(counts.notna(), None).to_dict("records")
        for again in saturation_rows(rows, a_cell, held):
            [row] = own[own["estimator"] == again["estimator"]].to_dict("records")
            if again["value"] is not None:
                assert row["value"] == pytest.approx(again["value"], rel=1e-6)
            assert row["identified"] == again["identified"]


@pytest.mark.slow
@pytest.mark.parametrize("which", [0, 1, -1])
def test_committed_replicates_are_made_again(which, tmp_path):
    """From the committed config alone; bits hang on the processor, so within a few percent."""
    held = CalibrationConfig.model_validate_json((COMMITTED / "config.json").read_text())
    one = held.cells[which]
    alone = held.model_copy(update={"cells": (one,), "n_replicates": 1})
    out = tmp_path / "out"
    summary = run.calibrate(alone, out, command="interp calibrate", processes=1, quiet=True)
    assert summary["n_replicates"] == 1
    key = one.name, held.first_replicate
    again, before = (
        replicates_of(read_table(f / "results.parquet"))[key] for f in (out, COMMITTED)
    )
    places = ["d_sae", "estimator"]
    made, kept = (pd.DataFrame(r["rows"]).set_index(places).sort_index() for r in (again, before))
    assert made.index.equals(kept.index)
    counts = made.index.get_level_values("estimator").isin(["reproducible", "reproducible_atoms"])
    assert counts.sum() == 2 * len(held.sizes(one))
    slack = 0.05 * one.n_features
    for column, within in (("value", slack), ("value_half", slack), ("fvu", 0.002)):
        off = (made[counts][column].astype(float) - kept[counts][column].astype(float)).abs()
        assert (off <= within).all(), column


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
    again = run.calibrate(TINY, out, command="interp calibrate", processes=2, quiet=True)
    assert (again["cells"], again["gates"]) == (before["cells"], before["gates"])


def test_processes_make_the_same_replicates_as_one(tiny, tmp_path):
    out = tmp_path / "two"
    summary = run.calibrate(TINY, out, command="interp calibrate", processes=2, quiet=True)
    assert summary["cells"] == tiny[1]["cells"]
    for file in (tiny[0] / run.REPLICATES).glob("*.json"):
        one, two = (json.loads((f / run.REPLICATES / file.name).read_text())
                    for f in (tiny[0], out))  # fmt: skip
        assert one["rows"] == two["rows"]
