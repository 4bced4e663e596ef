"""How a study's dictionaries and output heads overlap, beside the Welch floor. No counts.

From what is saved, so that a study that was measured before can be told too: every row of a
dictionary, dead latents included, for which ones are alive is known to its activations alone.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from interp.decoder_overlap import overlap_estimates, welch_floor
from interp.errors import UserError
from interp.estimate import Estimate
from interp.geometry import geometry
from interp.graph import Graph
from interp.head_matrix import decoder, matrices_of
from interp.spots import MAIN, Spot
from interp.units import Unit, files_of

_OF_HEAD = ("n", "d_model", "mean_squared_overlap", "mean_squared_overlap_centred",
            "mean_squared_overlap_top_removed", "welch_floor", "random_mean")  # fmt: skip


def dictionary_overlaps(graph: Graph, models: Iterable[str]) -> list[dict[str, Any]]:
    """One record per group of seeds that was measured, the controls' too, with k by FVU.

    `overlap` (mean squared cosine of different rows), raw and centred, and `capacity`: each a mean
    over the seeds with Student's interval, as in `overlap_estimates`.
    """
    known = set(models)
    return [
        _of_dictionaries(graph, unit, unit.spot)
        for unit in graph.units
        if unit.spot is not None
        and unit.spot.k_rule == "fvu"  # the other rules' are for the count alone
        and unit.model in known
        and graph.is_done(unit)
    ]


def head_overlaps(models: Iterable[str]) -> list[dict[str, Any]]:
    """One record per model's output head; `reason` in place of numbers that there are not."""
    return [{"model": name} | _of_head(name) for name in models]


def _of_dictionaries(graph: Graph, unit: Unit, spot: Spot) -> dict[str, Any]:
    group = Unit(unit.model, unit.control, "saes")
    files = [
        files_of(graph.folder, group, item)
        for item in graph.sae_items(group, spot)
        if item.endswith(f"/{MAIN}")
    ]
    rows = [decoder(config.parent).rows for config, _ in files]
    d_in, k = rows[0].shape[1], graph.k_of(unit, spot)["k"]
    overlap, capacity = overlap_estimates(rows, d_sae=spot.d_sae, k=k)
    centred, _ = overlap_estimates(rows, d_sae=spot.d_sae, k=k, centred=True)
    return {
        "model": unit.model,
        "control": unit.control,
        "layer": spot.layer,
        "hook_point": spot.hook_point,
        "about": spot.about,
        "headline": spot.headline,
        "d_model": d_in,
        "d_sae": spot.d_sae,
        "k": k,
        "n_seeds": len(rows),
        "overlap": _interval(overlap),
        "overlap_centred": _interval(centred),
        "capacity": _interval(capacity),
        "welch_floor": welch_floor(spot.d_sae, d_in),
        "random_mean": 1 / d_in,
    }


def _of_head(name: str) -> dict[str, Any]:
    try:
        [head] = matrices_of(name, ("unembedding",))
        found = geometry(head.rows)
    except (UserError, ValueError) as error:
        return {"reason": str(error)}
    return {key: getattr(found, key) for key in _OF_HEAD} | {"tied": head.tied}


def _interval(estimate: Estimate) -> dict[str, float | None]:
    return {"value": estimate.value, "ci_low": estimate.ci_low, "ci_high": estimate.ci_high}
