"""Estimators and toy models beside what is known: figures, tables and verdicts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from interp.calibrate.gates import gates_text
from interp.calibrate.tables import cell_table, gate_table
from interp.report.wording import span
from interp.toy.reproduction import WIDEST

MANY = 20
HALF_RIGHT = 0.5


def toy(root: Path) -> str:
    """The toy model's reproduction table, from the largest committed sweep."""
    for name in ("toy_small", "toy_reduced", "toy_demo"):
        folder = root / "results" / name
        if (folder / "summary.json").exists():
            summary = json.loads((folder / "summary.json").read_text())
            why = f", [why some rows differ](results/{name}/README.md)"
            return (
                f"{(folder / 'reproduction.md').read_text()}\n"
                f"`{summary['command']}`, {summary['n_models']} models, "
                f"{summary['cpu_seconds'] / 60:.0f} CPU minutes; agrees means that the two "
                f"intervals overlap and ours is at most {WIDEST} wide. Figures and numbers in "
                f"[`results/{name}/`](results/{name}/)"
                f"{why if (folder / 'README.md').exists() else ''}."
            )
    return "*(no committed run yet)*"


def calibration(root: Path) -> str:
    """Figure and verdicts of the committed calibration."""
    folder = root / "results" / "calibration"
    if not (folder / "summary.json").exists():
        return "*(no committed run yet)*"
    summary = json.loads((folder / "summary.json").read_text())
    lines = [
        "![Estimated against true features per dimension]"
        "(results/calibration/figures/calibration.png)",
        "",
        *_markdown(gate_table(summary["gates"])),
    ]
    minutes = float(summary["wall_time_seconds"]) / 60
    return "\n".join(lines) + (
        "\n\nN is the level at which counts of growing dictionaries stop; without composites, "
        "which was added after trials, it leaves out latents that stand for two others. Shown is "
        "the cell that is farthest from what it should be (of coverage, from 95%): of `identified` "
        "among all, of the rest among those that are judged, with N, or its interval, in half of "
        "the data sets or more. Undecided: "
        f"{_undecided(summary)}.\n\n"
        f"{_so_far(summary)}"
        f"{_plain_count(folder)}\n\n"
        f"`{summary['command']}`, {summary['n_replicates']} data sets, "
        f"{minutes:.0f} minutes; every cell in [`results/calibration/`](results/calibration/)."
    )


def verdicts(root: Path) -> str:
    """Every gate of the committed calibration in the words of `gates.yaml`."""
    file = root / "results" / "calibration" / "summary.json"
    if not file.exists():
        return "*(`interp calibrate` is not committed yet)*"
    summary = json.loads(file.read_text())
    judged = {True: "Passed", False: "**Failed**"}
    decided = [gate for gate in summary["gates"] if gate["passed"] is not None]
    lines = [f"- {judged[gate['passed']]} ({gate['name']}): {gate['verdict']}" for gate in decided]
    if len(decided) < len(summary["gates"]):
        which = "every other gate" if decided else "every gate"
        lines.append(f"- Undecided ({which}): {_undecided(summary)}.")
    table = cell_table(summary["cells"])
    told = (
        "Of N per cell: its bias on average, in how many data sets it was identified, and how many "
        "of their 95% intervals hold the true number"
    )
    if any(
        e.get("widened", {}).get("n_replicates") for c in summary["cells"] for e in c["estimators"]
    ):
        *_, (first, last) = gates_text()["seen_replicates"]
        told += (
            ", first as they are, then widened by the biases on data of the other groups (without "
            f"the data sets {first} to {last}, which were seen before that was settled)"
        )
    told += "."
    if any("hits" in row for row in table):
        told += (
            " Hits are the features that a class without composites points along in the largest "
            "dictionary, strays its classes that point along none, both as shares of the features."
        )
    ended = f"`{summary['command']}`; [`calibration/`](calibration/)."
    return "\n".join([*lines, "", told, "", *_markdown(table), "", ended])


