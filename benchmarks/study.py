"""The whole job: against the same job with sae-lens's trainer, at growing sizes, with Ray.

    python benchmarks/study.py [--out results/study] [--rounds 3] [--only peer growth ray]

Every run is a process of its own with a new folder; the sides of a comparison alternate, and
medians over rounds are compared. Peer: 4 layers x 3 seeds of one ladder model, both sides on the
same activations with the same pilots and the same measurement; FVU on held-out text stands beside
the time. Growth: tokens and models at 1, 2 and 4 times, a quarter of
the layers. Ray: one process against one and
two workers (left out where Ray is not installed).
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import shlex
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from interp import ladder
from interp.config import StudyConfig
from interp.machine import cpu_name

TARGET = 5
"""Times less wall time than the peer."""
MOST_FVU = 1.01
"""Ours over the peer's."""
MOST_TIME, MOST_MEMORY = 2.1, 1.1
"""At twice the tokens."""
MOST_OVERHEAD_MS = 50.0
SIDES = Path(__file__).with_name("study_sides.py")
WIDTHS = ("ladder/d032", "ladder/d048", "ladder/d064", "ladder/d096")


@dataclass(frozen=True)
class Side:
    """One contender of a comparison."""

    config: StudyConfig
    options: tuple[str, ...] = ()
    """Of study_sides.py."""


