"""Everything a study measures on one model (or its random twin): activations in, tidy rows out.

Stages, each an atomic artifact that is not redone when found: loss, means of the stream, pilots
that choose k, training of all SAEs on one stream of activations, held-out measurement.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

import saes
from interp.capture import capture
from interp.config import About, StudyConfig
from interp.contextual import ContextualFitter, ContextualMeans
from interp.controls import random_init_twin
from interp.corpora import Corpus
from interp.estimation import one_seed_estimates
from interp.hook_points import HookPoint
from interp.loss import loss
from interp.models import Model, load
from interp.packing import (
    Estimate,
    InsufficientData,
    choose_k,
    converged,
    reproducible_estimate,
)
from interp.progress import Progress
from interp.run import CONTEXTUAL, RunFolder, folder_name, write_json, write_table
from interp.splice import ce_loss_recovered
from interp.tokens import Split, TokenBlocks, tokens
from saes.config import SAEConfig
from saes.latent_set import LatentSet
from saes.metrics import evaluate
from saes.sae import SAE

COUNT_SLACK_PER_DIM = 0.05
"""A smaller change of S_>=2, in features per dimension, is no change (see `converged`)."""
FVU_TOLERANCE = 0.02
"""FVU counts as matched when the main SAEs' mean is within this of the target."""
CHECKPOINT_SECONDS = 120.0


@dataclass(frozen=True)
class Spot:
    """Where one group of SAEs sits: a layer, a stream, a dictionary size."""

    layer: int
    about: About
    d_sae: int

    @property
    def hook_point(self) -> str:
        return str(HookPoint("resid_post", self.layer))

    @property
    def stream(self) -> str:
        """Key of the training stream, and the folder of the SAEs."""
        return self.hook_point + (CONTEXTUAL if self.about == "contextual" else "")


def primary_layer(config: StudyConfig, n_layers: int) -> int:
    """The layer whose output is nearest the configured depth; the lower one of two."""
    return min(
        range(n_layers), key=lambda i: abs((i + 1) / n_layers - config.primary_layer_fraction)
    )


def spots(config: StudyConfig, d_model: int, n_layers: int) -> list[Spot]:
    """All groups of SAEs for a model of this shape, the primary layer first."""
    primary = primary_layer(config, n_layers)
    found = [
        Spot(primary, about, multiple * d_model)
        for about in config.streams
        for multiple in config.d_sae_per_d_model
    ]
    if config.other_layers:
        found += [
            Spot(layer, about, config.d_sae_per_d_model[0] * d_model)
            for layer in range(n_layers)
            if layer != primary
            for about in config.streams
        ]
    return found


