"""A calibration in tables, for the terminal and for pages: its cells, and what its gates say."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from interp.calibrate.gates import gates_text
from interp.calibrate.saturation import FITS

MARKS = {True: "passed", False: "FAILED", None: "undecided"}
LEVELS = {name: count for name, (count, converged_alone) in FITS.items() if converged_alone}
"""Estimators of N, and the count whose level each is."""
SHORT = {"saturation": "N", "saturation_atoms": "atoms", "saturation_all": "all"}
ONE_SIZE = {
    "S>=2/d": "reproducible",
    "atoms/d": "reproducible_atoms",
    "all/d": "reproducible_all",
    "live/d": "live_latents_10",
    "F/d": "hill_1",
}


def level_tables(records: Iterable[dict[str, Any]]) -> dict[str, list[dict[str, str]]]:
    """By estimator of N, in the gates' words, one row per cell: N per dimension beside the truth,
    and what of the features was found."""
    called, cells = gates_text()["estimators"], list(_cells(records))
    tables = {}
    for name, count in LEVELS.items():
        rows = [
            {
                **_what(record),
                "N/d": _number(n["mean"], record),
                "bias": _percent(n["bias"]),
                "covers": _covering(n),
                "identified": f"{n['n_identified']}/{n['n_replicates']}",
                **_beside_truth(by_name, count, record["n_features"]),
            }
            for record, by_name in cells
            if (n := by_name.get(name)) is not None
        ]
        if rows:
            tables[called[name]] = rows
    return tables


def cell_table(records: Iterable[dict[str, Any]]) -> list[dict[str, str]]:
    """One row per cell for a page. Of N, with composites and without: the bias, how many replicates
    identified it, and how many of their intervals cover, as they are and widened by the biases in
    cells of other groups; what of the features the latter finds."""
    called = gates_text()["estimators"]
    rows = []
    for record, by_name in _cells(records):
        row = _what(record)
        for name in ("saturation", "saturation_atoms"):
            if (n := by_name.get(name)) is not None:
                told = [
                    _percent(n["bias"]),
                    f"{n['n_identified']}/{n['n_replicates']}",
                    _covering(n),
                    *_widened(n),
                ]
                row[called[name]] = ", ".join(told)
        rows.append(row | _beside_truth(by_name, LEVELS["saturation_atoms"], record["n_features"]))
    return rows


def one_size_table(records: Iterable[dict[str, Any]]) -> list[dict[str, str]]:
    """The same cells by what the largest dictionary alone gives."""
    return [
        _what(record)
        | {
            called: _number(by_name[name]["mean_bound"], record)
            for called, name in ONE_SIZE.items()
            if name in by_name
        }
        for record, by_name in _cells(records)
    ]


def gate_table(gates: Iterable[dict[str, Any]], *, short: bool = False) -> list[dict[str, str]]:
    """One row per gate, with the verdict and the value of every estimator, as shares."""
    called = SHORT if short else gates_text()["estimators"]
    rows: dict[str, dict[str, str]] = {}
    for gate in gates:
        estimator, name = gate["name"].split(": ")
        low, high = gate["limit"]
        signed = "+" if low < 0 else ""
        limits = f"±{high:.0%}" if low == -high else f"{100 * low:.0f}-{high:.0%}"
        row = rows.setdefault(name, {"gate": name, "limits": limits})
        value = "" if gate["value"] is None else f" {gate['value']:{signed}.1%}"
        row[called.get(estimator, estimator)] = MARKS[gate["passed"]] + value
    return list(rows.values())


def sayings(gates: Iterable[dict[str, Any]]) -> list[str]:
    """Every verdict in the words of `gates.yaml`, each once, with the cell that decided it."""
    said = []
    for gate in gates:
        if gate["passed"] is None:
            said.append(gate["verdict"])
        else:
            cell = f" ({gate['cell']})" if gate["cell"] else ""
            said.append(f"{MARKS[gate['passed']]}: {gate['verdict']}{cell}")
    return list(dict.fromkeys(said))


def _cells(
    records: Iterable[dict[str, Any]],
) -> Iterable[tuple[dict[str, Any], dict[str, dict[str, Any]]]]:
    """Each cell and its estimators by name; sizes ascend, so the largest dictionary's stays."""
    return ((r, {e["estimator"]: e for e in r["estimators"]}) for r in records)


def _what(record: dict[str, Any]) -> dict[str, str]:
    return {
        "n/d": f"{record['n_per_dim']:g}",
        "Zipf": f"{record['zipf']:g}",
        "k/L0": f"{record['k_ratio']:g}",
        "features": record["structure"],
    }


def _beside_truth(by_name: dict[str, Any], count: str, n: int) -> dict[str, str]:
    """Of a count in the largest dictionary: features hit, and what stands for none."""
    hits, strays = (by_name.get(f"{count}_{what}") for what in ("hits", "strays"))
    if hits is None or strays is None or hits["mean_bound"] is None:
        return {}
    return {
        "hits": f"{hits['mean_bound'] / n:.0%}",
        "strays": f"{strays['mean_bound'] / n:.0%}",
    }


def _covering(found: dict[str, Any]) -> str:
    return f"{found['n_covering']}/{found['n_with_interval']}"


def _widened(estimator: dict[str, Any]) -> list[str]:
    """How many intervals cover if they are widened by the biases in cells of other groups."""
    found = estimator.get("widened")
    return [_covering(found)] if found and found["n_biases"] and found["n_replicates"] else []


def _number(value: float | None, record: dict[str, Any]) -> str:
    return "-" if value is None else f"{value / record['d_in']:.2f}"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:+.1%}"
