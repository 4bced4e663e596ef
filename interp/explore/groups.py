"""Which SAEs a finished study keeps, in groups of seeds that differ in nothing else."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import pandas as pd

from interp.config import About, Architecture
from interp.errors import UserError
from interp.run import TRAINED, TWIN, Run, folder_name
from interp.spots import Spot, layer_depth


@dataclass(frozen=True)
class Group:
    """The seeds of one dictionary at one place of one model, and what the study found there."""

    model: str
    control: str
    spot: Spot
    k: int
    folders: tuple[Path, ...]
    """Of the SAEs, by seed; empty where they were removed."""
    main: bool
    """The first size with k by the FVU rule: what is compared across layers and models."""
    n_layers: int
    d_model: int
    found: dict[str, float]
    """Quantities of the main role that belong to no seed."""

    @property
    def key(self) -> str:
        """Its folder in the explorer."""
        return f"{folder_name(self.model, self.control)}/{self.spot.stream}/{self.size}"

    @property
    def size(self) -> str:
        return self.spot.size(self.k)

    @property
    def depth(self) -> float:
        """After this share of the blocks."""
        return layer_depth(self.spot.kind, self.spot.layer, self.n_layers)


def groups_of(
    run: Run, models: Sequence[str] | None = None, layers: Sequence[int] | None = None
) -> list[Group]:
    """The groups of trained models and their untrained twins, in the order of the config.

    Shuffled text and Gaussian noise are left out: there are no passages to read. So are models that
    could not be measured. Raises UserError for a model or layer that the run has not, and for a
    model in `models` that could not be measured.
    """
    config = run.config
    names = list(models or config.models)
    if strangers := sorted(set(names) - set(config.models)):
        raise UserError(
            f"{run.path} has no SAEs of {', '.join(strangers)}; it has {', '.join(config.models)}"
        )
    results = run.results
    counted = results[(results.role == "main") & results.d_sae.notna()]
    n_layers = {m["name"]: int(m["n_layers"]) for m in run.summary["models"]}
    found = [
        group
        for name in names
        if name in n_layers
        for control in ((TRAINED, TWIN) if name in config.twins else (TRAINED,))
        for group in _of_model(run, name, control, counted, n_layers[name])
    ]
    if models and (lost := set(models) - {g.model for g in found}):
        raise UserError(_nothing_of(run, min(lost)))
    if layers is not None:
        there = sorted({g.spot.layer for g in found})
        if strange := sorted(set(layers) - set(there)):
            raise UserError(
                f"{run.path} has no SAEs at layer {', '.join(map(str, strange))}; "
                f"it has them at {', '.join(map(str, there))}"
            )
        found = [g for g in found if g.spot.layer in layers]
    return found


def _nothing_of(run: Run, model: str) -> str:
    """That a model of the study could not be measured, and why."""
    why = next((f" ({f['unit']}: {f['error']})" for f in run.failures if f["model"] == model), "")
    return (
        f"{run.path} has no SAEs of {model}, which could not be measured{why}; leave it out, or "
        "run the study's own line again to measure it"
    )


def _of_model(
    run: Run, model: str, control: str, counted: pd.DataFrame, n_layers: int
) -> Iterable[Group]:
    mine = counted[(counted.model == model) & (counted.control == control)]
    root = run.path / "saes" / folder_name(model, control)
    first = mine.d_sae.min()
    seen: set[tuple[Spot, int]] = set()
    # The FVU rule first: another rule that came to the same k has the same SAEs.
    primary = run.config.architecture
    order = mine.assign(other=(mine.k_rule != "fvu") | (mine.architecture != primary))
    place = ["layer", "about", "d_sae", "other", "architecture", "k_rule", "k"]
    for at, rows in order.groupby(place, sort=True):
        layer, about, d_sae, other, architecture, _, k = cast(tuple[Any, ...], at)
        spot = Spot(
            int(layer),
            cast(About, str(about)),
            int(d_sae),
            kind=run.config.hook_kind,
            architecture=cast(Architecture, str(architecture)),
        )
        if (spot, int(k)) in seen:
            continue
        seen.add((spot, int(k)))
        known = rows[rows.seed.isna() & rows.value.notna()]
        yield Group(
            model=model,
            control=control,
            spot=spot,
            k=int(k),
            folders=_folders(root / spot.stream, spot.size(int(k))),
            main=bool(not other and d_sae == first),
            n_layers=n_layers,
            d_model=int(rows.d_model.iloc[0]),
            found=dict(zip(known.quantity.tolist(), known.value.tolist(), strict=True)),
        )


def _folders(stream: Path, size: str) -> tuple[Path, ...]:
    """By seed, which ends the folder's name."""
    found = [p for p in stream.glob(f"{size}-*") if p.name.removeprefix(f"{size}-").isdigit()]
    return tuple(sorted(found, key=lambda p: int(p.name.rpartition("-")[2])))
