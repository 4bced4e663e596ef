"""Capture of all layers, and the loss, against the model's bare forward pass and two libraries.

    python benchmarks/capture.py --out results/capture                    GPT-2 small's shape
    python benchmarks/capture.py --model ladder/d256 --out results/capture
    python benchmarks/capture.py --only core --threads 2                  one piece of it
    python benchmarks/capture.py --device cuda --batch 32 --n-ctx 1024

All sides of a piece run the same tokens in one process, interleaved, and medians are compared:

    R_core = capture without the loss / the transformers backbone's forward pass
    R_loss = capture with the loss / the full transformers forward pass with its loss

The pieces: `core` (sinks null, RAM and disk), `bridge` (TransformerBridge's run_with_cache),
`runner` (sae-lens's CacheActivationsRunner, one run for each layer), `memory` (a fresh process for
1, 4 and 16 times the tokens). Each leaves its raw figures in --out, and table.md is made of all
that are there. On one thread CPU seconds are compared, since they hold on a shared machine, except
where the disk takes part.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import capture_sides as of
import capture_table as table
import torch

from interp.capture import capture
from interp.machine import cpu_name
from interp.recording import prepare, record

TIMES = (1, 4, 16)
CHUNKS = 3
"""Of the shortest memory run: what is held must not grow with the text."""
POINT_BYTES = 2 * 1024 * 1024
"""Of each hook point in a chunk, or a little more: smaller ones are malloc's, which keeps gaps."""