def bridge(root: Path) -> str:
    """The counts of a toy model's hidden states beside what it represents, and the verdict."""
    folder = root / "results" / "bridge"
    if not (folder / "summary.json").exists():
        return "*(`interp bridge` is not committed yet)*"
    summary = json.loads((folder / "summary.json").read_text())
    verdict = str(summary["verdict"])
    lines = [
        f"> {verdict[0].upper()}{verdict[1:]}.",
        "",
        "| features per dimension | decay | represented per dimension | counted | "
        "without composites | loss |",
        "|---|---|---|---|---|---|",
    ]
    for cell in summary["cells"]:
        shown = [
            "-" if value is None else f"{'≥ ' if bound else ''}{value:.2f}"
            for value, bound in (
                (cell["counted_per_dim"], cell["bound"]),
                (cell["without_composites_per_dim"], cell["without_composites_bound"]),
            )
        ]
        lines.append(
            f"| {cell['n_per_dim']} | {cell['decay']:g} | {cell['represented_per_dim']:.2f} | "
            f"{' | '.join(shown)} | {cell['loss']:.3f} |"
        )
    said = [
        f"{what} {found['value']:.2f} (p {found['p']:.2g}, {found['n_models']} models)"
        if found["value"] is not None
        else f"{what} undefined: {found['reason']}"
        for what, found in (
            ("counted with represented", summary["counted_with_represented"]),
            ("counted with loss", summary["counted_with_loss"]),
            ("represented with loss", summary["represented_with_loss"]),
            ("counted with loss among equal n/m", summary["within_per_dim"]["counted"]),
            ("represented with loss among equal n/m", summary["within_per_dim"]["represented"]),
        )
    ]
    seconds = sum(float(cell["seconds"]) for cell in summary["cells"])
    off = max(
        (cell for cell in summary["cells"] if cell["relative_error"] is not None),
        key=lambda cell: abs(cell["relative_error"]),
    )
    pictures = "\n".join(
        f"![{alt}](bridge/figures/{name}.png)"
        for name, alt in (
            ("bridge_true_against_counted", "Counted against represented features"),
            ("bridge_packing_against_loss", "Packing of the toy model against its loss"),
        )
    )
    return "\n".join(lines) + (
        f"\n\nRank correlations, bounds taken as counts: {'; '.join(said)}. Within 15% of the "
        f"truth: {summary['n_close']} of {summary['n_counted']} counts, {summary['n_bounds']} of "
        f"them bounds; farthest off {off['counted_per_dim']:.2f} for "
        f"{off['represented_per_dim']:.2f} per dimension.\n\n{pictures}\n\n"
        f"`{summary['command']}`, {seconds / 60:.0f} minutes; [`bridge/`](bridge/)."
    )


def _markdown(rows: list[dict[str, str]]) -> list[str]:
    columns = list(dict.fromkeys(name for row in rows for name in row))
    cells = [columns, ["---"] * len(columns), *([row.get(c, "-") for c in columns] for row in rows)]
    return [f"| {' | '.join(line)} |" for line in cells]


def _undecided(summary: dict[str, Any]) -> str:
    """Why a gate is: in how many data sets N came out at all, and how many replicates there are."""
    of_n = [e for c in summary["cells"] for e in c["estimators"] if e["estimator"] == "saturation"]
    identified, run = (sum(e[key] for e in of_n) for key in ("n_identified", "n_replicates"))
    each = sorted({c["n_replicates"] for c in summary["cells"]})
    return (
        f"a gate speaks from 100 replicates of each of its cells on, and here there "
        f"{'is' if each == [1] else 'are'} {' to '.join(map(str, each))}; N was identified in "
        f"{identified} of {run} data sets"
    )


def _so_far(summary: dict[str, Any]) -> str:
    """What the cells say while gates are undecided: extents, and the cell that is worst."""
    cells = [c for c in summary["cells"] if c["n_replicates"] >= MANY]
    said = [
        text
        for name, called in (("saturation_atoms", "N without composites"), ("saturation", "N"))
        if (text := _biases(cells, name, called))
    ]
    if not said:
        return ""
    covering = [
        (e["coverage"], e, c)
        for c in cells
        for e in c["estimators"]
        if e["estimator"] == "saturation_atoms" and e["coverage"] is not None and _often(e)
    ]
    text = f"{'; '.join(said)}."
    if covering:
        _, e, c = min(covering, key=lambda of: of[0])
        text += (
            " The 95% intervals without composites hold the true number least often for "
            f"{_cell(c)}: {e['n_covering']} of {e['n_with_interval']}."
        )
    hits = [(share, c) for c in cells if (share := _hits(c)) is not None]
    if hits and min(share for share, _ in hits) < HALF_RIGHT:
        share, c = min(hits, key=lambda of: of[0])
        text += (
            f" A number may be near for a wrong reason: for {_cell(c)}, classes point along "
            f"{share:.0%} of the features."
        )
    return f"{text[0].upper()}{text[1:]}\n\n"


