"""Matching at scale: five seeds of 32,768 latents at d 768, in minutes and bounded memory.

    python benchmarks/matching.py --threads 2 [--out results/matching]

Planted: every seed holds the same features in an order of its own, a little turned, and as many
directions of its own as are left; features fire on the same tokens in every seed. So what at least
two seeds must find is known, and the count must be that. Before it, dictionaries small enough for
it are matched both as `saes.matching` does and as one dense assignment of all latents, which must
agree pair by pair. One run of each, in a process of its own: its peak memory is of interest.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment

from interp.machine import cpu_name, peak_memory_bytes
from saes.edges import unit_rows
from saes.latent_set import LatentSet
from saes.matching import match_pair, null_threshold, reproducible
from saes.sae import SparseActs

SHARED = 0.6
"""Share of each dictionary that every seed holds."""
NOISE = 0.02
"""Standard deviation added to each coordinate of a unit direction, in units of 1 / sqrt(d)."""
K = 32
SMALL_D = 12
"""Few dimensions, so that directions meet by chance and matchings have to choose."""
TARGET_MINUTES = 10.0
TARGET_GB = 4.0


def planted(
    n_latents: int, d: int, n_seeds: int, n_tokens: int, *, generator: torch.Generator
) -> tuple[list[LatentSet], int]:
    """Dictionaries of several seeds, and the number of features that all of them hold."""
    n_shared = int(SHARED * n_latents)
    directions = unit_rows(torch.randn(n_shared, d, generator=generator))
    firing = torch.randint(n_shared, (n_tokens, K), generator=generator)
    values = 0.5 + torch.rand(firing.shape, generator=generator)
    seeds = []
    for _ in range(n_seeds):
        order = torch.randperm(n_latents, generator=generator)
        W = unit_rows(torch.randn(n_latents, d, generator=generator))
        turned = directions + NOISE * d**-0.5 * torch.randn(n_shared, d, generator=generator)
        W[order[:n_shared]] = unit_rows(turned)
        acts = SparseActs(order[firing], values)
        seeds.append(LatentSet(W, acts, np.ones(n_latents, dtype=bool)))
    return seeds, n_shared


def dense_pairs(a: LatentSet, b: LatentSet, threshold: float) -> set[tuple[int, int]]:
    """The heaviest matching on edges above the threshold, from the whole matrix of cosines.

    Activations of planted pairs agree exactly and no others do, so cosines decide alone here.
    """
    cosines = (unit_rows(a.W_dec) @ unit_rows(b.W_dec).T).double().numpy()
    weights = np.where(cosines > threshold, cosines, 0.0)
    rows, columns = linear_sum_assignment(weights, maximize=True)
    kept = weights[rows, columns] > 0
    return set(zip(rows[kept].tolist(), columns[kept].tolist(), strict=True))


def agreement(n_latents: int, d: int) -> bool:
    """Whether both ways give the same pairs where the dense one can be afforded."""
    generator = torch.Generator().manual_seed(1)
    (a, b), _ = planted(n_latents, d, 2, 20 * n_latents, generator=generator)
    ours = match_pair(
        a.W_dec, b.W_dec, a.acts, b.acts, a.live, b.live, threshold=0.7, min_correlation=-1.0
    )
    return {tuple(pair) for pair in ours.pairs.tolist()} == dense_pairs(a, b, 0.7)


def measure(n_latents: int, d: int, n_seeds: int, n_tokens: int) -> dict[str, Any]:
    """Seconds of the threshold and of the count, peak memory, and the count beside the truth."""
    generator = torch.Generator().manual_seed(0)
    seeds, n_shared = planted(n_latents, d, n_seeds, n_tokens, generator=generator)
    before = peak_memory_bytes()
    x = torch.randn(16_384, d, generator=generator)
    started = time.perf_counter()
    threshold = null_threshold(x, n_latents, n_latents, generator=generator)
    null_seconds = time.perf_counter() - started
    print(f"threshold {threshold:.3f}, {null_seconds:.0f} s", file=sys.stderr, flush=True)
    started = time.perf_counter()
    count = reproducible(seeds, threshold)
    return {
        "n_latents": n_latents,
        "d": d,
        "n_seeds": n_seeds,
        "n_tokens": n_tokens,
        "threshold": threshold,
        "null_seconds": null_seconds,
        "seconds": time.perf_counter() - started,
        "peak_bytes": peak_memory_bytes(),
        "peak_bytes_of_inputs": before,
        "planted": n_shared,
        "counted": count.s_ge[2],
    }


def markdown(table: dict[str, Any]) -> str:
    """The figures, and whether what was promised holds."""
    found = table["large"]
    n, n_seeds = found["n_latents"], found["n_seeds"]
    minutes = (found["seconds"] + found["null_seconds"]) / 60
    gigabytes = found["peak_bytes"] / 1e9

    def told(holds: bool) -> str:
        return "reached" if holds else "missed"

    return (
        "\n".join(
            [
                f"# Matching {n_seeds} seeds of {n:,} latents at d {found['d']}",
                "",
                f"`{table['command']}`, {table['threads']} threads of {table['cpu']}, torch "
                f"{table['torch']}; load average {table['load_average'][0]:.1f} when it began.",
                "",
                f"- Null threshold {found['threshold']:.3f} in {found['null_seconds']:.0f} s, all "
                f"{n_seeds * (n_seeds - 1) // 2} pairs of seeds and their classes in "
                f"{found['seconds']:.0f} s on {found['n_tokens']:,} held-out tokens.",
                f"- In minutes (target {TARGET_MINUTES:g}): {minutes:.1f}, "
                f"{told(minutes <= TARGET_MINUTES)}.",
                f"- In bounded memory (target {TARGET_GB:g} GB): {gigabytes:.2f} GB at its peak, "
                f"of which {found['peak_bytes_of_inputs'] / 1e9:.2f} GB before matching, "
                f"{told(gigabytes <= TARGET_GB)}. One matrix of cosines of two seeds would take "
                f"{n**2 * 4 / 1e9:.2f} GB.",
                f"- Counted {found['counted']:,}, planted {found['planted']:,}: "
                f"{told(found['counted'] == found['planted'])}.",
                f"- The same pairs as a dense assignment of {table['small']:,} latents: "
                f"{told(table['agrees'])}.",
            ]
        )
        + "\n"
    )


def main() -> None:
    import os

    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--latents", type=int, default=32_768)
    parser.add_argument("--dimensions", type=int, default=768)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=131_072)
    parser.add_argument("--small", type=int, default=1_024, help="latents of the dense comparison")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, help="folder for table.json and table.md")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    table = {
        "command": " ".join(["python", *sys.argv]),
        "threads": options.threads,
        "cpu": cpu_name(),
        "torch": torch.__version__,
        "load_average": os.getloadavg(),
        "small": options.small,
        "agrees": agreement(options.small, SMALL_D),
        "large": measure(options.latents, options.dimensions, options.seeds, options.tokens),
    }
    text = markdown(table)
    if options.out is not None:
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / "table.json").write_text(json.dumps(table, indent=1) + "\n")
        (options.out / "table.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
