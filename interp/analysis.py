"""The last unit of a study: tables, fits and report from whatever was measured."""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Iterable, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import pandas as pd

from interp import durable
from interp.config import StudyConfig
from interp.constant_width import ARM
from interp.corpora import Corpus
from interp.errors import StudyFailedError
from interp.executor import Failure
from interp.graph import Graph
from interp.machine import cpu_name, peak_memory_bytes
from interp.measure import loss_rows
from interp.overlaps import dictionary_overlaps, head_overlaps
from interp.provenance import modules, provenance, sources_sha256
from interp.recorded_lever import recorded_levers
from interp.results import TABLES, Measured, write_results
from interp.run import NO_RESULT, TRAINED, folder_name
from interp.stopwatch import seconds_spent
from interp.units import Inputs, Record, Unit, files_of, read_record, write_record


def analyse(graph: Graph, corpus: Corpus, command: str, failures: Sequence[Failure]) -> None:
    """Write the tables and the report, unless they are there and what they rest on is the same.

    Raises StudyFailedError where nothing was measured.
    """
    root, config = graph.folder.root, graph.config
    record_path = analysis_record(root)
    inputs = _analysis_inputs(graph, corpus, failures)
    record = read_record(record_path)
    if (
        record is not None
        and record.inputs == inputs
        and (root / "report.html").exists()
        and all((root / p).exists() and durable.sha256(root / p) == sha
                for p, sha in record.artifacts.items())
    ):  # fmt: skip
        return
    started = time.monotonic()
    rows, facts = _measured(graph)
    if not facts:
        raise StudyFailedError(
            f"{root}: no model could be measured; the first failure: "
            f"{failures[0].unit}: {failures[0].error}"
        )
    analysis_record(root).unlink(missing_ok=True)
    names = [fact["name"] for fact in sorted(facts, key=lambda f: (f["d_model"], f["name"]))]
    overlap = {
        "dictionaries": dictionary_overlaps(graph, names),
        "heads": head_overlaps(names),
    }
    manifest = _manifest(graph, facts, seconds_spent(root), corpus.warnings)
    lost = list(map(_lost, failures))
    write_results(root, Measured(config, rows, facts, overlap, manifest, lost), command)
    artifacts = {name: durable.sha256(root / name) for name in TABLES}
    took = round(time.monotonic() - started, 2)
    write_record(record_path, Record(inputs, artifacts, took, cpu_name(), config.threads))


def analysis_record(root: Path) -> Path:
    """Where it says what it was made from, and what it wrote; gone while it writes."""
    return root / "work" / "analysis.json"


def edited_table(root: Path) -> str | None:
    """The first table that is not what the analysis wrote; a missing one is written again."""
    record = read_record(analysis_record(root))
    for name, sha256 in record.artifacts.items() if record is not None else ():
        if (root / name).exists() and durable.sha256(root / name) != sha256:
            return name
    return None


def _analysis_inputs(graph: Graph, corpus: Corpus, failures: Sequence[Failure]) -> Inputs:
    """Every artifact, the whole config, and all code: what reads rows may change at any time."""
    settings: dict[str, Any] = {
        "config": json.loads(graph.config.model_dump_json(exclude=set(NO_RESULT))),
        "code_sha256": sources_sha256(
            (package, file)
            for package in ("interp", "interp.report", "saes")
            for file in modules(files(package))
        ),
        "text_warnings": list(corpus.warnings),
        "levers": _levers(graph.config),
        "failures": [[str(one.unit), one.error] for one in failures],
    }
    hashes = {}
    for unit in graph.units:
        record = graph.record(unit)
        if record is not None:
            hashes[str(unit)] = record.inputs.sha256
            hashes |= record.artifacts
    return Inputs(settings, hashes, {})


def _measured(graph: Graph) -> tuple[pd.DataFrame, list[dict[str, Any]]]:
    """(rows of everything that was measured, facts of the models)."""
    facts, rows, frames = [], [], []
    known: set[str] = set()
    levers = _levers(graph.config)
    for unit in graph.units:
        if not graph.is_done(unit):
            continue
        if unit.kind == "loss":
            [file] = files_of(graph.folder, unit, "model")
            found = json.loads(file.read_text())
            found |= {"family": graph.config.family, "arm": graph.config.arm}
            if unit.control == TRAINED:
                facts.append(found | levers[unit.model])
                known.add(unit.model)
            rows += loss_rows(found, unit.control) if unit.model in known else []
        elif unit.spot is not None and unit.model in known:
            [file] = files_of(graph.folder, unit, unit.spot.name)
            frames.append(pd.read_parquet(file))
    return pd.concat([pd.DataFrame(rows), *frames]), facts


def _levers(config: StudyConfig) -> dict[str, dict[str, Any]]:
    return recorded_levers((*config.models, *config.loss_only_models), in_arm=config.arm == ARM)


def _lost(failure: Failure) -> dict[str, str]:
    unit = failure.unit
    who = {"model": unit.model, "control": unit.control}
    return who | {"unit": unit.name, "error": failure.error}


def _manifest(
    graph: Graph,
    facts: Iterable[dict[str, Any]],
    seconds: float,
    text_warnings: Sequence[str],
) -> dict[str, Any]:
    """What else the result depends on, and what it cost. Every unit's own record is in `work`."""
    config = graph.config
    # The same for all parts, or the study would have been refused.
    depends_on = provenance(graph.sources.text_sha256)
    text_sha256, code_sha256 = (depends_on.pop(key) for key in ("text_sha256", "code_sha256"))
    records = {str(unit): record for unit in graph.units if (record := graph.record(unit))}
    losses = [unit for unit in graph.units if unit.kind == "loss" and graph.is_done(unit)]
    return {
        "versions": {"python": platform.python_version(), **depends_on},
        "code_sha256": code_sha256,
        "weights_sha256": {folder_name(f["name"], TRAINED): f["weights_sha256"] for f in facts},
        "parity_error": {folder_name(f["name"], TRAINED): f["parity_error"] for f in facts},
        "text_sha256": text_sha256,
        "text_warnings": list(text_warnings),
        "tokens_sha256": {unit.label: _tokens_sha256(graph, unit) for unit in losses},
        "seed": config.seed,
        "threads": config.threads,
        "device": config.device,
        "processors": sorted({record.cpu for record in records.values()}),
        "cpu": cpu_name(),
        "platform": f"{platform.system()} {platform.machine()}",
        "wall_time_seconds": round(seconds, 1),
        "peak_memory_bytes": max(
            peak_memory_bytes(), *(record.peak_memory_bytes for record in records.values())
        ),
        "units": {name: record.inputs.sha256 for name, record in records.items()},
    }


def _tokens_sha256(graph: Graph, unit: Unit) -> str:
    [file] = files_of(graph.folder, unit, "model")
    return json.loads(file.read_text())["tokens_sha256"]
