"""The tables of `capture.py`, from the raw figures it left; imports nothing heavy."""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

PIECES = ("core", "bridge", "runner", "memory")
GPT2 = "gpt2-shaped"
BACKBONE, FULL = "transformers backbone", "transformers full, loss"
NULL, RAM, DISK = "capture, null sink", "capture, RAM", "capture, disk"
LOSS = "capture with loss, RAM"
BRIDGE, BRIDGE_ALL = "TransformerBridge, same points", "TransformerBridge, everything"
RUNNER = "CacheActivationsRunner, all layers"


def results(folder: Path) -> list[dict[str, Any]]:
    """The raw figures in a folder, model by model, in the order of the pieces."""
    found = [json.loads(file.read_text()) for file in folder.glob("*.json")]
    return sorted(found, key=lambda r: (r["model"] != GPT2, r["model"], PIECES.index(r["piece"])))


def seconds(result: dict[str, Any], name: str, clock: str) -> float:
    """Median over repeats."""
    return statistics.median(result["sides"][name][clock])


def ratio(result: dict[str, Any], mine: str, theirs: str) -> float:
    """Median time of one side over another's, by the clock that means something for both."""
    one_waits = len({DISK, RUNNER} & {mine, theirs}) == 1
    is_cpu = result["threads"] == 1 and result["device"] == "cpu"
    clock = "cpu" if is_cpu and not one_waits else "wall"
    return seconds(result, mine, clock) / seconds(result, theirs, clock)


def markdown(found: list[dict[str, Any]]) -> str:
    """All pieces, one after the other, each with its command and what it was run on."""
    return "\n\n".join("\n".join(_section(result)) for result in found) + "\n"


def _section(result: dict[str, Any]) -> list[str]:
    lines = [f"**{result['model']}, {result['piece']}**", "", _made_by(result), ""]
    if result["piece"] == "memory":
        return lines + _memory_lines(result)
    n = result["n_tokens"]
    lines += ["| | tokens/s (wall) | tokens per CPU second | spread of wall |", "|---|---|---|---|"]
    for name, times in result["sides"].items():
        wall, cpu = (seconds(result, name, clock) for clock in ("wall", "cpu"))
        spread = (max(times["wall"]) - min(times["wall"])) / wall
        lines.append(f"| {name} | {n / wall:,.0f} | {n / cpu:,.0f} | {spread:.0%} |")
    lines += [
        "",
        *(f"Largest difference, {what}: {x:.1e}." for what, x in result["checks"].items()),
    ]
    return [*lines, "", *_verdicts(result)]


def _made_by(result: dict[str, Any]) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    return (
        f"`{result['command']}`, {result['wall_seconds']:.0f} s; {result['device']}, "
        f"{result['dtype']}, {result['threads']} thread(s) of {result['cpu']}, {versions}, load "
        f"average {result['load_average'][0]:.1f} at the start; {_work(result)}. "
        f"{result['note']}".rstrip()
    )


def _work(result: dict[str, Any]) -> str:
    if result["piece"] == "memory":
        return f"blocks of {result['n_ctx']}, a process for each figure"
    return (
        f"{result['n_tokens']:,} tokens in blocks of {result['n_ctx']}, {result['batch']} at once, "
        f"{result['repeats']} repeats"
    )


def _memory_lines(result: dict[str, Any]) -> list[str]:
    first, middle, last = (f"{n:,} tokens" for n in result["n_tokens_of"])
    lines = [
        f"Peak above the {result['model_bytes'] / 2**20:,.0f} MiB of the loaded model, MiB; chunks "
        f"and shards of {result['chunk_bytes'] / 2**20:,.1f} each:",
        "",
        f"| | {first} | {middle} | {last} | 16x / 1x | bytes for each further token |",
        "|---|---|---|---|---|---|",
    ]
    for sink, peaks in result["peak_bytes"].items():
        cells = " | ".join(f"{p / 2**20:,.1f}" for p in peaks)
        further = (peaks[-1] - peaks[0]) / (result["n_tokens_of"][-1] - result["n_tokens_of"][0])
        lines.append(f"| to {sink} | {cells} | {peaks[-1] / peaks[0]:.2f} | {further:,.0f} |")
    activations = result["chunk_bytes"] / result["chunk_tokens"]
    return [
        *lines,
        "",
        f"A token's activations are {activations:,.0f} bytes; its ids, held throughout, 13.",
    ]


def _verdicts(result: dict[str, Any]) -> list[str]:
    """Ratio by ratio, with the target where there is one."""
    if result["piece"] == "core":
        limit = 1.05 if result["device"] == "cpu" else 1.10
        said = [
            ("R_core, null sink", ratio(result, NULL, BACKBONE), None),
            ("R_core, RAM", ratio(result, RAM, BACKBONE), limit),
            ("R_core, disk (wall)", ratio(result, DISK, BACKBONE), None),
            ("R_loss, RAM", ratio(result, LOSS, FULL), 1.05),
        ]
    elif result["piece"] == "bridge":
        said = [
            (f"{name} / capture, RAM", ratio(result, name, RAM), None)
            for name in (BRIDGE, BRIDGE_ALL)
        ]
    else:
        faster = ratio(result, RUNNER, DISK)
        verdict = "reached" if faster >= 3 else f"missed by {1 - faster / 3:.0%}"
        return [f"{RUNNER} / capture, disk: {faster:.1f}; target at least 3, {verdict}."]
    lines = []
    for what, value, target in said:
        line = f"{what}: {value:.3f}."
        if target is not None:
            verdict = "reached" if value <= target else f"missed by {value - target:.3f}"
            line = f"{what}: {value:.3f}; target at most {target}, {verdict}."
        lines.append(line)
    return ["  \n".join(lines)]
