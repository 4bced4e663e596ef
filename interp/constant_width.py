"""Packing and loss among models of one width, in which training was varied: records in and out."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from interp.correlate import Association, kendall, spearman, spearman_within
from interp.dose_response import DoseResponse, corrected, dose_response
from interp.holm import holm
from interp.kendall import Slope, theil_sen
from interp.leave_one_out import leave_one_out
from interp.levers import BASE, ON_A_LOG_SCALE, OTHER, block, name_of, replicate, value_of
from interp.mediation import mediation
from interp.power import detectable

ARM = "constant_width"
CAPTION = (
    "at constant width, the order permuted over the whole arm: a lever that moves both packing and "
    "loss correlates them without packing acting on loss; within_levers leaves out what differs "
    "between levers, and not a lever's own dose"
)
ALWAYS = ("packing", "loss")
"""Outcomes that are told of even where no model has them."""
INTERVAL = "percentile bootstrap over models"
OF_ROWS = {"row_overlap": "mean_squared_overlap_centred", "row_length": "norm_mean"}
"""What signed decay is there to move, of the embedding's rows: outcome -> name among `rows`.

A lever that moves neither was no manipulation. Overlap is free of scale, which the gains of layer
norms could take up.
"""
Z_95 = 1.959964

Record = dict[str, Any]


class Arm:
    """The models of the arm, those of them whose count may be used, and what is asked of them.

    counts: usable, uncensored packing records of all kinds, in which the primary ones are `chosen`
    too; `chosen` holds the primary record of every model, usable or not.
    """

    def __init__(
        self,
        counts: list[Record],
        chosen: list[Record],
        facts: list[Record],
        primary: Record,
        loss_key: str,
        seed: int,
    ) -> None:
        self.facts = {f["name"]: f for f in facts}
        self.widths = sorted({f["d_model"] for f in facts})
        self.base = next((f for f in facts if name_of(f) == BASE), None)
        self.primary, self.loss_key = primary, loss_key
        self.chosen = chosen
        self.counts = counts if len(self.widths) == 1 else []
        self.rows = [r for r in self.counts if any(r is c for c in chosen)]
        self.seed, self.generator = seed, torch.Generator().manual_seed(seed)

    def correlation(self) -> Record:
        """The primary test: packing against loss over all usable models of the arm."""
        packing, losses = _per_dim(self.rows), self.losses(self.rows)
        rank = spearman(packing, losses, generator=self.generator)
        tau = kendall(packing, losses, generator=self.generator)
        blocks = [block(self.facts[r["model"]]) for r in self.rows]
        within = spearman_within(packing, losses, blocks, generator=self.generator)
        slope = Slope(None, None, None)
        if tau.value is not None:
            slope = theil_sen(packing, losses)
        parts: dict[str, Association | Slope] = {
            "spearman": rank,
            "kendall": tau,
            "within levers": within,
            "slope": slope,
        }
        reasons = [f"{name}: {part.reason}" for name, part in parts.items() if part.reason]
        if len(self.widths) > 1:
            reasons = [f"the arm mixes widths {self.widths}; one is needed"]
        return {
            "arm": ARM,
            "estimator": self.primary["estimator"],
            "about": self.primary["about"],
            "layer_fraction": self.primary["layer_fraction"],
            "loss": self.loss_key,
            "n_models": len(self.rows),
            "spearman": rank.value,
            "p_exact": rank.p,
            "ci_low": rank.ci_low,
            "ci_high": rank.ci_high,
            "method": rank.method,
            "interval": INTERVAL,
            "kendall": tau.value,
            "kendall_p": tau.p,
            "kendall_ci_low": tau.ci_low,
            "kendall_ci_high": tau.ci_high,
            "within_levers": within.value,
            "p_within_levers": within.p,
            "n_within_levers": within.n_models,
            "slope": slope.value,
            "slope_ci_low": slope.ci_low,
            "slope_ci_high": slope.ci_high,
            "partial_spearman_given_d_model": None,
            "caption": CAPTION,
            "reason": "; ".join(reasons) or None,
        }

    def record(self) -> Record:
        """Everything beside the primary test: `summary["arm"]`, less `unconverged`."""
        packing, losses = _per_dim(self.rows), self.losses(self.rows)
        names = [r["model"] for r in self.rows]
        blocks = [block(self.facts[name]) for name in names]
        return {
            "name": ARM,
            "d_model": self.widths[0] if len(self.widths) == 1 else None,
            "n_models": len(self.facts),
            "n_usable": len(self.rows),
            "left_out": self._left_out(),
            "seeds": self._seeds(),
            "measurement_share": _measurement_share(self.rows),
            "dose_response": [
                r.to_json() for r in self.dose_response(self._outcomes(), self.generator)
            ],
            "mediation": self._mediation(),
            "power": detectable(len(self.rows)).to_json(),
            "equal_k": self.equal_k(),
            "leave_one_out": leave_one_out(packing, losses, names, blocks).to_json(),
            "holm": self._secondary(),
            "equal_strictness": self.equal_strictness(),
        }

    def losses(self, rows: list[Record]) -> np.ndarray:
        """Nats, of the rows' models."""
        return np.array([self.facts[r["model"]][self.loss_key] for r in rows], dtype=float)

    def _left_out(self) -> list[Record]:
        used = {r["model"] for r in self.rows}
        found = {r["model"]: _why_unusable(r) for r in self.chosen}
        return [
            {"model": name, "reason": found.get(name, "no count at the primary layer")}
            for name in self.facts
            if name not in used
        ]

    def _outcomes(self) -> list[tuple[str, dict[str, float]]]:
        """Each outcome by model. Loss and embedding need no SAE: every model has them."""
        alike = self.facts if len(self.widths) == 1 else {}
        losses = {name: float(fact[self.loss_key]) for name, fact in alike.items()}
        found = [
            ("packing", {r["model"]: float(r["per_dim"]) for r in self.rows}),
            ("loss", losses),
        ]
        for outcome, key in OF_ROWS.items():
            values = {name: (fact.get("rows") or {}).get(key) for name, fact in alike.items()}
            found.append((outcome, {name: v for name, v in values.items() if v is not None}))
        return [(outcome, values) for outcome, values in found if values or outcome in ALWAYS]

    def _replicates(self, values: dict[str, float]) -> np.ndarray:
        return np.array([v for name, v in values.items() if replicate(self.facts[name])])

    def _seeds(self) -> Record:
        """What chance alone does: standard deviation over seeds of the base recipe."""
        found: Record = {}
        for outcome, values in self._outcomes():
            same = self._replicates(values)
            enough = len(same) > 1
            found |= {
                f"n_{outcome}": len(same),
                f"{outcome}_sd": float(same.std(ddof=1)) if enough else None,
            }
        return found

    def _levers(self) -> list[str]:
        names = [name_of(f) for f in self.facts.values() if not replicate(f)]
        return [name for name in dict.fromkeys(names) if name != OTHER]

    def dose_response(
        self, outcomes: list[tuple[str, dict[str, float]]], generator: torch.Generator
    ) -> list[DoseResponse]:
        """Of each outcome, given by model, to every lever of the arm; Holm over levers."""
        found = []
        for outcome, values in outcomes:
            for lever in self._levers():
                doses = {
                    name: dose
                    for name in values
                    if (dose := self._dose(self.facts[name], lever)) is not None
                }
                found.append(
                    dose_response(
                        lever,
                        outcome,
                        np.array(list(doses.values())),
                        np.array([values[name] for name in doses]),
                        [replicate(self.facts[name]) for name in doses],
                        replicates=self._replicates(values),
                        doubling=lever in ON_A_LOG_SCALE,
                        generator=generator,
                    )
                )
        return corrected(found)

    def _dose(self, fact: Record, lever: str) -> float | None:
        """Replicates have the base's value of every lever."""
        if not replicate(fact):
            return value_of(fact, lever)
        return None if self.base is None else value_of(self.base, lever)

    def _mediation(self) -> Record:
        def scaled(lever: str, value: float) -> float:
            return float(np.log2(value)) if lever in ON_A_LOG_SCALE else value

        rows = [r for r in self.rows if name_of(self.facts[r["model"]]) != OTHER]
        facts = [self.facts[r["model"]] for r in rows]
        levers = [
            None if replicate(f) else (name_of(f), scaled(name_of(f), f["lever"]["value"]))
            for f in facts
        ]
        # The recipe's values, whether or not the base model's own count could be used.
        base_values = {
            lever: scaled(lever, value)
            for lever in self._levers()
            if self.base is not None and (value := value_of(self.base, lever)) is not None
        }
        found = mediation(
            _per_dim(rows),
            self.losses(rows),
            levers,
            base_values,
            generator=self.generator,
        ).to_json()
        for effect in found["effects"]:
            if effect["lever"] in ON_A_LOG_SCALE:
                effect["value"] = float(round(2 ** effect["value"]))
        return found

    def equal_k(self) -> Record:
        """The primary test among models whose dictionaries have one k, the most frequent.

        Each model has the k that brings it to the FVU asked for, on which a count may hang.
        """
        ks = [r["k"] for r in self.rows if r["k"] is not None]
        if not ks:  # N by saturation draws on dictionaries of several k
            reason = "no count may be used" if not self.rows else "counts of no one k"
            return {"least": None, "most": None, "k": None, "n_models": 0, "spearman": None,
                    "p": None, "reason": reason}  # fmt: skip
        usual = max(sorted(set(ks)), key=ks.count)
        rows = [r for r in self.rows if r["k"] == usual]
        found = spearman(_per_dim(rows), self.losses(rows), generator=self.generator)
        return {
            "least": min(ks),
            "most": max(ks),
            "k": usual,
            "n_models": len(rows),
            "spearman": found.value,
            "p": found.p,
            "reason": found.reason,
        }

    def equal_strictness(self) -> Record:
        """The primary test with latents of all models matched at one cosine.

        Each model's own is where random dictionaries of its covariance end, which differs. Taken is
        the least of those measured in all models that is below nobody's own, or the greatest.
        """
        found = [_by_cosine(r) for r in self.rows]
        owns = [own for own, _ in found if own is not None]
        common = set.intersection(*(set(counts) for _, counts in found)) if found else set()
        if len(owns) < len(found) or not common:
            reason = "no count may be used" if not found else "counts matched in one way"
            return {"least": None, "most": None, "cosine": None, "n_models": 0, "spearman": None,
                    "p": None, "reason": reason}  # fmt: skip
        cosine = min((c for c in common if c >= max(owns)), default=max(common))
        counts = np.array([counts[cosine] for _, counts in found], dtype=float)
        rank = spearman(counts, self.losses(self.rows), generator=self.generator)
        return {
            "least": min(owns),
            "most": max(owns),
            "cosine": cosine,
            "n_models": len(counts),
            "spearman": rank.value,
            "p": rank.p,
            "reason": rank.reason,
        }

    def _secondary(self) -> list[Record]:
        """Every other count, and the embedding's rows, against loss; Holm over what was tested."""
        places: dict[tuple[Any, ...], list[Record]] = {}
        for record in self.counts:
            if not any(record is row for row in self.rows):
                key = ("layer", "layer_fraction", "about", "estimator", "d_sae")
                places.setdefault(tuple(record[k] for k in key), []).append(record)
        tests: list[tuple[Record, Association]] = []
        for (layer, fraction, about, estimator, d_sae), rows in sorted(places.items()):
            found = spearman(_per_dim(rows), self.losses(rows), generator=self.generator)
            where = {
                "estimator": estimator,
                "about": about,
                "layer": layer,
                "layer_fraction": fraction,
                "d_sae": d_sae,
            }
            tests.append((where, found))
        for outcome, values in self._outcomes():
            if outcome in OF_ROWS:
                losses = np.array([self.facts[name][self.loss_key] for name in values], dtype=float)
                measured = np.array(list(values.values()))
                where = dict.fromkeys(("about", "layer", "layer_fraction", "d_sae"))
                found = spearman(measured, losses, generator=self.generator)
                tests.append(({"estimator": outcome, **where}, found))
        adjusted = holm([found.p for _, found in tests])
        return [
            where
            | {
                "n_models": found.n_models,
                "spearman": found.value,
                "ci_low": found.ci_low,
                "ci_high": found.ci_high,
                "p": found.p,
                "p_holm": p,
                "reason": found.reason,
            }
            for (where, found), p in zip(tests, adjusted, strict=True)
        ]


