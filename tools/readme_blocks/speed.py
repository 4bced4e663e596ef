"""Speed beside other libraries, from the committed runs of the benchmarks."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

CAPTURE_TARGET = 1.05
_CLOCKS = {"cpu": "CPU", "wall": "wall"}


def speed(root: Path) -> str:
    """Training speed and quality against other libraries, from committed runs of the benchmark."""
    folder = root / "results" / "sae_training"
    two_cores, one_core = folder / "two_cores" / "table.json", folder / "table.json"
    parts = [
        _speed_table(json.loads(file.read_text()), file.parent.relative_to(root).as_posix())
        for file in (two_cores, one_core)
        if file.exists()
    ][:1]
    if two_cores.exists() and one_core.exists():
        parts.append(
            "On one core, in CPU time, with peak memory and where the time goes: "
            "[`results/sae_training/table.md`](results/sae_training/table.md)."
        )
    equal = folder / "equal_training" / "table.json"
    if equal.exists():
        parts.append(_equal_training(json.loads(equal.read_text())))
    return "\n\n".join(parts) or "*(no committed run yet)*"


def studies(root: Path) -> str:
    """Whole studies against the same job with another trainer; at growing sizes; on Ray."""
    folder = root / "results" / "study"
    sys.path.insert(0, str(root / "benchmarks"))
    benchmark = importlib.import_module("study")
    sys.path.pop(0)
    parts = {}
    for part in benchmark.PARTS:
        if (file := folder / part / benchmark.RAW).exists():
            parts[part] = benchmark.medians(json.loads(file.read_text())["runs"][part])
    if not parts:
        return "*(no committed run yet)*"
    told = []
    if "peer" in parts:
        told.append(_peers(benchmark.pairs(parts["peer"])))
    others = [benchmark.verdicts(part, sides) for part, sides in parts.items() if part != "peer"]
    told.append("\n".join(f"- {line}" for lines in others for line in lines))
    tables = [f"[{part}](results/study/{part}/{benchmark.TABLE})" for part in parts]
    told.append(f"Commands, memory and every side: {', '.join(tables)}.")
    return "\n\n".join(told)


def capture(root: Path) -> str:
    """Capture against the bare forward pass and other libraries, from the benchmark's raw runs."""
    folder = root / "results" / "capture"
    sys.path.insert(0, str(root / "benchmarks"))
    table = importlib.import_module("capture_table")
    sys.path.pop(0)
    pieces: dict[str, dict[str, Any]] = {}
    for result in table.results(folder):
        pieces.setdefault(result["model"], {})[result["piece"]] = result
    ratios = {
        "core": [
            (table.NULL, table.BACKBONE),
            (table.RAM, table.BACKBONE),
            (table.LOSS, table.FULL),
        ],
        "bridge": [(table.BRIDGE, table.RAM)],
        "runner": [(table.RUNNER, table.DISK)],
    }
    lines = [
        "| model | R_core, null sink | R_core, RAM | R_loss, RAM | TransformerBridge "
        "| CacheActivationsRunner | memory at 16x / 1x the tokens |",
        "|---|---|---|---|---|---|---|",
    ]
    missed = []
    for name, found in pieces.items():
        cells = [name]
        for piece, pairs in ratios.items():
            for mine, theirs in pairs:
                value = table.ratio(found[piece], mine, theirs) if piece in found else None
                if piece == "core" and value is not None and value > CAPTURE_TARGET:
                    missed.append(f"{name} ({mine})")
                digits = "-" if value is None else f"{value:.{2 if piece == 'core' else 1}f}"
                cells.append(digits + "x" * (piece != "core" and value is not None))
        peaks = found["memory"]["peak_bytes"]["ram"] if "memory" in found else None
        cells.append("-" if peaks is None else f"{peaks[-1] / peaks[0]:.2f}")
        lines.append(f"| {' | '.join(cells)} |")
    told = f", missed by {' and '.join(missed)}" if missed else ""
    return "\n".join(lines) + (
        "\n\nR_core: capture of every layer over the bare forward pass of the backbone; R_loss: "
        "with the loss, over the full forward pass with its loss. Null sink: captured and thrown "
        f"away. Target {CAPTURE_TARGET}{told}. Then how many times longer others take: "
        "`run_with_cache` of the same points against capture into RAM, one CacheActivationsRunner "
        "for each layer against capture to disk. Memory: the peak above the loaded model at 16 "
        "times the tokens, over that at one. Commands, raw figures and disk: "
        "[`results/capture/table.md`](results/capture/table.md)."
    )


