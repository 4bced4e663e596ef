"""The whole job: against the same job with sae-lens's trainer, at growing sizes, with Ray.

    python benchmarks/study.py [--out results/study] [--rounds 3] [--only peer growth ray]

Every run is a process of its own with a new folder; the sides of a comparison alternate, and
medians over rounds are compared. Peer: 4 layers x 3 seeds of a ladder model, all sides on the
same activations with pilots for the same k and the same measurement; FVU on held-out text stands
beside the time. Once with the small dictionaries of the preset `quick`, where a dense step costs
little and what both sides share is most of the time, and once with those of a larger model. Growth:
tokens, models (copies of one) and layers, each at 1, 2 and 4 times. Ray: one process against one
and two workers (left out where Ray is not installed), which must end with the same tables.
With --out the same line goes on after a kill: a run that ended is not repeated.
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
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from interp import durable
from interp.config import StudyConfig
from interp.machine import cpu_name
from interp.provenance import code_sha256

TARGET = 5
"""Times less wall time than the peer."""
MOST_FVU = 1.01
"""Ours over the peer's."""
MOST_TIME, MOST_MEMORY = 2.1, 1.1
"""At twice the tokens."""
MOST_OVERHEAD_MS = 50.0
PEER = "sae-lens"
PARTS = ("peer", "growth", "ray")
RAW, TABLE = "raw.json", "table.md"
SIDES = Path(__file__).with_name("study_sides.py")
MODEL = "ladder/d064"


@dataclass(frozen=True)
class Shape:
    """What both sides of the peer's comparison train on."""

    model: str
    d_model: int
    times: int
    """Latents per dimension."""
    k: int
    tokens_over: int
    """Of the tokens asked for, one in so many: the peer's dense step takes minutes."""

    @property
    def name(self) -> str:
        """Dimensions and latents."""
        return f"{self.d_model} x {self.d_model * self.times:,}"


SHAPES = (Shape(MODEL, 64, 4, 8, 1), Shape("ladder/d256", 256, 16, 16, 4))
FAMILY = ("ladder/d032", "ladder/d048", MODEL, "ladder/d096")
N_LAYERS = 4
"""Of every ladder model."""
Runs = dict[str, list[dict[str, Any]]]
"""What every run of a side told, round by round."""


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
        models=(MODEL,),
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


def alternate(
    sides: Mapping[str, Side], rounds: int, runs: Runs, keep: Callable[[], None] = lambda: None
) -> None:
    """Interleaved rounds, added to `runs`; those that it has stand. `keep` is called after each."""
    names = list(sides)
    for number in range(rounds):
        turn = number % len(names)
        for name in names[turn:] + names[:turn]:
            done = runs.setdefault(name, [])
            if len(done) > number:
                continue
            done.append(once(sides[name].config, *sides[name].options))
            keep()
            print(f"round {number + 1}, {name}: {done[-1]['wall_seconds']:.1f} s", file=sys.stderr)


def medians(runs: Runs) -> dict[str, dict[str, Any]]:
    """Of every figure over the rounds, and the different tables that came out, by side."""
    found = {}
    for name, rounds in runs.items():
        figures = [key for key, value in rounds[0].items() if not isinstance(value, str)]
        found[name] = {key: statistics.median(run[key] for run in rounds) for key in figures}
        found[name]["tables"] = sorted({run["results_sha256"] for run in rounds})
    return found


def growth_sides(tokens: int, threads: int, cut: Path) -> dict[str, Side]:
    """One model of four layers; 2 and 4 times its tokens; copies of it; 1 and 2 of its layers.

    cut: a folder for the copies, whole and with fewer layers.
    """
    config = base(tokens, threads)
    of_one_width = (MODEL, *(first_layers(cut / f"copy-{n}", N_LAYERS) for n in range(3)))
    sides = {"base": config}
    for times in (2, 4):
        sides[f"tokens x{times}"] = base(times * tokens, threads)
        sides[f"models x{times}"] = config.model_copy(update={"models": of_one_width[:times]})
    for n_layers in (1, 2):
        sides[f"layers {n_layers} of {N_LAYERS}"] = config.model_copy(
            update={"models": (first_layers(cut / f"layers-{n_layers}", n_layers),)}
        )
    return {name: Side(config) for name, config in sides.items()}


