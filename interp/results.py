"""What a study leaves for everyone else: tables, summary, report. From records alone.

The same code writes them for a study that was measured here and for one merged from several.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from interp.config import StudyConfig
from interp.report import headline, write_report
from interp.run import CONFIG, TRAINED, write_json, write_table, write_text
from interp.summary import summarise, tidy

TABLES = ("results.parquet", "models.json", "manifest.json", "summary.json")
"""What is left beside figures and report, which can be drawn again from these."""


@dataclass(frozen=True)
class Measured:
    """All that a study found, of however many models."""

    config: StudyConfig
    rows: pd.DataFrame
    """One per model x layer x hook point x dictionary x seed x quantity."""
    facts: Sequence[dict[str, Any]]
    """One per model: sizes, losses, hashes."""
    overlap: dict[str, list[dict[str, Any]]]
    """Of dictionaries and of output heads (`interp.overlaps`)."""
    manifest: dict[str, Any]
    """What else the result depends on, and what it cost."""
    failures: Sequence[dict[str, str]] = ()
    """What could not be measured: model, control, unit, error."""


def write_results(root: Path, measured: Measured, command: str) -> None:
    """Write the tables, the figures and the report into `root`.

    Nothing is touched before all of it is computed; then `summary.json` goes first and is the last
    of the tables to come, so a folder without it holds no finished study.
    """
    config, facts, manifest = measured.config, list(measured.facts), measured.manifest
    results = tidy(measured.rows, facts)
    summary = summarise(results, facts, config, manifest["text_warnings"])
    summary["overlap"] = measured.overlap
    summary["warnings"] = [
        *map(_told, measured.failures),
        *_machines(manifest),
        *summary["warnings"],
    ]
    if measured.failures:
        summary["failures"] = list(measured.failures)
    if "merged_from" in manifest:
        summary["merged_from"] = manifest["merged_from"]
    summary |= {"command": command, "wall_time_seconds": manifest["wall_time_seconds"]}
    summary["headline"] = headline(summary)
    (root / "summary.json").unlink(missing_ok=True)
    write_text(root / CONFIG, config.to_yaml())
    write_table(root / "results.parquet", results)
    write_json(root / "models.json", facts)
    write_json(root / "manifest.json", manifest)
    write_json(root / "summary.json", summary)
    write_report(root)


def _told(lost: dict[str, str]) -> str:
    who = lost["model"] if lost["control"] == TRAINED else f"{lost['model']}, {lost['control']}"
    return f"failed and left out: {who} ({lost['unit']}): {lost['error']}"


def _machines(manifest: Mapping[str, Any]) -> list[str]:
    """Bits depend on processor and threads; figures agree within their intervals."""
    told = "the same study on one of them agrees within the intervals, not bit for bit"
    warnings = []
    kinds = manifest["processors"]
    if len(kinds) > 1:
        warnings.append(f"measured on {len(kinds)} kinds of processor ({', '.join(kinds)}): {told}")
    for key in ("threads", "device"):
        if isinstance(several := manifest.get(key), list):
            warnings.append(
                f"measured with {key} {' and '.join(map(str, several))}: "
                f"{told.replace('on one', 'with one')}"
            )
    return warnings
