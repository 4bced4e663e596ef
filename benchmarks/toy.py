"""One step of the toy model: this engine against a dense one-model loop, in one process.

    python benchmarks/toy.py [--out results/toy_step]

The dense loop is written from the formulas as a script would be: a [batch, n] matrix of uniform
numbers for the Bernoulli draws and one for the values, autograd, AdamW with signed decay by row, on
all cores. The engine trains the same models side by side, one thread each, on one sparse stream.
Rounds of both alternate; medians are taken over rounds. CPU seconds of all threads are the measure
on a shared machine; wall seconds stand beside them. Before that both get the same inputs and must
come to the same weights.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shlex
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from interp.machine import cpu_name
from interp.toy import batches
from interp.toy import model as toy_model
from interp.toy.batches import Stream
from interp.toy.frequencies import Frequencies
from interp.toy.model import Scratch, ToyConfig, ToyModel
from interp.toy.presets import STRONG, WEAK, WIDTHS
from interp.toy.sweep import Workers, advance, workers

N, BATCH, N_STEPS = 1000, 2048, 3000
TARGET = 6
STEPS_PER_ROUND = 10
PARTS: dict[str, tuple[Any, str]] = {
    "sampling (one model's share of it)": (batches.Stream, "batch"),
    "products": (toy_model, "_product"),
    "rows of outputs": (toy_model, "loss_and_gradients"),
    "AdamW": (toy_model, "adamw"),
    "adding gradients": (toy_model, "add_rows"),
}


class DenseModel:
    """The formulas in torch, float32."""

    def __init__(self, config: ToyConfig, W: Tensor, b: Tensor) -> None:
        self.config, self.t = config, 0
        self.W, self.b = W.clone().requires_grad_(), b.clone().requires_grad_()
        self.p = torch.tensor(config.frequencies.probabilities(), dtype=torch.float32)
        self.moments = {id(w): (torch.zeros_like(w), torch.zeros_like(w)) for w in (self.W, self.b)}

    def sample(self) -> Tensor:
        """x_i = u_i v_i, dense."""
        shape = (self.config.batch_size, len(self.p))
        return (torch.rand(shape) < self.p).float() * torch.rand(shape) * 2

    def step(self, x: Tensor) -> float:
        y = torch.relu(x @ self.W @ self.W.T + self.b)
        loss = (y - x).square().sum() / len(x)
        gradients = torch.autograd.grad(loss, (self.W, self.b))
        self.t += 1
        config, rate = self.config, self._rate()
        with torch.no_grad():
            lr = config.lr_W * rate
            if config.decay >= 0:
                self.W.mul_(1 - lr * config.decay)
            else:
                norms = self.W.norm(dim=1, keepdim=True)
                self.W.sub_(lr * config.decay * self.W * (1 / norms - 1))
            for w, g, peak in zip(
                (self.W, self.b), gradients, (config.lr_W, config.lr_b), strict=True
            ):
                first, second = self.moments[id(w)]
                first.mul_(0.9).add_(g, alpha=0.1)
                second.mul_(0.999).addcmul_(g, g, value=0.001)
                scale = second.sqrt().div_(math.sqrt(1 - 0.999**self.t)).add_(config.eps)
                w.addcdiv_(first, scale, value=-peak * rate / (1 - 0.9**self.t))
        return loss.item()

    def _rate(self) -> float:
        config = self.config
        if self.t < config.warmup_steps:
            return self.t / config.warmup_steps
        share = (self.t - config.warmup_steps) / (config.n_steps - config.warmup_steps)
        return 0.05 + 0.95 * (1 + math.cos(math.pi * share)) / 2


def configs(exponent: float) -> list[ToyConfig]:
    """The small sweep's models at one exponent: both regimes, all widths."""
    first = ToyConfig(
        Frequencies("power", exponent, N), 1, 0.0, BATCH, N_STEPS, N_STEPS // 10, 0.01, 0.01, 1e-5
    )
    return [replace(first, m=m, decay=decay) for m in WIDTHS for decay in (STRONG, WEAK)]


def dense_twin(model: ToyModel) -> DenseModel:
    """The same weights in the dense loop."""
    return DenseModel(model.config, torch.from_numpy(model.W), torch.from_numpy(model.b))


def largest_difference(config: ToyConfig, n_steps: int) -> dict[str, float]:
    """Of weights and (relative) losses after equal steps on equal inputs, both in float32."""
    model, stream, scratch = ToyModel(config), Stream(config.frequencies, BATCH), Scratch()
    dense, losses = dense_twin(model), 0.0
    for number in range(n_steps):
        batch = stream.batch(number)
        ours = model.step(batch, scratch)
        theirs = dense.step(torch.from_numpy(batch.dense(N)))
        losses = max(losses, abs(ours / theirs - 1))
    difference = np.abs(model.W - dense.W.detach().numpy())
    return {
        "n_steps": n_steps,
        "loss_relative": losses,
        "W_largest": float(difference.max()),
        "W_rms_relative": float(np.sqrt((difference**2).mean() / (model.W**2).mean())),
    }


