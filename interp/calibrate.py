"""Estimators against known feature counts: the cells of a preset, resumable, and their verdict."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from interp import durable
from interp.calibrate_cells import PRESETS, CalibrationConfig, Cell, refusal
from interp.calibrate_figure import calibration_figure
from interp.calibrate_gates import cell_records, tidy, verdicts
from interp.calibrate_replicate import run_replicate
from interp.calibrate_saturation import saturation_rows
from interp.calibration import RESULT_FILE, condensed
from interp.errors import UserError
from interp.machine import cpu_name
from interp.progress import Progress
from interp.provenance import COUNTING, SAES_ASIDE, modules, sources_sha256
from interp.report import static
from interp.run import write_json, write_table

CONFIG = "config.json"
_OF_STUDIES = {"spot_rows.py", "splice.py", "strictness.py", "token_identity.py"}
MAKERS = (COUNTING - _OF_STUDIES) | {"calibrate_cells.py", "calibrate_replicate.py", "chao.py",
                     "decoder_overlap.py", "seed_richness.py", "synthetic.py"}  # fmt: skip
"""Modules that replicates come from, beside saes' training."""
REPLICATES = "replicates"


def resolve(
    preset: str,
    *,
    cells: Sequence[str] | None = None,
    n_replicates: int | None = None,
    n_rows: int | None = None,
    sizes: Sequence[int] | None = None,
) -> CalibrationConfig:
    """A preset, with fewer cells or other settings. Raises UserError where something is wrong."""
    if preset not in PRESETS:
        raise UserError(f"unknown calibration {preset!r}; use one of {', '.join(PRESETS)}")
    config = PRESETS[preset]
    by_name = {cell.name: cell for cell in config.cells}
    if unknown := [name for name in cells or () if name not in by_name]:
        raise UserError(f"{preset} has no cell {unknown[0]!r}; its cells are {', '.join(by_name)}")
    changes = {
        "cells": None if cells is None else [by_name[name] for name in cells],
        "n_replicates": n_replicates,
        "n_rows": n_rows,
        "d_sae_per_d_in": sizes,
    }
    given = {name: value for name, value in changes.items() if value is not None}
    try:
        return CalibrationConfig.model_validate(config.model_dump() | given)
    except ValidationError as error:
        raise refusal(error, "calibration") from None


def calibrate(
    config: CalibrationConfig,
    out: Path,
    *,
    command: str,
    workers: int | None = None,
    quiet: bool = False,
) -> dict[str, Any]:
    """Run what is not there yet of every cell and replicate, then judge; the summary.

    All cells' first replicates come before any second, so that whatever is there is even. Each
    replicate is a file of its own: a killed run loses one at most, and a longer run of the same
    cells takes them over. Writes `results.parquet`, `summary.json` and the figure into `out`.
    Raises UserError where the folder holds another calibration, or replicates by other code.
    """
    _claim(out, config)
    with durable.only_writer(out):
        (out / REPLICATES).mkdir(exist_ok=True)
        durable.remove_partials(out / REPLICATES)
        _require_this_code(out)
        progress = Progress(sum(_cost(config, c) for c, _ in _jobs(config)), quiet=quiet)
        replicates = []
        for cell, replicate in _jobs(config):
            file = out / REPLICATES / f"{cell.name}.{replicate}.json"
            cost = _cost(config, cell)
            if file.exists():
                progress.skip(cost)
            else:
                _run(cell, replicate, config, file, progress, cost, workers)
            record = json.loads(file.read_text())
            record["rows"] += saturation_rows(record["rows"], cell, config)
            replicates.append(record)
        summary = _write(config, out, replicates, command)
        seconds = summary["wall_time_seconds"]
        progress.close(f"done; {len(replicates)} replicates took {seconds / 60:.1f} minutes")
    return summary


