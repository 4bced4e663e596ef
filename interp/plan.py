"""What a study or a capture will cost before it runs: operations, bytes, memory, seconds.

Operations and bytes are counted. Seconds are measured here and now, on a few blocks through each
model and a few steps of each size of SAE, and scaled to the whole. A device that is not here has
none.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn

import saes
from interp.capture import run_blocks
from interp.config import StudyConfig
from interp.hook_points import HookPoint, attention, blocks
from interp.machine import peak_memory_bytes
from interp.models import Model, load
from interp.recording import Recording, nearest_folder, record
from interp.run import TRAINED, TWIN
from interp.spots import (
    Spot,
    candidate_ks,
    largest_k,
    longest_budget,
    pilot_ks,
    require_hook_points,
    sae_tokens,
    spots,
)
from interp.tokens import MAX_BLOCK_TOKENS
from saes.config import MAX_DEAD_AFTER_TOKENS

PROBE_SECONDS = 1.0
"""Each measurement grows until it takes about so long."""

_REPORT_BYTES = 1_600_000
"""Report, figures and tables of a study of a few models."""
_TRAINING_BYTES_PER_WEIGHT = 12
"""In a checkpoint: the weight and Adam's two moments."""
_UNIT_BYTES = 12_000
"""A spot's rows and records."""
_MEMORY_BYTES_PER_WEIGHT = 20
"""In training: the weight, Adam's two moments, the gradient, the copy that is handed over."""
_MEMORY_BYTES_PER_TOKEN = 26
"""Ids, documents, bytes and a mask, and as much again while they are put together."""
_HALF_RUN = 0.1
"""What the run on half the tokens adds: it branches off the main one before its decay."""
_MEASURING = 1.25
"""Matching, nulls and intervals on held-out text, as a share of everything before them. A CPU does
them, and beside a GPU their share is not known: there they are left out."""


@dataclass(frozen=True)
class Cost:
    """Of one part of the work."""

    what: str
    flops: float
    """Multiplications and additions in matrix products; two per weight and token."""
    n_bytes: int
    """On disk, when it is finished."""
    seconds: float | None
    """None where nothing was there to measure them on."""
    scratch_bytes: int = 0
    """On disk beside these while it runs."""
    memory_bytes: int = 0
    """At its peak, of the process that does it."""
    n_units: int = 0
    """Pieces that are done, recorded and redone each on its own."""
    gpu_bytes: int = 0
    """At its peak, of the GPU's memory, without what stacks of SAEs compute in: up to a quarter of
    the card."""
    device: str = "cpu"
    reason: str | None = None
    """Why seconds are not there, or not all of them."""


def plan_capture(recording: Recording, out: Path) -> Cost:
    """Of a capture to disk. Writes a small part of it beside `out`, and removes it again."""
    origin = recording.origin
    last = recording.points[-1]
    per_token = forward_flops(recording.model, last, origin.n_ctx, with_loss=origin.with_loss)
    parent = nearest_folder(out)

    def run(n_blocks: int) -> None:
        part = recording.tokens[:n_blocks]
        small = replace(
            recording,
            tokens=part,
            origin=origin.model_copy(update={"n_blocks": len(part), "n_tokens": part.n_tokens}),
        )
        with tempfile.TemporaryDirectory(dir=parent, prefix=".superscope-plan-") as folder:
            record(small, Path(folder) / "probe")

    n_blocks, seconds = _probe(run, min(origin.n_blocks, origin.batch_size), origin.n_blocks)
    return Cost(
        what=origin.model,
        flops=per_token * recording.tokens.ids.numel(),
        n_bytes=recording.n_bytes,
        seconds=seconds * origin.n_blocks / n_blocks,
        device=origin.device,
    )


def plan_study(config: StudyConfig) -> list[Cost]:
    """Of each model, twin and loss-only model; the last entry is the report.

    Raises UserError for a model that does not load or lacks the study's hook points.
    """
    config = config.resolved()
    torch.set_num_threads(config.threads)
    costs = []
    measured = _is_here(config.device)
    for name in (*config.models, *config.loss_only_models):
        model = load(name, device=config.device if measured else "cpu")
        if name in config.models:
            require_hook_points(config, model)
            speed: dict[tuple[int, str], float] = {}
            costs.append(_model_cost(config, model, TRAINED, speed))
            controls = [
                what
                for among, what in (
                    (config.twins, "untrained twin"),
                    (config.shuffled, "shuffled tokens"),
                    (config.gaussian, "matched Gaussian"),
                )
                if name in among
            ]
            if controls:
                cost = _model_cost(config, model, TWIN, speed)
                costs += [replace(cost, what=f"{name}, {what}") for what in controls]
        else:
            costs.append(_loss_cost(config, model))
        del model  # one at a time: the next may need the memory
    # What this process has taken by now: libraries, the largest model, steps of every size.
    base = peak_memory_bytes()
    reason = _reason(config.device)
    costs = [
        replace(c, memory_bytes=base + c.memory_bytes, device=config.device, reason=reason)
        for c in costs
    ]
    return [*costs, Cost("report", 0.0, _REPORT_BYTES, 10.0, memory_bytes=base, n_units=1)]