def race(exponent: float, pool: Workers, rounds: int) -> dict[str, dict[str, float]]:
    """Median milliseconds of a model-step, wall and CPU, of both sides."""
    models = [ToyModel(config) for config in configs(exponent)]
    dense = [dense_twin(model) for model in models]
    stream = Stream(models[0].config.frequencies, BATCH)
    order = sorted(models, key=lambda model: -model.config.m)

    def ours(number: int) -> int:
        start = number * STEPS_PER_ROUND
        advance(order, stream, start, start + STEPS_PER_ROUND, pool)
        return len(models) * STEPS_PER_ROUND

    def theirs(number: int) -> int:
        for twin in dense:
            twin.step(twin.sample())
        return len(dense)

    sides: dict[str, Callable[[int], int]] = {"engine": ours, "dense loop": theirs}
    wall: dict[str, list[float]] = {name: [] for name in sides}
    cpu: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(rounds + 1):
        for name in list(sides) if number % 2 else list(sides)[::-1]:
            start_wall, start_cpu = time.perf_counter(), time.process_time()
            steps = sides[name](number)
            if number:  # round 0 compiles and allocates
                wall[name].append(1e3 * (time.perf_counter() - start_wall) / steps)
                cpu[name].append(1e3 * (time.process_time() - start_cpu) / steps)
    return {
        name: {
            "wall_ms": statistics.median(wall[name]),
            "cpu_ms": statistics.median(cpu[name]),
        }
        for name in sides
    }


def profile(exponent: float, n_steps: int) -> dict[str, float]:
    """CPU milliseconds of one of our model-steps, by part, on one thread, mean over models."""
    models, scratch = [ToyModel(config) for config in configs(exponent)], Scratch()
    stream = Stream(models[0].config.frequencies, BATCH)
    for model in models:
        model.step(stream.batch(0), scratch)
    seconds: Counter[str] = Counter()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with _stopwatch(seconds):
        start = time.thread_time()
        for number in range(1, n_steps + 1):
            batch = stream.batch(number)
            for model in models:
                model.step(batch, scratch)
        total = time.thread_time() - start
    torch.set_num_threads(threads)
    steps = len(models) * n_steps
    found = {part: 1e3 * seconds[part] / steps for part in PARTS}
    return {"whole": 1e3 * total / steps} | found


@contextmanager
def _stopwatch(seconds: Counter[str]) -> Iterator[None]:
    """Add up the CPU seconds of every part while inside."""
    originals = {part: getattr(home, name) for part, (home, name) in PARTS.items()}

    def timed(part: str, function: Any) -> Any:
        def call(*args: Any, **options: Any) -> Any:
            start = time.thread_time()
            result = function(*args, **options)
            seconds[part] += time.thread_time() - start
            return result

        return call

    for part, (home, name) in PARTS.items():
        setattr(home, name, timed(part, originals[part]))
    try:
        yield
    finally:
        for part, (home, name) in PARTS.items():
            setattr(home, name, originals[part])


def as_text(table: dict[str, Any]) -> str:
    """Markdown."""
    cores = f"{table['cores']} core" + "s" * (table["cores"] != 1)
    lines = [
        f"`{table['command']}`, {cores} of {table['cpu']}, torch {table['torch']}, "
        f"load average {table['load_average']:.1f} at the start. {table['note']}".rstrip(),
        "",
        f"n = {N}, batch {BATCH}, float32; milliseconds of a model-step, mean over widths "
        f"{', '.join(map(str, WIDTHS))} and two decays, median of {table['rounds']} rounds.",
        "",
        "| p ~ i^-a | dense loop, wall | engine, wall | ratio | dense, CPU | engine, CPU | ratio |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in table["rows"]:
        dense, engine = row["dense loop"], row["engine"]
        lines.append(
            f"| {row['exponent']:g} | {dense['wall_ms']:.1f} | {engine['wall_ms']:.2f} | "
            f"{row['wall_ratio']:.1f}x | {dense['cpu_ms']:.1f} | {engine['cpu_ms']:.2f} | "
            f"{row['cpu_ratio']:.1f}x |"
        )
    worst = min(row["wall_ratio"] for row in table["rows"])
    lines += [
        "",
        f"Target {TARGET}x: {worst:.1f}x at worst, {'reached' if worst >= TARGET else 'missed'}.",
        "",
    ]
    for row in table["rows"]:
        parts = ", ".join(f"{part} {ms:.3f}" for part, ms in row["parts"].items())
        check = row["check"]
        lines += [
            f"a = {row['exponent']:g}: CPU ms of one of ours on one thread: {parts}. "
            f"After {check['n_steps']} equal steps on equal inputs losses agreed within "
            f"{check['loss_relative']:.1e} (relative), weights within {check['W_largest']:.1e} "
            f"({check['W_rms_relative']:.1e} rms, relative).",
            "",
        ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--exponents", type=float, nargs="+", default=[1.0, 1.5, 2.0])
    parser.add_argument("--cores", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--note", default="", help="said in the table")
    parser.add_argument("--out", type=Path, help="folder for table.json and table.md")
    args = parser.parse_args()
    torch.set_num_threads(args.cores)
    rows = []
    table = {
        "command": shlex.join(["python", "benchmarks/toy.py", *sys.argv[1:]]),
        "cores": args.cores,
        "cpu": cpu_name(),
        "torch": torch.__version__,
        "load_average": os.getloadavg()[0],
        "note": args.note,
        "rounds": args.rounds,
        "rows": rows,
    }
    with workers(args.cores) as pool:
        for exponent in args.exponents:
            check = largest_difference(configs(exponent)[4], 20)
            found = race(exponent, pool, args.rounds)
            dense, engine = found["dense loop"], found["engine"]
            rows.append(
                {
                    "exponent": exponent,
                    **found,
                    "wall_ratio": dense["wall_ms"] / engine["wall_ms"],
                    "cpu_ratio": dense["cpu_ms"] / engine["cpu_ms"],
                    "parts": profile(exponent, 20),
                    "check": check,
                    "config": asdict(configs(exponent)[4]),
                }
            )
            print(f"a = {exponent:g}: {rows[-1]['wall_ratio']:.1f}x", flush=True)
    print(as_text(table))
    if args.out:
        args.out.mkdir(parents=True, exist_ok=True)
        (args.out / "table.json").write_text(json.dumps(table, indent=1) + "\n")
        (args.out / "table.md").write_text(as_text(table))


if __name__ == "__main__":
    main()