def base(tokens: int, threads: int) -> StudyConfig:
    """Every layer of one model; no second training on half the tokens, which the peer lacks."""
    return StudyConfig(
        preset="benchmark",
        preview=True,
        models=("ladder/d064",),
        streams=("contextual",),
        other_layers=True,
        n_seeds=3,
        pilot_ks=(4, 8),
        sae_tokens=tokens,
        pilot_tokens=max(4_096, tokens // 8),
        means_tokens=max(4_096, tokens // 2),
        loss_tokens=max(4_096, tokens // 8),
        held_out_tokens=max(4_096, tokens // 16),
        check_convergence=False,
        threads=threads,
    )


def once(config: StudyConfig, *options: str) -> dict[str, Any]:
    """One study in a new process; what it printed."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "study.yaml"
        file.write_text(config.to_yaml())
        line = [sys.executable, str(SIDES), str(file), f"{folder}/out", *options]
        done = subprocess.run(line, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{shlex.join(line)} failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def alternate(sides: dict[str, Side], rounds: int) -> dict[str, dict[str, Any]]:
    """Medians of every figure over interleaved rounds, by side."""
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in sides}
    for number in range(rounds):
        turn = number % len(sides)
        names = list(sides)
        for name in names[turn:] + names[:turn]:
            found[name].append(once(sides[name].config, *sides[name].options))
            print(f"round {number + 1}, {name}: {found[name][-1]['wall_seconds']:.1f} s",
                  file=sys.stderr)  # fmt: skip
    return {
        name: {key: statistics.median(run[key] for run in runs) for key in runs[0]}
        | {"wall_of_rounds": [run["wall_seconds"] for run in runs]}
        for name, runs in found.items()
    }


def growth_sides(tokens: int, threads: int) -> dict[str, Side]:
    """1, 2 and 4 times the tokens and the models, and a quarter of the layers."""
    sides = {}
    for times in (1, 2, 4):
        sides[f"tokens x{times}"] = base(times * tokens, threads)
        more = {"models": WIDTHS[:times]}
        sides[f"models x{times}"] = base(tokens, threads).model_copy(update=more)
    # Every ladder model has four layers, read whole above and at half depth alone here.
    sides["layers x1/4"] = base(tokens, threads).model_copy(update={"other_layers": False})
    return {name: Side(config) for name, config in sides.items()}


def ray_sides(tokens: int) -> dict[str, Side]:
    """Four models of one thread each, here and on a cluster of one and of two CPUs."""
    config = base(tokens, 1).model_copy(update={"models": WIDTHS, "other_layers": False})
    ray = config.model_copy(update={"executor": "ray"})
    workers = {f"ray, {n} CPUs": Side(ray, ("--ray-cpus", str(n))) for n in (1, 2)}
    return {"local": Side(config), **workers}


def markdown(result: dict[str, Any]) -> str:
    """The tables, each target with what came of it."""
    told = (
        f"`{result['command']}`, {result['cores']} cores of {result['cpu']}, load "
        f"{result['load_average'][0]:.1f} at the start. {result['note']}"
    )
    lines = [told.strip(), ""]
    for part, sides in result["parts"].items():
        lines += [f"**{part}**", "",
                  "| side | wall s | CPU s | peak MB | FVU | SAEs | units | overhead ms/unit |",
                  "|---|---|---|---|---|---|---|---|"]  # fmt: skip
        for name, one in sides.items():
            figures = (
                f"{one['wall_seconds']:.1f}",
                _or_dash(one, "cpu_seconds", ".1f"),
                f"{one['peak_memory_bytes'] / 1e6:,.0f}",
                f"{one['fvu']:.4f}",
                f"{one['n_saes']:.0f}",
                f"{one['n_units']:.0f}",
                _or_dash(one, "overhead_ms_per_unit", ".0f"),
            )
            lines.append(f"| {name} | {' | '.join(figures)} |")
        lines += ["", *verdicts(part, sides), ""]
    return "\n".join(lines)


def verdicts(part: str, sides: dict[str, dict[str, Any]]) -> list[str]:
    """One line for every target that the part has."""
    if part == "peer":
        ours, peer = sides["superscope"], sides["sae-lens"]
        times = peer["wall_seconds"] / ours["wall_seconds"]
        cpu, fvu = peer["cpu_seconds"] / ours["cpu_seconds"], ours["fvu"] / peer["fvu"]
        return [
            f"Target {TARGET}x less wall time: {times:.1f}x ({cpu:.1f}x of CPU time), "
            f"{_came(times >= TARGET)}. FVU {fvu:.3f} of the peer's, at most {MOST_FVU}: "
            f"{_came(fvu <= MOST_FVU)}."
        ]
    if part == "growth":
        one, two = sides["tokens x1"], sides["tokens x2"]
        wall = two["wall_seconds"] / one["wall_seconds"]
        memory = two["peak_memory_bytes"] / one["peak_memory_bytes"]
        overhead = max(side["overhead_ms_per_unit"] for side in sides.values())
        return [
            f"Twice the tokens: {wall:.2f}x the time, at most {MOST_TIME}: "
            f"{_came(wall <= MOST_TIME)}; {memory:.2f}x the memory, at most {MOST_MEMORY}: "
            f"{_came(memory <= MOST_MEMORY)}. Overhead per unit at most {overhead:.0f} ms, target "
            f"{MOST_OVERHEAD_MS:.0f}: {_came(overhead <= MOST_OVERHEAD_MS)}."
        ]
    return []


def _or_dash(one: dict[str, Any], key: str, form: str) -> str:
    """Of workers only their own processes know it."""
    return format(one[key], form) if key in one else "-"


def _came(reached: bool) -> str:
    return "reached" if reached else "missed"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", choices=("peer", "growth", "ray"))
    parser.add_argument("--tokens", type=int, default=1_048_576, help="of each SAE")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--note", default="", help="on the machine, for the table")
    parser.add_argument("--out", type=Path, help="folder for table.md and raw.json")
    args = parser.parse_args()
    wanted = args.only or ["peer", "growth", "ray"]
    if "ray" in wanted and importlib.util.find_spec("ray") is None:
        wanted.remove("ray")
        args.note += " Ray is not installed and left out."
    base_config = base(args.tokens, args.threads)
    sides = {
        "peer": {
            name: Side(base_config, ("--trainer", name)) for name in ("superscope", "sae-lens")
        },
        "growth": growth_sides(args.tokens, args.threads),
        "ray": ray_sides(args.tokens),
    }
    assert set(WIDTHS) <= set(ladder.names())
    result = {
        "command": shlex.join(["python", *sys.argv]),
        "cores": args.threads,
        "cpu": cpu_name(),
        "load_average": os.getloadavg(),
        "note": args.note.strip(),
        "parts": {},
    }
    for part in wanted:
        result["parts"][part] = alternate(sides[part], args.rounds)
    text = markdown(result)
    if args.out:
        args.out.mkdir(parents=True, exist_ok=True)
        (args.out / "raw.json").write_text(json.dumps(result, indent=1) + "\n")
        (args.out / "table.md").write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
