"""TopK training speed: this engine against the libraries people use, in one process, interleaved.

    pip install "superscope[bench]" && pip install --no-deps dictionary-learning==0.1.0
    python benchmarks/sae_training.py [--out results/sae_training]

Every round runs each contender on the same rows in turn, and the table gives medians over rounds.
CPU seconds (of all threads) are compared, since they hold on a shared machine; wall seconds stand
beside them. On one core both sides get one thread. With --cores N this engine gets N SAEs on one
thread each, and the peers torch threads for their one SAE: every peer is timed with 1 and with N of
them, in turn, and the better of the two is its time (some are slower with more; --threads asks for
other counts). Then wall seconds are compared; peak memory and equal training, which have nothing to
do with threads, are left to a run on one core unless they are asked for.

With --device cuda everybody trains there, on rows that are there already, and wall seconds are
compared; ours are stacked (`saes.stacked`), the peers' take turns. 12 layers x 4 seeds of GPT-2:

    python benchmarks/sae_training.py --device cuda --shapes gpt2

Contenders whose library is not installed are left out, and the table says so.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from contenders import Contender, Shape, installed, makers
from step_profile import floor, profile
from torch import Tensor

from saes.metrics import SAEMetrics, SAEMetricsResult

SHAPES = {
    "128": Shape(128, 1024, 32, 4096),
    "256": Shape(256, 4096, 32, 4096),
    "768": Shape(768, 12288, 32, 2048),
    "many": Shape(128, 1024, 32, 4096, n_hook_points=4, n_seeds=3),
    "gpt2": Shape(768, 12288, 32, 4096, n_hook_points=12, n_seeds=4),
}
ON_A_CPU = ("128", "256", "768", "many")
TARGETS = {"768": {"sae-lens": 17, "sparsify": 4}, "256": {"sae-lens": 12, "sparsify": 3},
           "128": {"sae-lens": 8, "sparsify": 2}, "gpt2": {"sae-lens": 5}}  # fmt: skip
"""For two cores; the last for a GPU."""
CLAIM = ("superscope", "superscope bf16", "sae-lens")
"""Whose training is compared to the end."""
MOST_FVU = 1.01
"""Ours over sae-lens's after equal steps."""
LR = 1e-3
CPU = torch.device("cpu")
STEPS_PER_ROUND = 2


def activations(shape: Shape, n_rows: int, seed: int) -> list[Tensor]:
    """Sparse sums of 4 d_in random directions with a mean, one matrix per hook point.

    Rows are scaled to a total variance of d_in.
    """
    found = []
    for hook_point in range(shape.n_hook_points):
        fixed = torch.Generator().manual_seed(hook_point)
        directions = torch.nn.functional.normalize(
            torch.randn(4 * shape.d_in, shape.d_in, generator=fixed), dim=1
        )
        # Frequencies fall like 1 / rank; 16 features are active on a token on average.
        p = 1 / torch.arange(1, 4 * shape.d_in + 1)
        p = (16 * p / p.sum()).clamp(max=0.5)
        generator = torch.Generator().manual_seed(1000 * seed + hook_point)
        active = torch.rand(n_rows, len(p), generator=generator) < p
        rows = (active * (0.5 + torch.rand(n_rows, len(p), generator=generator))) @ directions
        rows /= ((rows - rows.mean(0)).square().sum(1).mean() / shape.d_in).sqrt()
        found.append(rows)
    return found


def judged(contender: Contender, shape: Shape, x: Tensor) -> SAEMetricsResult:
    """FVU and dead fraction on rows that no step has seen, as everywhere in this project."""
    metrics = SAEMetrics(shape.d_in, shape.d_sae)
    metrics.update(x, *contender.forward(x))
    return metrics.result()