def expected_work(config: StudyConfig, d_model: int, n_layers: int) -> float:
    """Relative cost of one model's measurement, for the progress line (about seconds)."""
    total = 0.0
    ks = [k for k in config.pilot_ks if k <= max(1, d_model // 4)]
    for spot in spots(config, d_model, n_layers):
        per_token = 2e-6 + 4e-12 * spot.d_sae * d_model
        main = config.n_seeds * config.sae_tokens * (1.5 if config.check_convergence else 1.0)
        total += per_token * (main + len(ks) * config.pilot_tokens)
    return total + 2e-5 * config.loss_tokens


class Measurement:
    """One model's (or twin's) part of a study."""

    def __init__(
        self,
        config: StudyConfig,
        name: str,
        control: str,
        corpus: Corpus,
        folder: RunFolder,
        progress: Progress,
    ) -> None:
        self.config, self.name, self.control = config, name, control
        self.corpus, self.folder, self.progress = corpus, folder, progress
        self.work = folder.work(name, control)
        self.label = folder_name(name, control)

    @property
    def rows_file(self) -> Path:
        return self.work / "rows.parquet"

    @property
    def facts_file(self) -> Path:
        return self.work / "model.json"

    @property
    def finished(self) -> bool:
        return self.rows_file.exists() and self.facts_file.exists()

    def facts(self) -> dict[str, Any]:
        """Sizes, losses and hashes of the model."""
        return json.loads(self.facts_file.read_text())

    def drop_checkpoints(self) -> None:
        """Training state is only needed until the rows are written."""
        shutil.rmtree(self.work / "training", ignore_errors=True)

    def run(self, *, with_saes: bool) -> None:
        """Do what is not done yet. Afterwards `rows_file` and `facts_file` exist."""
        if self.finished:
            return
        self.work.mkdir(parents=True, exist_ok=True)
        self.progress.at(f"{self.label}: loading")
        model = load(self.name)
        if self.control == "random_init":
            model = random_init_twin(model, self.config.seed)
        rows = self._loss_rows(model)
        if with_saes:
            rows += self._sae_rows(model)
        write_table(self.rows_file, pd.DataFrame(rows))
        self.drop_checkpoints()

    def _row(self, quantity: Any, value: Any, **more: Any) -> dict[str, Any]:
        return {
            "control": self.control,
            "model": self.name,
            "quantity": quantity,
            "value": value,
            **more,
        }

    def _blocks(self, model: Model, n_tokens: int, split: Split) -> TokenBlocks:
        return tokens(self.corpus, model, n_tokens=n_tokens, split=split, seed=self.config.seed)

    # Loss

    def _loss_rows(self, model: Model) -> list[dict[str, Any]]:
        if not self.facts_file.exists():
            self.progress.at(f"{self.label}: loss")
            blocks = self._blocks(model, self.config.loss_tokens, "held_out")
            result = loss(model, blocks)
            measured = {
                "name": self.name,
                "family": self.config.family,
                "arm": self.config.arm,
                "d_model": model.d_model,
                "n_layers": model.n_layers,
                "n_params": model.n_params,
                "train_tokens": model.train_tokens,
                "loss_nats_per_token": result.nats_per_token,
                "loss_nats_per_byte": result.nats_per_byte,
                "loss_ci_nats_per_token": result.ci_nats_per_token,
                "loss_ci_nats_per_byte": result.ci_nats_per_byte,
                "loss_tokens": result.n_tokens,
                "weights_sha256": model.weights_sha256,
                "tokens_sha256": blocks.sha256,
                "warnings": list(blocks.warnings),
            }
            write_json(self.facts_file, measured)
        facts = self.facts()
        rows: list[dict[str, Any]] = []
        for unit in ("token", "byte"):
            interval = facts[f"loss_ci_nats_per_{unit}"] or (None, None)
            rows.append(
                self._row(
                    f"loss_nats_per_{unit}",
                    facts[f"loss_nats_per_{unit}"],
                    ci_low=interval[0],
                    ci_high=interval[1],
                )
            )
        return rows

    # SAEs

    def _sae_rows(self, model: Model) -> list[dict[str, Any]]:
        config = self.config
        groups = spots(config, model.d_model, model.n_layers)
        longest = max(config.sae_tokens, config.means_tokens, config.pilot_tokens)
        train_blocks = self._blocks(model, int(longest * 1.02) + model.n_ctx, "train")
        means = self._means(model, train_blocks, groups)
        pilots = self._pilots(model, train_blocks, means, groups)
        trained = self._train(model, train_blocks, means, pilots)
        rows = []
        held_out = self._blocks(model, config.held_out_tokens, "held_out")
        splice_blocks = self._blocks(model, config.splice_tokens, "held_out")
        for spot in groups:
            self.progress.at(f"{self.label}: measuring {spot.stream}, D {spot.d_sae}")
            held = _held_out(model, held_out, spot, means.get(spot.layer))
            common: dict[str, Any] = {
                "layer": spot.layer,
                "hook_point": spot.hook_point,
                "about": spot.about,
                "d_sae": spot.d_sae,
            }
            rows += [
                self._row(**(r | common)) for r in _pilot_rows(pilots[spot.stream, spot.d_sae])
            ]
            rows += [
                self._row(**(r | common))
                for r in self._spot_rows(spot, held, trained, pilots[spot.stream, spot.d_sae])
            ]
            rows += [
                self._row(**(r | common))
                for r in self._splice_rows(model, splice_blocks, spot, means, trained)
            ]
            if spot.about == "contextual":
                share = means[spot.layer].variance_share
                parts = {"token": share.token, "position": share.position}
                rows += [
                    self._row(f"variance_share_{part}", value, **common)
                    for part, value in parts.items()
                ]
        return rows

    def _means(
        self, model: Model, blocks: TokenBlocks, groups: list[Spot]
    ) -> dict[int, ContextualMeans]:
        """Token and position means per layer, from the first training tokens."""
        layers = sorted({s.layer for s in groups if s.about == "contextual"})
        files = {layer: self.work / f"means.{layer}.safetensors" for layer in layers}
        if not all(f.exists() for f in files.values()):
            self.progress.at(f"{self.label}: token and position means")
            fitters = {
                layer: ContextualFitter(model.d_vocab, blocks.n_ctx, model.d_model)
                for layer in layers
            }
            points = {layer: HookPoint("resid_post", layer) for layer in layers}
            part = blocks[: -(-self.config.means_tokens // blocks.n_ctx)]
            for chunk in capture(
                model, part, list(points.values()), chunk_tokens=self.config.chunk_tokens
            ):
                for layer, fitter in fitters.items():
                    keep = chunk.keep
                    x = chunk.acts[str(points[layer])][keep]
                    fitter.update(x, chunk.token_ids[keep], chunk.positions[keep])
            for layer, fitter in fitters.items():
                fitter.fit().save(files[layer])
        return {layer: ContextualMeans.load(file) for layer, file in files.items()}

    def _stream(
        self,
        model: Model,
        blocks: TokenBlocks,
        means: Mapping[int, ContextualMeans],
        streams: set[str],
        layers: list[int],
    ) -> Iterator[dict[str, Tensor]]:
        """Endless passes over the training blocks; one forward pass feeds every stream."""
        points = [HookPoint("resid_post", layer) for layer in layers]
        while True:
            for chunk in capture(model, blocks, points, chunk_tokens=self.config.chunk_tokens):
                out = {}
                for point in points:
                    x = chunk.acts[str(point)][chunk.keep]
                    if str(point) in streams:
                        out[str(point)] = x
                    if str(point) + CONTEXTUAL in streams:
                        ids, pos = chunk.token_ids[chunk.keep], chunk.positions[chunk.keep]
                        out[str(point) + CONTEXTUAL] = means[point.layer].residual(x, ids, pos)
                yield out

    def _run_training(
        self,
        what: str,
        model: Model,
        blocks: TokenBlocks,
        means: Mapping[int, ContextualMeans],
        configs: list[SAEConfig],
        checkpoint_dir: Path | None,
    ) -> list[SAE]:
        streams = {c.hook_point for c in configs}
        layers = sorted({int(s.split(".")[1]) for s in streams})
        cost = {c.name: 2e-6 + 4e-12 * c.d_sae * c.d_in for c in configs}

        def heartbeat(status: Any) -> None:
            done = sum(s.tokens_done * cost[s.name] for s in status.saes)
            rate = status.sae_tokens_per_second
            self.progress.at(
                f"{self.label}: {what} {len(configs)} SAEs, FVU {status.fvu:.3f}, "
                f"dead {status.dead_fraction:.0%}, {rate / 1e3:,.0f}k tok/s",
                done,
            )

        result = saes.train(
            self._stream(model, blocks, means, streams, layers),
            configs,
            heartbeat=heartbeat,
            checkpoint_dir=checkpoint_dir,
            checkpoint_seconds=CHECKPOINT_SECONDS,
            workers=self.config.threads,
        )
        self.progress.finish(sum(c.n_tokens * cost[c.name] for c in configs))
        return result

    def _pilots(
        self,
        model: Model,
        blocks: TokenBlocks,
        means: Mapping[int, ContextualMeans],
        groups: list[Spot],
    ) -> dict[tuple[str, int], dict[str, Any]]:
        """The k of every group by the FVU rule of SCIENCE section 4, from one-seed pilots."""
        file = self.work / "pilots.json"
        k_max = max(1, model.d_model // 4)
        ks = [k for k in self.config.pilot_ks if k <= k_max] or [k_max]
        if not file.exists():
            configs = [
                self._sae_config(model, s, k, seed=0, n_tokens=self.config.pilot_tokens)
                for s in groups
                for k in ks
            ]
            fitted = self._run_training("pilots,", model, blocks, means, configs, None)
            held_out = self._blocks(model, self.config.held_out_tokens // 2, "held_out")
            found = []
            for number, spot in enumerate(groups):
                held = _held_out(model, held_out, spot, means.get(spot.layer))
                mine = fitted[number * len(ks) : (number + 1) * len(ks)]
                fvus = [evaluate(sae, [held.x]).fvu for sae in mine]
                k, reached = choose_k(ks, fvus, self.config.target_fvu, k_max)
                found.append(
                    {
                        "stream": spot.stream,
                        "d_sae": spot.d_sae,
                        "ks": ks,
                        "fvus": fvus,
                        "k": k,
                        "reached": reached,
                    }
                )
            write_json(file, found)
        return {(p["stream"], p["d_sae"]): p for p in json.loads(file.read_text())}

    def _sae_config(
        self, model: Model, spot: Spot, k: int, *, seed: int, n_tokens: int
    ) -> SAEConfig:
        return SAEConfig(
            d_in=model.d_model,
            d_sae=spot.d_sae,
            k=k,
            hook_point=spot.stream,
            seed=self.config.seed * 1000 + seed,
            n_tokens=n_tokens,
        )

    def _train(
        self,
        model: Model,
        blocks: TokenBlocks,
        means: Mapping[int, ContextualMeans],
        pilots: Mapping[tuple[str, int], dict[str, Any]],
    ) -> dict[tuple[str, int, str], list[SAE]]:
        """Seeds of every group, on all tokens (`main`) and on half of them (`half`)."""
        roles = {"main": self.config.sae_tokens}
        if self.config.check_convergence:
            roles["half"] = self.config.sae_tokens // 2
        plan: list[tuple[tuple[str, int, str], SAEConfig]] = []
        for (stream, d_sae), pilot in pilots.items():
            spot = _spot(stream, d_sae)
            for role, n_tokens in roles.items():
                plan += [
                    (
                        (stream, d_sae, role),
                        self._sae_config(model, spot, pilot["k"], seed=seed, n_tokens=n_tokens),
                    )
                    for seed in range(self.config.n_seeds)
                ]
        configs = [c for _, c in plan]
        trained = self._run_training(
            "training", model, blocks, means, configs, self.work / "training"
        )
        grouped: dict[tuple[str, int, str], list[SAE]] = {}
        for (key, sae_config), sae in zip(plan, trained, strict=True):
            grouped.setdefault(key, []).append(sae)
            if key[2] == "main":
                saes.save(sae, self.folder.sae(self.name, self.control, key[0], sae_config.name))
        return grouped

    # Held-out measurement

    def _spot_rows(
        self,
        spot: Spot,
        held: HeldOut,
        trained: Mapping[tuple[str, int, str], list[SAE]],
        pilot: dict[str, Any],
    ) -> list[dict[str, Any]]:
        config = self.config
        rows: list[dict[str, Any]] = []
        counts, fvus = {}, {}
        for role in ("main", "half"):
            group = trained.get((spot.stream, spot.d_sae, role))
            if group is None:
                continue
            k = group[0].k
            results = [evaluate(sae, [held.x]) for sae in group]
            for seed, r in enumerate(results):
                values = {"fvu": r.fvu, "l0": r.l0, "dead_fraction": r.dead_fraction}
                rows += [
                    {"quantity": q, "value": v, "k": k, "seed": seed, "role": role}
                    for q, v in values.items()
                ]
            fvus[role] = float(np.mean([r.fvu for r in results]))
            acts = [sae.encode(held.x) for sae in group]
            latents = [
                LatentSet.from_acts(sae.W_dec, a) for sae, a in zip(group, acts, strict=True)
            ]
            estimate, details = _count(latents, held, config.seed)
            counts[role] = estimate
            common = {"k": k, "role": role, "seed": None}
            rows.append(_estimate_row(estimate, **common))
            rows += [{"quantity": q, "value": v, **common} for q, v in details.items()]
            if role == "main":
                rows += [
                    _estimate_row(e, k=k, role=role, seed=0)
                    for e in one_seed_estimates(group[0], acts[0], held.doc_ids, seed=config.seed)
                ]
        common = {"k": pilot["k"], "role": "main", "seed": None}
        matched = pilot["reached"] and abs(fvus["main"] - config.target_fvu) <= FVU_TOLERANCE
        rows.append({"quantity": "fvu_mean", "value": fvus["main"], **common})
        rows.append({"quantity": "fvu_matched", "value": float(matched), **common})
        rows.append(
            {"quantity": "tokens_per_latent", "value": config.sae_tokens / spot.d_sae, **common}
        )
        if "half" in counts:
            steady = converged(
                counts["half"].value or 0.0,
                counts["main"].value or 0.0,
                fvus["half"],
                fvus["main"],
                count_slack=COUNT_SLACK_PER_DIM * held.x.shape[1],
            )
            rows.append({"quantity": "converged", "value": float(steady), **common})
        rows.append({"quantity": "dropped_fraction", "value": held.dropped_fraction, **common})
        rows.append({"quantity": "held_out_tokens", "value": float(len(held.x)), **common})
        return rows

    def _splice_rows(
        self,
        model: Model,
        blocks: TokenBlocks,
        spot: Spot,
        means: Mapping[int, ContextualMeans],
        trained: Mapping[tuple[str, int, str], list[SAE]],
    ) -> list[dict[str, Any]]:
        """CE loss recovered of the first seed, with the three losses it is made of."""
        sae = trained[spot.stream, spot.d_sae, "main"][0]
        removed = means.get(spot.layer) if spot.about == "contextual" else None

        def reconstruct(x: Tensor, token_ids: Tensor, positions: Tensor) -> Tensor:
            if removed is None:
                return sae(x)
            residual = removed.residual(x, token_ids, positions)
            return x - residual + sae(residual)

        result = ce_loss_recovered(model, blocks, spot.hook_point, reconstruct)
        names = ("ce_loss_clean", "ce_loss_sae", "ce_loss_ablated", "ce_loss_recovered")
        return [
            {"quantity": n, "value": getattr(result, n), "k": sae.k, "seed": 0, "role": "main"}
            for n in names
        ]


@dataclass(frozen=True, eq=False)
class HeldOut:
    """Held-out rows of one stream."""

    x: Float[Tensor, "token d_model"]
    doc_ids: Int[Tensor, " token"]
    dropped_fraction: float


def _spot(stream: str, d_sae: int) -> Spot:
    about: About = "contextual" if stream.endswith(CONTEXTUAL) else "all"
    return Spot(int(stream.split(".")[1]), about, d_sae)


def _held_out(
    model: Model, blocks: TokenBlocks, spot: Spot, means: ContextualMeans | None
) -> HeldOut:
    parts, docs, dropped = [], [], []
    for chunk in capture(model, blocks, spot.hook_point):
        keep = chunk.keep
        x = chunk.acts[spot.hook_point][keep]
        if spot.about == "contextual":
            assert means is not None
            x = means.residual(x, chunk.token_ids[keep], chunk.positions[keep])
        parts.append(x)
        docs.append(chunk.doc_ids[keep])
        dropped.append(chunk.dropped_fraction)
    return HeldOut(torch.cat(parts), torch.cat(docs), float(np.mean(dropped)))


def _count(latents: list[LatentSet], held: HeldOut, seed: int) -> tuple[Estimate, dict[str, float]]:
    """S_>=2 with its interval, and the figures beside it."""
    generator = torch.Generator().manual_seed(seed)
    try:
        found = reproducible_estimate(latents, held.doc_ids, held.x, generator=generator)
    except InsufficientData as refusal:
        return refusal.partial, {}
    details = {
        "reproducible_before_null": float(found.count.s_ge[2]),
        "reproducible_null": float(found.null.s_ge[2]),
        "reproducible_all_seeds": float(found.count.s_ge[found.count.n_seeds]),
        "reproducible_se": found.se,
        "match_threshold": found.count.threshold,
        "match_correlation": found.count.min_correlation,
        "live_latents_mean": float(np.mean(found.count.n_live)),
        "censored": float(found.estimate.censored),
    }
    return found.estimate, details


def _estimate_row(estimate: Estimate, **more: Any) -> dict[str, Any]:
    return {
        "quantity": estimate.estimator,
        "value": estimate.value,
        "ci_low": estimate.ci_low,
        "ci_high": estimate.ci_high,
        "note": estimate.reason,
        **more,
    }


def _pilot_rows(pilot: dict[str, Any]) -> list[dict[str, Any]]:
    return [
        {"quantity": "fvu", "value": fvu, "k": k, "seed": 0, "role": "pilot"}
        for k, fvu in zip(pilot["ks"], pilot["fvus"], strict=True)
    ]
