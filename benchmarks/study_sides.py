"""One study in a process of its own, timed: what benchmarks/study.py compares.

    python benchmarks/study_sides.py CONFIG.yaml OUT [--trainer sae-lens] [--ray-cpus N]

Prints one line of JSON. With `--trainer sae-lens` everything is as it is but the training of SAEs,
which sae-lens's MultiSAETrainer does on the same activations: the same study, assembled from the
parts that there are.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import saes
from interp import durable, executor, study
from interp.config import read_config
from interp.measure import Measurement
from interp.spot_training import SpotTraining
from saes.config import SAEConfig
from saes.sae import SAE


def peer_train(
    stream: Iterable[Mapping[str, Tensor]], configs: Sequence[SAEConfig], **_: Any
) -> list[SAE]:
    """`saes.train` by sae-lens: its trainer for many SAEs, with our learning rate and schedule.

    The library's defaults otherwise; the decoder's bias begins at the mean, as ours does.
    """
    from sae_lens import TopKTrainingSAE, TopKTrainingSAEConfig
    from sae_lens.config import SAETrainerConfig
    from sae_lens.training.multi_sae_trainer import MultiSAETrainer

    batches = _batches(stream, configs[0].batch_size, configs[0].n_tokens)
    first = next(batches)
    # One rate for all is what it takes; each gets a trainer of its own below.
    by_rate: dict[float, list[int]] = {}
    for number, config in enumerate(configs):
        by_rate.setdefault(config.peak_lr, []).append(number)
    peers: dict[int, Any] = {}
    trainers = []
    n_steps = -(-configs[0].n_tokens // configs[0].batch_size)
    for rate, numbers in by_rate.items():
        group, hooks = {}, {}
        for number in numbers:
            config = configs[number]
            torch.manual_seed(config.seed)
            sae = TopKTrainingSAE(
                TopKTrainingSAEConfig(d_in=config.d_in, d_sae=config.d_sae, k=config.k)
            )
            sae.b_dec.data = first[config.hook_point].mean(0)
            group[str(number)], hooks[str(number)] = sae, config.hook_point
            peers[number] = sae
        settings = SAETrainerConfig(
            total_training_samples=configs[0].n_tokens,
            train_batch_size_samples=configs[0].batch_size,
            lr=rate,
            lr_end=rate / 1000,
            lr_warm_up_steps=int(configs[0].lr_warmup_fraction * n_steps),
            lr_decay_steps=int(configs[0].lr_decay_fraction * n_steps),
        )
        trainers.append((MultiSAETrainer(settings, group, hooks, iter(())).trainers, hooks))
    batch: dict[str, Tensor] | None = first
    while batch is not None:
        for group_of, hooks in trainers:
            for name, trainer in group_of.items():
                trainer.step(batch[hooks[name]])
                trainer.n_training_steps += 1
        batch = next(batches, None)
    return [_ours(peers[number], config) for number, config in enumerate(configs)]


def _batches(
    stream: Iterable[Mapping[str, Tensor]], size: int, n_tokens: int
) -> Iterator[dict[str, Tensor]]:
    """Shuffled within chunks, which is what `saes.train` does."""
    generator = torch.Generator().manual_seed(0)
    done = 0
    for chunk in stream:
        n = min(len(rows) for rows in chunk.values())
        for part in torch.randperm(n, generator=generator).split(size):
            if done >= n_tokens:
                return
            done += len(part)
            yield {name: rows[part] for name, rows in chunk.items()}


def _ours(sae: Any, config: SAEConfig) -> SAE:
    with tempfile.TemporaryDirectory() as folder:
        sae.save_inference_model(folder)
        found = saes.load(folder)
    return SAE(found.W_enc, found.W_dec, found.b_enc, found.b_dec, k=config.k, cfg=config)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--trainer", choices=("superscope", "sae-lens"), default="superscope")
    parser.add_argument("--ray-cpus", type=int, help="start Ray with so many, each for one unit")
    args = parser.parse_args()
    if args.ray_cpus:
        import ray

        ray.init("local", num_cpus=args.ray_cpus, include_dashboard=False, log_to_driver=False)
    config = read_config(args.config)
    if args.trainer == "sae-lens":
        import sae_lens  # noqa: F401  # seconds that are no part of the work

        saes.train = peer_train  # type: ignore[attr-defined, assignment]
    inside, loop, training = [0.0], [0.0], [0.0]
    _clock(Measurement, "run", inside)
    _clock(SpotTraining, "_train", training)
    run_units = executor.run_units

    def timed(*given: Any) -> Any:
        started = time.perf_counter()
        found = run_units(*given)
        loop[0] += time.perf_counter() - started
        return found

    study.run_units = timed  # type: ignore[attr-defined]
    wall, cpu = time.perf_counter(), _cpu_seconds()
    run = study.run_study(config, args.out, quiet=True)
    wall, cpu = time.perf_counter() - wall, _cpu_seconds() - cpu
    main_fvu = run.results.query("quantity == 'fvu' and role == 'main' and control == 'trained'")
    manifest = json.loads((run.path / "manifest.json").read_text())
    n_units = len(manifest["units"])
    told: dict[str, Any] = {
        "wall_seconds": wall,
        "peak_memory_bytes": manifest["peak_memory_bytes"],  # of workers too
        "results_sha256": durable.sha256(run.path / "results.parquet"),
        "fvu": float(main_fvu.value.mean()),
        "k": float(main_fvu.k.mean()),
        "n_saes": len(main_fvu),
        "n_units": n_units,
        "failures": len(run.failures),
    }
    if config.executor == "local":
        told |= {
            "cpu_seconds": cpu,
            "training_seconds": training[0],  # with the capture that feeds it
            "overhead_ms_per_unit": 1e3 * (loop[0] - inside[0]) / n_units,
        }
    json.dump(told, sys.stdout)


def _clock(owner: Any, name: str, seconds: list[float]) -> None:
    original = getattr(owner, name)

    def timed(*given: Any, **named: Any) -> Any:
        started = time.perf_counter()
        found = original(*given, **named)
        seconds[0] += time.perf_counter() - started
        return found

    setattr(owner, name, timed)


def _cpu_seconds() -> float:
    """Of this process and of the children that have ended."""
    both = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(used.ru_utime + used.ru_stime for used in both)


if __name__ == "__main__":
    main()
