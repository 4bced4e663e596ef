"""`interp geometry`, `interp fit`, `interp forecast`: the contract's forms, and one line each."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from published_law import published_table
from safetensors.torch import load_file, save_file

from interp import cli
from interp.errors import UserError
from interp.loss_table import read_table

SIZES = (32, 48, 64, 96, 128, 160, 192, 256)
ROOT = Path(__file__).parents[2]


def answer(capsys: pytest.CaptureFixture[str], *argv: object) -> Any:
    assert cli.main([*map(str, argv), "--json"]) == 0
    return json.loads(capsys.readouterr().out, parse_constant=pytest.fail)


def refused(capsys: pytest.CaptureFixture[str], *argv: object) -> str:
    try:
        status = cli.main([*map(str, argv)])
    except SystemExit as stop:
        status = stop.code if isinstance(stop.code, int) else 1
    captured = capsys.readouterr()
    assert status == 2, captured
    lines = [line for line in captured.err.splitlines() if "elapsed" not in line]
    assert len(lines) == 1, captured.err
    return lines[0]


@pytest.fixture
def ladder_table(tmp_path: Path) -> Path:
    path = tmp_path / "ladder.csv"
    noise = 0.01 * np.random.default_rng(0).normal(size=8)
    lines = [
        f"ladder,deps,d{d},{d},{9.6 / d**0.6 + 2.5 + e:.5f},{400 / d**0.7:.4f}"
        for d, e in zip(SIZES, noise, strict=True)
    ]
    path.write_text("family,dataset,model,d_model,loss,packing\n" + "\n".join(lines) + "\n")
    return path


def test_geometry_answers_as_in_the_contract(
    tiny_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = answer(capsys, "geometry", "ladder/d032", tiny_dir)
    assert [r["model"] for r in rows] == ["ladder/d032", str(tiny_dir)]
    for row in rows:
        assert row["matrix"] == "unembedding"
        assert row["welch_floor"] < row["mean_squared_overlap"]
        assert row["random_mean"] == pytest.approx(1 / row["d_model"])
        for key in ("n", "mean_squared_overlap_centred", "norm_mean", "norm_std"):
            assert row[key] > 0, key
        assert "fraction" not in row["sample"]
    [row] = answer(capsys, "geometry", tiny_dir, "--histogram")
    assert sum(row["sample"]["fraction"]) == pytest.approx(1)


def test_geometry_of_a_family_and_of_both_matrices(capsys: pytest.CaptureFixture[str]) -> None:
    assert len(answer(capsys, "geometry", "ladder")) == 8
    both = answer(capsys, "geometry", "ladder/d032", "--matrix", "all")
    assert [r["matrix"] for r in both] == ["embedding", "unembedding"]
    assert both[0]["tied"] is True
    assert both[0]["mean_squared_overlap"] == both[1]["mean_squared_overlap"]


def test_saes_of_one_folder_are_told_apart_in_the_table(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Their paths share a long beginning, which is cut off; --json has them whole."""
    import torch

    from saes.format import save
    from saes.sae import SAE

    folder = tmp_path / ("a-long-name" * 12)
    for number in range(2):
        W = torch.randn(12, 4, generator=torch.Generator().manual_seed(number))
        sae = SAE(W.T.clone(), W, torch.zeros(12), torch.zeros(4), k=2)
        save(sae, folder / "blocks.1.hook_resid_post" / f"12-2-{number}")
    assert cli.main(["geometry", str(folder)]) == 0
    out = capsys.readouterr().out
    assert "blocks.1.hook_resid_post/12-2-0" in out
    assert "blocks.1.hook_resid_post/12-2-1" in out
    rows = answer(capsys, "geometry", folder)
    assert all(r["model"].startswith(str(folder)) for r in rows)


