"""What a calibration shows of its cells and gates."""

from __future__ import annotations

from typing import Any

from interp.calibrate.tables import gate_table, n_table, others_table, sayings


def estimator(name: str, **found: Any) -> dict[str, Any]:
    unknown = {"mean": None, "mean_bound": None, "bias": None, "n_covering": 0,
               "n_with_interval": 0, "n_identified": 0, "n_replicates": 4}  # fmt: skip
    return unknown | {"estimator": name} | found


def cell(*estimators: dict[str, Any]) -> dict[str, Any]:
    return {"n_per_dim": 4.0, "zipf": 0.5, "k_ratio": 1.0, "structure": "independent",
            "d_in": 32, "n_features": 128, "estimators": list(estimators)}  # fmt: skip


def gate(estimator: str, passed: bool | None, value: float | None, words: str) -> dict[str, Any]:
    return {"name": f"{estimator}: bias_k_half", "passed": passed, "value": value,
            "limit": [-0.15, 0.15], "verdict": words}  # fmt: skip


def test_n_stands_beside_the_truth_and_what_was_hit_in_the_largest_dictionary() -> None:
    n = estimator("saturation", mean=144.0, bias=0.125, n_covering=2, n_with_interval=3,
                  n_identified=3)  # fmt: skip
    small, large = (estimator("reproducible_hits", mean_bound=value) for value in (32.0, 96.0))
    [row] = n_table([cell(n, small, large, estimator("reproducible_strays", mean_bound=64.0))])
    assert row == {"n/d": "4", "Zipf": "0.5", "k/L0": "1", "features": "independent",
                   "N/d": "4.50", "bias": "+12.5%", "covers": "2/3", "identified": "3/4",
                   "hits": "75%", "strays": "50%"}  # fmt: skip


def test_what_was_not_counted_has_no_column() -> None:
    atoms = estimator("saturation_atoms", mean=128.0, bias=0.0, n_covering=1, n_with_interval=1)
    [row] = others_table([cell(atoms, estimator("reproducible", mean_bound=64.0))])
    assert {key: row[key] for key in list(row)[4:]} == {
        "atoms/d": "4.00", "atoms bias": "+0.0%", "atoms covers": "1/1", "S>=2/d": "2.00",
    }  # fmt: skip
    [bare] = n_table([cell(estimator("saturation"))])
    assert bare["N/d"] == bare["bias"] == "-"
    assert "hits" not in bare


def test_a_gate_is_a_row_and_every_verdict_is_said_once() -> None:
    gates = [
        gate("saturation", False, 0.28, "N misses."),
        gate("saturation_atoms", None, None, "Undecided."),
        gate("of_later", None, 0.031, "Undecided."),
    ]
    assert gate_table(gates) == [
        {"gate": "bias_k_half", "limits": "-15% to +15%", "N": "FAILED +28.0%",
         "N without composites": "undecided", "of_later": "undecided +3.1%"}
    ]  # fmt: skip
    assert sayings(gates) == ["FAILED: N misses.", "Undecided."]
