"""The toy model's study: a preset trained, measured, compared with the published figures, drawn."""

from __future__ import annotations

import io
import json
import os
import shutil
import time
from collections.abc import Sequence
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

import pandas as pd
from safetensors.numpy import load_file, save

from interp import durable
from interp.errors import UserError
from interp.machine import cpu_name
from interp.progress import Progress
from interp.toy.measures import measure
from interp.toy.model import Scratch, ToyConfig, ToyModel
from interp.toy.presets import Preset
from interp.toy.reproduction import reproduction, table
from interp.toy.sweep import Workers, cost, groups, train_group, workers
from interp.toy.tables import features, lines, overlap_quantiles, quantities, wide

TABLES = ("features", "overlaps", "results")
"""The last one is written last: where it is, its group is done."""


def run_toy(
    preset: Preset,
    out: Path,
    *,
    threads: int | None = None,
    command: str = "",
    quiet: bool = False,
) -> dict[str, Any]:
    """Train and measure what is not done yet, and write the study's files. Returns the summary.

    In `out`: results.parquet (model x quantity), features.parquet, overlaps.parquet, models/ (the
    weights), summary.json, reproduction.md, figures/. Run again it resumes with the same results.
    Raises UserError when `out` holds another sweep or is in use, or when a model diverges.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{out}: no folder can be made there ({error.strerror})") from error
    with durable.only_writer(out):
        durable.remove_partials(out)
        _claim(preset, out)
        parts = groups(preset.configs)
        for folder in ("groups", "models"):
            (out / folder).mkdir(exist_ok=True)
            durable.remove_partials(out / folder)
        n_threads = os.cpu_count() or 1 if threads is None else threads
        progress = Progress(sum(cost(config) for config in preset.configs), quiet=quiet)
        clock = _Clock(out / "seconds.json")
        with workers(n_threads) as pool:
            for number, (name, configs) in enumerate(parts.items(), 1):
                label = f"{name} ({number} of {len(parts)})"
                _finish_group(name, configs, preset, out, pool, progress, clock, label)
        tables = {kind: _gathered(out, list(parts), kind) for kind in TABLES}
        for kind, rows in tables.items():
            durable.write(out / f"{kind}.parquet", _parquet(rows))
        summary = _summary(preset, tables["results"], clock, n_threads, command)
        _write_report(out, summary, tables)
        # The tables hold all of it now.
        shutil.rmtree(out / "groups")
        progress.close(f"{len(preset.configs)} models in {clock.wall / 60:.1f} minutes")
    return summary


class _Clock:
    """Wall and CPU seconds of all sessions, kept beside their checkpoints."""

    def __init__(self, file: Path) -> None:
        before = json.loads(file.read_text()) if file.exists() else {"wall": 0.0, "cpu": 0.0}
        self._file, self._before = file, before
        self._wall, self._cpu = time.monotonic(), time.process_time()

    @property
    def wall(self) -> float:
        return float(self._before["wall"]) + time.monotonic() - self._wall

    @property
    def cpu(self) -> float:
        return float(self._before["cpu"]) + time.process_time() - self._cpu

    def save(self) -> None:
        durable.write(self._file, json.dumps({"wall": self.wall, "cpu": self.cpu}).encode())


def _claim(preset: Preset, out: Path) -> None:
    """Make `out` this sweep's folder. Raises UserError if it is another's."""
    file = out / "config.json"
    text = json.dumps(
        {
            "preset": preset.name,
            "about": preset.about,
            "eval_batches": preset.eval_batches,
            "models": [asdict(config) for config in preset.configs],
        },
        indent=1,
    )
    if not file.exists():
        durable.write(file, text.encode())
    elif file.read_text() != text:
        raise UserError(f"{out}: holds another sweep (its config.json); choose another folder")


def _finish_group(
    name: str,
    configs: Sequence[ToyConfig],
    preset: Preset,
    out: Path,
    pool: Workers,
    progress: Progress,
    clock: _Clock,
    label: str,
) -> None:
    if (out / "results.parquet").exists() or _group_file(out, name, TABLES[-1]).exists():
        progress.skip(sum(cost(config) for config in configs))
        return
    weights, state = (out / "models" / f"{name}.{end}safetensors" for end in ("", "state."))
    if weights.exists():
        models = _load(configs, weights)
        progress.skip(sum(cost(config) for config in configs))
    else:
        models = train_group(configs, state, pool, progress, label=label, saved=clock.save)
        durable.write(weights, _weights(models))
    state.unlink(missing_ok=True)
    progress.at(f"{label}, measuring")

    def measured(model: ToyModel, scratch: Scratch) -> dict[str, Any]:
        found = measure(model, preset.eval_batches, scratch)
        return {
            "features": features(model.config, found),
            "overlaps": overlap_quantiles(model.config, found),
            "results": pd.DataFrame(quantities(model.config, found)),
        }

    found = list(pool.map(measured, models))
    for kind in TABLES:
        rows = [part[kind] for part in found if part[kind] is not None]
        durable.write(
            _group_file(out, name, kind), _parquet(pd.concat(rows) if rows else pd.DataFrame())
        )
    clock.save()


def _weights(models: Sequence[ToyModel]) -> bytes:
    return save({f"{m.config.name}.{key}": getattr(m, key) for m in models for key in ("W", "b")})


def _load(configs: Sequence[ToyConfig], weights: Path) -> list[ToyModel]:
    tensors = load_file(weights)
    models = [ToyModel(config) for config in configs]
    for model in models:
        model.W, model.b = (tensors[f"{model.config.name}.{key}"] for key in ("W", "b"))
    return models


def _group_file(out: Path, name: str, kind: str) -> Path:
    return out / "groups" / f"{name}.{kind}.parquet"


def _gathered(out: Path, names: Sequence[str], kind: str) -> pd.DataFrame:
    if (out / "results.parquet").exists():  # then the other tables are whole as well
        return pd.read_parquet(out / f"{kind}.parquet")
    parts = [pd.read_parquet(_group_file(out, name, kind)) for name in names]
    return pd.concat([part for part in parts if len(part)], ignore_index=True)


def _parquet(rows: pd.DataFrame) -> bytes:
    buffer = io.BytesIO()
    rows.to_parquet(buffer, index=False)
    return buffer.getvalue()


def _summary(
    preset: Preset, results: pd.DataFrame, clock: _Clock, threads: int, command: str
) -> dict[str, Any]:
    models = wide(results)
    return {
        "preset": preset.name,
        "about": preset.about,
        "command": command,
        "n_models": len(models),
        "model_steps": int(models.n_steps.sum()),
        "wall_seconds": clock.wall,
        "cpu_seconds": clock.cpu,
        "threads": threads,
        "cpu": cpu_name(),
        "versions": {
            name: metadata.version(name) for name in ("superscope", "numpy", "numba", "torch")
        },
        "reproduction": [asdict(claim) for claim in reproduction(models)],
        "lines": lines(models),
    }


def _write_report(out: Path, summary: dict[str, Any], tables: dict[str, pd.DataFrame]) -> None:
    from interp.report.static import png, svg
    from interp.toy.figures import all_figures

    folder = out / "figures"
    folder.mkdir(exist_ok=True)
    drawn = all_figures(
        wide(tables["results"]), summary["lines"], tables["features"], tables["overlaps"]
    )
    for figure in drawn:
        text = svg(figure)
        durable.write(folder / f"{figure.name}.svg", text.encode())
        durable.write(folder / f"{figure.name}.png", png(text))
    claims = reproduction(wide(tables["results"]))
    durable.write(out / "reproduction.md", table(claims).encode())
    durable.write(
        out / "summary.json", (json.dumps(summary, indent=1, allow_nan=False) + "\n").encode()
    )