def test_geometry_by_frequency_and_as_a_figure(
    tiny_dir: Path, text_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(60):
        (text_folder / f"more{number}.py").write_text(f"value{number} = {number} * {number}\n")
    figure = tmp_path / "overlap.svg"
    [row] = answer(capsys, "geometry", tiny_dir, "--text", text_folder, "--figure", figure)
    assert row["frequencies"]["n_tokens"] > 0
    assert row["bands"][0]["first_rank"] == 1
    assert "Welch floor" in figure.read_text()
    assert cli.main(["geometry", str(tiny_dir), "--text", str(text_folder)]) == 0
    assert "frequency ~ rank^-" in capsys.readouterr().out


def test_fit_answers_as_in_the_contract(
    ladder_table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    figure = tmp_path / "fit.png"
    fit = answer(capsys, "fit", ladder_table, "--bootstrap", 60, "--figure", figure)
    for name in ("A", "alpha"):
        assert {"value", "ci_low", "ci_high", "se_joint", "se_offsets_fixed"} <= fit[name].keys()
    assert fit["alpha"]["ci_low"] < fit["alpha"]["value"] < fit["alpha"]["ci_high"]
    [offset] = fit["B"]
    assert {"family", "dataset", "value", "ci_low", "ci_high"} <= offset.keys()
    assert fit["identified"] is True
    assert figure.read_bytes().startswith(b"\x89PNG")
    assert cli.main(["fit", str(ladder_table), "--bootstrap", "0"]) == 0
    out = capsys.readouterr().out
    assert "B[family, dataset]" in out
    assert "Quote the joint error" in out


def test_forecast_answers_as_in_the_contract(
    ladder_table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    figure = tmp_path / "forecast.svg"
    [row] = answer(capsys, "forecast", ladder_table, "--figure", figure)
    keys = {"family", "dataset", "model", "d_model", "predicted", "ci_low", "ci_high", "actual"}
    assert keys <= row.keys()
    assert row["d_model"] == 256
    assert row["ci_low"] < row["predicted"] < row["ci_high"]
    assert row["packing_gain"]["sentence"].startswith("exploratory")
    assert row["scaling_ends"]["d_model"] == pytest.approx(400 ** (1 / 0.7), rel=0.01)
    assert "1 of 1 actual losses inside" in figure.read_text()
    rows = answer(capsys, "forecast", ladder_table, "--at", 512, 1024)
    assert [r["d_model"] for r in rows] == [512, 1024]
    assert rows[0]["actual"] is None
    assert cli.main(["forecast", str(ladder_table), "--largest", "2"]) == 0
    out = capsys.readouterr().out
    assert "exploratory" in out
    assert "scaling ends at d_model" in out


def test_a_finished_study_is_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    run = ROOT / "results" / "quick"
    table = read_table(run)
    summary = json.loads((run / "summary.json").read_text())
    losses = [m["loss_nats_per_token"] for m in summary["models"] if m["arm"] == "width"]
    assert table.rows["loss"].tolist() == losses
    assert set(table.rows["dataset"]) == {"deps"}
    assert answer(capsys, "fit", run, "--bootstrap", 0)["n_models"] == len(losses)


def test_the_ladder_is_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    from interp import ladder

    table = read_table("ladder")
    assert len(table.rows) == 3 * len(ladder.names())
    row = table.rows.iloc[0]
    assert row["loss"] == ladder.record(row["model"])[f"{row['dataset']}_nats_per_token"]
    rows = answer(capsys, "forecast", "ladder")
    assert [r["dataset"] for r in rows] == ["deps", "stdlib", "held_out_projects"]
    # Without counts neither is left unsaid.
    assert "is not known" in rows[0]["packing_gain"]["sentence"]
    assert "no features per dimension" in rows[0]["scaling_ends"]["reason"]
    assert cli.main(["forecast", "ladder"]) == 0
    assert "ends at a width that is not known" in capsys.readouterr().out


def test_a_studys_counts_and_arms(tmp_path: Path) -> None:
    """Only the width arm, and only the counts that the study's own exponent is fitted to."""

    def model(name: str, arm: str, d: int) -> dict[str, Any]:
        return {
            "name": name, "family": "f", "arm": arm, "d_model": d, "n_layers": 4,
            "n_params": 10 * d, "train_tokens": 1000, "loss_nats_per_token": 3 + 1 / d,
        }  # fmt: skip

    def count(name: str, per_dim: float, **changed: Any) -> dict[str, Any]:
        return {
            "model": name, "estimator": "reproducible", "about": "contextual",
            "primary_layer": True, "per_dim": per_dim, "converged": True, "censored": False,
            "fvu_matched": True, "d_sae": 8 * {"a": 32, "b": 64, "c": 64, "d": 96}[name],
        } | changed  # fmt: skip

    summary = {
        "primary": {"estimator": "reproducible", "about": "contextual", "d_sae_per_d_model": 8},
        "models": [
            model("a", "width", 32),
            model("b", "width", 64),
            model("c", "decay", 64),
            model("d", "width", 96),
        ],
        "packing": [
            count("a", 2.5, censored=True),
            count("a", 9.0, d_sae=512),
            count("a", 9.0, about="all"),
            count("a", 9.0, primary_layer=False),
            count("b", 3.0, converged=False),
            count("d", 3.0, fvu_matched=False),
        ],
    }
    (tmp_path / "summary.json").write_text(json.dumps(summary))
    table = read_table(tmp_path)
    assert table.rows["model"].tolist() == ["a", "b", "d"]
    assert table.rows["packing"].tolist()[0] == 2.5
    assert table.rows["packing_is_bound"].tolist()[0] == 1
    assert np.isnan(table.rows["packing"].tolist()[1:]).all()
    assert "arms decay are left out" in table.notes[0]
    summary["models"] = summary["models"][2:3]
    (tmp_path / "summary.json").write_text(json.dumps(summary))
    with pytest.raises(UserError, match="all of its models are of the arms decay; give a study"):
        read_table(tmp_path)


HEADER = "family,dataset,model,d_model,loss\n"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("family,model,d_model\nf,a,32\n", "lacks columns dataset, loss"),
        (HEADER, "holds no row"),
        ("", "no CSV table"),
        (HEADER + "f,t,a,32,3.1\nf,t,b,wide,3.0\n", "row 2 has d_model wide"),
        (HEADER + "f,t,a,32,3.1\nf,t,b,64,nan\n", "row 2 has loss nan"),
        (HEADER + "f,t,a,32,3.1\nf,t,b,64,-1\n", "row 2 has loss -1"),
        (HEADER + "f,t,a,32,3.1\n,t,b,64,3.0\n", "row 2 has no family"),
        (HEADER + "f,t,a,32,3.1\nf,t,a,64,3.0\n", "row 2 repeats model 'a'"),
        (HEADER + "f,t,a,32,3\nf,t,b,64,2\ng,t,c,64,2\n", "family g has one model on t"),
        (HEADER + "f,t,a,32,3\nf,t,b,64,2.5\nf,t,c,96,2\n", "3 losses for 3 parameters"),
        (HEADER + "f,t,a,32,3\nf,t,b,64.5,2.5\n", "d_model 64.5; give a positive whole number"),
        (HEADER + "f,t,a,32,3\nf,t,b,64,1e300\n", "row 2 has loss 1e+300"),
        (HEADER + "f,t,a,32,3,9\nf,t,b,64,2,9\n", "more fields than its header"),
        (HEADER + "f,t,a,32,3\nf,u,a,64,2\n", "model 'a' of f has more than one d_model"),
        (HEADER.replace("\n", ",loss\n") + "f,t,a,32,3,3\n", "has column loss twice"),
        (HEADER.replace("\n", ",n_layers\n") + "f,t,a,32,3,-2\n", "has n_layers -2"),
        (HEADER.replace("\n", ",packing\n") + "f,t,a,32,3,-2\n", "has packing -2"),
    ],
)
def test_wrong_tables_are_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, said: str
) -> None:
    path = tmp_path / "table.csv"
    path.write_text(text)
    assert said in refused(capsys, "fit", path)


