"""The SAEs of a study on one model: pilots that choose k, then all seeds on one stream."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import saes
from interp.capture import passes
from interp.config import StudyConfig
from interp.held_out import HeldOut
from interp.hook_points import HookPoint
from interp.models import Model
from interp.packing import choose_k
from interp.progress import Progress
from interp.run import write_json
from interp.spots import (
    Spot,
    candidate_ks,
    fixed_k,
    largest_k,
    pilot_ks,
    rests_the_headline,
    sae_cost,
    sae_tokens,
)
from interp.streams import Rows, Streams
from interp.tokens import TokenBlocks
from saes.config import MAX_DEAD_AFTER_TOKENS, SAEConfig
from saes.metrics import evaluate
from saes.sae import SAE

CHECKPOINT_SECONDS = 120.0
WARM_UP = 0.05
"""Share of an SAE's tokens over which its learning rate rises."""
Pilot = dict[str, Any]


@dataclass(frozen=True)
class SpotTraining:
    """What every SAE of one model's part of a study is trained with."""

    config: StudyConfig
    model: Model
    blocks: TokenBlocks
    """Of training documents; passed over as often as the budgets ask."""
    streams: Streams
    work: Path
    """Where `pilots.json` and the checkpoints lie."""
    progress: Progress
    label: str

    def pilots(self, spots: Sequence[Spot], held_out: TokenBlocks) -> dict[Spot, Pilot]:
        """The k of every spot: by the FVU rule (SCIENCE section 4) from one-seed pilots, or fixed.

        The fixed ones are there to see what the rule changes; their FVU is what it is.
        """
        file = self.work / "pilots.json"
        d_model = self.model.d_model
        by_fvu = [spot for spot in spots if spot.k_rule == "fvu"]
        if not file.exists():
            ks = pilot_ks(self.config, d_model)
            configs = [
                self._sae_config(spot, k, seed=0, n_tokens=self.config.pilot_tokens)
                for spot in by_fvu
                for k in ks
            ]
            fitted = iter(self._train("pilots,", configs, by_fvu, None))
            found = []
            for spot in by_fvu:
                held = HeldOut.of(self.model, held_out, spot, self.streams, seed=self.config.seed)
                fvus = [evaluate(next(fitted), [held.x]).fvu for _ in ks]
                k, reached = choose_k(ks, fvus, self.config.target_fvu, largest_k(d_model))
                found.append({"ks": ks, "fvus": fvus, "k": k, "reached": reached})
            self._confirm(by_fvu, found, held_out)
            write_json(file, found)
        pilots = dict(zip(by_fvu, json.loads(file.read_text()), strict=True))
        for spot in spots:
            if spot.k_rule != "fvu":
                k = fixed_k(self.config, spot.k_rule, d_model)
                pilots[spot] = {"ks": [], "fvus": [], "k": k, "reached": False}
        return pilots

    def train(self, pilots: Mapping[Spot, Pilot]) -> dict[tuple[Spot, str], list[SAE]]:
        """Seeds of every spot, on all tokens (`main`) and on half of them (`half`)."""
        plan = {
            (spot, role): [
                self._sae_config(spot, pilot["k"], seed=seed, **schedule)
                for seed in range(self.config.n_seeds)
            ]
            for spot, pilot in pilots.items()
            for role, schedule in self._schedules(spot).items()
        }
        # Two rules that agree on k need one set of SAEs.
        configs = list(dict.fromkeys(config for group in plan.values() for config in group))
        fitted = self._train("training", configs, pilots, self.work / "training")
        trained = dict(zip(configs, fitted, strict=True))
        return {place: [trained[config] for config in group] for place, group in plan.items()}

    def _schedules(self, spot: Spot) -> dict[str, dict[str, Any]]:
        total = sae_tokens(self.config, spot, self.model.n_layers)
        # The same warm-up and dead threshold in tokens: so a half branches off its main run.
        common = {"dead_after_tokens": max(1, min(MAX_DEAD_AFTER_TOKENS, total // 20))}
        found = {"main": {"n_tokens": total, "lr_warmup_fraction": WARM_UP} | common}
        if self.config.check_convergence:
            found["half"] = {"n_tokens": total // 2, "lr_warmup_fraction": 2 * WARM_UP} | common
        return found

    def _confirm(
        self, spots: Sequence[Spot], pilots: Sequence[Pilot], held_out: TokenBlocks
    ) -> None:
        """Settle k where the headline rests, among neighbours trained as long as the main SAEs."""
        if not self.config.confirm_k:
            return
        to_confirm = {
            spot: pilot
            for spot, pilot in zip(spots, pilots, strict=True)
            if rests_the_headline(self.config, spot, self.model.n_layers)
        }
        candidates = [
            (spot, k)
            for spot, pilot in to_confirm.items()
            for k in candidate_ks(pilot["k"], self.model.d_model)
        ]
        configs = [
            self._sae_config(spot, k, seed=0, **self._schedules(spot)["main"])
            for spot, k in candidates
        ]
        if not configs:
            return
        fitted = self._train("k to confirm,", configs, to_confirm, self.work / "confirming")
        measured: dict[Spot, dict[int, float]] = {spot: {} for spot in to_confirm}
        for (spot, k), sae in zip(candidates, fitted, strict=True):
            held = HeldOut.of(self.model, held_out, spot, self.streams, seed=self.config.seed)
            measured[spot][k] = evaluate(sae, [held.x]).fvu
        for spot, pilot in to_confirm.items():
            ks, fvus = list(measured[spot]), list(measured[spot].values())
            pilot["confirmed"] = {"ks": ks, "fvus": fvus}
            pilot["k"], pilot["reached"] = choose_k(
                ks, fvus, self.config.target_fvu, largest_k(self.model.d_model)
            )

    def _sae_config(self, spot: Spot, k: int, *, seed: int, **schedule: Any) -> SAEConfig:
        return SAEConfig(
            d_in=self.model.d_model,
            d_sae=spot.d_sae,
            k=k,
            hook_point=spot.stream,
            seed=self.config.seed * 1000 + seed,
            **schedule,
        )

    def _train(
        self,
        what: str,
        configs: list[SAEConfig],
        spots: Collection[Spot],
        checkpoints: Path | None,
    ) -> list[SAE]:
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
            self._stream({c.hook_point for c in configs}, spots),
            configs,
            heartbeat=heartbeat,
            checkpoint_dir=checkpoints,
            checkpoint_seconds=CHECKPOINT_SECONDS,
            workers=self.config.threads,
        )
        self.progress.finish(sum(c.n_tokens * cost[c.name] for c in configs))
        return result

    def _stream(self, names: set[str], spots: Collection[Spot]) -> Iterator[Rows]:
        """One forward pass feeds every stream, raw and contextual."""
        read = [spot for spot in spots if spot.stream in names]
        points = sorted(
            {HookPoint("resid_post", spot.layer) for spot in read}, key=lambda p: p.layer
        )
        chunks = passes(self.model, self.blocks, points, chunk_tokens=self.config.chunk_tokens)
        return self.streams.rows(chunks, read, seed=self.config.seed)
