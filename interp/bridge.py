"""The bridge: the counting pipeline on the toy model's hidden states, where the truth is known.

Between synthetic data (features, but no model) and language models (a model, but no truth) stands
the toy model of superposition: it chose itself which features to represent, and how its loss came
of that is known. If the count of its hidden states does not follow what it represents, no count of
a language model means much. SCIENCE section 5.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from pydantic import ValidationError
from torch import Tensor

from interp import durable
from interp.bridge_figures import bridge_figures
from interp.calibrate.cells import CalibrationConfig, Cell, refusal
from interp.calibrate.replicate import run_replicate
from interp.calibrate.saturation import saturation_rows
from interp.correlate import Association, spearman_exact, spearman_within
from interp.errors import UserError
from interp.machine import cpu_name
from interp.progress import Progress
from interp.report import static
from interp.run import write_json
from interp.toy.batches import Stream
from interp.toy.frequencies import Frequencies
from interp.toy.measures import REPRESENTED_NORM, measure
from interp.toy.model import Scratch, ToyConfig, ToyModel
from interp.toy.sweep import advance, workers

DECAYS = (-1.0, 0.0, 0.3, 1.0, 3.0)
"""From strong superposition, where every feature is represented, to weak, where few are."""
PER_DIM = (2, 4, 8)
"""Features of the data per dimension."""
EVALUATION_BATCHES = 64
CLOSE = 0.15
"""Relative error within which a count is right: SCIENCE's limit where features are not simple."""
FOLLOWS = (
    "the count follows what the toy model represents: their ranks agree beyond chance, and at "
    "least half of the models are counted to within 15%"
)
FOLLOWS_IN_ORDER = (
    "the count ranks the models as what they represent does, and is off by more than 15% in more "
    "than half of them: read counts as comparisons"
)
DOES_NOT_FOLLOW = (
    "the count does not follow what the toy model represents, so it says nothing of a language "
    "model"
)
TOO_FEW = "too few models have a count to tell"


@dataclass(frozen=True)
class BridgeConfig:
    """What determines a bridge."""

    m: int = 32
    density: float = 4.0
    """Features active in a sample, on average; also the k of the SAEs."""
    exponent: float = 0.5
    """Of the features' frequencies, p_i ~ i^-exponent."""
    n_steps: int = 10_000
    batch_size: int = 1024
    per_dim: tuple[int, ...] = PER_DIM
    decays: tuple[float, ...] = DECAYS
    n_rows: int = 262_144
    rows_per_latent: int = 8_192
    held_out_rows: int = 32_768
    n_seeds: int = 5
    sizes: tuple[int, ...] = (1, 2, 3, 4, 6, 8)
    """Of the dictionaries, per dimension; doubled until the largest holds twice the features.

    These and the rows are those of the calibration's gates.
    """

    def cells(self) -> Iterator[tuple[int, float]]:
        for per_dim in self.per_dim:
            for decay in self.decays:
                yield per_dim, decay

    def toy(self, per_dim: int, decay: float) -> ToyConfig:
        n = per_dim * self.m
        return ToyConfig(
            Frequencies("power", self.exponent, n, self.density), self.m, decay,
            batch_size=self.batch_size, n_steps=self.n_steps, warmup_steps=self.n_steps // 10,
            lr_W=1e-2, lr_b=1e-2, eps=1e-8 * n,
        )  # fmt: skip

    def counting(self, per_dim: int) -> tuple[Cell, CalibrationConfig]:
        """The calibration's own settings for rows of this width."""
        cell = Cell(d_in=self.m, n_per_dim=per_dim, l0=self.density)
        settings = CalibrationConfig(
            preset="bridge", cells=(cell,), n_replicates=1, d_sae_per_d_in=self.sizes,
            n_seeds=self.n_seeds, n_rows=self.n_rows, rows_per_latent=self.rows_per_latent,
            largest_holds_twice=True, held_out_rows=self.held_out_rows,
        )  # fmt: skip
        return cell, settings

    def to_json(self) -> dict[str, Any]:
        return json.loads(json.dumps(vars(self)))