def test_other_wrong_input_is_one_line(
    tmp_path: Path, tiny_dir: Path, ladder_table: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "no such file" in refused(capsys, "fit", tmp_path / "none.csv")
    assert "no summary.json" in refused(capsys, "forecast", tmp_path)
    assert "no column n_layers" in refused(capsys, "fit", ladder_table, "--form", "depth")
    assert ".png or .svg" in refused(capsys, "fit", ladder_table, "--figure", tmp_path / "f.pdf")
    assert "there is no folder" in refused(
        capsys, "fit", ladder_table, "--figure", tmp_path / "no" / "f.png"
    )
    assert "from 1" in refused(capsys, "forecast", ladder_table, "--largest", "0")
    for option in ("--form", "depth"), ("--largest", "2"):
        said = refused(capsys, "forecast", ladder_table, "--at", "512", *option)
        assert "leave out --largest and --form" in said
    assert "at least two must remain" in refused(capsys, "forecast", ladder_table, "--largest", "7")
    assert "no number" in refused(capsys, "forecast", ladder_table, "--at", "wide")
    assert "no positive number" in refused(capsys, "fit", ladder_table, "--data-exponent", "-1")
    assert "no such directory" in refused(capsys, "geometry", tmp_path / "none")
    (tmp_path / "binary.csv").write_bytes(b"\xff\xfe\x00\x81" * 20)
    assert "no CSV table" in refused(capsys, "fit", tmp_path / "binary.csv")
    zeros = tmp_path / "zeros"
    shutil.copytree(tiny_dir, zeros)
    tensors = load_file(zeros / "model.safetensors")
    tensors["transformer.wte.weight"].zero_()
    save_file(tensors, zeros / "model.safetensors")
    assert "0 of 300 rows are not zero" in refused(capsys, "geometry", zeros)


def test_a_forecast_of_four_families(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "mit.csv"
    published_table(0).rows.to_csv(path, index=False)
    assert cli.main(["forecast", str(path)]) == 0
    assert "of 16 losses lie inside" in capsys.readouterr().out


def test_a_table_is_read_with_comments_and_spaces(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("# made by hand\nfamily, dataset, model, d_model, loss\nf, t, a, 32, 3\n"
                    "f, t, b, 64, 2\n")  # fmt: skip
    assert read_table(path).groups == [("f", "t")]
    with pytest.raises(UserError, match="no finished study"):
        read_table(tmp_path)
