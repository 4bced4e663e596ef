"""Estimators against known feature counts: the cells of a preset, resumable, and their verdict."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import pandas as pd
from pydantic import ValidationError

from interp import durable
from interp.calibrate.cells import CalibrationConfig, Cell, refusal
from interp.calibrate.figure import calibration_figure
from interp.calibrate.gates import cell_records, verdicts
from interp.calibrate.jobs import Job, make, wall_seconds
from interp.calibrate.presets import PRESETS
from interp.calibrate.saturation import saturation_rows
from interp.calibrate.table import Record, beside, read_table, replicates_of, tidy
from interp.calibrate.training import is_kept
from interp.calibration import condensed, shipped_file
from interp.errors import UserError
from interp.machine import cpu_name
from interp.progress import Progress
from interp.provenance import COUNTING, SAES_ASIDE, modules, sources_sha256
from interp.report import static
from interp.run import write_json, write_table

CONFIG = "config.json"
_OF_STUDIES = {"spot_counts.py", "spot_rows.py", "splice.py", "strictness.py", "token_identity.py"}
TRAINERS = {
    "interp": {"machine.py"},
    "interp.calibrate": {"cells.py", "training.py"},
    "saes": {"synthetic.py"},
}
"""Modules that a replicate's SAEs come from, by package, beside saes' training."""
COUNTERS = {
    "interp": (COUNTING - _OF_STUDIES) | {"chao.py", "decoder_overlap.py", "seed_richness.py"},
    "interp.calibrate": {"replicate.py", "truth.py"},
    "saes": COUNTING,
}
"""Modules that count them: where these alone are others, nothing is trained again."""
REPLICATES = "replicates"
TABLE = "results.parquet"


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
    processes: int | None = None,
    quiet: bool = False,
) -> dict[str, Any]:
    """Run what is not there yet of every cell and replicate, then judge; the summary.

    All cells' first replicates come before any second, so that whatever is there is even. Each
    replicate is a file of its own: a killed run loses those under way, and a longer run of the
    same cells takes the others over. What `results.parquet` holds needs no such file: a folder's
    config and table are enough to go on from. `processes`: how many at once, one thread each
    (default: the cores). Writes `results.parquet`, `summary.json` and the figure into `out`.
    SAEs are kept beside them: where other code counts, they are counted again and not trained.
    Raises UserError where the folder holds another calibration or SAEs by other code, and, when all
    others are there, where a replicate failed.
    """
    _claim(out, config)
    with durable.only_writer(out):
        (out / REPLICATES).mkdir(exist_ok=True)
        durable.remove_partials(out / REPLICATES)
        jobs = _jobs(config, out / REPLICATES)
        table = read_table(out / TABLE)
        held = replicates_of(table)
        missing = _missing(jobs, held)
        _make(missing, jobs, config, processes or os.cpu_count() or 1, quiet=quiet)
        replicates = []
        for job in jobs:
            record = _found(job, held)
            assert record is not None
            record["rows"] += saturation_rows(record["rows"], job.cell, config)
            replicates.append(record)
        asked = {(job.cell.name, job.replicate) for job in jobs}
        others = None if table is None else beside(table, asked)
        return _write(config, out, replicates, others, command)


def ship(summary: dict[str, Any]) -> Path:
    """Put what reports need of a calibration into the package, beside the code; its path."""
    path = shipped_file()
    write_json(path, condensed(summary["cells"]))
    return path


def _make(
    missing: Sequence[Job],
    jobs: Sequence[Job],
    config: CalibrationConfig,
    processes: int,
    *,
    quiet: bool,
) -> None:
    progress = Progress(sum(_cost(config, job.cell) for job in jobs), quiet=quiet)
    left = sum(_cost(config, job.cell) for job in missing)
    progress.skip(sum(_cost(config, job.cell) for job in jobs) - left)

    def heartbeat(job: Job, share: float) -> None:
        # Training is most of it; the rest shows when the replicate is done.
        progress.at(job.label, 0.8 * share * _cost(config, job.cell))

    if len(missing) > 1 and processes > 1:
        progress.note(f"{len(missing)} replicates, {min(processes, len(missing))} at a time")
    failures: list[tuple[Job, Exception]] = []

    def failed(job: Job, error: Exception) -> None:
        failures.append((job, error))
        progress.note(f"{job.label} failed: {error!r}")

    for job in make(missing, config, processes, heartbeat=heartbeat, failed=failed):
        progress.at(f"{job.label} is there")
        progress.finish(_cost(config, job.cell))
    if failures:
        job, error = failures[0]
        raise UserError(
            f"{len(failures)} of {len(jobs)} replicates failed, first {job.label}: {error!r}; what "
            "was made is kept, and the same line tries the rest again"
        )
    progress.close(f"done; {len(jobs)} replicates")


def _write(
    config: CalibrationConfig,
    out: Path,
    replicates: list[Record],
    others: pd.DataFrame | None,
    command: str,
) -> dict[str, Any]:
    """`others`: what a table held beside what was asked for; it stays in the table alone."""
    table = tidy(replicates)
    cells = cell_records(table, config)
    summary = {
        "preset": config.preset,
        "command": command,
        "cells": cells,
        "gates": verdicts(cells),
        "n_replicates": len(replicates),
        "wall_time_seconds": round(wall_seconds([r["span"] for r in replicates]), 1),
        "cpu": cpu_name(),
    }
    if others is not None and not others.empty:
        table = pd.concat([table, others])
    write_table(out / TABLE, table)
    figure = calibration_figure(cells)
    if figure is not None:
        (out / "figures").mkdir(exist_ok=True)
        drawn = static.svg(figure)
        durable.write(out / "figures" / f"{figure.name}.svg", drawn.encode())
        durable.write(out / "figures" / f"{figure.name}.png", static.png(drawn))
    write_json(out / "summary.json", summary)
    return summary


def _missing(jobs: Sequence[Job], held: Mapping[tuple[str, int], Record]) -> list[Job]:
    """Those that were not made, or counted by other code. Raises UserError where other code trained
    their SAEs, or where these were not kept."""
    missing = []
    for job in jobs:
        found = _found(job, held)
        if found is not None and found.get("code_sha256") == job.code_sha256:
            continue
        if found is not None and not is_kept(job.saes, job.training_sha256):
            told = f"{job.file} was made by other code; remove the replicates"
            if not job.file.exists():
                told = f"{job.file.parents[1] / TABLE} was made by other code; remove it"
            raise UserError(f"{told} to make them again, or choose another --out")
        missing.append(job)
    return missing


def _found(job: Job, held: Mapping[tuple[str, int], Record]) -> Record | None:
    """What is there of a replicate: its file or what the table `held`. Rather what today's code
    made, and rather the file, which has all."""
    there = [json.loads(job.file.read_text())] if job.file.exists() else []
    there += [one] if (one := held.get((job.cell.name, job.replicate))) is not None else []
    current = [one for one in there if one.get("code_sha256") == job.code_sha256]
    return next(iter([*current, *there]), None)


@cache
def _code_sha256(*, counting: bool = True) -> str:
    """Of everything that a replicate's rows hang on: two by different code are no pair.

    Without `counting`, of what its SAEs hang on.
    """

    def decides(package: str, name: str) -> bool:
        if name in TRAINERS[package]:
            return True
        if name in COUNTERS[package]:
            return counting
        return package == "saes" and name not in SAES_ASIDE

    return sources_sha256(
        (package, file)
        for package in TRAINERS
        for file in modules(files(package))
        if decides(package, file.name)
    )


def _jobs(config: CalibrationConfig, folder: Path) -> list[Job]:
    first = config.first_replicate
    made_by = _code_sha256(), _code_sha256(counting=False)
    return [
        Job(cell, replicate, folder / f"{cell.name}.{replicate}.json", *made_by)
        for replicate in range(first, first + config.n_replicates)
        for cell in config.cells
    ]


def _cost(config: CalibrationConfig, cell: Cell) -> float:
    """Work of a replicate, in any unit: rows times a share that all sizes have, and their own."""
    return sum(config.rows(d_sae) * (55 + d_sae) for d_sae in config.sizes(cell))


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