class HiddenStates:
    """h = W^T x of a trained toy model on fresh inputs, without the all-zero rows."""

    def __init__(self, W: Float[np.ndarray, "n m"], p: Float[np.ndarray, " n"]) -> None:
        self.W, self.p = torch.from_numpy(W).float(), torch.from_numpy(p).float()

    def rows(
        self, n: int, *, generator: torch.Generator
    ) -> tuple[Float[Tensor, "row m"], Float[Tensor, "row n"]]:
        """Hidden states and the inputs that they come from."""
        x = torch.cat(list(self._inputs(n, generator)))[:n]
        return x @ self.W, x

    def stream(
        self, n_rows: int, *, generator: torch.Generator
    ) -> Iterator[Float[Tensor, "row m"]]:
        """Hidden states in pieces."""
        left = n_rows
        for x in self._inputs(n_rows, generator):
            yield x[:left] @ self.W
            left -= len(x)

    def _inputs(self, n: int, generator: torch.Generator) -> Iterator[Float[Tensor, "row n"]]:
        made = 0
        while made < n:
            shape = (16_384, len(self.p))
            active = torch.rand(shape, generator=generator) < self.p
            x = active * 2 * torch.rand(shape, generator=generator)
            x = x[active.any(dim=1)]
            made += len(x)
            yield x


def bridge(
    config: BridgeConfig, out: Path, *, command: str, threads: int = 1, quiet: bool = False
) -> dict[str, Any]:
    """Train what is not there yet of the toy models and their SAEs, then judge; the summary.

    One file per toy model, so that a killed run loses one at most. Writes `summary.json` and two
    figures into `out`. Raises UserError for settings with which no model can be trained or counted,
    and where the folder holds another bridge.
    """
    _check(config)
    _claim(out, config)
    with durable.only_writer(out):
        durable.remove_partials(out)
        cells = list(config.cells())
        progress = Progress(float(len(cells)), quiet=quiet)
        records = []
        for per_dim, decay in cells:
            file = out / f"n{per_dim}-decay{decay:+g}.json"
            if file.exists():
                progress.skip(1.0)
            else:
                label = f"{per_dim} features per dimension, decay {decay:+g}"
                started = time.monotonic()
                found = _cell(config, per_dim, decay, threads, label, progress)
                write_json(file, found | {"seconds": round(time.monotonic() - started, 1)})
                progress.finish(1.0)
            record = json.loads(file.read_text())
            record["rows"] += saturation_rows(record["rows"], *config.counting(per_dim))
            records.append(record)
        summary = {"command": command, "cpu": cpu_name()} | judge(records)
        for figure in bridge_figures(summary):
            drawn = static.svg(figure)
            (out / "figures").mkdir(exist_ok=True)
            durable.write(out / "figures" / f"{figure.name}.svg", drawn.encode())
            durable.write(out / "figures" / f"{figure.name}.png", static.png(drawn))
        write_json(out / "summary.json", summary)
        progress.close(f"done; {len(records)} toy models")
    return summary


def _cell(
    config: BridgeConfig, per_dim: int, decay: float, threads: int, label: str, progress: Progress
) -> dict[str, Any]:
    """One toy model: what it represents and loses, and what is counted in its hidden states."""
    toy = ToyModel(config.toy(per_dim, decay))
    f = toy.config.frequencies
    progress.at(f"{label}: the toy model")
    with workers(1) as pool:
        stream = Stream(f, config.batch_size)
        for start in range(0, config.n_steps, 500):
            advance([toy], stream, start, min(start + 500, config.n_steps), pool)
    truth = measure(toy, EVALUATION_BATCHES, Scratch())
    cell, settings = config.counting(per_dim)
    rows = run_replicate(
        cell,
        0,
        settings,
        data=HiddenStates(toy.W, f.probabilities()),
        workers=threads,
        heartbeat=lambda share: progress.at(f"{label}: SAEs", 0.8 * share),
    )
    represented = int((truth.norms > REPRESENTED_NORM).sum())
    return {
        "m": config.m,
        "n": f.n,
        "n_per_dim": per_dim,
        "decay": decay,
        "represented": represented,
        "phi_half": truth.phi_half,
        "loss": truth.loss,
        "loss_se": truth.loss_se,
        "rows": rows,
    }


