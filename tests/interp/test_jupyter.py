"""What Jupyter shows: the facts a reader needs, and never markup that came with a name."""

from __future__ import annotations

import base64
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from interp.estimate import Estimate, Estimates
from interp.jupyter import facts
from interp.report import marks
from interp.run import Run, open_run

HOSTILE = "<script>alert(1)</script>\"'&"
PIXEL = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNkYPhfDwAChwGA60e6kgAAAABJRU5ErkJggg=="
)


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """A finished study of two models, one with a hostile name, and three figures."""
    (tmp_path / "config.resolved.yaml").write_text("models: [a]\n")
    pd.DataFrame({"value": [1.0, 2.0]}).to_parquet(tmp_path / "results.parquet")
    model = {"d_model": 32, "n_layers": 4, "n_params": 91_840, "loss_nats_per_token": 3.84567}
    models = [model | {"name": name} for name in ("ladder/d032", HOSTILE)]
    summary = {"preset": "quick", "headline": f"Packs 2.5 {HOSTILE}", "models": models}
    (tmp_path / "summary.json").write_text(json.dumps(summary))
    (tmp_path / "figures").mkdir()
    for name in ("packing_against_loss", "exponent", "loss_against_width"):
        (tmp_path / "figures" / f"{name}.png").write_bytes(PIXEL)
    return open_run(tmp_path)


def test_facts_leave_out_what_is_unknown_and_escape_the_rest() -> None:
    html = facts(HOSTILE, {"width": 32, "unknown": None, HOSTILE: HOSTILE})
    assert "<script" not in html
    assert html.count("&lt;script&gt;") == 3
    assert html.count("<tr>") == 2
    assert "unknown" not in html


def test_estimates_are_one_table() -> None:
    first = Estimate("reproducible", 17.0, 12.6, 21.4, reason=HOSTILE)
    html = Estimates([first, Estimate("hill_1", 80.4)])._repr_html_()
    assert html.count("<tr>") == 3
    assert "[12.6, 21.4]" in html
    assert "hill_1" in html
    assert "SAEs" not in html  # nothing is known of them in either
    assert "<script" not in html
    assert Estimates([])._repr_html_().count("<tr>") == 1


def test_a_model_says_what_it_is(tiny_model: Any) -> None:
    html = tiny_model._repr_html_()
    for fact in (tiny_model.name, "3, d_model 32", "32 tokens", "not stated", "float32 on cpu",
                 tiny_model.weights_sha256[:12], f"{tiny_model.n_params:,}"):  # fmt: skip
        assert fact in html, fact
    assert "differs from transformers by" in html
    assert "at most 2.3e-07" in replace(tiny_model, parity_error=2.34e-7)._repr_html_()
    unmeasured = replace(tiny_model, parity_error=None, train_tokens=12_000, name=HOSTILE)
    html = unmeasured._repr_html_()
    assert "differs from transformers" not in html
    assert "12,000 tokens" in html
    assert "<script" not in html


def test_an_estimate_carries_its_caveats_in_one_line() -> None:
    full = Estimate(
        "reproducible", 80.0, 47.8, 112.2, 2.5, n_tokens=130_538, n_seeds=3, d_sae=128, k=3
    ).with_training(fvu=0.2926, converged=False)
    assert repr(full) == (
        "Estimate(reproducible: 80; [47.8, 112.2]; 2.5 per dimension; D 128, k 3, seeds 3, "
        "FVU 0.293; 130,538 tokens; not converged; not identified; undertrained; uncalibrated)"
    )
    html = full._repr_html_()
    for fact in ("reproducible", "[47.8, 112.2]", "not converged", "not identified"):
        assert fact in html


def test_an_estimate_without_a_value_says_why() -> None:
    refused = Estimate("hill_1", None, identified=False, reason="no latent fired")
    assert repr(refused) == (
        "Estimate(hill_1: no value; not identified; no latent fired; uncalibrated)"
    )
    censored = Estimate("saturation", 512.0, 480.0, None, censored=True, calibration="+2%")
    assert repr(censored) == "Estimate(saturation: at least 512; [480, ...]; +2%)"


def test_a_run_shows_its_answer_its_figure_and_its_models(run: Run) -> None:
    html = run._repr_html_()
    assert "Packs 2.5 &lt;script&gt;" in html
    assert "<script" not in html
    assert "91,840" in html
    assert "3.8457" in html
    pixel = base64.b64encode(PIXEL).decode()
    assert html.count(pixel) == 1
    assert 'alt="packing against loss"' in html


def test_figures_are_paths_that_show_themselves(run: Run) -> None:
    assert [file.stem for file in run.figures] == [
        "exponent", "loss_against_width", "packing_against_loss"
    ]  # fmt: skip
    assert all(file.is_file() for file in run.figures)
    assert run.figures._repr_html_().count("<img") == 3


def test_a_figure_of_the_library_shows_itself_as_svg() -> None:
    points = marks.layer([{"x": 1, "y": 2}]).mark_point().encode(x="x:Q", y="y:Q")
    figure = marks.Figure("f", "Loss & width", "", "", marks.specification([points], height=100))
    drawn = figure._repr_svg_()
    assert drawn.startswith("<svg")
    assert "Loss &amp; width" in drawn
    assert "spec" not in repr(figure)
