"""The gradient of the AuxK term: picked latents alone, whole matrices, and whole matrices in torch.

    OMP_NUM_THREADS=1 python benchmarks/auxk.py [--out results/auxk]

For SAEs of several widths, at several numbers of dead latents, one batch of 1,024 tokens and half
the width of them picked per token, as is the default. Three sides in turn, in one process, on one
thread: products of what is picked, products of whole matrices after compiled selection, and the
same after `torch.topk`. CPU time, medians over rounds. All three gradients must agree to 1e-5 of
the largest entry. The last column is what `saes.auxk` takes.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch.nn import functional

from interp.machine import cpu_name
from saes import auxk, sparse
from saes.adam import Weights
from saes.config import SAEConfig

SHAPES = (
    (32, 40), (32, 120), (32, 400), (64, 70), (64, 130), (64, 500), (128, 200), (128, 1000),
    (256, 1000), (256, 3000), (768, 4000), (768, 12000),
)  # fmt: skip
"""d_in and dead latents."""
BATCH = 1024
TOLERANCE = 1e-5
SIDES = {"picked": (0.0, True), "whole": (float("inf"), True), "torch": (float("inf"), False)}
"""Side -> what `SPARSE_PER_DIM` is set to, and whether kernels are there."""


def measure(d_in: int, n_dead: int, rounds: int) -> dict[str, Any]:
    """Medians of CPU milliseconds of every side, and how far their gradients lie apart."""
    g = torch.Generator().manual_seed(0)
    config = SAEConfig(d_in=d_in, d_sae=n_dead, k=1, n_tokens=BATCH, batch_size=BATCH)
    W = functional.normalize(torch.randn(n_dead, d_in, generator=g), dim=1)
    bias = 0.1 * torch.randn(n_dead, generator=g)
    weights = Weights(W.clone(), W, bias, torch.zeros(d_in))
    x, grad_out = torch.randn(2, BATCH, d_in, generator=g)
    dead = torch.arange(n_dead)
    took: dict[str, list[float]] = {name: [] for name in SIDES}
    found = {}
    for round_ in range(rounds + 1):
        for name, (limit, kernels) in SIDES.items():
            grads = Weights(*map(torch.zeros_like, weights))
            with (
                mock.patch.object(auxk, "SPARSE_PER_DIM", limit),
                mock.patch.object(sparse, "kernels", sparse.kernels if kernels else None),
            ):
                began = time.thread_time()
                auxk.add_auxk(grads, weights, config, x, grad_out, dead)
                if round_:  # the first compiles
                    took[name].append(1e3 * (time.thread_time() - began))
            found[name] = grads
    apart = max(
        float((a - b).abs().max() / b.abs().max().clamp_min(1e-30))
        for name in ("picked", "whole")
        for a, b in zip(found[name][:3], found["torch"][:3], strict=True)
    )
    chosen = n_dead >= auxk.SPARSE_PER_DIM * config.n_aux * d_in
    return {
        "d_in": d_in, "n_dead": n_dead, "n_aux": config.n_aux, "apart": apart,
        "taken": "picked" if chosen else "whole",
        **{name: statistics.median(times) for name, times in took.items()},
    }  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    rows = [measure(d_in, n_dead, args.rounds) for d_in, n_dead in SHAPES]
    lines = [
        "# The gradient of the AuxK term on one batch of 1,024 tokens",
        "",
        f"`OMP_NUM_THREADS=1 python benchmarks/auxk.py --rounds {args.rounds}`, one thread of "
        f"{cpu_name()}, torch {torch.__version__}, CPU ms, medians of {args.rounds} interleaved "
        "rounds.",
        "",
        "| d_in | dead | picked per token | products of what is picked | of whole matrices | "
        "with torch.topk | taken | times faster than with torch.topk |",
        "|---|---|---|---|---|---|---|---|",
        *(
            f"| {r['d_in']} | {r['n_dead']:,} | {r['n_aux']} | {r['picked']:.2f} | "
            f"{r['whole']:.2f} | {r['torch']:.2f} | {r['taken']} | "
            f"{r['torch'] / r[r['taken']]:.1f}x |"
            for r in rows
        ),
        "",
        f"The gradients lie at most {max(r['apart'] for r in rows):.1e} apart.",
    ]
    table = "\n".join(lines) + "\n"
    sys.stdout.write(table)
    if args.out is not None:
        args.out.mkdir(parents=True, exist_ok=True)
        (args.out / "table.md").write_text(table)
        (args.out / "table.json").write_text(json.dumps(rows, indent=1) + "\n")
    return 0 if all(r["apart"] < TOLERANCE for r in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