def race(
    shape: Shape,
    names: list[str],
    cores: int,
    rounds: int,
    threads: list[int],
    *,
    device: torch.device = CPU,
    stack: bool | None = None,
) -> dict[str, dict[str, Any]]:
    """Interleaved rounds of all contenders: seconds per token, and FVU after equal steps.

    Every round runs each of them with every number of torch threads; the best median counts. Ours
    gives its SAEs a thread each whatever torch's number is, and so has one median.
    """
    n_rows = shape.batch * STEPS_PER_ROUND
    pool = [
        [rows.to(device) for rows in activations(shape, n_rows, seed + 1)]
        for seed in range(min(rounds + 1, 6))
    ]
    held_out = activations(shape, 4096, 99)[0].to(device)
    mean = pool[0][0].mean(0)
    contenders = {name: makers(cores, stack)[name](shape, LR, mean, 0) for name in names}
    for contender in contenders.values():
        contender.train(pool[0], shape.batch)  # compiles, allocates, initializes
    times: dict[str, dict[int, list[tuple[float, float]]]] = {
        name: {1: []} if _is_ours(name) else {n: [] for n in threads} for name in names
    }
    for number in range(rounds):
        rows = pool[(number + 1) % len(pool)]
        turn = number % len(names)
        for n_threads in threads:
            torch.set_num_threads(n_threads)
            for name in names[turn:] + names[:turn]:
                tokens = n_rows * contenders[name].n_saes
                _wait_for(device)
                start_wall, start_cpu = time.perf_counter(), time.process_time()
                contenders[name].train(rows, shape.batch)
                _wait_for(device)
                cpu = (time.process_time() - start_cpu) / tokens
                wall = (time.perf_counter() - start_wall) / tokens
                times[name][1 if _is_ours(name) else n_threads].append((cpu, wall))
    torch.set_num_threads(cores)
    n_steps = (1 + rounds * len(threads)) * STEPS_PER_ROUND
    found = {}
    for name in names:
        medians = {
            n: {
                f"{clock}_us_per_token": 1e6 * statistics.median(seconds)
                for clock, seconds in zip(("cpu", "wall"), zip(*spent, strict=True), strict=True)
            }
            for n, spent in times[name].items()
        }
        clock = clock_of(cores, device)
        best = min(medians, key=lambda n: medians[n][f"{clock}_us_per_token"])
        found[name] = medians[best] | {
            "threads": best,
            "by_threads": medians,
            "n_saes": contenders[name].n_saes,
            "fvu": judged(contenders[name], shape, held_out).fvu,
            "n_steps": n_steps,
        }
    return found


def clock_of(cores: int, device: torch.device = CPU) -> str:
    """The seconds that are compared."""
    return "cpu" if cores == 1 and device.type == "cpu" else "wall"


