"""What a run found, as frozen records: the vocabulary of the report.

A missing piece is None (or empty), never a guess. `reading.py` makes them from the run's files.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from interp.report.arm_records import Arm
from interp.report.interval import UNKNOWN, Interval
from interp.report.overlap_records import Overlaps

ARM = "constant_width"
TWO_SEEDS = "two seeds or more"
"""Who finds a latent that counts, where nothing else was asked for."""
FULL = 0.85
"""Share of a dictionary: counts are censored from .9 on, and then lose what chance gives."""
NO_CHANGE_PER_DIM = 0.05
"""Features per dimension that a count may change by and count as steady."""


@dataclass(frozen=True)
class Lever:
    """What was varied in a model of the constant-width arm, and how far."""

    name: str
    value: float | None


@dataclass(frozen=True)
class ModelRecord:
    """One model of the run; losses in nats, their intervals over documents.

    `loss` is per `loss_unit`: models of several tokenizers compare per byte of text only.
    """

    name: str
    family: str
    arm: str
    d_model: int | None
    n_layers: int | None
    n_params: int | None
    train_tokens: int | None
    loss: Interval
    loss_unit: str
    """"nats per token", or "nats per byte" in every model of a run with several tokenizers."""
    lever: Lever | None = None
    base: bool = False
    """The recipe that the arm varies."""
    row_overlap: float | None = None
    """Mean squared cosine of the embedding's rows, their mean removed; told of the arm alone."""

    @property
    def in_arm(self) -> bool:
        """Among models of one width, which its width does not tell apart."""
        return self.arm == ARM

    @property
    def label(self) -> str:
        """Its width, or in the arm what `ladder/d064-` is followed by: `rows-1`."""
        if not self.in_arm:
            return str(self.d_model or "?")
        if self.base:
            return "base"
        name = self.name.rpartition("/")[2]
        return name.partition("-")[2] or name


@dataclass(frozen=True)
class TokenIdentity:
    """Whether the classes of a count only name the current token."""

    n_classes: int
    bits: float | None
    """Entropy of the token where a class fires, median over classes."""
    all_bits: float | None
    """The same of all held-out positions."""
    relative: Interval
    """Median over classes of that entropy over the one of as many random positions."""
    detectors: Interval
    """Share of classes that fire on essentially one token."""
    explained: Interval
    """Of the uncertainty about when a class fires, by the token: median over classes."""
    explained_by_position: Interval
    reason: str | None


@dataclass(frozen=True)
class Strictness:
    """The count, per dimension, under one threshold of one of the two tests of a match."""

    by: str
    """"cosine" or "correlation"."""
    at: float
    headline: bool
    """As the headline matches."""
    per_dim: Interval
    null: float | None
    """Latents that matched by chance, subtracted."""


@dataclass(frozen=True)
class WithoutComposites:
    """The count once latents that stand for two others are taken out."""

    n_composites: float
    """Of a dictionary, mean over the seeds."""
    per_dim: Interval
    converged: bool | None
    censored: bool
    """Its dictionaries are full: the count is a lower bound."""


@dataclass(frozen=True)
class Removed:
    """Shares of the stream's variance that its token and position means hold."""

    token: float
    position: float


@dataclass(frozen=True)
class Control:
    """The same measurement on a control; `per_dim` counts per dimension of the model."""

    name: str
    per_dim: Interval
    fvu: float | None
    fvu_matched: Any
    converged: bool | None
    reason: str | None
    censored: bool = False
    """Its dictionaries are full: the count is a lower bound."""
    half: float | None = None
    """Per dimension, after half of the training tokens."""
    k: float | None = None
    token_identity: TokenIdentity | None = None
    strictness: tuple[Strictness, ...] = ()
    removed: Removed | None = None
    without_composites: WithoutComposites | None = None

    @property
    def rising(self) -> bool:
        """Not converged, and more than it was before the last doubling of the training tokens."""
        value = self.per_dim.value
        return (
            self.converged is not True
            and value is not None
            and self.half is not None
            and value - self.half > NO_CHANGE_PER_DIM
        )


