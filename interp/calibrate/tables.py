"""A calibration in tables, for the terminal and for pages: its cells, and what its gates say."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from interp.calibrate.gates import gates_text

MARKS = {True: "passed", False: "FAILED", None: "undecided"}
ONE_SIZE = {"S>=2": "reproducible", "live": "live_latents_10", "F": "hill_1"}


def n_table(records: Iterable[dict[str, Any]]) -> list[dict[str, str]]:
    """One row per cell: N per dimension beside the truth, and what of the features was found."""
    rows = []
    for record, by_name in _cells(records):
        n = by_name["saturation"]
        rows.append(
            {
                **_what(record),
                "N/d": _number(n["mean"], record),
                "bias": _percent(n["bias"]),
                "covers": _covers(n),
                "identified": f"{n['n_identified']}/{n['n_replicates']}",
                **_beside_truth(by_name, record["n_features"]),
            }
        )
    return rows


def others_table(records: Iterable[dict[str, Any]]) -> list[dict[str, str]]:
    """The same cells by other estimators; those of one size are of the largest dictionary."""
    rows = []
    for record, by_name in _cells(records):
        row = _what(record)
        for called, name in (("atoms", "saturation_atoms"), ("all", "saturation_all")):
            if found := by_name.get(name):
                row[f"{called}/d"] = _number(found["mean"], record)
                row[f"{called} bias"] = _percent(found["bias"])
                row[f"{called} covers"] = _covers(found)
        for called, name in (
            ("S>=2", "reproducible"),
            ("live", "live_latents_10"),
            ("F", "hill_1"),
        ):
            if found := by_name.get(name):
                row[f"{called}/d"] = _number(found["mean_bound"], record)
        rows.append(row)
    return rows


def gate_table(gates: Iterable[dict[str, Any]]) -> list[dict[str, str]]:
    """One row per gate, with the verdict and the value of every estimator, as shares."""
    called = gates_text()["estimators"]
    rows: dict[str, dict[str, str]] = {}
    for gate in gates:
        estimator, name = gate["name"].split(": ")
        signed = "+" if gate["limit"][0] < 0 else ""
        low, high = (f"{limit:{signed}.0%}" for limit in gate["limit"])
        row = rows.setdefault(name, {"gate": name, "limits": f"{low} to {high}"})
        value = "" if gate["value"] is None else f" {gate['value']:{signed}.1%}"
        row[called.get(estimator, estimator)] = MARKS[gate["passed"]] + value
    return list(rows.values())


def sayings(gates: Iterable[dict[str, Any]]) -> list[str]:
    """Every verdict in the words fixed beforehand, each once."""
    return list(
        dict.fromkeys(
            gate["verdict"]
            if gate["passed"] is None
            else f"{MARKS[gate['passed']]}: {gate['verdict']}"
            for gate in gates
        )
    )


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


def _beside_truth(by_name: dict[str, Any], n: int) -> dict[str, str]:
    """Of what two seeds find in the largest dictionary: features hit, and what is none."""
    hits, strays = (by_name.get(f"reproducible_{what}") for what in ("hits", "strays"))
    if hits is None or strays is None or hits["mean_bound"] is None:
        return {}
    return {
        "hits": f"{hits['mean_bound'] / n:.0%}",
        "strays": f"{strays['mean_bound'] / n:.0%}",
    }


def _covers(found: dict[str, Any]) -> str:
    return f"{found['n_covering']}/{found['n_with_interval']}"


def _number(value: float | None, record: dict[str, Any]) -> str:
    return "-" if value is None else f"{value / record['d_in']:.2f}"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:+.1%}"