def _wait_for(device: torch.device) -> None:
    """Until everything that was launched is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _is_ours(name: str) -> bool:
    return name.startswith("superscope")


def equal_training(
    shape: Shape, names: list[str], marks: list[int], n_seeds: int
) -> list[dict[str, Any]]:
    """Mean FVU and dead fraction on held-out rows after each number of steps; rows never repeat.

    After the first mark only what the claim is about goes on: sae-lens and ours.
    """
    held_out = activations(shape, 8192, 99)[0]
    found: list[dict[str, Any]] = []
    contenders: dict[str, list[Contender]] = {}
    done = 0
    for mark in sorted(marks):
        while done < mark:
            rows = activations(shape, shape.batch * STEPS_PER_ROUND, 100 + done)
            mean = rows[0].mean(0)
            for name in names:
                make = makers(1)[name]
                if name not in contenders:
                    contenders[name] = [make(shape, LR, mean, seed) for seed in range(n_seeds)]
                for contender in contenders[name]:
                    contender.train(rows, shape.batch)
            done += STEPS_PER_ROUND
        results = {name: [judged(c, shape, held_out) for c in contenders[name]] for name in names}
        found.append(
            {
                "label": shape.label,
                "n_steps": done,
                "n_seeds": n_seeds,
                "contenders": {
                    name: {
                        "fvu": statistics.fmean(r.fvu for r in seeds),
                        "fvu_of_seeds": [r.fvu for r in seeds],
                        "dead_fraction": statistics.fmean(r.dead_fraction for r in seeds),
                    }
                    for name, seeds in results.items()
                },
            }
        )
        print(f"{done} equal steps: done", file=sys.stderr, flush=True)
        names = [name for name in names if name in CLAIM]
    return found


def peak_memory(key: str, name: str) -> float:
    """Mebibytes that one contender adds to a process which holds its libraries and the rows."""
    command = [sys.executable, __file__, "--memory-of", name, "--shapes", key]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(done.stdout.split()[-1])


def report_memory(key: str, name: str) -> None:
    """Body of `--memory-of`. A tiny SAE first, so that libraries and compiled code do not count."""
    shape = SHAPES[key]
    tiny = Shape(8, 16, 2, 32)
    rows = activations(tiny, 64, 0)
    makers(1)[name](tiny, LR, rows[0].mean(0), 0).train(rows, tiny.batch)
    rows = activations(Shape(shape.d_in, 16, 2, 1), shape.batch * 2, 0) * shape.n_hook_points
    Path("/proc/self/clear_refs").write_text("5")  # forgets the peak of the imports
    before = _peak_mib()
    makers(1)[name](shape, LR, rows[0].mean(0), 0).train(rows, shape.batch)
    print(_peak_mib() - before)


def _peak_mib() -> float:
    """Peak resident memory of this program. (`getrusage` also counts that of its parent.)"""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) / 1024
    raise SystemExit("peak memory is read from /proc; give --no-memory here")


def markdown(table: dict[str, Any]) -> str:
    """The table as README shows it."""
    clock = table["clock"]
    lines = [
        f"`{table['command']}`, {table['cores']} core(s) of {table['cpu']}, "
        f"{'' if table['device'] == 'cpu' else table['device'] + ', '}"
        f"torch {table['torch']}, load average {table['load_average'][0]:.1f} at the start"
        + (f". {table['note']}" if table["note"] else "."),
        "",
    ]
    if table["cores"] > 1:
        lines += [
            "Every peer's time is the best of those with as many torch threads as `threads` says; "
            "in brackets what the others gave, tokens/s.",
            "",
        ]
    for result in table["shapes"]:
        rows = result["contenders"]
        base = {n: r[f"{clock}_us_per_token"] for n, r in rows.items()}
        lines += [
            f"**{result['label']}**, {next(iter(rows.values()))['n_steps']} steps",
            "",
            f"| | threads | tokens/s ({clock}) | against sae-lens | against sparsify | FVU "
            "| peak MiB |",
            "|---|---|---|---|---|---|---|",
        ]
        for name, row in rows.items():
            ratios = [
                f"{base[peer] / base[name]:.1f}x" if peer in base else "-"
                for peer in ("sae-lens", "sparsify")
            ]
            memory = f"{row['peak_mib']:,.0f}" if "peak_mib" in row else "-"
            lines.append(
                f"| {name} | {_threads(name, row, table['cores'], clock)} "
                f"| {1e6 / base[name]:,.0f} | {ratios[0]} | {ratios[1]} "
                f"| {row['fvu']:.4f} | {memory} |"
            )
        lines += ["", *_targets(result, base), ""]
        for dtype, parts in result.get("profile", {}).items():
            whole = parts["whole step"]
            shares = ", ".join(
                f"{part} {value:.1f}" for part, value in parts.items() if value >= 0.01 * whole
            )
            least = ", ".join(f"{p} {v:.1f}" for p, v in result["floor"][dtype].items())
            lines += [f"{dtype}, ms of one core: {shares}. Floor: {least}.", ""]
    for result in table["equal_training"]:
        lines += _equal(result)
    if table["left_out"]:
        lines.append(f"Not installed, left out: {', '.join(table['left_out'])}.")
    return "\n".join(lines) + "\n"


def _threads(name: str, row: dict[str, Any], cores: int, clock: str) -> str:
    """The number of threads a time was made with, and the tokens/s with the others it was tried."""
    if _is_ours(name):
        return f"{min(cores, row.get('n_saes', 1))}, one per SAE" if cores > 1 else "1"
    others = [
        f"{n}: {1e6 / times[f'{clock}_us_per_token']:,.0f}"
        for n, times in row.get("by_threads", {}).items()
        if int(n) != row["threads"]
    ]
    return f"{row.get('threads', cores)}" + (f" ({', '.join(others)})" if others else "")


def _equal(result: dict[str, Any]) -> list[str]:
    """What equal training gave, and whether ours is as good as sae-lens's."""
    rows = result["contenders"]
    lines = [
        f"**Equal training**, {result['n_steps']} steps on fresh rows, {result['label']}, "
        f"learning rate {LR:g}, mean of {result['n_seeds']} seeds, 8,192 held-out rows",
        "",
        "| | FVU | over sae-lens's | latents that never fire |",
        "|---|---|---|---|",
    ]
    peer = rows.get("sae-lens")
    for name, row in rows.items():
        ratio = f"{row['fvu'] / peer['fvu']:.3f}" if peer else "-"
        lines.append(f"| {name} | {row['fvu']:.4f} | {ratio} | {row['dead_fraction']:.2%} |")
    lines.append("")
    for name, row in rows.items():
        if peer and _is_ours(name):
            ratio = row["fvu"] / peer["fvu"]
            fvu = "held" if ratio <= MOST_FVU else f"missed by {ratio / MOST_FVU - 1:.1%}"
            more = row["dead_fraction"] - peer["dead_fraction"]
            dead = "held" if more <= 0 else f"missed by {more:.2%}"
            lines.append(
                f"{name}: FVU at most {MOST_FVU} of sae-lens's {fvu}, no more dead {dead}."
            )
    return [*lines, ""]