def ship(summary: dict[str, Any]) -> Path:
    """Put what reports need of a calibration into the package, beside the code; its path."""
    path = Path(__file__).with_name(RESULT_FILE)
    write_json(path, condensed(summary["cells"]))
    return path


def _run(
    cell: Cell,
    replicate: int,
    config: CalibrationConfig,
    file: Path,
    progress: Progress,
    cost: float,
    workers: int | None,
) -> None:
    label = f"{cell.name}, replicate {replicate + 1} of {config.n_replicates}"
    started = time.monotonic()
    rows = run_replicate(
        cell,
        replicate,
        config,
        workers=workers,
        # Training is most of it; the rest shows when the replicate is done.
        heartbeat=lambda share: progress.at(label, 0.8 * share * cost),
    )
    record = {
        "cell": cell.name,
        "replicate": replicate,
        "n_features": cell.n_features,
        "code_sha256": _code_sha256(),
        "seconds": round(time.monotonic() - started, 1),
        "rows": rows,
    }
    write_json(file, record)
    progress.finish(cost)


def _write(
    config: CalibrationConfig, out: Path, replicates: list[dict[str, Any]], command: str
) -> dict[str, Any]:
    table = tidy(replicates)
    cells = cell_records(table, config)
    summary = {
        "preset": config.preset,
        "command": command,
        "cells": cells,
        "gates": verdicts(cells),
        "n_replicates": len(replicates),
        "wall_time_seconds": round(sum(r["seconds"] for r in replicates), 1),
        "cpu": cpu_name(),
    }
    write_table(out / "results.parquet", table)
    figure = calibration_figure(cells)
    if figure is not None:
        (out / "figures").mkdir(exist_ok=True)
        drawn = static.svg(figure)
        durable.write(out / "figures" / f"{figure.name}.svg", drawn.encode())
        durable.write(out / "figures" / f"{figure.name}.png", static.png(drawn))
    write_json(out / "summary.json", summary)
    return summary


def _require_this_code(out: Path) -> None:
    for file in sorted((out / REPLICATES).glob("*.json")):
        if json.loads(file.read_text()).get("code_sha256") != _code_sha256():
            raise UserError(
                f"{file} was made by other code; remove the replicates to make them again, or "
                "choose another --out"
            )


@cache
def _code_sha256() -> str:
    """Of everything that a replicate's rows hang on: two by different code are no pair."""
    return sources_sha256(
        (package, file)
        for package in ("interp", "saes")
        for file in modules(files(package))
        if file.name in MAKERS or (package == "saes" and file.name not in SAES_ASIDE)
    )


def _jobs(config: CalibrationConfig) -> Iterator[tuple[Cell, int]]:
    for replicate in range(config.n_replicates):
        for cell in config.cells:
            yield cell, replicate


def _cost(config: CalibrationConfig, cell: Cell) -> float:
    """Work of a replicate, in any unit: rows times a share that all sizes have, and their own."""
    return sum(config.n_rows * (400 + d_sae) for d_sae in config.sizes(cell))


def _claim(out: Path, config: CalibrationConfig) -> None:
    """The folder is this calibration's, or becomes it; more replicates or cells are the same."""
    path = out / CONFIG
    changeable = {"preset", "cells", "n_replicates"}
    if path.exists():
        try:
            held = CalibrationConfig.model_validate_json(path.read_text())
        except (ValidationError, UnicodeDecodeError) as error:
            raise UserError(f"{path}: no calibration's config; choose another --out") from error
        fixed = [f for f in CalibrationConfig.model_fields if f not in changeable]
        differing = [f for f in fixed if getattr(held, f) != getattr(config, f)]
        if differing:
            field = differing[0]
            raise UserError(
                f"{out} holds another calibration ({field} is {getattr(held, field)!r} there, "
                f"{getattr(config, field)!r} here); choose another --out"
            )
    elif out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} exists and holds no calibration; choose another --out or empty it")
    durable.make_folder(out)
    durable.write(path, (config.model_dump_json(indent=1) + "\n").encode())