@dataclass(frozen=True)
class PackingRow:
    """One packing row of `summary.json`, joined to its model."""

    model: ModelRecord
    layer: int | None
    layer_fraction: float | None
    hook_point: str
    estimator: str
    about: str
    count: Interval
    per_dim: Interval
    twin: Control | None
    """The untrained twin, which stands beside the model everywhere."""
    other_controls: tuple[Control, ...]
    """Shuffled tokens, matched Gaussian: in the tables."""
    n_tokens: float | None
    n_seeds: int | None
    d_sae: float | None
    k: float | None
    fvu: float | None
    fvu_matched: Any
    tokens_per_latent: float | None
    converged: bool | None
    identified: bool | None
    censored: bool
    """The value is the largest count seen, and nothing bounds it from above."""
    reason: str | None
    calibration: str
    k_rule: str = "fvu"
    """What set k: the FVU of the primary protocol, or "constant" or "proportional" beside it."""
    architecture: str = "topk"
    """Of its SAEs."""
    outgrown: bool = False
    """A larger dictionary of the same place finds more."""
    half: float | None = None
    """Per dimension, after half of the training tokens."""
    null: float | None = None
    """What matching finds between random dictionaries: latents, subtracted from the count."""
    primary_layer: bool | None = None
    """Whether this is the layer named before the run; None in runs that give its depth only."""
    token_identity: TokenIdentity | None = None
    """None in runs that did not look."""
    strictness: tuple[Strictness, ...] = ()
    """Of the primary counts, by test and threshold; empty elsewhere."""
    counts: bool = False
    """Converged at the stated FVU, and identified or an honest bound: it enters fits and tests."""
    loss_recovered: float | None = None
    """Of the loss that removing the stream costs; its SAEs' reconstruction put back."""
    removed: Removed | None = None
    """None where the count is of the stream as it is."""
    without_composites: WithoutComposites | None = None
    """None in runs that did not look for them."""

    @property
    def doubt(self) -> str | None:
        """Why it enters no fit, in a word or two; None where it does."""
        if self.counts:
            return None
        if self.per_dim.value is None:
            return "no count"
        if self.converged is not True:
            return "not converged" if self.converged is False else "convergence not tested"
        return "FVU off target" if self.fvu_matched is not True else "no interval"

    @property
    def full(self) -> bool:
        """Nearly every latent of its dictionaries is counted: they leave no room for more."""
        known = self.count.value is not None and self.d_sae is not None
        return self.censored and known and (self.count.value or 0) > FULL * (self.d_sae or 0)

    @property
    def lower_bound(self) -> bool:
        """Censored, or a count at one dictionary size: it cannot exceed that size."""
        return self.censored or self.estimator.startswith(("reproducible", "live_latents"))

    @property
    def twin_known(self) -> bool:
        """There is a twin and its count is a number."""
        return self.twin is not None and self.twin.per_dim.value is not None


@dataclass(frozen=True)
class Exponent:
    """N ~ d_model^beta over the models that count; `reason` says why there is none."""

    beta: Interval = UNKNOWN
    twin: Interval = UNKNOWN
    n_models: int | None = None
    reason: str | None = None
    twin_reason: str | None = None


@dataclass(frozen=True)
class Scaling:
    """L = A / d_model^alpha + B, in the models' `loss_unit`."""

    A: Interval = UNKNOWN
    alpha: Interval = UNKNOWN
    B: Interval = UNKNOWN
    n_models: int | None = None
    identified: bool | None = None
    caption: str = ""
    reason: str | None = None

    @property
    def drawn(self) -> bool:
        """All three numbers are there, so that there is a curve."""
        return None not in (self.A.value, self.alpha.value, self.B.value)

    def loss(self, d_model: float) -> float:
        """The fitted loss at a width; raises `ValueError` where nothing was fitted."""
        if self.A.value is None or self.alpha.value is None or self.B.value is None:
            raise ValueError(f"no fitted loss at width {d_model}: {self.reason}")
        return self.A.value / d_model**self.alpha.value + self.B.value