def _often(estimator: dict[str, Any]) -> bool:
    """In half of the data sets or more, as the gates ask."""
    return 2 * int(estimator["n_identified"]) >= int(estimator["n_replicates"])


def _biases(cells: list[dict[str, Any]], name: str, called: str) -> str:
    found = [e for c in cells for e in c["estimators"] if e["estimator"] == name]
    known = [100 * e["bias"] for e in found if e["bias"] is not None and _often(e)]
    if not known:
        return ""
    return (
        f"{called} is on average {span(known, '{:+.1f}%'.format)} off the true number in the "
        f"{len(known)} of {len(found)} kinds of data in which it is identified in half of the data "
        "sets or more"
    )


def _hits(cell: dict[str, Any]) -> float | None:
    """Share of the features that a class points along, in the largest dictionary."""
    found = [e for e in cell["estimators"] if e["estimator"] == "reproducible_atoms_hits"]
    largest = max(found, key=lambda e: int(e["d_sae"]), default=None)
    if largest is None or largest["mean_bound"] is None:
        return None
    return float(largest["mean_bound"] / cell["n_features"])


def _cell(record: dict[str, Any]) -> str:
    k = "" if record["k_ratio"] == 1 else f", k {record['k_ratio']:g} times the true L0"
    features = {"hierarchy": "features of which most fire below others alone"}
    what = features.get(record["structure"], f"{record['structure']} features")
    return f"{what} (n/d {record['n_per_dim']:g}{k})"


def _most(values: list[float], how: str) -> str:
    """Their extent; of many, that of the middle nine tenths."""
    if len(values) >= MANY:
        values = [float(end) for end in np.quantile(values, (0.05, 0.95))]
    return span(values, how.format)


def _plain_count(folder: Path) -> str:
    """How the count at one dictionary size, which studies quote, did in the same cells."""
    rows = pd.read_parquet(folder / "results.parquet")
    estimators = set(rows["estimator"])
    rows = rows[(rows["estimator"] == "reproducible") & rows["value"].notna()]
    ratio = rows["d_sae"] / rows["n_features"]

    def row(latents: str, kept: pd.Series, *, has_room: bool) -> dict[str, str]:
        found = rows[kept]
        exact = found[found["converged"] == True]  # noqa: E712
        off = (100 * (exact["value"] / exact["n_features"] - 1)).tolist()
        return {
            "latents in the dictionary": latents,
            "count, of these latents": _most(
                (100 * found["value"] / found["d_sae"]).tolist(), "{:.0f}%"
            ),
            "converged": f"{len(exact)} of {len(found)}",
            "converged counts, off the true number": _most(off, "{:+.0f}%") if has_room else "-",
        }

    table = [
        row("at most as many as features", ratio <= 1, has_room=False),
        row("twice as many", ratio == 2, has_room=True),
        row("four times and more", ratio >= 4, has_room=True),
    ]
    trimmed = ""
    if len(rows) >= MANY:
        trimmed = f"; of {MANY} counts or more, the extents of the middle nine tenths"
    older = (
        ""
        if "distinct_latents" in estimators
        else (
            " Near copies within a seed were merged from a cosine of 0.99 on here, and are from "
            "0.8 on now."
        )
    )
    return "\n".join(
        [
            "The count at one size (`reproducible`), which a study's headline gives, in the same "
            f"cells (synthetic data of width 32{trimmed}):",
            "",
            *_markdown(table),
            "",
            "A dictionary that comes back full was probably too small; a large one finds latents "
            f"that stand for two features again too.{older}",
        ]
    )
