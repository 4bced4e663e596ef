"""Where a study puts its SAEs: layer, stream and dictionary size; and what that will cost."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from interp.config import About, Architecture, HookKind, KRule, StudyConfig
from interp.errors import UserError
from interp.hook_points import HookPoint, resolve
from interp.run import CONTEXTUAL, TRAINED
from saes.config import MAX_DEAD_AFTER_TOKENS, SAEConfig

if TYPE_CHECKING:
    from interp.models import Model

WARM_UP = 0.05
"""Share of an SAE's tokens over which its learning rate rises."""
MAIN, HALF = "main", "half"
"""Roles of an SAE: trained on all tokens, or on half of them to see whether that changes much."""


@dataclass(frozen=True)
class Spot:
    """Where one group of SAEs sits: place, stream, kind and size of dictionary, rule for k."""

    layer: int
    about: About
    d_sae: int
    k_rule: KRule = "fvu"
    headline: bool = False
    """Whether the headline's count, at any size, comes from here."""
    kind: HookKind = "resid_post"
    """Where in the block of that layer."""
    architecture: Architecture = "topk"

    @property
    def hook_point(self) -> str:
        return str(HookPoint(self.kind, self.layer))

    @property
    def stream(self) -> str:
        """Key of the training stream, and the folder of the SAEs."""
        return self.hook_point + (CONTEXTUAL if self.about == "contextual" else "")

    @property
    def name(self) -> str:
        """Of files about this group."""
        kind = "" if self.architecture == "topk" else f".{self.architecture}"
        return f"{self.stream}.{self.d_sae}.{self.k_rule}{kind}"

    def size(self, k: int) -> str:
        """Begins the names of its SAEs, which end with the seed (`SAEConfig.name`)."""
        kind = "" if self.architecture == "topk" else f"{self.architecture}-"
        return f"{self.d_sae}-{kind}{k}"


def layer_depth(kind: str, layer: int, n_layers: int) -> float:
    """The share of the blocks that a hook point comes after, counting the one that it is in.

    The input of a block is the output of the one before, and as deep.
    """
    return (layer + (kind != "resid_pre")) / n_layers


def primary_layer(config: StudyConfig, n_layers: int) -> int:
    """The layer whose hook point is nearest the configured depth; the lower one of two."""
    wanted = config.primary_layer_fraction
    return min(
        range(n_layers),
        # In whole steps of rounding: two layers at the same distance must tie.
        key=lambda i: round(abs(layer_depth(config.hook_kind, i, n_layers) - wanted), 9),
    )


def require_hook_points(config: StudyConfig, model: Model) -> None:
    """Raise UserError, naming the model, where it lacks the hook points of the study."""
    kind, layers = config.hook_kind, list(config.layers)
    try:
        resolve([kind, *(HookPoint(kind, layer) for layer in layers)], model.hf)
    except UserError as error:
        asked = f"hook_kind {kind}" + (f", layers {layers}" if layers else "")
        raise UserError(f"{model.name}: {asked}: {error}") from None


def spots(config: StudyConfig, d_model: int, n_layers: int, control: str = TRAINED) -> list[Spot]:
    """All groups of SAEs for a model of this shape, or a control of it, the primary layer first.

    Controls are held to what the headline needs: the first size, or all where N is read off them,
    k by reconstruction, and one architecture.
    """
    layer = primary_layer(config, n_layers)
    trained = control == TRAINED
    first = config.d_sae_per_d_model[0] * d_model
    primary = Spot(
        layer, config.primary_stream, first, kind=config.hook_kind, architecture=config.architecture
    )
    found = [
        replace(primary, d_sae=multiple * d_model, headline=True)
        for multiple in config.d_sae_per_d_model[: None if trained or config.by_saturation else 1]
    ]
    if trained:
        found += [replace(primary, k_rule=rule) for rule in config.other_k_rules]
        found += [replace(primary, architecture=one) for one in config.other_architectures]
    found += [
        replace(primary, about=about) for about in config.streams if about != config.primary_stream
    ]
    if config.other_layers and (trained or config.twin_other_layers):
        others = sorted(config.layers) or range(n_layers)
        found += [replace(primary, layer=other) for other in others if other != layer]
    return found


def sae_tokens(config: StudyConfig, spot: Spot) -> int:
    """Training tokens of every SAE at this spot."""
    return (spot.headline and config.primary_sae_tokens) or config.sae_tokens


def candidate_ks(k: int, d_model: int) -> list[int]:
    """A k and its neighbours, those that are allowed."""
    return [c for c in (k - 1, k, k + 1) if 1 <= c <= largest_k(d_model)]


def largest_k(d_model: int) -> int:
    """k <= d_model / 4, whatever rule sets it (SCIENCE section 4)."""
    return max(1, d_model // 4)


def pilot_ks(config: StudyConfig, d_model: int) -> list[int]:
    """The configured k that are allowed, and the largest allowed one: every k can be chosen."""
    return sorted({k for k in config.pilot_ks if k <= largest_k(d_model)} | {largest_k(d_model)})


def fixed_k(config: StudyConfig, rule: KRule, d_model: int) -> int:
    """The k of a rule that needs no pilots."""
    wanted = config.constant_k if rule == "constant" else round(d_model / 8)
    return min(max(1, wanted), largest_k(d_model))


def sae_config(
    config: StudyConfig, d_model: int, spot: Spot, k: int, *, seed: int, **schedule: Any
) -> SAEConfig:
    """One SAE of a spot; `seed` counts from 0 in every study."""
    return SAEConfig(
        d_in=d_model,
        d_sae=spot.d_sae,
        k=k,
        architecture=spot.architecture,
        encoder_dtype=config.encoder_dtype,
        hook_point=spot.stream,
        seed=config.seed * 1000 + seed,
        **schedule,
    )


def seed_configs(
    config: StudyConfig, d_model: int, spot: Spot, k: int
) -> dict[str, list[SAEConfig]]:
    """Every seed of a spot by role: `main`, and `half` where convergence is checked."""
    total = sae_tokens(config, spot)
    # The same warm-up and dead threshold in tokens: so a half branches off its main run.
    dead_after = max(1, min(MAX_DEAD_AFTER_TOKENS, total // 20))
    schedules: dict[str, dict[str, Any]] = {
        MAIN: {"n_tokens": total, "lr_warmup_fraction": WARM_UP}
    }
    if config.check_convergence:
        # And at the same rate, which the default takes from the budget.
        whole = sae_config(config, d_model, spot, k, seed=0, **schedules[MAIN])
        schedules[HALF] = {
            "n_tokens": total // 2, "lr_warmup_fraction": 2 * WARM_UP, "lr": whole.peak_lr
        }  # fmt: skip
    return {
        role: [
            sae_config(
                config, d_model, spot, k, seed=seed, dead_after_tokens=dead_after, **schedule
            )
            for seed in range(config.n_seeds)
        ]
        for role, schedule in schedules.items()
    }


def longest_budget(config: StudyConfig) -> int:
    """Training tokens that one model's part reads, before the text is passed over again."""
    longest = max(config.sae_tokens, config.primary_sae_tokens or 0)
    return max(longest, config.means_tokens, config.pilot_tokens)


def sae_cost(d_in: int, d_sae: int) -> float:
    """Relative time of one SAE per token: reading the stream, and the encoder's product."""
    return 2e-6 + 4e-12 * d_in * d_sae