@dataclass(frozen=True)
class Correlation:
    """Spearman of packing per dimension with loss within one arm: descriptive."""

    arm: str
    estimator: str
    about: str
    layer_fraction: float | None
    n_models: int | None
    spearman: Interval
    p_exact: float | None
    partial_spearman_given_d_model: float | None
    reason: str | None
    kendall: Interval = UNKNOWN
    kendall_p: float | None = None
    within_levers: float | None = None
    p_within_levers: float | None = None
    slope: Interval = UNKNOWN
    """Loss per feature per dimension."""


@dataclass(frozen=True)
class Mixed:
    """Loss in nats per byte on packing across families, width and depth held."""

    slope: Interval
    p: float | None
    n_models: int | None
    n_families: int | None


@dataclass(frozen=True)
class Summary:
    """`summary.json`, read."""

    preset: str
    preview: bool
    models: tuple[ModelRecord, ...]
    packing: tuple[PackingRow, ...]
    primary: Mapping[str, Any]
    exponent: Exponent
    correlation: tuple[Correlation, ...]
    scaling: Scaling
    warnings: tuple[str, ...]
    command: str | None
    wall_time_seconds: float | None
    sensitivity: tuple[PackingRow, ...] = ()
    """The primary count under other rules for k and of other SAEs, the primary one among them."""
    mixed: Mixed | None = None
    """None where it was refused."""
    arm: Arm | None = None
    overlaps: Overlaps = field(default_factory=Overlaps)

    @property
    def primary_rows(self) -> tuple[PackingRow, ...]:
        """One row per model, by width: the estimator, stream, layer and D named before the run."""
        chosen: dict[str, PackingRow] = {}
        for row in self.packing:
            if matches_primary(row, self.primary):
                best = chosen.get(row.model.name)
                if best is None or _preference(row) > _preference(best):
                    chosen[row.model.name] = row
        return tuple(sorted(chosen.values(), key=lambda row: row.model.d_model or 0))

    @property
    def drawn_rows(self) -> tuple[PackingRow, ...]:
        """The primary rows; where none has a number, the plain counts they would rest on."""
        primary = self.primary_rows
        if any(row.per_dim.value is not None for row in primary):
            return primary
        plain = {**self.primary, "estimator": "reproducible"}
        rows = [row for row in self.packing if matches_primary(row, plain)]
        return tuple(sorted(rows, key=lambda row: row.model.d_model or 0)) or primary

    @property
    def architecture(self) -> str:
        """Of the SAEs that the headline counts."""
        return str(self.primary.get("architecture") or "topk")

    @property
    def found_by(self) -> str:
        """Which seeds find a latent that counts: `two seeds or more`, `all 5 seeds`."""
        return str(self.primary.get("found_by") or TWO_SEEDS)

    @property
    def about(self) -> str:
        """The stream the headline counts on: "contextual" or "all"."""
        return str(self.primary.get("about") or "contextual")


def matches_primary(row: PackingRow, primary: Mapping[str, Any]) -> bool:
    """Whether `row` is what the config named primary; keys that are not given match anything."""
    fraction, ratio = primary.get("layer_fraction"), primary.get("d_sae_per_d_model")
    d_model = row.model.d_model
    return (
        row.estimator == (primary.get("estimator") or row.estimator)
        and row.about == (primary.get("about") or "contextual")
        # Layers are whole: two depths that differ by less than this round to the same layer.
        and row.primary_layer is not False
        and (
            row.primary_layer is True
            or fraction is None
            or row.layer_fraction is None
            or math.isclose(row.layer_fraction, fraction, abs_tol=1e-3)
        )
        and (
            not isinstance(ratio, int | float)
            or row.d_sae is None
            or d_model is None
            # Saturation draws on every size; its d_sae names the largest only.
            or row.estimator == "saturation"
            or math.isclose(row.d_sae, ratio * d_model, rel_tol=0.01)
        )
    )


def _preference(row: PackingRow) -> tuple[bool, bool, float]:
    return row.per_dim.value is not None, row.converged is True, row.d_sae or 0
