"""What a calibration shows of its cells and gates."""

from __future__ import annotations

from typing import Any

import pytest

from interp.calibrate.tables import (
    LEVELS,
    cell_table,
    gate_table,
    level_tables,
    one_size_table,
    sayings,
)
from interp.cli.parts import print_table


def estimator(name: str, **found: Any) -> dict[str, Any]:
    unknown = {"mean": None, "mean_bound": None, "bias": None, "n_covering": 0,
               "n_with_interval": 0, "n_identified": 0, "n_replicates": 4}  # fmt: skip
    return unknown | {"estimator": name} | found


def cell(*estimators: dict[str, Any]) -> dict[str, Any]:
    return {"n_per_dim": 4.0, "zipf": 0.5, "k_ratio": 1.0, "structure": "independent",
            "d_in": 32, "n_features": 128, "estimators": list(estimators)}  # fmt: skip


def gate(estimator: str, passed: bool | None, value: float | None, words: str) -> dict[str, Any]:
    return {"name": f"{estimator}: bias_k_half", "passed": passed, "value": value,
            "limit": [-0.15, 0.15], "verdict": words, "cell": "its cell"}  # fmt: skip


def test_n_stands_beside_the_truth_and_what_was_hit_in_the_largest_dictionary() -> None:
    n = estimator("saturation", mean=144.0, bias=0.125, n_covering=2, n_with_interval=3,
                  n_identified=3)  # fmt: skip
    small, large = (estimator("reproducible_hits", mean_bound=value) for value in (32.0, 96.0))
    strays = estimator("reproducible_strays", mean_bound=64.0)
    tables = level_tables([cell(n, small, large, strays)])
    assert tables == {
        "N": [{"n/d": "4", "Zipf": "0.5", "k/L0": "1", "features": "independent", "N/d": "4.50",
               "bias": "+12.5%", "covers": "2/3", "identified": "3/4", "hits": "75%",
               "strays": "50%"}]
    }  # fmt: skip


def test_every_estimator_of_n_has_a_table_and_what_was_not_counted_has_no_column() -> None:
    atoms = estimator("saturation_atoms", mean=128.0, bias=0.0, n_covering=1, n_with_interval=1)
    both = cell(estimator("saturation"), atoms, estimator("reproducible", mean_bound=64.0))
    tables = level_tables([both])
    assert list(tables) == ["N", "N without composites"]
    assert [rows[0]["N/d"] for rows in tables.values()] == ["-", "4.00"]
    assert "hits" not in tables["N"][0]
    [row] = one_size_table([both])
    assert {key: row[key] for key in list(row)[4:]} == {"S>=2/d": "2.00"}


def test_widened_intervals_stand_beside_the_others_where_other_cells_widen_them() -> None:
    widened = {"n_biases": 2, "n_replicates": 4, "n_covering": 3, "n_with_interval": 4}
    n = estimator("saturation", bias=0.125, n_covering=2, n_with_interval=3, widened=widened)
    alone = estimator("saturation", widened=widened | {"n_biases": 0})
    rows = cell_table([cell(n), cell(alone)])
    assert [row["N"] for row in rows] == ["+12.5%, 0/4, 2/3, 3/4", "-, 0/4, 0/0"]


def test_a_page_has_one_row_per_cell() -> None:
    n = estimator("saturation", bias=0.125, n_covering=2, n_with_interval=3, n_identified=3)
    atoms = estimator("saturation_atoms")
    strays, hits = (
        estimator(f"reproducible_atoms_{what}", mean_bound=value)
        for what, value in (("strays", 32.0), ("hits", 128.0))
    )
    where = {"n/d": "4", "Zipf": "0.5", "k/L0": "1", "features": "independent"}
    both = {"N": "+12.5%, 3/4, 2/3", "N without composites": "-, 0/4, 0/0"}
    assert cell_table([cell(n, atoms, hits, strays), cell(n)]) == [
        where | both | {"hits": "100%", "strays": "25%"},
        where | {"N": both["N"]},
    ]


def test_a_gate_is_a_row_and_every_verdict_is_said_once() -> None:
    gates = [
        gate("saturation", False, 0.28, "N misses."),
        gate("saturation_atoms", None, None, "Undecided."),
        gate("of_later", None, 0.031, "Undecided."),
    ]
    assert gate_table(gates) == [
        {"gate": "bias_k_half", "limits": "±15%", "N": "FAILED +28.0%",
         "N without composites": "undecided", "of_later": "undecided +3.1%"}
    ]  # fmt: skip
    assert list(gate_table(gates, short=True)[0]) == ["gate", "limits", "N", "atoms", "of_later"]
    assert sayings(gates) == ["FAILED: N misses. (its cell)", "Undecided."]


def test_the_tables_fit_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    whole = {"mean": 1284.0, "mean_bound": 1284.0, "bias": -0.125, "n_covering": 100,
             "n_with_interval": 100, "n_identified": 100, "n_replicates": 100}  # fmt: skip
    names = [*LEVELS, *LEVELS.values(), "live_latents_10", "hill_1"]
    names += [f"{count}_{what}" for count in LEVELS.values() for what in ("hits", "strays")]
    cells = [cell(*(estimator(name, **whole) for name in names))]
    limits = ("bias_independent", [-0.05, 0.05]), ("coverage_widened", [0.9, 1.0])
    gates = [
        gate(estimator, None, -0.125, "") | {"name": f"{estimator}: {name}", "limit": limit}
        for estimator in LEVELS
        for name, limit in limits
    ]
    for rows in (
        *level_tables(cells).values(),
        one_size_table(cells),
        gate_table(gates, short=True),
    ):
        print_table(rows, "")
    assert max(map(len, capsys.readouterr().out.splitlines())) <= 80
