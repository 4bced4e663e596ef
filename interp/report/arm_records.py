"""What was found among models of one width, as frozen records."""

from collections.abc import Mapping
from dataclasses import dataclass

from interp.report.interval import Interval


@dataclass(frozen=True)
class Response:
    """One outcome of the arm against one lever."""

    lever: str
    outcome: str
    n_models: int | None
    tau: float | None
    p_trend: float | None
    slope: Interval
    slope_per: str
    spread_over_seeds: float | None
    p_spread: float | None
    decided_by: str | None
    p_holm: float | None
    moves: bool | None
    reason: str | None


@dataclass(frozen=True)
class Effect:
    """What a lever at its furthest value on one side does, in all and by way of packing."""

    lever: str
    side: str
    value: float | None
    on_packing: float | None
    total: float | None
    direct: float | None
    indirect: Interval


@dataclass(frozen=True)
class Secondary:
    """Another count against the loss, corrected for all of them."""

    estimator: str
    about: str
    layer_fraction: float | None
    d_sae: float | None
    n_models: int | None
    spearman: Interval
    p: float | None
    p_holm: float | None
    reason: str | None


@dataclass(frozen=True)
class EqualK:
    """The arm's primary test among the models whose dictionaries have the most frequent k."""

    least: int
    """Of the k of all models that count."""
    most: int
    k: int
    n_models: int
    spearman: float | None
    p: float | None


@dataclass(frozen=True)
class EqualStrictness:
    """The arm's primary test with latents of all models matched at one cosine."""

    least: float
    """Of the cosines that the models' own counts ask for."""
    most: float
    cosine: float
    n_models: int
    spearman: float | None
    p: float | None


@dataclass(frozen=True)
class RankTest:
    """Packing against loss, of some of the models."""

    of: str
    """all, half (of the training), without LEVER, within levers, k K, cosine C."""
    n_models: int
    spearman: Interval
    p: float | None


@dataclass(frozen=True)
class Unconverged:
    """The arm's primary test with unconverged counts let in, which was not declared."""

    n_models: int
    n_unconverged: int
    left_out: Mapping[str, str]
    """Model -> why not even so."""
    growth: tuple[float, float] | None
    """Least and greatest share by which an unconverged count grew with the last doubling."""
    growth_with_loss: float | None
    """Spearman's rho of that share with the loss."""
    p_growth_with_loss: float | None
    detectable_rho: float | None
    tests: tuple[RankTest, ...]
    responses: tuple[Response, ...]
    """Of packing to the levers."""
    responses_half: tuple[Response, ...]
    """After half of the training."""

    def test(self, of: str) -> RankTest | None:
        return next((one for one in self.tests if one.of == of), None)


@dataclass(frozen=True)
class Arm:
    """Models of one width in which training was varied; the primary test is a `Correlation`."""

    d_model: int | None
    n_models: int
    n_usable: int
    n_seeds: int | None
    measurement_share: float | None
    base_values: Mapping[str, float]
    responses: tuple[Response, ...]
    loss_per_packing: Interval
    effects: tuple[Effect, ...]
    assumptions: str
    mediation_reason: str | None
    detectable_rho: float | None
    leave_one_out: tuple[float, float] | None
    """Least and greatest rho with one model left out."""
    without_block: Mapping[str, float | None]
    secondary: tuple[Secondary, ...]
    equal_k: EqualK | None
    equal_strictness: EqualStrictness | None
    unconverged: Unconverged | None

    def moving(self, outcome: str) -> list[str]:
        """The levers that moved an outcome beyond chance."""
        return self._levers(outcome, True)

    def still(self, outcome: str) -> list[str]:
        """The levers that were tested and did not."""
        return self._levers(outcome, False)

    def untested(self, outcome: str) -> list[str]:
        """The levers along which nothing could be tested."""
        return self._levers(outcome, None)

    def _levers(self, outcome: str, moves: bool | None) -> list[str]:
        return [r.lever for r in self.responses if r.outcome == outcome and r.moves is moves]
