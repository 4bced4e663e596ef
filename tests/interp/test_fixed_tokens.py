"""Alpha at each number of training tokens, where models of one width had several."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from interp import cli
from interp.fits import BRANCHES, POOLED, fit_jointly
from interp.fixed_tokens import at_fixed_tokens
from interp.loss_table import read_table
from interp.one_alpha import one_alpha
from interp.report.law_figure import fit_figure
from interp.scaling import CAPTION, common_alpha

WIDTHS = (32, 48, 64, 96, 128, 192)
HEADER = "family,dataset,model,d_model,train_tokens,loss\n"


def table_of(path: Path, lines: list[str]) -> Path:
    path.write_text(HEADER + "\n".join(lines) + "\n")
    return path


@pytest.fixture
def budgets(tmp_path: Path) -> Path:
    """Three budgets, each with an exponent and an offset of its own, and a family without."""
    noise = 0.001 * np.random.default_rng(0).normal(size=(4, len(WIDTHS)))
    lines = [
        f"own,text,d{d}-{n},{d},{n},{9 / d**alpha + offset + noise[i, j]:.6f}"
        for i, (n, alpha, offset) in enumerate(
            [(4_000_000, 0.4, 2.0), (1_000_000, 0.8, 3.0), (2_000_000, 0.6, 2.5)]
        )
        for j, d in enumerate(WIDTHS)
    ]
    lines += [
        f"other,text,o{d},{d},8000000,{5 / d + 2 + noise[3, j]:.6f}" for j, d in enumerate(WIDTHS)
    ]
    return table_of(tmp_path / "losses.csv", lines)


def test_every_budget_has_its_own_exponent(budgets: Path) -> None:
    found = at_fixed_tokens(read_table(budgets))
    assert [(b.family, b.train_tokens) for b in found] == [
        ("own", 1e6), ("own", 2e6), ("own", 4e6)
    ]  # fmt: skip
    for one, alpha, offset in zip(found, (0.8, 0.6, 0.4), (3.0, 2.5, 2.0), strict=True):
        assert one.n_models == len(WIDTHS)
        assert one.identified
        assert one.alpha.ci_low < alpha < one.alpha.ci_high
        assert one.B.ci_low < offset < one.B.ci_high
        assert one.alpha.ci_high - one.alpha.ci_low < 0.2


def test_exponents_that_differ_are_told_apart(budgets: Path) -> None:
    assert set(one_alpha(read_table(budgets))) == {("own", "text")}
    assert one_alpha(read_table(budgets))["own", "text"].p < 1e-4


def test_one_exponent_comes_back_and_is_doubted_as_often_as_it_should() -> None:
    """200 draws of three budgets with one alpha: p below .05 in 5% (3 standard errors 4.6 points),
    and below .5 in half."""
    rng = np.random.default_rng(0)
    m = np.array(WIDTHS, dtype=float)
    found = [
        common_alpha([(m, 9 / m**0.6 + b + 0.01 * rng.normal(size=len(m))) for b in (2, 2.5, 3)])
        for _ in range(200)
    ]
    assert np.median([one.alpha for one in found]) == pytest.approx(0.6, abs=0.03)
    assert {one.freedom for one in found} == {9}
    p = np.array([one.p for one in found])
    assert np.mean(p <= 0.05) < 0.096
    assert np.mean(p <= 0.5) == pytest.approx(0.5, abs=0.11)


def test_one_budget_of_enough_widths_is_nothing_to_compare() -> None:
    m = np.array(WIDTHS, dtype=float)
    assert common_alpha([(m, 9 / m**0.6 + 2), (m[:3], 9 / m[:3] + 2)]) is None


def test_a_budget_of_few_widths_has_no_exponent_and_says_why(tmp_path: Path) -> None:
    lines = [f"own,text,a{d},{d},2000000,{9 / d**0.5 + 2:.6f}" for d in WIDTHS]
    lines += [f"own,text,b{d},{d},1000000,{9 / d**0.5 + 3:.6f}" for d in WIDTHS[:3]]
    few, whole = at_fixed_tokens(read_table(table_of(tmp_path / "losses.csv", lines)))
    assert (few.alpha.value, few.alpha.ci_low, few.identified) == (None, None, False)
    assert few.reason is not None
    assert "3 widths" in few.reason
    assert whole.alpha.value == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize("other", ["2000000", ""])
def test_one_budget_or_an_unknown_one_is_no_variety(tmp_path: Path, other: str) -> None:
    lines = [f"own,text,a{d},{d},2000000,{9 / d**0.5 + 2:.6f}" for d in WIDTHS[:-1]]
    lines.append(f"own,text,last,{WIDTHS[0]},{other},3.5")
    assert at_fixed_tokens(read_table(table_of(tmp_path / "losses.csv", lines))) == ()


def test_what_a_fit_says_of_tokens(budgets: Path) -> None:
    table = read_table(budgets)
    said = {form: fit_jointly(table, form, n_bootstrap=0).notes for form in ("width", "data")}
    assert POOLED in said["width"]
    assert BRANCHES in said["data"]
    assert CAPTION not in said["width"] + said["data"]
    alone = table.take((table.rows["family"] == "other").to_numpy())
    assert fit_jointly(alone, n_bootstrap=0).notes == (CAPTION,)


def test_the_command_fits_tokens_where_they_vary(
    budgets: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def answer(*argv: str) -> dict:
        assert cli.main(["fit", str(budgets), "--bootstrap", "0", "--json", *argv]) == 0
        return json.loads(capsys.readouterr().out, parse_constant=pytest.fail)

    assert answer()["form"] == "data"
    asked = answer("--form", "width")
    assert asked["form"] == "width"
    assert [b["train_tokens"] for b in asked["at_fixed_tokens"]] == [1e6, 2e6, 4e6]
    assert [(b["family"], b["dataset"]) for b in asked["one_alpha"]] == [("own", "text")]
    assert cli.main(["fit", str(budgets), "--bootstrap", "0"]) == 0
    shown = capsys.readouterr().out
    assert "each budget by itself" in shown
    assert "1,000,000" in shown
    assert "own, text: one alpha for all numbers of tokens, 0." in shown


def test_residuals_are_told_apart_by_tokens(budgets: Path) -> None:
    table = read_table(budgets)
    table = table.take((table.rows["family"] == "own").to_numpy())
    for form, names in (
        ("data", {"own, 4M tokens", "own, 1M tokens", "own, 2M tokens"}),
        ("width", {"own"}),
    ):
        drawn = fit_figure(table.rows, fit_jointly(table, form, n_bootstrap=0).to_json())
        shown = {
            row["family"] for rows in drawn["datasets"].values() for row in rows if "family" in row
        }
        assert shown == names


def test_the_default_form_is_one_that_can_be_fitted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two budgets do not tell a term in tokens from the offset; one model again is no budget."""

    def form(lines: list[str]) -> tuple[str, bool]:
        table = table_of(tmp_path / "losses.csv", lines)
        assert cli.main(["fit", str(table), "--bootstrap", "0", "--json"]) == 0
        found = json.loads(capsys.readouterr().out)
        return found["form"], "at_fixed_tokens" in found

    noise = 0.01 * np.random.default_rng(0).normal(size=(2, len(WIDTHS)))
    two = [
        f"own,text,d{d}-{n},{d},{n},{9 / d**0.6 + 2 + 1e6 / n + noise[i, j]:.6f}"
        for i, n in enumerate((1_000_000, 2_000_000))
        for j, d in enumerate(WIDTHS)
    ]
    assert form(two) == ("width", True)
    once = [
        f"own,text,d{d},{d},{20_000 * d},{9 / d**0.6 + 2 + noise[0, j]:.6f}"
        for j, d in enumerate(WIDTHS)
    ]
    again = f"own,text,again,{WIDTHS[1]},{10_000 * WIDTHS[1]},{9 / WIDTHS[1] ** 0.6 + 2.2:.6f}"
    assert form([*once, again]) == ("width", False)


def test_a_group_that_does_not_fall_has_no_exponent() -> None:
    m = np.array(WIDTHS, dtype=float)
    rising = (m, 2 + 0.001 * m)
    assert common_alpha([(m, 9 / m**0.6 + 2 + 1e-3 * (m == 64)), rising]) is None