def judge(records: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Counts beside the truth, their agreement, and the verdict in words fixed beforehand.

    A count is N where it is identified; else the largest S_>=2 of a converged dictionary, as a
    bound. Beside it N without composites (`saes/composites.py`), which says whether a miss is one
    of pairs of features.
    """
    cells = [_counted(record) for record in records]
    counted = [c for c in cells if c["counted"] is not None]
    estimated, truth, loss = (
        np.array([c[key] for c in counted], dtype=float)
        for key in ("counted_per_dim", "represented_per_dim", "loss")
    )
    generator = torch.Generator().manual_seed(0)
    follows = spearman_exact(estimated, truth, generator=generator)
    with_loss = spearman_exact(estimated, loss, generator=generator)
    truth_with_loss = spearman_exact(truth, loss, generator=generator)
    groups = [str(c["n_per_dim"]) for c in counted]
    within = {
        key: spearman_within(values, loss, groups, generator=generator).to_json()
        for key, values in (("counted", estimated), ("represented", truth))
    }
    close = [c["relative_error"] is not None and abs(c["relative_error"]) <= CLOSE for c in counted]
    return {
        "cells": cells,
        "n_counted": len(counted),
        "n_bounds": sum(c["bound"] for c in counted),
        "n_close": sum(close),
        "counted_with_represented": follows.to_json(),
        "counted_with_loss": with_loss.to_json(),
        "represented_with_loss": truth_with_loss.to_json(),
        "within_per_dim": within,
        "verdict": _verdict(follows, sum(close), len(counted)),
    }


def _counted(record: dict[str, Any]) -> dict[str, Any]:
    by_name = {r["estimator"]: r for r in record["rows"]}
    fit, atoms = by_name["saturation"], by_name["saturation_atoms"]
    sizes = [r for r in record["rows"] if r["estimator"] == "reproducible"]
    value = fit["value"]
    m, represented = record["m"], record["represented"]
    return {
        **{key: value for key, value in record.items() if key != "rows"},
        "represented_per_dim": represented / m,
        "counted": value,
        "counted_per_dim": None if value is None else value / m,
        "without_composites_per_dim": None if atoms["value"] is None else atoms["value"] / m,
        "without_composites_bound": not atoms["identified"],
        "ci_low": fit["ci_low"],
        "ci_high": fit["ci_high"],
        "bound": not fit["identified"],
        "reason": fit["reason"],
        "relative_error": value / represented - 1 if value is not None and represented else None,
        "by_size": [[r["d_sae"], r["value"], r["converged"]] for r in sizes],
        "fvu": sizes[-1]["fvu"],
    }


def _verdict(follows: Association, n_close: int, n_counted: int) -> str:
    if follows.value is None or follows.p is None or n_counted < 5:
        return TOO_FEW
    if follows.value <= 0 or follows.p > 0.05:
        return DOES_NOT_FOLLOW
    return FOLLOWS if 2 * n_close >= n_counted else FOLLOWS_IN_ORDER


def _check(config: BridgeConfig) -> None:
    """Raise UserError for what would otherwise come out when the toy model has been trained."""
    for per_dim, decay in config.cells():
        config.toy(per_dim, decay)
        try:
            config.counting(per_dim)
        except ValidationError as error:
            raise refusal(error, "bridge") from None


def _claim(out: Path, config: BridgeConfig) -> None:
    """The folder is this bridge's, or becomes it."""
    path = out / "config.json"
    if path.exists():
        try:
            held = json.loads(path.read_text())
        except ValueError as error:
            raise UserError(f"{path}: is no bridge's config; choose another --out") from error
        differing = [key for key, value in config.to_json().items() if held.get(key) != value]
        if differing:
            raise UserError(
                f"{out} holds another bridge ({differing[0]} is {held.get(differing[0])!r} there); "
                "choose another --out"
            )
        return
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} exists and holds no bridge; choose another --out or empty it")
    out.mkdir(parents=True, exist_ok=True)
    write_json(path, config.to_json())
