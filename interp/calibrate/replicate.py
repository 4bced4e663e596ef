"""One replicate of one cell: data, SAEs of every size and seed, and every estimator."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp.calibrate.cells import CalibrationConfig, Cell
from interp.calibrate.training import RowSource, Trained, train
from interp.calibrate.truth import beside_the_truth, facts_of
from interp.chao import chao2_latents, incidence_of
from interp.config import MIN_SEEDS
from interp.decoder_overlap import overlap_estimates
from interp.estimate import ATOMS, Estimate, InsufficientData
from interp.packing import (
    COUNT_SLACK_PER_DIM,
    DocumentTotals,
    converged,
    hill,
    live_latents,
    reproducible_estimate,
)
from interp.seed_richness import seed_richness
from saes.composites import without_composites
from saes.latent_set import LatentSet
from saes.matching import ReproducibleCount, reproducible
from saes.metrics import evaluate
from saes.sae import SAE
from saes.synthetic import SyntheticData

TRUTH_AT = "0.9"
"""Least cosine at which a class stands for a feature, of `LEAST_COSINES`, in the table."""
N_BOOTSTRAP = 50
Row = dict[str, Any]


def run_replicate(
    cell: Cell,
    replicate: int,
    config: CalibrationConfig,
    *,
    data: RowSource | None = None,
    workers: int | None = None,
    heartbeat: Callable[[float], None] = lambda share: None,
    trained: Trained | None = None,
) -> list[Row]:
    """Rows of one replicate, one per dictionary size and estimator.

    Determined by cell, replicate and config. `data`: other rows of the cell's width than the
    synthetic ones that it describes. `heartbeat` is told the share of the training done; `trained`:
    its SAEs, where they are there. The row of a count has a `detail`: what its value was made of.
    """
    data = data or SyntheticData(cell.data(seed=replicate))
    directions = data.directions if isinstance(data, SyntheticData) else None
    if trained is None:
        trained = train(data, cell, replicate, config, workers=workers, heartbeat=heartbeat)
    main, half = trained
    generator = torch.Generator().manual_seed(2 * replicate + 1)
    x, _ = data.rows(config.held_out_rows, generator=generator)
    documents = torch.arange(len(x)) // config.rows_per_document
    rows: list[Row] = []
    for d_sae in config.sizes(cell):
        counts, others = _of_one_size(
            main[d_sae], half[d_sae], x, documents, cell, generator, directions
        )
        rows += [_row(c.estimate, d_sae) | c.facts() for c in counts]
        plain = counts[0]
        facts = {"fvu": plain.fvu, "fvu_half": plain.fvu_half, "converged": plain.converged}
        rows += [_row(e, d_sae) | facts for e in others]
    return rows


class Count(NamedTuple):
    """S_>=r of one size, and whether half the training would have given it too."""

    d_sae: int
    estimate: Estimate
    se: float | None
    value_half: float | None
    fvu: float
    fvu_half: float
    converged: bool
    found: ReproducibleCount | None
    detail: dict[str, Any] | None

    def facts(self) -> dict[str, Any]:
        """What stands beside the estimate in its row."""
        names = ("se", "value_half", "fvu", "fvu_half", "converged", "detail")
        return {name: getattr(self, name) for name in names}


def _of_one_size(
    main: Sequence[SAE],
    half: Sequence[SAE],
    x: Float[Tensor, "row d_in"],
    documents: Int[Tensor, " row"],
    cell: Cell,
    generator: torch.Generator,
    directions: Float[Tensor, "feature d_in"] | None,
) -> tuple[list[Count], list[Estimate]]:
    """S_>=2, S_>=2 without composites and what all seeds find; then every other estimator."""
    sae, d_in = main[0], cell.d_in
    latents, before = (
        [LatentSet.from_acts(s.W_dec, s.encode(x)) for s in group] for group in (main, half)
    )
    by_seed = [[evaluate(s, [x]).fvu for s in group] for group in (half, main)]
    fvus = [float(np.mean(found)) for found in by_seed]

    def count(full: list[LatentSet], halved: list[LatentSet], name: str, **how: Any) -> Count:
        min_seeds = how.setdefault("min_seeds", MIN_SEEDS)
        try:
            result = reproducible_estimate(
                full, documents, x, generator=generator, n_bootstrap=N_BOOTSTRAP, **how
            )
        except InsufficientData as refusal:
            partial = replace(refusal.partial, estimator=name)
            return Count(sae.d_sae, partial, None, None, fvus[1], fvus[0], False, None, None)
        # The null of the full run serves both: it depends on the number of latents alone.
        of_half = reproducible(halved, result.count.threshold)
        s_half = float(max(of_half.s_ge[min_seeds] - result.null.s_ge[min_seeds], 0))
        value = result.estimate.value or 0.0
        steady = converged(s_half, value, *fvus, count_slack=COUNT_SLACK_PER_DIM * d_in)
        estimate = replace(result.estimate, estimator=name)
        detail = {
            "found": facts_of(result.count),
            "null": facts_of(result.null),
            "half": facts_of(of_half),
            "min_seeds": min_seeds,
            "leave_one_out": list(result.leave_one_out),
            "se_seeds": result.se_seeds,
            "se_documents": result.se_documents,
            "fvu_half_by_seed": by_seed[0],
            "fvu_by_seed": by_seed[1],
        }
        if directions is not None:
            detail["truth"] = beside_the_truth(result.count, min_seeds, full, directions)
        return Count(
            sae.d_sae, estimate, result.se, s_half, fvus[1], fvus[0], steady, result.count, detail
        )

    plain = count(latents, before, "reproducible")
    atoms = count(
        [without_composites(found) for found in latents],
        [without_composites(found) for found in before],
        ATOMS,
    )
    # The same matching as of `plain`, read more strictly.
    everyone = count(
        latents,
        before,
        "reproducible_all",
        min_seeds=len(latents),
        threshold=None if plain.found is None else plain.found.threshold,
    )
    totals = DocumentTotals.of(latents[0].acts, documents, sae.d_sae)
    norms = sae.W_dec.norm(dim=1).numpy()
    common: dict[str, Any] = {
        "d_in": d_in,
        "k": sae.k,
        "generator": generator,
        "n_bootstrap": N_BOOTSTRAP,
    }
    live_rows = [found.W_dec[torch.from_numpy(found.live)] for found in latents]
    makers: list[Callable[[], Sequence[Estimate]]] = [
        lambda: [live_latents(totals, **common)],
        *(lambda q=q: [hill(q, totals, norms, **common)] for q in (0, 1, 2)),
        lambda: [chao2_latents(incidence_of(totals), d_in=d_in, k=sae.k)[0]],
        lambda: overlap_estimates(live_rows, d_sae=sae.d_sae, k=sae.k),
    ]
    if (found := plain.found) is not None:
        makers.append(lambda: seed_richness(found, d_in=d_in, d_sae=sae.d_sae, k=sae.k))
    others: list[Estimate] = []
    for one in (plain, atoms, everyone):
        others += _against_truth(one, d_in=d_in, k=sae.k)
    if atoms.found is not None:
        others.append(_distinct(atoms.found, d_in=d_in, d_sae=sae.d_sae, k=sae.k))
    for make in makers:
        try:
            others += make()
        except InsufficientData as refusal:
            others.append(refusal.partial)
    return [plain, atoms, everyone], others


def _against_truth(count: Count, *, d_in: int, k: int) -> list[Estimate]:
    """Features that its classes stand for, and classes that stand for none."""
    truth = (count.detail or {}).get("truth")
    if truth is None:
        return []
    return [
        Estimate(
            f"{count.estimate.estimator}_{name}",
            float(truth[TRUTH_AT][key]),
            per_dim=truth[TRUTH_AT][key] / d_in,
            n_seeds=count.estimate.n_seeds,
            d_sae=count.d_sae,
            k=k,
            identified=False,
            reason="told by the truth, which a model does not have",
        )
        for name, key in (("hits", "hit"), ("strays", "none"))
    ]


def _distinct(found: ReproducibleCount, **about: int) -> Estimate:
    """Live latents of a seed that are neither near copies nor composites, over the seeds.

    Below D it says that a dictionary has room to spare, whatever seeds agree on.
    """
    value = float(np.mean(found.n_live))
    return Estimate(
        "distinct_latents",
        value,
        per_dim=value / about["d_in"],
        n_seeds=found.n_seeds,
        d_sae=about["d_sae"],
        k=about["k"],
        identified=False,
        reason="of this dictionary's latents, whatever there is to find",
    )


def _row(estimate: Estimate, d_sae: int) -> Row:
    keep = (
        "estimator",
        "value",
        "ci_low",
        "ci_high",
        "identified",
        "censored",
        "reason",
        "converged",
    )
    full = estimate.to_json()
    empty = dict.fromkeys(("se", "value_half", "fvu", "fvu_half", "detail"))
    return {"d_sae": d_sae} | {key: full[key] for key in keep} | empty