def first_layers(folder: Path, n_layers: int) -> str:
    """The first layers of the model, with its head, as a directory that loads; its name."""
    from interp.models import load

    model = load(MODEL)
    del model.hf.transformer.h[n_layers:]
    model.hf.config.n_layer = n_layers
    model.hf.save_pretrained(folder)
    model.tokenizer.save_pretrained(folder)
    return str(folder)


def ray_sides(tokens: int) -> dict[str, Side]:
    """Four models of one thread each, here and on a cluster of one and of two CPUs."""
    config = base(tokens, 1).model_copy(update={"models": FAMILY, "other_layers": False})
    ray = config.model_copy(update={"executor": "ray"})
    workers = {f"Ray, {n} worker{'s' * (n > 1)}": Side(ray, ("--ray-cpus", str(n))) for n in (1, 2)}
    return {"local": Side(config), **workers}


def markdown(result: dict[str, Any]) -> str:
    """The tables, each target with what came of it."""
    told = (
        f"`{result['command']}`, {result['cores']} cores of {result['cpu']}, load "
        f"{result['load_average'][0]:.1f} at the start. {result['note']}"
    )
    lines = [told.strip(), ""]
    for part, runs in result["runs"].items():
        sides = medians(runs)
        lines += [f"**{part}**", "",
                  "| side | wall s | training, capture s | CPU s | peak MB | FVU | SAEs | units "
                  "| overhead ms/unit |",
                  "|---|---|---|---|---|---|---|---|---|"]  # fmt: skip
        for name, one in sides.items():
            figures = (
                f"{one['wall_seconds']:.1f}",
                _or_dash(one, "training_seconds", ".1f"),
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
        return [_against(*pair) for pair in pairs(sides)]
    if part == "growth":
        one = sides["base"]
        wall, memory = _times(sides["tokens x2"], one)
        overhead = max(side["overhead_ms_per_unit"] for side in sides.values())
        said = [
            f"Twice the tokens: {wall:.2f}x the time, at most {MOST_TIME}: "
            f"{_came(wall <= MOST_TIME)}; {memory:.2f}x the memory, at most {MOST_MEMORY}: "
            f"{_came(memory <= MOST_MEMORY)}. Overhead per unit at most {overhead:.0f} ms, target "
            f"{MOST_OVERHEAD_MS:.0f}: {_came(overhead <= MOST_OVERHEAD_MS)}."
        ]
        fewest = sides[f"layers 1 of {N_LAYERS}"]
        for what, more, less in (
            ("tokens", sides["tokens x4"], one),
            ("models", sides["models x4"], one),
            ("layers", one, fewest),
        ):
            wall, memory = _times(more, less)
            said.append(f"Four times the {what}: {wall:.2f}x the time, {memory:.2f}x the memory.")
        return said
    local = sides["local"]
    walls = [
        f"{name}: {side['wall_seconds'] / local['wall_seconds']:.2f}x the time of one process"
        for name, side in sides.items()
        if side is not local
    ]
    same = len({table for side in sides.values() for table in side["tables"]}) == 1
    return [f"{'; '.join(walls)}. The same tables in every run: {'yes' if same else 'NO'}."]


def pairs(
    sides: Mapping[str, dict[str, Any]],
) -> Iterator[tuple[str, dict[str, Any], dict[str, Any]]]:
    """Every side of ours by name, with the peer's at its shape."""
    for name, ours in sides.items():
        side, shape = name.split(", ")
        if side != PEER:
            yield name, ours, sides[f"{PEER}, {shape}"]


def _against(name: str, ours: dict[str, Any], peer: dict[str, Any]) -> str:
    times = peer["wall_seconds"] / ours["wall_seconds"]
    cpu, fvu = peer["cpu_seconds"] / ours["cpu_seconds"], ours["fvu"] / peer["fvu"]
    shared = 100 * (1 - peer["training_seconds"] / peer["wall_seconds"])
    training = peer["training_seconds"] / ours["training_seconds"]
    return (
        f"- {name}: target {TARGET}x less wall time: {times:.1f}x ({cpu:.1f}x of CPU time), "
        f"{_came(times >= TARGET)}. {training:.1f}x in training with its capture; all else, the "
        f"same on both sides, is {shared:.0f}% of the peer's time. FVU {fvu:.3f} of the peer's, at "
        f"most {MOST_FVU}: {_came(fvu <= MOST_FVU)}; k {ours['k']:g}, the peer's {peer['k']:g}."
    )


def _times(more: dict[str, Any], less: dict[str, Any]) -> tuple[float, float]:
    """(wall time, memory) of one side over those of another."""
    wall, memory = (more[key] / less[key] for key in ("wall_seconds", "peak_memory_bytes"))
    return wall, memory


def _or_dash(one: dict[str, Any], key: str, form: str) -> str:
    """Of workers only their own processes know it."""
    return format(one[key], form) if key in one else "-"


def _came(reached: bool) -> str:
    return "reached" if reached else "missed"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", choices=PARTS)
    parser.add_argument("--tokens", type=int, default=1_048_576, help="of each SAE")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--note", default="", help="on the machine, for the table")
    parser.add_argument("--out", type=Path, help=f"folder for {TABLE} and {RAW}")
    args = parser.parse_args()
    wanted = args.only or list(PARTS)
    if "ray" in wanted and importlib.util.find_spec("ray") is None:
        wanted.remove("ray")
        args.note += " Ray is not installed and left out."
    fresh = {
        "command": shlex.join(["python", *sys.argv]),
        "cores": args.threads,
        "cpu": cpu_name(),
        "code_sha256": code_sha256(),
        "load_average": os.getloadavg(),
        "note": args.note.strip(),
        "runs": {},
    }
    result = held(fresh, args.out)
    with tempfile.TemporaryDirectory() as folder:
        for part in wanted:
            runs = result["runs"].setdefault(part, {})
            sides = sides_of(part, args.tokens, args.threads, Path(folder))
            alternate(sides, args.rounds, runs, lambda: write(result, args.out))
    write(result, args.out, table=True)
    print(markdown(result))


def sides_of(part: str, tokens: int, threads: int, cut: Path) -> dict[str, Side]:
    """The contenders of a part."""
    if part == "growth":
        return growth_sides(tokens, threads, cut)
    if part == "ray":
        return ray_sides(tokens)
    return {name: side for shape in SHAPES for name, side in peer_sides(shape, tokens, threads)}


def peer_sides(shape: Shape, tokens: int, threads: int) -> Iterator[tuple[str, Side]]:
    """Ours with either precision of the encoder's product, and the peer."""
    config = base(tokens // shape.tokens_over, threads).model_copy(
        update={
            "models": (shape.model,),
            "d_sae_per_d_model": (shape.times,),
            # Pilots are below it, so the smallest k is taken: one, whoever trained the pilots.
            "pilot_ks": (shape.k,),
            "target_fvu": 0.99,
        }
    )
    yield f"superscope, {shape.name}", Side(config)
    half = config.model_copy(update={"encoder_dtype": "bfloat16"})
    yield f"superscope bf16, {shape.name}", Side(half)
    yield f"{PEER}, {shape.name}", Side(config, ("--trainer", PEER))


def held(fresh: dict[str, Any], out: Path | None) -> dict[str, Any]:
    """What the same line left before it was killed, or `fresh`."""
    file = out / RAW if out else None
    if file is None or not file.exists() or (file.parent / TABLE).exists():
        return fresh
    found = json.loads(file.read_text())
    same = ("command", "cores", "cpu", "code_sha256")
    return found if all(found[key] == fresh[key] for key in same) else fresh


def write(result: dict[str, Any], out: Path | None, *, table: bool = False) -> None:
    """Every run that ended; the table last, which says that all have."""
    if out is None:
        return
    out.mkdir(parents=True, exist_ok=True)
    if not table:
        (out / TABLE).unlink(missing_ok=True)
    durable.write(out / RAW, (json.dumps(result, indent=1) + "\n").encode())
    if table:
        durable.write(out / TABLE, (markdown(result) + "\n").encode())


if __name__ == "__main__":
    main()
