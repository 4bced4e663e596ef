"""What is committed under results/ for fits is what the code says now, and what README quotes."""

from __future__ import annotations

import importlib.util
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from interp import ladder
from interp.fits import fit_jointly
from interp.fixed_tokens import at_fixed_tokens
from interp.forecast import forecast_largest
from interp.loss_table import read_table
from interp.one_alpha import one_alpha

RESULTS = Path(__file__).parents[2] / "results"


def committed(name: str) -> Any:
    return json.loads((RESULTS / name).read_text())


def test_the_generated_table_is_made_again() -> None:
    path = RESULTS.parent / "tools" / "published_table.py"
    spec = importlib.util.spec_from_file_location("published_table", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    again = module.generated(pd.read_csv(RESULTS / "mit_fit" / "published_offsets.csv"))
    table = read_table(RESULTS / "mit_fit" / "generated.csv").rows
    np.testing.assert_allclose(again["loss"], table["loss"], rtol=1e-7)
    first = (RESULTS / "mit_fit" / "generated.csv").read_text().splitlines()[0]
    assert "not measured" in first


def test_its_fit_is_the_published_fit() -> None:
    fit = committed("mit_fit/fit.json")
    assert fit["alpha"]["value"] == pytest.approx(0.9098, abs=1e-6)
    assert fit["A"]["value"] == pytest.approx(476.0763, rel=1e-5)
    offsets = pd.read_csv(RESULTS / "mit_fit" / "published_offsets.csv")
    np.testing.assert_allclose([b["value"] for b in fit["B"]], offsets["B"], atol=1e-6)
    assert fit["residual_sd"] ** 2 * 90 / 108 == pytest.approx(0.0051977, rel=1e-6)
    # The joint error, against the 0.036 that was published with the offsets held.
    assert fit["alpha"]["se_joint"] == pytest.approx(0.0594, abs=5e-4)
    assert fit["alpha"]["se_offsets_fixed"] == pytest.approx(0.036, abs=0.003)


@pytest.mark.parametrize(
    ("folder", "source", "n_largest"), [("mit_fit", "generated.csv", 1), ("ladder_fit", None, 2)]
)
def test_fits_and_forecasts_are_made_again(folder: str, source: str | None, n_largest: int) -> None:
    table = read_table("ladder" if source is None else RESULTS / folder / source)
    fit = committed(f"{folder}/fit.json")
    again = fit_jointly(table, n_bootstrap=0).to_json()
    for name in ("A", "alpha"):
        for key in ("value", "ci_low", "ci_high", "se_joint", "se_offsets_fixed"):
            assert again[name][key] == pytest.approx(fit[name][key], rel=1e-4), (name, key)
    forecast = committed(f"{folder}/forecast.json")
    rows = [f.to_json() for f in forecast_largest(table, n_largest=n_largest)]
    assert [r["model"] for r in rows] == [r["model"] for r in forecast]
    for row, before in zip(rows, forecast, strict=True):
        for key in ("predicted", "ci_low", "ci_high", "actual"):
            assert math.isclose(row[key], before[key], rel_tol=1e-4), (row["model"], key)


def test_the_fit_of_width_and_tokens_is_made_again() -> None:
    fit, table = committed("ladder_fit/tokens.json"), read_table("ladder-tokens")
    assert len(table.rows) == 3 * len(ladder.names())
    again = fit_jointly(table, "data", n_bootstrap=0).to_json()
    assert again["n_losses"] == fit["n_losses"]
    for name in ("A", "alpha"):
        for key in ("value", "ci_low", "ci_high", "se_joint"):
            assert again[name][key] == pytest.approx(fit[name][key], rel=1e-3), (name, key)
    budgets = [one.to_json() for one in at_fixed_tokens(table)]
    assert [b["train_tokens"] for b in budgets] == [
        b["train_tokens"] for b in fit["at_fixed_tokens"]
    ]
    for one, before in zip(budgets, fit["at_fixed_tokens"], strict=True):
        for key in ("value", "ci_low", "ci_high"):
            assert one["alpha"][key] == pytest.approx(before["alpha"][key], rel=1e-3)
    [common] = one_alpha(table).values()
    assert common.p == pytest.approx(fit["one_alpha"][0]["p"], rel=1e-3)
