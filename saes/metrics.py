"""The only definitions of FVU, L0, dead fraction and firing density, streaming and exact.

FVU = sum ||x - x_hat||^2 / sum ||x - mean||^2, sums and mean over the whole evaluation set: a ratio
of sums, so it does not depend on how the set was cut into batches.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from saes.errors import SAEError
from saes.sae import SAE, SparseActs


class RunningVariance:
    """sum ||x - mean||^2 over everything seen; merges means, so it is exact under large shifts.

    Source: Chan, Golub and LeVeque 1979, eq. 2.1 (pairwise update), in float64.
    """

    def __init__(self, d_in: int) -> None:
        self.n_tokens = 0
        self.mean: Float[Tensor, " d_in"] = torch.zeros(d_in, dtype=torch.float64)
        self.sum_of_squares = 0.0

    def update(self, x: Float[Tensor, "token d_in"]) -> None:
        """Add rows."""
        if len(x) == 0:
            return
        rows = x.double()
        mean = rows.mean(0)
        within = (rows - mean).square_().sum().item()
        gap = mean.cpu() - self.mean
        total = self.n_tokens + len(x)
        between = gap.square().sum().item() * self.n_tokens * len(x) / total
        self.sum_of_squares += within + between
        self.mean += gap * (len(x) / total)
        self.n_tokens = total


@dataclass(frozen=True)
class SAEMetricsResult:
    """Metrics of one SAE over one evaluation set."""

    fvu: float
    """Fraction of variance unexplained: 0 exact, 1 the mean predictor."""
    l0: float
    """Mean number of latents that fire on a token."""
    dead_fraction: float
    """Fraction of latents that fired on no token of this set."""
    density: Float[Tensor, " d_sae"]
    """Fraction of tokens on which each latent fired (float64)."""
    n_tokens: int
    fire_counts: Int[Tensor, " d_sae"]
    """Tokens on which each latent fired."""
    mass: Float[Tensor, " d_sae"]
    """sum over tokens of z_i * ||d_i|| (float64)."""

    def density_histogram(self) -> dict[str, list[float]]:
        """Latents by firing density: `edges` from 1e-7 to 1, two per decade, and `counts` between.

        Latents that never fired are in no bin; see `dead_fraction`.
        """
        exponents = torch.arange(-14, 1, dtype=torch.float64) / 2
        fired = self.density[self.density > 0].log10().clamp(-7, 0)
        counts = torch.histc(fired, bins=len(exponents) - 1, min=-7, max=0)
        return {"edges": (10**exponents).tolist(), "counts": counts.tolist()}


class SAEMetrics:
    """Accumulates metrics over batches; `result()` at any time."""

    def __init__(
        self, d_in: int, d_sae: int, *, decoder_norms: Float[Tensor, " d_sae"] | None = None
    ) -> None:
        """`decoder_norms` weigh `mass`; None: unit norms, which our own SAEs have."""
        self.d_sae = d_sae
        self._variance = RunningVariance(d_in)
        self._squared_error = 0.0
        self._fire_counts = torch.zeros(d_sae, dtype=torch.int64)
        self._value_sums = torch.zeros(d_sae, dtype=torch.float64)
        self._norms = torch.ones(d_sae, dtype=torch.float64)
        if decoder_norms is not None:
            self._norms = decoder_norms.detach().double().cpu()

    def update(
        self,
        x: Float[Tensor, "token d_in"],
        acts: SparseActs,
        x_hat: Float[Tensor, "token d_in"],
    ) -> None:
        """Add tokens: their activations, latents and reconstructions.

        Raises SAEError where these are not the same tokens, and for rows that are not finite.
        """
        if not len(x) == len(x_hat) == len(acts.indices):
            raise SAEError(
                f"SAEMetrics.update got {len(x)} rows, {len(acts.indices)} latent rows and "
                f"{len(x_hat)} reconstructions; give the same tokens in all three"
            )
        if not (finite := torch.isfinite(x).all(dim=1)).all():
            bad = self._variance.n_tokens + int((~finite).nonzero()[0])
            raise SAEError(
                f"SAEMetrics: row {bad} of the activations is not finite (NaN or infinity); "
                "drop such rows before the evaluation"
            )
        self._variance.update(x)
        self._squared_error += (x.double() - x_hat.double()).square_().sum().item()
        indices = acts.indices.flatten().cpu()
        values = acts.values.flatten().double().cpu()
        self._fire_counts.index_add_(0, indices, (values > 0).long())
        self._value_sums.index_add_(0, indices, values)

    def result(self) -> SAEMetricsResult:
        """Metrics of everything so far. Raises SAEError without tokens or without variance."""
        n_tokens, variance = self._variance.n_tokens, self._variance.sum_of_squares
        if n_tokens == 0:
            raise SAEError("SAEMetrics has seen no tokens; call update first")
        if variance == 0:
            raise SAEError(
                f"SAEMetrics: all {n_tokens} rows are equal, so FVU is undefined; give more tokens"
            )
        return SAEMetricsResult(
            fvu=self._squared_error / variance,
            l0=int(self._fire_counts.sum()) / n_tokens,
            dead_fraction=int((self._fire_counts == 0).sum()) / self.d_sae,
            density=self._fire_counts.double() / n_tokens,
            n_tokens=n_tokens,
            fire_counts=self._fire_counts.clone(),
            mass=self._value_sums * self._norms,
        )


def evaluate(sae: SAE, batches: Iterable[Float[Tensor, "token d_in"]]) -> SAEMetricsResult:
    """Metrics of one SAE over batches of activations. Raises SAEError where there are none."""
    metrics = SAEMetrics(sae.d_in, sae.d_sae, decoder_norms=sae.W_dec.norm(dim=1))
    for x in batches:
        acts = sae.encode(x)
        metrics.update(x, acts, sae.decode(acts))
    return metrics.result()
