"""Where a study puts its SAEs: layer, stream and dictionary size; and what that will cost."""

from __future__ import annotations

from dataclasses import dataclass

from interp.config import About, KRule, StudyConfig
from interp.hook_points import HookPoint
from interp.run import CONTEXTUAL, TRAINED


@dataclass(frozen=True)
class Spot:
    """Where one group of SAEs sits: a layer, a stream, a dictionary size, a rule for k."""

    layer: int
    about: About
    d_sae: int
    k_rule: KRule = "fvu"

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
        range(n_layers),
        # In whole steps of rounding: two layers at the same distance must tie.
        key=lambda i: round(abs((i + 1) / n_layers - config.primary_layer_fraction), 9),
    )


def spots(config: StudyConfig, d_model: int, n_layers: int, control: str = TRAINED) -> list[Spot]:
    """All groups of SAEs for a model of this shape, or a control of it, the primary layer first.

    Controls are held to what the headline needs: the first size, and k by reconstruction.
    """
    primary = primary_layer(config, n_layers)
    trained = control == TRAINED
    first = config.d_sae_per_d_model[0] * d_model
    found = [
        Spot(primary, config.primary_stream, multiple * d_model)
        for multiple in config.d_sae_per_d_model[: None if trained else 1]
    ]
    if trained:
        found += [
            Spot(primary, config.primary_stream, first, rule) for rule in config.other_k_rules
        ]
    found += [
        Spot(primary, about, first) for about in config.streams if about != config.primary_stream
    ]
    if config.other_layers and (trained or config.twin_other_layers):
        found += [
            Spot(layer, config.primary_stream, first)
            for layer in range(n_layers)
            if layer != primary
        ]
    return found


def rests_the_headline(config: StudyConfig, spot: Spot, n_layers: int) -> bool:
    """Whether the headline's count, or its sizes, come from here."""
    return (spot.layer, spot.about, spot.k_rule) == (
        primary_layer(config, n_layers),
        config.primary_stream,
        "fvu",
    )


def sae_tokens(config: StudyConfig, spot: Spot, n_layers: int) -> int:
    """Training tokens of every SAE at this spot."""
    if config.primary_sae_tokens and rests_the_headline(config, spot, n_layers):
        return config.primary_sae_tokens
    return config.sae_tokens


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


def sae_cost(d_in: int, d_sae: int) -> float:
    """Relative time of one SAE per token: reading the stream, and the encoder's product."""
    return 2e-6 + 4e-12 * d_in * d_sae


def expected_work(
    config: StudyConfig, d_model: int, n_layers: int, control: str = TRAINED
) -> float:
    """Relative cost of one model's measurement, for the progress line (about seconds)."""
    total = 0.0
    ks = pilot_ks(config, d_model)
    for spot in spots(config, d_model, n_layers, control):
        per_token = sae_cost(d_model, spot.d_sae)
        tokens = sae_tokens(config, spot, n_layers)
        main = config.n_seeds * tokens * (1.5 if config.check_convergence else 1.0)
        pilots = len(ks) * config.pilot_tokens if spot.k_rule == "fvu" else 0
        if config.confirm_k and rests_the_headline(config, spot, n_layers):
            pilots += 3 * tokens
        total += per_token * (main + pilots)
    return total + 2e-5 * config.loss_tokens
