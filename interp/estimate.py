"""What every features-per-dimension estimator returns, and how it refuses."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from typing import Any

from interp import jupyter

ATOMS = "reproducible_atoms"
"""Name of the count without composites: latents that stand for two others (`saes.composites`)."""


@dataclass(frozen=True)
class Estimate:
    """One number with its interval and everything that has to stand beside it. No NaN: None."""

    estimator: str
    """Name in SCIENCE's table: live_latents_10, hill_1, reproducible, saturation, ..."""
    value: float | None
    ci_low: float | None = None
    """Lower end of the 95% interval."""
    ci_high: float | None = None
    """Upper end; None where the interval is unbounded or could not be computed (see `reason`)."""
    per_dim: float | None = None
    """value / d_in."""
    n_tokens: int | None = None
    """Held-out tokens measured on."""
    n_seeds: int | None = None
    d_sae: int | None = None
    k: int | None = None
    fvu: float | None = None
    fvu_matched: bool | None = None
    """Whether k was chosen to reach the stated FVU, and did."""
    tokens_per_latent: float | None = None
    """Training tokens / d_sae."""
    converged: bool | None = None
    """Outcome of `interp.packing.converged`; None where it was not tested."""
    identified: bool = True
    """Whether the data determine the quantity that the estimator names."""
    reason: str | None = None
    """Why a field is None, or identified false, or the value only a bound."""
    calibration: str = "uncalibrated"
    censored: bool = False
    """The value is a lower bound of what it stands for, because the dictionary ran out."""

    def __post_init__(self) -> None:
        for name, number in asdict(self).items():
            if isinstance(number, float) and not math.isfinite(number):
                raise ValueError(f"Estimate.{name} is {number}; an undefined number is None")

    def __repr__(self) -> str:
        facts = "; ".join(text for text in self._facts().values() if text)
        return f"Estimate({self.estimator}: {facts})"

    def _repr_html_(self) -> str:
        return jupyter.facts(self.estimator, {k: v for k, v in self._facts().items() if v})

    def _facts(self) -> dict[str, str]:
        """What a reader has to see beside the value; empty where nothing is known."""
        low, high = ("..." if v is None else f"{v:,.4g}" for v in (self.ci_low, self.ci_high))
        value = "no value" if self.value is None else f"{self.value:,.4g}"
        known = {"D": self.d_sae, "k": self.k, "seeds": self.n_seeds}
        trained = [f"{name} {number:,}" for name, number in known.items() if number is not None]
        trained += [] if self.fvu is None else [f"FVU {self.fvu:.3f}"]
        return {
            "value": f"at least {value}" if self.censored else value,
            "95% interval": "" if low == high == "..." else f"[{low}, {high}]",
            "per dimension": "" if self.per_dim is None else f"{self.per_dim:.3g} per dimension",
            "SAEs": ", ".join(trained),
            "held-out tokens": "" if self.n_tokens is None else f"{self.n_tokens:,} tokens",
            "converged": {True: "converged", False: "not converged", None: ""}[self.converged],
            "identified": "" if self.identified else "not identified",
            "reason": self.reason or "",
            "calibration": self.calibration,
        }

    def with_training(
        self,
        *,
        fvu: float | None = None,
        fvu_matched: bool | None = None,
        tokens_per_latent: float | None = None,
        converged: bool | None = None,
    ) -> Estimate:
        """With what the SAEs' training says; a row that did not converge is not identified."""
        trained = replace(
            self,
            fvu=fvu,
            fvu_matched=fvu_matched,
            tokens_per_latent=tokens_per_latent,
            converged=converged,
        )
        if converged is False:
            reasons = [r for r in ("undertrained", self.reason) if r]
            trained = replace(trained, identified=False, reason="; ".join(reasons))
        return trained

    def to_json(self) -> dict[str, Any]:
        """Plain types for `json.dumps(..., allow_nan=False)`."""
        return asdict(self)


class Estimates(list[Estimate]):
    """A list of estimates, which Jupyter shows as one table."""

    def _repr_html_(self) -> str:
        return jupyter.table([{"estimator": one.estimator} | one._facts() for one in self])


class InsufficientData(Exception):
    """Too few data for the estimator; what could still be said is attached.

    `partial.reason` holds the message; `partial.ci_low` and `ci_high` are None.
    """

    def __init__(self, partial: Estimate) -> None:
        super().__init__(f"{partial.estimator}: {partial.reason}")
        self.partial = partial