def main() -> None:
    args = _arguments()
    if args.threads:
        torch.set_num_threads(args.threads)
    if args.memory_of:
        print(json.dumps(_one_memory(args)))
        return
    for piece in args.only:
        began = time.perf_counter()
        result = _head(args, piece) | (_memory(args) if piece == "memory" else _speed(args, piece))
        result["wall_seconds"] = time.perf_counter() - began
        print(table.markdown([result]))
        if args.out:
            args.out.mkdir(parents=True, exist_ok=True)
            file = args.out / f"{args.model.replace('/', '--')}-{args.device}-{piece}.json"
            file.write_text(json.dumps(result, indent=1) + "\n")
            (args.out / "table.md").write_text(table.markdown(table.results(args.out)))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", nargs="+", choices=table.PIECES, default=list(table.PIECES))
    parser.add_argument("--model", default=table.GPT2, help="default: GPT-2 small, random weights")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", choices=of.DTYPES, default="float32")
    parser.add_argument("--n-ctx", type=int, default=256)
    parser.add_argument("--batch", type=int, default=2, help="blocks per forward pass")
    parser.add_argument("--blocks", type=int, default=8, help="blocks per timed run")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--note", default="", help="said in the table, such as what else ran")
    parser.add_argument("--out", type=Path, help="folder for the raw figures and table.md")
    parser.add_argument("--memory-of", type=int, choices=TIMES, help=argparse.SUPPRESS)
    parser.add_argument("--sink", choices=["ram", "disk"], default="ram", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.blocks % args.batch:
        parser.error(f"--blocks {args.blocks} is no multiple of --batch {args.batch}")
    return args


def _head(args: argparse.Namespace, piece: str) -> dict[str, Any]:
    """What is said about a piece beside its figures."""
    names = ("torch", "transformers", "transformer-lens", "sae-lens")
    return {
        "piece": piece,
        "model": args.model,
        "command": " ".join(["python", *sys.argv]),
        "cpu": cpu_name(),
        "system": platform.platform(),
        "device": args.device,
        "dtype": args.dtype,
        "threads": torch.get_num_threads(),
        "n_ctx": args.n_ctx,
        "batch": args.batch,
        "repeats": args.repeats,
        "versions": {name: metadata.version(name) for name in names},
        "load_average": os.getloadavg(),
        "note": args.note,
    }


def _speed(args: argparse.Namespace, piece: str) -> dict[str, Any]:
    model = of.make_model(args.model, args.device, args.dtype)
    work = of.Work(model, of.make_tokens(model, args.blocks, args.n_ctx), args.batch)
    sides = of.core(work)
    checks: dict[str, float] = {}
    if piece == "core":
        checks["activations, from transformers"] = of.largest_difference(work, of.states(work))
        [chunk] = sides[table.LOSS]()
        mine = float(chunk.nll.view(len(work.tokens), -1)[:, 1:].mean())
        checks["loss, from transformers"] = abs(mine - statistics.fmean(sides[table.FULL]()))
    else:
        bridge = of.bridged(model)
        ours, theirs = (
            ((table.BACKBONE, table.RAM), of.bridge_sides(work, bridge))
            if piece == "bridge"
            else ((table.DISK,), of.runner_side(work, bridge))
        )
        sides = {name: sides[name] for name in ours} | theirs
        first = next(iter(theirs))
        checks[f"activations, from {first}"] = of.largest_difference(work, theirs[first]())
    return {
        "d_model": model.d_model,
        "n_layers": model.n_layers,
        "d_vocab": model.d_vocab,
        "n_tokens": work.tokens.ids.numel(),
        "checks": checks,
        "sides": race(sides, args.repeats, args.device),
    }


def race(
    sides: dict[str, Callable[[], Any]], repeats: int, device: str
) -> dict[str, dict[str, list[float]]]:
    """Seconds of every side in every repeat, each repeat beginning with another side."""
    times: dict[str, dict[str, list[float]]] = {n: {"wall": [], "cpu": []} for n in sides}
    for run in sides.values():
        run()  # what the first run pays for is nobody's speed
    names = list(sides)
    for number in range(repeats):
        turn = number % len(names)
        for name in names[turn:] + names[:turn]:
            _wait(device)
            wall, cpu = time.perf_counter(), time.process_time()
            sides[name]()
            _wait(device)
            times[name]["wall"].append(time.perf_counter() - wall)
            times[name]["cpu"].append(time.process_time() - cpu)
        print(f"repeat {number + 1} of {repeats}", file=sys.stderr, flush=True)
    return times


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def _memory(args: argparse.Namespace) -> dict[str, Any]:
    """Peak memory of a process of its own for each amount of text."""
    peaks: dict[str, list[int]] = {}
    for sink in ("ram", "disk"):
        for times in TIMES:
            line = [sys.executable, *sys.argv, "--memory-of", str(times)]
            done = subprocess.run([*line, "--sink", sink], capture_output=True, text=True)
            if done.returncode:
                sys.exit(f"{sink}, {times}x the tokens: status {done.returncode}\n{done.stderr}")
            found = json.loads(done.stdout.splitlines()[-1])
            peaks.setdefault(sink, []).append(found["peak_bytes"])
            print(f"{sink} {times}x: {found}", file=sys.stderr, flush=True)
    n_tokens = [times * found["chunk_tokens"] * CHUNKS for times in TIMES]
    return {**found, "n_tokens": n_tokens[0], "n_tokens_of": n_tokens, "peak_bytes": peaks}


def _one_memory(args: argparse.Namespace) -> dict[str, int]:
    """Above a model that has run once, which is all there was when the peak was last forgotten."""
    model = of.make_model(args.model, args.device, args.dtype)
    of.core(of.Work(model, of.make_tokens(model, 1, args.n_ctx), 1))[table.BACKBONE]()
    before = _resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    point_bytes = model.d_model * model.dtype.itemsize
    blocks = -(-POINT_BYTES // (min(args.n_ctx, model.n_ctx) * point_bytes))
    # The token blocks too are a part of what is held.
    tokens = of.make_tokens(model, args.memory_of * CHUNKS * blocks, args.n_ctx)
    chunk_tokens = blocks * tokens.n_ctx
    chunk_bytes = chunk_tokens * model.n_layers * point_bytes
    options: dict[str, Any] = {"batch_size": min(args.batch, blocks)}
    if args.sink == "ram":
        for _ in capture(model, tokens, "resid_post", chunk_tokens=chunk_tokens, **options):
            pass
    else:
        with tempfile.TemporaryDirectory() as folder:
            recording = prepare(model, tokens, "resid_post", shard_bytes=chunk_bytes, **options)
            record(recording, Path(folder) / "store")
    return {
        "peak_bytes": _resident("VmHWM") - before,
        "model_bytes": before,
        "chunk_bytes": chunk_bytes,
        "chunk_tokens": chunk_tokens,
    }


def _resident(field: str) -> int:
    """Bytes of this program alone: what getrusage says includes the one that started it."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024
    raise SystemExit("peak memory is read from /proc; leave out memory here")


if __name__ == "__main__":
    main()