def _speed_table(table: dict[str, Any], folder: str) -> str:
    peers = ("sae-lens", "dictionary_learning", "sparsify")
    lines = [
        "| (d_in, d_sae, k), batch | encoder | tokens/s | " + " | ".join(peers) + " |",
        "|---|---|---|" + "---|" * len(peers),
    ]
    clock = f"{table['clock']}_us_per_token"
    for result in table["shapes"]:
        rows = result["contenders"]
        for name, dtype in (("superscope", "float32"), ("superscope bf16", "bfloat16")):
            cost = rows[name][clock]
            ratios = [f"{rows[p][clock] / cost:.1f}x" if p in rows else "-" for p in peers]
            cells = [result["label"], dtype, f"{1e6 / cost:,.0f}", *ratios]
            lines.append(f"| {' | '.join(cells)} |")
    cores = f"{table['cores']} core{'s' if table['cores'] > 1 else ''}"
    threads = " and ".join(map(str, table.get("threads", [1])))
    best = f", each at its best of {threads} threads" if threads != "1" else ""
    told = "Which targets are missed"
    if table["cores"] == 1:
        told += ", and where the time goes"
    return (
        "\n".join(lines) + f"\n\n`{table['command']}`, {cores} of {table['cpu']}, "
        f"{_CLOCKS[table['clock']]} time, peers in float32{best}. {table['note']} {told}: "
        f"[`{folder}/table.md`]({folder}/table.md).\n\n" + _what_speed_leaves_out(table, clock)
    ).replace(".  ", ". ")


def _what_speed_leaves_out(table: dict[str, Any], clock: str) -> str:
    """Equal steps are not equal quality, and one peer has a bfloat16 of its own."""
    single = [r for r in table["shapes"] if not r["label"].startswith("4 x")]
    names = ("superscope", "sae-lens", "dictionary_learning", "sparsify")
    fvus = [
        f"{'ours' if name == 'superscope' else name} "
        + ", ".join(f"{r['contenders'][name]['fvu']:.2f}" for r in single)
        for name in names
        if all(name in r["contenders"] for r in single)
    ]
    both = [
        [r["contenders"][f"{name} bf16"][clock] for name in ("sae-lens", "superscope")]
        for r in single
        if "sae-lens bf16" in r["contenders"]
    ]
    ratios = [f"{theirs / mine:.1f}x" for theirs, mine in both]
    steps = single[0]["contenders"]["superscope"]["n_steps"]
    return (
        f"Equal steps are not equal quality: after these {steps} steps FVU is, by shape, "
        f"{'; '.join(fvus)}. Against sae-lens's own bfloat16, bfloat16 is {', '.join(ratios)}."
    )


def _equal_training(table: dict[str, Any]) -> str:
    """FVU and dead latents of every trainer after equal steps, in one sentence each."""
    said = []
    for result in table["equal_training"]:
        found = {k: v for k, v in result["contenders"].items() if not k.endswith("bf16")}
        fvus, dead = (
            ", ".join(
                f"{'ours' if name == 'superscope' else name} {show(one)}"
                for name, one in sorted(found.items(), key=lambda item: item[1]["fvu"])
            )
            for show in (lambda one: f"{one['fvu']:.4f}", lambda one: f"{one['dead_fraction']:.2%}")
        )
        said.append(f"after {result['n_steps']} steps FVU {fvus}, latents that never fire {dead}")
    first = table["equal_training"][0]
    return (
        f"Equal training, {first['label']}, mean of {first['n_seeds']} seeds: {'; '.join(said)} "
        f"(`{table['command']}`, "
        "[all trainers](results/sae_training/equal_training/table.md))."
    )


def _peers(pairs: Iterable[tuple[str, dict[str, Any], dict[str, Any]]]) -> str:
    lines = [
        "| side, d x d_sae | seconds, of them in training | sae-lens's | times faster, in training "
        "| FVU, ours / sae-lens's |",
        "|---|---|---|---|---|",
    ]
    keys = ("wall_seconds", "training_seconds")
    for name, ours, theirs in pairs:
        cells = [
            name,
            *(", ".join(f"{one[key]:.0f}" for key in keys) for one in (ours, theirs)),
            ", ".join(f"{theirs[key] / ours[key]:.1f}x" for key in keys),
            f"{ours['fvu'] / theirs['fvu']:.3f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n\nTraining includes the capture that feeds it."
