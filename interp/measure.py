"""The units of one part of a study, done: activations in, artifacts and tidy rows out.

Every method does one kind of unit (`interp.units`) on one model or a control of it, reads what the
units before it have left, and keeps the model and its streams for the unit after it.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Collection, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd
from safetensors.torch import load_file, save

import saes
from interp import durable
from interp.capture import capture
from interp.config import StudyConfig
from interp.contextual import ContextualFitter, ContextualMeans
from interp.controls import MatchedGaussian, random_init_twin, shuffle_tokens_within_documents
from interp.corpora import Corpus
from interp.errors import UserError
from interp.graph import Graph
from interp.held_out import HeldOut
from interp.loss import loss
from interp.models import Model, load
from interp.progress import Progress
from interp.provenance import provenance
from interp.run import GAUSSIAN, SHUFFLED, TWIN, write_json, write_table
from interp.sources import ModelSource
from interp.spot_rows import pilot_rows, sae_rows, splice_rows
from interp.spot_training import SpotTraining
from interp.spots import HALF, MAIN, Spot, longest_budget, sae_tokens, seed_configs, spots
from interp.streams import Streams
from interp.tokens import Split, TokenBlocks, tokens
from interp.units import Unit, files_of
from saes.sae import SAE


class Measurement:
    """One model's (or control's) part of a study."""

    def __init__(
        self, graph: Graph, name: str, control: str, corpus: Corpus, progress: Progress
    ) -> None:
        self.graph, self.name, self.control = graph, name, control
        self.corpus, self.progress = corpus, progress
        self.config: StudyConfig = graph.config
        self.folder = graph.folder
        self.work = self.folder.work(name, control)
        self.label = Unit(name, control, "loss").label
        self._tokenized: dict[tuple[int, Split], TokenBlocks] = {}

    def run(self, unit: Unit) -> None:
        """Make the unit's artifacts; items that come out as they are there stay."""
        kept = self.graph.kept(unit)
        if unit.spot is not None:
            self._sae_rows(unit, unit.spot)
        elif unit.kind == "loss":
            self._loss()
        elif unit.kind == "streams":
            self._fit_streams()
        elif unit.kind == "pilots":
            self._pilots(unit, kept)
        else:
            self._train(unit, kept)

    @cached_property
    def model(self) -> Model:
        self.progress.at(f"{self.label}: loading")
        model = load(self.name, device=self.config.device)
        expected = vars(self.graph.sources.models[self.name])
        for key, value in vars(ModelSource.of(model)).items():
            if value != expected[key]:
                raise UserError(f"{self.name}: its {key} is another than when the study began")
        return random_init_twin(model, self.config.seed) if self.control == TWIN else model

    @cached_property
    def spots(self) -> list[Spot]:
        return spots(self.config, self.model.d_model, self.model.n_layers, self.control)

    @cached_property
    def train_blocks(self) -> TokenBlocks:
        # The stream leaves some positions out; a short text is passed over more than once.
        wanted = int(longest_budget(self.config) * 1.02) + self.model.n_ctx
        return self._blocks(wanted, "train")

    @cached_property
    def streams(self) -> Streams:
        """As the unit of that name left them."""
        layers = {spot.layer for spot in self.spots if spot.about == "contextual"}
        means = {layer: ContextualMeans.load(self._means_file(layer)) for layer in sorted(layers)}
        noise: dict[str, MatchedGaussian] = {}
        if self.control == GAUSSIAN:
            for stream in dict.fromkeys(spot.stream for spot in self.spots):
                noise[stream] = MatchedGaussian(**load_file(self._moments_file(stream)))
        return Streams(means, noise).to(self.config.device)

    def _blocks(self, n_tokens: int, split: Split) -> TokenBlocks:
        """Tokenized once for all units of the part."""
        if (n_tokens, split) not in self._tokenized:
            seed = self.config.seed
            blocks = tokens(self.corpus, self.model, n_tokens=n_tokens, split=split, seed=seed)
            if self.control == SHUFFLED:
                blocks = shuffle_tokens_within_documents(blocks, seed)
            self._tokenized[n_tokens, split] = blocks
        return self._tokenized[n_tokens, split]

    def _means_file(self, layer: int) -> Path:
        return self.work / f"means.{layer}.safetensors"

    def _moments_file(self, stream: str) -> Path:
        return self.work / f"moments.{stream}.safetensors"

    # Loss

    def _loss(self) -> None:
        model = self.model
        self.progress.at(f"{self.label}: loss")
        blocks = self._blocks(self.config.loss_tokens, "held_out")
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
            "provenance": provenance(self.corpus.sha256, counting=False),
            "warnings": list(blocks.warnings),
        }
        write_json(self.work / "model.json", measured)

    # Streams

    def _fit_streams(self) -> None:
        """Means of the contextual ones and, for the Gaussian control, moments of each."""
        part = self.train_blocks[: -(-self.config.means_tokens // self.train_blocks.n_ctx)]
        means = self._means(part)
        for layer, one in means.items():
            one.save(self._means_file(layer))
        if self.control != GAUSSIAN:
            return
        self.progress.at(f"{self.label}: moments")
        points = list({spot.hook_point: spot for spot in self.spots})
        chunks = capture(self.model, part, points, chunk_tokens=self.config.chunk_tokens)
        noise = Streams(means).with_gaussians(chunks, self.spots).gaussians
        for stream, gaussian in noise.items():
            tensors = {"mean": gaussian.mean.contiguous(), "root": gaussian.root.contiguous()}
            durable.write(self._moments_file(stream), save(tensors))

    def _means(self, part: TokenBlocks) -> dict[int, ContextualMeans]:
        """Token and position means per layer, from the first training tokens."""
        layers = sorted({s.layer for s in self.spots if s.about == "contextual"})
        if not layers:
            return {}
        self.progress.at(f"{self.label}: token and position means")
        model = self.model
        fitters = {
            layer: ContextualFitter(model.d_vocab, part.n_ctx, model.d_model) for layer in layers
        }
        points = {spot.layer: spot.hook_point for spot in self.spots if spot.layer in fitters}
        for chunk in capture(
            model, part, list(points.values()), chunk_tokens=self.config.chunk_tokens
        ):
            for layer, fitter in fitters.items():
                keep = chunk.keep
                x = chunk.acts[points[layer]][keep]
                fitter.update(x, chunk.token_ids[keep], chunk.positions[keep])
        return {layer: fitter.fit() for layer, fitter in fitters.items()}

    # SAEs

    @property
    def _training(self) -> SpotTraining:
        return SpotTraining(
            self.config, self.model, self.train_blocks, self.streams, self.spots,
            self.progress, self.label,
        )  # fmt: skip

    def _pilots(self, unit: Unit, kept: Collection[str]) -> None:
        wanted = [s for s in self.spots if s.k_rule == "fvu" and s.name not in kept]
        held_out = self._blocks(self.config.held_out_tokens // 2, "held_out")
        checkpoints = self._checkpoints("confirming", [spot.name for spot in wanted])
        for spot, pilot in self._training.pilots(wanted, held_out, checkpoints).items():
            [file] = files_of(self.folder, unit, spot.name)
            file.parent.mkdir(exist_ok=True)
            write_json(file, pilot)
        shutil.rmtree(self.work / "confirming", ignore_errors=True)

    def _checkpoints(self, stage: str, names: Collection[str]) -> Path:
        """Named after what is in training: another set begins anew."""
        return self.work / stage / hashlib.sha256("\n".join(names).encode()).hexdigest()[:8]

    def _train(self, unit: Unit, kept: Collection[str]) -> None:
        """All SAEs that are not there yet, at once; those of the main role are for the reader."""
        items = {i: c for spot in self.spots for i, c in self.graph.sae_items(unit, spot).items()}
        folders = {item: files_of(self.folder, unit, item)[0].parent for item in items}
        configs = {item: one for item, one in items.items() if item not in kept}
        if configs:
            checkpoints = self._checkpoints("training", configs)
            trained = self._training.train(list(configs.values()), checkpoints)
            for item, sae in zip(configs, trained, strict=True):
                saes.save(sae, folders[item])
        self._remove_others(unit, set(folders.values()))
        shutil.rmtree(self.work / "training", ignore_errors=True)

    def _remove_others(self, unit: Unit, wanted: Collection[Path]) -> None:
        """SAEs of an earlier config, and what a kill left half-saved."""
        for role in (MAIN, HALF):
            [any_file, _] = files_of(self.folder, unit, f"any/any/{role}")
            for folder in any_file.parents[2].glob("*/*"):
                if folder not in wanted:
                    shutil.rmtree(folder)

    # Rows

    def _sae_rows(self, unit: Unit, spot: Spot) -> None:
        config, model = self.config, self.model
        self.progress.at(f"{self.label}: measuring {spot.stream}, D {spot.d_sae}")
        held_out = self._blocks(config.held_out_tokens, "held_out")
        layer_means = self.streams.means.get(spot.layer)
        pilot = self.graph.k_of(unit, spot)
        trained = self._load(unit, spot, pilot["k"])
        held = HeldOut.of(model, held_out, spot, self.streams, seed=config.seed)
        found = pilot_rows(pilot)
        found += sae_rows(
            trained[MAIN],
            trained.get(HALF),
            held,
            config,
            k=pilot["k"],
            k_reached=pilot["reached"],
            n_tokens=sae_tokens(config, spot),
            strictness=spot == self.spots[0],  # what the headline is read off, of controls too
        )
        if self.control != GAUSSIAN:  # noise belongs in no forward pass
            blocks = self._blocks(config.splice_tokens, "held_out")
            found += splice_rows(model, blocks, spot, layer_means, trained[MAIN][0], k=pilot["k"])
        # Of a longer text no more is read than once over needs, so fewer than one is not told.
        passes = sae_tokens(config, spot) / int(self.train_blocks.is_target.sum())
        if passes > 1:
            found.append({"quantity": "passes_over_text", "value": passes})
        if spot.about == "contextual" and layer_means is not None:
            share = layer_means.variance_share
            found += [
                {"quantity": "variance_share_token", "value": share.token},
                {"quantity": "variance_share_position", "value": share.position},
            ]
        place = {
            "model": self.name,
            "control": self.control,
            "layer": spot.layer,
            "hook_point": spot.hook_point,
            "about": spot.about,
            "d_sae": spot.d_sae,
            "k_rule": spot.k_rule,
        }
        if spot.architecture != "topk":
            place["architecture"] = spot.architecture
        [file] = files_of(self.folder, unit, spot.name)
        file.parent.mkdir(exist_ok=True)
        write_table(file, pd.DataFrame([row | place for row in found]))

    def _load(self, unit: Unit, spot: Spot, k: int) -> Mapping[str, list[SAE]]:
        """The seeds of a spot by role, from their folders, where they are run."""
        device = self.config.device
        group = Unit(unit.model, unit.control, "saes")
        return {
            role: [
                saes.load(file.parent).to(device)
                for c in configs
                for file in files_of(self.folder, group, f"{spot.stream}/{c.name}/{role}")[:1]
            ]
            for role, configs in seed_configs(self.config, self.model.d_model, spot, k).items()
        }


def loss_rows(facts: Mapping[str, Any], control: str) -> list[dict[str, Any]]:
    """The tidy rows of a finished unit of loss."""
    rows: list[dict[str, Any]] = []
    for unit in ("token", "byte"):
        low, high = facts[f"loss_ci_nats_per_{unit}"] or (None, None)
        quantity = f"loss_nats_per_{unit}"
        rows.append(
            {"control": control, "model": facts["name"], "quantity": quantity}
            | {"value": facts[quantity], "ci_low": low, "ci_high": high}
        )
    return rows
