"""Everything a study measures on one model (or its random twin): activations in, tidy rows out.

Stages, each an atomic artifact that is not redone when found: loss, means of the stream, pilots
that choose k, training of all SAEs on one stream of activations, held-out measurement.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
from torch import Tensor

import saes
from interp.capture import capture
from interp.config import StudyConfig
from interp.contextual import ContextualFitter, ContextualMeans
from interp.controls import random_init_twin
from interp.corpora import Corpus
from interp.errors import UserError
from interp.held_out import HeldOut, pilot_rows, sae_rows, splice_rows
from interp.hook_points import HookPoint
from interp.loss import loss
from interp.models import Model, load
from interp.packing import choose_k
from interp.progress import Progress
from interp.provenance import provenance
from interp.run import CONTEXTUAL, RunFolder, folder_name, write_json, write_table
from interp.spots import Spot, fixed_k, largest_k, pilot_ks, sae_cost, spots
from interp.tokens import Split, TokenBlocks, tokens
from saes.config import MAX_DEAD_AFTER_TOKENS, SAEConfig
from saes.metrics import evaluate
from saes.sae import SAE

CHECKPOINT_SECONDS = 120.0
WARM_UP = 0.05
"""Share of an SAE's tokens over which its learning rate rises."""
Pilot = dict[str, Any]
Means = Mapping[int, ContextualMeans]
"""Token and position means by layer."""


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

    def check(self, weights_sha256: str) -> None:
        """Raise UserError where parts found were measured under other circumstances."""
        if not self.facts_file.exists():
            return
        facts, now = self.facts(), provenance(self.corpus.sha256)
        found = dict(facts["provenance"])
        if self.control == "trained":
            found, now = (
                one | {"weights_sha256": sha}
                for one, sha in ((found, facts["weights_sha256"]), (now, weights_sha256))
            )
        for key in sorted(now.keys() | found.keys()):
            if found.get(key) != now.get(key):
                raise UserError(
                    f"{self.folder.root}: {self.label} was measured with {key} "
                    f"{_short(found.get(key))}, now it is {_short(now.get(key))}; go back to that, "
                    "or choose another --out"
                )

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
                "provenance": provenance(self.corpus.sha256),
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
        # The stream leaves some positions out; a short text is passed over more than once.
        train_blocks = self._blocks(model, int(longest * 1.02) + model.n_ctx, "train")
        means = self._means(model, train_blocks, groups)
        pilots = self._pilots(model, train_blocks, means, groups)
        trained = self._train(model, train_blocks, means, pilots)
        held_out = self._blocks(model, config.held_out_tokens, "held_out")
        splice_blocks = self._blocks(model, config.splice_tokens, "held_out")
        rows = []
        for spot, pilot in pilots.items():
            self.progress.at(f"{self.label}: measuring {spot.stream}, D {spot.d_sae}")
            main, half = trained[spot, "main"], trained.get((spot, "half"))
            layer_means = means.get(spot.layer)
            held = HeldOut.of(model, held_out, spot, layer_means)
            found = pilot_rows(pilot)
            found += sae_rows(main, half, held, config, k_reached=pilot["reached"])
            found += splice_rows(model, splice_blocks, spot, layer_means, main[0])
            if spot.about == "contextual" and layer_means is not None:
                share = layer_means.variance_share
                found += [
                    {"quantity": "variance_share_token", "value": share.token},
                    {"quantity": "variance_share_position", "value": share.position},
                ]
            place = {
                "layer": spot.layer,
                "hook_point": spot.hook_point,
                "about": spot.about,
                "d_sae": spot.d_sae,
                "k_rule": spot.k_rule,
            }
            rows += [self._row(**(row | place)) for row in found]
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
        means: Means,
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
        means: Means,
        configs: list[SAEConfig],
        checkpoint_dir: Path | None,
    ) -> list[SAE]:
        streams = {c.hook_point for c in configs}
        layers = sorted({int(s.split(".")[1]) for s in streams})
        cost = {c.name: sae_cost(c.d_in, c.d_sae) for c in configs}

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
        self, model: Model, blocks: TokenBlocks, means: Means, groups: list[Spot]
    ) -> dict[Spot, Pilot]:
        """The k of every group: by the FVU rule (SCIENCE section 4) from one-seed pilots, or fixed.

        The fixed ones are there to see what the rule changes; their FVU is what it is.
        """
        file = self.work / "pilots.json"
        k_max = largest_k(model.d_model)
        ks = pilot_ks(self.config, model.d_model)
        by_fvu = [spot for spot in groups if spot.k_rule == "fvu"]
        if not file.exists():
            n_tokens = self.config.pilot_tokens
            configs = [
                self._sae_config(model, spot, k, seed=0, n_tokens=n_tokens)
                for spot in by_fvu
                for k in ks
            ]
            fitted = iter(self._run_training("pilots,", model, blocks, means, configs, None))
            held_out = self._blocks(model, self.config.held_out_tokens // 2, "held_out")
            found = []
            for spot in by_fvu:
                held = HeldOut.of(model, held_out, spot, means.get(spot.layer))
                fvus = [evaluate(next(fitted), [held.x]).fvu for _ in ks]
                k, reached = choose_k(ks, fvus, self.config.target_fvu, k_max)
                found.append({"ks": ks, "fvus": fvus, "k": k, "reached": reached})
            write_json(file, found)
        pilots = dict(zip(by_fvu, json.loads(file.read_text()), strict=True))
        for spot in groups:
            if spot.k_rule != "fvu":
                k = fixed_k(self.config, spot.k_rule, model.d_model)
                pilots[spot] = {"ks": [], "fvus": [], "k": k, "reached": False}
        return pilots

    def _sae_config(
        self, model: Model, spot: Spot, k: int, *, seed: int, n_tokens: int, **schedule: Any
    ) -> SAEConfig:
        return SAEConfig(
            d_in=model.d_model,
            d_sae=spot.d_sae,
            k=k,
            hook_point=spot.stream,
            seed=self.config.seed * 1000 + seed,
            n_tokens=n_tokens,
            **schedule,
        )

    def _train(
        self, model: Model, blocks: TokenBlocks, means: Means, pilots: Mapping[Spot, Pilot]
    ) -> dict[tuple[Spot, str], list[SAE]]:
        """Seeds of every group, on all tokens (`main`, kept) and on half of them (`half`)."""
        total = self.config.sae_tokens
        # The same warm-up and dead threshold in tokens: so a half branches off its main run.
        dead_after = max(1, min(MAX_DEAD_AFTER_TOKENS, total // 20))
        schedules: dict[str, dict[str, Any]] = {
            "main": {"n_tokens": total, "lr_warmup_fraction": WARM_UP}
        }
        if self.config.check_convergence:
            schedules["half"] = {"n_tokens": total // 2, "lr_warmup_fraction": 2 * WARM_UP}
        plan = [
            (
                spot,
                role,
                self._sae_config(
                    model, spot, pilot["k"], seed=seed, dead_after_tokens=dead_after, **schedule
                ),
            )
            for spot, pilot in pilots.items()
            for role, schedule in schedules.items()
            for seed in range(self.config.n_seeds)
        ]
        # Two rules that agree on k need one set of SAEs.
        configs = list(dict.fromkeys(config for _, _, config in plan))
        checkpoints = self.work / "training"
        fitted = self._run_training("training", model, blocks, means, configs, checkpoints)
        trained = dict(zip(configs, fitted, strict=True))
        grouped: dict[tuple[Spot, str], list[SAE]] = {}
        for spot, role, config in plan:
            sae = trained[config]
            grouped.setdefault((spot, role), []).append(sae)
            if role == "main":
                saes.save(sae, self.folder.sae(self.name, self.control, spot.stream, config.name))
        return grouped


def _short(value: str | None) -> str:
    """A version whole, a hash by its first digits."""
    return "unknown" if value is None else value[:12]
