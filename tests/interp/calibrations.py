"""Cells and replicates made up for the tests of the calibration."""

from interp.calibrate.cells import CalibrationConfig, Cell
from interp.calibrate.gates import cell_records, verdicts
from interp.calibrate.table import tidy

INDEPENDENT = Cell(d_in=32, n_per_dim=4, l0=2, zipf=0.5)
DIFFICULTIES = {
    "k_half": {"k_ratio": 0.5},
    "k_double": {"k_ratio": 2.0},
    "correlation": {"correlation": 0.5},
    "hierarchy": {"children": 3},
}


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
