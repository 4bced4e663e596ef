"""Everything a study measures on one model (or its random twin): activations in, tidy rows out.

Stages, each an atomic artifact that is not redone when found: loss, means of the stream, pilots
that choose k, training of all SAEs on one stream of activations, held-out measurement.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

import saes
from interp.capture import capture
from interp.config import StudyConfig
from interp.contextual import ContextualFitter, ContextualMeans
from interp.controls import random_init_twin, shuffle_tokens_within_documents
from interp.corpora import Corpus
from interp.errors import UserError
from interp.held_out import HeldOut, pilot_rows, sae_rows, splice_rows
from interp.hook_points import HookPoint
from interp.loss import loss
from interp.models import Model, load
from interp.progress import Progress
from interp.provenance import provenance
from interp.run import GAUSSIAN, SHUFFLED, TWIN, RunFolder, folder_name, write_json, write_table
from interp.spot_training import Pilot, SpotTraining
from interp.spots import Spot, spots
from interp.streams import Streams
from interp.tokens import Split, TokenBlocks, tokens
from saes.sae import SAE


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
        if self.control != TWIN:
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
        if self.control == TWIN:
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
        seed = self.config.seed
        blocks = tokens(self.corpus, model, n_tokens=n_tokens, split=split, seed=seed)
        return shuffle_tokens_within_documents(blocks, seed) if self.control == SHUFFLED else blocks

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
                "parity_error": model.parity_error,
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
        groups = spots(config, model.d_model, model.n_layers, self.control)
        longest = max(config.sae_tokens, config.means_tokens, config.pilot_tokens)
        # The stream leaves some positions out; a short text is passed over more than once.
        train_blocks = self._blocks(model, int(longest * 1.02) + model.n_ctx, "train")
        streams = self._streams(model, train_blocks, groups)
        training = SpotTraining(
            config, model, train_blocks, streams, self.work, self.progress, self.label
        )
        for_pilots = self._blocks(model, config.held_out_tokens // 2, "held_out")
        pilots = training.pilots(groups, for_pilots)
        trained = self._train(training, pilots)
        held_out = self._blocks(model, config.held_out_tokens, "held_out")
        splice_blocks = self._blocks(model, config.splice_tokens, "held_out")
        rows = []
        for spot, pilot in pilots.items():
            self.progress.at(f"{self.label}: measuring {spot.stream}, D {spot.d_sae}")
            main, half = trained[spot, "main"], trained.get((spot, "half"))
            layer_means = streams.means.get(spot.layer)
            held = HeldOut.of(model, held_out, spot, streams, seed=config.seed)
            found = pilot_rows(pilot)
            found += sae_rows(main, half, held, config, k_reached=pilot["reached"])
            if self.control != GAUSSIAN:  # noise belongs in no forward pass
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

    def _streams(self, model: Model, blocks: TokenBlocks, groups: list[Spot]) -> Streams:
        """With means of the contextual ones and, for the Gaussian control, moments of each."""
        part = blocks[: -(-self.config.means_tokens // blocks.n_ctx)]
        streams = Streams(self._means(model, part, groups))
        if self.control == GAUSSIAN:
            self.progress.at(f"{self.label}: moments")
            points = list({spot.hook_point: spot for spot in groups})
            chunk_tokens = self.config.chunk_tokens
            streams = streams.with_gaussians(
                capture(model, part, points, chunk_tokens=chunk_tokens), groups
            )
        return streams

    def _means(
        self, model: Model, part: TokenBlocks, groups: list[Spot]
    ) -> dict[int, ContextualMeans]:
        """Token and position means per layer, from the first training tokens."""
        layers = sorted({s.layer for s in groups if s.about == "contextual"})
        files = {layer: self.work / f"means.{layer}.safetensors" for layer in layers}
        if not all(f.exists() for f in files.values()):
            self.progress.at(f"{self.label}: token and position means")
            fitters = {
                layer: ContextualFitter(model.d_vocab, part.n_ctx, model.d_model)
                for layer in layers
            }
            points = {layer: HookPoint("resid_post", layer) for layer in layers}
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

    def _train(
        self, training: SpotTraining, pilots: Mapping[Spot, Pilot]
    ) -> dict[tuple[Spot, str], list[SAE]]:
        """All SAEs; those of the main role are kept."""
        trained = training.train(pilots)
        for (spot, role), group in trained.items():
            for sae in group if role == "main" else ():
                assert sae.cfg is not None
                folder = self.folder.sae(self.name, self.control, spot.stream, sae.cfg.name)
                saes.save(sae, folder)
        return trained


def _short(value: str | None) -> str:
    """A version whole, a hash by its first digits."""
    return "unknown" if value is None else value[:12]
