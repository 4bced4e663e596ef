"""The SAEs of a study on one model: pilots that choose k, then all seeds on one stream."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import saes
from interp.capture import passes
from interp.config import StudyConfig
from interp.held_out import HeldOut
from interp.k_rule import choose_k
from interp.models import Model
from interp.progress import Progress
from interp.spots import (
    WARM_UP,
    Spot,
    candidate_ks,
    largest_k,
    pilot_ks,
    sae_config,
    sae_cost,
)
from interp.streams import Rows, Streams
from interp.tokens import TokenBlocks
from saes.config import SAEConfig
from saes.metrics import evaluate
from saes.sae import SAE

CHECKPOINT_SECONDS = 120.0
Pilot = dict[str, Any]


@dataclass(frozen=True)
class SpotTraining:
    """What every SAE of one model's part of a study is trained with."""

    config: StudyConfig
    model: Model
    blocks: TokenBlocks
    """Of training documents; passed over as often as the budgets ask."""
    streams: Streams
    spots: Sequence[Spot]
    """All of the part: their streams are read together."""
    progress: Progress
    label: str

    def pilots(
        self, spots: Sequence[Spot], held_out: TokenBlocks, checkpoints: Path
    ) -> dict[Spot, Pilot]:
        """The k of spots by the FVU rule (SCIENCE section 4), from one-seed pilots.

        checkpoints: of those that confirm k.
        """
        d_model = self.model.d_model
        ks = pilot_ks(self.config, d_model)
        configs = [
            sae_config(self.config, d_model, spot, k, seed=0, n_tokens=self.config.pilot_tokens)
            for spot in spots
            for k in ks
        ]
        fitted = iter(self._train("pilots,", configs, None))
        found = {}
        for spot in spots:
            held = HeldOut.of(self.model, held_out, spot, self.streams, seed=self.config.seed)
            fvus = [evaluate(next(fitted), [held.x]).fvu for _ in ks]
            k, reached = choose_k(ks, fvus, self.config.target_fvu, largest_k(d_model))
            found[spot] = {"ks": ks, "fvus": fvus, "k": k, "reached": reached}
        if self.config.confirm_k:
            self._confirm(found, held_out, checkpoints)
        return found

    def _confirm(
        self, pilots: Mapping[Spot, Pilot], held_out: TokenBlocks, checkpoints: Path
    ) -> None:
        """Settle k where the headline rests, among neighbours trained longer than the pilots."""
        d_model = self.model.d_model
        candidates = {
            sae_config(
                self.config, d_model, spot, k,
                seed=0, n_tokens=self.config.sae_tokens, lr_warmup_fraction=WARM_UP,
            ): (spot, k)
            for spot, pilot in pilots.items()
            if spot.headline
            for k in candidate_ks(pilot["k"], d_model)
        }  # fmt: skip
        if not candidates:
            return
        fitted = self._train("k to confirm,", list(candidates), checkpoints)
        measured: dict[Spot, dict[int, float]] = {}
        for (spot, k), sae in zip(candidates.values(), fitted, strict=True):
            held = HeldOut.of(self.model, held_out, spot, self.streams, seed=self.config.seed)
            measured.setdefault(spot, {})[k] = evaluate(sae, [held.x]).fvu
        for spot, fvus_by_k in measured.items():
            ks, fvus = list(fvus_by_k), list(fvus_by_k.values())
            k, reached = choose_k(ks, fvus, self.config.target_fvu, largest_k(d_model))
            pilots[spot].update(k=k, reached=reached, confirmed={"ks": ks, "fvus": fvus})

    def train(self, configs: list[SAEConfig], checkpoints: Path) -> list[SAE]:
        """SAEs on one stream, in the order of their configs; resumes from its checkpoints."""
        return self._train("training", configs, checkpoints)

    def _train(self, what: str, configs: list[SAEConfig], checkpoints: Path | None) -> list[SAE]:
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
            self._stream(),
            configs,
            heartbeat=heartbeat,
            checkpoint_dir=checkpoints,
            checkpoint_seconds=CHECKPOINT_SECONDS,
            workers=self.config.threads,
            device=self.config.device,
        )
        self.progress.finish(sum(c.n_tokens * cost[c.name] for c in configs))
        return result

    def _stream(self) -> Iterator[Rows]:
        """One forward pass feeds every stream, raw and contextual.

        All of them, whoever is in training: which tokens are sinks depends on the layers read, and
        the noise of the Gaussian control on the streams.
        """
        points = list(dict.fromkeys(spot.hook_point for spot in self.spots))
        chunks = passes(self.model, self.blocks, points, chunk_tokens=self.config.chunk_tokens)
        return self.streams.rows(chunks, self.spots, seed=self.config.seed)