def _per_dim(rows: list[Record]) -> np.ndarray:
    return np.array([r["per_dim"] for r in rows], dtype=float)


def _by_cosine(record: Record) -> tuple[float | None, dict[float, float]]:
    """The least cosine of the headline's matches, and the counts at others."""
    known = [s for s in record.get("strictness") or () if s["by"] == "cosine"]
    own = next((float(s["at"]) for s in known if s["headline"]), None)
    others = {
        float(s["at"]): float(s["value"])
        for s in known
        if not s["headline"] and s["value"] is not None
    }
    # The headline's own cosine may be one of those.
    if own is not None and record["value"] is not None:
        others.setdefault(own, float(record["value"]))
    return own, others


def _why_unusable(record: Record) -> str:
    if record["value"] is None:
        return record["reason"] or "no count"
    if record["converged"] is not True:
        return "undertrained"
    if record["fvu_matched"] is not True:
        return "FVU not at the target"
    if record["censored"]:
        return "censored at the dictionary size"
    return record["reason"] or "no interval"


def _measurement_share(rows: list[Record]) -> float | None:
    """Share of the variance of packing between models that its own intervals account for.

    At 1 the models differ by no more than one model's count is uncertain, and no correlation with
    anything could show. None where a row has no interval, or all rows are equal.
    """
    values = _per_dim(rows)
    if len(rows) < 2 or np.ptp(values) == 0:
        return None
    if any(r["ci_low"] is None or r["ci_high"] is None for r in rows):
        return None
    # Intervals are of counts, values per dimension.
    scale = [r["per_dim"] / r["value"] if r["value"] else 0.0 for r in rows]
    halves = [(r["ci_high"] - r["ci_low"]) / 2 * s for r, s in zip(rows, scale, strict=True)]
    own = float(np.mean((np.array(halves) / Z_95) ** 2))
    return min(1.0, own / float(values.var(ddof=1)))
