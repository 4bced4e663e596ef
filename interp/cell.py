"""What a study's rows say of one dictionary size at one place of a model, by quantity."""

from __future__ import annotations

import math

import pandas as pd

from interp.estimate import ATOMS, Estimate
from interp.spots import HALF

BESIDE = {"reproducible": "", ATOMS: "_atoms"}
"""Counts that seeds agree on, and the suffix of what is told beside each."""


class Cell:
    """The rows of one model, control, layer, stream and dictionary size, by quantity."""

    def __init__(self, rows: pd.DataFrame) -> None:
        # What was removed from a stream is of the stream, whatever role its SAEs have.
        of_all = rows["role"].isna() | (rows["role"] == "main")
        main = rows[of_all & (rows["seed"].isna() | (rows["seed"] == 0))]
        self._rows = {r["quantity"]: r for r in main.to_dict("records")}
        halves = rows[(rows["role"] == HALF) & rows["quantity"].isin(BESIDE)]
        self._halves = dict(zip(halves["quantity"], halves["value"], strict=True))
        fvus = rows[(rows["role"] == HALF) & (rows["quantity"] == "fvu")]["value"]
        self.fvu_half = None if fvus.empty else float(fvus.mean())
        """Mean over these seeds, then."""

    def has(self, quantity: str) -> bool:
        """Whether it was looked at, whatever came out."""
        return quantity in self._rows

    def half(self, quantity: str = "reproducible") -> float | None:
        """A count of the same seeds after half of the training tokens."""
        value = self._halves.get(quantity)
        return None if value is None else float(value)

    def get(self, quantity: str, field: str = "value") -> float | None:
        """A number; None where there is none."""
        row = self._rows.get(quantity)
        value = None if row is None else row[field]
        return None if value is None or not math.isfinite(value) else float(value)

    def flag(self, quantity: str) -> bool | None:
        """What was said as 0 or 1."""
        value = self.get(quantity)
        return None if value is None else value == 1.0

    def note(self, quantity: str) -> str | None:
        """Why there is no value, or no interval."""
        row = self._rows.get(quantity)
        return row["note"] if row is not None and isinstance(row["note"], str) else None

    def interval(self, quantity: str) -> dict[str, float | None]:
        """Value and 95% limits."""
        return {field: self.get(quantity, field) for field in ("value", "ci_low", "ci_high")}

    def whole(self, quantity: str, field: str = "value") -> int | None:
        """A whole number."""
        value = self.get(quantity, field)
        return None if value is None else int(value)

    def estimate(self, quantity: str, d_model: int, d_sae: int, n_seeds: int) -> Estimate:
        """One estimator's row with everything that has to stand beside it."""
        value, note = self.get(quantity), self.note(quantity)
        agreed, suffix = quantity in BESIDE, BESIDE.get(quantity, "")
        censored = agreed and bool(self.flag(f"censored{suffix}"))
        row = self._rows.get(quantity) or {}
        return Estimate(
            quantity,
            value=value,
            ci_low=self.get(quantity, "ci_low"),
            # The interval of a full dictionary is that of its size: nothing bounds it from above.
            ci_high=None if censored else self.get(quantity, "ci_high"),
            per_dim=None if value is None else value / d_model,
            n_tokens=self.whole("held_out_tokens"),
            n_seeds=n_seeds if agreed else 1,
            d_sae=d_sae,
            k=None if pd.isna(row.get("k")) else int(row["k"]),
            # A note says why there is no interval, or that the value is only a bound.
            identified=value is not None and note is None and not censored,
            reason=note,
            censored=censored,
        ).with_training(
            fvu=self.get("fvu_mean"),
            fvu_matched=self.flag("fvu_matched"),
            tokens_per_latent=self.get("tokens_per_latent"),
            converged=self.flag(f"converged{suffix}"),
        )