def forward_flops(model: Model, last: HookPoint, n_ctx: int, *, with_loss: bool) -> float:
    """Per token, up to the hook point `last`, or through all layers and the head.

    What OPT-350m projects its embedding with is left out: less than 1%.
    """
    layers = blocks(model.hf)

    def through(part: nn.Module) -> int:
        weights = sum(p.numel() for p in part.parameters() if p.ndim == 2)
        # Queries with keys, weights with values, over the whole context: 2 products of 2 * d each.
        return 2 * weights + 4 * n_ctx * model.d_model

    if with_loss:
        return float(len(layers) * through(layers[0]) + 2 * model.unembedding.numel())
    if last.kind == "resid_pre":
        begun = 0
    else:
        in_attention = last.kind in ("attn_out", "resid_mid")
        begun = through(attention(layers[0]) if in_attention else layers[0])
    return float(last.layer * through(layers[0]) + begun)


def _model_cost(
    config: StudyConfig, model: Model, control: str, speed: dict[tuple[int, str], float]
) -> Cost:
    """`speed`: seconds per token and SAE by d_sae and architecture, measured where not in it."""
    groups = spots(config, model.d_model, model.n_layers, control)
    n_ctx = min(model.n_ctx, MAX_BLOCK_TOKENS)
    last = HookPoint(config.hook_kind, max(spot.layer for spot in groups))
    contextual = {spot.layer for spot in groups if spot.about == "contextual"}
    longest = max(sae_tokens(config, spot) for spot in groups)
    core_tokens = (
        longest
        + config.sae_tokens * config.confirm_k
        + config.pilot_tokens
        + config.means_tokens * bool(contextual)
        + len(groups) * config.held_out_tokens
    )
    # Of the splice: the mean of the ablation, and the loss clean, rebuilt and ablated.
    loss_tokens = config.loss_tokens + len(groups) * 4 * config.splice_tokens
    core = forward_flops(model, last, n_ctx, with_loss=False)
    whole = forward_flops(model, last, n_ctx, with_loss=True)
    flops = core_tokens * core + loss_tokens * whole
    measured = _is_here(config.device)
    seconds = 0.0
    if measured:
        seconds += core_tokens * _forward_seconds(model, last, n_ctx, with_loss=False)
        seconds += loss_tokens * _forward_seconds(model, last, n_ctx, with_loss=True)
    n_bytes = scratch = training = measuring = 0
    for spot in groups:
        d_sae = spot.d_sae
        kind = (d_sae, spot.architecture)
        if kind not in speed and measured:
            speed[kind] = _sae_seconds(model.d_model, spot, config)
        tokens = _sae_tokens(config, spot, model.d_model)
        weights = 2 * model.d_model * d_sae + model.d_model + d_sae
        weights += d_sae * (spot.architecture != "topk")  # its thresholds
        flops += tokens * (2 * model.d_model * d_sae + 8 * (model.d_model // 8) * model.d_model)
        seconds += tokens * speed.get(kind, 0.0)
        n_runs = config.n_seeds * (1 + config.check_convergence)
        n_bytes += n_runs * (4 * weights + 1_400) + _UNIT_BYTES
        scratch += n_runs * _TRAINING_BYTES_PER_WEIGHT * weights
        training += n_runs * _MEMORY_BYTES_PER_WEIGHT * weights
        codes = config.n_seeds * 12 * largest_k(model.d_model)
        own = config.held_out_tokens * (12 * model.d_model + codes) + 12 * d_sae**2
        measuring = max(measuring, own)
    layers, streams = {s.layer for s in groups}, {s.stream for s in groups}
    copies = len(layers) + 2 * len(streams) + config.threads
    chunk = config.chunk_tokens * 4 * model.d_model * copies
    text = int(1.02 * longest_budget(config)) * _MEMORY_BYTES_PER_TOKEN
    n_bytes += len(contextual) * 4 * model.d_model * (model.d_vocab + n_ctx + 1)
    there = max(training + chunk, measuring)
    n_units = 3 + bool(contextual) + len(groups)
    if config.device == "cpu":
        seconds *= _MEASURING
        return Cost(model.name, flops, n_bytes, seconds, scratch, text + there, n_units)
    # Chunks are captured into the CPU's memory, and what is counted is counted there. A twin is
    # made beside its model.
    captured = config.chunk_tokens * 4 * model.d_model * len(layers)
    weights = _weight_bytes(model)
    gpu_bytes = weights + max(there, weights * (control == TWIN))
    return Cost(
        model.name, flops, n_bytes, seconds if measured else None, scratch,
        text + max(captured, measuring), n_units, gpu_bytes,
    )  # fmt: skip


def _loss_cost(config: StudyConfig, model: Model) -> Cost:
    n_ctx, last = min(model.n_ctx, MAX_BLOCK_TOKENS), HookPoint("resid_post", model.n_layers - 1)
    per_token = forward_flops(model, last, n_ctx, with_loss=True)
    seconds = None
    if _is_here(config.device):
        seconds = config.loss_tokens * _forward_seconds(model, last, n_ctx, with_loss=True)
    memory = config.loss_tokens * _MEMORY_BYTES_PER_TOKEN
    return Cost(
        model.name, config.loss_tokens * per_token, 10_000, seconds, memory_bytes=memory, n_units=1,
        gpu_bytes=0 if config.device == "cpu" else _weight_bytes(model),
    )  # fmt: skip


def _weight_bytes(model: Model) -> int:
    return model.n_params * model.dtype.itemsize


def _is_here(device: str) -> bool:
    """Whether its speed can be measured."""
    return device == "cpu" or torch.cuda.is_available()


def _reason(device: str) -> str | None:
    if device == "cpu":
        return None
    if not _is_here(device):
        return f"not measured, there is no {device} here"
    return "without what the CPU does with held-out text, which nobody has timed beside a GPU"


def _wait(device: str | torch.device) -> None:
    """Until all that was begun there is done: only then has it taken its time."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)


def _sae_tokens(config: StudyConfig, spot: Spot, d_model: int) -> float:
    """Tokens times SAEs at one spot, pilots included."""
    budget = sae_tokens(config, spot)
    found = config.n_seeds * budget * (1 + _HALF_RUN * config.check_convergence)
    if config.confirm_k and spot.headline:
        found += len(candidate_ks(2, d_model)) * config.sae_tokens
    return found + len(pilot_ks(config, d_model)) * config.pilot_tokens * (spot.k_rule == "fvu")


def _forward_seconds(model: Model, last: HookPoint, n_ctx: int, *, with_loss: bool) -> float:
    """Per token."""
    ids = torch.arange(32 * n_ctx).view(32, n_ctx) % model.d_vocab

    def run(n_blocks: int) -> None:
        run_blocks(model, ids[:n_blocks], {last: lambda value: None}, with_loss=with_loss)
        _wait(model.device)

    n_blocks, seconds = _probe(run, 1, len(ids))
    return seconds / (n_blocks * n_ctx)


def _sae_seconds(d_in: int, spot: Spot, config: StudyConfig) -> float:
    """Per token and SAE, trained as many at once as the study does: on a GPU a stack of seeds."""
    n_saes = min(config.n_seeds, config.threads) if config.device == "cpu" else config.n_seeds
    x = torch.randn(16_384, d_in, generator=torch.Generator().manual_seed(0))

    def run(n_rows: int) -> None:
        configs = [
            saes.SAEConfig(
                d_in=d_in,
                d_sae=spot.d_sae,
                k=max(1, d_in // 8),
                architecture=spot.architecture,
                encoder_dtype=config.encoder_dtype,
                n_tokens=n_rows,
                # A run as short as this would call nearly all latents dead, and revive them all.
                dead_after_tokens=MAX_DEAD_AFTER_TOKENS,
                seed=seed,
            )
            for seed in range(n_saes)
        ]
        stream = ({"resid": rows} for rows in x[:n_rows].split(8_192))
        saes.train(stream, configs, workers=config.threads, device=config.device)
        _wait(config.device)

    run(2_048)  # compiles
    n_rows, seconds = _probe(run, 4_096, len(x))
    return seconds / (n_rows * n_saes)


def _probe(run: Callable[[int], None], start: int, most: int) -> tuple[int, float]:
    """(size, seconds) of the run that was fastest for its size, doubled from `start`.

    The fastest: a run that another process interrupts says nothing about the work.
    """
    run(start)  # the first pays for what is loaded or allocated once
    tried: list[tuple[int, float]] = []
    size, spent = start, 0.0
    while not tried or spent < PROBE_SECONDS:
        began = time.perf_counter()
        run(size)
        tried.append((size, time.perf_counter() - began))
        spent += tried[-1][1]
        size = min(2 * size, most)
    return min(tried, key=lambda one: one[1] / one[0])