def _targets(result: dict[str, Any], base: dict[str, float]) -> list[str]:
    """Target by target: reached, or missed by how much, with the better of our two precisions."""
    said = []
    for peer, target in TARGETS.get(result["key"], {}).items():
        if peer in base:
            ratio = base[peer] / min(t for n, t in base.items() if _is_ours(n))
            verdict = "reached" if ratio >= target else f"missed by {1 - ratio / target:.0%}"
            said.append(f"Target {target}x {peer}: {ratio:.1f}x, {verdict}.")
    return said


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shapes", nargs="*", choices=SHAPES, default=list(ON_A_CPU))
    parser.add_argument("--device", type=torch.device, default=CPU, help="cpu or cuda")
    parser.add_argument("--cores", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--threads",
        type=int,
        nargs="+",
        help="numbers of torch threads to time each peer with; its best counts (1 and --cores)",
    )
    parser.add_argument(
        "--equal-steps",
        type=int,
        nargs="*",
        help="none: no such comparison (60 400 on one core, none on more)",
    )
    parser.add_argument(
        "--memory", action=argparse.BooleanOptionalAction, help="peak of each (on one core only)"
    )
    parser.add_argument("--note", default="", help="said in the table, such as what else ran")
    parser.add_argument("--out", type=Path, help="folder for table.json and table.md")
    parser.add_argument("--memory-of", help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.cores)
    if options.memory_of:
        report_memory(options.shapes[0], options.memory_of)
        return
    device = options.device
    on_one = options.cores == 1 and device.type == "cpu"
    threads = sorted(set(options.threads or (1, options.cores)))
    equal_steps = options.equal_steps
    if equal_steps is None:
        equal_steps = [60, 400] if on_one else []
    with_memory = on_one if options.memory is None else options.memory
    names = [name for name in makers(1) if installed(name)]
    table: dict[str, Any] = {
        "command": " ".join(["python", *sys.argv]),
        "cores": options.cores,
        "threads": threads,
        "clock": clock_of(options.cores, device),
        "cpu": _cpu(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "torch": torch.__version__,
        "versions": {name: installed(name) for name in names},
        "left_out": [name for name in makers(1) if name not in names],
        "load_average": os.getloadavg(),
        "note": options.note,
        "finished": False,
        "shapes": [],
        "equal_training": [],
    }
    table = held(table, options.out)
    for key in options.shapes:
        if key in [result["key"] for result in table["shapes"]]:
            continue
        shape = SHAPES[key]
        many = shape.n_saes > 1
        # The other two have no trainer of many SAEs.
        runners = [n for n in names if not many or _is_ours(n) or n.startswith("sae-lens")]
        result: dict[str, Any] = {"key": key, "label": shape.label}
        result["contenders"] = race(shape, runners, options.cores, options.rounds, threads)
        if with_memory:
            for name in runners:
                result["contenders"][name]["peak_mib"] = peak_memory(key, name)
        if not many and on_one:
            rows = activations(shape, 2 * shape.batch, 1)[0]
            dtypes = ("float32", "bfloat16")
            result["profile"] = {dtype: profile(shape, rows, dtype, 3) for dtype in dtypes}
            result["floor"] = {dtype: floor(shape, dtype) for dtype in dtypes}
        table["shapes"].append(result)
        write(table, options.out)
        print(f"{shape.label}: done", file=sys.stderr, flush=True)
    if equal_steps:
        table["equal_training"] = equal_training(SHAPES["128"], names, equal_steps, n_seeds=3)
    table["finished"] = True
    write(table, options.out)
    print(markdown(table))


def held(fresh: dict[str, Any], out: Path | None) -> dict[str, Any]:
    """The table that an interrupted run of the same line left, or `fresh`."""
    if out and (out / "table.json").exists():
        table = json.loads((out / "table.json").read_text())
        same = ("command", "cpu", "device", "torch", "versions")
        if not table.get("finished", True) and all(table.get(key) == fresh[key] for key in same):
            return table
    return fresh


def write(table: dict[str, Any], out: Path | None) -> None:
    """table.json and table.md, each whole or not there."""
    if out:
        out.mkdir(parents=True, exist_ok=True)
        for name, text in (
            ("table.json", json.dumps(table, indent=1) + "\n"),
            ("table.md", markdown(table)),
        ):
            partial = out / f".{name}.partial"
            partial.write_text(text)
            os.replace(partial, out / name)


def _cpu() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines() if os.name == "posix" else []:
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor() or "an unnamed CPU"


if __name__ == "__main__":
    main()
