"""The committed studies: figure, costs, and what they say with limits and replies."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from interp.report.answering import answer, in_short
from interp.report.caveats import caveats
from interp.report.objections import objections
from interp.report.reading import read_summary
from interp.report.unconverged import unconverged_tables
from interp.report.wording import duration, listed, size

RUN = "full"
"""The committed study that the README shows."""
ARM = "referee"
"""The committed study of one width."""


def figure(root: Path) -> str:
    """The figure of the committed run, its headline and what made it."""
    summary = _summary(root, RUN)
    if summary is None:
        return "*(no committed run yet)*"
    said = [summary["headline"], *in_short(read_summary(summary))[1:]]
    arm = _summary(root, ARM)
    if arm is None:
        said[-1] += " The study that can tell, of models of one width, is not committed yet."
    else:
        where = f"[`results/{ARM}/`](results/{ARM}/)"
        said.append(f"Among models of one width (`interp study {ARM}`, {where}): {arm['headline']}")
    return (
        "![Features per dimension against loss]"
        f"(results/{RUN}/figures/packing_against_loss.png)\n\n"
        + "\n>\n".join(f"> {text}" for text in said)
        + f"\n\n{_made_by(summary, RUN)}; config and numbers in "
        f"[`results/{RUN}/`](results/{RUN}/)."
    )


def costs(root: Path) -> str:
    """Time and memory of the committed studies."""
    lines = ["| study | models counted | time | memory |", "|---|---|---|---|"]
    for name in ("quick", RUN, ARM):
        summary = _summary(root, name)
        if summary is None:
            continue
        manifest = json.loads((root / "results" / name / "manifest.json").read_text())
        counted = {row["model"] for row in summary["packing"]}
        models = [m for m in summary["models"] if m["name"] in counted]
        widths = sorted({m["d_model"] for m in models})
        many = f"{len(models)} of " if len(models) > len(widths) else ""
        took = duration(float(summary["wall_time_seconds"]))
        peak = size(float(manifest["peak_memory_bytes"]))
        told = "`make study`, a preview" if name == "quick" else f"`interp study {name}`"
        lines.append(f"| {told} | {many}width {listed(widths)} | {took} | {peak} |")
    return "\n".join(lines)


def finding(root: Path, name: str) -> str:
    """What a committed study says: answer, limits, replies."""
    data = _summary(root, name)
    if data is None:
        return f"*(`interp study {name}` is not committed yet)*"
    summary = read_summary(data)
    said = answer(summary)
    failed = [f"failed: {one['model']}, {one['control']}: {one['error']}"
              for one in data.get("failures", [])]  # fmt: skip
    picture = f"{name}/figures/packing_against_loss.png"
    lines = [f"> {said.first}", ""]
    if (root / "results" / picture).exists():
        lines += [f"![Packing against loss]({picture})", ""]
    for text in said.more:
        lines += [text, ""]
    tables = unconverged_tables(summary.arm.unconverged if summary.arm else None)
    for table in tables.values():
        cells = (table.columns, ("---",) * len(table.columns), *table.rows)
        lines += [*(f"| {' | '.join(row)} |" for row in cells), ""]
    lines += ["**What limits it, or failed.**", ""]
    lines += [f"- {text}" for text in (*failed, *caveats(summary))] or ["- Nothing."]
    lines += ["", "**What a referee would say, and the reply.**", ""]
    lines += [f"- *{objection}* {reply}" for objection, reply in objections(summary)]
    took = duration(float(data["wall_time_seconds"]))
    lines += ["", f"{_made_by(data, name)}, {took}; everything in [`{name}/`]({name}/)."]
    return "\n".join(lines)


def across_widths(root: Path) -> str:
    """The ladder: how many features a layer packs per dimension, at every width."""
    return finding(root, RUN)


def constant_width(root: Path) -> str:
    """The arm: whether loss goes with packing where width cannot be the reason."""
    return finding(root, ARM)


def _summary(root: Path, name: str) -> dict[str, Any] | None:
    """Of a committed study; None where there is none."""
    file = root / "results" / name / "summary.json"
    found: dict[str, Any] | None = json.loads(file.read_text()) if file.exists() else None
    return found


def _made_by(summary: dict[str, Any], name: str) -> str:
    """The line that measures all of a committed study, which may have been measured in parts."""
    parts = summary.get("merged_from")
    if not parts:
        return f"`{summary['command']}`"
    return (
        f"`interp study results/{name}/config.resolved.yaml --out runs/{name}`, measured here as "
        f"{len(parts)} studies of different models and put together by `interp merge`"
    )
